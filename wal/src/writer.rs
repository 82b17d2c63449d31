//! The log's own thread: carries out what [`Core`] decides and tells the callers.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::{
    AlignedBuf, Device, StreamId,
    core::{Core, Effect, Output},
    device::WriteQueue,
    error::{AppendError, OpenError, Stopped, TrimError},
    log::{AppendWaiter, Appended, Command, Handle, OpenOptions, Shared, lock},
    recovery::{Recovery, scan},
};

type CloseAnswer = oneshot::Sender<Result<(), Stopped>>;
type OpenAnswer = oneshot::Sender<Result<(Handle, Recovery), OpenError>>;

/// Who waits for what. The place in the list is the ticket.
#[derive(Default)]
struct Waiters {
    list: Vec<Option<Waiter>>,
    free: Vec<usize>,
}

enum Waiter {
    Append(AppendWaiter),
    Trim(oneshot::Sender<Result<(), TrimError>>),
}

impl Waiters {
    fn add(&mut self, waiter: Waiter) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.list.push(None);
            self.list.len() - 1
        });
        self.list[place] = Some(waiter);
        place as u64
    }

    fn take(&mut self, ticket: u64) -> Option<Waiter> {
        let place = usize::try_from(ticket).ok()?;
        let waiter = self.list.get_mut(place)?.take()?;
        self.free.push(place);
        Some(waiter)
    }
}

/// Starts the thread; it answers when the log is open or can't be.
pub(crate) fn start(
    device: Arc<dyn Device>,
    options: OpenOptions,
    answer: OpenAnswer,
) -> io::Result<()> {
    thread::Builder::new()
        .name("everlog-wal".to_owned())
        .spawn(move || match Writer::open(device, &options) {
            Ok((writer, recovery)) => {
                info!(
                    id = %recovery.id,
                    epoch = recovery.epoch + 1,
                    streams = recovery.streams,
                    live_bytes = recovery.live_bytes,
                    end = recovery.end.at.get(),
                    clean = recovery.clean,
                    "log is open"
                );
                // A handle, so that the log closes by itself if nobody waits for it any longer.
                let handle = Handle::new(&writer.shared);
                if answer.send(Ok((handle, recovery))).is_ok() {
                    // By now the thread holds nothing of the device: who has closed the log can open it at once.
                    for (answer, result) in writer.run() {
                        let _ = answer.send(result);
                    }
                }
            }
            Err(error) => drop(answer.send(Err(error))),
        })
        .map(drop)
}

struct Writer {
    shared: Arc<Shared>,
    core: Core,
    queue: Box<dyn WriteQueue>,
    waiters: Waiters,
    /// Set with the first wish to close the log; later ones wait with it.
    closing: bool,
    closers: Vec<CloseAnswer>,
    closed: Option<Result<(), Stopped>>,
    grown: Vec<StreamId>,
    idle_mark_after: Duration,
    wall_clock: fn() -> u64,
    done: bool,
}

impl Writer {
    fn open(
        device: Arc<dyn Device>,
        options: &OpenOptions,
    ) -> Result<(Writer, Recovery), OpenError> {
        let scanned = scan(device.as_ref(), &options.scan)?;
        let recovery = scanned.recovery.clone();
        // Data writes, and one of the header beside them.
        let queue = device.queue(options.core.depth.clamp(1, 64) + 1)?;
        let core = Core::open(scanned, options.core.clone());
        let shared = Arc::new(Shared::new(device, &core, options, queue.waker()));
        let mut writer = Writer {
            shared,
            core,
            queue,
            waiters: Waiters::default(),
            closing: false,
            closers: Vec::new(),
            closed: None,
            grown: Vec::new(),
            idle_mark_after: options.idle_mark_after,
            wall_clock: options.wall_clock,
            done: false,
        };
        writer.until_open()?;
        Ok((writer, recovery))
    }

    fn until_open(&mut self) -> Result<(), OpenError> {
        loop {
            self.start_io();
            while let Some(effect) = self.core.next_effect() {
                match effect {
                    Effect::Opened => {
                        self.publish();
                        return Ok(());
                    }
                    Effect::Stopped(Stopped::Fenced) => return Err(OpenError::Fenced),
                    Effect::Stopped(Stopped::Poisoned { errno }) => {
                        let error = errno.map_or_else(
                            || io::Error::from(io::ErrorKind::WriteZero),
                            io::Error::from_raw_os_error,
                        );
                        return Err(OpenError::Write(error));
                    }
                    _ => {}
                }
            }
            self.finish_io(None)?;
        }
    }

    /// Works until the log is closed or has stopped. Gives who is to be told that it is closed.
    fn run(mut self) -> Vec<(CloseAnswer, Result<(), Stopped>)> {
        loop {
            self.take_commands();
            self.start_io();
            self.tell();
            if self.done {
                break;
            }
            let starved = self.core.queued_bytes() > 0;
            self.shared.starved.store(starved, Ordering::SeqCst);
            if let Err(error) = self.rest() {
                error!(
                    error = &error as &dyn std::error::Error,
                    "queue of the device is broken"
                );
                self.stop(Stopped::Poisoned {
                    errno: error.raw_os_error(),
                });
                break;
            }
        }
        let (closers, closed) = (std::mem::take(&mut self.closers), self.closed);
        closed.map_or_else(Vec::new, |result| {
            closers.into_iter().map(|answer| (answer, result)).collect()
        })
    }

    fn take_commands(&mut self) {
        let commands = std::mem::take(&mut *lock(&self.shared.inbox));
        if self.shared.trimmed.swap(false, Ordering::SeqCst) {
            self.core.note_trim();
        }
        for command in commands {
            match command {
                Command::Append {
                    stream,
                    payload,
                    waiter,
                } => {
                    let ticket = self.waiters.add(Waiter::Append(waiter));
                    self.core.append(ticket, stream, payload);
                }
                Command::SyncTrim {
                    stream,
                    below,
                    answer,
                } => {
                    let ticket = self.waiters.add(Waiter::Trim(answer));
                    self.core.sync_trim(ticket, stream, below);
                }
                Command::Trimmed => {}
                Command::Close { answer } => {
                    self.closers.extend(answer);
                    if !std::mem::replace(&mut self.closing, true) {
                        self.core.close(0);
                    }
                }
            }
        }
    }

    fn start_io(&mut self) {
        while let Some(output) = self.core.poll((self.wall_clock)()) {
            match output {
                Output::Write(write) => self.queue.submit(write),
                Output::Read {
                    token,
                    offset,
                    bytes,
                } => {
                    let mut buf = AlignedBuf::zeroed(usize::try_from(bytes).unwrap_or(0));
                    let read = self.shared.device.read_at(offset, buf.as_mut_slice());
                    self.core.read_done(token, read.map(|()| buf));
                }
            }
        }
    }

    /// Waits until there is something to do.
    fn rest(&mut self) -> io::Result<()> {
        self.shared.sleeping.store(true, Ordering::SeqCst);
        // A command that came before the flag was up has not woken anybody.
        let waiting = !lock(&self.shared.inbox).is_empty();
        let marks = self.core.wants_idle();
        let timeout = match (waiting, marks) {
            (true, _) => Some(Duration::ZERO),
            (false, true) => Some(self.idle_mark_after),
            (false, false) => None,
        };
        let completed = self.finish_io(timeout)?;
        self.shared.sleeping.store(false, Ordering::SeqCst);
        let quiet = !completed && lock(&self.shared.inbox).is_empty();
        if marks && quiet && !waiting {
            self.core.idle();
        }
        Ok(())
    }

    fn finish_io(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut completions = Vec::new();
        self.queue.wait(timeout, &mut completions)?;
        let any = !completions.is_empty();
        completions
            .into_iter()
            .for_each(|completion| self.core.write_done(completion));
        Ok(any)
    }

    fn tell(&mut self) {
        let mut news = false;
        while let Some(effect) = self.core.next_effect() {
            news = true;
            self.tell_one(effect);
        }
        if news {
            self.publish();
        }
        self.shared.ring_bells(&self.grown);
        self.grown.clear();
    }

    fn tell_one(&mut self, effect: Effect) {
        match effect {
            Effect::Appended {
                ticket,
                stream,
                lsn,
                seq,
            } => {
                self.answer_append(ticket, Ok(Appended { lsn, seq }));
                if self.grown.last() != Some(&stream) {
                    self.grown.push(stream);
                }
            }
            Effect::Refused { ticket, error } => self.answer_append(ticket, Err(error)),
            Effect::Trimmed { ticket, result } => {
                if let Some(Waiter::Trim(answer)) = self.waiters.take(ticket) {
                    let _ = answer.send(result);
                }
            }
            Effect::Durable { lsn, buf } => {
                let free = lock(&self.shared.cache).put_written(lsn, buf);
                if let Some(buf) = free {
                    self.core.recycle(buf);
                }
            }
            Effect::Damaged { lsn } => {
                error!(%lsn, "a live record can't be read, the tail stays until it is trimmed");
            }
            Effect::Closed { result, .. } => {
                self.stop(result.err().unwrap_or(Stopped::Closed));
                self.closed = Some(result);
            }
            Effect::Stopped(stopped) => {
                warn!(reason = %stopped, "log has stopped");
                self.stop(stopped);
            }
            Effect::Opened => {}
        }
    }

    fn answer_append(&mut self, ticket: u64, result: Result<Appended, AppendError>) {
        if let Some(Waiter::Append(waiter)) = self.waiters.take(ticket) {
            let _ = waiter.answer.send(result);
        }
    }

    /// From here on commands are turned away; those in the inbox are dropped, which tells their callers.
    fn stop(&mut self, stopped: Stopped) {
        let mut inbox = lock(&self.shared.inbox);
        lock(&self.shared.stopped).get_or_insert(stopped);
        inbox.clear();
        self.done = true;
    }

    fn publish(&self) {
        *lock(&self.shared.usage) = self.core.usage();
    }
}

impl Drop for Writer {
    /// However the thread ends, nobody waits for it any longer.
    fn drop(&mut self) {
        self.stop(Stopped::Poisoned { errno: None });
        self.shared.ring_all_bells();
    }
}
