//! A device in memory: every write is durable at once. Its faults are those a test asks for by number.

use std::{
    fmt, io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Wake, Waker},
    time::Duration,
};

use super::{Completion, Device, DeviceGeometry, DeviceInfo, Write, WriteQueue};

/// What happens to a write instead of succeeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamFault {
    /// Nothing is written and this `errno` comes back.
    Errno(i32),
    /// So many bytes are written, and the completion says so.
    Short(usize),
}

/// A device in memory. Clones are the same device.
#[derive(Clone)]
pub struct RamDevice {
    geometry: DeviceGeometry,
    state: Arc<Mutex<State>>,
}

struct State {
    bytes: Vec<u8>,
    writes: u64,
    fault: Option<(u64, RamFault)>,
    /// Completions stay back while this is set.
    held: bool,
    bell: Option<Arc<Bell>>,
}

impl RamDevice {
    /// A device of `bytes` zero bytes with sectors of 512 and 4096 bytes.
    pub fn new(bytes: usize) -> RamDevice {
        RamDevice::with_geometry(DeviceGeometry {
            bytes: bytes as u64,
            logical_sector: 512,
            physical_sector: 4096,
        })
    }

    /// # Panics
    ///
    /// If it does not fit in memory.
    pub fn with_geometry(geometry: DeviceGeometry) -> RamDevice {
        let bytes = usize::try_from(geometry.bytes).expect("a device in memory fits in memory");
        RamDevice {
            geometry,
            state: Arc::new(Mutex::new(State {
                bytes: vec![0; bytes],
                writes: 0,
                fault: None,
                held: false,
                bell: None,
            })),
        }
    }

    /// A new device with the same bytes: what a restart would find.
    pub fn snapshot(&self) -> RamDevice {
        let device = RamDevice::with_geometry(self.geometry);
        device.lock().bytes.clone_from(&self.lock().bytes);
        device
    }

    /// The write with this number, counted from 0 over the life of the device, and all later ones fail.
    pub fn fail_from(&self, write: u64, fault: RamFault) {
        self.lock().fault = Some((write, fault));
    }

    /// Holds completions back, or lets them go.
    pub fn hold(&self, held: bool) {
        let bell = {
            let mut state = self.lock();
            state.held = held;
            state.bell.clone()
        };
        if let Some(bell) = bell {
            bell.ring();
        }
    }

    /// The writes so far.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Changes bytes behind the log's back.
    pub fn damage(&self, offset: u64, change: impl FnOnce(&mut [u8])) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(bytes) = self.lock().bytes.get_mut(start..) {
            change(bytes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn range(&self, offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(len)?))
            .filter(|range| range.end <= self.bytes.len())
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let number = self.writes;
        self.writes += 1;
        let len = match self.fault {
            Some((from, RamFault::Errno(errno))) if number >= from => {
                return Err(io::Error::from_raw_os_error(errno));
            }
            Some((from, RamFault::Short(len))) if number >= from => len.min(bytes.len()),
            _ => bytes.len(),
        };
        let range = self.range(offset, len)?;
        self.bytes[range].copy_from_slice(&bytes[..len]);
        Ok(len)
    }
}

impl fmt::Debug for RamDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamDevice")
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

impl Device for RamDevice {
    fn geometry(&self) -> DeviceGeometry {
        self.geometry
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "memory".to_owned(),
            method: "memory",
            guard: "none: memory belongs to its process".to_owned(),
        }
    }

    fn reservation_key(&self) -> u64 {
        0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        let range = state.range(offset, buf.len())?;
        buf.copy_from_slice(&state.bytes[range]);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn queue(&self, _depth: usize) -> io::Result<Box<dyn WriteQueue>> {
        let bell = Arc::new(Bell::default());
        self.lock().bell = Some(Arc::clone(&bell));
        Ok(Box::new(RamQueue {
            device: self.clone(),
            done: Vec::new(),
            bell,
        }))
    }
}

/// Wakes the thread that waits for completions, once for each time it is rung.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self, timeout: Option<Duration>) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rung = match timeout {
            None => self
                .changed
                .wait_while(rung, |rung| !*rung)
                .unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.changed
                    .wait_timeout_while(rung, timeout, |rung| !*rung)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        *rung = false;
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }
}

struct RamQueue {
    device: RamDevice,
    done: Vec<Completion>,
    bell: Arc<Bell>,
}

impl WriteQueue for RamQueue {
    fn submit(&mut self, write: Write) {
        let result = self.device.lock().write(write.offset, write.buf.as_slice());
        self.done.push(Completion {
            token: write.token,
            result,
            buf: write.buf,
        });
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Completion>) -> io::Result<()> {
        let ready = |queue: &RamQueue| !queue.done.is_empty() && !queue.device.lock().held;
        if !ready(self) {
            self.bell.wait(timeout);
        }
        if ready(self) {
            done.append(&mut self.done);
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.bell))
    }
}
