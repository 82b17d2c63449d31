//! One partition as the consumer's thread sees it: what was delivered, what is open, what is on its way.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use everlog_format::{Offset, RecordRef};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::chunk::PartTooLong;
use crate::decide::{
    Backwards, BurstPlan, Cut, Known, Limits, OpenSegment, Progress, Silence, Stall, Truncated,
    cut_now, day_cut, day_number, stall,
};
use crate::lag::Lag;
use crate::memory::Memory;
use crate::message::{Begin, CutWork, Pause, Proof, SegmentMeter, Standing, Ticket, Work};
use crate::metrics::PartitionMetrics;
use crate::spool::Backlog;

/// Size as Parquet of a thousand packed bytes, before anything is known of a partition's records.
const PER_MILLE_AT_FIRST: u64 = 500;
/// Cuts on their way at which a partition is paused: one is being committed, one waits for it.
const CUTS_MAX: usize = 2;

/// A delivery that stops the partition.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotError {
    #[error(transparent)]
    Truncated(#[from] Truncated),
    #[error(transparent)]
    Backwards(#[from] Backwards),
    #[error(transparent)]
    TooLong(#[from] PartTooLong),
    #[error("the partition's worker does not keep up or has ended")]
    Worker,
}

/// A partition of ours.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) ticket: Ticket,
    pub(crate) work: mpsc::Sender<Work>,
    pub(crate) metrics: Arc<PartitionMetrics>,
    pub(crate) reading: Option<Reading>,
    pub(crate) lag: Lag,
    /// Of this session or the one before; `None` before the first.
    pub(crate) proof: Option<Proof>,
    /// When this process last committed something of it; before that, when the group gave it to us.
    pub(crate) last_commit: Instant,
    /// Whether a segment of the session was cut: it may still be on its way.
    pub(crate) has_cut: bool,
    /// Whether the session has ended here, but not yet at the worker, which may have cuts of it to commit.
    pub(crate) is_settling: bool,
    /// Keeps the worker from opening the partition once more.
    pub(crate) left: CancellationToken,
    /// Ends the worker with the slot.
    pub(crate) worker: DropGuard,
}

/// What the open segment is, beside its range.
#[derive(Debug)]
struct Open {
    records: u64,
    packed_bytes: u64,
    first_timestamp_ms: Option<i64>,
    since: Option<Instant>,
    served: BTreeSet<i32>,
    meter: Arc<SegmentMeter>,
}

impl Open {
    fn new() -> Open {
        Open {
            records: 0,
            packed_bytes: 0,
            first_timestamp_ms: None,
            since: None,
            served: BTreeSet::new(),
            meter: Arc::new(SegmentMeter::default()),
        }
    }
}

/// A partition that is being fetched.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) paused: bool,
    pub(crate) archived_end: Offset,
    /// The last archived record, as long as it has not come.
    expected: Option<Known>,
    /// Whether cleaning may remove records from the log.
    compacted: bool,
    progress: Progress,
    backlog: Backlog,
    open: Open,
    /// Size as Parquet of a thousand packed bytes.
    per_mille: u64,
    cuts: VecDeque<Option<i64>>,
    last_broker: Option<i32>,
    high_watermark: i64,
    end_of_partition: Option<i64>,
    /// When the fetcher last brought something, or was last told where to go on.
    last_delivery: Instant,
    /// Whether it has brought anything since it was told.
    answered: bool,
    /// How often it was told and brought nothing.
    told_in_vain: u32,
}

impl Reading {
    pub(crate) fn new(
        begin: &Begin,
        compacted: bool,
        memory: &Arc<Memory>,
        now: Instant,
    ) -> Reading {
        Reading {
            paused: false,
            archived_end: begin.covered_from,
            expected: begin.last_record,
            compacted,
            progress: Progress::new(begin.covered_from),
            backlog: Backlog::new(memory),
            open: Open::new(),
            per_mille: PER_MILLE_AT_FIRST,
            cuts: VecDeque::new(),
            last_broker: None,
            high_watermark: begin.high_watermark.get(),
            end_of_partition: None,
            last_delivery: now,
            answered: false,
            told_in_vain: 0,
        }
    }

    /// The fetcher has been told to go on at [`Reading::fetch_from`].
    pub(crate) fn seated(&mut self, now: Instant) {
        self.last_delivery = now;
        self.answered = false;
    }

    /// [`Reading::seated`], since it had brought nothing for too long.
    pub(crate) fn told_again(&mut self, now: Instant) {
        self.told_in_vain = self.told_in_vain.saturating_add(1);
        self.seated(now);
    }

    /// The fetcher has brought something.
    fn brought(&mut self, now: Instant) {
        self.last_delivery = now;
        self.answered = true;
        self.told_in_vain = 0;
    }

    /// Whether the fetcher has brought nothing for too long.
    pub(crate) fn stall(&self, now: Instant) -> Option<Stall> {
        if self.paused {
            return None;
        }
        let end = self.progress.end().get();
        stall(Silence {
            lasted: now.saturating_duration_since(self.last_delivery),
            behind: end < self.high_watermark && self.end_of_partition != Some(end),
            answered: self.answered,
            told_in_vain: self.told_in_vain,
        })
    }

    /// The open segment's size as Parquet: what its encoder has seen is known, the rest is estimated by it.
    fn estimated_bytes(&self) -> u64 {
        let (encoded, seen) = self.open.meter.get();
        let waiting = self.open.packed_bytes.saturating_sub(seen);
        encoded.saturating_add(waiting.saturating_mul(self.per_mille) / 1_000)
    }

    fn learn_size(&mut self) {
        let (encoded, seen) = self.open.meter.get();
        // A little data is mostly headers and says nothing of what follows.
        if 1 << 20 <= seen {
            self.per_mille = (encoded.saturating_mul(1_000) / seen).clamp(1, 4_000);
        }
    }

    pub(crate) fn spillable_bytes(&self) -> u64 {
        self.backlog.spillable_bytes()
    }

    pub(crate) fn backlog_mut(&mut self) -> &mut Backlog {
        &mut self.backlog
    }

    /// Whether the fetcher has brought anything: whatever was wrong before is over.
    fn has_delivered(&self) -> bool {
        self.end_of_partition.is_some() || self.open.records > 0 || !self.cuts.is_empty()
    }

    /// Where the fetcher is to go on: everything below was delivered, or holds nothing to deliver.
    pub(crate) fn fetch_from(&self) -> Offset {
        self.expected
            .map_or(self.progress.end(), |expected| expected.offset)
    }

    /// Whether its own progress says that it should not be fetched now.
    pub(crate) fn wants_pause(&self) -> bool {
        CUTS_MAX <= self.cuts.len()
    }

    /// Everything below `end` is archived.
    fn committed(&mut self, end: Offset) {
        self.archived_end = end;
        self.cuts.pop_front();
    }

    /// The timestamp of the first record that is not archived.
    fn oldest_timestamp(&self) -> Option<i64> {
        self.cuts
            .iter()
            .flatten()
            .copied()
            .next()
            .or(self.open.first_timestamp_ms)
    }
}

impl Slot {
    /// Ends the session, if one is running: from here on deliveries are dropped. The caller takes the partition from
    /// the fetcher and sends [`Work::Reset`], as the answer says.
    pub(crate) fn end_session(&mut self, pause: Pause) -> Option<(Ticket, Pause)> {
        let reading = self.reading.take()?;
        if let Some(timestamp_ms) = reading.oldest_timestamp() {
            self.lag.oldest(timestamp_ms);
        }
        self.is_settling = self.has_cut;
        Some((self.ticket.clone(), pause))
    }

    /// Whether the worker may still have to commit what was cut.
    pub(crate) fn has_cuts_on_their_way(&self) -> bool {
        let reading = self.reading.as_ref();
        self.is_settling || reading.is_some_and(|reading| !reading.cuts.is_empty())
    }

    /// Everything below `end` is archived; `session` says by which.
    pub(crate) fn committed(&mut self, session: u64, end: Offset, now: Instant) {
        self.last_commit = now;
        self.lag.archived(end);
        if self.ticket.session == session
            && let Some(reading) = &mut self.reading
        {
            reading.committed(end);
        }
    }

    /// Where it stands, from the worker's attempts to open it.
    pub(crate) fn stands(&mut self, standing: &Standing) {
        match standing.archived_end {
            Some(end) => self.lag.archived(end),
            None => self.lag.archived_at_least(standing.live_start),
        }
        self.lag.high_watermark(standing.high_watermark.get());
    }

    /// The cluster is about to be asked for topic ids.
    pub(crate) fn mark(&mut self) {
        if let (Some(reading), Some(proof)) = (&self.reading, &mut self.proof) {
            proof.marked = reading.progress.end();
        }
    }

    /// Takes in a record. `now` may be a little old.
    pub(crate) fn record(
        &mut self,
        record: &RecordRef<'_>,
        broker: i32,
        plan: BurstPlan,
        limits: &Limits,
        now: Instant,
    ) -> Result<(), SlotError> {
        let Some(reading) = &mut self.reading else {
            return Ok(());
        };
        if let Some(expected) = reading.expected {
            expected.meets(record.offset, record.leader_epoch, reading.compacted)?;
            reading.expected = None;
            if record.offset == expected.offset.get() {
                reading.brought(now);
                return Ok(());
            }
        }
        if reading.open.records > 0 {
            let first = reading.open.first_timestamp_ms.and_then(day_number);
            let day = day_number(record.timestamp_ms);
            // The estimate is dearer than comparing the days.
            if first != day && day_cut(first, day, reading.estimated_bytes()) {
                self.cut(Cut::Day, false)?;
            }
        }
        let Some(reading) = &mut self.reading else {
            return Ok(());
        };
        reading.progress.record(record.offset)?;
        reading.brought(now);
        let len = reading.backlog.push(record)?;
        let open = &mut reading.open;
        open.records += 1;
        open.packed_bytes += len;
        if open.records == 1 {
            open.first_timestamp_ms = Some(record.timestamp_ms);
            open.since.get_or_insert(now);
        }
        if reading.last_broker != Some(broker) || open.served.is_empty() {
            reading.last_broker = Some(broker);
            open.served.insert(broker);
        }
        if plan.bytes <= reading.backlog.packed_bytes() {
            reading.learn_size();
            let full = limits.max_bytes <= reading.estimated_bytes();
            self.send_burst(plan.ends_row_group)?;
            if full {
                self.cut(Cut::Size, false)?;
            }
        }
        Ok(())
    }

    /// Takes in an end-of-partition event.
    pub(crate) fn end_of_partition(&mut self, offset: i64, now: Instant) -> Result<(), SlotError> {
        let Some(reading) = &mut self.reading else {
            return Ok(());
        };
        if let Some(expected) = reading.expected {
            expected.misses(offset, reading.compacted)?;
            reading.expected = None;
        }
        reading.progress.end_of_partition(offset);
        reading.brought(now);
        reading.end_of_partition = Some(offset);
        if reading.progress.range().is_some() {
            reading.open.since.get_or_insert(now);
        }
        Ok(())
    }

    fn send(&self, work: Work) -> Result<(), SlotError> {
        self.work.try_send(work).map_err(|_| SlotError::Worker)
    }

    fn send_burst(&mut self, ends_row_group: bool) -> Result<(), SlotError> {
        let Some(reading) = &mut self.reading else {
            return Ok(());
        };
        let burst = reading.backlog.take();
        if burst.is_empty() {
            return Ok(());
        }
        let (start, meter) = (reading.progress.start(), Arc::clone(&reading.open.meter));
        self.send(Work::Burst {
            start,
            burst,
            ends_row_group,
            meter,
        })
    }

    /// Ends the open segment, if it covers anything.
    pub(crate) fn cut(&mut self, why: Cut, doubtful: bool) -> Result<(), SlotError> {
        match self.take_cut(why, doubtful)? {
            Some(cut) => self.send(Work::Cut(cut)),
            None => Ok(()),
        }
    }

    /// The partition is taken away. If something was fetched and not committed, it is needed in case that the topic is
    /// gone: then this is the last of it, to be sent as [`Work::Leave`]. Else whoever gets the partition reads it again.
    pub(crate) fn leave(&mut self) -> Option<Option<CutWork>> {
        let cut = self.take_cut(Cut::Taken, false).ok().flatten();
        let is_on_its_way = self.is_settling || self.reading.is_some() && self.has_cut;
        (cut.is_some() || is_on_its_way).then_some(cut)
    }

    /// Hands what is left of the open segment to the worker; gives the cut to be sent after it.
    fn take_cut(&mut self, why: Cut, doubtful: bool) -> Result<Option<CutWork>, SlotError> {
        if self
            .reading
            .as_ref()
            .is_none_or(|reading| reading.progress.range().is_none())
        {
            return Ok(None);
        }
        self.send_burst(false)?;
        let (Some(reading), Some(proof)) = (&mut self.reading, &self.proof) else {
            return Ok(None);
        };
        let Some(range) = reading.progress.range() else {
            return Ok(None);
        };
        reading.learn_size();
        reading.progress.cut();
        let open = std::mem::replace(&mut reading.open, Open::new());
        // Brokers that are not known (-1) can't be asked; the worker then asks all.
        let known = !open.served.iter().any(|broker| *broker < 0);
        let served = if known { open.served } else { BTreeSet::new() };
        reading.cuts.push_back(open.first_timestamp_ms);
        self.has_cut = true;
        Ok(Some(CutWork {
            range,
            why,
            served,
            doubtful,
            proven: Arc::clone(&proof.end),
        }))
    }

    /// Looks whether the open segment has to be cut.
    pub(crate) fn look(
        &mut self,
        limits: &Limits,
        live: Option<(i64, i64)>,
        retention: Option<Duration>,
        now: Instant,
        unix_ms: i64,
    ) -> Result<(), SlotError> {
        let Some(reading) = &mut self.reading else {
            return Ok(());
        };
        let record_age = reading
            .open
            .first_timestamp_ms
            .filter(|timestamp| 0 < *timestamp)
            .and_then(|timestamp| u64::try_from(unix_ms.saturating_sub(timestamp)).ok());
        let view = OpenSegment {
            range: reading.progress.range(),
            bytes: if reading.open.records == 0 {
                0
            } else {
                reading.estimated_bytes()
            },
            age: reading
                .open
                .since
                .map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            oldest_record_age: record_age.map(Duration::from_millis),
            archived_end: reading.archived_end,
            retention,
            live_start: live.and_then(|(low, _)| Offset::new(low).ok()),
        };
        // Not while cuts wait already: the next one would only be smaller.
        if !reading.wants_pause()
            && let Some(why) = cut_now(&view, limits)
        {
            self.cut(why, false)?;
        }
        Ok(())
    }

    /// Brings the metrics up to date.
    pub(crate) fn measure(&mut self, live: Option<(i64, i64)>, now: Instant, unix_ms: i64) {
        let since = now.saturating_duration_since(self.last_commit);
        self.metrics
            .seconds_since_last_commit
            .set(since.as_secs_f64());
        self.metrics.set_read(self.reading.is_some());
        if let Some(reading) = &mut self.reading {
            if reading.has_delivered() {
                self.metrics.set_frozen(false);
            }
            if let Some((_, high)) = live {
                reading.high_watermark = high;
            }
            self.lag.archived(reading.archived_end);
            self.lag.high_watermark(reading.high_watermark);
            if let Some(timestamp_ms) = reading.oldest_timestamp() {
                self.lag.oldest(timestamp_ms);
            }
            // At an end that lies below the high watermark, an open transaction holds back what is between.
            let unstable = match reading.end_of_partition {
                Some(end) if reading.progress.end().get() == end => {
                    reading.high_watermark.saturating_sub(end).max(0)
                }
                _ => 0,
            };
            self.metrics.unstable_records.set(unstable);
        }
        if let Some(proof) = &self.proof {
            self.metrics.proven_offset.set(proof.end.get());
        }
        self.metrics.lag_records.set(self.lag.records());
        self.metrics.lag_seconds.set(self.lag.seconds(unix_ms));
    }
}

#[cfg(test)]
#[path = "slot_tests.rs"]
mod tests;
