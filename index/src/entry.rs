//! What a leaf says of one covered range.

use everlog_format::{Day, Hash, Offset, OffsetRange};

/// One covered range and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The offsets it speaks for.
    pub range: OffsetRange,
    /// What they hold.
    pub kind: EntryKind,
}

/// What a covered range holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A segment with at least one record.
    Data(DataEntry),
    /// Known to hold no visible record: transaction markers, aborted or compacted records.
    Empty,
    /// Lost before it could be archived.
    Hole(HoleReason),
    /// Was data; removed on purpose.
    Expired,
}

/// Why records are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoleReason {
    /// The cluster's retention (or a DeleteRecords) overtook the archiver.
    Retention,
}

/// A segment as the tree knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataEntry {
    /// The SHA-256 of the segment's bytes; with topic, day and range it gives the object's name.
    pub hash: Hash,
    /// At least 1.
    pub records: u64,
    /// The object's size in bytes.
    pub bytes: u64,
    /// Keys, values and headers uncompressed, in bytes.
    pub raw_bytes: u64,
    /// Smallest record timestamp in ms, -1 included.
    pub min_timestamp_ms: i64,
    /// Largest record timestamp in ms.
    pub max_timestamp_ms: i64,
    /// The leader epochs of the records, ascending by offset; empty if none is known.
    pub epochs: Vec<EpochStart>,
    /// The label.
    pub day: Day,
    /// Whether some record has a timestamp below that of a record before it in this segment.
    pub time_disorder: bool,
    /// Whether record contents were removed on purpose.
    pub redacted: bool,
    /// Length in bytes of Parquet's footer with its 8 bytes of length and magic: one ranged read gets it.
    pub footer_len: u32,
    /// The segments this one replaced; empty for one that the archiver wrote.
    pub supersedes: Vec<Hash>,
}

/// From `start` on, records carry `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The leader epoch.
    pub epoch: i32,
    /// The first record that carries it.
    pub start: Offset,
}
