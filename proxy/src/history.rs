//! The archive as the proxy sees it: is there a chain for this partition, and the records in it, always with a deadline.
//!
//! Whether a client may read them is not decided here: `api::k01_fetch` has the broker's word for it first.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use everlog_format::{
    Offset, OffsetRange, PartitionKey, TopicSelection, empty_batch, is_compacted,
};
use everlog_index::{Archive, Freshness, HoleReason, Snapshot};
use futures::FutureExt;
use futures::stream::{self, StreamExt};
use kafka_protocol::messages::TopicName;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{error, warn};

use crate::OnHole;
use crate::errors::HistoryError;
use crate::metrics::Metrics;
use crate::replay::{AbsenceCause, Replay, ReplayError, Slice, TimestampHit};
use crate::told::{Subject, Told};

/// The longest that one look into the index may hold up a request. It goes on behind it.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Partitions of one request that are looked up at the same time.
const LOOKS_MAX: usize = 32;

/// A partition whose archive is looked for.
#[derive(Clone, Debug)]
pub(crate) struct Sought {
    /// What its topic is called, for those who read of trouble.
    pub(crate) topic: TopicName,
    pub(crate) key: PartitionKey,
}

/// What is known of one partition's archive.
#[derive(Clone, Debug)]
pub(crate) enum Chain {
    /// The archive has nothing of it, or the operator left it out.
    None,
    /// Its newest known commit.
    Known(Arc<Snapshot>),
    /// The archive did not say. Only the cluster can be asked, and its OFFSET_OUT_OF_RANGE means nothing. The error was counted
    /// and told when it came.
    Unknown(HistoryError),
}

impl Chain {
    /// The commit, if one is known.
    pub(crate) fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        match self {
            Chain::Known(snapshot) => Some(snapshot),
            Chain::None | Chain::Unknown(_) => None,
        }
    }
}

/// Whole batches on their way to a client.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(crate) records: Vec<Bytes>,
    pub(crate) bytes: usize,
}

/// Shared by all connections.
#[derive(Debug)]
pub(crate) struct History {
    archive: Arc<Archive>,
    replay: Arc<Replay>,
    topics: TopicSelection,
    on_hole: OnHole,
    metrics: Arc<Metrics>,
    told: Mutex<Told>,
}

impl History {
    pub(crate) fn new(
        archive: Arc<Archive>,
        replay: Arc<Replay>,
        topics: TopicSelection,
        on_hole: OnHole,
        metrics: Arc<Metrics>,
    ) -> History {
        History {
            archive,
            replay,
            topics,
            on_hole,
            metrics,
            told: Mutex::default(),
        }
    }

    /// Whether this topic may be served from the archive, as far as its name tells.
    pub(crate) fn selects(&self, topic: &str) -> bool {
        self.topics.matches(topic, false)
    }

    /// Whether a read waits for memory that the responses to others hold.
    pub(crate) fn is_memory_awaited(&self) -> bool {
        self.replay.is_memory_awaited()
    }

    /// The chain of each partition, in order, all within `limit` (as [`History::chain`] at most): what is not known by
    /// then is [`Chain::Unknown`]. One after the other, a hundred partitions would take a hundred times as long as one
    /// while the store is away, and no client waits for that.
    pub(crate) async fn chains(
        &self,
        sought: Vec<Option<Sought>>,
        freshness: Freshness,
        limit: Duration,
    ) -> Vec<Chain> {
        let until = Instant::now() + limit.min(LOOK_MAX);
        let chain = |sought: Option<Sought>| async move {
            match sought {
                Some(Sought { topic, key }) => self.chain(&topic, &key, freshness, until).await,
                None => Chain::None,
            }
        };
        stream::iter(sought)
            .map(chain)
            .buffered(LOOKS_MAX)
            .collect()
            .await
    }

    /// The newest commit of a partition whose topic is selected by name.
    async fn chain(
        &self,
        topic: &str,
        key: &PartitionKey,
        freshness: Freshness,
        until: Instant,
    ) -> Chain {
        match self.look(key, freshness, until).await {
            Ok(Some(snapshot)) if self.serves(&snapshot) => Chain::Known(snapshot),
            Ok(_) => Chain::None,
            Err(error) => Chain::Unknown(self.failed(topic, key.partition.get(), error)),
        }
    }

    async fn look(
        &self,
        key: &PartitionKey,
        freshness: Freshness,
        until: Instant,
    ) -> Result<Option<Arc<Snapshot>>, HistoryError> {
        let (archive, key) = (Arc::clone(&self.archive), key.clone());
        let mut look = Box::pin(async move { archive.snapshot(&key, freshness).await });
        let looked = match (&mut look).now_or_never() {
            Some(looked) => looked,
            None if until <= Instant::now() => return Err(HistoryError::Slow),
            // Spawned, so that a look that takes longer than this request may wait helps the next one.
            None => match timeout_at(until, tokio::spawn(look)).await {
                Ok(Ok(looked)) => looked,
                Ok(Err(_)) | Err(_) => return Err(HistoryError::Slow),
            },
        };
        looked.map_err(|error| HistoryError::Index(Arc::new(error)))
    }

    /// A compacted topic needs its plain name: its archive holds values that the topic itself has let go of.
    fn serves(&self, snapshot: &Snapshot) -> bool {
        let topic = snapshot.topic();
        let compacted = topic
            .configs
            .get("cleanup.policy")
            .is_some_and(|policy| is_compacted(policy));
        snapshot.covered().is_some() && self.topics.matches(topic.name.as_str(), compacted)
    }

    /// Whole batches from `from` on. Past a hole only if the operator said so.
    pub(crate) async fn read(
        &self,
        snapshot: &Arc<Snapshot>,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Piece, HistoryError> {
        let read = match self.replay.read(snapshot, from, max_bytes).await {
            // Replaced by a newer commit, or pruned with it: the newest one knows where it went.
            Err(ReplayError::Missing { .. } | ReplayError::NotCovered { .. }) => {
                let (topic, until) = (snapshot.topic().name.as_str(), Instant::now() + LOOK_MAX);
                let newest = Freshness::Within(Duration::ZERO);
                match self.chain(topic, snapshot.key(), newest, until).await {
                    Chain::Known(newer) => self.finish(&newer, from, max_bytes).await,
                    Chain::None => Err(HistoryError::NotYet),
                    Chain::Unknown(error) => return Err(error),
                }
            }
            Ok(slice) => self.past_holes(snapshot, from, max_bytes, slice).await,
            Err(error) => Err(error.into()),
        };
        read.map_err(|error| self.failed_on(snapshot, error))
    }

    async fn finish(
        &self,
        snapshot: &Arc<Snapshot>,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Piece, HistoryError> {
        let slice = self.replay.read(snapshot, from, max_bytes).await?;
        self.past_holes(snapshot, from, max_bytes, slice).await
    }

    async fn past_holes(
        &self,
        snapshot: &Arc<Snapshot>,
        from: Offset,
        max_bytes: usize,
        slice: Slice,
    ) -> Result<Piece, HistoryError> {
        let Some(absence) = slice.at_hole.filter(|_| slice.records.is_empty()) else {
            return Ok(Piece {
                records: slice.records,
                bytes: slice.bytes,
            });
        };
        if let AbsenceCause::Lost(reason) = absence.cause {
            self.metrics.holes_met.inc();
            let (topic, partition) = (snapshot.topic().name.as_str(), snapshot.key().partition);
            if self.is_due(topic, partition.get(), &HistoryError::Hole) {
                self.log_hole(snapshot, absence.range, reason);
            }
            if self.on_hole == OnHole::Fail {
                return Err(HistoryError::Hole);
            }
        }
        // A batch without records takes the client's position across. Behind it the next records, where they can be
        // had: a client that moves by records alone would crawl otherwise.
        let last = Offset::new(absence.range.end().get() - 1).unwrap_or(from);
        let bridge = Bytes::from(empty_batch(from, last, -1));
        let mut piece = Piece {
            bytes: bridge.len(),
            records: vec![bridge],
        };
        if snapshot
            .covered()
            .is_some_and(|covered| covered.contains(absence.range.end()))
        {
            let behind = self
                .replay
                .read(snapshot, absence.range.end(), max_bytes)
                .await?;
            piece.bytes += behind.bytes;
            piece.records.extend(behind.records);
        }
        Ok(piece)
    }

    fn log_hole(&self, snapshot: &Snapshot, range: OffsetRange, reason: HoleReason) {
        let (topic, partition) = (snapshot.topic().name.as_str(), snapshot.key().partition);
        let topic_id = &snapshot.key().incarnation.topic_id;
        match self.on_hole {
            OnHole::Fail => error!(
                topic, %partition, %range, ?reason, %topic_id,
                "a client asked for records that are lost: it gets an error and stops here, until `on_hole = \"skip\"` \
                 lets clients go on behind the hole"
            ),
            OnHole::Skip => warn!(
                topic, %partition, %range, ?reason, %topic_id,
                "a client skips records that are lost, because of `on_hole = \"skip\"`"
            ),
        }
    }

    /// As [`Replay::offset_for_timestamp`], within `limit`.
    pub(crate) async fn offset_for_timestamp(
        &self,
        snapshot: &Arc<Snapshot>,
        timestamp_ms: i64,
        limit: Duration,
    ) -> Result<Option<TimestampHit>, HistoryError> {
        let read = self.replay.offset_for_timestamp(snapshot, timestamp_ms);
        self.within(snapshot, limit, read).await
    }

    /// As [`Replay::max_timestamp`], within `limit`.
    pub(crate) async fn max_timestamp(
        &self,
        snapshot: &Arc<Snapshot>,
        limit: Duration,
    ) -> Result<Option<TimestampHit>, HistoryError> {
        self.within(snapshot, limit, self.replay.max_timestamp(snapshot))
            .await
    }

    /// As [`Replay::epoch_at`], within `limit`.
    pub(crate) async fn epoch_at(
        &self,
        snapshot: &Arc<Snapshot>,
        offset: Offset,
        limit: Duration,
    ) -> Result<Option<i32>, HistoryError> {
        self.within(snapshot, limit, self.replay.epoch_at(snapshot, offset))
            .await
    }

    async fn within<T>(
        &self,
        snapshot: &Snapshot,
        limit: Duration,
        read: impl Future<Output = Result<T, ReplayError>>,
    ) -> Result<T, HistoryError> {
        let read = timeout(limit, read).await.map_err(|_| HistoryError::Slow);
        read.and_then(|read| read.map_err(HistoryError::from))
            .map_err(|error| self.failed_on(snapshot, error))
    }

    fn is_due(&self, topic: &str, partition: i32, error: &HistoryError) -> bool {
        let subject = Subject {
            topic: topic.to_owned(),
            partition,
        };
        // What was told is whole at any time, also after a panic elsewhere.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.is_due(error.label(), &subject, error.passes(), Instant::now())
    }

    fn failed_on(&self, snapshot: &Snapshot, error: HistoryError) -> HistoryError {
        let (topic, partition) = (snapshot.topic().name.as_str(), snapshot.key().partition);
        self.failed(topic, partition.get(), error)
    }

    /// Counts a failure, and logs it unless it was logged just now. Once for each: what a [`Chain::Unknown`] holds has been
    /// here.
    pub(crate) fn failed(&self, topic: &str, partition: i32, error: HistoryError) -> HistoryError {
        self.metrics
            .archive_failures
            .with_label_values(&[error.label()])
            .inc();
        // A hole was told where it was met.
        if matches!(error, HistoryError::Hole) || !self.is_due(topic, partition, &error) {
            return error;
        }
        let cause = &error as &dyn Error;
        if error.is_absence() {
            error!(
                topic,
                partition,
                error = cause,
                "an object that the archive's newest commit names is not there: this copy of the archive is behind, or the object \
                 was deleted and its records with it. Clients wait and ask again; `everlog verify` tells how far it reaches"
            );
        } else if error.passes() {
            warn!(
                topic,
                partition,
                error = cause,
                "a request met trouble in the archive, its client will ask again"
            );
        } else if error.may_pass() {
            error!(
                topic,
                partition,
                error = cause,
                "the archive can't be read until somebody mends it: clients wait and ask again meanwhile"
            );
        } else {
            error!(
                topic,
                partition,
                error = cause,
                "archived records are damaged: a client that asks for them gets CORRUPT_MESSAGE and goes no further; `everlog verify` \
                 tells how far it reaches"
            );
        }
        error
    }
}
