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

    /// The sleeper puts [10, 20) as number 1 and falls asleep over it, `held` says where; meanwhile the others do something.
    /// Gives how it ended.
    async fn sleep_over_a_put(
        self,
        held: fn(Gate) -> Fault,
        slept: Duration,
        meanwhile: impl AsyncFnOnce(&mut Writer, &dyn Store),
    ) -> (Appended, Writer) {
        let Rig {
            hand,
            faulty,
            mut others,
            mut sleeper,
        } = self;
        let gate = Gate::new();
        faulty.next(OperationKind::Put, "/commit/", held(gate.clone()));
        let task = tokio::spawn(async move {
            let ended = sleeper.append(vec![empty(10, 20)]).await.unwrap();
            (ended, sleeper)
        });
        gate.reached().await;
        meanwhile(&mut others, faulty.inner().as_ref()).await;
        hand.forward(slept);
        gate.open();
        task.await.unwrap()
    }
}

#[tokio::test]
async fn nobody_wrote_meanwhile_and_the_commit_counts() {
    let rig = Rig::new().await;
    let nothing = async |_: &mut Writer, _: &dyn Store| {};
    let (ended, _) = rig
        .sleep_over_a_put(Fault::HeldAfter, 2 * DAY, nothing)
        .await;
    let Appended::Committed(snapshot) = ended else {
        panic!("the put was carried out, and number 1 is ours");
    };
    assert_eq!(snapshot.number(), 1);
}

#[tokio::test]
async fn others_went_on_behind_it_and_the_commit_counts() {
    let rig = Rig::new().await;
    let go_on = async |others: &mut Writer, _: &dyn Store| {
        let lost = others.append(vec![empty(10, 15)]).await.unwrap();
        assert!(matches!(lost, Appended::Lost { .. }));
        append(others, vec![empty(20, 30)]).await;
    };
    let (ended, _) = rig.sleep_over_a_put(Fault::HeldAfter, 2 * DAY, go_on).await;
    let Appended::Committed(snapshot) = ended else {
        panic!("number 1 is ours, whatever came behind it");
    };
    assert_eq!((snapshot.number(), snapshot.entry_count()), (2, 3));
}

#[tokio::test]
async fn a_number_that_was_pruned_is_not_won() {
    let rig = Rig::new().await;
    let go_on_and_prune = async |others: &mut Writer, store: &dyn Store| {
        for start in [10, 20, 30] {
            append(others, vec![empty(start, start + 10)]).await;
        }
        for number in 0..3 {
            let pruned = keys::commit(&partition(0), number);
            store.delete(&pruned).await.unwrap();
        }
    };
    let (ended, mut sleeper) = rig
        .sleep_over_a_put(Fault::HeldBefore, 31 * DAY, go_on_and_prune)
        .await;
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
