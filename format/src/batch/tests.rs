//! What a batch has to look like, case by case; `segment/tests/properties.rs` has the properties.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "numbers in tests are small"
)]

use super::*;
use crate::segment::tests::{offset, parse, record, slices, write};
use crate::{EncodedBatch, Header, Record, SegmentOptions, TimestampType};

const DAY_MS: i64 = 86_400_000;

/// Encodes `records` and decodes them again.
fn batches(records: &[Record], max: usize) -> (Vec<EncodedBatch>, Vec<DecodedBatch>, Vec<u8>) {
    let (start, end) = (records[0].offset, records[records.len() - 1].offset + 1);
    let (summary, object) = write(records, start, end, SegmentOptions::default());
    let segment = parse(&object, summary.footer_len).expect("a segment");
    let slices = slices(&segment, &object, usize::MAX).expect("slices");
    assert_eq!(slices.len(), 1, "the case is too large");
    let mut out = Vec::new();
    let encoded = encode_batches(&slices[0], max, &mut out);
    let decoded = decode_batches(&out)
        .collect::<Result<Vec<_>, _>>()
        .expect("our own batches");
    (encoded, decoded, out)
}

/// Checks after which records a batch ends.
fn check_cuts(change: impl Fn(&mut [Record]), wanted: &[usize]) {
    let mut records: Vec<Record> = (10..16).map(|at| record(at, b"v")).collect();
    change(&mut records);
    let (_, decoded, _) = batches(&records, 1 << 20);
    let lens: Vec<usize> = decoded.iter().map(|batch| batch.records.len()).collect();
    assert_eq!(lens, wanted);
    let back: Vec<Record> = decoded
        .into_iter()
        .flat_map(|batch| batch.records)
        .collect();
    assert_eq!(back, records);
}

#[test]
fn a_batch_ends_where_the_leader_epoch_changes() {
    check_cuts(|_| {}, &[6]);
    check_cuts(
        |records| {
            records[3..]
                .iter_mut()
                .for_each(|record| record.leader_epoch = Some(8))
        },
        &[3, 3],
    );
    check_cuts(
        |records| {
            records[..2]
                .iter_mut()
                .for_each(|record| record.leader_epoch = None)
        },
        &[2, 4],
    );
}

#[test]
fn a_batch_ends_where_the_brokers_time_changes_or_its_type() {
    let log_append = |records: &mut [Record]| {
        for (record, time) in records.iter_mut().zip([5, 5, 5, 6, 6, 5]) {
            record.timestamp_type = TimestampType::LogAppend;
            record.timestamp_ms = time;
        }
    };
    check_cuts(log_append, &[3, 2, 1]);
    check_cuts(
        |records| records[5].timestamp_type = TimestampType::LogAppend,
        &[5, 1],
    );
}

#[test]
fn a_batch_ends_where_a_delta_would_need_more_than_32_bits() {
    let span = i64::from(i32::MAX);
    let at = |index: usize, distance: i64| {
        move |records: &mut [Record]| {
            for (step, record) in records[index..].iter_mut().enumerate() {
                record.offset = 10 + distance + step as i64;
            }
        }
    };
    check_cuts(at(5, span), &[6]);
    check_cuts(at(5, span + 1), &[5, 1]);
    check_cuts(at(1, span + 1), &[1, 5]);

    let time = |index: usize, distance: i64| {
        move |records: &mut [Record]| {
            records[index].timestamp_ms = records[0].timestamp_ms + distance
        }
    };
    check_cuts(time(2, span), &[6]);
    check_cuts(time(2, 25 * DAY_MS), &[2, 1, 3]);
    check_cuts(time(2, -span - 1), &[6]);
    check_cuts(time(2, -span - 2), &[2, 1, 3]);
    check_cuts(|records| records[1].timestamp_ms = i64::MIN, &[1, 1, 4]);
    check_cuts(|records| records[1].timestamp_ms = -1, &[1, 1, 4]);
    check_cuts(
        |records| {
            records
                .iter_mut()
                .for_each(|record| record.timestamp_ms = -1)
        },
        &[6],
    );
}

#[test]
fn the_header_says_what_the_records_are() {
    let mut records: Vec<Record> = [20, 21, 25].iter().map(|&at| record(at, b"v")).collect();
    records[1].timestamp_ms += 1_000;
    let (encoded, decoded, out) = batches(&records, 1 << 20);
    let wanted = EncodedBatch {
        base_offset: offset(20),
        last_offset: offset(25),
        max_timestamp_ms: records[1].timestamp_ms,
        leader_epoch: 7,
        bytes: 0..out.len(),
    };
    assert_eq!(encoded, [wanted]);
    let batch = &decoded[0];
    assert_eq!(
        (
            batch.base_offset,
            batch.last_offset,
            batch.partition_leader_epoch
        ),
        (20, 25, 7)
    );
    assert_eq!(
        (batch.base_timestamp_ms, batch.max_timestamp_ms),
        (records[0].timestamp_ms, records[1].timestamp_ms)
    );
    assert_eq!(
        (
            batch.attributes,
            batch.producer_id,
            batch.producer_epoch,
            batch.base_sequence
        ),
        (0, -1, -1, -1)
    );
}

#[test]
fn a_batch_of_the_brokers_own_time_says_so() {
    let mut records = vec![record(1, b"v"), record(2, b"w")];
    for record in &mut records {
        record.timestamp_type = TimestampType::LogAppend;
        record.timestamp_ms = 77;
    }
    let (_, decoded, _) = batches(&records, 1 << 20);
    assert_eq!(
        (decoded[0].attributes, decoded[0].max_timestamp_ms),
        (8, 77)
    );
}

/// The bytes that `MemoryRecords` of kafka-clients 4.3.1 gives for the same record (there with epoch -1, which the checksum
/// leaves out).
#[test]
fn one_batch_byte_by_byte() {
    let records = vec![Record {
        offset: 5,
        timestamp_ms: 1_000,
        timestamp_type: TimestampType::Create,
        leader_epoch: Some(2),
        key: None,
        value: Some(b"hi".to_vec()),
        headers: vec![Header {
            key: b"h".to_vec(),
            value: None,
        }],
    }];
    let (_, _, out) = batches(&records, 1 << 20);
    let mut wanted = Vec::new();
    wanted.extend_from_slice(&5_i64.to_be_bytes());
    wanted.extend_from_slice(&61_i32.to_be_bytes());
    wanted.extend_from_slice(&2_i32.to_be_bytes());
    wanted.push(2);
    let after_crc = wanted.len() + 4;
    wanted.extend_from_slice(&[0; 4]);
    wanted.extend_from_slice(&[0, 0]);
    wanted.extend_from_slice(&0_i32.to_be_bytes());
    wanted.extend_from_slice(&1_000_i64.to_be_bytes());
    wanted.extend_from_slice(&1_000_i64.to_be_bytes());
    wanted.extend_from_slice(&[0xff; 14]);
    wanted.extend_from_slice(&1_i32.to_be_bytes());
    // Length 11, attributes, deltas, key null, value of 2, one header: key of 1, value null.
    wanted.extend_from_slice(&[22, 0, 0, 0, 1, 4, b'h', b'i', 2, 2, b'h', 1]);
    // The checksum that Kafka 4.3.1 computed.
    wanted[after_crc - 4..after_crc].copy_from_slice(&[0x4a, 0xaf, 0x4d, 0x81]);
    assert_eq!(out, wanted);
}

#[test]
fn the_limit_counts_the_header_and_a_larger_record_gets_a_batch_of_its_own() {
    let records: Vec<Record> = (0..40)
        .map(|at| record(at, &[1; 100]))
        .chain([record(40, &[2; 5_000]), record(41, b"")])
        .collect();
    let (encoded, decoded, _) = batches(&records, 1_000);
    for (batch, encoded) in decoded.iter().zip(&encoded) {
        assert!(encoded.bytes.len() <= 1_000 || batch.records.len() == 1);
        assert!(encoded.bytes.len() > 800 || batch.last_offset >= 39);
    }
    assert!(
        decoded
            .iter()
            .any(|batch| batch.base_offset == 40 && batch.last_offset == 40)
    );
    let (encoded, _, out) = batches(&records, out_of_one(&records));
    assert_eq!(encoded.len(), 1);
    assert_eq!(batches(&records, out.len() - 1).0.len(), 2);
}

fn out_of_one(records: &[Record]) -> usize {
    batches(records, usize::MAX).2.len()
}

#[test]
fn an_empty_batch_brings_a_client_to_the_offset_behind_it() {
    let bytes = empty_batch(offset(100), offset(200), 4);
    let batch = decode_batches(&bytes)
        .next()
        .expect("a batch")
        .expect("a good one");
    assert_eq!(
        (
            batch.base_offset,
            batch.last_offset,
            batch.partition_leader_epoch
        ),
        (100, 200, 4)
    );
    assert_eq!((batch.records.len(), bytes.len()), (0, BATCH_HEADER_LEN));

    let far = empty_batch(offset(0), offset(i64::MAX), -1);
    let batch = decode_batches(&far)
        .next()
        .expect("a batch")
        .expect("a good one");
    assert_eq!(
        (batch.base_offset, batch.last_offset),
        (i64::MAX - i64::from(i32::MAX), i64::MAX)
    );
}

#[test]
fn a_batch_is_stretched_to_the_end_of_what_is_known_and_stays_whole() {
    let records = vec![record(10, b"a"), record(12, b"b")];
    let (_, before, out) = batches(&records, 1 << 20);
    let stretched = with_last_offset(&out, offset(50)).expect("it fits");
    let batch = decode_batches(&stretched)
        .next()
        .expect("a batch")
        .expect("a good one");
    assert_eq!(
        batch,
        DecodedBatch {
            last_offset: 50,
            ..before[0].clone()
        }
    );
    assert_eq!(
        with_last_offset(&out, offset(12)).as_deref(),
        Some(&out[..])
    );
    assert_eq!(with_last_offset(&out, offset(11)), None);
    assert!(with_last_offset(&out, offset(10 + i64::from(i32::MAX))).is_some());
    assert_eq!(
        with_last_offset(&out, offset(11 + i64::from(i32::MAX))),
        None
    );
    assert_eq!(with_last_offset(&out[..out.len() - 1], offset(50)), None);
    assert_eq!(with_last_offset(b"", offset(50)), None);
}

#[test]
fn nulls_empties_duplicates_and_any_bytes_pass() {
    let header = |key: &[u8], value: Option<&[u8]>| Header {
        key: key.to_vec(),
        value: value.map(<[u8]>::to_vec),
    };
    let mut records: Vec<Record> = (0..5).map(|at| record(at, b"v")).collect();
    records[0].key = None;
    records[1].key = Some(Vec::new());
    records[2].value = None;
    records[3].value = Some(Vec::new());
    records[4].headers = vec![
        header(b"a", None),
        header(b"a", Some(b"")),
        header(b"a", Some(b"1")),
        header(b"", Some(&[0xff, 0xfe])),
        header(&[0xc3, 0x28, 0], None),
    ];
    records[3].headers.clear();
    let (_, decoded, _) = batches(&records, 1 << 20);
    assert_eq!(decoded[0].records, records);
}

#[test]
fn a_cut_or_changed_batch_is_an_error_and_never_another_record() {
    let records: Vec<Record> = (0..4).map(|at| record(at, b"some value")).collect();
    let (_, before, out) = batches(&records, 1 << 20);
    for len in 1..out.len() {
        let results: Vec<_> = decode_batches(&out[..len]).collect();
        assert_eq!(results, [Err(BatchError::Partial { at: 0 })], "{len}");
    }
    for at in 0..out.len() {
        for bit in 0..8 {
            let mut changed = out.clone();
            changed[at] ^= 1 << bit;
            let result = decode_batches(&changed).next().expect("something");
            // The checksum does not cover base offset and leader epoch.
            if (0..8).contains(&at) || (12..16).contains(&at) {
                if let Ok(batch) = result {
                    assert_eq!(batch.records.len(), before[0].records.len());
                }
            } else {
                assert!(result.is_err(), "byte {at} bit {bit}");
            }
        }
    }
}

/// Mends what a checksum would give away, so that the decoder itself is tried.
#[test]
fn hostile_bytes_behind_a_right_checksum_are_refused_without_a_panic() {
    let records: Vec<Record> = (0..4).map(|at| record(at, b"some value")).collect();
    let (_, _, out) = batches(&records, 1 << 20);
    let try_it = |mut changed: Vec<u8>| {
        let crc = crc32c::crc32c(&changed[at::ATTRIBUTES..]);
        changed[at::CRC..at::ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
        decode_batches(&changed).for_each(drop);
    };
    for at in 0..out.len() {
        for byte in [0, 1, 0x7f, 0x80, 0xff, out[at].wrapping_add(2)] {
            let mut changed = out.clone();
            changed[at] = byte;
            try_it(changed);
        }
    }
    let mut many = out.clone();
    many[at::RECORD_COUNT..BATCH_HEADER_LEN].copy_from_slice(&i32::MAX.to_be_bytes());
    try_it(many);
}
