//! Drives the log's state machine on a simulated device and keeps the model beside it: the same code as in the product, with the
//! writer's thread, clock and kernel replaced by choices from a seed.

use std::{collections::HashMap, io};

use super::{
    check,
    model::{Held, Model, Snapshot, Violation, stream_id},
    rng::Rng,
    states::Life,
};
use crate::{
    AlignedBuf, LogId, Seq,
    core::{Core, CoreConfig, Effect, Output},
    device::{
        DeviceGeometry,
        sim::{Event, Image, SimDevice, mixed},
    },
    error::{AppendError, OpenError, Stopped},
    format::{FormatOptions, format},
    geometry::Ring,
    reader::{read_block, read_stretch},
};

const WALL_MS: u64 = 1_700_000_000_000;

/// What a life of a log is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub geometry: DeviceGeometry,
    pub streams: usize,
    /// Bytes written to the device before it ends.
    pub bytes: u64,
    /// No more steps than these.
    pub steps_max: u64,
    /// The largest record that is appended, in bytes.
    pub record_max: u64,
    pub block_bytes_max: u64,
    /// Writes of blocks in flight.
    pub depth: usize,
    /// One step in so many closes the log in good order and opens it again; 0 for never.
    pub reopen_one_in: u64,
    /// The device lies or fails: what it does is to be reported, not to be made good.
    pub lying: bool,
}

impl Plan {
    /// Three times around the ring.
    pub fn three_laps(geometry: DeviceGeometry, record_max: u64, rng: &mut Rng) -> Plan {
        let ring = geometry.bytes - 2 * 4096;
        Plan {
            geometry,
            streams: 3 + rng.index(3),
            bytes: ring * 3 + ring / 2,
            steps_max: 6000,
            record_max,
            block_bytes_max: 4096 * (1 + rng.below(2)),
            depth: 1 + rng.index(3),
            reopen_one_in: 150,
            lying: false,
        }
    }

    /// Some steps after a crash.
    pub fn a_few_steps(first: &Plan, rng: &mut Rng) -> Plan {
        Plan {
            bytes: (2 + rng.below(10)) * 4096,
            steps_max: 24,
            depth: 1 + rng.index(3),
            reopen_one_in: 20,
            ..*first
        }
    }

    /// A short life after a crash.
    pub fn onward(first: &Plan, rng: &mut Rng) -> Plan {
        Plan {
            bytes: (6 + rng.below(20)) * 4096,
            steps_max: 80,
            depth: 1 + rng.index(3),
            ..*first
        }
    }
}

/// A device with an empty log on it.
pub fn formatted(geometry: DeviceGeometry, record_max: u64, seed: u64) -> Result<Image, Violation> {
    let device = SimDevice::new(geometry);
    let mut id = [0xa5; 16];
    id[..8].copy_from_slice(&seed.to_le_bytes());
    let options = FormatOptions {
        id: LogId::new(id),
        record_bytes_max: Some(record_max),
        wall_ms: WALL_MS,
    };
    format(&device, &options).map_err(|error| Violation(format!("format: {error}")))?;
    Ok(device.durable())
}

/// How far a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Opening,
    Running,
    Closed,
    /// A write failed.
    Stopped,
}

/// Why a session did not come about.
#[derive(Debug)]
pub enum NoSession {
    Refused(OpenError),
    Broken(Violation),
}

impl From<Violation> for NoSession {
    fn from(violation: Violation) -> NoSession {
        NoSession::Broken(violation)
    }
}

impl From<NoSession> for Violation {
    fn from(no: NoSession) -> Violation {
        match no {
            NoSession::Refused(error) => Violation(format!("refused after a mere crash: {error}")),
            NoSession::Broken(violation) => violation,
        }
    }
}

/// A log in use, and the model of it.
#[derive(Debug)]
pub struct Session {
    core: Core,
    device: SimDevice,
    pub model: Model,
    pub state: State,
    plan: Plan,
    ring: Ring,
    id: LogId,
    /// What it was found to hold.
    held: Vec<Held>,
    sync_trims: HashMap<u64, (usize, u64)>,
    /// Appends refused for want of room since the last one that was taken.
    refused: u64,
    /// The stream that is not drained.
    stuck: usize,
    /// What went on, for the enumeration.
    events: Vec<Event>,
    marks: Vec<(usize, Snapshot)>,
    written: u64,
    /// Reads of the relocation.
    pub relocations: u64,
    /// The last of them went wrong.
    bad_read: bool,
    /// The log has said that something is damaged.
    pub reported: bool,
    /// The log has said that another owner stopped it.
    pub fenced: bool,
}

impl Session {
    /// Recovers what is on the device, holds it against the model and begins a new epoch. Ends as [`State::Opening`].
    pub fn open(
        device: &SimDevice,
        plan: &Plan,
        mut model: Model,
        rng: &mut Rng,
    ) -> Result<Session, NoSession> {
        let promised = model.snapshot();
        let recovered = check::recover(device, &model, &promised)
            .map_err(NoSession::Broken)?
            .map_err(NoSession::Refused)?;
        model.adopt(&recovered.held);
        let (scanned, held) = (recovered.scanned, recovered.held);
        let config = CoreConfig {
            block_bytes_max: plan.block_bytes_max,
            depth: plan.depth,
            window_bytes_min: rng.one_in(2).then(|| 4096 * (1 + rng.below(4))),
            window_bytes_max: rng.one_in(2).then(|| 4096 * (4 + rng.below(8))),
        };
        let (ring, id) = (scanned.ring, scanned.header.id);
        let mut session = Session {
            core: Core::open(scanned, config),
            device: device.clone(),
            model,
            state: State::Opening,
            plan: *plan,
            ring,
            id,
            held,
            sync_trims: HashMap::new(),
            refused: 0,
            stuck: rng.index(plan.streams),
            events: Vec::new(),
            marks: Vec::new(),
            written: 0,
            relocations: 0,
            bad_read: false,
            reported: false,
            fenced: false,
        };
        session.pump().map_err(NoSession::Broken)?;
        Ok(session)
    }

    /// What is promised now holds until the next event.
    fn mark(&mut self) {
        self.events.extend(self.device.take_events());
        let at = self.events.len();
        let snapshot = self.model.snapshot();
        match self.marks.last_mut() {
            Some((last, old)) if *last == at => *old = snapshot,
            _ => self.marks.push((at, snapshot)),
        }
    }

    /// Lets the core do whatever it can.
    fn pump(&mut self) -> Result<(), Violation> {
        loop {
            self.take_effects()?;
            // A clock that jumps: nothing may hang on it.
            let wall_ms = WALL_MS ^ (mixed(self.written + self.relocations) >> 24);
            match self.core.poll(wall_ms) {
                None => return self.take_effects(),
                Some(Output::Write(write)) => {
                    self.mark();
                    self.written += write.buf.len() as u64;
                    self.device.submit(write);
                }
                Some(Output::Read {
                    token,
                    offset,
                    bytes,
                }) => {
                    self.mark();
                    let read = read_stretch(&self.device, offset, bytes);
                    self.relocations += 1;
                    let read = self.unsteady(read);
                    self.core.read_done(token, read);
                }
            }
        }
    }

    /// Now and then a read brings something else or nothing, once: the log has to read again, and to notice nothing beyond.
    fn unsteady(&mut self, read: io::Result<AlignedBuf>) -> io::Result<AlignedBuf> {
        let mut buf = read?;
        // Two in a row would be damage.
        let was_bad = std::mem::replace(&mut self.bad_read, false);
        let draw = mixed(self.written ^ self.relocations << 32);
        if self.plan.lying || was_bad || !draw.is_multiple_of(4) {
            return Ok(buf);
        }
        self.bad_read = true;
        let at = usize::try_from(draw >> 8).unwrap_or(0) % buf.len().max(1);
        match draw >> 2 & 1 {
            0 => Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => {
                buf.as_mut_slice()[at] ^= 1;
                Ok(buf)
            }
        }
    }

    fn take_effects(&mut self) -> Result<(), Violation> {
        while let Some(effect) = self.core.next_effect() {
            match effect {
                Effect::Opened => {
                    self.state = State::Running;
                    self.model.opened(&self.held);
                }
                Effect::Appended { ticket, seq, .. } => {
                    self.refused = 0;
                    self.model.acknowledged(ticket, seq.get())?;
                }
                Effect::Refused { ticket, error } => match error {
                    // It may have been written: it stays in flight.
                    AppendError::Stopped(_) => {}
                    AppendError::StreamFull
                    | AppendError::Full
                    | AppendError::TooLarge { .. }
                    | AppendError::TooManyStreams { .. } => {
                        self.refused += 1;
                        self.model.refused(ticket);
                    }
                },
                Effect::Trimmed { ticket, result } => {
                    let trim = self.sync_trims.remove(&ticket);
                    if let (Some((stream, below)), Ok(())) = (trim, result) {
                        self.model.sync_trimmed(stream, below);
                    }
                }
                Effect::Closed { result, .. } => {
                    self.state = match result {
                        Ok(()) => State::Closed,
                        Err(_) => State::Stopped,
                    };
                }
                Effect::Durable { buf, .. } => self.core.recycle(buf),
                Effect::Damaged(_) if self.plan.lying => self.reported = true,
                Effect::Damaged(stuck) => {
                    return Err(Violation(format!("live records found damaged: {stuck:?}")));
                }
                Effect::Stopped(why) => {
                    self.state = State::Stopped;
                    self.fenced = why == Stopped::Fenced;
                }
            }
        }
        Ok(())
    }

    /// Completes one of the writes in flight.
    fn complete(&mut self, choice: usize) -> Result<bool, Violation> {
        self.mark();
        let Some(completion) = self.device.complete(choice) else {
            return Ok(false);
        };
        self.core.write_done(completion);
        self.pump()?;
        Ok(true)
    }

    /// Completes everything, in order.
    pub fn settle(&mut self) -> Result<(), Violation> {
        while self.complete(0)? {}
        Ok(())
    }

    /// Nothing is in flight and the acknowledged end is marked.
    pub fn settle_and_mark(&mut self) -> Result<(), Violation> {
        self.settle()?;
        if self.core.wants_idle() {
            self.core.idle();
            self.pump()?;
            self.settle()?;
        }
        Ok(())
    }

    pub fn append(&mut self, stream: usize, len: usize, rng: &mut Rng) -> Result<(), Violation> {
        let (ticket, payload) = self.model.append(stream, len, rng);
        self.core.append(ticket, stream_id(stream), payload);
        self.pump()
    }

    pub fn trim(&mut self, stream: usize, below: u64) -> Result<(), Violation> {
        // Trimmed at once as far as the model goes: it may be gone after a crash from now on.
        self.model.trim(stream, below);
        if self.core.trim(stream_id(stream), Seq::new(below)).is_err() {
            return Err(Violation(format!("trim of stream {stream} refused")));
        }
        self.pump()
    }

    pub fn sync_trim(&mut self, stream: usize, below: u64) -> Result<(), Violation> {
        self.model.trim(stream, below);
        let ticket = self.model.ticket();
        self.sync_trims.insert(ticket, (stream, below));
        self.core
            .sync_trim(ticket, stream_id(stream), Seq::new(below));
        self.pump()
    }

    fn close(&mut self) -> Result<(), Violation> {
        let ticket = self.model.ticket();
        self.core.close(ticket);
        self.pump()?;
        self.settle()
    }

    /// Reads a live record back through the index, as a drain does.
    fn read_back(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        let stream = rng.index(self.plan.streams);
        let promise = self.model.promise(stream);
        let Some(live) = promise
            .acknowledged
            .checked_sub(promise.trimmed)
            .filter(|n| *n > 0)
        else {
            return Ok(());
        };
        let seq = promise.trimmed + rng.below(live);
        let index = self.core.index();
        let run = index
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .locate(stream_id(stream), Seq::new(seq));
        self.mark();
        let block = match run {
            Some(run) => read_block(&self.device, self.ring, self.id, run.lsn),
            None => Ok(None),
        };
        let found = block
            .ok()
            .flatten()
            .and_then(|block| block.find(stream_id(stream), Seq::new(seq)).cloned())
            .and_then(|record| record.payload);
        let now = self.model.snapshot();
        if found.as_ref() == self.model.expected(&now, stream, seq) {
            Ok(())
        } else if found.is_none() && self.plan.lying {
            self.reported = true;
            Ok(())
        } else {
            Err(Violation(format!(
                "stream {stream} record {seq} reads back wrong from {run:?}"
            )))
        }
    }

    /// Something that a user, the device or time may do.
    pub fn step(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        let in_flight = self.device.in_flight();
        if self.state == State::Stopped {
            return Ok(());
        }
        if self.state == State::Opening {
            return self.complete(rng.index(in_flight.max(1))).map(|_| ());
        }
        match rng.below(100) {
            0..42 => {
                for _ in 0..=rng.below(3) {
                    let stream = self.appender(rng);
                    let len = self.len(rng);
                    self.append(stream, len, rng)?;
                }
                Ok(())
            }
            42..74 => self.complete(rng.index(in_flight.max(1))).map(|_| ()),
            74..88 => self.drain(rng),
            88..91 => {
                let stream = rng.index(self.plan.streams);
                let promise = self.model.promise(stream);
                let end = if stream == self.stuck && !rng.one_in(8) {
                    promise.trimmed
                } else {
                    promise.acknowledged
                };
                let below = promise.trimmed + rng.below(end - promise.trimmed + 1);
                if promise.acknowledged == 0 {
                    return Ok(());
                }
                self.sync_trim(stream, below)
            }
            91..94 => {
                if self.core.wants_idle() {
                    self.core.idle();
                }
                self.pump()
            }
            94..99 => self.read_back(rng),
            _ => {
                // The stream that is stuck changes now and then.
                if rng.one_in(10) {
                    self.stuck = rng.index(self.plan.streams);
                }
                Ok(())
            }
        }
    }

    fn appender(&self, rng: &mut Rng) -> usize {
        let stream = rng.index(self.plan.streams);
        // The stuck stream gets little: it is to be relocated, not to fill the log.
        if stream == self.stuck && !rng.one_in(4) {
            (stream + 1) % self.plan.streams
        } else {
            stream
        }
    }

    fn len(&self, rng: &mut Rng) -> usize {
        let max = self.plan.record_max;
        let len = match rng.below(10) {
            0 => rng.below(8),
            1..6 => rng.below(600),
            6..9 => rng.below(max / 2),
            _ => max - rng.below(max / 3),
        };
        usize::try_from(len.min(max)).unwrap_or(0)
    }

    /// Trims a stream that flows, most of it; if the log is full also the one that is stuck.
    fn drain(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        let mut stream = rng.index(self.plan.streams);
        if stream == self.stuck && self.refused < 20 && !rng.one_in(60) {
            stream = (stream + 1) % self.plan.streams;
        }
        let promise = self.model.promise(stream);
        let backlog = promise.acknowledged - promise.trimmed;
        if promise.acknowledged == 0 {
            return Ok(());
        }
        let left = if self.refused > 0 {
            0
        } else {
            rng.below(backlog / 2 + 1)
        };
        self.trim(stream, promise.acknowledged - left)
    }

    /// The device as it is, and what is promised on it.
    pub fn left(mut self) -> (SimDevice, Model, Vec<Event>) {
        self.mark();
        (self.device, self.model, self.events)
    }

    pub fn core(&self) -> &Core {
        &self.core
    }

    fn life(mut self, start: (Image, Image)) -> (Life, Model) {
        self.mark();
        let life = Life {
            geometry: self.plan.geometry,
            durable: start.0,
            visible: start.1,
            events: self.events,
            marks: self.marks,
        };
        (life, self.model)
    }
}

/// Opens a log, uses it as planned and returns what went on.
pub fn live(
    plan: &Plan,
    device: SimDevice,
    model: Model,
    rng: &mut Rng,
) -> Result<(Life, Model), NoSession> {
    let start = (device.durable(), device.visible());
    let before = model.snapshot();
    let mut session = Session::open(&device, plan, model, rng)?;
    session.marks.insert(0, (0, before));
    session.marks.dedup_by_key(|(at, _)| *at);
    Ok(session.live_on(rng)?.life(start))
}

/// Opens a log and uses it as planned, without an account of it.
pub fn used(
    plan: &Plan,
    device: &SimDevice,
    model: Model,
    rng: &mut Rng,
) -> Result<Session, NoSession> {
    Session::open(device, plan, model, rng)?.live_on(rng)
}

impl Session {
    /// Uses the log as planned.
    fn live_on(mut self, rng: &mut Rng) -> Result<Session, NoSession> {
        for _ in 0..self.plan.steps_max {
            if self.written >= self.plan.bytes || self.state == State::Stopped {
                break;
            }
            if rng.one_in(self.plan.reopen_one_in) && self.state == State::Running {
                self.close()?;
                if self.state != State::Closed {
                    let fault = format!("close did not end: {:?}", self.core);
                    return Err(NoSession::Broken(Violation(fault)));
                }
                self = self.reopened(rng)?;
            }
            self.step(rng)?;
        }
        Ok(self)
    }

    /// Opens the log anew and goes on with the record of what went on.
    fn reopened(mut self, rng: &mut Rng) -> Result<Session, NoSession> {
        self.mark();
        let next = Session::open(&self.device, &self.plan, self.model, rng)?;
        let before = self.events.len();
        let mut events = self.events;
        events.extend(next.events);
        let mut marks = self.marks;
        marks.extend(next.marks.into_iter().map(|(at, mark)| (at + before, mark)));
        Ok(Session {
            events,
            marks,
            written: self.written + next.written,
            relocations: self.relocations + next.relocations,
            reported: self.reported || next.reported,
            ..next
        })
    }
}
