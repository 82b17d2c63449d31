//! A file for a log: its whole size allocated and written with zeros, so that no later write has to change what the file system keeps about
//! it, and none finds it full.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags};

use super::direct::DeviceError;
use crate::aligned::AlignedBuf;

/// Zeros are written in pieces of this length.
const PIECE_LEN: usize = 4 << 20;
const PIECE_BYTES: u64 = 4 << 20;
const _: () = assert!(PIECE_LEN as u64 == PIECE_BYTES);

/// Makes a file of `bytes` (a multiple of 4096) at `path`, where there must be none. `progress` hears how many bytes are written.
///
/// The file comes up under its name only when it is complete. What an earlier try that was stopped has left beside it (`path` with
/// `.partial` behind it) is replaced.
pub fn create_file(
    path: &Path,
    bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), DeviceError> {
    if !bytes.is_multiple_of(4096) {
        return Err(DeviceError::Geometry {
            path: path.to_owned(),
            source: io::Error::other("the size has to be a multiple of 4096 bytes"),
        });
    }
    let mut partial = OsString::from(path);
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let outcome = write_zeros(path, &partial, bytes, progress);
    outcome.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => DeviceError::Busy { path: partial },
        io::ErrorKind::InvalidInput => DeviceError::NotDirect {
            path: path.to_owned(),
        },
        _ => DeviceError::Open {
            path: path.to_owned(),
            source,
        },
    })
}

fn write_zeros(
    path: &Path,
    partial: &Path,
    bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    if path.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(partial)?;
    // Two that make the same file: the second gives up. It may have opened what the first then finished, so it looks again.
    file.try_lock()?;
    if path.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let filled = fill(&file, bytes, progress);
    // Does not replace what came up under the name in the meantime.
    let outcome = filled.and_then(|()| std::fs::hard_link(partial, path));
    // Nobody else is at it: the lock is still held.
    std::fs::remove_file(partial)?;
    outcome?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn fill(file: &File, bytes: u64, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    file.set_len(0)?;
    rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes)?;
    let zeros = AlignedBuf::zeroed(PIECE_LEN);
    let mut written = 0;
    while written < bytes {
        let len = usize::try_from(PIECE_BYTES.min(bytes - written)).map_err(io::Error::other)?;
        file.write_all_at(&zeros.as_slice()[..len], written)?;
        written += len as u64;
        progress(written);
    }
    file.sync_all()
}
