//! What the log asks of the thing it lies on, and a device in memory.
//!
//! There is one kind of write, the durable one: when it completes, its bytes have passed every volatile cache on the way (FUA, a flush
//! behind it, or `RWF_DSYNC`). So nothing above this line can forget a flush. Several writes may be in flight; until one has completed,
//! any of its sectors may or may not be on the device, also long after the process died.

mod create;
mod direct;
mod pwrite;
pub mod ram;
#[cfg(any(test, feature = "mutations"))]
pub mod sim;
mod uring;

use std::{fmt, io, task::Waker, time::Duration};

use crate::AlignedBuf;
pub use create::create_file;
pub use direct::{
    DeviceError, DeviceFacts, DeviceKind, DeviceOptions, DirectDevice, Method, open, open_read_only,
};

/// The size of a device and what it wants I/O to be aligned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceGeometry {
    /// The whole device, in bytes.
    pub bytes: u64,
    /// The smallest unit of I/O, in bytes: 512 or 4096.
    pub logical_sector: u32,
    /// What the device writes as a whole, in bytes; at least `logical_sector`.
    pub physical_sector: u32,
}

/// What an operator wants to know about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its path or another name.
    pub name: String,
    /// How it is written: `io_uring`, `pwritev2`, `memory`.
    pub method: &'static str,
    /// What keeps a second writer away, as one sentence.
    pub guard: String,
}

/// A device or a preallocated file. Reads may come from several threads at a time; there is one [`WriteQueue`].
pub trait Device: Send + Sync + fmt::Debug {
    fn geometry(&self) -> DeviceGeometry;

    fn info(&self) -> DeviceInfo;

    /// The key that the device is reserved with against other hosts, 0 = it is not. Goes into the log's header: the next owner may have nobody
    /// else to ask for it. A device around another one passes on what that says.
    fn reservation_key(&self) -> u64;

    /// Fills `buf` from `offset`. Offset and length are multiples of the logical sector and the buffer's address of
    /// [`crate::aligned::ALIGN`]. Fewer bytes than asked for are an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Makes everything durable that anybody wrote before. Called when the log is opened, before the first read: nothing is to be
    /// decided on bytes that a crashed process wrote and that a power cut could still take away.
    fn sync(&self) -> io::Result<()>;

    /// The queue for writes, with room for `depth` of them in flight (1 to 64).
    fn queue(&self, depth: usize) -> io::Result<Box<dyn WriteQueue>>;
}

/// A write to be carried out.
#[derive(Debug)]
pub struct Write {
    /// The caller's name for it; comes back with its completion.
    pub token: u64,
    /// Where, in bytes; a multiple of the block unit, as is the length.
    pub offset: u64,
    pub buf: AlignedBuf,
}

/// How a write ended.
#[derive(Debug)]
pub struct Completion {
    pub token: u64,
    /// The bytes that are durable now, from the start of the buffer. Fewer than its length is a failure, and so the caller treats it; the
    /// queue repeats nothing and reports what the kernel said.
    pub result: io::Result<usize>,
    pub buf: AlignedBuf,
}

/// Writes in flight, in the hands of one thread.
pub trait WriteQueue: Send {
    /// Starts a write. May carry it out on the spot, then the completion is there for the next [`WriteQueue::wait`]. Errors are
    /// completions too. The caller never has more than `depth` in flight, and never two whose bytes overlap.
    fn submit(&mut self, write: Write);

    /// [`WriteQueue::submit`] for a write that nothing else is in flight with, and nothing is expected to be before it has ended. A thread that
    /// waits for its own write is told sooner of its end, so it may be carried out on the spot.
    fn submit_alone(&mut self, write: Write) {
        self.submit(write);
    }

    /// Adds the completions that are there to `done`. If there are none, waits until there is one, [`WriteQueue::waker`]'s waker is woken, or
    /// `timeout` has passed (`None`: for ever; zero: not at all). A wake between two calls ends the next wait at once. An error
    /// means that the queue itself is broken and nothing in flight can be known any more.
    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Completion>) -> io::Result<()>;

    /// Ends a [`WriteQueue::wait`] from any thread.
    fn waker(&self) -> Waker;
}

/// Writes `buf` and waits until it is durable. For formatting; the log itself keeps a queue.
pub fn write_durable(device: &dyn Device, offset: u64, buf: AlignedBuf) -> io::Result<()> {
    let len = buf.len();
    let mut queue = device.queue(1)?;
    queue.submit(Write {
        token: 0,
        offset,
        buf,
    });
    let mut done = Vec::new();
    while done.is_empty() {
        queue.wait(None, &mut done)?;
    }
    for completion in done {
        let written = completion.result?;
        if written != len {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("{written} of {len} bytes written at {offset}"),
            ));
        }
    }
    Ok(())
}
