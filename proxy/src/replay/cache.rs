//! What is held in memory, and what goes first when there is no room.
//!
//! Everything here is found, changed and given up under one lock that is never held across an await; the work between
//! (`job`, `footers`) runs without it. Order of giving up: what has been used up, the longest unused first (runs that a
//! reader has got to the end of, row groups decoded to their end, footers that nothing refers to); then, only if
//! somebody waits, what its reader has not come back for in [`IDLE`]. A row group or run that is in use is never given
//! up: with more readers than room they take turns row group by row group, instead of downloading the same one
//! again for every MiB.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use everlog_format::{Hash, Offset, PartitionKey};
use everlog_index::Archive;
use prometheus::Registry;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::budget::{Budget, Need, Permit, Share};
use super::group::{Encoded, Footer, Group, GroupId, Reply};
use super::metrics::Metrics;

/// A reader that has not asked for this long may have to start its row group again.
const IDLE: Duration = Duration::from_secs(2);

/// How often one who waits for memory looks for what has become idle.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How many partitions' positions are remembered for telling sequential readers.
const PARTITIONS_MAX: usize = 10_000;

/// Readers of one partition that are told apart.
const READERS_MAX: usize = 32;

/// Everything that the reads of one process share.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) archive: Arc<Archive>,
    pub(super) budget: Arc<Budget>,
    pub(super) metrics: Metrics,
    /// As many decode at a time as there are cores.
    pub(super) decoders: Arc<Semaphore>,
    held: Mutex<Held>,
    start: Instant,
}

/// What the lock protects.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) footers: HashMap<Hash, Arc<Footer>>,
    /// Footers that are being read, and who waits for them.
    pub(super) footer_reads: HashMap<Hash, Vec<Reply<Arc<Footer>>>>,
    pub(super) groups: HashMap<GroupId, Group>,
    positions: HashMap<PartitionKey, Positions>,
}

/// Where the last readers of a partition stopped.
#[derive(Debug, Default)]
struct Positions {
    next: [Option<Offset>; READERS_MAX],
    oldest: usize,
}

/// Something that can be given up.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Footer(Hash),
    Stored(GroupId),
    Run(GroupId, Offset),
}

impl Cache {
    pub(super) fn new(archive: Arc<Archive>, memory_bytes: u64, registry: &Registry) -> Cache {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Cache {
            archive,
            budget: Budget::new(memory_bytes),
            metrics: Metrics::new(registry),
            decoders: Arc::new(Semaphore::new(cores)),
            held: Mutex::default(),
            start: Instant::now(),
        }
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing is left half changed by a panic: the worst is a job that is thought to run, and its guard sees to it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds since the cache was made.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Room for `bytes`: waits for it if somebody needs it; else `None` where there is none.
    pub(super) async fn room(&self, share: Share, bytes: u64, need: Need) -> Option<Permit> {
        if need == Need::Ahead {
            // Never ahead of one who waits.
            return if self.budget.is_awaited(share) {
                None
            } else {
                self.try_room(share, bytes, need)
            };
        }
        let _turn = self.budget.turn(share).await;
        let mut waiting = None;
        loop {
            // Made before the attempt, so that nothing given back in between is missed.
            let freed = self.budget.freed();
            if let Some(permit) = self.try_room(share, bytes, need) {
                return Some(permit);
            }
            if waiting.is_none() {
                self.metrics.memory_waits.inc();
                waiting = Some(self.budget.wait(share));
            }
            // Either way the next thing is to try again.
            let _ = timeout(LOOK_AGAIN, freed).await;
        }
    }

    pub(super) fn try_room(&self, share: Share, bytes: u64, need: Need) -> Option<Permit> {
        let mut held = self.held();
        let idle_since = self
            .now()
            .saturating_sub(u64::try_from(IDLE.as_micros()).unwrap_or(u64::MAX));
        let permit = loop {
            if let Some(permit) = self.budget.try_take(share, bytes, need) {
                break Some(permit);
            }
            let only = self
                .budget
                .is_share_full(share, bytes, need)
                .then_some(share);
            let Some(victim) = held.victim(only, (need == Need::Demand).then_some(idle_since))
            else {
                break None;
            };
            self.metrics.evicted_bytes.inc_by(held.give_up(victim));
        };
        self.metrics
            .cache_bytes
            .set(i64::try_from(self.budget.held()).unwrap_or(i64::MAX));
        permit
    }
}

impl Held {
    /// The first to go; only of one share if nothing else would help. `idle_since` allows to take from readers that have
    /// not come back since.
    fn victim(&self, only: Option<Share>, idle_since: Option<u64>) -> Option<Victim> {
        let mut best: Option<(u64, u64, Victim)> = None;
        let mut consider = |is_used_up: bool, used: u64, victim: Victim| {
            let tier = match (is_used_up, idle_since) {
                (true, _) => 0,
                (false, Some(since)) if used < since => 1,
                (false, _) => return,
            };
            if best.is_none_or(|(best_tier, best_used, _)| (tier, used) < (best_tier, best_used)) {
                best = Some((tier, used, victim));
            }
        };
        let may_go = |share: Share| only.is_none_or(|only| only == share);
        if may_go(Share::Footers) {
            for (hash, footer) in &self.footers {
                if Arc::strong_count(footer) == 1 {
                    consider(
                        true,
                        footer.used.load(Ordering::Relaxed),
                        Victim::Footer(*hash),
                    );
                }
            }
        }
        for (id, group) in &self.groups {
            if may_go(Share::Stored) && group.is_stored_free() {
                consider(group.is_exhausted(), group.used, Victim::Stored(*id));
            }
            if may_go(Share::Batches) {
                for (start, run) in group.runs().filter(|(_, run)| is_free(run)) {
                    let is_used_up = run.served.load(Ordering::Relaxed);
                    consider(
                        is_used_up,
                        run.used.load(Ordering::Relaxed),
                        Victim::Run(*id, *start),
                    );
                }
            }
        }
        best.map(|(_, _, victim)| victim)
    }

    /// Gives it up and returns how many bytes that freed, about.
    fn give_up(&mut self, victim: Victim) -> u64 {
        match victim {
            Victim::Footer(hash) => {
                self.footers.remove(&hash);
                0
            }
            Victim::Stored(id) => {
                let Some(group) = self.groups.get_mut(&id) else {
                    return 0;
                };
                let bytes = group
                    .stored
                    .as_ref()
                    .map_or(0, |stored| stored.bytes.len() as u64);
                group.drop_stored();
                self.forget_vacant(id);
                bytes
            }
            Victim::Run(id, start) => {
                let Some(group) = self.groups.get_mut(&id) else {
                    return 0;
                };
                let bytes = group.find(start).map_or(0, |run| run.permit.bytes());
                group.remove_run(start);
                self.forget_vacant(id);
                bytes
            }
        }
    }

    /// Drops the entry of a row group of which nothing is left.
    pub(super) fn forget_vacant(&mut self, id: GroupId) {
        if self.groups.get(&id).is_some_and(Group::is_vacant) {
            self.groups.remove(&id);
        }
    }

    /// Whether somebody who stopped at `from` before goes on reading; remembers that he now stops at `next`.
    pub(super) fn goes_on(&mut self, partition: &PartitionKey, from: Offset, next: Offset) -> bool {
        if !self.positions.contains_key(partition) {
            if self.positions.len() >= PARTITIONS_MAX {
                // Costs every reader one read without read-ahead.
                self.positions.clear();
            }
            self.positions
                .insert(partition.clone(), Positions::default());
        }
        self.positions
            .get_mut(partition)
            .is_some_and(|positions| positions.goes_on(from, next))
    }
}

impl Positions {
    fn goes_on(&mut self, from: Offset, next: Offset) -> bool {
        if let Some(reader) = self.next.iter_mut().find(|reader| **reader == Some(from)) {
            *reader = Some(next);
            return true;
        }
        self.next[self.oldest] = Some(next);
        self.oldest = (self.oldest + 1) % READERS_MAX;
        false
    }
}

/// Whether no response holds the run.
fn is_free(run: &Arc<Encoded>) -> bool {
    Arc::strong_count(run) == 1
}
