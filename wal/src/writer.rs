//! The log's own thread: carries out what [`Core`] decides and tells the callers.
//!
//! To wake a thread that sleeps takes tens of microseconds, as much as a good device takes for a write. Callers that were just told often
//! append again at once, so the thread looks out for them for a moment before it sleeps, and when nothing else is in flight, and they do come,
//! lets those of one block come back together, or the first one would get a block of its own and the others wait for it. Both only
//! while they pay ([`Habit`]); a log that was idle never waits.
#![expect(
    clippy::disallowed_methods,
    reason = "how long it pays to stay awake is a matter of real time, and nothing that is written depends on it"
)]

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{error, warn};

use crate::{
    AlignedBuf, Device, StreamId,
    core::{Core, Effect, Output},
    device::{Completion, Write, WriteQueue},
    error::{AppendError, OpenError, Stopped, TrimError},
    habit::Habit,
    log::{AppendWaiter, Appended, Command, Handle, OpenOptions, Shared, lock},
    reader::read_stretch,
    recovery::{Recovery, scan, told},
};

/// How long it stays awake for somebody who was just told. A wake costs a third of it on both sides.
const LINGER_MAX: Duration = Duration::from_micros(60);
/// How long the first one who comes back waits for the others, if all of them were told of less than [`COMPANY_BYTES_MAX`]. With more, a
/// block of his own is no loss.
const COMPANY_MAX: Duration = Duration::from_micros(30);
const COMPANY_BYTES_MAX: usize = 128 << 10;
/// With more than this to be put into blocks, those who wait for an answer come first, in bytes.
const TELL_FIRST_BYTES: u64 = 128 << 10;

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
                told::tell(&recovery);
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
    /// Writes of any kind.
    in_flight: usize,
    /// Appends answered since it last had nothing to do, and their bytes.
    told: usize,
    told_bytes: usize,
    /// To stay awake for those who were told.
    linger: Habit,
    /// To let them come back together.
    company: Habit,
    /// To have one write in flight and nobody coming meanwhile.
    alone: Habit,
    // Kept for their memory.
    commands: Vec<Command>,
    completions: Vec<Completion>,
    free: Vec<AlignedBuf>,
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
            in_flight: 0,
            told: 0,
            told_bytes: 0,
            linger: Habit::default(),
            company: Habit::default(),
            alone: Habit::default(),
            commands: Vec::new(),
            completions: Vec::new(),
            free: Vec::new(),
            idle_mark_after: options.idle_mark_after,
            wall_clock: options.wall_clock,
            done: false,
        };
        writer.until_open()?;
        Ok((writer, recovery))
    }

    fn until_open(&mut self) -> Result<(), OpenError> {
        loop {
            if let Some(write) = self.start_io() {
                self.submit(write);
            }
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
            if self.core.queued_bytes() > TELL_FIRST_BYTES {
                self.tell();
            }
            if let Some(write) = self.start_io() {
                self.submit_alone(write);
            }
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
        let mut commands = std::mem::take(&mut self.commands);
        {
            let mut inbox = lock(&self.shared.inbox);
            std::mem::swap(&mut commands, &mut *inbox);
            self.shared.mail.store(0, Ordering::Release);
        }
        if self.shared.trimmed.swap(false, Ordering::SeqCst) {
            self.core.note_trim();
        }
        for command in commands.drain(..) {
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
        self.commands = commands;
    }

    /// Carries out what is to be done. Gives back a write that is alone, for the caller to submit: only now is it known that none follows.
    #[must_use = "it is to be submitted"]
    fn start_io(&mut self) -> Option<Write> {
        let mut first: Option<Write> = None;
        while let Some(output) = self.core.poll((self.wall_clock)()) {
            if let Some(write) = first.take() {
                self.submit(write);
            }
            match output {
                // Elsewhere it begins before the next one is made up.
                Output::Write(write) if self.in_flight == 0 && self.alone.is_settled() => {
                    first = Some(write);
                }
                Output::Write(write) => self.submit(write),
                Output::Read {
                    token,
                    offset,
                    bytes,
                } => {
                    let read = read_stretch(self.shared.device.as_ref(), offset, bytes);
                    self.core.read_done(token, read);
                }
            }
        }
        first
    }

    fn submit(&mut self, write: Write) {
        if self.in_flight > 0 {
            self.alone.unlearn();
        }
        self.in_flight += 1;
        self.queue.submit(write);
    }

    fn submit_alone(&mut self, write: Write) {
        // This may take as long as the write does: nobody is to wait for it who has an answer.
        self.tell();
        self.in_flight += 1;
        self.queue.submit_alone(write);
    }

    /// Waits until there is something to do.
    fn rest(&mut self) -> io::Result<()> {
        let told = std::mem::take(&mut self.told);
        let small = std::mem::take(&mut self.told_bytes) < COMPANY_BYTES_MAX;
        if told > 0 && self.linger.is_worth_a_try() {
            let found = self.linger(told, small)?;
            self.linger.learn(found);
            if found {
                return Ok(());
            }
        }
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

    /// Looks out for commands and completions for a moment without sleeping; says whether there are any. `small`: those who were told may be
    /// waited for together.
    fn linger(&mut self, told: usize, small: bool) -> io::Result<bool> {
        let mut until = Instant::now() + LINGER_MAX;
        let mut for_company = false;
        loop {
            let mail = self.shared.mail.load(Ordering::Acquire);
            let all = mail >= told;
            if all || self.finish_io(Some(Duration::ZERO))? {
                if for_company {
                    self.company.learn(all);
                }
                return Ok(true);
            }
            let now = Instant::now();
            if mail > 0 && !for_company {
                if !small || self.in_flight > 0 || !self.company.is_worth_a_try() {
                    return Ok(true);
                }
                for_company = true;
                until = now + COMPANY_MAX;
            }
            if now >= until {
                if for_company {
                    self.company.learn(false);
                }
                return Ok(mail > 0);
            }
            // The kernel's own threads, which end a write, may need this very processor, and so may those who were told.
            thread::yield_now();
        }
    }

    fn finish_io(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut completions = std::mem::take(&mut self.completions);
        self.queue.wait(timeout, &mut completions)?;
        let any = !completions.is_empty();
        self.in_flight = self.in_flight.saturating_sub(completions.len());
        for completion in completions.drain(..) {
            self.core.write_done(completion);
        }
        self.completions = completions;
        if any && self.in_flight == 0 {
            // Whoever came meanwhile would have got a write of his own at once.
            let nobody_came = self.shared.mail.load(Ordering::Acquire) == 0;
            self.alone.learn(nobody_came);
        }
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
                lock(&self.shared.cache).put_written(lsn, buf, &mut self.free);
                for buf in self.free.drain(..) {
                    self.core.recycle(buf);
                }
            }
            Effect::Damaged(stuck) => {
                error!(
                    stream = %stuck.stream,
                    first = stuck.first.get(),
                    end = stuck.end.get(),
                    lsn = stuck.lsn.get(),
                    offset = self.shared.ring.physical(stuck.lsn),
                    "live records can't be read: they are tried again, and the log can't reuse what lies behind them until they are trimmed; \
                     when everlog is stopped, `everlog wal export` saves what is intact"
                );
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
            self.told += 1;
            self.told_bytes += waiter.permit.num_permits();
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
