//! One partition's worker: opens the archive's side, and starts over when something is wrong.
//!
//! A session (`session`) runs from [`Command::Begin`] to [`Work::Reset`]. Segments are encoded while the one before is uploaded and
//! committed; more than these two there never are. The worker ends when its partition is taken away; a commit that is
//! under way then may or may not happen, which the next holder finds out by reading the chain.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use everlog_format::{ClusterId, Incarnation, Offset, Partition, PartitionKey, Segment, TopicName};
use everlog_index::{Archive, DataEntry, EntryKind, IndexError, Lookup, Snapshot, TopicInfo};
use everlog_store::StoreError;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, ClusterError};
use crate::commit::{Failure, Hand, PAUSE_MAX, append, hole};
use crate::decide::{Backoff, Known, Start, StartView, start};
use crate::encode::Identity;
use crate::memory::Memory;
use crate::message::{Begin, Command, Pause, Standing, Ticket, Work};
use crate::metrics::{Metrics, PartitionMetrics};
use crate::session::Session;
use crate::spool::SpoolDir;
use crate::watch::Facts;

/// How far back the last record is looked for behind entries without one.
const LAST_RECORD_ENTRIES_MAX: usize = 64;

/// How often the cluster is asked where a partition ends that is not read.
const MEASURE_EVERY: Duration = Duration::from_secs(15);
/// How many of these questions may be under way.
pub(crate) const QUESTIONS_MAX: usize = 4;

/// What all workers share.
pub(crate) struct Context {
    /// Permits to ask for what only metrics need.
    pub(crate) questions: Semaphore,
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
    #[error("the topic does not have this partition at the moment")]
    NoPartition,
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
            OpenError::Cluster(_)
            | OpenError::Store(_)
            | OpenError::NoTopic
            | OpenError::NoPartition => false,
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
    pub(crate) context: Arc<Context>,
    pub(crate) ticket: Ticket,
    pub(crate) work: mpsc::Receiver<Work>,
    pub(crate) metrics: Arc<PartitionMetrics>,
    /// Cancelled once there is nothing to open any more.
    left: CancellationToken,
    /// Of sessions that ended in trouble.
    pub(crate) resets: Backoff,
}

impl Worker {
    pub(crate) fn new(
        context: Arc<Context>,
        ticket: Ticket,
        work: mpsc::Receiver<Work>,
        metrics: Arc<PartitionMetrics>,
        left: CancellationToken,
    ) -> Worker {
        Worker {
            context,
            ticket,
            work,
            metrics,
            left,
            resets: Backoff::new(PAUSE_MAX),
        }
    }

    /// Works until `taken` is cancelled.
    pub(crate) async fn run(self, taken: CancellationToken) {
        let measured = measure(
            Arc::clone(&self.context),
            self.ticket.clone(),
            Arc::clone(&self.metrics),
        );
        let work = Box::pin(async {
            tokio::select! {
                () = self.sessions() => {}
                () = measured => {}
            }
        });
        let _ = taken.run_until_cancelled(work).await;
    }

    async fn sessions(mut self) {
        let mut hand = None;
        let left = self.left.clone();
        loop {
            self.ticket.session += 1;
            let opened = left.run_until_cancelled(self.open(&mut hand)).await;
            let Some(begin) = opened else { return };
            self.context
                .send(Command::Begin(self.ticket.clone(), begin))
                .await;
            let Some(pause) = Session::new(&mut self, &mut hand).run().await else {
                return;
            };
            let settled = Command::Settled(self.ticket.clone());
            self.context.send(settled).await;
            let waited = left.run_until_cancelled(self.stay_away(pause, &mut hand));
            if waited.await.is_none() {
                return;
            }
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
            let mut standing = None;
            let error = match self.try_open(hand, &mut standing).await {
                Ok(begin) => return begin,
                Err(error) => error,
            };
            if let Some(standing) = standing {
                let stands = Command::Stands(self.ticket.clone(), standing);
                self.context.send(stands).await;
            }
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

    /// Where the partition begins and ends in the cluster, or that it is in none.
    async fn watermarks(&self) -> Result<(Offset, Offset), OpenError> {
        let (topic, partition) = (&*self.ticket.topic, self.ticket.partition);
        let cluster = &self.context.cluster;
        let error = match cluster.watermarks(topic, partition).await {
            Ok(watermarks) => return Ok(watermarks),
            Err(error) => error,
        };
        // The group gives a partition back some time after its topic was made anew with fewer.
        if error.is_unknown_partition()
            && let Some(sight) = cluster.incarnation(topic, &BTreeSet::new()).await?
            && sight.partition_count <= partition.unsigned_abs()
        {
            return Err(OpenError::NoPartition);
        }
        Err(error.into())
    }

    async fn try_open(
        &mut self,
        hand: &mut Option<Hand>,
        standing: &mut Option<Standing>,
    ) -> Result<Begin, OpenError> {
        let (topic, partition) = (Arc::clone(&self.ticket.topic), self.ticket.partition);
        loop {
            let (live_start, high_watermark) = self.watermarks().await?;
            let standing = standing.insert(Standing {
                archived_end: None,
                live_start,
                high_watermark,
            });
            // Asked after the watermarks: if it is still the incarnation of the hand, they were this incarnation's.
            let sight = self
                .context
                .cluster
                .incarnation(&topic, &BTreeSet::new())
                .await?
                .ok_or(OpenError::NoTopic)?;
            // One that was deleted and made anew may have fewer.
            if sight.partition_count <= partition.unsigned_abs() {
                return Err(OpenError::NoPartition);
            }
            let incarnation = Incarnation {
                cluster: self.context.cluster_id.clone(),
                topic_id: sight.id,
            };
            if hand
                .as_ref()
                .is_none_or(|hand| hand.identity.incarnation != incarnation)
            {
                *hand = Some(self.hand(incarnation, sight.partition_count).await?);
                // These watermarks may be the old topic's: they are asked for again, between two sights of the same id.
                continue;
            }
            let Some(hand) = hand.as_mut() else { continue };
            let next = hand.writer.next_offset();
            standing.archived_end = next;
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
                        topic_id: sight.id,
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
                        offsets = range.offset_count(),
                        "the cluster has let go of records before they were archived, recording a hole: clients of the \
                         proxy get an error there, or skip it with `on_hole = \"skip\"`"
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

    async fn hand(
        &self,
        incarnation: Incarnation,
        partition_count: u32,
    ) -> Result<Hand, OpenError> {
        let invalid = |error: &dyn Error| OpenError::Name(error.to_string());
        let topic = TopicName::new(&self.ticket.topic).map_err(|error| invalid(&error))?;
        let partition = Partition::new(self.ticket.partition)
            .ok_or_else(|| OpenError::Name("a negative partition number".to_owned()))?;
        let archive = &self.context.archive;
        let info = match archive.topic(&incarnation).await? {
            Some(info) => info,
            None => {
                let info = TopicInfo {
                    incarnation: incarnation.clone(),
                    name: topic.clone(),
                    partition_count,
                    configs: self.context.facts.configs(&self.ticket.topic).all,
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

/// Asks now and then how far the cluster is while the partition is not read: the lag of one that stands still has to
/// grow. Never ends.
async fn measure(context: Arc<Context>, ticket: Ticket, metrics: Arc<PartitionMetrics>) {
    loop {
        tokio::time::sleep(MEASURE_EVERY).await;
        if metrics.is_read() {
            continue;
        }
        // With the cluster away each question holds a thread until its time-out.
        let Ok(_permit) = context.questions.acquire().await else {
            return;
        };
        // An error is no news: opening the partition asks the same, and logs it.
        if let Ok((live_start, high_watermark)) = context
            .cluster
            .watermarks(&ticket.topic, ticket.partition)
            .await
        {
            let standing = Standing {
                archived_end: None,
                live_start,
                high_watermark,
            };
            context
                .send(Command::Stands(ticket.clone(), standing))
                .await;
        }
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
