//! Archived records on their way to a client: segments in, runs of whole record batches out.
//!
//! [`Replay::read`] answers one partition of one fetch. It does not know the wire protocol, the cluster or the seam;
//! what to do at a hole or with an error is the fetch path's business. Neighbours: `everlog-index` says which segment
//! covers an offset, `everlog-format` decodes it.

mod budget;
mod cache;
mod error;
mod footers;
mod gather;
mod group;
mod job;
mod metrics;
mod times;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use everlog_format::{Offset, OffsetRange};
use everlog_index::{Archive, HoleReason, Snapshot};
use prometheus::Registry;

use cache::Cache;
use gather::check_covered;

pub use error::ReplayError;

/// Reads archived records for every connection of the process.
#[derive(Debug)]
pub struct Replay {
    cache: Arc<Cache>,
}

/// The state of the memory budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Cached, in flight and in responses, in bytes.
    pub held_bytes: u64,
    /// The most that `held_bytes` has ever been.
    pub peak_bytes: u64,
}

/// Whole record batches of one partition, and where the next ones are.
#[derive(Clone)]
pub struct Slice {
    /// Runs of whole batches, to be concatenated. Empty only if `at_hole` is set and the asked offset lies in it.
    /// Holding them holds room in the memory budget: send them, then drop them.
    pub records: Vec<Bytes>,
    /// The sum of the lengths of `records`.
    pub bytes: usize,
    /// The offset that a client will ask for next: one behind the last offset that the batches cover. Equal to the
    /// asked offset if `records` is empty.
    pub next: Offset,
    /// Set if `next` lies in a hole: nothing follows but what the hole's policy says.
    pub at_hole: Option<Absence>,
}

/// Without the records: they are not ours to print.
impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slice")
            .field("bytes", &self.bytes)
            .field("next", &self.next)
            .field("at_hole", &self.at_hole)
            .finish_non_exhaustive()
    }
}

/// A covered range without its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absence {
    /// The whole range that is gone, as the commit names it.
    pub range: OffsetRange,
    /// Why.
    pub cause: AbsenceCause,
}

/// Why a covered range can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsenceCause {
    /// A hole: lost before it could be archived. `on_hole` decides, with an alarm.
    Lost(HoleReason),
    /// Was archived and removed on purpose.
    Expired,
}

/// A record found by its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampHit {
    /// Where it is.
    pub offset: Offset,
    /// Its own timestamp in ms.
    pub timestamp_ms: i64,
    /// The epoch it carries, `None` if unknown (-1 on the wire).
    pub leader_epoch: Option<i32>,
}

impl Replay {
    /// `memory_bytes` bounds everything that is kept and in flight here: footers, row groups as stored, batches, also
    /// those that a response still holds. `budget` names the slack.
    pub fn new(archive: Arc<Archive>, memory_bytes: u64, registry: &Registry) -> Arc<Replay> {
        Arc::new(Replay {
            cache: Arc::new(Cache::new(archive, memory_bytes, registry)),
        })
    }

    /// Whole batches from the one that holds `from` (or the first behind it), up to `max_bytes` but at least one.
    ///
    /// Ends at a hole and at the archived end; the last batch before either reaches up to it, and an offset behind the
    /// last record gets a batch without records that does. May return less than `max_bytes` although there is more: ask
    /// again at `next`. Waits as long as the store does, and for room in the memory budget: give it a deadline. What
    /// was begun goes on when the future is dropped, so the next call finds it done.
    pub async fn read(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Slice, ReplayError> {
        check_covered(snapshot.covered(), from)?;
        let _timer = self.cache.metrics.read_seconds.start_timer();
        let work =
            tokio::spawn(Arc::clone(&self.cache).gather(Arc::clone(snapshot), from, max_bytes));
        let found = work
            .await
            .unwrap_or_else(|stopped| Err(ReplayError::interrupted("a read", stopped)))?;
        let group = found.group.clone();
        let slice = found.into_slice(&self.cache);
        let goes_on = self.cache.held().goes_on(snapshot.key(), from, slice.next);
        if let Some(group) = group {
            self.cache.read_ahead(snapshot, &group, slice.next, goes_on);
        }
        Ok(slice)
    }

    /// The lowest offset whose record has a timestamp at or above `timestamp_ms`; `None` if no archived record has.
    pub async fn offset_for_timestamp(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        timestamp_ms: i64,
    ) -> Result<Option<TimestampHit>, ReplayError> {
        let (cache, snapshot) = (Arc::clone(&self.cache), Arc::clone(snapshot));
        let work =
            tokio::spawn(async move { cache.offset_for_timestamp(&snapshot, timestamp_ms).await });
        work.await
            .unwrap_or_else(|stopped| Err(ReplayError::interrupted("a look-up by time", stopped)))
    }

    /// The first record with the largest timestamp; `None` if the archive holds no record.
    pub async fn max_timestamp(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Option<TimestampHit>, ReplayError> {
        let (cache, snapshot) = (Arc::clone(&self.cache), Arc::clone(snapshot));
        let work = tokio::spawn(async move { cache.max_timestamp(&snapshot).await });
        work.await
            .unwrap_or_else(|stopped| Err(ReplayError::interrupted("a look-up by time", stopped)))
    }

    /// The epoch of the last archived record at or before `offset`, or of the first one if all lie behind; read from
    /// the tree alone. `None` if it is not known (-1 on the wire: clients then skip validation).
    pub async fn epoch_at(
        &self,
        snapshot: &Arc<Snapshot>,
        offset: Offset,
    ) -> Result<Option<i32>, ReplayError> {
        self.cache.epoch(snapshot, offset).await
    }

    /// Whether a read waits for memory that the slices of others hold.
    pub fn is_memory_awaited(&self) -> bool {
        self.cache.budget.is_held_up_by_batches()
    }

    /// How much of the budget is held now and was held at most, in bytes.
    pub fn memory(&self) -> MemoryUse {
        MemoryUse {
            held_bytes: self.cache.budget.held(),
            peak_bytes: self.cache.budget.peak(),
        }
    }
}
