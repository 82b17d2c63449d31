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
    /// The topics to archive; answered with whether librdkafka takes them.
    Subscribe(Vec<String>, oneshot::Sender<bool>),
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
    /// The partition's topic is gone: nobody can read again what was fetched. Cut what is open and send
    /// [`Work::Reset`] behind it. Answered once ids that are being asked for can prove no more of the session.
    Gone(Ticket, oneshot::Sender<()>),
    /// The worker has come to [`Work::Reset`]: nothing of the session is on its way any more.
    Settled(Ticket),
    /// Where archive and cluster stood when the partition could not be read.
    Stands(Ticket, Standing),
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

/// Where a partition stands that is not being read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// `None`: the archive can't be asked.
    pub(crate) archived_end: Option<Offset>,
    pub(crate) live_start: Offset,
    pub(crate) high_watermark: Offset,
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
///
/// In the order of what outweighs what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// The partition was taken away, its topic is gone, and this was not cut yet: commit what can be, then end.
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

/// What proves that a session's records are of its incarnation; outlives the session, because the answer may come later.
#[derive(Debug)]
pub(crate) struct Proof {
    pub(crate) topic_id: TopicId,
    /// How far deliveries had come when the cluster was last about to be asked for topic ids.
    pub(crate) marked: Offset,
    pub(crate) end: Arc<ProvenEnd>,
}

impl Proof {
    pub(crate) fn new(topic_id: TopicId, covered_from: Offset) -> Proof {
        Proof {
            topic_id,
            marked: covered_from,
            end: Arc::new(ProvenEnd(AtomicI64::new(covered_from.get()))),
        }
    }

    /// Asked after the mark, all brokers have shown this incarnation.
    pub(crate) fn prove(&self) {
        self.end.0.fetch_max(self.marked.get(), Ordering::Relaxed);
    }
}

/// Everything below was delivered before all brokers were asked for the topic's id and showed this incarnation: it may
/// be committed even if the topic is gone by now.
#[derive(Debug)]
pub(crate) struct ProvenEnd(AtomicI64);

impl ProvenEnd {
    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The part of `range` below it.
    pub(crate) fn part_of(&self, range: OffsetRange) -> Option<OffsetRange> {
        let end = Offset::new(self.get()).ok()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Contention that shows only after the reset was asked for used to be forgotten.
    #[test]
    fn the_longest_of_two_pauses_counts() {
        let off = Pause::Off(Duration::from_secs(60));
        assert_eq!(Pause::None.max(off), off);
        assert_eq!(Pause::Frozen.max(off), off);
        assert_eq!(Pause::Frozen.max(Pause::None), Pause::Frozen);
    }
}
