//! Bursts of records into a temporary Parquet file, on blocking threads, few at a time.

use std::sync::Arc;

use everlog_format::{
    Day, Incarnation, Offset, Partition, RecordRef, Salt, SegmentError, SegmentIdentity,
    SegmentOptions, SegmentSummary, SegmentWriter, TopicName,
};
use tempfile::NamedTempFile;

use crate::chunk::{Gauge, Share};
use crate::message::SegmentMeter;
use crate::spool::{Burst, BurstError, SpoolDir};

/// A row group smaller than this is not ended for want of memory: it would free little and make a poor file.
const WORTH_ENDING_BYTES: u64 = 1 << 20;

/// Why a segment can't be written: the partition starts over from what is committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    #[error("a segment file can't be made")]
    File(#[from] std::io::Error),
    #[error("records can't be encoded")]
    Encode(#[from] BurstError<SegmentError>),
    #[error("a segment can't be finished")]
    Finish(#[source] SegmentError),
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
