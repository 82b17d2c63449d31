//! What a segment's records add up to, to be held against the index.

use everlog_format::{Offset, OffsetRange, RecordRef};
use everlog_index::{DataEntry, EpochStart};

/// Grows record by record.
#[derive(Debug)]
pub(crate) struct Tally {
    range: OffsetRange,
    records: u64,
    raw_bytes: u64,
    last_offset: Option<i64>,
    min_timestamp_ms: i64,
    max_timestamp_ms: i64,
    last_timestamp_ms: Option<i64>,
    time_disorder: bool,
    epochs: Vec<EpochStart>,
}

impl Tally {
    pub(crate) fn new(range: OffsetRange) -> Tally {
        Tally {
            range,
            records: 0,
            raw_bytes: 0,
            last_offset: None,
            min_timestamp_ms: i64::MAX,
            max_timestamp_ms: i64::MIN,
            last_timestamp_ms: None,
            time_disorder: false,
            epochs: Vec::new(),
        }
    }

    /// Takes the next record, or says why it cannot be the next.
    pub(crate) fn add(&mut self, record: &RecordRef<'_>) -> Result<(), String> {
        let offset = Offset::new(record.offset).map_err(|err| err.to_string())?;
        if !self.range.contains(offset) {
            return Err(format!(
                "it holds offset {offset}, which is not in {}",
                self.range
            ));
        }
        if let Some(before) = self.last_offset.filter(|before| record.offset <= *before) {
            return Err(format!("offset {offset} comes after {before}"));
        }
        self.last_offset = Some(record.offset);
        self.records += 1;
        self.raw_bytes += record.raw_bytes();
        let timestamp_ms = record.timestamp_ms;
        self.min_timestamp_ms = self.min_timestamp_ms.min(timestamp_ms);
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        self.time_disorder |= self
            .last_timestamp_ms
            .is_some_and(|before| timestamp_ms < before);
        self.last_timestamp_ms = Some(timestamp_ms);
        if let Some(epoch) = record.leader_epoch
            && self.epochs.last().is_none_or(|last| last.epoch != epoch)
        {
            self.epochs.push(EpochStart {
                epoch,
                start: offset,
            });
        }
        Ok(())
    }

    /// The first thing in which the index and the records differ.
    pub(crate) fn difference(&self, data: &DataEntry) -> Option<String> {
        let differs = |name: &str, index: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
            Some(format!(
                "the index says {name} {index:?}, its records say {found:?}"
            ))
        };
        if data.records != self.records {
            return differs("records", &data.records, &self.records);
        }
        if data.raw_bytes != self.raw_bytes {
            return differs("raw bytes", &data.raw_bytes, &self.raw_bytes);
        }
        let index_times = (data.min_timestamp_ms, data.max_timestamp_ms);
        let found_times = (self.min_timestamp_ms, self.max_timestamp_ms);
        if index_times != found_times {
            return differs("timestamps in ms", &index_times, &found_times);
        }
        if data.time_disorder != self.time_disorder {
            return differs("time disorder", &data.time_disorder, &self.time_disorder);
        }
        let epochs = known_epochs(&data.epochs);
        if epochs != self.epochs {
            return differs("leader epochs", &epochs, &self.epochs);
        }
        None
    }
}

/// Without the marks of records whose epoch is unknown, and without the repetitions that they part.
fn known_epochs(epochs: &[EpochStart]) -> Vec<EpochStart> {
    let mut known: Vec<EpochStart> = epochs
        .iter()
        .filter(|start| start.epoch >= 0)
        .copied()
        .collect();
    known.dedup_by_key(|start| start.epoch);
    known
}

#[cfg(test)]
mod tests {
    use everlog_format::{Day, Hash, TimestampType};

    use super::*;

    fn record(offset: i64, timestamp_ms: i64, leader_epoch: Option<i32>) -> RecordRef<'static> {
        let timestamp_type = TimestampType::Create;
        RecordRef {
            offset,
            timestamp_ms,
            timestamp_type,
            leader_epoch,
            key: Some(b"k"),
            value: None,
            headers: &[],
        }
    }

    fn range(start: i64, end: i64) -> OffsetRange {
        let offset = |raw| Offset::new(raw).expect("not negative");
        OffsetRange::new(offset(start), offset(end)).expect("not empty")
    }

    fn entry() -> DataEntry {
        DataEntry {
            hash: Hash::of(b""),
            records: 3,
            bytes: 1,
            raw_bytes: 3,
            min_timestamp_ms: 5,
            max_timestamp_ms: 9,
            epochs: vec![EpochStart {
                epoch: 2,
                start: Offset::new(11).expect("an offset"),
            }],
            day: Day::UNKNOWN,
            time_disorder: true,
            redacted: false,
            footer_len: 8,
            supersedes: Vec::new(),
        }
    }

    fn tally() -> Tally {
        let mut tally = Tally::new(range(10, 20));
        for record in [
            record(10, 9, None),
            record(11, 5, Some(2)),
            record(15, 5, Some(2)),
        ] {
            tally.add(&record).expect("in order");
        }
        tally
    }

    #[test]
    fn what_agrees_has_no_difference() {
        assert_eq!(tally().difference(&entry()), None);
    }

    #[test]
    fn every_figure_of_the_index_is_held_against_the_records() {
        type Break = fn(&mut DataEntry);
        let broken: [(&str, Break); 6] = [
            ("records", |data| data.records += 1),
            ("raw bytes", |data| data.raw_bytes += 1),
            ("timestamps", |data| data.min_timestamp_ms += 1),
            ("timestamps", |data| data.max_timestamp_ms += 1),
            ("time disorder", |data| data.time_disorder = false),
            ("leader epochs", |data| data.epochs.clear()),
        ];
        for (name, breaks) in broken {
            let mut data = entry();
            breaks(&mut data);
            assert!(
                tally()
                    .difference(&data)
                    .is_some_and(|text| text.contains(name)),
                "{name}"
            );
        }
    }

    #[test]
    fn offsets_rise_and_stay_inside() {
        let mut tally = tally();
        for offset in [15, 14, 9, 20, -1] {
            assert!(tally.add(&record(offset, 0, None)).is_err(), "{offset}");
        }
    }
}
