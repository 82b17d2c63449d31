//! Segments written, read back, cut, flipped and lied about.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "numbers in tests are small"
)]

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    ClusterId, EncodedBatch, Header, Record, Salt, TimestampType, TopicId, decode_batches,
    encode_batches,
};

pub(crate) mod hostile;
mod properties;

pub(crate) fn identity() -> SegmentIdentity {
    SegmentIdentity {
        incarnation: Incarnation {
            cluster: ClusterId::new("5L6g3nShT-eMCtK--X86sw").expect("a cluster id"),
            topic_id: TopicId::new("4L6g3nShT-eMCtK--X86sw").expect("a topic id"),
        },
        topic: TopicName::new("orders").expect("a name"),
        partition: Partition::new(3).expect("a partition"),
    }
}

pub(crate) fn offset(raw: i64) -> Offset {
    Offset::new(raw).expect("not negative")
}

pub(crate) fn record(offset: i64, value: &[u8]) -> Record {
    Record {
        offset,
        timestamp_ms: 1_700_000_000_000 + offset,
        timestamp_type: TimestampType::Create,
        leader_epoch: Some(7),
        key: Some(format!("key-{offset}").into_bytes()),
        value: Some(value.to_vec()),
        headers: vec![Header {
            key: b"trace".to_vec(),
            value: Some(offset.to_string().into_bytes()),
        }],
    }
}

/// Writes `records` as one segment that covers `[start, end)`.
pub(crate) fn write(
    records: &[Record],
    start: i64,
    end: i64,
    options: SegmentOptions,
) -> (SegmentSummary, Bytes) {
    let day = Day::of_segment(records[0].timestamp_ms, None);
    let mut writer = SegmentWriter::new(
        Vec::new(),
        identity(),
        offset(start),
        day,
        Salt::new([9; 16]),
        options,
    )
    .expect("options");
    for record in records {
        writer
            .push(&record.as_ref(&mut Vec::new()))
            .expect("a record that fits");
    }
    let (summary, bytes) = writer.finish(offset(end)).expect("an end");
    assert_eq!(summary.bytes, bytes.len() as u64);
    assert_eq!(summary.hash, Hash::of(&bytes));
    (summary, bytes.into())
}

pub(crate) fn parse(bytes: &Bytes, footer_len: u32) -> Result<Arc<Segment>, SegmentError> {
    let at = bytes.len() - footer_len as usize;
    Segment::parse(&bytes.slice(at..), bytes.len() as u64).map(Arc::new)
}

pub(crate) fn group_bytes(segment: &Segment, bytes: &Bytes, index: usize) -> Bytes {
    let range = &segment.row_groups()[index].bytes;
    bytes.slice(range.start as usize..range.end as usize)
}

/// All slices of all row groups.
pub(crate) fn slices(
    segment: &Arc<Segment>,
    bytes: &Bytes,
    target: usize,
) -> Result<Vec<RecordSlice>, SegmentError> {
    let mut slices = Vec::new();
    for index in 0..segment.row_groups().len() {
        let mut reader = RowGroupReader::new(segment, index, group_bytes(segment, bytes, index))?;
        while let Some(slice) = reader.next_slice(target)? {
            slices.push(slice);
        }
    }
    Ok(slices)
}

fn small() -> SegmentOptions {
    SegmentOptions {
        row_group_encoded_max_bytes: 300 << 10,
        row_group_raw_max_bytes: 64 << 10,
        page_max_bytes: 4 << 10,
        ..SegmentOptions::default()
    }
}

#[test]
fn records_come_back_with_all_that_the_footer_says_of_them() {
    let records: Vec<Record> = (0..2_000)
        .map(|n| record(100 + 3 * n, &[n as u8; 100]))
        .collect();
    let (summary, bytes) = write(&records, 90, 7_000, small());
    assert_eq!(
        (summary.range.start(), summary.range.end()),
        (offset(90), offset(7_000))
    );
    assert_eq!(
        (summary.records, summary.min_timestamp_ms),
        (2_000, 1_700_000_000_100)
    );
    assert_eq!(summary.epochs, [(7, offset(100))]);
    assert!(!summary.time_disorder);

    let segment = parse(&bytes, summary.footer_len).expect("a segment");
    assert_eq!(segment.identity(), &identity());
    assert_eq!(segment.range(), summary.range);
    assert_eq!(
        (segment.records(), segment.raw_bytes()),
        (summary.records, summary.raw_bytes)
    );
    assert_eq!(segment.salt(), Salt::new([9; 16]));
    assert!(segment.row_groups().len() > 3);
    assert!(
        segment
            .row_groups()
            .iter()
            .all(|group| group.raw_bytes <= 64 << 10)
    );
    let back: Vec<Record> = slices(&segment, &bytes, 10_000)
        .expect("slices")
        .iter()
        .flat_map(RecordSlice::to_records)
        .collect();
    assert_eq!(back, records);
}

#[test]
fn readers_may_move_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Segment>();
    check::<RecordSlice>();
    fn check_send<T: Send>() {}
    check_send::<RowGroupReader>();
    check_send::<SegmentWriter<Vec<u8>>>();
}

#[test]
fn the_specification_has_the_schema_as_it_is_written() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let texts: Vec<String> = ["archive-format.md", "archive-format-segment.md"]
        .iter()
        .filter_map(|name| std::fs::read_to_string(docs.join(name)).ok())
        .collect();
    assert!(texts.iter().any(|text| text.contains(schema::MESSAGE)));
}

#[test]
fn records_of_any_size_up_to_100_mb_pass_between_small_ones() {
    let mut records: Vec<Record> = (0..5).map(|at| record(at, b"small")).collect();
    records[1].value = Some(
        (0..2_500_000_u32)
            .flat_map(u32::to_le_bytes)
            .take(2_500_000)
            .collect(),
    );
    records[3].value = Some(vec![7; 100 << 20]);
    records[3].key = Some(vec![8; 3 << 20]);
    let (summary, bytes) = write(&records, 0, 5, SegmentOptions::default());
    let segment = parse(&bytes, summary.footer_len).expect("a segment");
    let slices = slices(&segment, &bytes, 1 << 20).expect("slices");
    let back: Vec<Record> = slices.iter().flat_map(RecordSlice::to_records).collect();
    assert!(back == records);
    let mut out = Vec::new();
    for slice in slices {
        encode_batches(&slice, 1 << 20, &mut out);
    }
    let decoded: Vec<Record> = decode_batches(&out)
        .flat_map(|batch| batch.expect("ours").records)
        .collect();
    assert!(decoded == records);
}

#[test]
fn a_row_group_stays_below_its_limits_whatever_the_records_compress_to() {
    let mut noise = 1_u64;
    let mut random = |len: usize| -> Vec<u8> {
        (0..len)
            .map(|_| {
                noise = noise
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (noise >> 56) as u8
            })
            .collect()
    };
    let options = SegmentOptions {
        row_group_encoded_max_bytes: 1 << 20,
        row_group_raw_max_bytes: 2 << 20,
        ..small()
    };
    let incompressible: Vec<Record> = (0..3_000).map(|at| record(at, &random(1_000))).collect();
    let constant: Vec<Record> = (0..8_000).map(|at| record(at, &[b'x'; 1_000])).collect();
    for records in [incompressible, constant] {
        let (summary, bytes) = write(&records, 0, 100_000, options);
        let segment = parse(&bytes, summary.footer_len).expect("a segment");
        for group in segment.row_groups() {
            assert!(group.bytes.end - group.bytes.start <= 1 << 20);
            assert!(group.raw_bytes <= 2 << 20);
        }
        // And not much below: the first one is about full, one way or the other.
        let first = &segment.row_groups()[0];
        assert!(first.bytes.end - first.bytes.start > 600 << 10 || first.raw_bytes > 2_000_000);
    }
}

#[test]
fn records_without_a_byte_are_limited_in_number() {
    let count = ROW_GROUP_RECORDS_MAX as i64 + 10;
    let bare = Record {
        key: None,
        value: None,
        headers: Vec::new(),
        ..record(0, b"")
    };
    let mut writer = SegmentWriter::new(
        Vec::new(),
        identity(),
        offset(0),
        Day::UNKNOWN,
        Salt::new([0; 16]),
        SegmentOptions::default(),
    )
    .expect("options");
    for at in 0..count {
        writer
            .push(
                &Record {
                    offset: at,
                    ..bare.clone()
                }
                .as_ref(&mut Vec::new()),
            )
            .expect("a record");
    }
    let (summary, bytes) = writer.finish(offset(count)).expect("an end");
    let bytes = Bytes::from(bytes);
    let segment = parse(&bytes, summary.footer_len).expect("a segment");
    let records: Vec<u64> = segment
        .row_groups()
        .iter()
        .map(|group| group.records)
        .collect();
    assert_eq!(records, [ROW_GROUP_RECORDS_MAX, 10]);
    let slices = slices(&segment, &bytes, 1 << 20).expect("slices");
    assert_eq!(
        slices.iter().map(RecordSlice::len).sum::<usize>() as i64,
        count
    );
}

#[test]
fn the_writer_refuses_what_it_could_not_give_back() {
    let new = || {
        let options = SegmentOptions::default();
        SegmentWriter::new(
            Vec::new(),
            identity(),
            offset(10),
            Day::UNKNOWN,
            Salt::new([0; 16]),
            options,
        )
        .expect("options")
    };
    let push = |writer: &mut SegmentWriter<Vec<u8>>, record: &Record| {
        writer.push(&record.as_ref(&mut Vec::new()))
    };
    let mut writer = new();
    assert!(matches!(
        push(&mut writer, &record(9, b"")),
        Err(SegmentError::OutOfOrder { .. })
    ));
    push(&mut writer, &record(10, b"")).expect("the first");
    assert!(matches!(
        push(&mut writer, &record(10, b"")),
        Err(SegmentError::OutOfOrder { .. })
    ));
    assert!(matches!(
        push(&mut writer, &record(i64::MAX, b"")),
        Err(SegmentError::OutOfOrder { .. })
    ));
    let negative = Record {
        leader_epoch: Some(-1),
        ..record(11, b"")
    };
    assert!(matches!(
        push(&mut writer, &negative),
        Err(SegmentError::Unfit { offset: 11, .. })
    ));
    let large = Record {
        value: Some(vec![0; RECORD_BYTES_MAX as usize]),
        ..record(11, b"")
    };
    assert!(matches!(
        push(&mut writer, &large),
        Err(SegmentError::Unfit { offset: 11, .. })
    ));
    assert!(matches!(
        writer.finish(offset(10)),
        Err(SegmentError::OutOfOrder { .. })
    ));
    assert!(matches!(new().finish(offset(20)), Err(SegmentError::Empty)));
    for zstd_level in [0, 20, 23, -1] {
        let options = SegmentOptions {
            zstd_level,
            ..SegmentOptions::default()
        };
        let made = SegmentWriter::new(
            Vec::new(),
            identity(),
            offset(0),
            Day::UNKNOWN,
            Salt::new([0; 16]),
            options,
        );
        assert!(matches!(made, Err(SegmentError::Encode(_))), "{zstd_level}");
    }
}

/// A disk that is full after some bytes.
#[derive(Debug)]
struct FullDisk(usize);

impl std::io::Write for FullDisk {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0 = self
            .0
            .checked_sub(buf.len())
            .ok_or(std::io::ErrorKind::StorageFull)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told_from_a_bad_record() {
    let (summary, bytes) = write(&[record(0, &[1; 500])], 0, 1, SegmentOptions::default());
    assert_eq!(summary.bytes, bytes.len() as u64);
    for room in 0..bytes.len() {
        let day = Day::of_segment(1_700_000_000_000, None);
        let result = SegmentWriter::new(
            FullDisk(room),
            identity(),
            offset(0),
            day,
            Salt::new([9; 16]),
            SegmentOptions::default(),
        )
        .and_then(|mut writer| {
            writer.push(&record(0, &[1; 500]).as_ref(&mut Vec::new()))?;
            writer.finish(offset(1))
        });
        assert!(matches!(result, Err(SegmentError::Io(_))), "{room}");
    }
}

#[test]
fn a_row_group_can_be_ended_early_and_memory_is_told() {
    let options = SegmentOptions::default();
    let mut writer = SegmentWriter::new(
        Vec::new(),
        identity(),
        offset(0),
        Day::UNKNOWN,
        Salt::new([0; 16]),
        options,
    )
    .expect("options");
    writer.end_row_group().expect("nothing to end");
    writer
        .push(&record(0, &[1; 10_000]).as_ref(&mut Vec::new()))
        .expect("a record");
    assert!(writer.buffered_bytes() >= 10_000);
    writer.end_row_group().expect("an end");
    assert_eq!(writer.buffered_bytes(), 0);
    writer
        .push(&record(1, b"x").as_ref(&mut Vec::new()))
        .expect("a record");
    let (summary, bytes) = writer.finish(offset(2)).expect("an end");
    let segment = parse(&bytes.into(), summary.footer_len).expect("a segment");
    assert_eq!(segment.row_groups().len(), 2);
    assert_eq!(segment.row_group_at(offset(0)), Some(0));
    assert_eq!(segment.row_group_at(offset(1)), Some(1));
    assert_eq!(segment.row_group_at(offset(2)), None);
}

#[test]
fn the_summary_has_every_run_of_an_epoch_and_notices_disorder() {
    let mut records: Vec<Record> = (5..10).map(|at| record(at, b"")).collect();
    for (record, epoch) in records
        .iter_mut()
        .zip([None, Some(3), Some(3), Some(4), None])
    {
        record.leader_epoch = epoch;
    }
    let (summary, _) = write(&records, 0, 10, SegmentOptions::default());
    assert_eq!(
        summary.epochs,
        [
            (-1, offset(5)),
            (3, offset(6)),
            (4, offset(8)),
            (-1, offset(9))
        ]
    );
    assert!(!summary.time_disorder);
    records[4].timestamp_ms = -1;
    let (summary, _) = write(&records, 0, 10, SegmentOptions::default());
    assert!(summary.time_disorder);
    assert_eq!(summary.min_timestamp_ms, -1);
}
