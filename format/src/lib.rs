//! Records, and the two shapes they travel in: Parquet segments in the archive, record batches (magic 2) on the wire.
//!
//! Nothing here sees a clock, a socket or a source of randomness: the same records always give the same bytes.
//! Neighbours: `everlog-index` names segments and keeps what is known of them, `everlog-archiver` writes them,
//! `everlog-proxy` turns them back into batches.

mod batch;
mod contain;
mod day;
mod hash;
mod identity;
mod offset;
mod record;
mod segment;
mod selection;

pub use batch::{
    BATCH_HEADER_LEN, BatchError, DecodedBatch, DecodedBatches, EncodedBatch, decode_batches,
    empty_batch, encode_batches, with_last_offset,
};
pub use contain::{Panicked, contain_panic, is_contained, panic_text};
pub use day::{Day, InvalidDay};
pub use hash::{Hash, InvalidHash, Salt};
pub use identity::{
    ClusterId, Incarnation, InvalidName, Partition, PartitionKey, TopicId, TopicName,
};
pub use offset::{NegativeOffset, Offset, OffsetRange};
pub use record::{Header, HeaderRef, Record, RecordRef, TimestampType};
pub use segment::{
    RECORD_BYTES_MAX, ROW_GROUP_RECORDS_MAX, RecordSlice, RowGroupInfo, RowGroupReader,
    SEGMENT_VERSION, Segment, SegmentError, SegmentIdentity, SegmentOptions, SegmentSummary,
    SegmentWriter,
};
pub use selection::{InvalidSelection, TopicSelection, is_compacted};
