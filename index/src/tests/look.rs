//! How many requests the newest commit costs, counted at the store.

use everlog_store::StoreError;
use everlog_store::faulty::{Fault, FaultyStore, Gate, OperationKind};

use super::*;
use crate::{Freshness, IndexError};

const CALLERS: usize = 20;

struct Rig {
    hand: Hand,
    store: Arc<FaultyStore>,
    reader: Arc<Archive>,
    writer: Writer,
}

impl Rig {
    /// A chain of one commit, and a reader in another process that has seen it.
    async fn new() -> Rig {
        let hand = Hand::default();
        hand.forward(DAY);
        let inner = memory();
        let archive = open_at(Arc::clone(&inner), &hand, None).await;
        let mut writer = archive.writer(&partition(0)).await.unwrap();
        append(&mut writer, vec![empty(0, 10)]).await;
        let store = Arc::new(FaultyStore::new(inner));
        let reader = open_at(store.clone(), &hand, None).await;
        let rig = Rig {
            hand,
            store,
            reader,
            writer,
        };
        assert_eq!(rig.number(Freshness::Known).await, Some(0));
        rig.hand.forward(Duration::from_secs(5));
        rig
    }

    async fn number(&self, freshness: Freshness) -> Option<u64> {
        let snapshot = self.reader.snapshot(&partition(0), freshness).await;
        snapshot.unwrap().map(|s| s.number())
    }

    fn requests(&self) -> usize {
        self.store.operations().len()
    }

    /// Callers at the same time, all of whom have asked before the first request is answered with `fault`.
    async fn ask_together(
        &self,
        freshness: Freshness,
        fault: Option<Fault>,
    ) -> Vec<Result<Option<u64>, IndexError>> {
        let gate = Gate::new();
        let held = Fault::HeldBefore(gate.clone());
        let first = fault.unwrap_or(held);
        self.store.next(OperationKind::Get, "/commit/", first);
        let ask = || {
            let reader = Arc::clone(&self.reader);
            tokio::spawn(async move { reader.snapshot(&partition(0), freshness).await })
        };
        let tasks: Vec<_> = (0..CALLERS).map(|_| ask()).collect();
        for _ in 0..10 * CALLERS {
            tokio::task::yield_now().await;
        }
        gate.open();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap().map(|s| s.map(|s| s.number())));
        }
        answers
    }
}

#[tokio::test]
async fn what_is_known_costs_nothing() {
    let rig = Rig::new().await;
    let before = rig.requests();
    for _ in 0..CALLERS {
        assert_eq!(rig.number(Freshness::Known).await, Some(0));
        let fresh = Freshness::Within(Duration::from_secs(6));
        assert_eq!(rig.number(fresh).await, Some(0));
    }
    assert_eq!(rig.requests(), before);
}

#[tokio::test]
async fn callers_at_the_same_time_share_one_request() {
    let rig = Rig::new().await;
    let before = rig.requests();
    let answers = rig
        .ask_together(Freshness::Within(Duration::ZERO), None)
        .await;
    assert!(answers.iter().all(|a| matches!(a, Ok(Some(0)))));
    assert_eq!(rig.requests() - before, 1);
}

#[tokio::test]
async fn callers_at_the_same_time_share_one_failure() {
    let rig = Rig::new().await;
    let before = rig.requests();
    let fresh = Freshness::Within(Duration::ZERO);
    let answers = rig.ask_together(fresh, Some(Fault::Unavailable)).await;
    let away =
        |a: &Result<_, _>| matches!(a, Err(IndexError::Store(StoreError::Unavailable { .. })));
    assert!(answers.iter().all(away), "{answers:?}");
    assert_eq!(rig.requests() - before, 1);
    // What is known stays known, and a second later somebody looks again.
    assert_eq!(rig.number(Freshness::Known).await, Some(0));
    rig.hand.forward(Duration::from_secs(1));
    assert_eq!(rig.number(fresh).await, Some(0));
    assert_eq!(rig.requests() - before, 2);
}

#[tokio::test]
async fn a_partition_is_looked_at_once_a_second_at_most() {
    let mut rig = Rig::new().await;
    let before = rig.requests();
    let fresh = Freshness::Within(Duration::ZERO);
    assert_eq!(rig.number(fresh).await, Some(0));
    assert_eq!(rig.requests() - before, 1);
    append(&mut rig.writer, vec![empty(10, 20)]).await;
    for _ in 0..9 {
        rig.hand.forward(Duration::from_millis(100));
        assert_eq!(rig.number(fresh).await, Some(0));
    }
    assert_eq!(rig.requests() - before, 1, "within the second");
    rig.hand.forward(Duration::from_millis(100));
    assert_eq!(rig.number(fresh).await, Some(1));
    // The new commit, and that there is none behind it.
    assert_eq!(rig.requests() - before, 3);
}

#[tokio::test]
async fn now_is_now() {
    let mut rig = Rig::new().await;
    let before = rig.requests();
    for _ in 0..3 {
        assert_eq!(rig.number(Freshness::Now).await, Some(0));
    }
    assert_eq!(rig.requests() - before, 3);
    append(&mut rig.writer, vec![empty(10, 20)]).await;
    assert_eq!(rig.number(Freshness::Now).await, Some(1));
}

#[tokio::test]
async fn now_for_many_at_once_is_two_requests_at_most() {
    let rig = Rig::new().await;
    let before = rig.requests();
    let answers = rig.ask_together(Freshness::Now, None).await;
    assert!(answers.iter().all(|a| matches!(a, Ok(Some(0)))));
    // One for who asked before it began, one for those who asked while it was under way.
    assert!((1..=2).contains(&(rig.requests() - before)));
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_keep_the_others_from_looking() {
    let rig = Rig::new().await;
    let gate = Gate::new();
    let held = Fault::HeldBefore(gate.clone());
    rig.store.next(OperationKind::Get, "/commit/", held);
    let reader = Arc::clone(&rig.reader);
    let task = tokio::spawn(async move { reader.snapshot(&partition(0), Freshness::Now).await });
    gate.reached().await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let fresh = Freshness::Within(Duration::ZERO);
    assert_eq!(rig.number(fresh).await, Some(0));
}

#[tokio::test]
async fn a_commit_of_this_process_needs_no_look() {
    let hand = Hand::default();
    let store = Arc::new(FaultyStore::new(memory()));
    let archive = open_at(store.clone(), &hand, None).await;
    let mut writer = archive.writer(&partition(0)).await.unwrap();
    append(&mut writer, vec![empty(0, 10)]).await;
    append(&mut writer, vec![empty(10, 20)]).await;
    let before = store.operations().len();
    let known = archive.snapshot(&partition(0), Freshness::Known).await;
    assert_eq!(known.unwrap().unwrap().number(), 1);
    assert_eq!(store.operations().len(), before);
}
