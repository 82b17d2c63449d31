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
use tokio_util::sync::CancellationToken;

use crate::clock::{now, unix_ms};
use crate::config::MemoryPlan;
use crate::decide::{BurstPlan, Cut, Limits, burst_plan};
use crate::message::{Begin, Command, Pause, Ticket, Work};
use crate::native::{Change, Consumer, Delivery, What};
use crate::slot::{Reading, Slot, SlotError};
use crate::worker::{Context, Worker};

/// The longest that commands wait for a quiet poll.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// Messages taken in one poll.
pub(crate) const BATCH_MAX: usize = 2_000;
/// How often slots are looked at for cuts and metrics.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Work waiting for one worker; far more than back-pressure lets come together.
const WORK_MAX: usize = 1_024;
/// How long nothing is polled for want of memory before partitions are paused.
const BREATH_MAX: Duration = Duration::from_secs(5);
/// How long an ending archiver goes on committing.
pub(crate) const STOP_TIME: Duration = Duration::from_secs(10);

/// How the thread ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// As told.
    Stopped,
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

/// The partitions, and what is needed to sort deliveries into them.
struct Slots {
    context: Arc<Context>,
    runtime: Handle,
    memory: MemoryPlan,
    limits: Limits,
    slots: HashMap<Arc<str>, HashMap<i32, Slot>>,
    plan: BurstPlan,
    assignments: u64,
    now: Instant,
    /// Partitions to take from the fetcher once the batch in hand is done with.
    to_reset: Vec<(Ticket, Pause)>,
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
        let plan = burst_plan(0, &memory, limits.max_bytes);
        let slots = Slots {
            context,
            runtime,
            memory,
            limits,
            slots: HashMap::new(),
            plan,
            assignments: 0,
            now: now(),
            to_reset: Vec::new(),
        };
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
            self.breathe();
            self.poll();
            self.reset_marked();
            self.spill();
            self.set_pauses();
            if self.next_look <= self.slots.now {
                self.next_look = self.slots.now + LOOK_EVERY;
                self.look();
                if let Some(why) = self.consumer.fatal_error() {
                    break Ended::Fatal(why);
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
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Subscribe(topics) => {
                if let Err(code) = self.consumer.subscribe(&topics) {
                    tracing::error!(?code, "the subscription was refused");
                }
            }
            Command::Incarnations(ids) => {
                for (topic, id) in ids {
                    let Some(partitions) = self.slots.slots.get(topic.as_str()) else {
                        continue;
                    };
                    for slot in partitions.values() {
                        if slot
                            .reading
                            .as_ref()
                            .is_some_and(|reading| reading.topic_id != id)
                        {
                            tracing::warn!(topic, partition = slot.ticket.partition, new_id = %id, "the topic was created again");
                            self.slots.to_reset.push((slot.ticket.clone(), Pause::None));
                        }
                    }
                }
                self.reset_marked();
            }
            Command::Begin(ticket, begin) => self.begin(ticket, &begin),
            Command::Committed(ticket, end) => {
                let at = self.slots.now;
                let Some(slot) = self.slots.assigned(&ticket) else {
                    return;
                };
                if slot.ticket.session == ticket.session
                    && let Some(reading) = &mut slot.reading
                {
                    reading.committed(end, at);
                }
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
                self.slots.to_reset.push((ticket, pause));
                self.reset_marked();
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
        let (at, gauge) = (self.slots.now, Arc::clone(&self.slots.context.chunks));
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
        slot.reading = Some(Reading::new(begin, &gauge, at));
        let from = begin.fetch_from.get();
        if let Err(why) = self
            .consumer
            .assign(&ticket.topic, ticket.partition, from, begin.epoch)
        {
            tracing::warn!(
                topic = &*ticket.topic,
                partition = ticket.partition,
                why,
                "the fetcher does not take the partition"
            );
            self.slots.to_reset.push((ticket, Pause::Frozen));
            self.reset_marked();
        }
        self.slots.plan_bursts();
    }

    /// Takes marked partitions from the fetcher, drops what is open of them, and lets their workers start over.
    fn reset_marked(&mut self) {
        for (ticket, pause) in std::mem::take(&mut self.slots.to_reset) {
            let consumer = &self.consumer;
            let Some(slot) = self.slots.assigned(&ticket) else {
                continue;
            };
            if slot.ticket.session != ticket.session || slot.reading.take().is_none() {
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

    /// With too much waiting for the encoders, polls nothing for a moment. If that lasts, everything is paused, and
    /// polling goes on for the sake of the group.
    fn breathe(&mut self) {
        let gauge = Arc::clone(&self.slots.context.chunks);
        if !gauge.is_over() {
            self.short_since = None;
            if self.all_paused && gauge.used() < gauge.limit() / 2 {
                self.all_paused = false;
                tracing::info!("encoders and store keep up again, fetching on");
            }
            return;
        }
        let since = *self.short_since.get_or_insert(self.slots.now);
        if self.all_paused {
            return;
        }
        if BREATH_MAX < self.slots.now.saturating_duration_since(since) {
            self.all_paused = true;
            tracing::warn!("encoders or store do not keep up, pausing all partitions");
            return;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }

    /// Moves to disk what waits for more of its kind, if that is what memory is short of.
    fn spill(&mut self) {
        let context = Arc::clone(&self.slots.context);
        while context.chunks.limit() / 4 * 3 < context.chunks.used() {
            let readings = self
                .slots
                .slots
                .values_mut()
                .flat_map(HashMap::values_mut)
                .filter_map(|slot| {
                    let ticket = slot.ticket.clone();
                    slot.reading.as_mut().map(|reading| (ticket, reading))
                });
            let Some((ticket, reading)) =
                readings.max_by_key(|(_, reading)| reading.spillable_bytes())
            else {
                return;
            };
            let before = reading.spillable_bytes();
            // Less than this is not what fills the memory: bursts on their way do, and those soon go.
            if before < context.chunks.limit() / 64 {
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
                    self.slots.to_reset.push((ticket, Pause::Frozen));
                    self.reset_marked();
                }
            }
        }
    }

    /// Takes partitions from the fetcher that are to wait, and gives them back where their records end.
    fn set_pauses(&mut self) {
        let all = self.all_paused || self.stopping_since.is_some();
        for slot in self.slots.slots.values_mut().flat_map(HashMap::values_mut) {
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
                self.consumer.unassign(topic, partition)
            } else {
                self.consumer.assign(topic, partition, reading.end().get(), None)
            };
            if let Err(why) = done {
                tracing::warn!(topic, partition, why, wanted, "pausing or going on failed, the partition starts over");
                self.slots.to_reset.push((slot.ticket.clone(), Pause::Frozen));
            }
        }
        self.reset_marked();
    }

    fn look(&mut self) {
        let (at, unix) = (self.slots.now, unix_ms());
        let (limits, consumer) = (self.slots.limits, &self.consumer);
        let context = Arc::clone(&self.slots.context);
        context
            .metrics
            .memory_bytes
            .set(i64::try_from(context.chunks.used()).unwrap_or(i64::MAX));
        for slot in self.slots.slots.values_mut().flat_map(HashMap::values_mut) {
            let ticket = &slot.ticket;
            let live = slot
                .reading
                .as_ref()
                .and_then(|_| consumer.watermarks(&ticket.topic, ticket.partition));
            let retention = context.facts.retention(&ticket.topic);
            if self.stopping_since.is_none()
                && let Err(error) = slot.look(&limits, live, retention, at, unix)
            {
                tracing::error!(error = &error as &dyn Error, "a segment could not be cut");
                self.slots
                    .to_reset
                    .push((slot.ticket.clone(), Pause::Frozen));
            }
            slot.measure(live, at, unix);
        }
        self.reset_marked();
    }

    fn stop(&mut self) {
        tracing::info!("stopping: committing what is open");
        for slot in self.slots.slots.values_mut().flat_map(HashMap::values_mut) {
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
        let mut readings = self
            .slots
            .slots
            .values()
            .flat_map(HashMap::values)
            .filter_map(|slot| slot.reading.as_ref());
        if !readings.any(Reading::has_cuts_on_their_way) {
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

impl Slots {
    /// The slot of this very assignment.
    fn assigned(&mut self, ticket: &Ticket) -> Option<&mut Slot> {
        let slot = self
            .slots
            .get_mut(&ticket.topic)?
            .get_mut(&ticket.partition)?;
        (slot.ticket.assignment == ticket.assignment).then_some(slot)
    }

    fn change(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Given(partitions) => {
                    for (topic, partition) in partitions {
                        self.add(&topic, partition);
                    }
                }
                Change::Taken(partitions) => {
                    for (topic, partition) in partitions {
                        tracing::info!(topic, partition, "the group took the partition away");
                        if let Some(slots) = self.slots.get_mut(topic.as_str()) {
                            slots.remove(&partition);
                        }
                    }
                    self.slots.retain(|_, partitions| !partitions.is_empty());
                }
            }
            self.plan_bursts();
        }
    }

    fn add(&mut self, topic: &str, partition: i32) {
        self.assignments += 1;
        let ticket = Ticket {
            topic: Arc::from(topic),
            partition,
            assignment: self.assignments,
            session: 0,
        };
        let (work, queue) = mpsc::channel(WORK_MAX);
        let metrics = Arc::new(self.context.metrics.partition(topic, partition));
        let token = CancellationToken::new();
        let worker = Worker::new(
            Arc::clone(&self.context),
            ticket.clone(),
            queue,
            Arc::clone(&metrics),
        );
        self.runtime.spawn(worker.run(token.clone()));
        let slot = Slot {
            ticket: ticket.clone(),
            work,
            metrics,
            reading: None,
            since: self.now,
            _worker: token.drop_guard(),
        };
        self.slots
            .entry(ticket.topic)
            .or_default()
            .insert(partition, slot);
    }

    fn replace(&mut self, ticket: &Ticket) {
        if let Some(partitions) = self.slots.get_mut(&ticket.topic) {
            partitions.remove(&ticket.partition);
        }
        self.add(&ticket.topic, ticket.partition);
    }

    fn plan_bursts(&mut self) {
        let reading = self
            .slots
            .values()
            .flat_map(HashMap::values)
            .filter(|slot| slot.reading.is_some())
            .count();
        self.plan = burst_plan(reading, &self.memory, self.limits.max_bytes);
    }

    fn deliver(&mut self, key: Option<&(Arc<str>, i32)>, delivery: Delivery<'_>) {
        let slot = key.and_then(|(topic, partition)| self.slots.get_mut(topic)?.get_mut(partition));
        let Some(slot) = slot else {
            if let What::Error { code, text } = delivery.what {
                tracing::info!(
                    ?code,
                    text,
                    topic = delivery.topic,
                    "the consumer reports trouble, librdkafka retries"
                );
            }
            return;
        };
        let failed = match delivery.what {
            What::Record(record, broker) => {
                slot.record(&record, broker, self.plan, &self.limits, self.now)
            }
            What::End { offset } => {
                slot.end_of_partition(offset, self.now);
                Ok(())
            }
            What::Error { code, text } => {
                return self.trouble(delivery.topic, delivery.partition, code, &text);
            }
        };
        if let Err(error) = failed {
            self.contradiction(delivery.topic, delivery.partition, &error);
        }
    }

    /// A delivery that can't be taken in: what is open is dropped and read again.
    fn contradiction(&mut self, topic: &str, partition: i32, error: &SlotError) {
        let Some(slot) = self
            .slots
            .get_mut(topic)
            .and_then(|slots| slots.get_mut(&partition))
        else {
            return;
        };
        if slot.reading.is_none()
            || self
                .to_reset
                .iter()
                .any(|(ticket, _)| *ticket == slot.ticket)
        {
            return;
        }
        let error = error as &dyn Error;
        tracing::error!(
            topic,
            partition,
            error,
            "the partition is frozen: its deliveries contradict each other"
        );
        self.to_reset.push((slot.ticket.clone(), Pause::Frozen));
    }

    /// The consumer can't go on with a partition. What came before is cut and committed, then the worker starts over
    /// and finds out where the cluster stands.
    fn trouble(&mut self, topic: &str, partition: i32, code: RDKafkaErrorCode, text: &str) {
        let Some(slot) = self
            .slots
            .get_mut(topic)
            .and_then(|slots| slots.get_mut(&partition))
        else {
            return;
        };
        if slot.reading.is_none()
            || self
                .to_reset
                .iter()
                .any(|(ticket, _)| *ticket == slot.ticket)
        {
            return;
        }
        tracing::warn!(
            topic,
            partition,
            ?code,
            text,
            "the partition is frozen where it stands"
        );
        slot.metrics.set_frozen(true);
        // The next offset was refused: retention was faster, or the log was truncated below it.
        let doubtful = matches!(
            code,
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange
        );
        let doubtful = doubtful || matches!(code, RDKafkaErrorCode::LogTruncation);
        if let Err(error) = slot.cut(Cut::Trouble, doubtful) {
            tracing::warn!(
                error = &error as &dyn Error,
                "what was open could not be cut"
            );
        }
        self.to_reset.push((slot.ticket.clone(), Pause::Frozen));
    }
}
