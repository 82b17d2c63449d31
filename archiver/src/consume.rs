//! The consumer's thread: polls, sorts deliveries into the partitions' slots, cuts, and obeys its commands.
//!
//! It blocks in librdkafka's poll (at most [`POLL_TIMEOUT`]) and, rarely, in writing to the spool; it never waits for
//! store, index or encoders. Where those are slower than the cluster it stops polling for moments, and pauses
//! partitions where that lasts, so that the membership of the group is not at stake.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::clock::{now, unix_ms};
use crate::config::MemoryPlan;
use crate::decide::{Cut, Limits, Stall};
use crate::message::{Begin, Command, Pause, Proof, Ticket, Work};
use crate::native::Consumer;
use crate::slot::{Reading, Slot};
use crate::slots::Slots;
use crate::worker::Context;

/// The longest that commands wait for a quiet poll.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// Messages taken in one poll.
pub(crate) const BATCH_MAX: usize = 2_000;
/// How often slots are looked at for cuts and metrics.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long nothing is polled for want of memory, at a time.
const BREATH: Duration = Duration::from_millis(2);
/// How long in all before partitions are paused.
const BREATH_MAX: Duration = Duration::from_secs(5);
/// How long an ending archiver goes on committing.
pub(crate) const STOP_TIME: Duration = Duration::from_secs(10);

/// How the thread ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// As told.
    Stopped,
    /// Another member with the same instance id has taken this one's place in the group.
    Fenced,
    /// librdkafka can't go on with this client.
    Fatal(String),
}

/// See the module.
pub(crate) struct Consume {
    consumer: Consumer,
    commands: mpsc::Receiver<Command>,
    slots: Slots,
    /// Since when memory has been short.
    short_since: Option<Instant>,
    all_paused: bool,
    stopping_since: Option<Instant>,
    next_look: Instant,
}

impl Consume {
    pub(crate) fn new(
        consumer: Consumer,
        commands: mpsc::Receiver<Command>,
        context: Arc<Context>,
        runtime: Handle,
        memory: MemoryPlan,
        limits: Limits,
    ) -> Consume {
        let slots = Slots::new(context, runtime, memory, limits);
        Consume {
            consumer,
            commands,
            slots,
            short_since: None,
            all_paused: false,
            stopping_since: None,
            next_look: now(),
        }
    }

    /// Works until [`Command::Stop`] or until librdkafka can't go on.
    pub(crate) fn run(mut self) -> (Ended, mpsc::Receiver<Command>) {
        let ended = loop {
            self.slots.now = now();
            while let Ok(command) = self.commands.try_recv() {
                self.obey(command);
            }
            if self.may_end() {
                break Ended::Stopped;
            }
            if self.may_poll() {
                self.poll();
            }
            self.reset_marked();
            self.spill();
            self.set_pauses();
            if self.next_look <= self.slots.now {
                self.next_look = self.slots.now + LOOK_EVERY;
                self.look();
                match self.consumer.fatal_error() {
                    None => {}
                    Some((RDKafkaErrorCode::FencedInstanceId, _)) => break Ended::Fenced,
                    Some((_, why)) => break Ended::Fatal(why),
                }
            }
        };
        // Dropping the slots ends their workers: nothing more is written for partitions that we give up.
        self.slots.slots.clear();
        self.consumer.close();
        (ended, self.commands)
    }

    fn poll(&mut self) {
        let timeout = if self.stopping_since.is_some() {
            POLL_TIMEOUT / 10
        } else {
            POLL_TIMEOUT
        };
        let mut key: Option<(Arc<str>, i32)> = None;
        self.consumer.poll(
            timeout,
            &mut self.slots,
            Slots::change,
            |slots, delivery| {
                if !delivery.same_partition {
                    key = slots
                        .slots
                        .get_key_value(delivery.topic)
                        .map(|(topic, _)| (Arc::clone(topic), delivery.partition));
                }
                slots.deliver(key.as_ref(), delivery);
            },
        );
        let fetched = std::mem::take(&mut self.slots.fetched_records);
        self.slots.context.metrics.fetched_records.inc_by(fetched);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Subscribe(topics, told) => {
                let done = self.consumer.subscribe(&topics);
                if let Err(code) = &done {
                    tracing::error!(?code, "the subscription was refused, will retry");
                }
                // An error says that the watch has ended.
                let _ = told.send(done.is_ok());
            }
            Command::Mark(noted) => {
                self.consumer.asking(self.slots.now);
                self.slots.mark();
                // An error says that the watch has ended.
                let _ = noted.send(());
            }
            Command::Incarnations(seen) => {
                self.consumer.answered(self.slots.now);
                self.slots.compare(&seen);
                self.reset_marked();
            }
            Command::Begin(ticket, begin) => self.begin(ticket, &begin),
            Command::Committed(ticket, end) => {
                let at = self.slots.now;
                let Some(slot) = self.slots.assigned(&ticket) else {
                    return;
                };
                slot.committed(ticket.session, end, at);
                if let Err(code) = self
                    .consumer
                    .commit(&ticket.topic, ticket.partition, end.get())
                {
                    tracing::debug!(
                        ?code,
                        topic = &*ticket.topic,
                        partition = ticket.partition,
                        "group offset not committed"
                    );
                }
            }
            Command::Failed(ticket, pause) => {
                self.slots.end_session(&ticket, pause);
                self.reset_marked();
            }
            Command::Gone(ticket, noted) => {
                self.slots.gone(&ticket, noted);
                self.reset_marked();
            }
            Command::Settled(ticket) => {
                if let Some(slot) = self.slots.assigned(&ticket)
                    && slot.ticket.session == ticket.session
                {
                    slot.is_settling = false;
                }
            }
            Command::Stands(ticket, standing) => {
                if let Some(slot) = self.slots.assigned(&ticket)
                    && slot.reading.is_none()
                {
                    slot.stands(&standing);
                }
            }
            Command::Stop => {
                if self.stopping_since.is_none() {
                    self.stopping_since = Some(self.slots.now);
                    self.stop();
                }
            }
        }
    }

    fn begin(&mut self, ticket: Ticket, begin: &Begin) {
        if self.stopping_since.is_some() {
            return;
        }
        let (at, memory) = (self.slots.now, Arc::clone(&self.slots.context.memory));
        let configs = self.slots.context.facts.configs(&ticket.topic);
        // Where configurations are not told, cleaning has to be reckoned with.
        let compacted = configs.is_compacted() || configs.all.is_empty();
        let Some(slot) = self.slots.assigned(&ticket) else {
            return;
        };
        tracing::info!(
            topic = &*ticket.topic,
            partition = ticket.partition,
            from = %begin.covered_from,
            high_watermark = %begin.high_watermark,
            "archiving"
        );
        slot.ticket.session = ticket.session;
        slot.has_cut = false;
        slot.is_settling = false;
        slot.proof = Some(Proof::new(begin.topic_id, begin.covered_from));
        let reading = Reading::new(begin, compacted, &memory, at);
        let from = reading.fetch_from().get();
        slot.reading = Some(reading);
        if let Err(why) = self.consumer.assign(&ticket.topic, ticket.partition, from) {
            tracing::warn!(
                topic = &*ticket.topic,
                partition = ticket.partition,
                why,
                "the fetcher does not take the partition"
            );
            self.slots.end_session(&ticket, Pause::Frozen);
            self.reset_marked();
        }
        self.slots.plan_bursts();
    }

    /// Takes partitions whose session has ended from the fetcher, and lets their workers start over.
    fn reset_marked(&mut self) {
        for (ticket, pause) in std::mem::take(&mut self.slots.to_reset) {
            let consumer = &self.consumer;
            let Some(slot) = self.slots.assigned(&ticket) else {
                continue;
            };
            if slot.ticket.session != ticket.session {
                continue;
            }
            if let Err(why) = consumer.unassign(&ticket.topic, ticket.partition) {
                tracing::debug!(
                    topic = &*ticket.topic,
                    partition = ticket.partition,
                    why,
                    "was not fetched"
                );
            }
            if slot.work.try_send(Work::Reset(pause)).is_err() {
                tracing::warn!(
                    topic = &*ticket.topic,
                    partition = ticket.partition,
                    "replacing a worker that is stuck"
                );
                self.slots.replace(&ticket);
            }
        }
    }

    /// Whether to poll. With too much waiting for the encoders nothing is polled for a moment: librdkafka's queue fills
    /// and fetching stops by itself. If that lasts, everything is paused, and polling goes on for the sake of the group.
    fn may_poll(&mut self) -> bool {
        let memory = Arc::clone(&self.slots.context.memory);
        if !memory.chunks.is_over() && !memory.bursts.is_over() {
            self.short_since = None;
            if self.all_paused && memory.chunks.used() < memory.chunks.limit() / 2 {
                self.all_paused = false;
                tracing::info!("encoders and store keep up again, fetching on");
            }
            return true;
        }
        let since = *self.short_since.get_or_insert(self.slots.now);
        if self.all_paused {
            return true;
        }
        if BREATH_MAX < self.slots.now.saturating_duration_since(since) {
            self.all_paused = true;
            tracing::warn!("encoders or store do not keep up, pausing all partitions");
            return true;
        }
        std::thread::park_timeout(BREATH);
        false
    }

    /// Moves to disk what waits for more of its kind, if that is what memory is short of.
    fn spill(&mut self) {
        let context = Arc::clone(&self.slots.context);
        while context.memory.chunks.limit() / 4 * 3 < context.memory.chunks.used() {
            let readings = self.slots.iter_mut().filter_map(|slot| {
                let ticket = slot.ticket.clone();
                slot.reading.as_mut().map(|reading| (ticket, reading))
            });
            let Some((ticket, reading)) =
                readings.max_by_key(|(_, reading)| reading.spillable_bytes())
            else {
                return;
            };
            let before = reading.spillable_bytes();
            // Where bursts on their way are what fills the memory, they soon go. Else even the little that each of very many
            // partitions holds has to go, or nothing would until segments are cut by age.
            let memory = &context.memory;
            let bursts_fill_it = memory.chunks.used() / 2 < memory.bursts.used();
            if before == 0 || bursts_fill_it && before < memory.chunks.limit() / 64 {
                return;
            }
            match reading.backlog_mut().spill(&context.spool) {
                Ok(()) => context.metrics.spilled_bytes.inc_by(before),
                Err(error) => {
                    let error = &error as &dyn Error;
                    tracing::error!(
                        error,
                        "the spool can't be written, the partition starts over"
                    );
                    self.slots.end_session(&ticket, Pause::Frozen);
                    self.reset_marked();
                }
            }
        }
    }

    /// Takes partitions from the fetcher that are to wait, and gives them back where their records end.
    fn set_pauses(&mut self) {
        let all = self.all_paused || self.stopping_since.is_some();
        let (consumer, now) = (&self.consumer, self.slots.now);
        let mut ended = Vec::new();
        for slot in self.slots.iter_mut() {
            let Some(reading) = &mut slot.reading else {
                continue;
            };
            let wanted = all || reading.wants_pause();
            if wanted == reading.paused {
                continue;
            }
            reading.paused = wanted;
            let (topic, partition) = (&*slot.ticket.topic, slot.ticket.partition);
            let done = if wanted {
                consumer.unassign(topic, partition)
            } else {
                reading.seated(now);
                consumer.assign(topic, partition, reading.fetch_from().get())
            };
            if let Err(why) = done {
                tracing::warn!(
                    topic,
                    partition,
                    why,
                    wanted,
                    "pausing or going on failed, the partition starts over"
                );
                ended.extend(slot.end_session(Pause::Frozen));
            }
        }
        self.slots.to_reset.extend(ended);
        self.reset_marked();
    }

    fn look(&mut self) {
        let (at, unix) = (self.slots.now, unix_ms());
        let (limits, consumer) = (self.slots.limits, &self.consumer);
        let stopping = self.stopping_since.is_some();
        let context = Arc::clone(&self.slots.context);
        context
            .metrics
            .memory_bytes
            .set(i64::try_from(context.memory.chunks.used()).unwrap_or(i64::MAX));
        self.slots.leaving.retain(|work| !work.is_closed());
        let mut ended = Vec::new();
        for slot in self.slots.iter_mut() {
            let ticket = &slot.ticket;
            let live = slot
                .reading
                .as_ref()
                .and_then(|_| consumer.watermarks(&ticket.topic, ticket.partition));
            let retention = context.facts.retention(&ticket.topic);
            if !stopping && let Err(error) = slot.look(&limits, live, retention, at, unix) {
                tracing::error!(error = &error as &dyn Error, "a segment could not be cut");
                ended.extend(slot.end_session(Pause::Frozen));
            }
            slot.measure(live, at, unix);
            if !stopping && let Err(why) = wake(consumer, slot, at) {
                let (topic, partition) = (&*slot.ticket.topic, slot.ticket.partition);
                tracing::warn!(topic, partition, why, "the partition starts over");
                ended.extend(slot.end_session(Pause::Frozen));
            }
        }
        self.slots.to_reset.extend(ended);
        self.reset_marked();
    }

    fn stop(&mut self) {
        tracing::info!("stopping: committing what is open");
        for slot in self.slots.iter_mut() {
            if slot.reading.is_none() {
                continue;
            }
            if let Err(error) = slot.cut(Cut::Stop, false) {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "what is open is left to the next run"
                );
            }
        }
    }

    fn may_end(&self) -> bool {
        let Some(since) = self.stopping_since else {
            return false;
        };
        let mut slots = self.slots.slots.values().flat_map(HashMap::values);
        let mut leaving = self.slots.leaving.iter();
        if !slots.any(Slot::has_cuts_on_their_way) && leaving.all(mpsc::Sender::is_closed) {
            return true;
        }
        let late = STOP_TIME < self.slots.now.saturating_duration_since(since);
        if late {
            tracing::warn!(
                "not everything could be committed in time: the next run reads it again from the cluster"
            );
        }
        late
    }
}

/// Tells a fetcher that has brought nothing for long once more where to go on. It costs one request, and whatever a
/// partition stands still for inside librdkafka is over with it.
fn wake(consumer: &Consumer, slot: &mut Slot, at: Instant) -> Result<(), String> {
    let Some(reading) = &mut slot.reading else {
        return Ok(());
    };
    let (topic, partition) = (&*slot.ticket.topic, slot.ticket.partition);
    let from = reading.fetch_from();
    match reading.stall(at) {
        None => return Ok(()),
        Some(Stall::Behind) => {
            tracing::warn!(topic, partition, %from, "nothing is fetched though the cluster has more, asking again");
        }
        Some(Stall::Quiet) => {
            tracing::debug!(topic, partition, %from, "nothing is fetched, asking again");
        }
    }
    reading.told_again(at);
    consumer.unassign(topic, partition)?;
    consumer.assign(topic, partition, from.get())
}
