//! From timestamps to offsets.
//!
//! Timestamps can be in any order, so nothing here is a binary search: the tree and the footers know the largest
//! timestamp of what lies below them, which tells the first row group that can hold a match, and its records are looked
//! at one by one.

use std::sync::Arc;

use bytes::Bytes;
use everlog_format::{Offset, OffsetRange, RowGroupReader, contain_panic};
use everlog_index::{DataEntry, Snapshot};

use super::budget::Need;
use super::cache::Cache;
use super::group::{Footer, GroupRef};
use super::job::segment_error;
use super::{ReplayError, TimestampHit};

/// Raw bytes that are looked at in one go.
const SCAN_RAW_BYTES: usize = 2 << 20;

impl Cache {
    pub(super) async fn offset_for_timestamp(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        timestamp_ms: i64,
    ) -> Result<Option<TimestampHit>, ReplayError> {
        let Some(covered) = snapshot.covered() else {
            return Ok(None);
        };
        let mut from = covered.start();
        while let Some((range, data)) = self.first_entry(snapshot, timestamp_ms, from).await? {
            if let Some(hit) = self
                .first_in_segment(snapshot, range, &data, from, timestamp_ms)
                .await?
            {
                return Ok(Some(hit));
            }
            // The match lies before `from`: only a segment that `from` cuts in two can do that.
            if range.end() <= from {
                return Err(ReplayError::corrupt(
                    snapshot.segment_key(range, &data),
                    "the index does not go forward",
                ));
            }
            from = range.end();
        }
        Ok(None)
    }

    async fn first_entry(
        &self,
        snapshot: &Snapshot,
        timestamp_ms: i64,
        from: Offset,
    ) -> Result<Option<(OffsetRange, DataEntry)>, ReplayError> {
        snapshot
            .first_with_timestamp(timestamp_ms, from)
            .await
            .map_err(|error| self.index_failed(error))
    }

    pub(super) async fn max_timestamp(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Option<TimestampHit>, ReplayError> {
        let Some((range, data)) = snapshot
            .max_timestamp_entry()
            .await
            .map_err(|error| self.index_failed(error))?
        else {
            return Ok(None);
        };
        self.first_in_segment(snapshot, range, &data, range.start(), data.max_timestamp_ms)
            .await
    }

    /// The first record of the segment at or behind `from` whose timestamp is at or above `timestamp_ms`.
    async fn first_in_segment(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        range: OffsetRange,
        data: &DataEntry,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<TimestampHit>, ReplayError> {
        let footer = self.footer(snapshot, range, data, Need::Demand).await?;
        let Some(footer) = footer else {
            return Err(ReplayError::interrupted("a footer", "there was no room"));
        };
        let largest = footer
            .segment
            .row_groups()
            .iter()
            .map(|group| group.max_timestamp_ms)
            .max();
        if largest != Some(data.max_timestamp_ms) {
            return Err(ReplayError::corrupt(
                &footer.key,
                "its largest timestamp is not what the commit says",
            ));
        }
        for group in candidates(&footer, from, timestamp_ms) {
            let hit = self.first_in_group(&group, from, timestamp_ms).await?;
            if hit.is_some() {
                return Ok(hit);
            }
            if from <= group.info().first_offset {
                return Err(ReplayError::corrupt(
                    group.name(),
                    "it lacks the largest timestamp that its footer names",
                ));
            }
        }
        Ok(None)
    }

    async fn first_in_group(
        self: &Arc<Self>,
        group: &GroupRef,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<TimestampHit>, ReplayError> {
        let stored = self.stored(group).await?;
        let turn = Arc::clone(&self.decoders).acquire_owned().await;
        let turn = turn.map_err(|closed| ReplayError::interrupted(group.name(), closed))?;
        let scan = {
            let group = group.clone();
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                contain_panic(|| scan_group(&group, stored.bytes.clone(), from, timestamp_ms))
                    .unwrap_or_else(|panic| Err(ReplayError::corrupt(group.name(), panic)))
            })
        };
        scan.await
            .unwrap_or_else(|panic| Err(ReplayError::interrupted(group.name(), panic)))
    }
}

/// The first record of a row group, at or above `from`, that is not older than `timestamp_ms`.
fn scan_group(
    group: &GroupRef,
    stored: Bytes,
    from: Offset,
    timestamp_ms: i64,
) -> Result<Option<TimestampHit>, ReplayError> {
    let failed = |error| segment_error(group.name(), error);
    let (segment, index) = (&group.footer.segment, group.index);
    let mut reader = RowGroupReader::new(segment, index, stored).map_err(failed)?;
    let mut headers = Vec::new();
    while let Some(slice) = reader.next_slice(SCAN_RAW_BYTES).map_err(failed)? {
        let times = slice.timestamps_ms().iter().zip(slice.offsets());
        let found = times
            .into_iter()
            .position(|(&time, &at)| time >= timestamp_ms && at >= from.get());
        if let Some(index) = found {
            let record = slice.get(index, &mut headers);
            let offset = Offset::new(record.offset)
                .map_err(|negative| ReplayError::corrupt(group.name(), negative))?;
            return Ok(Some(TimestampHit {
                offset,
                timestamp_ms: record.timestamp_ms,
                leader_epoch: record.leader_epoch,
            }));
        }
    }
    Ok(None)
}

/// The row groups that can hold a match, in order.
fn candidates(
    footer: &Arc<Footer>,
    from: Offset,
    timestamp_ms: i64,
) -> impl Iterator<Item = GroupRef> {
    let groups = footer.segment.row_groups().iter().enumerate();
    groups
        .filter(move |(_, group)| {
            group.max_timestamp_ms >= timestamp_ms && group.last_offset >= from
        })
        .map(|(index, _)| GroupRef {
            footer: Arc::clone(footer),
            index,
        })
}
