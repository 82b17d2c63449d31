//! What a client is told where there are no records: its position must arrive at the end of what is known.

use everlog_index::{Entry, EntryKind};
use everlog_proxy::replay::{Absence, AbsenceCause};

use crate::support::{Bed, MIB, at, decode, range, read_all, record, records};

#[tokio::test(flavor = "multi_thread")]
async fn the_last_batch_reaches_the_archived_end_over_empty_ranges() {
    let mut bed = Bed::new().await;
    bed.segment(0..100, &records(3..90, 50)).await;
    bed.empty(100..130).await;
    bed.empty(130..150).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    let slice = replay.read(&snapshot, at(0), 1 << 20).await.unwrap();
    let (found, next) = decode(&slice);
    assert_eq!(
        (found.len(), next, slice.next, slice.at_hole),
        (87, Some(150), at(150), None)
    );
    // Inside of the tail there is a batch without records up to the end.
    for from in [90, 99, 100, 149] {
        let slice = replay.read(&snapshot, at(from), 1).await.unwrap();
        assert_eq!(
            (decode(&slice), slice.next),
            ((vec![], Some(150)), at(150)),
            "{from}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_too_long_for_one_batch_still_arrives() {
    let mut bed = Bed::new().await;
    let far = 10 * i64::from(i32::MAX);
    bed.segment(0..far, &records(0..5, 50)).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    let (found, next) = read_all(&replay, &snapshot, 0, 1 << 20).await.unwrap();
    assert_eq!((found.len(), next), (5, far));
    let (found, next) = read_all(&replay, &snapshot, 0, 1).await.unwrap();
    assert_eq!((found.len(), next), (5, far));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_range_between_data_lies_between_batches() {
    let mut bed = Bed::new().await;
    bed.segment(0..100, &records(0..80, 50)).await;
    bed.empty(100..200).await;
    bed.segment(200..300, &records(250..260, 50)).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    let slice = replay.read(&snapshot, at(0), 1 << 20).await.unwrap();
    let batches: Vec<_> = everlog_format::decode_batches(&slice.records.concat())
        .map(|batch| {
            batch
                .map(|batch| (batch.base_offset, batch.last_offset))
                .unwrap()
        })
        .collect();
    assert_eq!(batches, [(0, 79), (250, 299)]);
    for from in [80, 99, 150, 249] {
        let slice = replay.read(&snapshot, at(from), 1).await.unwrap();
        assert_eq!(decode(&slice).0[0].offset, 250);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_stops_at_a_hole_and_says_so() {
    let mut bed = Bed::new().await;
    bed.segment(0..100, &records(0..80, 50)).await;
    bed.empty(100..110).await;
    bed.hole(110..500).await;
    bed.segment(500..600, &records(500..600, 50)).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    let hole = range(110..500);
    let cut = |absence: Option<Absence>| {
        absence.map(|absence| {
            (
                absence.range,
                matches!(absence.cause, AbsenceCause::Lost(_)),
            )
        })
    };
    let slice = replay.read(&snapshot, at(0), 1 << 20).await.unwrap();
    let (found, next) = decode(&slice);
    assert_eq!(
        (found.len(), next, cut(slice.at_hole)),
        (80, Some(110), Some((hole, true)))
    );
    let slice = replay.read(&snapshot, at(105), 1 << 20).await.unwrap();
    assert_eq!(
        (decode(&slice), cut(slice.at_hole)),
        ((vec![], Some(110)), Some((hole, true)))
    );
    for from in [110, 499] {
        let slice = replay.read(&snapshot, at(from), 1 << 20).await.unwrap();
        assert_eq!(
            (slice.bytes, slice.next, cut(slice.at_hole)),
            (0, at(from), Some((hole, true)))
        );
    }
    let (found, next) = read_all(&replay, &snapshot, 500, 1 << 20).await.unwrap();
    assert_eq!((found.len(), next), (100, 600));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_full_at_the_last_record_still_names_the_hole() {
    let mut bed = Bed::new().await;
    bed.segment(0..10, &[record(0, 1_000), record(1, 200_000)])
        .await;
    bed.hole(10..20).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    // The second batch alone is larger than what is asked for.
    let slice = replay.read(&snapshot, at(1), 1).await.unwrap();
    assert_eq!(
        (slice.next, slice.at_hole.map(|hole| hole.range)),
        (at(10), Some(range(10..20)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_on_purpose_is_told_from_a_hole() {
    let mut bed = Bed::new().await;
    bed.commit(Entry {
        range: range(0..50),
        kind: EntryKind::Expired,
    })
    .await;
    bed.segment(50..60, &records(50..60, 50)).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    let slice = replay.read(&snapshot, at(7), 1 << 20).await.unwrap();
    let expired = Absence {
        range: range(0..50),
        cause: AbsenceCause::Expired,
    };
    assert_eq!((slice.bytes, slice.at_hole), (0, Some(expired)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_without_a_record_is_one_empty_tail() {
    let mut bed = Bed::new().await;
    bed.empty(5..50).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    let slice = replay.read(&snapshot, at(20), 1 << 20).await.unwrap();
    assert_eq!(decode(&slice), (vec![], Some(50)));
}
