//! "Created" after a day: the machine slept between the writer's last look at the chain and the answer to its put, so
//! the number may have been free only because it was pruned.

use everlog_store::faulty::{Fault, FaultyStore, Gate, OperationKind};

use super::*;
use crate::keys;

struct Rig {
    hand: Hand,
    /// What the sleeping writer uses.
    faulty: Arc<FaultyStore>,
    others: Writer,
    sleeper: Writer,
}

impl Rig {
    async fn new() -> Rig {
        let hand = Hand::default();
        let inner = memory();
        let archive = open_at(Arc::clone(&inner), &hand, None).await;
        let mut others = archive.writer(&partition(0)).await.unwrap();
        append(&mut others, vec![empty(0, 10)]).await;
        let faulty = Arc::new(FaultyStore::new(inner));
        let asleep = open_at(faulty.clone(), &hand, None).await;
        let sleeper = asleep.writer(&partition(0)).await.unwrap();
        Rig {
            hand,
            faulty,
            others,
            sleeper,
        }
    }
}

#[tokio::test]
async fn nobody_wrote_meanwhile_and_the_commit_counts() {
    let mut rig = Rig::new().await;
    let gate = Gate::new();
    let held = Fault::HeldAfter(gate.clone());
    rig.faulty.next(OperationKind::Put, "/commit/", held);
    let task = tokio::spawn(async move { rig.sleeper.append(vec![empty(10, 20)]).await.unwrap() });
    gate.reached().await;
    rig.hand.forward(2 * DAY);
    gate.open();
    let Appended::Committed(snapshot) = task.await.unwrap() else {
        panic!("the put was carried out, and number 1 is ours");
    };
    assert_eq!(snapshot.number(), 1);
}

#[tokio::test]
async fn others_went_on_behind_it_and_the_commit_counts() {
    let mut rig = Rig::new().await;
    let gate = Gate::new();
    let held = Fault::HeldAfter(gate.clone());
    rig.faulty.next(OperationKind::Put, "/commit/", held);
    let task = tokio::spawn(async move { rig.sleeper.append(vec![empty(10, 20)]).await.unwrap() });
    gate.reached().await;
    let lost = rig.others.append(vec![empty(10, 15)]).await.unwrap();
    assert!(matches!(lost, Appended::Lost { .. }));
    append(&mut rig.others, vec![empty(20, 30)]).await;
    rig.hand.forward(2 * DAY);
    gate.open();
    let Appended::Committed(snapshot) = task.await.unwrap() else {
        panic!("number 1 is ours, whatever came behind it");
    };
    assert_eq!((snapshot.number(), snapshot.entry_count()), (2, 3));
}

#[tokio::test]
async fn a_number_that_was_pruned_is_not_won() {
    let mut rig = Rig::new().await;
    let gate = Gate::new();
    let held = Fault::HeldBefore(gate.clone());
    rig.faulty.next(OperationKind::Put, "/commit/", held);
    let task = tokio::spawn(async move {
        let ended = rig.sleeper.append(vec![empty(10, 20)]).await.unwrap();
        (ended, rig.sleeper)
    });
    gate.reached().await;
    for start in [10, 20, 30] {
        append(&mut rig.others, vec![empty(start, start + 10)]).await;
    }
    rig.hand.forward(31 * DAY);
    for number in 0..3 {
        let pruned = keys::commit(&partition(0), number);
        rig.faulty.inner().delete(&pruned).await.unwrap();
    }
    gate.open();
    let (ended, mut sleeper) = task.await.unwrap();
    let Appended::Lost { snapshot, swept } = ended else {
        panic!("number 1 was somebody else's, and is pruned");
    };
    assert_eq!(snapshot.number(), 3);
    assert!(swept, "nobody can tell any more");
    // What the put left behind under number 1 is in nobody's way.
    assert_eq!(sleeper.next_offset().unwrap().get(), 40);
    let snapshot = append(&mut sleeper, vec![empty(40, 50)]).await;
    assert_eq!((snapshot.number(), snapshot.entry_count()), (4, 5));
}
