//! The partitions that the consumer's thread holds: sorts deliveries into them and follows the group's changes.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::now;
use crate::commit::topic_is_gone;
use crate::config::MemoryPlan;
use crate::decide::{BurstPlan, Cut, Limits, burst_plan};
use crate::lag::Lag;
use crate::message::{Pause, Seen, Ticket, Work};
use crate::native::{Change, Delivery, What};
use crate::slot::{Slot, SlotError};
use crate::worker::{Context, Worker};

/// Work waiting for one worker; far more than back-pressure lets come together.
const WORK_MAX: usize = 1_024;

/// How long it may take to find out whether the topic of a partition that was taken away is gone.
const LEAVE_MAX: Duration = Duration::from_secs(60);

/// The partitions, and what is needed to sort deliveries into them.
pub(crate) struct Slots {
    pub(crate) context: Arc<Context>,
    pub(crate) runtime: Handle,
    pub(crate) memory: MemoryPlan,
    pub(crate) limits: Limits,
    pub(crate) slots: HashMap<Arc<str>, HashMap<i32, Slot>>,
    pub(crate) plan: BurstPlan,
    pub(crate) assignments: u64,
    pub(crate) now: Instant,
    /// Records taken in since somebody has last looked.
    pub(crate) fetched_records: u64,
    /// Workers of partitions that were taken away and may have something to commit.
    pub(crate) leaving: Vec<mpsc::Sender<Work>>,
    /// Whether the cluster is being asked for topic ids.
    is_asking: bool,
    /// Workers that wait for the answer.
    waiting: Vec<oneshot::Sender<()>>,
    /// Partitions that have ended their session: to be taken from the fetcher once the batch in hand is done with.
    pub(crate) to_reset: Vec<(Ticket, Pause)>,
}

impl Slots {
    pub(crate) fn new(
        context: Arc<Context>,
        runtime: Handle,
        memory: MemoryPlan,
        limits: Limits,
    ) -> Slots {
        let plan = burst_plan(0, &memory, limits.max_bytes);
        Slots {
            context,
            runtime,
            memory,
            limits,
            slots: HashMap::new(),
            plan,
            assignments: 0,
            now: now(),
            fetched_records: 0,
            leaving: Vec::new(),
            is_asking: false,
            waiting: Vec::new(),
            to_reset: Vec::new(),
        }
    }

    /// All partitions, in no order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.values_mut().flat_map(HashMap::values_mut)
    }

    /// The slot of this very assignment.
    pub(crate) fn assigned(&mut self, ticket: &Ticket) -> Option<&mut Slot> {
        let slot = self
            .slots
            .get_mut(&ticket.topic)?
            .get_mut(&ticket.partition)?;
        (slot.ticket.assignment == ticket.assignment).then_some(slot)
    }

    pub(crate) fn change(&mut self, changes: Vec<Change>) {
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
                        let slot = self
                            .slots
                            .get_mut(topic.as_str())
                            .and_then(|slots| slots.remove(&partition));
                        if let Some(slot) = slot {
                            self.part(slot);
                        }
                    }
                    self.slots.retain(|_, partitions| !partitions.is_empty());
                }
            }
            self.plan_bursts();
        }
    }

    /// Lets a partition go. If its topic is gone, nobody else can read what we have: then its worker commits it, as far
    /// as it is proven, and however long the store takes.
    fn part(&mut self, mut slot: Slot) {
        let (Some(cut), Some(proof)) = (slot.leave(), &slot.proof) else {
            return;
        };
        let (context, ours) = (Arc::clone(&self.context), proof.topic_id);
        self.leaving.push(slot.work.clone());
        self.runtime.spawn(async move {
            let all = BTreeSet::new();
            let asked = topic_is_gone(&context, &slot.ticket, &all, ours);
            if let Ok(true) = tokio::time::timeout(LEAVE_MAX, asked).await
                && slot.work.send(Work::Leave(cut)).await.is_ok()
            {
                slot.left.cancel();
                slot.work.closed().await;
            }
            drop(slot.worker);
        });
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
        let (token, left) = (CancellationToken::new(), CancellationToken::new());
        let worker = Worker::new(
            Arc::clone(&self.context),
            ticket.clone(),
            queue,
            Arc::clone(&metrics),
            left.clone(),
        );
        self.runtime.spawn(worker.run(token.clone()));
        let slot = Slot {
            ticket: ticket.clone(),
            work,
            metrics,
            reading: None,
            lag: Lag::default(),
            proof: None,
            last_commit: self.now,
            has_cut: false,
            is_settling: false,
            left,
            worker: token.drop_guard(),
        };
        self.slots
            .entry(ticket.topic)
            .or_default()
            .insert(partition, slot);
    }

    pub(crate) fn replace(&mut self, ticket: &Ticket) {
        if let Some(partitions) = self.slots.get_mut(&ticket.topic) {
            partitions.remove(&ticket.partition);
        }
        self.add(&ticket.topic, ticket.partition);
    }

    pub(crate) fn plan_bursts(&mut self) {
        let reading = self
            .slots
            .values()
            .flat_map(HashMap::values)
            .filter(|slot| slot.reading.is_some())
            .count();
        self.plan = burst_plan(reading, &self.memory, self.limits.max_bytes);
    }

    pub(crate) fn deliver(&mut self, key: Option<&(Arc<str>, i32)>, delivery: Delivery<'_>) {
        let slot = key.and_then(|(topic, partition)| self.slots.get_mut(topic)?.get_mut(partition));
        let Some(slot) = slot else {
            // A fatal one is told by whoever ends the client for it.
            if let What::Error { code, text } = delivery.what
                && code != RDKafkaErrorCode::Fatal
            {
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
                self.fetched_records += 1;
                slot.record(&record, broker, self.plan, &self.limits, self.now)
            }
            What::End { offset } => slot.end_of_partition(offset, self.now),
            What::Error { code, text } => {
                return self.trouble(delivery.topic, delivery.partition, code, &text);
            }
        };
        if let Err(error) = failed {
            self.contradiction(delivery.topic, delivery.partition, &error);
        }
    }

    /// Ends the session of a partition, if it is still this one.
    pub(crate) fn end_session(&mut self, ticket: &Ticket, pause: Pause) {
        let ended = self
            .assigned(ticket)
            .filter(|slot| slot.ticket.session == ticket.session)
            .and_then(|slot| slot.end_session(pause));
        self.to_reset.extend(ended);
    }

    /// Ends the session of a partition whose topic a worker has found gone; what is open goes to the worker first. It is
    /// told through `noted` once ids that are being asked for are there, which may prove more.
    pub(crate) fn gone(&mut self, ticket: &Ticket, noted: oneshot::Sender<()>) {
        let ended = self
            .assigned(ticket)
            .filter(|slot| slot.ticket.session == ticket.session)
            .and_then(end_of_topic);
        self.to_reset.extend(ended);
        if self.is_asking {
            self.waiting.push(noted);
        } else {
            // An error says that the worker has ended.
            let _ = noted.send(());
        }
    }

    /// The cluster is about to be asked for topic ids.
    pub(crate) fn mark(&mut self) {
        // The question before was not answered.
        self.asked();
        self.is_asking = true;
        for slot in self.iter_mut() {
            slot.mark();
        }
    }

    fn asked(&mut self) {
        self.is_asking = false;
        for noted in self.waiting.drain(..) {
            // An error says that the worker has ended.
            let _ = noted.send(());
        }
    }

    /// Compares the topics' ids with what is being read: what was delivered before they were asked for is proven by an
    /// id that all brokers show; another id, or none, ends the session, and the worker asks for itself.
    pub(crate) fn compare(&mut self, seen: &[Seen]) {
        for Seen { topic, id, agreed } in seen {
            let Some(partitions) = self.slots.get_mut(topic.as_str()) else {
                continue;
            };
            for slot in partitions.values_mut() {
                // Of a session that has ended, too: what it has cut may be on its way.
                let Some(proof) = &slot.proof else {
                    continue;
                };
                if *id == Some(proof.topic_id) {
                    if *agreed {
                        proof.prove();
                    }
                } else if slot.reading.is_some() {
                    let new_id = id.map(tracing::field::display);
                    let partition = slot.ticket.partition;
                    // The watch has said so of the topic as a whole.
                    tracing::info!(
                        topic,
                        partition,
                        new_id,
                        "the topic was deleted, created again or left out: cutting what is open"
                    );
                    self.to_reset.extend(end_of_topic(slot));
                }
            }
        }
        self.asked();
    }

    /// A delivery that can't be taken in: what is open is dropped and read again.
    fn contradiction(&mut self, topic: &str, partition: i32, error: &SlotError) {
        let Some(ended) = self
            .slots
            .get_mut(topic)
            .and_then(|slots| slots.get_mut(&partition))
            .and_then(|slot| slot.end_session(Pause::Frozen))
        else {
            return;
        };
        let error = error as &dyn Error;
        tracing::error!(
            topic,
            partition,
            error,
            "the partition is frozen: what was delivered can't be archived"
        );
        self.to_reset.push(ended);
    }

    /// The consumer can't go on with a partition. What came before is cut and committed, then the worker starts over
    /// and finds out where the cluster stands.
    ///
    /// The session ends here and now, not when the batch in hand is done with: librdkafka goes on behind a batch of
    /// records that it could not read, and a segment cut behind it would claim to hold it.
    fn trouble(&mut self, topic: &str, partition: i32, code: RDKafkaErrorCode, text: &str) {
        let Some(slot) = self
            .slots
            .get_mut(topic)
            .and_then(|slots| slots.get_mut(&partition))
            .filter(|slot| slot.reading.is_some())
        else {
            return;
        };
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
            RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation
        );
        if let Err(error) = slot.cut(Cut::Trouble, doubtful) {
            tracing::warn!(
                error = &error as &dyn Error,
                "what was open could not be cut"
            );
        }
        let ended = slot.end_session(Pause::Frozen);
        self.to_reset.extend(ended);
    }
}

/// Cuts what is open and ends the session, because the topic is gone.
fn end_of_topic(slot: &mut Slot) -> Option<(Ticket, Pause)> {
    if let Err(error) = slot.cut(Cut::Trouble, false) {
        let (topic, partition) = (&*slot.ticket.topic, slot.ticket.partition);
        let error = &error as &dyn Error;
        tracing::warn!(topic, partition, error, "what was open could not be cut");
    }
    slot.end_session(Pause::None)
}
