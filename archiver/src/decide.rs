//! What to do, decided from plain values: where to begin, what a delivery means, when to cut. No I/O and no clock.

use std::time::Duration;

use everlog_format::{Offset, OffsetRange};

use crate::config::MemoryPlan;

/// A change of day cuts a segment only once it holds this many bytes: records that alternate around midnight must not
/// give a segment each.
pub(crate) const DAY_CUT_MIN_BYTES: u64 = 16 << 20;
/// What an open row group may hold in memory: 8 MiB of pages, and what is not yet a page.
const OPEN_GROUP_BYTES: u64 = 12 << 20;
/// How much is handed to an encoder at a time where its row group may stay open.
const BURST_BYTES: u64 = 4 << 20;
/// And where every burst ends a row group: enough for a row group of a useful size.
const CLOSED_BURST_BYTES: u64 = 24 << 20;
const DAY_MS: i64 = 86_400_000;

/// What is known before a partition is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StartView {
    /// The archive's next offset; `None` while it has no entry of this incarnation.
    pub(crate) next: Option<Offset>,
    /// The last archived record; `None` if there is none, or none with a leader epoch.
    pub(crate) last_record: Option<Known>,
    /// First offset that the cluster still holds.
    pub(crate) live_start: Offset,
    /// Not above it lies any offset that the cluster vouches for.
    pub(crate) high_watermark: Offset,
}

/// An archived record by which a log is known again: no other log of the partition has a record of this leader epoch at
/// this offset, and one that has it is the same up to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) offset: Offset,
    pub(crate) epoch: i32,
}

/// The cluster's log is not the one that was archived.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the last archived record, at {} of leader epoch {}, is not in the cluster's log any more ({found}): the log was \
     truncated and written anew, so what the cluster holds does not continue this archive",
    known.offset, known.epoch
)]
pub(crate) struct Truncated {
    pub(crate) known: Known,
    pub(crate) found: String,
}

impl Known {
    /// Judges the first record fetched from [`Known::offset`] on. `compacted`: cleaning may have removed the record
    /// itself; then only an epoch that goes backwards shows another log.
    pub(crate) fn meets(
        self,
        offset: i64,
        epoch: Option<i32>,
        compacted: bool,
    ) -> Result<(), Truncated> {
        let is_it = offset == self.offset.get() && epoch == Some(self.epoch);
        let cleaned = compacted
            && self.offset.get() < offset
            && epoch.is_none_or(|epoch| self.epoch <= epoch);
        if is_it || cleaned {
            return Ok(());
        }
        let epoch = epoch.map_or_else(|| "no".to_owned(), |epoch| epoch.to_string());
        Err(Truncated {
            known: self,
            found: format!("there is a record at {offset} of {epoch} leader epoch"),
        })
    }

    /// Judges the log's end reached before any record.
    pub(crate) fn misses(self, end: i64, compacted: bool) -> Result<(), Truncated> {
        if compacted && self.offset.get() < end {
            return Ok(());
        }
        Err(Truncated {
            known: self,
            found: format!("there is no record up to {end}"),
        })
    }
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Fetch what follows `covered_from`: offsets below it are archived or known to hold nothing. If the last archived
    /// record should still be there, the fetch begins at it, and it has to be the first to come.
    Fetch {
        last_record: Option<Known>,
        covered_from: Offset,
    },
    /// The cluster has let go of this range: record a hole, then look again.
    Hole(OffsetRange),
    /// The archive holds more than the cluster: its log was truncated.
    BeyondEnd {
        next: Offset,
        high_watermark: Offset,
    },
}

/// Decides where to begin.
///
/// A log that was truncated and has grown again past the archived end looks like any other by its offsets. librdkafka
/// would ask for the end of an epoch only once it learns of a newer one, and not when it begins (KIP-320); so the last
/// archived record itself is fetched again.
pub(crate) fn start(view: &StartView) -> Start {
    let Some(next) = view.next else {
        return Start::Fetch {
            last_record: None,
            covered_from: view.live_start,
        };
    };
    if let Some(lost) = OffsetRange::new(next, view.live_start) {
        return Start::Hole(lost);
    }
    if view.high_watermark < next {
        return Start::BeyondEnd {
            next,
            high_watermark: view.high_watermark,
        };
    }
    let is_held = |known: &Known| view.live_start <= known.offset && known.offset < next;
    Start::Fetch {
        last_record: view.last_record.filter(is_held),
        covered_from: next,
    }
}

/// What of a partition was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Where the open segment starts.
    start: Offset,
    /// The covered end: everything below was delivered, or holds nothing to deliver.
    end: Offset,
}

/// A record where none can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record at {found}, though everything below {end} was delivered before")]
pub(crate) struct Backwards {
    pub(crate) found: i64,
    pub(crate) end: Offset,
}

impl Progress {
    pub(crate) fn new(start: Offset) -> Progress {
        Progress { start, end: start }
    }

    pub(crate) fn start(self) -> Offset {
        self.start
    }

    pub(crate) fn end(self) -> Offset {
        self.end
    }

    /// The open segment's range so far; `None` while nothing is covered.
    pub(crate) fn range(self) -> Option<OffsetRange> {
        OffsetRange::new(self.start, self.end)
    }

    /// A record was delivered.
    pub(crate) fn record(&mut self, offset: i64) -> Result<(), Backwards> {
        let after = Offset::new(offset).ok().and_then(Offset::next);
        match after {
            Some(after) if self.end < after => {
                self.end = after;
                Ok(())
            }
            _ => Err(Backwards {
                found: offset,
                end: self.end,
            }),
        }
    }

    /// An end-of-partition event was delivered. Events are in the queue's order, so one below the end is only late
    /// news.
    pub(crate) fn end_of_partition(&mut self, offset: i64) {
        if let Ok(offset) = Offset::new(offset) {
            self.end = self.end.max(offset);
        }
    }

    /// The open segment ends here and the next one starts.
    pub(crate) fn cut(&mut self) {
        self.start = self.end;
    }
}

/// Why a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Size,
    Day,
    Age,
    /// The cluster's retention comes near.
    Retention,
    /// The archiver stops.
    Stop,
    /// The partition can't be read on.
    Trouble,
    /// The group has taken the partition away.
    Taken,
}

impl Cut {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Cut::Size => "size",
            Cut::Day => "day",
            Cut::Age => "age",
            Cut::Retention => "retention",
            Cut::Stop => "stop",
            Cut::Trouble => "trouble",
            Cut::Taken => "taken",
        }
    }
}

/// The limits of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_bytes: u64,
    pub(crate) max_age: Duration,
}

/// An open segment, looked at now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenSegment {
    /// `None` while nothing is covered: there is nothing to cut.
    pub(crate) range: Option<OffsetRange>,
    /// Size as Parquet, estimated, in bytes; 0 without records.
    pub(crate) bytes: u64,
    /// Since it began to cover something.
    pub(crate) age: Duration,
    /// Age of its first record by the record's own timestamp; `None` if that says nothing.
    pub(crate) oldest_record_age: Option<Duration>,
    /// Where the archive ends.
    pub(crate) archived_end: Offset,
    /// The topic's retention.ms; `None` if endless or unknown.
    pub(crate) retention: Option<Duration>,
    /// As the last fetch told it.
    pub(crate) live_start: Option<Offset>,
}

/// A segment that is old by its records' own time is not cut before it has been open for this long (or an eighth of
/// the topic's retention): a backfill would cut one at each look.
const RETENTION_CUT_MIN_AGE: Duration = Duration::from_secs(30);

/// Whether the open segment has to be cut now. A day change is judged record by record ([`day_cut`]).
pub(crate) fn cut_now(open: &OpenSegment, limits: &Limits) -> Option<Cut> {
    let range = open.range?;
    if limits.max_bytes <= open.bytes {
        return Some(Cut::Size);
    }
    if limits.max_age <= open.age {
        return Some(Cut::Age);
    }
    let uncommitted = open.archived_end.distance_to(range.end());
    let passed = open
        .live_start
        .map_or(0, |live_start| open.archived_end.distance_to(live_start));
    let near_by_offset = passed > 0 && uncommitted <= passed.saturating_mul(2);
    let near_by_time = open
        .retention
        .zip(open.oldest_record_age)
        .is_some_and(|(keep, age)| {
            keep / 4 < age && RETENTION_CUT_MIN_AGE.min(keep / 8) <= open.age
        });
    (near_by_offset || near_by_time).then_some(Cut::Retention)
}

/// The day of a record for [`day_cut`]; `None` where the timestamp names no day that a label could have.
pub(crate) fn day_number(timestamp_ms: i64) -> Option<i64> {
    // 2000-01-01 up to 9999-12-31.
    (946_684_800_000..253_402_300_800_000)
        .contains(&timestamp_ms)
        .then(|| timestamp_ms.div_euclid(DAY_MS))
}

/// Whether a record of day `next` ends a segment whose first record is of day `first`.
pub(crate) fn day_cut(first: Option<i64>, next: Option<i64>, bytes: u64) -> bool {
    DAY_CUT_MIN_BYTES <= bytes && first.zip(next).is_some_and(|(first, next)| first != next)
}

/// A fetcher that has brought nothing for so long that it is told once more where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    /// The cluster has more: it should have brought something.
    Behind,
    /// Nothing says that there is more, but what says so is as old as the silence.
    Quiet,
}

/// How long a fetcher may bring nothing at first, though even an empty partition brings its end; twice as long each time that
/// it was told in vain.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long it may bring nothing though the cluster has more.
const BEHIND_MAX: Duration = Duration::from_secs(60);
/// How long it may bring nothing at all.
const QUIET_MAX: Duration = Duration::from_secs(300);

/// A fetcher that is silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence {
    /// Since it last brought something, or was last told where to go on.
    pub(crate) lasted: Duration,
    /// Whether the high watermark as last heard of is higher than what it brought, and no end-of-partition event (that of an
    /// open transaction, say) explains that.
    pub(crate) behind: bool,
    /// Whether it has brought anything since it was told.
    pub(crate) answered: bool,
    /// How often it was told in vain.
    pub(crate) told_in_vain: u32,
}

/// Judges a silent fetcher.
pub(crate) fn stall(silence: Silence) -> Option<Stall> {
    let Silence { lasted, behind, .. } = silence;
    let longest = if behind { BEHIND_MAX } else { QUIET_MAX };
    let first = ANSWER_MAX.saturating_mul(1 << silence.told_in_vain.min(16));
    let patience = match silence.answered {
        true => longest,
        false => first.min(longest),
    };
    let kind = if behind { Stall::Behind } else { Stall::Quiet };
    (patience <= lasted).then_some(kind)
}

/// How records are handed to the encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BurstPlan {
    /// Packed bytes of a partition that make a burst.
    pub(crate) bytes: u64,
    /// Whether a burst ends its row group, so that nothing of it stays in memory.
    pub(crate) ends_row_group: bool,
}

/// With few partitions their row groups stay open in memory and small bursts keep the encoders busy. With many that
/// would not fit: then a burst is collected (on disk under pressure) until it makes a whole row group.
pub(crate) fn burst_plan(
    partitions: usize,
    memory: &MemoryPlan,
    segment_max_bytes: u64,
) -> BurstPlan {
    let partitions = u64::try_from(partitions).unwrap_or(u64::MAX).max(1);
    let small = BURST_BYTES
        .min(memory.chunks_bytes / partitions.saturating_mul(3))
        .max(64 << 10);
    if partitions.saturating_mul(OPEN_GROUP_BYTES) <= memory.writers_bytes {
        BurstPlan {
            bytes: small.min(segment_max_bytes),
            ends_row_group: false,
        }
    } else {
        BurstPlan {
            bytes: CLOSED_BURST_BYTES.min(segment_max_bytes.saturating_mul(2)),
            ends_row_group: true,
        }
    }
}

/// Pauses between attempts that fail: doubling from half a second to `max`, and which of them to log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    attempts: u32,
    max: Duration,
}

impl Backoff {
    pub(crate) fn new(max: Duration) -> Backoff {
        Backoff { attempts: 0, max }
    }

    /// One more failure: how long to wait (`jitter` in 0..1 spreads it over the upper half), and whether to log. The
    /// first is logged at once, later ones ever more rarely.
    pub(crate) fn failed(&mut self, jitter: f64) -> (Duration, bool) {
        let full = Duration::from_millis(500)
            .saturating_mul(1 << self.attempts.min(16))
            .min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        (
            full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0),
            self.attempts.is_power_of_two(),
        )
    }

    pub(crate) fn attempts(self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
