//! A whole block device, a partition, or a preallocated file, opened for direct I/O.
//!
//! [`open`] claims it (`O_EXCL` on devices, `flock` on both), asks for its size and sectors, fences other hosts off where the device can,
//! and chooses how it is written. [`open_read_only`] is for looking at a log that may be in use. Neither judges what is on the device: the key of
//! the last owner is read from the log's header only to find its reservation, and never believed for anything else.
#![expect(
    clippy::disallowed_methods,
    reason = "opening a device waits in real time, and before anything runs"
)]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tracing::{info, warn};

use super::{Device, DeviceGeometry, DeviceInfo, WriteQueue};
use super::{pwrite::PwriteQueue, uring, uring::UringQueue};
use crate::aligned::AlignedBuf;
use crate::geometry::{Ring, Slot};
use crate::guard::{self, FenceOptions, Fencing, Guard, GuardError, Unfenced};
use crate::header::Header;
use crate::reservation::{Preempt, ReservationKey};
use crate::rules::rules;

/// What a file is read and written in: no file system in use asks for more, and the header copies keep their distance.
const FILE_SECTOR: u32 = 4096;
/// Between two tries to claim a device that its last owner may just be leaving.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

/// How a device is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// io_uring where the kernel allows it, else `pwritev2`: with several writes in flight io_uring measured better on files and on devices. One
    /// that is alone goes to a file by `pwritev2`, to a device by io_uring.
    #[default]
    Best,
    /// The same, but without io_uring the device is not opened.
    IoUring,
    /// `pwritev2` with `RWF_DSYNC`.
    Pwritev2,
}

/// How a device is opened.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// How it is written.
    pub method: Method,
    /// Whether other hosts are fenced off.
    pub fencing: Fencing,
    /// How the old owner is thrown out.
    pub preempt: Preempt,
    /// How long throwing it out may take; 60 s by default.
    pub fence_deadline: Duration,
    /// How long a claim of another process is waited for; 2 s by default. A process that was killed gives its claim back only when its
    /// last write has ended.
    pub claim_patience: Duration,
    /// The key this opening reserves the device with.
    pub key: ReservationKey,
}

impl DeviceOptions {
    /// The defaults. `key` is to be drawn at random for each opening.
    pub fn new(key: ReservationKey) -> DeviceOptions {
        DeviceOptions {
            method: Method::default(),
            fencing: Fencing::default(),
            preempt: Preempt::default(),
            fence_deadline: Duration::from_secs(60),
            claim_patience: Duration::from_secs(2),
            key,
        }
    }
}

/// Why a device could not be opened, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It is in use on this host: end the other process, or unmount it.
    #[error("{} is in use by another process on this host", path.display())]
    Busy {
        /// Which.
        path: PathBuf,
    },
    /// It does not exist, or is not ours to open.
    #[error("{} can't be opened", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory, a terminal, ...
    #[error("{} is neither a block device nor a file", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
    },
    /// A file system without direct I/O: put the file elsewhere. Through the page cache a lost write would go unnoticed.
    #[error("{} can't be opened for direct I/O; the file system does not support it", path.display())]
    NotDirect {
        /// Which.
        path: PathBuf,
    },
    /// Its size or its sectors can't be told.
    #[error("the geometry of {} can't be read", path.display())]
    Geometry {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// [`Method::IoUring`] was asked for.
    #[error("io_uring can't be used here")]
    IoUring(#[source] io::Error),
    /// The guard against other hosts could not be put up.
    #[error("{} can't be guarded", path.display())]
    Guard {
        /// Which.
        path: PathBuf,
        /// Why.
        source: GuardError,
    },
}

/// What a device is, beside its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Whole device, partition or file.
    pub kind: DeviceKind,
    /// The kernel's number of this device since boot: another one under the same name has another.
    pub disk_sequence: Option<u64>,
    /// Whether it has a volatile cache; every write passes it, also where this can't be told.
    pub volatile_cache: Option<bool>,
    /// The file holds fewer blocks than its size: a write may then find the file system full. (Compression looks the same.)
    pub sparse: bool,
}

/// What can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A whole block device.
    Whole,
    /// A partition of one.
    Partition,
    /// A file.
    File,
}

/// A device, open and guarded.
#[derive(Clone)]
pub struct DirectDevice {
    path: PathBuf,
    file: Arc<File>,
    geometry: DeviceGeometry,
    facts: DeviceFacts,
    access: Access,
}

/// What may be done with it.
#[derive(Clone)]
enum Access {
    Write { io_uring: bool, guard: Guard },
    Read,
}

/// Opens a device for a log and guards it. Blocks, possibly for as long as `fence_deadline`.
pub fn open(path: &Path, options: &DeviceOptions) -> Result<DirectDevice, DeviceError> {
    let (file, kind) = claim(path, options.claim_patience)?;
    let mut device = look_at(path, file, kind)?;
    let guard = guard_against_others(&device, options).map_err(|source| DeviceError::Guard {
        path: path.to_owned(),
        source,
    })?;
    let io_uring = match (options.method, uring::available()) {
        (Method::Pwritev2, _) => false,
        (Method::Best | Method::IoUring, Ok(())) => true,
        (Method::IoUring, Err(error)) => return Err(DeviceError::IoUring(error)),
        (Method::Best, Err(error)) => {
            warn!(
                error = &error as &dyn std::error::Error,
                "io_uring is not available here, writing with pwritev2"
            );
            false
        }
    };
    device.access = Access::Write { io_uring, guard };
    let (said, facts) = (device.info(), &device.facts);
    if facts.sparse {
        warn!(
            path = said.name,
            "the file has holes: the file system may be full before the log is"
        );
    }
    info!(
        path = said.name,
        method = said.method,
        guard = said.guard,
        bytes = device.geometry.bytes,
        logical_sector = device.geometry.logical_sector,
        physical_sector = device.geometry.physical_sector,
        ?facts,
        "the device is open"
    );
    Ok(device)
}

/// Opens a device to look at it, whoever else has it open: nothing is claimed, locked or fenced, and nothing can be written. What
/// is read may be changing.
pub fn open_read_only(path: &Path) -> Result<DirectDevice, DeviceError> {
    let kind = kind_of(path)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags(OFlags::DIRECT))
        .open(path)
        .map_err(|error| cannot_open(path, error))?;
    look_at(path, file, kind)
}

fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

fn cannot_open(path: &Path, source: io::Error) -> DeviceError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock => DeviceError::Busy { path },
        // What else could be invalid about opening a file by its name?
        io::ErrorKind::InvalidInput => DeviceError::NotDirect { path },
        _ => DeviceError::Open { path, source },
    }
}

fn kind_of(path: &Path) -> Result<DeviceKind, DeviceError> {
    let metadata = std::fs::metadata(path).map_err(|error| cannot_open(path, error))?;
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(DeviceKind::File)
    } else if kind.is_block_device() {
        let partition = sys(metadata.rdev()).join("partition").exists();
        Ok(if partition {
            DeviceKind::Partition
        } else {
            DeviceKind::Whole
        })
    } else {
        Err(DeviceError::Kind {
            path: path.to_owned(),
        })
    }
}

/// Opens for reading and writing, and as the only one on this host.
fn claim(path: &Path, patience: Duration) -> Result<(File, DeviceKind), DeviceError> {
    let begun = Instant::now();
    loop {
        let kind = kind_of(path)?;
        match claim_once(path, kind) {
            Err(DeviceError::Busy { .. }) if begun.elapsed() < patience => {
                thread::sleep(CLAIM_PAUSE);
            }
            outcome => return outcome.map(|file| (file, kind)),
        }
    }
}

fn claim_once(path: &Path, kind: DeviceKind) -> Result<File, DeviceError> {
    if !rules().exclusive {
        let file = OpenOptions::new().read(true).write(true).open(path);
        return file.map_err(|error| cannot_open(path, error));
    }
    // On a device O_EXCL is a claim of the kernel's own, against file systems and tools as well.
    let exclusive = match kind {
        DeviceKind::File => OFlags::empty(),
        DeviceKind::Whole | DeviceKind::Partition => OFlags::EXCL,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags(OFlags::DIRECT | exclusive))
        .open(path)
        .map_err(|error| cannot_open(path, error))?;
    // On a device as well: udev leaves alone what is locked, and /proc/locks names the owner.
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(DeviceError::Busy {
            path: path.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(error)) => Err(cannot_open(path, error)),
    }
}

fn look_at(path: &Path, file: File, kind: DeviceKind) -> Result<DirectDevice, DeviceError> {
    let measured = measure(&file, kind).map_err(|source| DeviceError::Geometry {
        path: path.to_owned(),
        source,
    });
    let (geometry, facts) = measured?;
    Ok(DirectDevice {
        path: path.to_owned(),
        file: Arc::new(file),
        geometry,
        facts,
        access: Access::Read,
    })
}

fn measure(file: &File, kind: DeviceKind) -> io::Result<(DeviceGeometry, DeviceFacts)> {
    let metadata = file.metadata()?;
    // The size of a device is not in its metadata.
    let bytes = (&*file).seek(SeekFrom::End(0))?;
    if kind == DeviceKind::File {
        let geometry = DeviceGeometry {
            bytes,
            logical_sector: FILE_SECTOR,
            physical_sector: FILE_SECTOR,
        };
        let facts = DeviceFacts {
            kind,
            disk_sequence: None,
            volatile_cache: None,
            sparse: metadata.blocks().saturating_mul(512) < bytes,
        };
        return Ok((geometry, facts));
    }
    let geometry = DeviceGeometry {
        bytes,
        logical_sector: rustix::fs::ioctl_blksszget(file)?,
        physical_sector: rustix::fs::ioctl_blkpbszget(file)?,
    };
    let mut whole = sys(metadata.rdev());
    if kind == DeviceKind::Partition {
        whole.push("..");
    }
    let read = |name: &str| std::fs::read_to_string(whole.join(name)).ok();
    let facts = DeviceFacts {
        kind,
        disk_sequence: read("diskseq").and_then(|text| text.trim().parse().ok()),
        volatile_cache: read("queue/write_cache").map(|text| text.trim() == "write back"),
        sparse: false,
    };
    Ok((geometry, facts))
}

/// Where the kernel describes the block device with this number.
fn sys(device: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
        .canonicalize()
        // Without /sys nothing of what is asked for there is found.
        .unwrap_or_else(|_| PathBuf::from("/sys"))
}

fn guard_against_others(
    device: &DirectDevice,
    options: &DeviceOptions,
) -> Result<Guard, GuardError> {
    let last_known = key_in_header(device);
    let reason = match (options.fencing, device.facts.kind) {
        (Fencing::Off, DeviceKind::Whole | DeviceKind::Partition) => Unfenced::SwitchedOff,
        (_, DeviceKind::File) => Unfenced::File,
        (_, DeviceKind::Partition) => Unfenced::Partition,
        (Fencing::WherePossible | Fencing::Required, DeviceKind::Whole) => {
            let fence = FenceOptions {
                fencing: options.fencing,
                preempt: options.preempt,
                deadline: options.fence_deadline,
                key: options.key,
            };
            return guard::fence(&device.file, &fence, last_known);
        }
    };
    guard::unfenced(reason, options.fencing, last_known)
}

/// The reservation key in the newest header copy that can be read: where kernel and device can't say who holds the device, this is
/// the last thing known. It is only ever tried, so a wrong one does no harm.
fn key_in_header(device: &DirectDevice) -> Option<ReservationKey> {
    let ring = Ring::of(device.geometry).ok()?;
    let unit = usize::try_from(ring.unit()).ok()?;
    let newest = Slot::BOTH
        .into_iter()
        .filter_map(|slot| {
            let (offset, mut buf) = (ring.header(slot), AlignedBuf::zeroed(unit));
            device.read_at(offset, buf.as_mut_slice()).ok()?;
            Header::decode(slot, offset, buf.as_slice()).ok()
        })
        .max_by_key(Header::age)?;
    ReservationKey::new(newest.reservation_key)
}

impl DirectDevice {
    /// What it is.
    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// What keeps a second writer away; `None` if it was opened to be read.
    pub fn guard(&self) -> Option<&Guard> {
        match &self.access {
            Access::Write { guard, .. } => Some(guard),
            Access::Read => None,
        }
    }
}

impl fmt::Debug for DirectDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectDevice")
            .field("path", &self.path)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

impl Device for DirectDevice {
    fn geometry(&self) -> DeviceGeometry {
        self.geometry
    }

    fn info(&self) -> DeviceInfo {
        let (method, guard) = match &self.access {
            Access::Write { io_uring, guard } => (
                if *io_uring { "io_uring" } else { "pwritev2" },
                guard.to_string(),
            ),
            Access::Read => (
                "none",
                "none is needed: it is open for reading only".to_owned(),
            ),
        };
        DeviceInfo {
            name: self.path.display().to_string(),
            method,
            guard,
        }
    }

    fn reservation_key(&self) -> u64 {
        let key = self.guard().and_then(Guard::reservation_key);
        key.map_or(0, ReservationKey::get)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn WriteQueue>> {
        Ok(match &self.access {
            Access::Read => return Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            Access::Write { io_uring: true, .. } => {
                let on_the_spot = self.facts.kind == DeviceKind::File;
                Box::new(UringQueue::new(&self.file, depth, on_the_spot)?)
            }
            Access::Write {
                io_uring: false, ..
            } => Box::new(PwriteQueue::new(&self.file, depth)?),
        })
    }
}

#[cfg(test)]
mod tests;
