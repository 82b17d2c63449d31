//! One budget for everything, kept however many read.

use std::sync::Arc;

use everlog_format::SegmentOptions;
use everlog_index::{Archive, ArchiveOptions};
use everlog_store::faulty::FaultyStore;
use everlog_store::{MemoryStore, Store};

use crate::support::{Bed, MIB, at, read_all, records};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_partitions_share_a_budget_that_holds_a_few_row_groups() {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let options = ArchiveOptions {
        create: true,
        ..ArchiveOptions::default()
    };
    let archive = Archive::open(Arc::clone(&store) as Arc<dyn Store>, options)
        .await
        .unwrap();
    let mut beds = Vec::new();
    let all = Arc::new(records(0..3_000, 1_000));
    for partition in 0..100 {
        let mut bed = Bed::in_archive(Arc::clone(&store), Arc::clone(&archive), partition).await;
        bed.options = SegmentOptions::default();
        bed.segment(0..3_000, &all).await;
        beds.push(bed);
    }
    let budget = 40 * MIB;
    let replay = beds[0].replay(budget);
    let before = beds[0].reads();
    let mut readers = Vec::new();
    for bed in &beds {
        let (replay, snapshot, all) = (Arc::clone(&replay), bed.snapshot().await, Arc::clone(&all));
        readers.push(tokio::spawn(async move {
            let (found, _) = read_all(&replay, &snapshot, 0, 1 << 20).await.unwrap();
            assert!(found == *all);
        }));
    }
    for reader in readers {
        reader.await.unwrap();
    }
    let memory = replay.memory();
    assert!(memory.peak_bytes <= budget + MIB, "{memory:?}");
    assert!(memory.peak_bytes > budget / 2, "{memory:?}");
    // Nobody's row group was thrown out under him: one footer and one row group each.
    assert_eq!(beds[0].reads() - before, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_response_holds_is_counted_until_it_is_dropped() {
    let mut bed = Bed::new().await;
    bed.segment(0..20_000, &records(0..20_000, 1_000)).await;
    let snapshot = bed.snapshot().await;
    let budget = 12 * MIB;
    let replay = bed.replay(budget);
    let mut kept = Vec::new();
    let mut next = at(0);
    // Keeps all it gets, until there is no room for more.
    loop {
        let read = tokio::time::timeout(
            std::time::Duration::from_secs(3),
            replay.read(&snapshot, next, 1 << 20),
        );
        match read.await {
            Ok(slice) => {
                let slice = slice.unwrap();
                next = slice.next;
                kept.push(slice);
            }
            Err(_) => break,
        }
    }
    assert!(
        replay.memory().peak_bytes <= budget + MIB,
        "{:?}",
        replay.memory()
    );
    assert!(kept.len() > 5 && next < at(20_000));
    kept.clear();
    let (found, _) = read_all(&replay, &snapshot, next.get(), 1 << 20)
        .await
        .unwrap();
    assert_eq!(found.last().unwrap().offset, 19_999);
    assert!(
        replay.memory().peak_bytes <= budget + MIB,
        "{:?}",
        replay.memory()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scattered_reads_in_a_small_budget_keep_to_it() {
    let mut bed = Bed::new().await;
    let all = Arc::new(records(0..20_000, 1_000));
    bed.segment(0..20_000, &all).await;
    let snapshot = bed.snapshot().await;
    let budget = 16 * MIB;
    let replay = bed.replay(budget);
    let readers: Vec<_> = (0..16)
        .map(|reader| {
            let (replay, snapshot, all) =
                (Arc::clone(&replay), Arc::clone(&snapshot), Arc::clone(&all));
            tokio::spawn(async move {
                for step in 0..20_usize {
                    let from = (reader * 7_919 + step * 1_237) % 20_000;
                    let slice = replay
                        .read(&snapshot, at(i64::try_from(from).unwrap()), 200_000)
                        .await
                        .unwrap();
                    let (found, _) = crate::support::decode(&slice);
                    let first = usize::try_from(found[0].offset).unwrap();
                    assert!(found[..] == all[first..first + found.len()]);
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(
        replay.memory().peak_bytes <= budget + MIB,
        "{:?}",
        replay.memory()
    );
}

/// A decoder that has come to the end gives its room back, and the stored bytes stay. The next one used to be made without asking.
#[tokio::test(flavor = "multi_thread")]
async fn reading_again_what_was_read_to_the_end_keeps_to_the_budget() {
    let mut bed = Bed::new().await;
    let all = Arc::new(records(0..20_000, 1_000));
    bed.segment(0..20_000, &all).await;
    let snapshot = bed.snapshot().await;
    let budget = 16 * MIB;
    let replay = bed.replay(budget);
    let (found, _) = read_all(&replay, &snapshot, 0, 1 << 20).await.unwrap();
    assert!(found == *all);
    let readers: Vec<_> = (0..16)
        .map(|reader| {
            let (replay, snapshot) = (Arc::clone(&replay), Arc::clone(&snapshot));
            tokio::spawn(async move {
                let read = replay.read(&snapshot, at(reader * 1_250), 1).await;
                // What is read holds its room for as long as it is there, and all of it together is more than the budget: kept until
                // the readers before it are done, it would keep them from ending.
                crate::support::decode(&read.unwrap()).0
            })
        })
        .collect();
    for (reader, read) in readers.into_iter().enumerate() {
        assert!(read.await.unwrap().contains(&all[reader * 1_250]));
    }
    assert!(
        replay.memory().peak_bytes <= budget,
        "{:?}",
        replay.memory()
    );
}
