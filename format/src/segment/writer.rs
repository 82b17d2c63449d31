//! Records in, Parquet out. Bytes go to the output as soon as a row group is full and are hashed on the way, so
//! memory holds one row group and no more.

use std::io::Write;
use std::sync::Arc;

use arrow_array::builder::ArrayBuilder;
use arrow_array::builder::BinaryBuilder;
use arrow_array::{
    ArrayRef, Date32Array, Int32Array, Int64Array, ListArray, RecordBatch, StructArray,
    TimestampMicrosecondArray,
};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::DataType;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use sha2::{Digest, Sha256};

use super::footer::{FooterFields, RowGroupFields};
use super::schema::{DESCRIPTOR, WRITE_SCHEMA, writer_properties};
use super::{
    RECORD_BYTES_MAX, ROW_GROUP_RECORDS_MAX, SegmentError, SegmentIdentity, SegmentOptions,
    SegmentSummary,
};
use crate::{Day, Hash, Offset, OffsetRange, RecordRef, Salt, TimestampType};

/// Records are handed to Parquet in chunks of at most about this many raw bytes, and no more than a page holds: enough to
/// make the hand-over cheap, little enough for a row group to end close to its limit.
const CHUNK_RAW_BYTES_MAX: usize = 256 << 10;
/// And of at most this many records.
const CHUNK_RECORDS: usize = 4096;
/// And of at most this many headers.
const CHUNK_HEADERS: u64 = 16384;
/// What a header counts towards a record's size beside its raw bytes.
pub(super) const HEADER_OVERHEAD_BYTES: u64 = 16;

/// Writes one segment.
///
/// The same calls with the same salt give the same bytes. After an error the output holds a torso: throw it away.
pub struct SegmentWriter<W: Write + Send> {
    parquet: ArrowWriter<HashingWriter<W>>,
    identity: SegmentIdentity,
    start: Offset,
    day: Day,
    salt: Salt,
    options: SegmentOptions,
    chunk: Chunk,
    group: GroupCounts,
    groups: Vec<RowGroupFields>,
    totals: Totals,
}

impl<W: Write + Send> std::fmt::Debug for SegmentWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentWriter")
            .field("identity", &self.identity)
            .field("start", &self.start)
            .field("records", &self.totals.records)
            .finish_non_exhaustive()
    }
}

/// Hashes and counts what goes by.
struct HashingWriter<W> {
    /// `None` once the segment is finished.
    inner: Option<W>,
    /// The last bytes that went by: a finished file ends in the length of its footer.
    tail: [u8; 8],
    sha256: Sha256,
    bytes: u64,
    /// CRC-32C of the bytes since the last row group ended.
    crc32c: u32,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let inner = self.inner.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
        let len = inner.write(buf)?;
        let taken = buf.get(..len).unwrap_or(buf);
        self.sha256.update(taken);
        for &byte in &taken[taken.len().saturating_sub(8)..] {
            self.tail.rotate_left(1);
            self.tail[7] = byte;
        }
        self.crc32c = crc32c::crc32c_append(self.crc32c, taken);
        self.bytes += taken.len() as u64;
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// What is known of the row group that is being filled, the chunk included.
#[derive(Default)]
struct GroupCounts {
    records: u64,
    raw_bytes: u64,
    headers: u64,
}

/// What is known of all records so far.
struct Totals {
    records: u64,
    raw_bytes: u64,
    last_offset: Option<i64>,
    min_timestamp_ms: i64,
    max_timestamp_ms: i64,
    time_disorder: bool,
    epochs: Vec<(i32, Offset)>,
}

impl<W: Write + Send> SegmentWriter<W> {
    /// Starts a segment that will cover offsets from `start` on. `salt` is 16 fresh random bytes, `day` what every
    /// row gets as `dt`.
    pub fn new(
        out: W,
        identity: SegmentIdentity,
        start: Offset,
        day: Day,
        salt: Salt,
        options: SegmentOptions,
    ) -> Result<SegmentWriter<W>, SegmentError> {
        let properties = writer_properties(&options)?;
        let parquet_options = ArrowWriterOptions::new()
            .with_properties(properties)
            .with_parquet_schema((**DESCRIPTOR).clone())
            // The columns say everything; a copy of arrow's schema would bind other writers to arrow.
            .with_skip_arrow_metadata(true);
        let out = HashingWriter {
            inner: Some(out),
            tail: [0; 8],
            sha256: Sha256::new(),
            bytes: 0,
            crc32c: 0,
        };
        let parquet = ArrowWriter::try_new_with_options(out, WRITE_SCHEMA.clone(), parquet_options)
            .map_err(write_error)?;
        let mut writer = SegmentWriter {
            parquet,
            identity,
            start,
            day,
            salt,
            options,
            chunk: Chunk::default(),
            group: GroupCounts::default(),
            groups: Vec::new(),
            totals: Totals {
                records: 0,
                raw_bytes: 0,
                last_offset: None,
                min_timestamp_ms: i64::MAX,
                max_timestamp_ms: i64::MIN,
                time_disorder: false,
                epochs: Vec::new(),
            },
        };
        // The magic bytes in front belong to no row group.
        writer.sync()?;
        writer.parquet.inner_mut().crc32c = 0;
        Ok(writer)
    }

    /// Adds a record. Offsets ascend strictly, from `start` on.
    pub fn push(&mut self, record: &RecordRef<'_>) -> Result<(), SegmentError> {
        let raw_bytes = record.raw_bytes();
        self.check(record, raw_bytes)?;
        let headers = record.headers.len() as u64;
        let is_full = self.group.records > 0
            && (self.group.raw_bytes + raw_bytes > self.options.row_group_raw_max_bytes as u64
                || self.group.headers + headers > ROW_GROUP_RECORDS_MAX
                || self.group.records == ROW_GROUP_RECORDS_MAX);
        if is_full {
            self.close_group()?;
        } else if !self.chunk.is_empty()
            && !self
                .chunk
                .has_room_for(raw_bytes, headers, self.chunk_raw_bytes())
        {
            self.write_chunk()?;
            // What is still to come could be incompressible: leave room for a chunk of it.
            let next = self.chunk_raw_bytes().max(raw_bytes) + headers * HEADER_OVERHEAD_BYTES;
            let encoded = self.parquet.in_progress_size() as u64;
            if encoded + next > self.options.row_group_encoded_max_bytes as u64 {
                self.close_group()?;
            }
        }
        self.chunk.push(record, raw_bytes);
        self.group.records += 1;
        self.group.raw_bytes += raw_bytes;
        self.group.headers += headers;
        self.totals.add(record, raw_bytes);
        Ok(())
    }

    /// What the object would measure now, in bytes: what is written, plus an estimate of what is not yet. The footer
    /// is not counted.
    pub fn encoded_bytes(&self) -> u64 {
        // A chunk counts at a third, about what records compress to: it is small, and the error with it.
        self.parquet.bytes_written() as u64
            + self.parquet.in_progress_size() as u64
            + self.chunk.raw_bytes / 3
    }

    /// Closes the row group that is being filled and sends it to the output, so that its memory is free. Nothing
    /// happens if it is empty. Small row groups compress worse and make readers ask more often.
    pub fn end_row_group(&mut self) -> Result<(), SegmentError> {
        self.close_group()
    }

    /// Memory that the open row group takes, in bytes: at most about its encoded limit and a few pages.
    pub fn buffered_bytes(&self) -> u64 {
        self.parquet.memory_size() as u64 + self.chunk.memory_bytes()
    }

    /// How many records it holds so far.
    pub fn records(&self) -> u64 {
        self.totals.records
    }

    /// Sum of the records' [`RecordRef::raw_bytes`] so far.
    pub fn raw_bytes(&self) -> u64 {
        self.totals.raw_bytes
    }

    /// Ends the segment. It speaks for all offsets from its start up to, not including, `end`.
    pub fn finish(mut self, end: Offset) -> Result<(SegmentSummary, W), SegmentError> {
        let last = self.totals.last_offset.ok_or(SegmentError::Empty)?;
        let range = OffsetRange::new(self.start, end)
            .filter(|_| end.get() > last)
            .ok_or({
                SegmentError::OutOfOrder {
                    found: end.get(),
                    wanted_from: last.saturating_add(1),
                    wanted_below: i64::MAX,
                }
            })?;
        self.close_group()?;
        let fields = FooterFields {
            identity: self.identity,
            range,
            salt: self.salt,
            row_groups: self.groups,
        };
        for (key, value) in fields.to_pairs() {
            self.parquet
                .append_key_value_metadata(KeyValue::new(key, value));
        }
        self.parquet.finish().map_err(write_error)?;
        let hashing = self.parquet.inner_mut();
        let [a, b, c, d, _, _, _, _] = hashing.tail;
        let digest = std::mem::take(&mut hashing.sha256).finalize();
        let summary = SegmentSummary {
            range,
            records: self.totals.records,
            bytes: hashing.bytes,
            raw_bytes: self.totals.raw_bytes,
            min_timestamp_ms: self.totals.min_timestamp_ms,
            max_timestamp_ms: self.totals.max_timestamp_ms,
            epochs: self.totals.epochs,
            day: self.day,
            time_disorder: self.totals.time_disorder,
            hash: Hash::from_digest(digest.into()),
            footer_len: u32::from_le_bytes([a, b, c, d]).saturating_add(8),
        };
        let out = hashing
            .inner
            .take()
            .ok_or_else(|| SegmentError::Io(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok((summary, out))
    }

    fn check(&self, record: &RecordRef<'_>, raw_bytes: u64) -> Result<(), SegmentError> {
        let wanted_from = match self.totals.last_offset {
            Some(last) => last.checked_add(1),
            None => Some(self.start.get()),
        };
        // The last offset of all would leave no end behind it.
        if wanted_from.is_none_or(|from| record.offset < from) || record.offset == i64::MAX {
            return Err(SegmentError::OutOfOrder {
                found: record.offset,
                wanted_from: wanted_from.unwrap_or(i64::MAX),
                wanted_below: i64::MAX - 1,
            });
        }
        let unfit = |reason| {
            Err(SegmentError::Unfit {
                offset: record.offset,
                reason,
            })
        };
        if raw_bytes.saturating_add(record.headers.len() as u64 * HEADER_OVERHEAD_BYTES)
            > RECORD_BYTES_MAX
        {
            return unfit("it is larger than 256 MiB");
        }
        if record.leader_epoch.is_some_and(|epoch| epoch < 0) {
            return unfit("its leader epoch is negative");
        }
        Ok(())
    }

    fn chunk_raw_bytes(&self) -> u64 {
        self.options.page_max_bytes.min(CHUNK_RAW_BYTES_MAX) as u64
    }

    fn write_chunk(&mut self) -> Result<(), SegmentError> {
        let batch = self.chunk.take(self.day, self.identity.partition.get())?;
        self.parquet.write(&batch).map_err(write_error)
    }

    fn close_group(&mut self) -> Result<(), SegmentError> {
        if !self.chunk.is_empty() {
            self.write_chunk()?;
            // The next record may be long in coming: no room is kept for it.
            self.chunk = Chunk::default();
        }
        if self.group.records == 0 {
            return Ok(());
        }
        self.parquet.flush().map_err(write_error)?;
        self.sync()?;
        let crc32c = std::mem::take(&mut self.parquet.inner_mut().crc32c);
        self.groups.push(RowGroupFields {
            raw_bytes: self.group.raw_bytes,
            crc32c,
        });
        self.group = GroupCounts::default();
        Ok(())
    }

    /// Parquet keeps some bytes back; the checksum of a row group needs all of them.
    fn sync(&mut self) -> Result<(), SegmentError> {
        self.parquet.sync().map_err(SegmentError::Io)
    }
}

impl Totals {
    fn add(&mut self, record: &RecordRef<'_>, raw_bytes: u64) {
        self.records += 1;
        self.raw_bytes += raw_bytes;
        self.last_offset = Some(record.offset);
        // Before any record the maximum is the smallest number, so the first one is never in disorder.
        self.time_disorder |= record.timestamp_ms < self.max_timestamp_ms;
        self.min_timestamp_ms = self.min_timestamp_ms.min(record.timestamp_ms);
        self.max_timestamp_ms = self.max_timestamp_ms.max(record.timestamp_ms);
        let epoch = record.leader_epoch.unwrap_or(-1);
        if self.epochs.last().is_none_or(|&(last, _)| last != epoch) {
            // `check` has refused negative offsets.
            self.epochs.extend(
                Offset::new(record.offset)
                    .ok()
                    .map(|offset| (epoch, offset)),
            );
        }
    }
}

/// Records on their way into Parquet, column by column.
#[derive(Default)]
struct Chunk {
    offsets: Vec<i64>,
    timestamps_ms: Vec<i64>,
    timestamp_types: Vec<i32>,
    leader_epochs: Vec<Option<i32>>,
    keys: BinaryBuilder,
    values: BinaryBuilder,
    /// Where each record's headers end.
    header_ends: Vec<i32>,
    header_keys: BinaryBuilder,
    header_values: BinaryBuilder,
    raw_bytes: u64,
}

impl Chunk {
    fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    fn has_room_for(&self, raw_bytes: u64, headers: u64, limit: u64) -> bool {
        self.raw_bytes + raw_bytes <= limit
            && self.offsets.len() < CHUNK_RECORDS
            && self.header_keys.len() as u64 + headers <= CHUNK_HEADERS
    }

    fn memory_bytes(&self) -> u64 {
        // 28 bytes for the four numbers of a record, 8 and two bits for the ends of its key, value and headers; a
        // header has two byte strings.
        self.raw_bytes + self.offsets.len() as u64 * 40 + self.header_keys.len() as u64 * 10
    }

    fn push(&mut self, record: &RecordRef<'_>, raw_bytes: u64) {
        self.offsets.push(record.offset);
        self.timestamps_ms.push(record.timestamp_ms);
        self.timestamp_types.push(match record.timestamp_type {
            TimestampType::Create => 0,
            TimestampType::LogAppend => 1,
        });
        self.leader_epochs.push(record.leader_epoch);
        self.keys.append_option(record.key);
        self.values.append_option(record.value);
        for header in record.headers {
            self.header_keys.append_value(header.key);
            self.header_values.append_option(header.value);
        }
        // `RECORD_BYTES_MAX` allows 16 Mi headers in one record, and only a chunk of one record has more than its limit.
        self.header_ends
            .push(i32::try_from(self.header_keys.len()).unwrap_or(i32::MAX));
        self.raw_bytes += raw_bytes;
    }

    /// Hands the records over as arrays and is empty again.
    fn take(&mut self, day: Day, partition: i32) -> Result<RecordBatch, SegmentError> {
        let mut chunk = std::mem::take(self);
        let len = chunk.offsets.len();
        // The next one will be about as large: growing it step by step would copy it twice.
        self.offsets.reserve(len);
        self.timestamps_ms.reserve(len);
        self.values = BinaryBuilder::with_capacity(len, chunk.values.values_slice().len());
        let micros: Vec<Option<i64>> = chunk
            .timestamps_ms
            .iter()
            .map(|ms| ms.checked_mul(1000))
            .collect();
        let DataType::List(element) = WRITE_SCHEMA.field(9).data_type() else {
            return Err(SegmentError::Encode(
                "the schema has lost its headers".into(),
            ));
        };
        let DataType::Struct(header_fields) = element.data_type() else {
            return Err(SegmentError::Encode(
                "the schema has lost its headers".into(),
            ));
        };
        let headers = StructArray::try_new(
            header_fields.clone(),
            vec![
                Arc::new(chunk.header_keys.finish()),
                Arc::new(chunk.header_values.finish()),
            ],
            None,
        )
        .map_err(encode_error)?;
        let header_offsets = std::iter::once(0)
            .chain(chunk.header_ends)
            .collect::<ScalarBuffer<i32>>();
        let headers = ListArray::try_new(
            element.clone(),
            OffsetBuffer::new(header_offsets),
            Arc::new(headers),
            None,
        )
        .map_err(encode_error)?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Date32Array::from(vec![day.days_since_epoch(); len])),
            Arc::new(Int32Array::from(vec![partition; len])),
            Arc::new(Int64Array::from(chunk.offsets)),
            Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC")),
            Arc::new(Int64Array::from(chunk.timestamps_ms)),
            Arc::new(Int32Array::from(chunk.timestamp_types)),
            Arc::new(Int32Array::from(chunk.leader_epochs)),
            Arc::new(chunk.keys.finish()),
            Arc::new(chunk.values.finish()),
            Arc::new(headers),
        ];
        RecordBatch::try_new(WRITE_SCHEMA.clone(), columns).map_err(encode_error)
    }
}

fn encode_error(err: arrow_schema::ArrowError) -> SegmentError {
    SegmentError::Encode(Box::new(err))
}

/// Tells the output's trouble from the encoder's.
fn write_error(err: ParquetError) -> SegmentError {
    match err {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(io) => SegmentError::Io(*io),
            Err(other) => SegmentError::Encode(other),
        },
        other => SegmentError::Encode(Box::new(other)),
    }
}
