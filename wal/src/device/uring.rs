//! Durable writes with io_uring: each with `RWF_DSYNC`, so that the kernel adds a flush or sends FUA, as the device needs. One thread keeps
//! many in flight, and a write is one system call. A write that is alone may go to a file by `pwritev2` instead.
//!
//! Against a write linked to an `fdatasync` it took from a quarter to the same processor time, and was faster in most cases but not all: on files with
//! one write in flight the linked form sometimes led. It is two operations for each write, and that form is not kept.
#![expect(
    clippy::disallowed_methods,
    reason = "the kernel is waited for in real time, on a thread of its own"
)]
#![expect(
    unsafe_code,
    reason = "the kernel reads from buffers by address while it writes them to the device"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::ReadWriteFlags;

use super::{Completion, Write, WriteQueue, pwrite};

/// The name of the read that ends a wait; writes are named by their slot.
const WAKE: u64 = u64::MAX;
/// How long the end of the writes in flight is waited for when a queue is dropped. After that their buffers are left to a device that hangs.
const DROP_PATIENCE: Duration = Duration::from_secs(30);

/// Whether io_uring can be used here, and if not, why.
pub(super) fn available() -> io::Result<()> {
    let ring = IoUring::new(2)?;
    if !ring.params().is_feature_ext_arg() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel's io_uring knows no wait with a timeout (5.11 does)",
        ));
    }
    Ok(())
}

/// Ends a wait, from any thread. Many wakes between two waits cost one system call.
struct Bell {
    event: OwnedFd,
    rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Can't fail: the counter of an event is far from full, as it is written once for each time it is read.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

pub(super) struct UringQueue {
    ring: IoUring,
    file: Arc<File>,
    /// The writes in flight, at the index that names them.
    slots: Vec<Option<Write>>,
    /// Whether a write that is alone is carried out on the spot.
    on_the_spot: bool,
    /// Carried out on the spot and not yet told.
    ready: Vec<Completion>,
    bell: Arc<Bell>,
    /// Where the kernel puts the bell's counter. On the heap: its address must not change.
    counter: Box<[u8; 8]>,
    listening: bool,
    /// Why the ring can't be used any more.
    broken: Option<io::Error>,
}

impl UringQueue {
    /// `on_the_spot`: a write that is alone is made with `pwritev2`, by the calling thread. On files that is a quarter faster: the end of
    /// a write of io_uring goes through a thread of the kernel that makes it durable. On devices it takes a flush more, and is slower.
    pub(super) fn new(file: &Arc<File>, depth: usize, on_the_spot: bool) -> io::Result<UringQueue> {
        // One more for the bell.
        let entries = u32::try_from(depth + 1).map_err(io::Error::other)?;
        let mut queue = UringQueue {
            ring: IoUring::new(entries.next_power_of_two())?,
            file: Arc::clone(file),
            slots: (0..depth).map(|_| None).collect(),
            on_the_spot,
            ready: Vec::new(),
            bell: Arc::new(Bell {
                event: eventfd(0, EventfdFlags::CLOEXEC)?,
                rung: AtomicBool::new(false),
            }),
            counter: Box::new([0; 8]),
            listening: false,
            broken: None,
        };
        queue.listen()?;
        Ok(queue)
    }

    /// Prepares the read that the bell ends. It goes to the kernel with the next call, at the latest with the one that sleeps; a bell that
    /// rings before is heard then.
    fn listen(&mut self) -> io::Result<()> {
        let event = Fd(self.bell.event.as_raw_fd());
        let read = opcode::Read::new(event, self.counter.as_mut_ptr(), 8)
            .build()
            .user_data(WAKE);
        // SAFETY: `counter` is 8 bytes on the heap, nobody else touches it while `listening`, and `drop` keeps it until the read has
        // ended or for ever.
        unsafe { self.ring.submission().push(&read) }.map_err(io::Error::other)?;
        self.listening = true;
        Ok(())
    }

    /// Hands an entry to the kernel.
    ///
    /// # Safety
    ///
    /// What the entry points to must stay where it is until its completion has been taken.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(entry) }.map_err(io::Error::other)?;
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the completions that are there; says whether the bell was rung.
    fn reap(&mut self, done: &mut Vec<Completion>) -> bool {
        let mut rung = false;
        for entry in self.ring.completion() {
            let (name, result) = (entry.user_data(), entry.result());
            if name == WAKE {
                self.listening = false;
                rung = true;
                continue;
            }
            let slot = usize::try_from(name).ok();
            let slot = slot.and_then(|slot| self.slots.get_mut(slot));
            if let Some(write) = slot.and_then(Option::take) {
                done.push(Completion {
                    token: write.token,
                    result: usize::try_from(result)
                        .map_err(|_| io::Error::from_raw_os_error(-result)),
                    buf: write.buf,
                });
            }
        }
        rung
    }

    /// Sleeps until there is a completion, or `timeout` has passed.
    fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        let outcome = match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let time = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(1, &args)
            }
        };
        match outcome {
            Ok(_) => Ok(()),
            Err(error)
                if [rustix::io::Errno::TIME, rustix::io::Errno::INTR]
                    .iter()
                    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.iter().flatten().count()
    }
}

impl WriteQueue for UringQueue {
    fn submit(&mut self, write: Write) {
        let free = self.slots.iter().position(Option::is_none);
        let len = u32::try_from(write.buf.len()).ok();
        let (Some(slot), Some(len), None) = (free, len, &self.broken) else {
            self.broken
                .get_or_insert_with(|| io::Error::other("more or longer writes than agreed"));
            return;
        };
        let address = write.buf.as_slice().as_ptr();
        let entry = opcode::Write::new(Fd(self.file.as_raw_fd()), address, len)
            .offset(write.offset)
            .rw_flags(ReadWriteFlags::DSYNC.bits().cast_signed())
            .build()
            .user_data(slot as u64);
        self.slots[slot] = Some(write);
        // SAFETY: the buffer's bytes are on the heap and stay there when `Write` moves into its slot. It is taken out of the slot only with
        // its completion, and `drop` keeps it until then or for ever. Nobody can change it there. The file is open as long as `self`.
        if let Err(error) = unsafe { self.push(&entry) } {
            self.broken = Some(error);
        }
    }

    fn submit_alone(&mut self, write: Write) {
        if self.on_the_spot && self.broken.is_none() {
            self.ready.push(pwrite::write(&self.file, write));
        } else {
            self.submit(write);
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Completion>) -> io::Result<()> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let before = done.len();
        loop {
            if let Some(error) = self.broken.take() {
                // It stays broken: nobody can say any more what is in flight.
                self.broken = Some(io::Error::new(error.kind(), error.to_string()));
                return Err(error);
            }
            done.append(&mut self.ready);
            let rung = self.reap(done);
            if rung {
                // First this, or a wake from here on would believe that the bell still sounds.
                self.bell.rung.store(false, Ordering::Release);
                self.listen()?;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if rung || done.len() > before || left.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
            self.sleep(left)?;
        }
    }

    fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.bell))
    }
}

impl Drop for UringQueue {
    /// The kernel reads from the buffers until the writes are done: they must not be freed, nor used for something else, before.
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_PATIENCE;
        self.bell.wake_by_ref();
        let mut done = Vec::new();
        while self.in_flight() > 0 || self.listening {
            self.reap(&mut done);
            done.clear();
            let left = deadline.saturating_duration_since(Instant::now());
            let waiting = self.in_flight() > 0 || self.listening;
            if waiting && (left.is_zero() || self.sleep(Some(left)).is_err()) {
                tracing::warn!(
                    in_flight = self.in_flight(),
                    "writes are still in flight, the device seems to hang; their buffers are left to it"
                );
                std::mem::forget(std::mem::take(&mut self.slots));
                std::mem::forget(std::mem::replace(&mut self.counter, Box::new([0; 8])));
                return;
            }
        }
    }
}
