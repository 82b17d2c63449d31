//! Records come whole, once, in order, whatever is asked for in whatever steps.

use std::sync::Arc;

use everlog_proxy::replay::ReplayError;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Bed, MIB, at, decode, read_all, record, records};

const ENOUGH: u64 = 64 * MIB;

async fn three_segments() -> (Bed, Vec<everlog_format::Record>) {
    let mut bed = Bed::new().await;
    let all = records(0..20_000, 1_000);
    bed.segment(0..9_000, &all[..9_000]).await;
    bed.segment(9_000..12_000, &all[9_000..12_000]).await;
    bed.segment(12_000..20_000, &all[12_000..]).await;
    (bed, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_of_one_mib_give_every_record_once_and_decode_nothing_twice() {
    let (bed, all) = three_segments().await;
    let snapshot = bed.snapshot().await;
    let registry = prometheus::Registry::new();
    let replay = everlog_proxy::replay::Replay::new(Arc::clone(&bed.archive), ENOUGH, &registry);
    let before = bed.reads();
    let (found, next) = read_all(&replay, &snapshot, 0, 1 << 20).await.unwrap();
    assert_eq!(next, 20_000);
    assert!(found == all, "records differ");
    let value = |name: &str| {
        let families = registry.gather();
        let family = families
            .iter()
            .find(|family| family.name() == name)
            .unwrap();
        family.get_metric()[0].get_counter().get_value()
    };
    // A batch at the edge of an answer can come twice; a run is never decoded twice.
    assert!(value("everlog_replay_decoded_bytes_total") <= value("everlog_replay_bytes_total"));
    assert_eq!(value("everlog_replay_records_total"), 20_000.0);
    // Three footers, and each row group once: about 20 MB in groups of at most 1 MiB.
    let reads = bed.reads() - before;
    assert_eq!(value("everlog_replay_object_reads_total"), reads as f64);
    assert!((13..=30).contains(&reads), "{reads} reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_step_size_gives_the_same_records() {
    let (bed, all) = three_segments().await;
    let snapshot = bed.snapshot().await;
    for max_bytes in [1, 70_000, 300_000, 5_000_000, usize::MAX] {
        let replay = bed.replay(ENOUGH);
        let (found, next) = read_all(&replay, &snapshot, 7_777, max_bytes)
            .await
            .unwrap();
        assert_eq!(next, 20_000);
        assert!(found == all[7_777..], "records differ at {max_bytes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_keeps_to_its_size_but_has_one_batch_at_least() {
    let (bed, _) = three_segments().await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(ENOUGH);
    let slice = replay.read(&snapshot, at(0), 1).await.unwrap();
    assert_eq!(
        everlog_format::decode_batches(&slice.records.concat()).count(),
        1
    );
    let mut next = at(0);
    for _ in 0..15 {
        let slice = replay.read(&snapshot, next, 1 << 20).await.unwrap();
        assert!(slice.bytes <= 1 << 20);
        // Whole batches of at most 128 KiB leave less than one batch of an answer empty, unless a run was awaited.
        assert!(slice.bytes > 100_000, "{}", slice.bytes);
        next = slice.next;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_starts_with_the_batch_that_holds_the_offset() {
    let (bed, all) = three_segments().await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(ENOUGH);
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..200 {
        let from: usize = rng.random_range(0..all.len());
        let slice = replay
            .read(&snapshot, at(i64::try_from(from).unwrap()), 200_000)
            .await
            .unwrap();
        let (found, _) = decode(&slice);
        let first = usize::try_from(found[0].offset).unwrap();
        assert!(first <= from && from < first + 200, "{first} for {from}");
        assert!(found[..] == all[first..first + found.len()]);
        assert!(found.last().unwrap().offset >= i64::try_from(from).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_seek_costs_two_object_reads() {
    let (bed, _) = three_segments().await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(ENOUGH);
    let before = bed.store.operations().len();
    // Little enough to lie in one row group, wherever that begins.
    replay.read(&snapshot, at(15_000), 1 << 16).await.unwrap();
    let operations = bed.store.operations().split_off(before);
    assert!(operations.len() <= 2, "{operations:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_the_same_records_download_them_once() {
    let (bed, all) = three_segments().await;
    let snapshot = bed.snapshot().await;
    let alone = {
        let before = bed.reads();
        read_all(&bed.replay(256 * MIB), &snapshot, 0, 1 << 20)
            .await
            .unwrap();
        bed.reads() - before
    };
    let replay = bed.replay(256 * MIB);
    let before = bed.reads();
    let readers: Vec<_> = (0..20)
        .map(|_| {
            let (replay, snapshot) = (Arc::clone(&replay), Arc::clone(&snapshot));
            tokio::spawn(async move { read_all(&replay, &snapshot, 0, 1 << 20).await })
        })
        .collect();
    for reader in readers {
        let (found, _) = reader.await.unwrap().unwrap();
        assert!(found == all);
    }
    assert_eq!(bed.reads() - before, alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_larger_than_everything_are_served() {
    let mut bed = Bed::new().await;
    let sizes = [100, 5_000_000, 200, 2_000_000, 2_000_000, 12_000_000, 10];
    let all: Vec<_> = (1..)
        .zip(sizes)
        .map(|(offset, len)| record(offset, len))
        .collect();
    bed.segment(0..8, &all).await;
    let snapshot = bed.snapshot().await;
    for memory_bytes in [ENOUGH, 4 * MIB] {
        let replay = bed.replay(memory_bytes);
        let (found, next) = read_all(&replay, &snapshot, 0, 1 << 20).await.unwrap();
        assert_eq!(next, 8);
        assert!(found == all, "records differ with {memory_bytes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_between_records_are_passed_over() {
    let mut bed = Bed::new().await;
    let all: Vec<_> = records(0..9_000, 700)
        .into_iter()
        .filter(|record| record.offset % 1_000 >= 500)
        .collect();
    bed.segment(0..9_000, &all).await;
    bed.segment(9_000..9_100, &[record(9_050, 10)]).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(ENOUGH);
    let (found, next) = read_all(&replay, &snapshot, 0, 1 << 20).await.unwrap();
    assert!(found.iter().eq(all.iter().chain(&[record(9_050, 10)])));
    assert_eq!(next, 9_100);
    // From inside of a gap.
    let slice = replay.read(&snapshot, at(3_100), 1).await.unwrap();
    assert!(decode(&slice).0.iter().any(|record| record.offset == 3_500));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_covered_is_refused() {
    let mut bed = Bed::new().await;
    bed.segment(10..20, &[record(12, 10)]).await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(ENOUGH);
    for offset in [0, 9, 20, i64::MAX] {
        let refused = replay.read(&snapshot, at(offset), 1).await;
        assert!(
            matches!(refused, Err(ReplayError::NotCovered { .. })),
            "{offset}: {refused:?}"
        );
    }
}
