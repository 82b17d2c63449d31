//! Records to batches.
//!
//! A batch holds records of one leader epoch, because clients stamp the batch's epoch on each of them, and of one type
//! of timestamp. With the broker's own time (`LogAppendTime`) clients take the batch's maximum for every record, so a
//! batch ends where that time changes. Deltas are kept inside 32 bits: clients exist that read them so.

use std::ops::Range;

use super::{BATCH_HEADER_LEN, LENGTH_OVERHEAD, at, attribute, varint};
use crate::segment::RecordSlice;
use crate::{HeaderRef, Offset, RecordRef, TimestampType};

/// A batch that was written into a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedBatch {
    /// The first record's offset.
    pub base_offset: Offset,
    /// The last record's offset.
    pub last_offset: Offset,
    /// The largest timestamp in it.
    pub max_timestamp_ms: i64,
    /// The epoch of all its records; -1 if unknown.
    pub leader_epoch: i32,
    /// Where it lies in the buffer.
    pub bytes: Range<usize>,
}

/// Appends the records of `slice` to `out` as batches of at most `batch_max_bytes`, header included. A larger record gets
/// a batch of its own. Offsets without a record lie between batches and inside of them, never behind the last record
/// of one: see [`with_last_offset`].
pub fn encode_batches(
    slice: &RecordSlice,
    batch_max_bytes: usize,
    out: &mut Vec<u8>,
) -> Vec<EncodedBatch> {
    let mut batches = Vec::new();
    let mut headers = Vec::new();
    let mut open: Option<OpenBatch> = None;
    out.reserve(
        usize::try_from(slice.raw_bytes()).unwrap_or(0) + slice.len() * 16 + BATCH_HEADER_LEN,
    );
    for index in 0..slice.len() {
        let record = slice.get(index, &mut headers);
        let (mut batch, layout) = match open.take() {
            Some(batch) => match batch.layout_if_it_fits(&record, batch_max_bytes, out.len()) {
                Some(layout) => (batch, layout),
                None => {
                    batches.extend(batch.close(out));
                    OpenBatch::start(&record, out)
                }
            },
            None => OpenBatch::start(&record, out),
        };
        batch.push(&record, &layout, out);
        open = Some(batch);
    }
    batches.extend(open.and_then(|batch| batch.close(out)));
    batches
}

/// A batch without records that brings a client from `base` (or from somewhere in between) to the offset behind `last`.
/// Should the two lie too far apart for one batch, it starts later than `base`.
pub fn empty_batch(base: Offset, last: Offset, leader_epoch: i32) -> Vec<u8> {
    let base = base
        .get()
        .max(last.get() - i64::from(i32::MAX))
        .min(last.get());
    let mut out = vec![0; BATCH_HEADER_LEN];
    write_header(
        &mut out,
        &BatchFields {
            base_offset: base,
            leader_epoch,
            attributes: 0,
            last_offset_delta: i32::try_from(last.get() - base).unwrap_or(i32::MAX),
            base_timestamp: -1,
            max_timestamp: -1,
            record_count: 0,
        },
    );
    out
}

/// A copy of one whole batch that speaks for all offsets up to and including `last`, so that a client goes on behind it.
/// `None` if `last` lies before the batch's end or too far behind its start, or if `batch` is no whole batch.
pub fn with_last_offset(batch: &[u8], last: Offset) -> Option<Vec<u8>> {
    let base = i64::from_be_bytes(*batch.first_chunk()?);
    let length = i32::from_be_bytes(*batch.get(at::LENGTH..)?.first_chunk()?);
    let whole = usize::try_from(length).ok()?.checked_add(LENGTH_OVERHEAD)?;
    if batch.len() != whole || whole < BATCH_HEADER_LEN || batch[at::MAGIC] != 2 {
        return None;
    }
    let before = i32::from_be_bytes(*batch[at::LAST_OFFSET_DELTA..].first_chunk()?);
    let delta = i32::try_from(last.get().checked_sub(base)?)
        .ok()
        .filter(|&delta| delta >= before)?;
    let mut out = batch.to_vec();
    put(&mut out, at::LAST_OFFSET_DELTA, &delta.to_be_bytes());
    write_crc(&mut out);
    Some(out)
}

/// What a batch's header says beside lengths and checksum.
struct BatchFields {
    base_offset: i64,
    leader_epoch: i32,
    attributes: i16,
    last_offset_delta: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    record_count: i32,
}

/// A batch that still takes records. Its header is room in the buffer until it is closed.
struct OpenBatch {
    start: usize,
    fields: BatchFields,
    timestamp_type: TimestampType,
}

/// What has to be known of a record before its first byte is written.
struct RecordLayout {
    body_len: usize,
    offset_delta: i32,
    timestamp_delta: i64,
}

impl OpenBatch {
    /// Opens a batch for `record`, which is yet to be pushed.
    fn start(record: &RecordRef<'_>, out: &mut Vec<u8>) -> (OpenBatch, RecordLayout) {
        let start = out.len();
        out.extend_from_slice(&[0; BATCH_HEADER_LEN]);
        let batch = OpenBatch {
            start,
            fields: BatchFields {
                base_offset: record.offset,
                leader_epoch: record.leader_epoch.unwrap_or(-1),
                attributes: match record.timestamp_type {
                    TimestampType::Create => 0,
                    TimestampType::LogAppend => attribute::LOG_APPEND_TIME,
                },
                last_offset_delta: 0,
                base_timestamp: record.timestamp_ms,
                max_timestamp: record.timestamp_ms,
                record_count: 0,
            },
            timestamp_type: record.timestamp_type,
        };
        (batch, RecordLayout::new(record, 0, 0))
    }

    /// How `record` would be written, or `None` if it belongs into a new batch.
    fn layout_if_it_fits(
        &self,
        record: &RecordRef<'_>,
        max_bytes: usize,
        out_len: usize,
    ) -> Option<RecordLayout> {
        let fields = &self.fields;
        let offset_delta = record
            .offset
            .checked_sub(fields.base_offset)
            .and_then(|delta| i32::try_from(delta).ok())?;
        let timestamp_delta = record.timestamp_ms.checked_sub(fields.base_timestamp)?;
        let same_kind = record.leader_epoch.unwrap_or(-1) == fields.leader_epoch
            && record.timestamp_type == self.timestamp_type
            && match self.timestamp_type {
                TimestampType::LogAppend => timestamp_delta == 0,
                TimestampType::Create => i32::try_from(timestamp_delta).is_ok(),
            };
        if !same_kind {
            return None;
        }
        let layout = RecordLayout::new(record, offset_delta, timestamp_delta);
        (out_len - self.start + layout.len() <= max_bytes).then_some(layout)
    }

    fn push(&mut self, record: &RecordRef<'_>, layout: &RecordLayout, out: &mut Vec<u8>) {
        out.reserve(layout.len());
        varint::put_length(out, layout.body_len);
        // A record's attributes: none are defined.
        out.push(0);
        varint::put(out, layout.timestamp_delta);
        varint::put(out, i64::from(layout.offset_delta));
        put_bytes(out, record.key);
        put_bytes(out, record.value);
        varint::put_length(out, record.headers.len());
        for HeaderRef { key, value } in record.headers {
            put_bytes(out, Some(key));
            put_bytes(out, *value);
        }
        self.fields.last_offset_delta = layout.offset_delta;
        self.fields.max_timestamp = self.fields.max_timestamp.max(record.timestamp_ms);
        self.fields.record_count += 1;
    }

    fn close(self, out: &mut [u8]) -> Option<EncodedBatch> {
        write_header(&mut out[self.start..], &self.fields);
        Some(EncodedBatch {
            base_offset: Offset::new(self.fields.base_offset).ok()?,
            last_offset: Offset::new(
                self.fields.base_offset + i64::from(self.fields.last_offset_delta),
            )
            .ok()?,
            max_timestamp_ms: self.fields.max_timestamp,
            leader_epoch: self.fields.leader_epoch,
            bytes: self.start..out.len(),
        })
    }
}

impl RecordLayout {
    fn new(record: &RecordRef<'_>, offset_delta: i32, timestamp_delta: i64) -> RecordLayout {
        let headers: usize = record
            .headers
            .iter()
            .map(|header| bytes_len(Some(header.key)) + bytes_len(header.value))
            .sum();
        let body_len = 1
            + varint::len(timestamp_delta)
            + varint::len(i64::from(offset_delta))
            + bytes_len(record.key)
            + bytes_len(record.value)
            + varint::len_of_length(record.headers.len())
            + headers;
        RecordLayout {
            body_len,
            offset_delta,
            timestamp_delta,
        }
    }

    /// Bytes of the record, its own length included.
    fn len(&self) -> usize {
        varint::len_of_length(self.body_len) + self.body_len
    }
}

/// Bytes that [`put_bytes`] writes.
fn bytes_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| varint::len_of_length(bytes.len()) + bytes.len())
}

/// A length and the bytes; length -1 is null.
fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            varint::put_length(out, bytes.len());
            out.extend_from_slice(bytes);
        }
        None => varint::put(out, -1),
    }
}

/// Fills in the header of the batch that `batch` consists of.
fn write_header(batch: &mut [u8], fields: &BatchFields) {
    // A segment's records are below 256 MiB each and a batch above its limit holds one: the length fits.
    let length = i32::try_from(batch.len() - LENGTH_OVERHEAD).unwrap_or(i32::MAX);
    put(batch, 0, &fields.base_offset.to_be_bytes());
    put(batch, at::LENGTH, &length.to_be_bytes());
    put(batch, at::LEADER_EPOCH, &fields.leader_epoch.to_be_bytes());
    put(batch, at::MAGIC, &[2]);
    put(batch, at::ATTRIBUTES, &fields.attributes.to_be_bytes());
    put(
        batch,
        at::LAST_OFFSET_DELTA,
        &fields.last_offset_delta.to_be_bytes(),
    );
    put(
        batch,
        at::BASE_TIMESTAMP,
        &fields.base_timestamp.to_be_bytes(),
    );
    put(
        batch,
        at::MAX_TIMESTAMP,
        &fields.max_timestamp.to_be_bytes(),
    );
    put(batch, at::PRODUCER_ID, &(-1_i64).to_be_bytes());
    put(batch, at::PRODUCER_EPOCH, &(-1_i16).to_be_bytes());
    put(batch, at::BASE_SEQUENCE, &(-1_i32).to_be_bytes());
    put(batch, at::RECORD_COUNT, &fields.record_count.to_be_bytes());
    write_crc(batch);
}

fn write_crc(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[at::ATTRIBUTES..]);
    put(batch, at::CRC, &crc.to_be_bytes());
}

fn put(batch: &mut [u8], at: usize, bytes: &[u8]) {
    batch[at..at + bytes.len()].copy_from_slice(bytes);
}
