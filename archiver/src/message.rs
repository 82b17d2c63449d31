//! What the consumer's thread and the partitions' workers tell each other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use everlog_format::{Offset, OffsetRange, TopicId};

use crate::decide::Cut;
use crate::spool::Burst;

/// One assignment of one partition. A partition that is taken and given again gets another `assignment`, and each
/// time its worker opens it anew another `session`: news of an older one are recognised and dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) assignment: u64,
    pub(crate) session: u64,
}

/// To the consumer's thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// The topics to archive.
    Subscribe(Vec<String>),
    /// The ids of topics as the cluster has shown them just now.
    Incarnations(Vec<(String, TopicId)>),
    /// The archive has said where to go on: fetch.
    Begin(Ticket, Begin),
    /// Everything below the offset is archived.
    Committed(Ticket, Offset),
    /// The partition can't go on in this session; drop what is open and send [`Work::Reset`].
    Failed(Ticket, Pause),
    /// Cut, commit what can be committed in bounded time, and end.
    Stop,
}

/// Where and what to fetch.
#[derive(Clone, Debug)]
pub(crate) struct Begin {
    pub(crate) topic_id: TopicId,
    pub(crate) fetch_from: Offset,
    pub(crate) epoch: Option<i32>,
    pub(crate) covered_from: Offset,
    pub(crate) high_watermark: Offset,
}

/// How long to stay away from a partition, and whether that is trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// Go on at once: nothing is wrong.
    None,
    /// Frozen, with growing pauses, until a delivery shows that the trouble is over.
    Frozen,
    /// Another archiver holds it: stay off for this long.
    Off(Duration),
}

/// To a partition's worker, in the order of the partition's offsets.
#[derive(Debug)]
pub(crate) enum Work {
    /// Records of the open segment, which covers offsets from `start` on.
    Burst {
        start: Offset,
        burst: Burst,
        ends_row_group: bool,
        meter: Arc<SegmentMeter>,
    },
    /// The open segment ends.
    Cut(CutWork),
    /// Forget the open segment and open the partition anew.
    Reset(Pause),
}

/// The end of a segment.
#[derive(Debug)]
pub(crate) struct CutWork {
    pub(crate) range: OffsetRange,
    pub(crate) why: Cut,
    /// The brokers that served the records.
    pub(crate) served: BTreeSet<i32>,
    /// The consumer was refused the next offset. Only if that is because the live start lies above is what came
    /// before beyond doubt.
    pub(crate) doubtful: bool,
}

/// How large an open segment has become; written by its encoder, read by the consumer's thread.
#[derive(Debug, Default)]
pub(crate) struct SegmentMeter {
    encoded: AtomicU64,
    packed: AtomicU64,
}

impl SegmentMeter {
    /// `packed` bytes of records have become a file of `encoded` bytes (what its writer still holds included).
    pub(crate) fn set(&self, encoded: u64, packed: u64) {
        self.encoded.store(encoded, Ordering::Relaxed);
        self.packed.store(packed, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> (u64, u64) {
        (
            self.encoded.load(Ordering::Relaxed),
            self.packed.load(Ordering::Relaxed),
        )
    }
}
