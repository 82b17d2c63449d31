//! The world of one program: its objects, its time, its dice, and the model of what the chain must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use everlog_format::{ClusterId, Incarnation, Partition, PartitionKey, TopicId, TopicName};
use everlog_store::Key;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::commit::CommitKind;
use crate::{Entry, TopicInfo, keys};

/// Who makes requests: one writer, one reader, one maintenance run.
pub(super) type Owner = u64;

/// A commit as the model saw it come in.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) owner: Owner,
    pub(super) kind: CommitKind,
    /// How many of the model's entries the chain has up to here.
    pub(super) entries: usize,
    pub(super) at: Duration,
}

/// What a writer is about to commit.
#[derive(Clone, Debug)]
pub(super) struct Intent {
    pub(super) kind: CommitKind,
    pub(super) entries: Vec<Entry>,
}

/// A put whose answer was lost and that has not arrived yet.
#[derive(Clone, Debug)]
pub(super) struct Delayed {
    pub(super) key: Key,
    pub(super) bytes: Bytes,
    pub(super) owner: Owner,
    pub(super) intent: Option<Intent>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) rng: SmallRng,
    pub(super) now: Duration,
    pub(super) objects: BTreeMap<Key, Bytes>,
    /// When a replica shows an object.
    pub(super) visible_at: BTreeMap<Key, Duration>,
    pub(super) delayed: Vec<Delayed>,
    /// Puts that were issued and have not been carried out.
    pub(super) puts_under_way: u64,
    pub(super) intents: BTreeMap<Owner, Intent>,
    /// Out of 1,000 requests, how many fail.
    pub(super) fault_rate: u32,
    /// All entries ever committed, in order, and the commits that brought them.
    pub(super) entries: Vec<Entry>,
    pub(super) commits: Vec<Known>,
    /// Commits below this number were pruned.
    pub(super) pruned_below: u64,
    /// From this number on the chain was damaged on purpose.
    pub(super) damaged_from: Option<u64>,
    pub(super) failure: Option<String>,
    pub(super) rows: BTreeSet<String>,
    /// Writers that found the newest after a day, until they say how it ended.
    pub(super) recalled: BTreeSet<Owner>,
    pub(super) ending: bool,
    pub(super) drawn: u64,
    pub(super) keys_in_order: bool,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct World(Arc<Mutex<State>>);

pub(super) fn topic() -> TopicInfo {
    TopicInfo {
        incarnation: Incarnation {
            cluster: ClusterId::new("model").expect("a name"),
            topic_id: TopicId::new("4L6g3nShT-eMCtK--X86sw").expect("an id"),
        },
        name: TopicName::new("orders").expect("a name"),
        partition_count: 1,
        configs: BTreeMap::new(),
    }
}

pub(super) fn partition() -> PartitionKey {
    PartitionKey {
        incarnation: topic().incarnation,
        partition: Partition::new(0).expect("not negative"),
    }
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let fault_rate = if rng.random_ratio(1, 6) {
            0
        } else {
            rng.random_range(0..350)
        };
        let keys_in_order = rng.random_ratio(2, 3);
        World(Arc::new(Mutex::new(State {
            rng,
            now: Duration::from_secs(1_000),
            objects: BTreeMap::new(),
            visible_at: BTreeMap::new(),
            delayed: Vec::new(),
            puts_under_way: 0,
            intents: BTreeMap::new(),
            fault_rate,
            entries: Vec::new(),
            commits: Vec::new(),
            pruned_below: 0,
            damaged_from: None,
            failure: None,
            rows: BTreeSet::new(),
            recalled: BTreeSet::new(),
            ending: false,
            drawn: 0,
            keys_in_order,
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fail(&self, why: impl Into<String>) {
        self.state().fail(why);
    }

    /// One in `of`.
    pub(super) fn dice(&self, of: u32) -> bool {
        self.state().rng.random_ratio(1, of)
    }

    pub(super) fn random(&self, range: std::ops::Range<u64>) -> u64 {
        self.state().rng.random_range(range)
    }
}

impl State {
    pub(super) fn fail(&mut self, why: impl Into<String>) {
        let why = why.into();
        self.failure.get_or_insert(why);
    }

    /// A draw with one in 1,000 as its unit, from the faults of this program.
    pub(super) fn faulty(&mut self) -> bool {
        let rate = if self.ending { 0 } else { self.fault_rate };
        self.rng.random_range(0..1_000) < rate
    }

    /// Carries out a put; whether the key was free.
    pub(super) fn put(&mut self, put: Delayed) -> bool {
        if self.objects.contains_key(&put.key) {
            return false;
        }
        let lag = Duration::from_millis(self.rng.random_range(0..60_000));
        self.visible_at.insert(put.key.clone(), self.now + lag);
        if put
            .key
            .as_str()
            .starts_with(&keys::commit_folder(&partition()))
            && let Some(number) = keys::commit_number(&put.key)
        {
            self.committed(number, put.owner, put.intent);
        }
        self.objects.insert(put.key, put.bytes);
        true
    }

    /// The model's own append.
    fn committed(&mut self, number: u64, owner: Owner, intent: Option<Intent>) {
        let next = self.commits.len() as u64;
        let Some(intent) = intent else {
            return self.fail(format!("commit {number} by {owner} without being asked to"));
        };
        if self.damaged_from.is_some_and(|damaged| damaged <= number) {
            return self.fail(format!("commit {number} was written behind damage"));
        }
        if number != next {
            return self.fail(format!("commit {number} was accepted where {next} is next"));
        }
        let end = self.entries.last().map(|e| e.range.end());
        let start = intent.entries.first().map(|e| e.range.start());
        if end.is_some() && start.is_some() && start != end {
            return self.fail(format!(
                "commit {number} starts at {start:?} behind {end:?}"
            ));
        }
        self.entries.extend(intent.entries);
        let (kind, at, entries) = (intent.kind, self.now, self.entries.len());
        self.commits.push(Known {
            owner,
            kind,
            entries,
            at,
        });
    }

    /// All entries of the chain at commit `number`.
    pub(super) fn entries_at(&self, number: u64) -> Option<&[Entry]> {
        let commit = self.commits.get(usize::try_from(number).ok()?)?;
        self.entries.get(..commit.entries)
    }
}
