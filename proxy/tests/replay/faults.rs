//! The store fails, is slow or lies: nothing is cached that is not good, and what was begun is finished.

use std::sync::Arc;
use std::time::Duration;

use everlog_proxy::replay::ReplayError;
use everlog_store::faulty::{Fault, Gate, OperationKind};
use everlog_store::{Body, Store, digest_of};
use tokio::time::timeout;

use crate::support::{Bed, MIB, at, decode, range, read_all, records};

async fn bed() -> Bed {
    let mut bed = Bed::new().await;
    bed.segment(0..2_000, &records(0..2_000, 1_000)).await;
    bed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_download_is_told_to_all_who_wait_and_then_forgotten() {
    let bed = bed().await;
    let snapshot = bed.snapshot().await;
    // First the footer fails, then the row group.
    for reads_before in [0, 1] {
        let replay = bed.replay(64 * MIB);
        for _ in 0..reads_before {
            bed.store
                .next(OperationKind::GetRange, "data/", Fault::None);
        }
        bed.store
            .next(OperationKind::GetRange, "data/", Fault::Unavailable);
        let readers: Vec<_> = (0..5)
            .map(|_| {
                let (replay, snapshot) = (Arc::clone(&replay), Arc::clone(&snapshot));
                tokio::spawn(async move {
                    replay
                        .read(&snapshot, at(100), 1 << 20)
                        .await
                        .map(|slice| slice.bytes)
                })
            })
            .collect();
        let mut failed = 0;
        for reader in readers {
            match reader.await.unwrap() {
                Err(ReplayError::Unavailable { .. }) => failed += 1,
                // Came after the failure was over.
                Ok(_) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(failed >= 1);
        let slice = replay.read(&snapshot, at(100), 1 << 20).await.unwrap();
        assert!(slice.bytes > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_behind_a_deadline() {
    let bed = bed().await;
    let snapshot = bed.snapshot().await;
    let replay = bed.replay(64 * MIB);
    let (footer, group) = (Gate::new(), Gate::new());
    bed.store.next(
        OperationKind::GetRange,
        "data/",
        Fault::HeldBefore(footer.clone()),
    );
    bed.store.next(
        OperationKind::GetRange,
        "data/",
        Fault::HeldBefore(group.clone()),
    );
    let late = timeout(
        Duration::from_millis(50),
        replay.read(&snapshot, at(0), 1 << 20),
    )
    .await;
    assert!(late.is_err());
    let reads = bed.reads();
    // Nobody asks any more, and yet it goes from the footer on to the row group.
    footer.open();
    group.reached().await;
    group.open();
    let slice = replay.read(&snapshot, at(0), 100_000).await.unwrap();
    assert_eq!(decode(&slice).0[0].offset, 0);
    assert_eq!(bed.reads(), reads + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_object_is_no_hole_and_no_end() {
    let mut bed = bed().await;
    let covers = range(2_000..3_000);
    let entry = bed.upload(covers, &records(2_000..3_000, 1_000)).await;
    bed.commit(entry).await;
    let snapshot = bed.snapshot().await;
    let listed = bed.store.list("data", true, None).await.unwrap();
    let (key, _) = listed
        .objects
        .iter()
        .find(|(key, _)| key.as_str().contains("-2000-3000-"))
        .unwrap();
    bed.store.delete(key).await.unwrap();
    let replay = bed.replay(64 * MIB);
    let missing = replay.read(&snapshot, at(2_500), 1 << 20).await;
    assert!(
        matches!(missing, Err(ReplayError::Missing { .. })),
        "{missing:?}"
    );
    // What lies before is served up to the last record, and not a step further.
    let mut next = at(1_900);
    let error = loop {
        match replay.read(&snapshot, next, 1 << 20).await {
            Ok(slice) => next = slice.next,
            Err(error) => break error,
        }
    };
    assert_eq!(next, at(2_000));
    assert!(matches!(error, ReplayError::Missing { .. }));
    let missing = replay
        .offset_for_timestamp(&snapshot, 1_700_000_002_500)
        .await;
    assert!(
        matches!(missing, Err(ReplayError::Missing { .. })),
        "{missing:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_bytes_are_never_served() {
    let bed = bed().await;
    let snapshot = bed.snapshot().await;
    let listed = bed.store.list("data", true, None).await.unwrap();
    let (key, len) = listed.objects[0].clone();
    let good = bed.store.get(&key).await.unwrap();
    let len = usize::try_from(len).unwrap();
    for damaged_at in [5, 1_000, len / 2, len - 4_000, len - 200, len - 6] {
        let mut bad = good.to_vec();
        bad[damaged_at] ^= 0x10;
        bed.store.delete(&key).await.unwrap();
        let _ = bed
            .store
            .put_if_absent(&key, Body::Bytes(bad.clone().into()), digest_of(&bad))
            .await
            .unwrap();
        let replay = bed.replay(64 * MIB);
        match read_all(&replay, &snapshot, 0, 1 << 20).await {
            Err(ReplayError::Corrupt { .. }) => {}
            // The flipped bit is in something that is not needed to read.
            Ok((found, _)) => assert!(
                found == records(0..2_000, 1_000),
                "served damage at {damaged_at}"
            ),
            Err(error) => panic!("{error:?}"),
        }
        // And once the object is whole again, so is the reader.
        bed.store.delete(&key).await.unwrap();
        let _ = bed
            .store
            .put_if_absent(&key, Body::Bytes(good.clone()), digest_of(&good))
            .await
            .unwrap();
        let (found, _) = read_all(&replay, &snapshot, 0, 1 << 20).await.unwrap();
        assert!(found == records(0..2_000, 1_000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_outages_lose_nothing() {
    let bed = bed().await;
    let snapshot = bed.snapshot().await;
    for seed in 0..20 {
        let replay = bed.replay(8 * MIB);
        bed.store.random(
            seed,
            everlog_store::faulty::FaultRates {
                unavailable: 400,
                ..Default::default()
            },
        );
        let mut found = Vec::new();
        let mut next = at(0);
        while next < at(2_000) {
            match replay.read(&snapshot, next, 300_000).await {
                Ok(slice) => {
                    found.extend(
                        decode(&slice)
                            .0
                            .into_iter()
                            .filter(|record| record.offset >= next.get()),
                    );
                    next = slice.next;
                }
                Err(ReplayError::Unavailable { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(found == records(0..2_000, 1_000), "seed {seed}");
        bed.store.heal();
    }
}
