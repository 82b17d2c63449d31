//! One number of bytes for everything that replay holds: who holds how much, and who waits.
//!
//! A [`Permit`] is counted from before the memory is allocated until it is freed, also where it has left the cache and
//! only a response still holds it. Nothing here knows what is kept or what may go: making room is the cache's part.
//!
//! # Why shares
//!
//! Row groups as stored become batches, and both come out of the same budget. Were it full of row groups, none of them
//! could be decoded and nothing would ever be freed; so they get at most [`STORED_NUMERATOR`] eighths of it.
//!
//! # Slack
//!
//! The budget is exceeded in two cases only, both by one object: a row group or a run of batches larger than the whole of
//! its share is let in when nothing else of its share is held (a record can be that large, and has to be served), and a
//! decoder that meets a record longer than it was granted room for takes what is missing, one on each decoding thread.
//! Not counted is what lives only while a thread decodes: the records of one run, about 2 MiB for each core.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Eighths of the budget that row groups as stored, with their decoders, may take.
const STORED_NUMERATOR: u64 = 5;

/// Eighths of the budget up to which read-ahead may fill it: the rest is for those who ask.
const AHEAD_NUMERATOR: u64 = 7;

/// What memory is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// Parsed footers.
    Footers,
    /// Row groups as stored, each with its decoder.
    Stored,
    /// Encoded batches, in the cache or in a response.
    Batches,
}

/// Who wants memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Somebody waits for it: take turns and wait.
    Demand,
    /// Read-ahead: only what is free or has been used up, and never the last eighth.
    Ahead,
}

/// The budget. Clones of its [`Arc`] are inside every permit.
#[derive(Debug)]
pub(super) struct Budget {
    total: u64,
    used: Mutex<Used>,
    /// Told when a permit shrinks or ends, or something held may be given up.
    freed: Notify,
    /// Those who wait for a share take turns in the order they came, so that a large request is not overtaken for ever
    /// by small ones.
    turns: [tokio::sync::Mutex<()>; 3],
    /// Those who have found no room and wait for it, by share.
    waiters: [AtomicUsize; 3],
}

/// Counts one who waits for room, until it is dropped.
#[derive(Debug)]
pub(super) struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Used {
    shares: [u64; 3],
    peak: u64,
}

impl Used {
    fn total(&self) -> u64 {
        self.shares.iter().sum()
    }
}

/// Room for some bytes, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Arc<Budget>,
    share: Share,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(total: u64) -> Arc<Budget> {
        Arc::new(Budget {
            total,
            used: Mutex::default(),
            freed: Notify::new(),
            turns: Default::default(),
            waiters: Default::default(),
        })
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes held now.
    pub(super) fn held(&self) -> u64 {
        self.used().total()
    }

    /// The most bytes ever held at once.
    pub(super) fn peak(&self) -> u64 {
        self.used().peak
    }

    /// The most that one share may hold, unless it is a single object.
    pub(super) fn share_max(&self, share: Share) -> u64 {
        match share {
            Share::Stored => self.total / 8 * STORED_NUMERATOR,
            // No bound of their own: what pins a footer are row groups and batches, which can only be given up where
            // these count.
            Share::Footers | Share::Batches => self.total,
        }
    }

    /// The room that is always there for batches, however many row groups are held.
    pub(super) fn batches_floor(&self) -> u64 {
        self.total - self.share_max(Share::Stored)
    }

    /// Whether `bytes` more would keep to the limits.
    fn fits(&self, used: &Used, share: Share, bytes: u64, need: Need) -> bool {
        let held = used.shares[share as usize];
        let (total_max, share_max) = match need {
            Need::Demand => (self.total, self.share_max(share)),
            Need::Ahead => (
                self.total / 8 * AHEAD_NUMERATOR,
                self.share_max(share) / 8 * AHEAD_NUMERATOR,
            ),
        };
        if held.saturating_add(bytes) <= share_max
            && used.total().saturating_add(bytes) <= total_max
        {
            return true;
        }
        if need == Need::Ahead {
            return false;
        }
        match share {
            // Larger than its share: alone.
            Share::Stored => held == 0 && bytes > share_max,
            // What row groups may not take is there for what they become, also beside one that is larger than its
            // share: else both would wait for each other.
            Share::Batches | Share::Footers => {
                let beside = used.total() - used.shares[Share::Stored as usize];
                held == 0 || beside.saturating_add(bytes) <= self.batches_floor()
            }
        }
    }

    /// Whether the share itself is full, so that only giving up something of the same share helps.
    pub(super) fn is_share_full(&self, share: Share, bytes: u64, need: Need) -> bool {
        let max = match need {
            Need::Demand => self.share_max(share),
            Need::Ahead => self.share_max(share) / 8 * AHEAD_NUMERATOR,
        };
        self.used().shares[share as usize].saturating_add(bytes) > max
    }

    /// Takes the room if it is there.
    pub(super) fn try_take(
        self: &Arc<Self>,
        share: Share,
        bytes: u64,
        need: Need,
    ) -> Option<Permit> {
        let mut used = self.used();
        self.fits(&used, share, bytes, need).then(|| {
            used.shares[share as usize] += bytes;
            used.peak = used.peak.max(used.total());
            Permit {
                budget: Arc::clone(self),
                share,
                bytes,
            }
        })
    }

    /// Takes the room whether it is there or not: only for what exists already (see the slack above).
    pub(super) fn take_anyway(self: &Arc<Self>, share: Share, bytes: u64) -> Permit {
        let mut permit = Permit {
            budget: Arc::clone(self),
            share,
            bytes: 0,
        };
        permit.resize(bytes);
        permit
    }

    /// Waits until it is this caller's turn for `share`; keep the guard until the room is taken.
    pub(super) async fn turn(&self, share: Share) -> tokio::sync::MutexGuard<'_, ()> {
        self.turns[share as usize].lock().await
    }

    /// Somebody has found no room in `share` and waits.
    pub(super) fn wait(&self, share: Share) -> Waiter<'_> {
        let waiters = &self.waiters[share as usize];
        waiters.fetch_add(1, Ordering::Relaxed);
        Waiter(waiters)
    }

    /// Whether somebody waits for room that batches hold: not merely for his turn, nor for a row group to be used up.
    /// Batches that nobody holds are given up, so it is responses that he waits for.
    pub(super) fn is_held_up_by_batches(&self) -> bool {
        let waits = |share: Share| self.waiters[share as usize].load(Ordering::Relaxed) > 0;
        waits(Share::Batches)
            || (waits(Share::Stored) || waits(Share::Footers))
                && self.used().shares[Share::Batches as usize] > self.batches_floor()
    }

    /// Whether somebody waits for room in `share`.
    pub(super) fn is_awaited(&self, share: Share) -> bool {
        self.turns[share as usize].try_lock().is_err()
    }

    /// Becomes ready when [`Budget::look_again`] is called after this.
    pub(super) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }

    /// Tells those who wait that room was given back, or that something may be given up now.
    pub(super) fn look_again(&self) {
        self.freed.notify_waiters();
    }
}

impl Permit {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes over the room of `other`, which is of the same share.
    pub(super) fn absorb(&mut self, mut other: Permit) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Counts `bytes` from now on. Growing never waits: see the slack above.
    pub(super) fn resize(&mut self, bytes: u64) {
        {
            let mut used = self.budget.used();
            let held = &mut used.shares[self.share as usize];
            *held = held.saturating_sub(self.bytes).saturating_add(bytes);
            used.peak = used.peak.max(used.total());
        }
        if bytes < self.bytes {
            self.budget.look_again();
        }
        self.bytes = bytes;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_given_back_and_the_peak_stays() {
        let budget = Budget::new(800);
        let mut permit = budget
            .try_take(Share::Batches, 300, Need::Demand)
            .expect("room");
        permit.resize(200);
        assert_eq!((budget.held(), budget.peak()), (200, 300));
        drop(permit);
        assert_eq!((budget.held(), budget.peak()), (0, 300));
    }

    #[test]
    fn row_groups_leave_room_for_what_they_become() {
        let budget = Budget::new(800);
        let _group = budget
            .try_take(Share::Stored, 500, Need::Demand)
            .expect("room");
        assert!(budget.try_take(Share::Stored, 1, Need::Demand).is_none());
        assert!(budget.try_take(Share::Batches, 201, Need::Ahead).is_none());
        assert!(budget.try_take(Share::Batches, 300, Need::Demand).is_some());
    }

    #[test]
    fn who_waits_for_responses_is_told_from_who_waits_for_row_groups() {
        let budget = Budget::new(800);
        let stored = budget.take_anyway(Share::Stored, 500);
        let waiter = budget.wait(Share::Stored);
        assert!(!budget.is_held_up_by_batches());
        let batches = budget.take_anyway(Share::Batches, 301);
        assert!(budget.is_held_up_by_batches());
        drop((batches, waiter));
        assert!(!budget.is_held_up_by_batches());
        let waiter = budget.wait(Share::Batches);
        assert!(budget.is_held_up_by_batches());
        drop((waiter, stored));
        assert!(!budget.is_held_up_by_batches());
    }

    #[test]
    fn an_object_larger_than_its_share_goes_in_alone() {
        let budget = Budget::new(800);
        let small = budget
            .try_take(Share::Stored, 1, Need::Demand)
            .expect("room");
        let batch = budget
            .try_take(Share::Batches, 1, Need::Demand)
            .expect("room");
        assert!(budget.try_take(Share::Stored, 900, Need::Demand).is_none());
        drop(small);
        assert!(budget.try_take(Share::Stored, 900, Need::Ahead).is_none());
        let group = budget
            .try_take(Share::Stored, 900, Need::Demand)
            .expect("alone");
        // What it becomes must find room too, or it could never be served.
        assert!(budget.try_take(Share::Batches, 299, Need::Demand).is_some());
        assert!(budget.try_take(Share::Batches, 900, Need::Demand).is_none());
        drop(batch);
        assert!(budget.try_take(Share::Batches, 900, Need::Demand).is_some());
        drop(group);
    }
}
