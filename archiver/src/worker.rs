//! One partition's worker: opens the archive's side, encodes, commits, and starts over when something is wrong.
//!
//! A session runs from [`Command::Begin`] to [`Work::Reset`]. Segments are encoded while the one before is uploaded and
//! committed; more than these two there never are. The worker ends when its partition is taken away; a commit that is
//! under way then may or may not happen, which the next holder finds out by reading the chain.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;

use everlog_format::{
    ClusterId, Day, Incarnation, Offset, Partition, PartitionKey, Segment, TopicId, TopicName,
};
use everlog_index::{Archive, DataEntry, EntryKind, IndexError, Lookup, Snapshot, TopicInfo};
use everlog_store::StoreError;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, ClusterError};
use crate::commit::{Failure, Hand, Job, PAUSE_MAX, append, commit, hole, wait};
use crate::decide::{Backoff, Known, Start, StartView, start};
use crate::encode::{EncodeError, Identity, NewFile, OpenFile};
use crate::memory::Memory;
use crate::message::{Begin, Command, CutWork, Pause, SegmentMeter, Ticket, Work};
use crate::metrics::{Metrics, PartitionMetrics};
use crate::spool::{Burst, SpoolDir};
use crate::watch::Facts;

/// How far back the last record is looked for behind entries without one.
const LAST_RECORD_ENTRIES_MAX: usize = 64;

/// What all workers share.
pub(crate) struct Context {
    pub(crate) archive: Arc<Archive>,
    pub(crate) cluster: Cluster,
    pub(crate) cluster_id: ClusterId,
    pub(crate) facts: Arc<Facts>,
    pub(crate) encoders: Arc<Semaphore>,
    pub(crate) spool: Arc<SpoolDir>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) metrics: Metrics,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Context {
    pub(crate) async fn send(&self, command: Command) {
        // An error means that the consumer's thread has ended, and with it this worker soon.
        let _ = self.commands.send(command).await;
    }
}

/// Why a partition can't be opened now.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("the last archived segment can't be read")]
    Store(#[from] StoreError),
    #[error("the cluster does not have the topic at the moment")]
    NoTopic,
    #[error("the name can't be archived: {0}")]
    Name(String),
    #[error(
        "the archive reaches to {next}, but the cluster's log ends at {high_watermark}: it was truncated, or another \
         cluster took its id"
    )]
    Truncated {
        next: Offset,
        high_watermark: Offset,
    },
    #[error(transparent)]
    Commit(#[from] Failure),
}

impl OpenError {
    /// Whether this is trouble with the partition itself, not an outage or a matter of moments.
    fn freezes(&self) -> bool {
        match self {
            OpenError::Cluster(_) | OpenError::Store(_) | OpenError::NoTopic => false,
            OpenError::Index(error) => !matches!(error, IndexError::Store(_)),
            OpenError::Name(_) | OpenError::Truncated { .. } => true,
            OpenError::Commit(failure) => {
                matches!(failure, Failure::Damaged(_) | Failure::Contended)
            }
        }
    }
}

/// See the module.
pub(crate) struct Worker {
    context: Arc<Context>,
    ticket: Ticket,
    work: mpsc::Receiver<Work>,
    metrics: Arc<PartitionMetrics>,
    resets: Backoff,
}

impl Worker {
    pub(crate) fn new(
        context: Arc<Context>,
        ticket: Ticket,
        work: mpsc::Receiver<Work>,
        metrics: Arc<PartitionMetrics>,
    ) -> Worker {
        Worker {
            context,
            ticket,
            work,
            metrics,
            resets: Backoff::new(PAUSE_MAX),
        }
    }

    /// Works until `taken` is cancelled.
    pub(crate) async fn run(self, taken: CancellationToken) {
        let _ = taken.run_until_cancelled(Box::pin(self.sessions())).await;
    }

    async fn sessions(mut self) {
        let mut hand = None;
        loop {
            self.ticket.session += 1;
            let begin = self.open(&mut hand).await;
            self.context
                .send(Command::Begin(self.ticket.clone(), begin))
                .await;
            let Some(pause) = Session::new(&mut self, &mut hand).run().await else {
                return;
            };
            self.stay_away(pause, &mut hand).await;
        }
    }

    async fn stay_away(&mut self, pause: Pause, hand: &mut Option<Hand>) {
        match pause {
            Pause::None => self.resets = Backoff::new(PAUSE_MAX),
            Pause::Frozen => {
                self.metrics.set_frozen(true);
                let (pause, _) = self.resets.failed(rand::random());
                tokio::time::sleep(pause).await;
            }
            Pause::Off(time) => {
                self.metrics.set_frozen(true);
                tokio::time::sleep(time).await;
                // Whoever wins from here on, it is as a new writer.
                *hand = None;
                self.metrics.set_frozen(false);
            }
        }
    }

    /// Tries until the partition can be read.
    async fn open(&mut self, hand: &mut Option<Hand>) -> Begin {
        let mut backoff = Backoff::new(PAUSE_MAX);
        loop {
            let error = match self.try_open(hand).await {
                Ok(begin) => return begin,
                Err(error) => error,
            };
            if error.freezes() {
                self.metrics.set_frozen(true);
                *hand = None;
            }
            let (pause, log) = backoff.failed(rand::random());
            self.context.metrics.retries.inc();
            if log {
                tracing::warn!(
                    topic = &*self.ticket.topic,
                    partition = self.ticket.partition,
                    error = &error as &dyn Error,
                    frozen = error.freezes(),
                    ?pause,
                    "the partition can't be opened, will retry"
                );
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_open(&mut self, hand: &mut Option<Hand>) -> Result<Begin, OpenError> {
        let (topic, partition) = (Arc::clone(&self.ticket.topic), self.ticket.partition);
        loop {
            let (live_start, high_watermark) =
                self.context.cluster.watermarks(&topic, partition).await?;
            // Asked after the watermarks: if it is still the incarnation of the hand, they were this incarnation's.
            let id = self
                .context
                .cluster
                .incarnation(&topic, &BTreeSet::new())
                .await?
                .ok_or(OpenError::NoTopic)?;
            let incarnation = Incarnation {
                cluster: self.context.cluster_id.clone(),
                topic_id: id,
            };
            if hand
                .as_ref()
                .is_none_or(|hand| hand.identity.incarnation != incarnation)
            {
                *hand = Some(self.hand(incarnation).await?);
                // These watermarks may be the old topic's: they are asked for again, between two sights of the same id.
                continue;
            }
            let Some(hand) = hand.as_mut() else { continue };
            let next = hand.writer.next_offset();
            let last_record = match hand.writer.snapshot() {
                Some(snapshot) => last_record(&self.context.archive, snapshot).await?,
                None => None,
            };
            match start(&StartView {
                next,
                last_record,
                live_start,
                high_watermark,
            }) {
                Start::Fetch {
                    last_record,
                    covered_from,
                } => {
                    return Ok(Begin {
                        topic_id: id,
                        last_record,
                        covered_from,
                        high_watermark,
                    });
                }
                Start::BeyondEnd {
                    next,
                    high_watermark,
                } => {
                    return Err(OpenError::Truncated {
                        next,
                        high_watermark,
                    });
                }
                Start::Hole(range) => {
                    tracing::error!(
                        topic = &*topic,
                        partition,
                        %range,
                        "the cluster has let go of records before they were archived, recording a hole"
                    );
                    append(&self.context, &self.ticket, hand, vec![hole(range)]).await?;
                    self.context.metrics.holes.inc();
                    self.context
                        .metrics
                        .hole_offsets
                        .inc_by(range.offset_count());
                }
            }
        }
    }

    async fn hand(&self, incarnation: Incarnation) -> Result<Hand, OpenError> {
        let invalid = |error: &dyn Error| OpenError::Name(error.to_string());
        let topic = TopicName::new(&self.ticket.topic).map_err(|error| invalid(&error))?;
        let partition = Partition::new(self.ticket.partition)
            .ok_or_else(|| OpenError::Name("a negative partition number".to_owned()))?;
        let archive = &self.context.archive;
        let info = match archive.topic(&incarnation).await? {
            Some(info) => info,
            None => {
                let facts = self.context.facts.topic(&self.ticket.topic);
                let info = TopicInfo {
                    incarnation: incarnation.clone(),
                    name: topic.clone(),
                    partition_count: facts
                        .partition_count
                        .max(self.ticket.partition.unsigned_abs() + 1),
                    configs: facts.configs.all,
                };
                archive.register_topic(&info).await?;
                // Another archiver may have registered it first, under another name even: names are aliases.
                archive.topic(&incarnation).await?.unwrap_or(info)
            }
        };
        let key = PartitionKey {
            incarnation: incarnation.clone(),
            partition,
        };
        let writer = archive.writer(&key).await?;
        Ok(Hand {
            identity: Identity {
                incarnation,
                topic,
                partition,
            },
            topic: info,
            writer,
        })
    }
}

/// The last archived record; `None` if there is none, or none with an epoch.
async fn last_record(archive: &Archive, snapshot: &Snapshot) -> Result<Option<Known>, OpenError> {
    let Some(covered) = snapshot.covered() else {
        return Ok(None);
    };
    let mut at = covered.end();
    for _ in 0..LAST_RECORD_ENTRIES_MAX {
        let Ok(before) = Offset::new(at.get() - 1) else {
            return Ok(None);
        };
        let Lookup::Covered(entry) = snapshot.lookup(before).await? else {
            return Ok(None);
        };
        if let EntryKind::Data(data) = &entry.kind {
            // An unknown epoch is written as -1.
            let Some(last) = data.epochs.last().filter(|last| 0 <= last.epoch) else {
                return Ok(None);
            };
            let offset = last_offset(archive, snapshot, &entry.range, data).await?;
            return Ok(offset.map(|offset| Known {
                offset,
                epoch: last.epoch,
            }));
        }
        at = entry.range.start();
    }
    Ok(None)
}

async fn last_offset(
    archive: &Archive,
    snapshot: &Snapshot,
    range: &everlog_format::OffsetRange,
    data: &DataEntry,
) -> Result<Option<Offset>, OpenError> {
    let key = snapshot.segment_key(*range, data);
    let footer_start = data.bytes.saturating_sub(u64::from(data.footer_len));
    let tail = match archive
        .store()
        .get_range(&key, footer_start..data.bytes)
        .await
    {
        Ok(tail) => tail,
        Err(error @ StoreError::NotFound { .. }) => {
            tracing::error!(%key, error = &error as &dyn Error, "a segment that a commit names is missing");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match Segment::parse(&tail, data.bytes) {
        Ok(segment) => Ok(segment.row_groups().last().map(|group| group.last_offset)),
        Err(error) => {
            tracing::error!(%key, error = &error as &dyn Error, "a segment's footer is damaged");
            Ok(None)
        }
    }
}

/// Why a session ends from the worker's side.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Commit(#[from] Failure),
    #[error("a thread of this process ended unexpectedly")]
    Died,
}

struct Session<'a> {
    worker: &'a mut Worker,
    hand_slot: &'a mut Option<Hand>,
    identity: Option<Identity>,
    open: Option<OpenFile>,
    day_before: Option<Day>,
    committing: JoinSet<(Hand, Result<(), Failure>)>,
    failed: bool,
}

impl<'a> Session<'a> {
    fn new(worker: &'a mut Worker, hand_slot: &'a mut Option<Hand>) -> Session<'a> {
        let identity = hand_slot.as_ref().map(|hand| hand.identity.clone());
        let day_before = hand_slot.as_ref().and_then(|hand| hand.writer.last_day());
        Session {
            worker,
            hand_slot,
            identity,
            open: None,
            day_before,
            committing: JoinSet::new(),
            failed: false,
        }
    }

    /// Works until a reset; `None` when there will be no more work.
    async fn run(mut self) -> Option<Pause> {
        loop {
            tokio::select! {
                biased;
                Some(done) = self.committing.join_next() => self.committed(done).await,
                work = self.worker.work.recv() => match work? {
                    Work::Reset(pause) => {
                        // The hand has to come back, and what is being committed is beyond doubt.
                        while let Some(done) = self.committing.join_next().await {
                            self.failed = true;
                            self.committed(done).await;
                        }
                        return Some(pause);
                    }
                    Work::Leave(cut) => {
                        self.leave(cut).await;
                        return None;
                    }
                    _ if self.failed => {}
                    Work::Burst { start, burst, ends_row_group, meter } => {
                        if let Err(error) = self.burst(start, burst, ends_row_group, meter).await {
                            self.fail(error).await;
                        }
                    }
                    Work::Cut(cut) => {
                        if let Err(error) = self.cut(cut).await {
                            self.fail(error).await;
                        }
                    }
                },
            }
        }
    }

    /// The partition is no longer ours. If its topic is gone, nobody else can read what we have: then it is committed as
    /// far as the rules allow.
    async fn leave(&mut self, cut: Option<CutWork>) {
        let ours = self
            .identity
            .as_ref()
            .map(|identity| identity.incarnation.topic_id);
        let (context, ticket) = (Arc::clone(&self.worker.context), self.worker.ticket.clone());
        if !topic_is_gone(&context, &ticket, ours).await {
            return;
        }
        if let Some(cut) = cut
            && !self.failed
            && let Err(error) = self.cut(cut).await
        {
            self.fail(error).await;
        }
        while let Some(done) = self.committing.join_next().await {
            self.committed(done).await;
        }
    }

    async fn burst(
        &mut self,
        start: Offset,
        burst: Burst,
        ends_row_group: bool,
        meter: Arc<SegmentMeter>,
    ) -> Result<(), SessionError> {
        if burst.is_empty() {
            return Ok(());
        }
        let identity = self.identity.clone().ok_or(SessionError::Died)?;
        let context = Arc::clone(&self.worker.context);
        let permit = Arc::clone(&context.encoders)
            .acquire_owned()
            .await
            .map_err(|_| SessionError::Died)?;
        let (open, day_before) = (self.open.take(), self.day_before);
        let encoded = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let new = NewFile {
                dir: &context.spool,
                identity,
                start,
                day_before,
                gauge: &context.memory.writers,
            };
            OpenFile::add(open, &new, burst, ends_row_group, &meter)
        });
        self.open = encoded.await.map_err(|_| SessionError::Died)??;
        Ok(())
    }

    async fn cut(&mut self, cut: CutWork) -> Result<(), SessionError> {
        let file = match self.open.take() {
            None => None,
            Some(open) => {
                self.day_before = Some(open.day);
                let encoders = Arc::clone(&self.worker.context.encoders);
                let permit = encoders
                    .acquire_owned()
                    .await
                    .map_err(|_| SessionError::Died)?;
                let end = cut.range.end();
                let finished = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    open.finish(end)
                });
                let finished = finished.await.map_err(|_| SessionError::Died)??;
                Some(Arc::new(finished))
            }
        };
        while let Some(done) = self.committing.join_next().await {
            self.committed(done).await;
        }
        if self.failed {
            return Ok(());
        }
        let hand = self.hand_slot.take().ok_or(SessionError::Died)?;
        let (context, ticket) = (Arc::clone(&self.worker.context), self.worker.ticket.clone());
        self.committing
            .spawn(commit(context, ticket, hand, Job { cut, file }));
        Ok(())
    }

    async fn committed(
        &mut self,
        done: Result<(Hand, Result<(), Failure>), tokio::task::JoinError>,
    ) {
        match done {
            Ok((hand, Ok(()))) => {
                *self.hand_slot = Some(hand);
                self.worker.resets = Backoff::new(PAUSE_MAX);
            }
            Ok((hand, Err(failure))) => {
                *self.hand_slot = Some(hand);
                self.fail(failure.into()).await;
            }
            Err(_) => self.fail(SessionError::Died).await,
        }
    }

    /// Asks for a reset, once.
    async fn fail(&mut self, error: SessionError) {
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        let ticket = &self.worker.ticket;
        let pause = match &error {
            SessionError::Commit(Failure::Lost | Failure::OtherIncarnation) => Pause::None,
            SessionError::Commit(Failure::Contended) => {
                self.worker.metrics.contended.inc();
                Pause::Off(CONTENDED_PAUSE)
            }
            _ => Pause::Frozen,
        };
        tracing::warn!(
            topic = &*ticket.topic,
            partition = ticket.partition,
            error = &error as &dyn Error,
            ?pause,
            "what is not committed is dropped and read again from the cluster"
        );
        self.worker
            .context
            .send(Command::Failed(ticket.clone(), pause))
            .await;
    }
}

/// Whether the topic is no longer the incarnation `ours`; asks until the cluster answers.
async fn topic_is_gone(context: &Context, ticket: &Ticket, ours: Option<TopicId>) -> bool {
    let (mut backoff, what) = (Backoff::new(PAUSE_MAX), "asking for the topic's id");
    loop {
        let all = BTreeSet::new();
        let asked = context.cluster.incarnation(&ticket.topic, &all).await;
        match asked {
            Ok(id) => return id != ours,
            Err(error) => wait(context, ticket, &mut backoff, what, &error).await,
        }
    }
}

/// How long a partition that another archiver holds is left alone.
const CONTENDED_PAUSE: std::time::Duration = std::time::Duration::from_secs(60);
