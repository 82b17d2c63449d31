//! Any records, there and back.

use super::*;

fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(Vec::new())),
        4 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Some),
        1 => (any::<u8>(), 100..9_000_usize).prop_map(|(byte, len)| Some(vec![byte; len])),
    ]
}

fn timestamp() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => 1_700_000_000_000..1_700_000_100_000_i64,
        1 => Just(-1),
        1 => Just(0),
        1 => any::<i64>(),
        1 => prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(i64::MAX / 1000), Just(i64::MAX / 1000 + 1)],
        1 => 1_700_000_000_000 - 5_000_000_000..1_700_000_000_000 + 5_000_000_000_i64,
    ]
}

fn gap() -> impl Strategy<Value = i64> {
    prop_oneof![20 => Just(1_i64), 3 => 1..50_i64, 1 => 1..10_000_000_000_i64]
}

prop_compose! {
    fn any_record()(
        gap in gap(),
        timestamp_ms in timestamp(),
        log_append in prop::bool::weighted(0.2),
        leader_epoch in prop_oneof![3 => Just(Some(4)), 1 => Just(None), 1 => (0..i32::MAX).prop_map(Some)],
        key in bytes(),
        value in bytes(),
        headers in prop::collection::vec((bytes(), bytes()), 0..4),
    ) -> Record {
        Record {
            offset: gap,
            timestamp_ms,
            timestamp_type: if log_append { TimestampType::LogAppend } else { TimestampType::Create },
            leader_epoch,
            key,
            value,
            headers: headers
                .into_iter()
                .map(|(key, value)| Header { key: key.unwrap_or_else(|| vec![0xff, 0]), value })
                .collect(),
        }
    }
}

/// Records at ascending offsets.
pub(super) fn records(max: usize) -> impl Strategy<Value = Vec<Record>> {
    (0..i64::MAX / 2, prop::collection::vec(any_record(), 1..max)).prop_map(
        |(start, mut records)| {
            let mut next = start;
            for record in &mut records {
                // The generator put the distance there.
                next += record.offset;
                record.offset = next;
            }
            records
        },
    )
}

fn options() -> impl Strategy<Value = SegmentOptions> {
    (
        1..=3,
        1_usize..40_000,
        262_000_usize..400_000,
        1_024..20_000_usize,
    )
        .prop_map(|(zstd_level, raw, encoded, page)| SegmentOptions {
            zstd_level,
            row_group_encoded_max_bytes: encoded,
            row_group_raw_max_bytes: raw,
            page_max_bytes: page,
        })
}

/// What every batch has to keep to, whatever the records.
fn check_batch(batch: &crate::DecodedBatch, encoded: &EncodedBatch, max: usize) {
    assert_eq!(
        (batch.base_offset, batch.last_offset),
        (encoded.base_offset.get(), encoded.last_offset.get())
    );
    assert_eq!(
        batch.records.last().map(|record| record.offset),
        Some(batch.last_offset)
    );
    assert_eq!(batch.max_timestamp_ms, encoded.max_timestamp_ms);
    assert_eq!(
        Some(batch.max_timestamp_ms),
        batch.records.iter().map(|record| record.timestamp_ms).max()
    );
    assert_eq!(batch.partition_leader_epoch, encoded.leader_epoch);
    assert_eq!(
        (batch.producer_id, batch.producer_epoch, batch.base_sequence),
        (-1, -1, -1)
    );
    assert!(encoded.bytes.len() <= max || batch.records.len() == 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_records_pass_through_segment_slices_and_batches_unchanged(
        records in records(120),
        before in 0..1_000_i64,
        behind in 1..1_000_i64,
        options in options(),
        slice_target in 0..30_000_usize,
        batch_max in 0..20_000_usize,
    ) {
        let start = (records[0].offset - before).max(0);
        let end = records[records.len() - 1].offset + behind;
        let (summary, bytes) = write(&records, start, end, options);
        let (again, same) = write(&records, start, end, options);
        prop_assert_eq!((&again, &same), (&summary, &bytes));

        let segment = parse(&bytes, summary.footer_len).expect("a segment");
        prop_assert_eq!(segment.records(), summary.records);
        prop_assert_eq!(segment.raw_bytes(), summary.raw_bytes);
        let (min, max) = (
            segment.row_groups().iter().map(|group| group.min_timestamp_ms).min(),
            segment.row_groups().iter().map(|group| group.max_timestamp_ms).max(),
        );
        prop_assert_eq!((min, max), (Some(summary.min_timestamp_ms), Some(summary.max_timestamp_ms)));
        let mut back = Vec::new();
        for slice in slices(&segment, &bytes, slice_target).expect("slices") {
            prop_assert!(slice.len() == 1 || slice.raw_bytes() <= slice_target as u64);
            let mut out = vec![1, 2, 3];
            let encoded = encode_batches(&slice, batch_max, &mut out);
            let decoded: Vec<_> =
                decode_batches(&out[3..]).collect::<Result<_, _>>().expect("our own batches");
            prop_assert_eq!(decoded.len(), encoded.len());
            for (batch, encoded) in decoded.iter().zip(&encoded) {
                check_batch(batch, encoded, batch_max);
            }
            back.extend(decoded.into_iter().flat_map(|batch| batch.records));
        }
        prop_assert_eq!(back, records);
    }

    #[test]
    fn a_seek_lands_on_the_first_record_at_or_above(
        records in records(200),
        options in options(),
        at in any::<prop::sample::Index>(),
        step in 0..2_i64,
    ) {
        let (start, end) = (records[0].offset, records[records.len() - 1].offset + 1);
        let (summary, bytes) = write(&records, start, end, options);
        let segment = parse(&bytes, summary.footer_len).expect("a segment");
        let wanted = at.get(&records).offset + step;
        let expected: Vec<Record> = records.iter().filter(|record| record.offset >= wanted).cloned().collect();
        let mut back = Vec::new();
        for index in segment.row_group_at(offset(wanted)).into_iter().flat_map(|from| from..segment.row_groups().len()) {
            let mut reader = RowGroupReader::new(&segment, index, group_bytes(&segment, &bytes, index)).expect("bytes");
            // A reader that has read already goes back as well.
            reader.next_slice(1_000).expect("a slice");
            reader.seek(offset(wanted)).expect("a seek");
            while let Some(slice) = reader.next_slice(5_000).expect("a slice") {
                back.extend(slice.to_records());
            }
        }
        prop_assert_eq!(back, expected);
    }
}
