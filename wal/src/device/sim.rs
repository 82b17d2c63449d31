//! A simulated device: the same trait as the real ones, and every way in which a real one can fail, at a place that a seed or a
//! test chooses.
//!
//! What it knows of a disk: a write in flight may land in any of its sectors or in none, in any order with others in flight; a write
//! whose process was killed may sit in the device's volatile cache (readable, gone with the power), or land much later; a device may
//! lie (lose a write, put it elsewhere, flip a bit, hand out another place's bytes) or fail (`EIO`, a short write, an unreadable
//! sector, another size).
//!
//! Nothing here is random: who drives it decides. It records what was written ([`Event`]), so that `crash` can derive every
//! state in which a crash may have left the device.

mod image;
mod sectors;

use std::{
    collections::BTreeMap,
    fmt, io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Wake, Waker},
    time::Duration,
};

pub use image::Image;
pub(crate) use sectors::mixed;
pub use sectors::{Landed, landed_classes};

use super::{Completion, Device, DeviceGeometry, DeviceInfo, Write, WriteQueue};
use crate::AlignedBuf;

/// What happens to one write instead of success. Sectors are logical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// This `errno` comes back; some sectors landed all the same.
    Errno { errno: i32, landed: Landed },
    /// So many sectors from the start land, and the completion says so.
    Short { sectors: usize },
    /// Reported as durable, and nothing landed.
    Lost,
    /// Reported as durable, and landed at this byte offset instead.
    Misdirected { to: u64 },
    /// Reported as durable, and landed with this bit (counted from the start of the write) flipped.
    Flipped { bit: usize },
}

/// What happens to one read. The next read of the same place is good again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFault {
    /// This `errno` comes back.
    Errno { errno: i32 },
    /// One bit (counted from the start of the read) is flipped on the way.
    Flipped { bit: usize },
    /// The bytes come from this offset instead.
    Misdirected { from: u64 },
}

/// The faults a device will show, by the number of the operation, counted from 0 over its life.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub writes: BTreeMap<u64, WriteFault>,
    pub reads: BTreeMap<u64, ReadFault>,
    /// `sync` number n fails with this `errno`.
    pub syncs: BTreeMap<u64, i32>,
    /// Bytes that cannot be read until they are written again.
    pub unreadable: Vec<Range<u64>>,
}

/// A write of a process that is dead; it lands when the device has carried out so many further operations (reads, writes, syncs).
#[derive(Clone, Debug)]
pub struct LateWrite {
    pub offset: u64,
    pub bytes: Arc<[u8]>,
    pub landed: Landed,
    pub after_operations: u64,
}

/// What was asked of the device and what it did, in order.
#[derive(Clone, Debug)]
pub enum Event {
    /// A write is in flight from here on: a crash may leave any of its sectors.
    Submitted {
        id: u64,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    /// These sectors are durable from here on. Of a write that went well, or what a faulty one left, or a late one.
    Landed {
        offset: u64,
        bytes: Arc<[u8]>,
        landed: Landed,
    },
    /// The owner was told that the write with this id is durable. A write that failed is never done: it may still land.
    Done { id: u64 },
    /// Everything that was readable became durable.
    Synced,
}

/// A simulated device. Clones are the same device.
#[derive(Clone)]
pub struct SimDevice {
    geometry: DeviceGeometry,
    state: Arc<Mutex<State>>,
}

struct Pending {
    id: u64,
    token: u64,
    offset: u64,
    buf: AlignedBuf,
    bytes: Arc<[u8]>,
}

struct State {
    /// What a read sees.
    visible: Image,
    /// What a power cut leaves.
    durable: Image,
    /// The writes in flight, in the order of their submission.
    pending: Vec<Pending>,
    late: Vec<LateWrite>,
    faults: Faults,
    operations: u64,
    writes: u64,
    reads: u64,
    syncs: u64,
    events: Vec<Event>,
}

impl SimDevice {
    /// A device of zero bytes.
    pub fn new(geometry: DeviceGeometry) -> SimDevice {
        SimDevice::from_image(geometry, Image::zeroed(geometry.bytes))
    }

    /// The device as a power cut left it: `image` is durable.
    pub fn from_image(geometry: DeviceGeometry, image: Image) -> SimDevice {
        SimDevice::after_kill(geometry, image.clone(), image)
    }

    /// The device as a killed process left it: `visible` is what reads see, and only `durable` survives the power.
    pub fn after_kill(geometry: DeviceGeometry, durable: Image, visible: Image) -> SimDevice {
        SimDevice {
            geometry,
            state: Arc::new(Mutex::new(State {
                visible,
                durable,
                pending: Vec::new(),
                late: Vec::new(),
                faults: Faults::default(),
                operations: 0,
                writes: 0,
                reads: 0,
                syncs: 0,
                events: Vec::new(),
            })),
        }
    }

    /// Sets what will go wrong.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Adds a write of a dead process that has not landed yet.
    pub fn push_late(&self, late: LateWrite) {
        let mut state = self.lock();
        let after = state.operations + late.after_operations;
        state.late.push(LateWrite {
            after_operations: after,
            ..late
        });
    }

    /// What a read sees now.
    pub fn visible(&self) -> Image {
        self.lock().visible.clone()
    }

    /// What a power cut would leave now if nothing in flight landed.
    pub fn durable(&self) -> Image {
        self.lock().durable.clone()
    }

    /// Changes the bytes of the device behind its owner's back, for good.
    pub fn damage(&self, change: impl FnOnce(&mut Image)) {
        let mut state = self.lock();
        change(&mut state.visible);
        state.durable = state.visible.clone();
    }

    /// What was asked since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().events)
    }

    /// How many writes, reads and syncs there were.
    pub fn operations(&self) -> (u64, u64, u64) {
        let state = self.lock();
        (state.writes, state.reads, state.syncs)
    }

    /// The number of writes in flight.
    pub fn in_flight(&self) -> usize {
        self.lock().pending.len()
    }

    /// Starts a write.
    pub fn submit(&self, write: Write) {
        let mut state = self.lock();
        state.tick();
        let id = state.writes;
        state.writes += 1;
        let bytes: Arc<[u8]> = Arc::from(write.buf.as_slice());
        state.events.push(Event::Submitted {
            id,
            offset: write.offset,
            bytes: Arc::clone(&bytes),
        });
        state.pending.push(Pending {
            id,
            token: write.token,
            offset: write.offset,
            buf: write.buf,
            bytes,
        });
    }

    /// Completes one of the writes in flight: `choice` is an index into them, taken modulo their number.
    pub fn complete(&self, choice: usize) -> Option<Completion> {
        let mut state = self.lock();
        if state.pending.is_empty() {
            return None;
        }
        let index = choice % state.pending.len();
        let pending = state.pending.remove(index);
        Some(state.carry_out(pending, self.geometry))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// One operation more; whatever was to land by now lands.
    fn tick(&mut self) {
        self.operations += 1;
        let now = self.operations;
        let mut index = 0;
        while let Some(late) = self.late.get(index) {
            if late.after_operations <= now {
                let late = self.late.remove(index);
                self.land(late.offset, late.bytes, late.landed);
            } else {
                index += 1;
            }
        }
    }

    fn land(&mut self, offset: u64, bytes: Arc<[u8]>, landed: Landed) {
        self.visible.write(offset, &bytes, landed);
        self.durable.write(offset, &bytes, landed);
        let end = offset + bytes.len() as u64;
        // A sector that is written again can be read again.
        self.faults
            .unreadable
            .retain(|range| range.end <= offset || end <= range.start);
        self.events.push(Event::Landed {
            offset,
            bytes,
            landed,
        });
    }

    fn carry_out(&mut self, pending: Pending, geometry: DeviceGeometry) -> Completion {
        let bytes = Arc::clone(&pending.bytes);
        let len = bytes.len();
        let fits = pending
            .offset
            .checked_add(len as u64)
            .is_some_and(|end| end <= geometry.bytes);
        let sector = u64::from(geometry.logical_sector);
        let aligned = pending.offset.is_multiple_of(sector) && (len as u64).is_multiple_of(sector);
        let result = if !aligned {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        } else if !fits {
            // What a loop device does at its end: the part that fits, without an error; nothing at all is ENOSPC.
            let room = geometry.bytes.saturating_sub(pending.offset);
            let room = usize::try_from(room).unwrap_or(0).min(len);
            if room == 0 {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            } else {
                self.land(pending.offset, Arc::from(&bytes[..room]), Landed::All);
                Ok(room)
            }
        } else {
            match self.faults.writes.get(&pending.id).copied() {
                None => {
                    self.land(pending.offset, bytes, Landed::All);
                    Ok(len)
                }
                Some(WriteFault::Errno { errno, landed }) => {
                    self.land(pending.offset, bytes, landed);
                    Err(io::Error::from_raw_os_error(errno))
                }
                Some(WriteFault::Short { sectors }) => {
                    self.land(pending.offset, bytes, Landed::First(sectors));
                    Ok(len.min(sectors * image::SECTOR_LEN))
                }
                Some(WriteFault::Lost) => Ok(len),
                Some(WriteFault::Misdirected { to }) => {
                    self.land(to, bytes, Landed::All);
                    Ok(len)
                }
                Some(WriteFault::Flipped { bit }) => {
                    let mut bytes = bytes.to_vec();
                    flip(&mut bytes, bit);
                    self.land(pending.offset, Arc::from(bytes), Landed::All);
                    Ok(len)
                }
            }
        };
        if result.as_ref().is_ok_and(|written| *written == len) {
            self.events.push(Event::Done { id: pending.id });
        }
        Completion {
            token: pending.token,
            result,
            buf: pending.buf,
        }
    }

    fn read(&mut self, offset: u64, buf: &mut [u8], geometry: DeviceGeometry) -> io::Result<()> {
        self.tick();
        let number = self.reads;
        self.reads += 1;
        let end = offset
            .checked_add(buf.len() as u64)
            .filter(|end| *end <= geometry.bytes)
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let sector = u64::from(geometry.logical_sector);
        if !offset.is_multiple_of(sector) || !end.is_multiple_of(sector) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let bad = |range: &Range<u64>| range.start < end && offset < range.end;
        if self.faults.unreadable.iter().any(bad) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        match self.faults.reads.get(&number).copied() {
            None => self.visible.read(offset, buf),
            Some(ReadFault::Errno { errno }) => return Err(io::Error::from_raw_os_error(errno)),
            Some(ReadFault::Flipped { bit }) => {
                self.visible.read(offset, buf);
                flip(buf, bit);
            }
            Some(ReadFault::Misdirected { from }) => self.visible.read(from, buf),
        }
        Ok(())
    }
}

fn flip(bytes: &mut [u8], bit: usize) {
    if bytes.is_empty() {
        return;
    }
    let bit = bit % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
}

impl fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDevice")
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

impl Device for SimDevice {
    fn geometry(&self) -> DeviceGeometry {
        self.geometry
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "simulated".to_owned(),
            method: "simulated",
            guard: "none: a simulation has one owner".to_owned(),
        }
    }

    fn reservation_key(&self) -> u64 {
        0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.lock().read(offset, buf, self.geometry)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.tick();
        let number = state.syncs;
        state.syncs += 1;
        if let Some(errno) = state.faults.syncs.get(&number) {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        state.durable = state.visible.clone();
        state.events.push(Event::Synced);
        Ok(())
    }

    fn queue(&self, _depth: usize) -> io::Result<Box<dyn WriteQueue>> {
        Ok(Box::new(SimQueue(self.clone())))
    }
}

/// Completes everything in the order of submission as soon as it is asked. Who wants another order calls [`SimDevice::complete`].
struct SimQueue(SimDevice);

impl WriteQueue for SimQueue {
    fn submit(&mut self, write: Write) {
        self.0.submit(write);
    }

    fn wait(&mut self, _timeout: Option<Duration>, done: &mut Vec<Completion>) -> io::Result<()> {
        while let Some(completion) = self.0.complete(0) {
            done.push(completion);
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        struct Nobody;
        impl Wake for Nobody {
            fn wake(self: Arc<Self>) {}
        }
        Waker::from(Arc::new(Nobody))
    }
}

#[cfg(test)]
mod tests;
