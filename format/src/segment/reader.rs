//! The bytes of one row group in, records out, slice by slice: a reader that wants 1 MiB pays for little more than
//! that.

use std::sync::Arc;

use bytes::Bytes;

use super::columns::{Inflater, Lists, NumberKind, Numbers, Strings};
use super::footer::ChunkTotals;
use super::pages::check_chunk;
use super::schema::leaf;
use super::slice::{Columns, RecordSlice};
use super::writer::HEADER_OVERHEAD_BYTES;
use super::{RECORD_BYTES_MAX, RowGroupInfo, Segment, SegmentError};
use crate::{Offset, TimestampType};

/// A slice holds no more records than this, however small they are.
const SLICE_RECORDS_MAX: u64 = 64 << 10;

/// What a reader keeps between slices, about: the rest of a decompressed page for each of the columns of byte strings, a
/// page of numbers for the others, and zstd's context.
const READER_BYTES: u64 = 2 << 20;

/// Decodes one row group.
///
/// Whatever the bytes are, the outcome is records that fit the footer or an error; after an error there is no more.
/// The same targets give the same slices.
pub struct RowGroupReader {
    segment: Arc<Segment>,
    index: usize,
    bytes: Bytes,
    inflater: Inflater,
    columns: ColumnReaders,
    /// How far decoding has come. `None` once the row group has ended, well or not.
    progress: Option<Progress>,
}

/// The columns that records are made of; the others are derived and only for SQL.
struct ColumnReaders {
    offsets: Numbers,
    timestamps_ms: Numbers,
    timestamp_types: Numbers,
    leader_epochs: Numbers,
    keys: Strings,
    values: Strings,
    header_keys: Lists,
    header_values: Lists,
}

#[derive(Clone, Copy)]
struct Progress {
    /// The smallest offset that may come next.
    offset_from: i64,
    /// How many records are still to come.
    records_left: u64,
    /// `None` after a seek, which leaves the rest unknown.
    raw_bytes_left: Option<u64>,
}

impl std::fmt::Debug for RowGroupReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowGroupReader")
            .field("range", &self.segment.range())
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

fn contradiction(what: &str) -> SegmentError {
    SegmentError::corrupt(format!("the row group contradicts its footer: {what}"))
}

impl RowGroupReader {
    /// Starts at the row group's first record. `bytes` are exactly those of [`RowGroupInfo::bytes`]; they are
    /// checked against the checksum in the footer.
    pub fn new(
        segment: &Arc<Segment>,
        index: usize,
        bytes: Bytes,
    ) -> Result<RowGroupReader, SegmentError> {
        let info = segment
            .row_groups()
            .get(index)
            .ok_or_else(|| SegmentError::corrupt("there is no such row group"))?;
        if bytes.len() as u64 != info.bytes.end - info.bytes.start {
            return Err(SegmentError::corrupt("the row group has another length"));
        }
        if segment.row_group_crc32c(index) != Some(crc32c::crc32c(&bytes)) {
            return Err(SegmentError::corrupt("the row group has another checksum"));
        }
        for (leaf, totals) in segment.chunks(index).iter().enumerate() {
            check_chunk(&chunk(segment, index, &bytes, leaf)?, leaf, totals)?;
        }
        let progress = Progress {
            offset_from: info.first_offset.get(),
            records_left: info.records,
            raw_bytes_left: Some(info.raw_bytes),
        };
        Ok(RowGroupReader {
            segment: Arc::clone(segment),
            index,
            inflater: Inflater::new()?,
            columns: ColumnReaders::new(segment, index, &bytes)?,
            bytes,
            progress: Some(progress),
        })
    }

    /// Goes to the first record at or above `offset`, forwards or back. Most pages in front of it are passed over
    /// without being decompressed.
    pub fn seek(&mut self, offset: Offset) -> Result<(), SegmentError> {
        self.progress = None;
        self.columns = ColumnReaders::new(&self.segment, self.index, &self.bytes)?;
        let segment = Arc::clone(&self.segment);
        let info = &segment.row_groups()[self.index];
        let mut passed = 0;
        if info.first_offset < offset {
            let mut offsets = offsets(&segment, self.index, &self.bytes)?;
            while let Some(page) = offsets.next_page(&mut self.inflater)? {
                let below = page.partition_point(|&raw| raw < offset.get());
                passed += below;
                if below < page.len() {
                    break;
                }
            }
            self.columns.skip(passed, &mut self.inflater)?;
        }
        self.progress = Some(Progress {
            offset_from: offset.max(info.first_offset).get(),
            records_left: info
                .records
                .checked_sub(passed as u64)
                .ok_or_else(|| contradiction("more records"))?,
            raw_bytes_left: (passed == 0).then_some(info.raw_bytes),
        });
        Ok(())
    }

    /// The next records: at least one, and not more than `raw_target_bytes` of raw bytes unless the first alone is larger.
    /// `None` at the end.
    pub fn next_slice(
        &mut self,
        raw_target_bytes: usize,
    ) -> Result<Option<RecordSlice>, SegmentError> {
        let Some(progress) = self.progress.take() else {
            return Ok(None);
        };
        if progress.records_left == 0 {
            // Parsing has seen that no column has more values than the row group has records.
            return match progress.raw_bytes_left {
                None | Some(0) => Ok(None),
                Some(_) => Err(contradiction("fewer bytes")),
            };
        }
        let most = progress.records_left.min(SLICE_RECORDS_MAX);
        let (count, raw_bytes) =
            self.columns
                .measure(raw_target_bytes as u64, most, &mut self.inflater)?;
        let columns = self.columns.take(count, &mut self.inflater)?;
        let slice = RecordSlice::new(columns, raw_bytes);
        self.progress = Some(check(
            &slice,
            progress,
            &self.segment.row_groups()[self.index],
        )?);
        Ok(Some(slice))
    }

    /// Memory that the reader takes beside the row group's own bytes, about. Slices that were handed out count for
    /// themselves: [`RecordSlice::memory_bytes`].
    pub fn memory_bytes(&self) -> u64 {
        let strings = [
            self.columns.keys.ready(),
            self.columns.values.ready(),
            self.columns.header_keys.ready(),
            self.columns.header_values.ready(),
        ];
        strings
            .iter()
            .map(|views| views.memory_bytes())
            .sum::<u64>()
            .max(READER_BYTES)
    }
}

/// Holds a slice against the footer, and says how far decoding has come with it.
fn check(
    slice: &RecordSlice,
    progress: Progress,
    info: &RowGroupInfo,
) -> Result<Progress, SegmentError> {
    let records_left = progress
        .records_left
        .checked_sub(slice.len() as u64)
        .ok_or_else(|| contradiction("more records"))?;
    let raw_bytes_left = progress
        .raw_bytes_left
        .map(|left| {
            left.checked_sub(slice.raw_bytes())
                .ok_or_else(|| contradiction("more bytes"))
        })
        .transpose()?;
    if progress.records_left == info.records && slice.first_offset() != info.first_offset.get() {
        return Err(contradiction("another first offset"));
    }
    if records_left == 0 && slice.last_offset() != info.last_offset.get() {
        return Err(contradiction("another last offset"));
    }
    let times = info.min_timestamp_ms..=info.max_timestamp_ms;
    if !slice
        .timestamps_ms()
        .iter()
        .all(|time| times.contains(time))
    {
        return Err(contradiction("a timestamp out of bounds"));
    }
    let mut offset_from = progress.offset_from;
    for &offset in slice.offsets() {
        if offset < offset_from || offset > info.last_offset.get() {
            return Err(contradiction("offsets out of order"));
        }
        // Not above the last offset, which lies below the end of a range.
        offset_from = offset.saturating_add(1);
    }
    Ok(Progress {
        offset_from,
        records_left,
        raw_bytes_left,
    })
}

/// The bytes of one column.
fn chunk(
    segment: &Segment,
    index: usize,
    bytes: &Bytes,
    leaf: usize,
) -> Result<Bytes, SegmentError> {
    let start: u64 = segment
        .chunks(index)
        .iter()
        .take(leaf)
        .map(|totals: &ChunkTotals| totals.stored)
        .sum();
    segment
        .chunks(index)
        .get(leaf)
        .and_then(|totals| {
            Some(usize::try_from(start).ok()?..usize::try_from(start + totals.stored).ok()?)
        })
        .filter(|range| range.end <= bytes.len())
        .map(|range| bytes.slice(range))
        .ok_or_else(|| SegmentError::corrupt("the row group has another length"))
}

fn offsets(segment: &Segment, index: usize, bytes: &Bytes) -> Result<Numbers, SegmentError> {
    Ok(Numbers::new(
        leaf::OFFSET,
        chunk(segment, index, bytes, leaf::OFFSET)?,
        NumberKind::Long,
    ))
}

impl ColumnReaders {
    fn new(segment: &Segment, index: usize, bytes: &Bytes) -> Result<ColumnReaders, SegmentError> {
        let chunk = |leaf| chunk(segment, index, bytes, leaf);
        let numbers = |leaf, kind| chunk(leaf).map(|chunk| Numbers::new(leaf, chunk, kind));
        Ok(ColumnReaders {
            offsets: offsets(segment, index, bytes)?,
            timestamps_ms: numbers(leaf::TS_MS, NumberKind::Long)?,
            timestamp_types: numbers(leaf::TS_TYPE, NumberKind::Int)?,
            leader_epochs: numbers(leaf::LEADER_EPOCH, NumberKind::NullableInt)?,
            keys: Strings::new(leaf::KEY, chunk(leaf::KEY)?),
            values: Strings::new(leaf::VALUE, chunk(leaf::VALUE)?),
            header_keys: Lists::keys(leaf::HEADER_KEY, chunk(leaf::HEADER_KEY)?),
            header_values: Lists::values(leaf::HEADER_VALUE, chunk(leaf::HEADER_VALUE)?),
        })
    }

    /// Passes over `count` records of fresh columns.
    fn skip(&mut self, count: usize, inflater: &mut Inflater) -> Result<(), SegmentError> {
        for numbers in [
            &mut self.offsets,
            &mut self.timestamps_ms,
            &mut self.timestamp_types,
            &mut self.leader_epochs,
        ] {
            numbers.skip(count, inflater)?;
        }
        self.keys.skip(count, inflater)?;
        self.values.skip(count, inflater)?;
        self.header_keys.skip(count, inflater)?;
        self.header_values.skip(count, inflater)
    }

    /// Reads pages until it is known how many records have `target` raw bytes, at least one and at most `most`. Gives that
    /// number and their raw bytes.
    fn measure(
        &mut self,
        target: u64,
        most: u64,
        inflater: &mut Inflater,
    ) -> Result<(usize, u64), SegmentError> {
        let (mut row, mut header, mut raw_bytes) = (0, 0, 0);
        while (row as u64) < most {
            if self.keys.ready().len() == row {
                self.keys.read_page(inflater)?;
            }
            if self.values.ready().len() == row {
                self.values.read_page(inflater)?;
            }
            // A page of lists has at least one record.
            if self.header_keys.counts().len() == row {
                self.header_keys.read_page(inflater)?;
            }
            if self.header_values.counts().len() == row {
                self.header_values.read_page(inflater)?;
            }
            let headers = self.header_keys.counts()[row];
            if self.header_values.counts()[row] != headers {
                return Err(SegmentError::corrupt(
                    "a record has more header keys than values, or fewer",
                ));
            }
            let header_end = header + headers as usize;
            let (keys, values) = (self.header_keys.ready(), self.header_values.ready());
            let header_bytes: u64 = (header..header_end)
                .map(|at| keys.byte_count(at) + values.byte_count(at))
                .sum();
            let record_bytes = self.keys.ready().byte_count(row)
                + self.values.ready().byte_count(row)
                + header_bytes;
            if record_bytes + u64::from(headers) * HEADER_OVERHEAD_BYTES > RECORD_BYTES_MAX {
                return Err(SegmentError::corrupt("a record is larger than 256 MiB"));
            }
            if row > 0 && raw_bytes + record_bytes > target {
                break;
            }
            raw_bytes += record_bytes;
            header = header_end;
            row += 1;
        }
        Ok((row, raw_bytes))
    }

    /// Takes the first `count` records, which have been measured.
    fn take(&mut self, count: usize, inflater: &mut Inflater) -> Result<Columns, SegmentError> {
        let malformed = || SegmentError::corrupt("a column holds what it must not");
        let timestamp_types = self
            .timestamp_types
            .take(count, inflater)?
            .into_iter()
            .map(|number| match number {
                0 => Ok(TimestampType::Create),
                1 => Ok(TimestampType::LogAppend),
                _ => Err(malformed()),
            })
            .collect::<Result<_, _>>()?;
        let leader_epochs = self.leader_epochs.take(count, inflater)?;
        let (header_counts, header_keys) = self.header_keys.take(count);
        let (_, header_values) = self.header_values.take(count);
        let header_ends = header_counts
            .iter()
            .scan(0_usize, |end, &count| {
                *end += count as usize;
                Some(*end)
            })
            .collect();
        Ok(Columns {
            offsets: self.offsets.take(count, inflater)?,
            timestamps_ms: self.timestamps_ms.take(count, inflater)?,
            timestamp_types,
            // -1 stands for null; other negative numbers have not come this far.
            leader_epochs: leader_epochs
                .into_iter()
                .map(|epoch| i32::try_from(epoch).ok().filter(|&epoch| epoch >= 0))
                .collect(),
            keys: self.keys.take(count),
            values: self.values.take(count),
            header_ends,
            header_keys,
            header_values,
        })
    }
}
