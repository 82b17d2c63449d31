//! What a leaf says of one covered range.

use everlog_format::{Day, Hash, Offset, OffsetRange, SegmentSummary};

use crate::summary::push_epoch;

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

impl DataEntry {
    /// What there is to say of a segment that was just written.
    ///
    /// A run of records whose epoch is unknown is left out: it counts to the run before it. Readers take an epoch that is
    /// too low for a reason to look again, and one that is too high for lost records.
    pub fn of(summary: &SegmentSummary) -> DataEntry {
        let mut epochs = Vec::new();
        for &(epoch, start) in summary.epochs.iter().filter(|(epoch, _)| 0 <= *epoch) {
            push_epoch(&mut epochs, EpochStart { epoch, start });
        }
        DataEntry {
            hash: summary.hash,
            records: summary.records,
            bytes: summary.bytes,
            raw_bytes: summary.raw_bytes,
            min_timestamp_ms: summary.min_timestamp_ms,
            max_timestamp_ms: summary.max_timestamp_ms,
            epochs,
            day: summary.day,
            time_disorder: summary.time_disorder,
            redacted: false,
            footer_len: summary.footer_len,
            supersedes: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::check_entry;

    /// Records from before leader epochs made an entry with the epoch -1, which no chain takes: their partition was not
    /// archived.
    #[test]
    fn unknown_epochs_are_left_out() {
        let at = |raw| Offset::new(raw).expect("not negative");
        let check = |found: &[(i32, i64)], kept: &[(i32, i64)]| {
            let summary = SegmentSummary {
                range: OffsetRange::new(at(10), at(90)).expect("not empty"),
                records: 8,
                bytes: 100,
                raw_bytes: 200,
                epochs: found
                    .iter()
                    .map(|&(epoch, start)| (epoch, at(start)))
                    .collect(),
                min_timestamp_ms: -1,
                max_timestamp_ms: 5,
                time_disorder: true,
                day: Day::UNKNOWN,
                hash: Hash::of(b""),
                footer_len: 12,
            };
            let data = DataEntry::of(&summary);
            let epochs = data
                .epochs
                .iter()
                .map(|start| (start.epoch, start.start.get()));
            assert_eq!(epochs.collect::<Vec<_>>(), kept, "{found:?}");
            let entry = Entry {
                range: summary.range,
                kind: EntryKind::Data(data),
            };
            assert_eq!(check_entry(&entry), Ok(()), "{found:?}");
        };
        check(&[(-1, 10)], &[]);
        check(&[(0, 10), (3, 20)], &[(0, 10), (3, 20)]);
        check(&[(-1, 10), (2, 20)], &[(2, 20)]);
        check(
            &[(2, 10), (-1, 20), (2, 30), (-1, 40), (4, 50)],
            &[(2, 10), (4, 50)],
        );
    }
}
