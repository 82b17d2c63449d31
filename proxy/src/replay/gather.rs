//! One read: from an offset to whole batches, and what is told at the end of them.
//!
//! # What ends a read
//!
//! | behind the last record taken comes | the answer |
//! |------------------------------------|------------|
//! | a record, but no room for its batch | ends there |
//! | a record that is not there yet | ends there, if anything is in hand |
//! | offsets without records, then a record | goes on: such a gap lies between batches |
//! | offsets without records (or none), then a hole | the last batch reaches up to the hole, which is named |
//! | offsets without records (or none), then the archived end | the last batch reaches up to it |
//!
//! A client's position follows the end of the last batch, so without this it would stay behind an empty tail for ever.
//! Within data the ends stay where the records are: some clients walk through a batch's empty tail offset by offset.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use everlog_format::{Offset, OffsetRange, empty_batch, with_last_offset};
use everlog_index::{EntryKind, IndexError, Snapshot};
use tokio::time::timeout;

use super::budget::{Need, Permit, Share};
use super::cache::Cache;
use super::group::{Encoded, Following, GroupRef, Lent};
use super::job::BATCH_MAX_BYTES;
use super::{Absence, AbsenceCause, ReplayError, Slice};

/// How long a read that has something in hand waits for more.
const MORE_PATIENCE: Duration = Duration::from_millis(20);

/// With less room than this it is not worth to wait for another run: hardly a batch would fit.
const USEFUL_ROOM: usize = BATCH_MAX_BYTES / 2;

/// How many entries are looked at in one go where there is no data.
const WALK_ENTRIES: usize = 32;

/// Bytes of a batch without records.
const EMPTY_BATCH_BYTES: usize = everlog_format::BATCH_HEADER_LEN;

/// What lies at a position.
pub(super) enum Place {
    /// The first record at or behind it is in this row group.
    Records(GroupRef),
    /// No record before `until`, where the archive ends or records are gone.
    Nothing {
        until: Offset,
        absence: Option<Absence>,
    },
    /// Only for read-ahead: it would need memory that is not there.
    NoRoom,
}

/// A run of whole batches out of one buffer.
struct Part {
    run: Arc<Encoded>,
    batches: Range<usize>,
}

/// What a read has found.
pub(super) struct Gathered {
    parts: Vec<Part>,
    /// The last batch, where it had to be made anew.
    tail: Option<Bytes>,
    bytes: usize,
    next: Offset,
    at_hole: Option<Absence>,
    /// Where the last records came from.
    pub(super) group: Option<GroupRef>,
    /// Runs that were taken to their end.
    finished: Vec<Arc<Encoded>>,
}

impl Cache {
    /// Whole batches from `from` on, about `max_bytes` of them.
    pub(super) async fn gather(
        self: Arc<Self>,
        snapshot: Arc<Snapshot>,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Gathered, ReplayError> {
        // One answer must not take all the room there is for batches.
        let share = usize::try_from(self.budget.batches_floor() / 2).unwrap_or(usize::MAX);
        let max_bytes = max_bytes.min(share);
        let mut found = Gathered::new(from);
        loop {
            let room = max_bytes.saturating_sub(found.bytes);
            let piece = self.piece(&snapshot, &found, room);
            let piece = if found.parts.is_empty() {
                piece.await?
            } else {
                match timeout(MORE_PATIENCE, piece).await {
                    Ok(Ok(piece)) => piece,
                    // What is in hand is good. Whoever asks for the rest meets the error, or finds it done.
                    Ok(Err(_)) | Err(_) => break,
                }
            };
            match piece {
                Piece::Run { run, group } => {
                    if !found.take(run, group, room) {
                        break;
                    }
                }
                Piece::NoUse => break,
                Piece::End { until, absence } => {
                    let epoch = match found.last_epoch() {
                        Some(epoch) => epoch,
                        None => self.epoch(&snapshot, from).await?.unwrap_or(-1),
                    };
                    found.reach(&self, until, absence, epoch, room);
                    break;
                }
            }
        }
        Ok(found)
    }

    async fn piece(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        found: &Gathered,
        room: usize,
    ) -> Result<Piece, ReplayError> {
        let at = found.next;
        let same_segment = found.group.as_ref().and_then(|group| {
            let index = group.footer.segment.row_group_at(at)?;
            Some(GroupRef {
                footer: Arc::clone(&group.footer),
                index,
            })
        });
        let place = match same_segment {
            Some(group) => Place::Records(group),
            None => self.locate(snapshot, at, Need::Demand).await?,
        };
        match place {
            Place::Records(group) if found.parts.is_empty() || room >= USEFUL_ROOM => {
                let run = self.run_at(&group, at).await?;
                Ok(Piece::Run { run, group })
            }
            Place::Records(_) | Place::NoRoom => Ok(Piece::NoUse),
            Place::Nothing { until, absence } => Ok(Piece::End { until, absence }),
        }
    }

    /// Finds the first record at or behind `from`, without reading more than footers.
    pub(super) async fn locate(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        from: Offset,
        need: Need,
    ) -> Result<Place, ReplayError> {
        let mut at = from;
        // Most often the first entry is the one.
        let mut limit = 1;
        loop {
            let entries = snapshot
                .entries(at, limit)
                .await
                .map_err(|error| self.index_failed(error))?;
            if entries.is_empty() {
                if snapshot.covered().is_none_or(|covered| covered.end() != at) {
                    let error = ReplayError::corrupt(
                        snapshot.key(),
                        "no entry covers an offset below the archived end",
                    );
                    self.metrics.failed(&error);
                    return Err(error);
                }
                return Ok(Place::Nothing {
                    until: at,
                    absence: None,
                });
            }
            limit = WALK_ENTRIES;
            for entry in entries {
                let absent = |cause| {
                    let until = entry.range.start().max(from);
                    Place::Nothing {
                        until,
                        absence: Some(Absence {
                            range: entry.range,
                            cause,
                        }),
                    }
                };
                match &entry.kind {
                    EntryKind::Data(data) => {
                        let Some(footer) = self.footer(snapshot, entry.range, data, need).await?
                        else {
                            return Ok(Place::NoRoom);
                        };
                        if let Some(index) = footer.segment.row_group_at(at) {
                            return Ok(Place::Records(GroupRef { footer, index }));
                        }
                    }
                    EntryKind::Empty => {}
                    EntryKind::Hole(reason) => return Ok(absent(AbsenceCause::Lost(*reason))),
                    EntryKind::Expired => return Ok(absent(AbsenceCause::Expired)),
                }
                at = entry.range.end();
            }
        }
    }

    /// The epoch of the last record at or before `offset`, or of the first one if all lie behind.
    pub(super) async fn epoch(
        &self,
        snapshot: &Arc<Snapshot>,
        offset: Offset,
    ) -> Result<Option<i32>, ReplayError> {
        let epochs = snapshot
            .epochs()
            .await
            .map_err(|error| self.index_failed(error))?;
        let behind = epochs.partition_point(|epoch| epoch.start <= offset);
        Ok(epochs
            .get(behind.saturating_sub(1))
            .map(|epoch| epoch.epoch)
            .filter(|&epoch| epoch >= 0))
    }

    pub(super) fn index_failed(&self, error: IndexError) -> ReplayError {
        let error = error.into();
        self.metrics.failed(&error);
        error
    }

    /// Prepares what a reader that now stands at `next` will want: the runs behind it, and, if he reads on and on, the
    /// row group after this one.
    pub(super) fn read_ahead(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        group: &GroupRef,
        next: Offset,
        goes_on: bool,
    ) {
        self.decode_ahead(group, next, if goes_on { 2 } else { 1 });
        if !goes_on {
            return;
        }
        match self.following(group) {
            Following::Known(following) => self.decode_ahead(&following, Offset::ZERO, 1),
            Following::Unknown => {
                let (cache, snapshot, group) =
                    (Arc::clone(self), Arc::clone(snapshot), group.clone());
                tokio::spawn(async move {
                    let following = cache.find_following(&snapshot, &group).await;
                    if let Following::Known(following) = &following {
                        cache.decode_ahead(following, Offset::ZERO, 1);
                    }
                    cache.set_following(&group, following);
                });
            }
            Following::Asked | Following::Nothing => {}
        }
    }

    async fn find_following(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        group: &GroupRef,
    ) -> Following {
        if let Some(next) = group.next() {
            return Following::Known(next);
        }
        match self
            .locate(snapshot, group.footer.segment.range().end(), Need::Ahead)
            .await
        {
            Ok(Place::Records(next)) => Following::Known(next),
            Ok(Place::Nothing { .. }) => Following::Nothing,
            // The reader himself will meet the error, if it is still there then.
            Ok(Place::NoRoom) | Err(_) => Following::Unknown,
        }
    }
}

/// The next thing for a read.
enum Piece {
    Run {
        run: Arc<Encoded>,
        group: GroupRef,
    },
    /// More follows, but not into this answer.
    NoUse,
    End {
        until: Offset,
        absence: Option<Absence>,
    },
}

impl Gathered {
    fn new(from: Offset) -> Gathered {
        Gathered {
            parts: Vec::new(),
            tail: None,
            bytes: 0,
            next: from,
            at_hole: None,
            group: None,
            finished: Vec::new(),
        }
    }

    /// Takes what fits into `room`, the very first batch whatever its size. Tells whether all of the run was taken.
    fn take(&mut self, run: Arc<Encoded>, group: GroupRef, room: usize) -> bool {
        let first = run.batch_at(self.next);
        let mut end = first;
        let mut bytes = 0;
        while let Some(batch) = run.batches.get(end) {
            let is_exempt = self.parts.is_empty() && end == first;
            if !is_exempt && bytes + batch.bytes.len() > room {
                break;
            }
            bytes += batch.bytes.len();
            end += 1;
        }
        // The run's last offset lies below the end of a range, so it has a next one.
        let Some(next) = (first < end)
            .then(|| run.batches[end - 1].last_offset.next())
            .flatten()
        else {
            return false;
        };
        self.next = next;
        self.bytes += bytes;
        self.group = Some(group);
        let is_all = end == run.batches.len();
        if is_all {
            self.finished.push(Arc::clone(&run));
        }
        self.parts.push(Part {
            run,
            batches: first..end,
        });
        is_all
    }

    fn last_epoch(&self) -> Option<i32> {
        let part = self.parts.last()?;
        part.run.batches[part.batches.clone()]
            .last()
            .map(|batch| batch.leader_epoch)
    }

    /// Ends the answer where there is no record any more before `until`.
    fn reach(
        &mut self,
        cache: &Cache,
        until: Offset,
        absence: Option<Absence>,
        epoch: i32,
        room: usize,
    ) {
        if self.next < until
            && let Some(last) = Offset::new(until.get() - 1).ok()
        {
            let batch = self.parts.last().and_then(|part| {
                let range = part.run.bytes_of(part.batches.end - 1..part.batches.end);
                Some((
                    with_last_offset(&part.run.data[range.clone()], last)?,
                    range.len(),
                ))
            });
            if let Some((longer, len)) = batch {
                self.drop_last_batch();
                self.bytes = self.bytes - len + longer.len();
                self.tail = Some(accounted(cache, longer));
                self.next = until;
            } else if self.parts.is_empty() || room >= EMPTY_BATCH_BYTES {
                // Too far for the last batch, or there is none.
                let batch = empty_batch(self.next, last, epoch);
                self.bytes += batch.len();
                self.tail = Some(Bytes::from(batch));
                self.next = until;
            }
        }
        self.at_hole = absence.filter(|absence| absence.range.contains(self.next));
    }

    fn drop_last_batch(&mut self) {
        if let Some(part) = self.parts.last_mut() {
            part.batches.end -= 1;
        }
        self.parts.retain(|part| !part.batches.is_empty());
    }

    /// The answer. Marks what the reader is done with: only now is it sure that somebody takes it.
    pub(super) fn into_slice(self, cache: &Cache) -> Slice {
        for run in &self.finished {
            run.served.store(true, Ordering::Relaxed);
        }
        let runs = self.parts.into_iter().map(|part| {
            let range = part.run.bytes_of(part.batches);
            Bytes::from_owner(Lent::new(part.run, &cache.budget)).slice(range)
        });
        let records: Vec<Bytes> = runs.chain(self.tail).collect();
        cache.metrics.bytes.inc_by(self.bytes as u64);
        cache
            .metrics
            .records
            .inc_by(records.iter().map(|run| record_count(run)).sum());
        Slice {
            records,
            bytes: self.bytes,
            next: self.next,
            at_hole: self.at_hole,
        }
    }
}

/// How many records a run of batches of ours holds.
fn record_count(mut batches: &[u8]) -> u64 {
    let mut count = 0;
    while let (Some(len), Some(records)) = (number_at(batches, 8), number_at(batches, 57)) {
        count += u64::from(records);
        let Some(rest) = usize::try_from(len)
            .ok()
            .and_then(|len| batches.get(12 + len..))
        else {
            break;
        };
        batches = rest;
    }
    count
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)
        .and_then(|bytes| bytes.first_chunk())
        .map(|bytes| u32::from_be_bytes(*bytes))
}

/// Counts a batch that was copied, until the response has dropped it.
fn accounted(cache: &Cache, batch: Vec<u8>) -> Bytes {
    struct Counted(
        Vec<u8>,
        #[expect(dead_code, reason = "held for its drop")] Permit,
    );
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let permit = cache.budget.take_anyway(Share::Batches, batch.len() as u64);
    Bytes::from_owner(Counted(batch, permit))
}

/// Whether `from` can be read from a snapshot that covers `covered`.
pub(super) fn check_covered(covered: Option<OffsetRange>, from: Offset) -> Result<(), ReplayError> {
    match covered {
        Some(range) if range.contains(from) => Ok(()),
        _ => Err(ReplayError::NotCovered {
            offset: from,
            covered,
        }),
    }
}
