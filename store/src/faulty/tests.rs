//! The faults themselves: what the tests above rely on when they say "the answer was lost".
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::{Body, Key, MemoryStore, Put, Store, StoreError, digest_of};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

async fn put(store: &dyn Store, name: &str) -> Result<Put, StoreError> {
    let bytes = Bytes::from(name.to_owned());
    let digest = digest_of(&bytes);
    store
        .put_if_absent(&key(name), Body::Bytes(bytes), digest)
        .await
}

/// Without asking the wrapper.
async fn is_there(store: &FaultyStore, name: &str) -> bool {
    store.inner().get(&key(name)).await.is_ok()
}

fn is_away<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unavailable { .. }))
}

fn faulty() -> FaultyStore {
    FaultyStore::new(Arc::new(MemoryStore::new()))
}

#[tokio::test]
async fn each_fault_of_a_put_does_what_it_says() {
    // The fault, whether the object is there afterwards, and the answer (`None`: unavailable).
    let cases = [
        (Fault::None, true, Some(Put::Created)),
        (Fault::Unavailable, false, None),
        (Fault::AnswerLost, true, None),
        (Fault::RefusedForNothing, false, Some(Put::Refused)),
        (Fault::RefusedByItself, true, Some(Put::Refused)),
        (Fault::Stale, true, Some(Put::Created)),
        (
            Fault::Delayed(Duration::from_millis(1)),
            true,
            Some(Put::Created),
        ),
    ];
    for (fault, there, answer) in cases {
        let store = faulty();
        store.next(OperationKind::Put, "a", fault.clone());
        let done = put(&store, "a").await;
        match answer {
            Some(answer) => assert_eq!(done.unwrap(), answer, "{fault:?}"),
            None => assert!(is_away(&done), "{fault:?}: {done:?}"),
        }
        assert_eq!(is_there(&store, "a").await, there, "{fault:?}");
    }
    let store = faulty();
    store.next(OperationKind::Put, "a", Fault::Denied);
    let denied = put(&store, "a").await;
    assert!(
        matches!(denied, Err(StoreError::Refused { .. })),
        "{denied:?}"
    );
    assert!(!is_there(&store, "a").await);
}

#[tokio::test]
async fn each_fault_of_a_read_does_what_it_says() {
    let store = faulty();
    assert_eq!(put(&store, "a/b").await.unwrap(), Put::Created);
    for fault in [
        Fault::Unavailable,
        Fault::AnswerLost,
        Fault::DoneLater { operations: 0 },
    ] {
        store.next(OperationKind::Get, "a/b", fault.clone());
        assert!(is_away(&store.get(&key("a/b")).await), "{fault:?}");
    }
    store.next(OperationKind::Get, "", Fault::Stale);
    let stale = store.get(&key("a/b")).await;
    assert!(
        matches!(stale, Err(StoreError::NotFound { .. })),
        "{stale:?}"
    );
    store.next(OperationKind::List, "a", Fault::Stale);
    assert_eq!(store.list("a", true, None).await.unwrap().objects, []);
    assert_eq!(store.list("a", true, None).await.unwrap().objects.len(), 1);
    assert_eq!(store.get(&key("a/b")).await.unwrap().as_ref(), b"a/b");
}

#[tokio::test]
async fn a_late_put_arrives_after_the_operations_that_overtake_it() {
    let store = faulty();
    let late = Fault::DoneLater { operations: 2 };
    store.next(OperationKind::Put, "a", late.clone());
    assert!(is_away(&put(&store, "a").await));
    for overtaking in 0..2 {
        let found = store.get(&key("a")).await;
        assert!(found.is_err(), "after {overtaking}: {found:?}");
    }
    assert_eq!(store.get(&key("a")).await.unwrap().as_ref(), b"a");
    // Late deletions as well, and all of them when the test says so.
    store.next(OperationKind::Delete, "a", late.clone());
    store.next(OperationKind::Put, "b", late);
    assert!(is_away(&store.delete(&key("a")).await));
    assert!(is_away(&put(&store, "b").await));
    store.heal();
    store.settle().await;
    assert!(!is_there(&store, "a").await && is_there(&store, "b").await);
}

#[tokio::test]
async fn a_gate_holds_before_the_store_or_before_the_caller() {
    for after in [false, true] {
        let (store, gate) = (Arc::new(faulty()), Gate::new());
        let fault = if after {
            Fault::HeldAfter(gate.clone())
        } else {
            Fault::HeldBefore(gate.clone())
        };
        store.next(OperationKind::Put, "a", fault);
        let behind = Arc::clone(&store);
        let held = tokio::spawn(async move { put(behind.as_ref(), "a").await });
        gate.reached().await;
        assert_eq!(is_there(&store, "a").await, after);
        assert!(!held.is_finished());
        gate.open();
        assert_eq!(held.await.unwrap().unwrap(), Put::Created);
    }
}

#[tokio::test]
async fn the_queue_comes_before_the_hook_and_the_hook_before_chance() {
    let store = faulty();
    let always = FaultRates {
        refused_for_nothing: 1_000,
        ..FaultRates::default()
    };
    store.random(1, always);
    store.on_operation(|operation| match operation.name.as_str() {
        "hooked" => Fault::AnswerLost,
        _ => Fault::None,
    });
    store.next(OperationKind::Put, "hooked", Fault::Denied);
    let queued = put(&store, "hooked").await;
    assert!(
        matches!(queued, Err(StoreError::Refused { .. })),
        "{queued:?}"
    );
    assert!(is_away(&put(&store, "hooked").await));
    assert_eq!(put(&store, "by-chance").await.unwrap(), Put::Refused);
    assert!(!is_there(&store, "by-chance").await);
    store.heal();
    assert_eq!(put(&store, "by-chance").await.unwrap(), Put::Created);
    let seen: Vec<_> = store
        .operations()
        .into_iter()
        .map(|operation| (operation.number, operation.kind, operation.name))
        .collect();
    let expected = ["hooked", "hooked", "by-chance", "by-chance"];
    assert!(
        seen.iter()
            .zip(0..)
            .all(|((number, kind, _), n)| *number == n && *kind == OperationKind::Put)
    );
    assert!(seen.iter().map(|(_, _, name)| name).eq(expected.iter()));
}

/// What 40 names look like through ten listings of which about every second is cut by half.
async fn half_listed(seed: u64) -> Vec<Vec<String>> {
    let store = faulty();
    for n in 0..40 {
        assert_eq!(
            put(&store, &format!("x/{n:02}")).await.unwrap(),
            Put::Created
        );
    }
    let rates = FaultRates {
        half_listed: 500,
        ..FaultRates::default()
    };
    store.random(seed, rates);
    let mut pages = Vec::new();
    for _ in 0..10 {
        let page = store.list("x", true, None).await.unwrap();
        pages.push(
            page.objects
                .iter()
                .map(|(key, _)| key.to_string())
                .collect(),
        );
    }
    pages
}

/// What half a listing lacks used to be the same whatever the seed.
#[tokio::test]
async fn the_seed_decides_the_faults_and_what_half_a_listing_lacks() {
    let (one, again, two) = (
        half_listed(1).await,
        half_listed(1).await,
        half_listed(2).await,
    );
    assert_eq!(one, again);
    let cut = |pages: &[Vec<String>]| -> Vec<Vec<String>> {
        let cut = pages.iter().filter(|page| page.len() < 40);
        cut.cloned().collect()
    };
    let (one, two) = (cut(&one), cut(&two));
    assert!((1..10).contains(&one.len()) && (1..10).contains(&two.len()));
    assert!(one.iter().all(|page| !two.contains(page)));
    for page in one.iter().chain(&two) {
        assert!((8..33).contains(&page.len()), "{}", page.len());
    }
}

#[tokio::test]
async fn the_faults_come_as_often_as_asked() {
    let store = faulty();
    store.random(7, FaultRates::consistent());
    let mut away = 0;
    for _ in 0..2_000 {
        let found = store.get(&key("absent")).await;
        away += u32::from(is_away(&found));
    }
    // 40 + 40 + 20 of 1,000.
    assert!((140..260).contains(&away), "{away}");
}

#[tokio::test]
async fn a_lagging_reader_shows_what_has_arrived_and_takes_no_writes() {
    let source: Arc<dyn Store> = Arc::new(MemoryStore::new());
    for name in ["a/1", "a/2", "b/1", "c"] {
        assert_eq!(put(source.as_ref(), name).await.unwrap(), Put::Created);
    }
    let reader = LaggingReader::new(Arc::clone(&source));
    assert!(matches!(
        reader.get(&key("a/1")).await,
        Err(StoreError::NotFound { .. })
    ));
    assert!(
        reader
            .list("", false, None)
            .await
            .unwrap()
            .folders
            .is_empty()
    );
    reader.arrive(key("a/2"));
    reader.arrive(key("c"));
    assert_eq!(reader.get(&key("a/2")).await.unwrap().as_ref(), b"a/2");
    assert_eq!(
        reader.get_range(&key("a/2"), 2..3).await.unwrap().as_ref(),
        b"2"
    );
    let page = reader.list("", false, None).await.unwrap();
    assert_eq!(
        (page.objects, page.folders),
        (vec![(key("c"), 1)], vec!["a".to_owned()])
    );
    let first = reader.list_first("", 1).await.unwrap();
    assert_eq!(first.objects, [(key("a/2"), 3)]);
    assert!(first.next.is_some());
    assert!(matches!(
        put(&reader, "d").await,
        Err(StoreError::Refused { .. })
    ));
    assert!(matches!(
        reader.delete(&key("c")).await,
        Err(StoreError::Refused { .. })
    ));
    assert!(source.get(&key("c")).await.is_ok());
}

#[tokio::test]
async fn keys_arrive_by_chance_and_stay() {
    let source: Arc<dyn Store> = Arc::new(MemoryStore::new());
    for n in 0..100 {
        let name = format!("x/{n:02}");
        assert_eq!(put(source.as_ref(), &name).await.unwrap(), Put::Created);
    }
    let reader = LaggingReader::new(source);
    let mut rng = StdRng::seed_from_u64(3);
    let mut before = 0;
    for _ in 0..3 {
        reader.arrive_some(&mut rng, 0.5).await.unwrap();
        let now = reader.list("x", true, None).await.unwrap().objects.len();
        assert!(before < now && now < 100, "{before}, {now}");
        before = now;
    }
    reader.arrive_some(&mut rng, 1.0).await.unwrap();
    assert_eq!(
        reader.list("x", true, None).await.unwrap().objects.len(),
        100
    );
}
