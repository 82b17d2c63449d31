//! Look-ups by time and epoch against the plain answer over all records.

use everlog_format::Record;

use crate::support::{Bed, MIB, at, record, records};

fn disordered() -> Vec<Record> {
    let mut all = records(0..6_000, 900);
    for record in &mut all {
        // Zigzag with far outliers, so that neither segments nor row groups are sorted.
        record.timestamp_ms = match record.offset % 1_000 {
            7 => -1,
            999 => 5_000_000,
            wave => (record.offset / 1_000) * 100_000 + wave * 37 % 90_000,
        };
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lowest_offset_at_or_behind_a_time_is_found_in_any_disorder() {
    let mut bed = Bed::new().await;
    let all = disordered();
    bed.segment(0..1_500, &all[..1_500]).await;
    bed.empty(1_500..1_500 + 1).await;
    bed.segment(1_501..4_000, &all[1_501..4_000]).await;
    bed.hole(4_000..4_100).await;
    bed.segment(4_100..6_000, &all[4_100..]).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    let archived = || {
        all.iter()
            .filter(|record| record.offset != 1_500 && !(4_000..4_100).contains(&record.offset))
    };
    for time in (-2..700_000).step_by(7_919).chain([
        0,
        1,
        36,
        37,
        4_999_999,
        5_000_000,
        5_000_001,
        i64::MAX,
        i64::MIN,
    ]) {
        let expected = archived().find(|record| record.timestamp_ms >= time);
        let hit = replay.offset_for_timestamp(&snapshot, time).await.unwrap();
        let hit = hit.map(|hit| (hit.offset.get(), hit.timestamp_ms, hit.leader_epoch));
        assert_eq!(
            hit,
            expected.map(|r| (r.offset, r.timestamp_ms, r.leader_epoch)),
            "{time}"
        );
    }
    let hit = replay.max_timestamp(&snapshot).await.unwrap().unwrap();
    assert_eq!((hit.offset, hit.timestamp_ms), (at(999), 5_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_without_records_has_no_times() {
    let mut bed = Bed::new().await;
    bed.empty(0..10).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    assert_eq!(
        replay
            .offset_for_timestamp(&snapshot, i64::MIN)
            .await
            .unwrap(),
        None
    );
    assert_eq!(replay.max_timestamp(&snapshot).await.unwrap(), None);
    assert_eq!(replay.epoch_at(&snapshot, at(3)).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_come_from_the_tree_alone() {
    let mut bed = Bed::new().await;
    let with_epoch = |offset, epoch| Record {
        leader_epoch: Some(epoch),
        ..record(offset, 10)
    };
    bed.segment(0..10, &[with_epoch(2, 3), with_epoch(5, 4)])
        .await;
    bed.segment(10..20, &[with_epoch(12, 4), with_epoch(15, 9)])
        .await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    let before = bed.reads();
    for (offset, epoch) in [(0, 3), (2, 3), (4, 3), (5, 4), (13, 4), (15, 9), (19, 9)] {
        assert_eq!(
            replay.epoch_at(&snapshot, at(offset)).await.unwrap(),
            Some(epoch),
            "{offset}"
        );
    }
    assert_eq!(bed.reads(), before);
}
