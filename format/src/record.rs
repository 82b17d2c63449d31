//! One record as Kafka's consumers see it, borrowed on the way into a segment and owned where it must stay.

/// Who gave a record its timestamp (KIP-32): bit 3 of a batch's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The producer; 0 in a segment.
    Create,
    /// The broker, when it appended; 1 in a segment.
    LogAppend,
}

/// A header. Order and duplicates matter, the key may be any bytes, a null value differs from an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderRef<'a> {
    /// Any bytes, may be empty.
    pub key: &'a [u8],
    /// Null differs from empty.
    pub value: Option<&'a [u8]>,
}

/// A record that lies in somebody else's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Not negative.
    pub offset: i64,
    /// Milliseconds since 1970, any value; -1 means that the producer gave none.
    pub timestamp_ms: i64,
    /// Who gave the timestamp.
    pub timestamp_type: TimestampType,
    /// The epoch of the leader that appended the record, or `None` if unknown (-1 on the wire).
    pub leader_epoch: Option<i32>,
    /// Null differs from empty.
    pub key: Option<&'a [u8]>,
    /// Null (a tombstone) differs from empty.
    pub value: Option<&'a [u8]>,
    /// In order, duplicates kept.
    pub headers: &'a [HeaderRef<'a>],
}

/// A header that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// Any bytes, may be empty.
    pub key: Vec<u8>,
    /// Null differs from empty.
    pub value: Option<Vec<u8>>,
}

/// A record that owns its bytes: for tests and tools, not for the hot path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Not negative.
    pub offset: i64,
    /// As in [`RecordRef`].
    pub timestamp_ms: i64,
    /// As in [`RecordRef`].
    pub timestamp_type: TimestampType,
    /// As in [`RecordRef`].
    pub leader_epoch: Option<i32>,
    /// As in [`RecordRef`].
    pub key: Option<Vec<u8>>,
    /// As in [`RecordRef`].
    pub value: Option<Vec<u8>>,
    /// As in [`RecordRef`].
    pub headers: Vec<Header>,
}

impl Record {
    /// Lends the record; `headers` is the caller's room for the borrowed headers.
    pub fn as_ref<'a>(&'a self, headers: &'a mut Vec<HeaderRef<'a>>) -> RecordRef<'a> {
        headers.clear();
        headers.extend(self.headers.iter().map(|h| HeaderRef {
            key: &h.key,
            value: h.value.as_deref(),
        }));
        RecordRef {
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            timestamp_type: self.timestamp_type,
            leader_epoch: self.leader_epoch,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers,
        }
    }
}

impl RecordRef<'_> {
    /// Bytes that the record's own content takes uncompressed: key, value, header keys and header values.
    /// Sums of it are the `raw bytes` of a segment.
    pub fn raw_bytes(&self) -> u64 {
        let headers: usize = self
            .headers
            .iter()
            .map(|h| h.key.len() + h.value.map_or(0, <[u8]>::len))
            .sum();
        (self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len) + headers) as u64
    }
}
