//! What can go wrong with an operation, and how often.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::Semaphore;

/// What the caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// [`Store::get`](crate::Store::get)
    Get,
    /// [`Store::get_range`](crate::Store::get_range)
    GetRange,
    /// [`Store::put_if_absent`](crate::Store::put_if_absent)
    Put,
    /// [`Store::list`](crate::Store::list) and [`Store::list_first`](crate::Store::list_first)
    List,
    /// [`Store::delete`](crate::Store::delete)
    Delete,
}

/// One call, as the hooks see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Counts from 0 over the life of the wrapper.
    pub number: u64,
    /// What.
    pub kind: OperationKind,
    /// The key, for listings the prefix.
    pub name: String,
}

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub enum Fault {
    /// Nothing: the operation reaches the store and its answer the caller.
    #[default]
    None,
    /// 503: nothing is done, [`StoreError::Unavailable`](crate::StoreError::Unavailable).
    Unavailable,
    /// The operation is done and its answer lost: [`StoreError::Unavailable`](crate::StoreError::Unavailable).
    AnswerLost,
    /// [`StoreError::Unavailable`](crate::StoreError::Unavailable) now; a put or delete arrives at the store after this many later operations (0: just
    /// before the next one), or at [`FaultyStore::settle`](super::FaultyStore::settle). A read is simply lost.
    DoneLater {
        /// How many operations overtake it.
        operations: u64,
    },
    /// A put is [`Put::Refused`](crate::Put::Refused) (409 or 412) although nothing is there and nothing is done. Others: as `None`.
    RefusedForNothing,
    /// A put is done, its answer lost, repeated below, and refused because of itself: [`Put::Refused`](crate::Put::Refused) whatever was
    /// there. Others: as `None`.
    RefusedByItself,
    /// A reader that is behind: reads find nothing ([`StoreError::NotFound`](crate::StoreError::NotFound), an empty listing). Others: as `None`.
    Stale,
    /// A reader that is behind: a listing lacks each name with a chance of one half. Others: as `None`.
    HalfListed,
    /// 403: nothing is done, [`StoreError::Refused`](crate::StoreError::Refused).
    Denied,
    /// The operation is done after a pause (tokio's clock, so a test may stop it).
    Delayed(Duration),
    /// The operation waits until the gate is opened, and is done then.
    HeldBefore(Gate),
    /// The operation is done, its answer waits until the gate is opened.
    HeldAfter(Gate),
}

/// Holds one operation until the test says so.
#[derive(Clone)]
pub struct Gate {
    reached: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    /// A closed one.
    pub fn new() -> Gate {
        Gate {
            reached: Arc::new(Semaphore::new(0)),
            open: Arc::new(Semaphore::new(0)),
        }
    }

    /// Waits until an operation stands before it.
    pub async fn reached(&self) {
        if let Ok(permit) = self.reached.acquire().await {
            permit.forget();
        }
    }

    /// Lets all through, now and later.
    pub fn open(&self) {
        self.open.close();
    }

    pub(super) async fn pass(&self) {
        self.reached.add_permits(1);
        // The only way for this to end is the gate's closing of the semaphore, which is an error here.
        let _opened = self.open.acquire().await;
    }
}

impl Default for Gate {
    fn default() -> Gate {
        Gate::new()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("open", &self.open.is_closed())
            .finish()
    }
}

/// How often what goes wrong, in operations out of 1,000. The sum is at most 1,000; all 0 by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// [`Fault::Unavailable`]
    pub unavailable: u32,
    /// [`Fault::AnswerLost`]
    pub answer_lost: u32,
    /// [`Fault::DoneLater`], overtaken by up to 20 operations
    pub done_later: u32,
    /// [`Fault::RefusedForNothing`]
    pub refused_for_nothing: u32,
    /// [`Fault::RefusedByItself`]
    pub refused_by_itself: u32,
    /// [`Fault::Stale`]
    pub stale: u32,
    /// [`Fault::HalfListed`]
    pub half_listed: u32,
}

impl FaultRates {
    /// Every fault that a store with strong consistency can show, at a few per cent each.
    pub fn consistent() -> FaultRates {
        FaultRates {
            unavailable: 40,
            answer_lost: 40,
            done_later: 20,
            refused_for_nothing: 20,
            refused_by_itself: 20,
            ..FaultRates::default()
        }
    }
}

impl FaultRates {
    pub(super) fn draw(&self, rng: &mut StdRng) -> Fault {
        let mut point = rng.random_range(0..1_000_u32);
        // Drawn each time, so that a rate changed does not shift the meaning of all that follows.
        let operations = rng.random_range(0..20);
        let faults = [
            (self.unavailable, Fault::Unavailable),
            (self.answer_lost, Fault::AnswerLost),
            (self.done_later, Fault::DoneLater { operations }),
            (self.refused_for_nothing, Fault::RefusedForNothing),
            (self.refused_by_itself, Fault::RefusedByItself),
            (self.stale, Fault::Stale),
            (self.half_listed, Fault::HalfListed),
        ];
        for (rate, fault) in faults {
            if point < rate {
                return fault;
            }
            point -= rate;
        }
        Fault::None
    }
}
