//! Batches to records: for tests and tools. The bytes may be anybody's, so every length is held against what is there
//! before anything is set aside for it.

use super::{BATCH_HEADER_LEN, LENGTH_OVERHEAD, at, attribute, varint};
use crate::{Header, Record, TimestampType};

/// What is wrong with the bytes, split by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// They end inside of a batch: get more. Brokers cut the last batch of an answer.
    #[error("the batch at byte {at} is not whole")]
    Partial {
        /// Where the batch starts.
        at: usize,
    },
    /// A codec or a format from before magic 2, which this decoder doesn't read.
    #[error("the batch at byte {at} is not uncompressed and of magic 2")]
    Unsupported {
        /// Where the batch starts.
        at: usize,
    },
    /// These are no batches, or broken ones.
    #[error("the batch at byte {at} is corrupt: {reason}")]
    Corrupt {
        /// Where the batch starts.
        at: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// One batch, its header as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedBatch {
    /// The offset that deltas count from.
    pub base_offset: i64,
    /// The last offset that the batch speaks for; may lie behind its last record.
    pub last_offset: i64,
    /// -1 if unknown.
    pub partition_leader_epoch: i32,
    /// All bits.
    pub attributes: i16,
    /// The timestamp that deltas count from.
    pub base_timestamp_ms: i64,
    /// What the header says is the largest timestamp.
    pub max_timestamp_ms: i64,
    /// -1 without a producer.
    pub producer_id: i64,
    /// -1 without a producer.
    pub producer_epoch: i16,
    /// -1 without a producer.
    pub base_sequence: i32,
    /// The records, as a consumer would see them. Those of a control batch are markers.
    pub records: Vec<Record>,
}

impl DecodedBatch {
    /// Whether the records are transaction markers.
    pub fn is_control(&self) -> bool {
        self.attributes & attribute::CONTROL != 0
    }
}

/// The batches in `bytes`, one after the other. Ends after the first error.
pub fn decode_batches(bytes: &[u8]) -> DecodedBatches<'_> {
    DecodedBatches { bytes, at: 0 }
}

/// See [`decode_batches`].
#[derive(Clone, Debug)]
pub struct DecodedBatches<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Iterator for DecodedBatches<'_> {
    type Item = Result<DecodedBatch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let at = self.at;
        match decode_batch(rest, at) {
            Ok((batch, len)) => {
                self.at += len;
                Some(Ok(batch))
            }
            Err(err) => {
                self.at = self.bytes.len();
                Some(Err(err))
            }
        }
    }
}

/// The big-endian number of `N` bytes at `at`; the caller knows that it is there.
fn field<const N: usize>(batch: &[u8], at: usize) -> [u8; N] {
    batch
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn decode_batch(bytes: &[u8], position: usize) -> Result<(DecodedBatch, usize), BatchError> {
    let corrupt = |reason| BatchError::Corrupt {
        at: position,
        reason,
    };
    if bytes.len() <= at::MAGIC {
        return Err(BatchError::Partial { at: position });
    }
    // The magic byte lies at the same place in all versions.
    if bytes[at::MAGIC] != 2 {
        return Err(BatchError::Unsupported { at: position });
    }
    let length = usize::try_from(i32::from_be_bytes(field(bytes, at::LENGTH)))
        .map_err(|_| corrupt("length"))?;
    let len = length.saturating_add(LENGTH_OVERHEAD);
    if len < BATCH_HEADER_LEN {
        return Err(corrupt("length"));
    }
    let batch = bytes
        .get(..len)
        .ok_or(BatchError::Partial { at: position })?;
    if crc32c::crc32c(&batch[at::ATTRIBUTES..]) != u32::from_be_bytes(field(batch, at::CRC)) {
        return Err(corrupt("checksum"));
    }
    let base_offset = i64::from_be_bytes(field(batch, 0));
    let last_offset_delta = i32::from_be_bytes(field(batch, at::LAST_OFFSET_DELTA));
    let last_offset = base_offset
        .checked_add(i64::from(last_offset_delta))
        .filter(|_| base_offset >= 0 && last_offset_delta >= 0)
        .ok_or_else(|| corrupt("offsets"))?;
    let mut decoded = DecodedBatch {
        base_offset,
        last_offset,
        partition_leader_epoch: i32::from_be_bytes(field(batch, at::LEADER_EPOCH)),
        attributes: i16::from_be_bytes(field(batch, at::ATTRIBUTES)),
        base_timestamp_ms: i64::from_be_bytes(field(batch, at::BASE_TIMESTAMP)),
        max_timestamp_ms: i64::from_be_bytes(field(batch, at::MAX_TIMESTAMP)),
        producer_id: i64::from_be_bytes(field(batch, at::PRODUCER_ID)),
        producer_epoch: i16::from_be_bytes(field(batch, at::PRODUCER_EPOCH)),
        base_sequence: i32::from_be_bytes(field(batch, at::BASE_SEQUENCE)),
        records: Vec::new(),
    };
    if decoded.attributes & attribute::COMPRESSION != 0 {
        return Err(BatchError::Unsupported { at: position });
    }
    let count = i32::from_be_bytes(field(batch, at::RECORD_COUNT));
    let mut rest = &batch[BATCH_HEADER_LEN..];
    for _ in 0..count {
        let record = record(&mut rest, &decoded).ok_or_else(|| corrupt("record"))?;
        let before = decoded
            .records
            .last()
            .map_or(base_offset - 1, |before| before.offset);
        if record.offset <= before || record.offset > last_offset {
            return Err(corrupt("offsets"));
        }
        decoded.records.push(record);
    }
    if count < 0 || !rest.is_empty() {
        return Err(corrupt("record count"));
    }
    Ok((decoded, len))
}

/// Takes one record off the front of `input`.
fn record(input: &mut &[u8], batch: &DecodedBatch) -> Option<Record> {
    let len = usize::try_from(varint::take_i32(input)?).ok()?;
    let (mut body, rest) = input.split_at_checked(len)?;
    *input = rest;
    // The record's attributes: none are defined, any are ignored.
    body = body.get(1..)?;
    let timestamp_delta = varint::take(&mut body)?;
    let offset_delta = varint::take_i32(&mut body)?;
    let key = take_bytes(&mut body)?;
    let value = take_bytes(&mut body)?;
    let header_count = varint::take_i32(&mut body)?;
    let mut headers = Vec::new();
    for _ in 0..header_count {
        headers.push(Header {
            key: take_bytes(&mut body)??,
            value: take_bytes(&mut body)?,
        });
    }
    if header_count < 0 || !body.is_empty() {
        return None;
    }
    let log_append = batch.attributes & attribute::LOG_APPEND_TIME != 0;
    Some(Record {
        offset: batch.base_offset.checked_add(i64::from(offset_delta))?,
        timestamp_ms: match log_append {
            true => batch.max_timestamp_ms,
            false => batch.base_timestamp_ms.checked_add(timestamp_delta)?,
        },
        timestamp_type: if log_append {
            TimestampType::LogAppend
        } else {
            TimestampType::Create
        },
        leader_epoch: Some(batch.partition_leader_epoch).filter(|&epoch| epoch >= 0),
        key,
        value,
        headers,
    })
}

/// Takes a length and as many bytes; `Some(None)` is null.
#[expect(
    clippy::option_option,
    reason = "the outer one says whether the bytes were there, the inner one is Kafka's null"
)]
fn take_bytes(input: &mut &[u8]) -> Option<Option<Vec<u8>>> {
    let len = varint::take_i32(input)?;
    if len == -1 {
        return Some(None);
    }
    let (bytes, rest) = input.split_at_checked(usize::try_from(len).ok()?)?;
    *input = rest;
    Some(Some(bytes.to_vec()))
}
