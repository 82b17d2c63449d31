//! What a run of entries adds up to: kept in every inner entry and in the commit, so that sums need no reading and
//! look-ups know where to go.

use everlog_format::{Day, Offset, OffsetRange};

use crate::{Entry, EntryKind, EpochStart, Totals};

/// The sum of one or more entries that touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// From the first entry's start to the last one's end.
    pub(crate) range: OffsetRange,
    /// How many entries, at least 1.
    pub(crate) entries: u64,
    pub(crate) totals: Totals,
    /// Largest record timestamp; `None` without a segment.
    pub(crate) max_timestamp_ms: Option<i64>,
    /// The label of the last segment, which a segment without a usable timestamp inherits.
    pub(crate) last_day: Option<Day>,
    /// `None` if no record's epoch is known.
    pub(crate) epochs: Option<EpochSpan>,
}

/// The leader epochs below, as far as a reader needs them to know whether it has to look closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochSpan {
    pub(crate) first: EpochStart,
    pub(crate) last_epoch: i32,
    /// Starts after merging equal neighbours, at least 1. If it is 1, `first` says everything.
    pub(crate) count: u64,
}

impl Summary {
    pub(crate) fn of_entry(entry: &Entry) -> Summary {
        let mut summary = Summary {
            range: entry.range,
            entries: 1,
            totals: Totals::default(),
            max_timestamp_ms: None,
            last_day: None,
            epochs: None,
        };
        match &entry.kind {
            EntryKind::Data(data) => {
                summary.totals = Totals {
                    segments: 1,
                    records: data.records,
                    bytes: data.bytes,
                    raw_bytes: data.raw_bytes,
                    holes: 0,
                };
                summary.max_timestamp_ms = Some(data.max_timestamp_ms);
                summary.last_day = Some(data.day);
                summary.epochs =
                    data.epochs
                        .first()
                        .zip(data.epochs.last())
                        .map(|(first, last)| EpochSpan {
                            first: *first,
                            last_epoch: last.epoch,
                            count: data.epochs.len() as u64,
                        });
            }
            EntryKind::Hole(_) => summary.totals.holes = 1,
            EntryKind::Empty | EntryKind::Expired => {}
        }
        summary
    }

    /// This run and the one that follows it; `Err` says which rule the two break.
    pub(crate) fn join(&self, next: &Summary) -> Result<Summary, String> {
        let (end, start) = (self.range.end(), next.range.start());
        if end != start {
            return Err(format!(
                "an entry starts at {start} where the one before ends at {end}"
            ));
        }
        let range = OffsetRange::new(self.range.start(), next.range.end())
            .ok_or("a range ends before it starts")?;
        let sum = |a: u64, b: u64| a.checked_add(b).ok_or("a sum passes 64 bits");
        let (a, b) = (&self.totals, &next.totals);
        Ok(Summary {
            range,
            entries: sum(self.entries, next.entries)?,
            totals: Totals {
                segments: sum(a.segments, b.segments)?,
                records: sum(a.records, b.records)?,
                bytes: sum(a.bytes, b.bytes)?,
                raw_bytes: sum(a.raw_bytes, b.raw_bytes)?,
                holes: sum(a.holes, b.holes)?,
            },
            max_timestamp_ms: self.max_timestamp_ms.max(next.max_timestamp_ms),
            last_day: next.last_day.or(self.last_day),
            epochs: match (self.epochs, next.epochs) {
                (Some(a), Some(b)) => Some(EpochSpan {
                    first: a.first,
                    last_epoch: b.last_epoch,
                    count: sum(a.count, b.count)? - u64::from(a.last_epoch == b.first.epoch),
                }),
                (a, b) => a.or(b),
            },
        })
    }

    /// The sum of all; `Ok(None)` for none.
    pub(crate) fn join_all<'a>(
        parts: impl IntoIterator<Item = std::borrow::Cow<'a, Summary>>,
    ) -> Result<Option<Summary>, String> {
        let mut all: Option<Summary> = None;
        for part in parts {
            all = Some(match all {
                None => part.into_owned(),
                Some(before) => before.join(&part)?,
            });
        }
        Ok(all)
    }

    /// The sum of entries.
    pub(crate) fn of_entries(entries: &[Entry]) -> Result<Option<Summary>, String> {
        Summary::join_all(
            entries
                .iter()
                .map(|e| std::borrow::Cow::Owned(Summary::of_entry(e))),
        )
    }
}

/// Appends `start` unless its epoch goes on.
pub(crate) fn push_epoch(starts: &mut Vec<EpochStart>, start: EpochStart) {
    if starts.last().is_none_or(|last| last.epoch != start.epoch) {
        starts.push(start);
    }
}

/// Checks what one entry says about itself, as writer and reader both must.
pub(crate) fn check_entry(entry: &Entry) -> Result<(), String> {
    let EntryKind::Data(data) = &entry.kind else {
        return Ok(());
    };
    let rule = |holds: bool, why: &str| {
        if holds {
            Ok(())
        } else {
            Err(format!("{why} in the entry {}", entry.range))
        }
    };
    rule(1 <= data.records, "no records")?;
    rule(
        data.records <= entry.range.offset_count(),
        "more records than offsets",
    )?;
    rule(
        data.min_timestamp_ms <= data.max_timestamp_ms,
        "timestamps are the wrong way round",
    )?;
    rule(
        12 <= data.footer_len && u64::from(data.footer_len) <= data.bytes,
        "a footer that does not fit into the object",
    )?;
    rule(data.epochs.len() <= LIST_MAX_LEN, "too many epochs")?;
    rule(
        data.supersedes.len() <= LIST_MAX_LEN,
        "too many superseded segments",
    )?;
    rule(
        data.epochs
            .iter()
            .all(|e| 0 <= e.epoch && entry.range.contains(e.start)),
        "an epoch outside its range",
    )?;
    rule(
        data.epochs
            .windows(2)
            .all(|pair| pair[0].start < pair[1].start && pair[0].epoch != pair[1].epoch),
        "epochs out of order",
    )
}

/// Epochs or superseded segments of one entry.
const LIST_MAX_LEN: usize = 10_000;

/// Where the next entry has to start, or anywhere.
pub(crate) fn end_of(summary: Option<&Summary>) -> Option<Offset> {
    summary.map(|s| s.range.end())
}
