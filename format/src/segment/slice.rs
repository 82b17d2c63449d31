//! Some consecutive records of a row group, decoded. Byte strings stay where they were decompressed.

use std::sync::Arc;

use super::columns::Views;
use crate::{Header, HeaderRef, Record, RecordRef, TimestampType};

/// Some consecutive records, decoded. Never empty. Cheap to clone; keeps the pages that it points into alive.
#[derive(Clone)]
pub struct RecordSlice {
    columns: Arc<Columns>,
    // Invariant: start < end <= number of rows of all columns.
    start: usize,
    end: usize,
    raw_bytes: u64,
}

/// Invariants, kept by the reader: all columns have the same number of rows, at least one; `header_ends` ascend up to the
/// number of header keys and of header values; header keys are not null.
pub(super) struct Columns {
    pub(super) offsets: Vec<i64>,
    pub(super) timestamps_ms: Vec<i64>,
    pub(super) timestamp_types: Vec<TimestampType>,
    pub(super) leader_epochs: Vec<Option<i32>>,
    pub(super) keys: Views,
    pub(super) values: Views,
    /// Where the headers of each record end.
    pub(super) header_ends: Vec<usize>,
    pub(super) header_keys: Views,
    pub(super) header_values: Views,
}

impl std::fmt::Debug for RecordSlice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordSlice")
            .field("first_offset", &self.first_offset())
            .field("last_offset", &self.last_offset())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl RecordSlice {
    pub(super) fn new(columns: Columns, raw_bytes: u64) -> RecordSlice {
        let end = columns.offsets.len();
        RecordSlice {
            columns: Arc::new(columns),
            start: 0,
            end,
            raw_bytes,
        }
    }

    /// How many records, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a slice is never empty")]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Sum of the records' [`RecordRef::raw_bytes`].
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Memory that the records take, in bytes, with all pages that they keep alive.
    pub fn memory_bytes(&self) -> u64 {
        let columns = &*self.columns;
        let views = [
            &columns.keys,
            &columns.values,
            &columns.header_keys,
            &columns.header_values,
        ];
        let strings: u64 = views.iter().map(|views| views.memory_bytes()).sum();
        strings + columns.offsets.len() as u64 * 40
    }

    /// The offset of the first record.
    pub fn first_offset(&self) -> i64 {
        self.offsets()[0]
    }

    /// The offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.offsets()[self.len() - 1]
    }

    /// The offsets of all records, ascending.
    pub fn offsets(&self) -> &[i64] {
        &self.columns.offsets[self.start..self.end]
    }

    /// The timestamps of all records, in milliseconds.
    pub fn timestamps_ms(&self) -> &[i64] {
        &self.columns.timestamps_ms[self.start..self.end]
    }

    /// Record number `index`, which is below [`RecordSlice::len`]. `headers` is the caller's room for its headers.
    ///
    /// # Panics
    /// If there is no such record, as indexing does.
    pub fn get<'s: 'h, 'h>(
        &'s self,
        index: usize,
        headers: &'h mut Vec<HeaderRef<'s>>,
    ) -> RecordRef<'h> {
        assert!(index < self.len(), "record {index} of {}", self.len());
        let (columns, row) = (&*self.columns, self.start + index);
        headers.clear();
        headers.extend(columns.headers_of(row).map(|at| HeaderRef {
            key: columns.header_keys.get(at).unwrap_or_default(),
            value: columns.header_values.get(at),
        }));
        RecordRef {
            offset: columns.offsets[row],
            timestamp_ms: columns.timestamps_ms[row],
            timestamp_type: columns.timestamp_types[row],
            leader_epoch: columns.leader_epochs[row],
            key: columns.keys.get(row),
            value: columns.values.get(row),
            headers,
        }
    }

    /// All records, copied: for tests and tools.
    pub fn to_records(&self) -> Vec<Record> {
        let mut scratch = Vec::new();
        (0..self.len())
            .map(|index| {
                let record = self.get(index, &mut scratch);
                Record {
                    offset: record.offset,
                    timestamp_ms: record.timestamp_ms,
                    timestamp_type: record.timestamp_type,
                    leader_epoch: record.leader_epoch,
                    key: record.key.map(<[u8]>::to_vec),
                    value: record.value.map(<[u8]>::to_vec),
                    headers: record
                        .headers
                        .iter()
                        .map(|header| Header {
                            key: header.key.to_vec(),
                            value: header.value.map(<[u8]>::to_vec),
                        })
                        .collect(),
                }
            })
            .collect()
    }

    /// The records from number `from` on; `None` if there are none.
    pub fn skip(&self, from: usize) -> Option<RecordSlice> {
        let start = self
            .start
            .checked_add(from)
            .filter(|&start| start < self.end)?;
        let passed: u64 = (self.start..start)
            .map(|row| self.columns.raw_bytes_of(row))
            .sum();
        Some(RecordSlice {
            start,
            raw_bytes: self.raw_bytes - passed,
            ..self.clone()
        })
    }
}

impl Columns {
    fn headers_of(&self, row: usize) -> std::ops::Range<usize> {
        let start = row
            .checked_sub(1)
            .map_or(0, |before| self.header_ends[before]);
        start..self.header_ends[row]
    }

    fn raw_bytes_of(&self, row: usize) -> u64 {
        let headers: u64 = self
            .headers_of(row)
            .map(|at| self.header_keys.byte_count(at) + self.header_values.byte_count(at))
            .sum();
        self.keys.byte_count(row) + self.values.byte_count(row) + headers
    }
}
