//! What the consumer's thread and the partitions' workers tell each other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use everlog_format::{Offset, OffsetRange, TopicId};
use tokio::sync::oneshot;

use crate::decide::{Cut, Known};
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
    /// The cluster is about to be asked for topic ids; answered once it is noted how far deliveries have come.
    Mark(oneshot::Sender<()>),
    /// The ids of topics as the cluster has shown them after the last [`Command::Mark`].
    Incarnations(Vec<Seen>),
    /// The archive has said where to go on: fetch.
    Begin(Ticket, Begin),
    /// Everything below the offset is archived.
    Committed(Ticket, Offset),
    /// The partition can't go on in this session; drop what is open and send [`Work::Reset`].
    Failed(Ticket, Pause),
    /// Cut, commit what can be committed in bounded time, and end.
    Stop,
}

/// A topic's id as the cluster has shown it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) topic: String,
    /// `None`: the cluster does not show the topic any more.
    pub(crate) id: Option<TopicId>,
    /// Whether all brokers have shown this one.
    pub(crate) agreed: bool,
}

/// Where and what to fetch.
#[derive(Clone, Debug)]
pub(crate) struct Begin {
    pub(crate) topic_id: TopicId,
    /// The last archived record, which has to come first.
    pub(crate) last_record: Option<Known>,
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
    /// The partition is taken away, and this was not cut yet. Commit it if the topic is gone; then end.
    Leave(Option<CutWork>),
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
    /// How far its session's records are known to be of this incarnation.
    pub(crate) proven: Arc<ProvenEnd>,
}

/// Everything below was delivered before all brokers were asked for the topic's id and showed this incarnation: it may
/// be committed even if the topic is gone by now.
#[derive(Debug)]
pub(crate) struct ProvenEnd(AtomicI64);

impl ProvenEnd {
    pub(crate) fn new(end: Offset) -> ProvenEnd {
        ProvenEnd(AtomicI64::new(end.get()))
    }

    pub(crate) fn raise(&self, end: Offset) {
        self.0.fetch_max(end.get(), Ordering::Relaxed);
    }

    /// The part of `range` below it.
    pub(crate) fn part_of(&self, range: OffsetRange) -> Option<OffsetRange> {
        let end = Offset::new(self.0.load(Ordering::Relaxed)).ok()?;
        OffsetRange::new(range.start(), end.min(range.end()))
    }
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
