//! What can go wrong with a segment.

/// What went wrong, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The output did not take the bytes (disk full, for one): drop what was written, try again later.
    #[error("could not write the segment")]
    Io(#[source] std::io::Error),
    /// A record, or the end of the range, does not go on where the writer stands. The caller's order is broken or
    /// the log went backwards: freeze the partition.
    #[error("offset {found} is not in [{wanted_from}, {wanted_below}]")]
    OutOfOrder {
        /// The offset that was given.
        found: i64,
        /// The smallest that would have been right.
        wanted_from: i64,
        /// The largest that would have been right.
        wanted_below: i64,
    },
    /// This one record can't be archived: freeze the partition rather than lose it.
    #[error("record at offset {offset} can't be archived: {reason}")]
    Unfit {
        /// Its offset.
        offset: i64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The segment was finished without a record. A range that holds nothing needs no object.
    #[error("a segment needs at least one record")]
    Empty,
    /// Options outside their limits, or the encoder refused what it was given: a bug of ours.
    #[error("could not encode the segment")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Written by a later everlog: upgrade this one.
    #[error("segment has format version {0:?}, this program reads version 1")]
    Version(String),
    /// The bytes are not a segment, or contradict themselves: don't serve them. Read them again from the store, and
    /// if they stay like this, the archive is damaged: raise the alarm.
    #[error("segment is corrupt: {0}")]
    Corrupt(String),
}

impl SegmentError {
    pub(super) fn corrupt(what: impl Into<String>) -> SegmentError {
        SegmentError::Corrupt(what.into())
    }
}
