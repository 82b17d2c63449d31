//! Record batches, magic 2: the shape in which records travel between Kafka's brokers and clients.
//!
//! Written from slices of a segment, always uncompressed and without a producer; read back for tests and tools. Kafka's
//! own batches pass the proxy untouched and never come by here.

mod decode;
mod encode;
mod varint;

#[cfg(test)]
mod tests;

pub use decode::{BatchError, DecodedBatch, DecodedBatches, decode_batches};
pub use encode::{EncodedBatch, empty_batch, encode_batches, with_last_offset};

/// Bytes before the first record of a batch.
pub const BATCH_HEADER_LEN: usize = 61;

/// Bytes of a batch that its length field does not count: the base offset and the length itself.
const LENGTH_OVERHEAD: usize = 12;

/// Where the fields of the header lie. All numbers are big endian.
mod at {
    pub(super) const LENGTH: usize = 8;
    pub(super) const LEADER_EPOCH: usize = 12;
    pub(super) const MAGIC: usize = 16;
    pub(super) const CRC: usize = 17;
    /// The checksum covers everything from here on: the leader epoch, which brokers assign, lies before it.
    pub(super) const ATTRIBUTES: usize = 21;
    pub(super) const LAST_OFFSET_DELTA: usize = 23;
    pub(super) const BASE_TIMESTAMP: usize = 27;
    pub(super) const MAX_TIMESTAMP: usize = 35;
    pub(super) const PRODUCER_ID: usize = 43;
    pub(super) const PRODUCER_EPOCH: usize = 51;
    pub(super) const BASE_SEQUENCE: usize = 53;
    pub(super) const RECORD_COUNT: usize = 57;
}

/// Bits of a batch's attributes.
mod attribute {
    pub(super) const COMPRESSION: i16 = 0b111;
    pub(super) const LOG_APPEND_TIME: i16 = 1 << 3;
    pub(super) const CONTROL: i16 = 1 << 5;
}
