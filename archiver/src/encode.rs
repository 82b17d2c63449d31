//! Bursts of records into a temporary Parquet file, on blocking threads, few at a time.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use everlog_format::{
    Day, Incarnation, Offset, Partition, RecordRef, RowGroupReader, Salt, Segment, SegmentError,
    SegmentIdentity, SegmentOptions, SegmentSummary, SegmentWriter, TopicName,
};
use tempfile::NamedTempFile;

use crate::memory::{Gauge, Share};
use crate::message::SegmentMeter;
use crate::spool::{Burst, BurstError, SpoolDir};

/// A row group smaller than this is not ended for want of memory: it would free little and make a poor file.
const WORTH_ENDING_BYTES: u64 = 1 << 20;
/// Decoded at a time when a segment is shortened.
const SHORTEN_SLICE_BYTES: usize = 1 << 20;

/// Why a segment can't be written: the partition starts over from what is committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    #[error("a segment file can't be made")]
    File(#[from] std::io::Error),
    #[error("records can't be encoded")]
    Encode(#[from] BurstError<SegmentError>),
    #[error("a segment can't be finished")]
    Finish(#[source] SegmentError),
    #[error("a segment can't be shortened")]
    Shorten(#[source] SegmentError),
}

/// What a segment says of its records.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) incarnation: Incarnation,
    pub(crate) topic: TopicName,
    pub(crate) partition: Partition,
}

/// A segment that is being written.
pub(crate) struct OpenFile {
    writer: SegmentWriter<NamedTempFile>,
    pub(crate) day: Day,
    packed: u64,
    share: Share,
}

/// A segment, complete on local disk.
#[derive(Debug)]
pub(crate) struct FinishedFile {
    pub(crate) summary: SegmentSummary,
    pub(crate) file: NamedTempFile,
}

/// Where records go if no file is open yet.
pub(crate) struct NewFile<'a> {
    pub(crate) dir: &'a SpoolDir,
    pub(crate) identity: Identity,
    pub(crate) start: Offset,
    pub(crate) day_before: Option<Day>,
    pub(crate) gauge: &'a Arc<Gauge>,
}

impl OpenFile {
    fn create(new: &NewFile<'_>, first: &RecordRef<'_>) -> Result<OpenFile, EncodeError> {
        let day = Day::of_segment(first.timestamp_ms, new.day_before);
        let identity = SegmentIdentity {
            incarnation: new.identity.incarnation.clone(),
            topic: new.identity.topic.clone(),
            partition: new.identity.partition,
        };
        let file = new.dir.segment_file()?;
        let salt = Salt::new(rand::random());
        let writer = SegmentWriter::new(
            file,
            identity,
            new.start,
            day,
            salt,
            SegmentOptions::default(),
        );
        Ok(OpenFile {
            writer: writer.map_err(EncodeError::Finish)?,
            day,
            packed: 0,
            share: Share::none(new.gauge),
        })
    }

    /// Adds a burst to `open`, or to a new file. Blocks.
    pub(crate) fn add(
        open: Option<OpenFile>,
        new: &NewFile<'_>,
        burst: Burst,
        ends_row_group: bool,
        meter: &SegmentMeter,
    ) -> Result<Option<OpenFile>, EncodeError> {
        let packed = burst.packed_bytes();
        let mut open = open;
        let mut failed = None;
        let read = burst.read(|record| {
            if open.is_none() {
                match OpenFile::create(new, record) {
                    Ok(created) => open = Some(created),
                    Err(error) => {
                        failed = Some(error);
                        return Ok(());
                    }
                }
            }
            match &mut open {
                Some(open) => open.writer.push(record),
                None => Ok(()),
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        read?;
        if let Some(open) = &mut open {
            open.packed += packed;
            let buffered = open.writer.buffered_bytes();
            open.share.set(buffered);
            let must_end = new.gauge.is_over() && WORTH_ENDING_BYTES <= buffered;
            if ends_row_group || must_end {
                open.writer.end_row_group().map_err(EncodeError::Finish)?;
                open.share.set(open.writer.buffered_bytes());
            }
            meter.set(open.writer.encoded_bytes(), open.packed);
        }
        Ok(open)
    }

    /// Ends the segment at `end`. Blocks.
    pub(crate) fn finish(self, end: Offset) -> Result<FinishedFile, EncodeError> {
        let (summary, file) = self.writer.finish(end).map_err(EncodeError::Finish)?;
        Ok(FinishedFile { summary, file })
    }
}

impl FinishedFile {
    /// The part of it below `end` as a segment of its own; `None` if no record lies there. Blocks.
    pub(crate) fn shortened(
        &self,
        dir: &SpoolDir,
        end: Offset,
    ) -> Result<Option<FinishedFile>, EncodeError> {
        let read = |range: std::ops::Range<u64>| -> std::io::Result<Bytes> {
            let len = usize::try_from(range.end - range.start).map_err(std::io::Error::other)?;
            let mut bytes = vec![0; len];
            self.file.as_file().read_exact_at(&mut bytes, range.start)?;
            Ok(bytes.into())
        };
        let bytes = self.summary.bytes;
        let footer = read(bytes.saturating_sub(self.summary.footer_len.into())..bytes)?;
        let segment = Arc::new(Segment::parse(&footer, bytes).map_err(EncodeError::Shorten)?);
        let mut writer = SegmentWriter::new(
            dir.segment_file()?,
            segment.identity().clone(),
            self.summary.range.start(),
            self.summary.day,
            Salt::new(rand::random()),
            SegmentOptions::default(),
        )
        .map_err(EncodeError::Shorten)?;
        let groups = segment.row_groups().iter().enumerate();
        for (index, group) in groups.filter(|(_, group)| group.first_offset < end) {
            let stored = read(group.bytes.clone())?;
            let mut reader =
                RowGroupReader::new(&segment, index, stored).map_err(EncodeError::Shorten)?;
            while let Some(slice) = reader
                .next_slice(SHORTEN_SLICE_BYTES)
                .map_err(EncodeError::Shorten)?
            {
                let records = slice.to_records();
                for record in records.iter().filter(|record| record.offset < end.get()) {
                    writer
                        .push(&record.as_ref(&mut Vec::new()))
                        .map_err(EncodeError::Shorten)?;
                }
            }
        }
        if writer.records() == 0 {
            return Ok(None);
        }
        let (summary, file) = writer.finish(end).map_err(EncodeError::Finish)?;
        Ok(Some(FinishedFile { summary, file }))
    }
}

#[cfg(test)]
mod tests {
    use everlog_format::{ClusterId, TimestampType, TopicId};

    use super::*;
    use crate::memory::Memory;
    use crate::spool::Backlog;

    fn at(raw: i64) -> Offset {
        Offset::new(raw).unwrap()
    }

    /// Records at the even offsets from 100 on, in a segment that covers up to `end`.
    fn segment(dir: &SpoolDir, count: i64, end: i64) -> FinishedFile {
        let memory = Memory::new(&crate::config::MemoryPlan::of(96 << 20));
        let mut backlog = Backlog::new(&memory);
        for number in 0..count {
            let value = vec![b'v'; 3_000];
            let record = RecordRef {
                offset: 100 + number * 2,
                timestamp_ms: 1_700_000_000_000 + number,
                timestamp_type: TimestampType::Create,
                leader_epoch: Some(i32::try_from(number / 1_000).unwrap()),
                key: None,
                value: Some(&value),
                headers: &[],
            };
            backlog.push(&record).unwrap();
        }
        let topic_id = TopicId::from_uuid(uuid::Uuid::from_u128(7)).unwrap();
        let new = NewFile {
            dir,
            identity: Identity {
                incarnation: Incarnation {
                    cluster: ClusterId::new("cluster").unwrap(),
                    topic_id,
                },
                topic: TopicName::new("orders").unwrap(),
                partition: Partition::new(3).unwrap(),
            },
            start: at(90),
            day_before: None,
            gauge: &memory.writers,
        };
        let meter = SegmentMeter::default();
        let open = OpenFile::add(None, &new, backlog.take(), false, &meter).unwrap();
        open.unwrap().finish(at(end)).unwrap()
    }

    #[test]
    fn a_segment_is_shortened_to_the_records_below_an_offset() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, _lock) = SpoolDir::open(folder.path()).unwrap();
        // Several row groups: 60 MB of records.
        let whole = segment(&dir, 20_000, 50_000);
        for end in [101, 2_301, 30_000, 40_099] {
            let short = whole.shortened(&dir, at(end)).unwrap().unwrap();
            let (found, from) = (&short.summary, &whole.summary);
            let wanted = u64::try_from((end - 100 + 1) / 2).unwrap();
            assert_eq!(found.records, wanted, "{end}");
            assert_eq!((found.range.start(), found.range.end()), (at(90), at(end)));
            assert_eq!((found.day, found.raw_bytes), (from.day, wanted * 3_000));
            assert_eq!(
                found.max_timestamp_ms,
                1_700_000_000_000 + i64::try_from(wanted).unwrap() - 1
            );
            let epochs = usize::try_from(wanted.div_ceil(1_000)).unwrap();
            assert_eq!(found.epochs, from.epochs[..epochs]);
            assert_ne!(found.hash, from.hash);
        }
        // Nothing but what holds no record.
        assert!(whole.shortened(&dir, at(100)).unwrap().is_none());
    }
}
