//! Segments: one Parquet file that holds the records of one partition in one covered range.
//!
//! [`SegmentWriter`] turns records into such a file, [`Segment`] is a footer that was read and believed, and
//! [`RowGroupReader`] turns the bytes of one row group back into records, slice by slice. `docs/archive-format.md`
//! specifies the bytes. Where the bytes come from and go to is the business of the neighbours: nothing here opens
//! a file. The hash in an object's name is checked by whoever holds the whole object.

mod columns;
mod encodings;
mod error;
mod footer;
mod footer_shape;
mod pages;
mod reader;
mod schema;
mod slice;
mod thrift;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use crate::{Day, Hash, Incarnation, Offset, OffsetRange, Partition, TopicName};

pub use error::SegmentError;
pub use footer::{RowGroupInfo, Segment};
pub use reader::RowGroupReader;
pub use slice::RecordSlice;
pub use writer::SegmentWriter;

/// The version that this code writes, and the only one that it reads.
pub const SEGMENT_VERSION: u32 = 1;

/// A row group never holds more records than this, however small they are: it bounds what a reader has to set aside
/// for columns that compress to nothing.
pub const ROW_GROUP_RECORDS_MAX: u64 = 1 << 20;

/// The largest record, in bytes as [`crate::RecordRef::raw_bytes`] counts them plus 16 for each header. Kafka's own
/// limits lie far below (a request may have 100 MiB by default); everything that counts bytes in 32 bits, from Arrow
/// to the length of a record batch, is safe under it.
pub const RECORD_BYTES_MAX: u64 = 256 << 20;

/// Whose records a segment holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SegmentIdentity {
    /// Cluster and topic id.
    pub incarnation: Incarnation,
    /// The topic's name when the segment was written: for people and SQL, not part of the identity.
    pub topic: TopicName,
    /// The partition.
    pub partition: Partition,
}

/// How a segment is laid out. None of it changes what the segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentOptions {
    /// Level of zstd, 1 to 19. Default 2: on pages of 256 KiB as fast as 1, a tenth smaller and faster to read; level 3 costs
    /// a tenth of the speed for nothing.
    pub zstd_level: i32,
    /// A row group is closed before it gets larger than this, in encoded bytes. Default 8 MiB: one ranged read.
    pub row_group_encoded_max_bytes: usize,
    /// A row group is closed before its records' raw bytes are more than this. Default 32 MiB: what a reader may
    /// have to decode to get at the last record.
    pub row_group_raw_max_bytes: usize,
    /// A page holds at most about this many bytes before compression, unless one record is larger. Default 256 KiB, up to
    /// which zstd takes parameters for small inputs: larger pages compress worse and slower.
    pub page_max_bytes: usize,
}

impl Default for SegmentOptions {
    fn default() -> SegmentOptions {
        SegmentOptions {
            zstd_level: 2,
            row_group_encoded_max_bytes: 8 << 20,
            row_group_raw_max_bytes: 32 << 20,
            page_max_bytes: 256 << 10,
        }
    }
}

/// What is to be known of a segment once it is written: the tree's entry for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentSummary {
    /// The offsets that the segment speaks for.
    pub range: OffsetRange,
    /// How many records it holds, at least 1.
    pub records: u64,
    /// Length of the object in bytes.
    pub bytes: u64,
    /// Sum of the records' [`crate::RecordRef::raw_bytes`].
    pub raw_bytes: u64,
    /// Smallest timestamp, -1 (none given) included.
    pub min_timestamp_ms: i64,
    /// Largest timestamp.
    pub max_timestamp_ms: i64,
    /// Where each run of one leader epoch starts, in order; epoch -1 where it is unknown. Never empty, and the first
    /// starts at the first record.
    pub epochs: Vec<(i32, Offset)>,
    /// The label that every row carries as `dt`.
    pub day: Day,
    /// Whether some record has a smaller timestamp than one before it.
    pub time_disorder: bool,
    /// SHA-256 of the object's bytes.
    pub hash: Hash,
    /// How many bytes at the object's end [`Segment::parse`] wants.
    pub footer_len: u32,
}
