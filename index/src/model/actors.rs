//! Who acts in a program: archivers, a sweeper, readers. Each is one future that never ends by itself.

use std::sync::Arc;
use std::time::Duration;

use everlog_format::{Day, Hash, Offset, OffsetRange};
use everlog_store::{Key, StoreError};

use super::sim_store::step;
use super::world::{Intent, Owner, World, partition, topic};
use crate::commit::CommitKind;
use crate::node::NodeBody;
use crate::summary::push_epoch;
use crate::wire::Child;
use crate::{
    Appended, Archive, DataEntry, Entry, EntryKind, EpochStart, Freshness, HoleReason, IndexError,
    Lookup, Snapshot, Totals, Writer, WriterError, segment_key,
};

/// One process: an archive and what works with it.
#[derive(Clone)]
pub(super) struct Process {
    pub(super) world: World,
    pub(super) archive: Arc<Archive>,
    pub(super) owner: Owner,
    pub(super) replica: bool,
}

pub(super) fn at(raw: u64) -> Offset {
    i64::try_from(raw)
        .ok()
        .and_then(|raw| Offset::new(raw).ok())
        .expect("a small number")
}

/// A segment's bytes: what matters is that no two uploads share them.
fn upload(world: &World, range: OffsetRange, day: Day) -> (Hash, u64) {
    let mut state = world.state();
    state.drawn += 1;
    let bytes = bytes::Bytes::from(format!("segment {range} upload {}", state.drawn));
    let hash = Hash::of(&bytes);
    let len = bytes.len() as u64;
    let key = segment_key(&topic(), partition().partition, range, day, hash);
    let lag = Duration::from_millis(rand::Rng::random_range(&mut state.rng, 0..60_000));
    let visible_at = state.now + lag;
    state.visible_at.insert(key.clone(), visible_at);
    state.objects.insert(key, bytes);
    (hash, len)
}

/// What the log holds from `start` on, cut somewhere.
pub(super) fn make_entry(world: &World, start: Offset) -> Entry {
    let raw = u64::try_from(start.get()).expect("not negative");
    // Most cuts are at multiples of 5, so that what a rival cuts is often what we would have.
    let end = if world.dice(4) {
        raw + world.random(1..12)
    } else {
        (raw / 5 + 1) * 5
    };
    let range = OffsetRange::new(start, at(end)).expect("not empty");
    let kind = match world.random(0..12) {
        0 => EntryKind::Empty,
        1 => EntryKind::Hole(HoleReason::Retention),
        _ => EntryKind::Data(make_data(world, range)),
    };
    Entry { range, kind }
}

fn make_data(world: &World, range: OffsetRange) -> DataEntry {
    let start = u64::try_from(range.start().get()).expect("not negative");
    // Any disorder of time, and epochs that are a function of the offset, as a log has them.
    let time = |low: u64, high: u64| i64::try_from(world.random(low..high)).expect("small");
    let min = time(0, 1_000);
    let mut epochs = Vec::new();
    if !world.dice(5) {
        for offset in start..start + range.offset_count() {
            let epoch = i32::try_from(offset / 13).expect("small");
            push_epoch(
                &mut epochs,
                EpochStart {
                    epoch,
                    start: at(offset),
                },
            );
        }
    }
    let (hash, bytes) = upload(world, range, Day::UNKNOWN);
    DataEntry {
        hash,
        records: 1 + world.random(0..range.offset_count()),
        bytes,
        raw_bytes: world.random(0..1_000),
        min_timestamp_ms: min,
        max_timestamp_ms: min + time(0, 300),
        epochs,
        day: Day::UNKNOWN,
        time_disorder: world.dice(2),
        redacted: world.dice(9),
        footer_len: 12,
        supersedes: if world.dice(9) {
            vec![hash]
        } else {
            Vec::new()
        },
    }
}

/// Uploads the same range once more.
fn renew(world: &World, entry: &mut Entry) {
    if let EntryKind::Data(data) = &mut entry.kind {
        (data.hash, data.bytes) = upload(world, entry.range, data.day);
    }
}

/// An archiver's own count of the losses in a row to one rival.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    owner: Option<Owner>,
    /// Those that the writer must have seen.
    least: u32,
    /// And those that it can have seen.
    most: u32,
}

impl Process {
    /// Whether an error may come at all; the program ends if not.
    fn accept(&self, error: &IndexError) {
        let state = self.world.state();
        let faults = state.fault_rate != 0 && !state.ending;
        // Damage is only where the program did it, what is missing was swept, or has not reached the replica.
        let fine = match error {
            IndexError::Store(StoreError::NotFound { .. }) => false,
            IndexError::Store(_) => faults,
            IndexError::Corrupt { .. } => state.damaged_from.is_some(),
            IndexError::Missing { .. } => self.replica || state.ending || !state.commits.is_empty(),
            IndexError::Unsupported { .. } | IndexError::NoArchive { .. } => false,
        };
        drop(state);
        if !fine {
            self.world.fail(format!(
                "{} got an error that cannot be: {error:?}",
                self.owner
            ));
        }
    }

    fn intend(&self, kind: CommitKind, entries: &[Entry]) {
        let intent = Intent {
            kind,
            entries: entries.to_vec(),
        };
        self.world.state().intents.insert(self.owner, intent);
    }

    async fn writer(&self) -> Writer {
        loop {
            match self.archive.writer(&partition()).await {
                Ok(writer) => return writer,
                Err(error) => self.accept(&error),
            }
            step().await;
        }
    }

    pub(super) async fn archiver(self) {
        let mut writer = self.writer().await;
        let mut queue: Vec<Entry> = Vec::new();
        // The last append that ended without knowing, and our own count of losses to one rival.
        let mut unsure: Vec<Entry> = Vec::new();
        let mut losses = Losses::default();
        loop {
            // Sometimes a retry comes with more than the first try had.
            if queue.is_empty() || self.world.dice(if unsure.is_empty() { 8 } else { 2 }) {
                let count = if self.world.dice(10) {
                    12
                } else {
                    self.world.random(1..4)
                };
                for _ in 0..count {
                    let next = queue.last().map(|e| e.range.end()).or(writer.next_offset());
                    let next = next.unwrap_or_else(|| at(self.world.random(0..20)));
                    queue.push(make_entry(&self.world, next));
                }
            }
            while self.world.dice(2) {
                step().await;
            }
            self.intend(CommitKind::Append, &queue);
            self.world.state().recalled.remove(&self.owner);
            let base = writer.snapshot().map(|s| s.number());
            match writer.append(queue.clone()).await {
                Ok(Appended::Committed(snapshot)) => {
                    self.check_committed(&snapshot, &queue);
                    queue.clear();
                    unsure.clear();
                    losses = Losses::default();
                }
                Ok(Appended::Lost { snapshot, swept }) => {
                    if unsure.is_empty() || unsure == queue {
                        self.check_lost(&snapshot, &queue, base);
                    }
                    unsure.clear();
                    let recalled = self.world.state().recalled.remove(&self.owner);
                    if recalled {
                        // A writer that finds the newest after a day counts anew.
                        losses = Losses::default();
                    } else {
                        self.count_loss(&mut losses, base, &snapshot);
                    }
                    let end = snapshot.covered().map(|c| c.end());
                    queue.retain(|e| end.is_none_or(|end| end <= e.range.start()));
                    if queue.first().map(|e| e.range.start()) != end {
                        queue.clear();
                    }
                    if swept {
                        queue.iter_mut().for_each(|entry| renew(&self.world, entry));
                    }
                }
                Err(WriterError::Contended { .. }) => {
                    if losses.most < 2 {
                        self.world
                            .fail(format!("{} says contended after {losses:?}", self.owner));
                    }
                    return;
                }
                Err(WriterError::Index(error)) => {
                    self.accept(&error);
                    unsure.clone_from(&queue);
                }
                Err(other) => self.world.fail(format!("{} got {other:?}", self.owner)),
            }
            step().await;
        }
    }

    /// Every third loss in a row to one archiver has to be called contended, none before.
    fn count_loss(&self, losses: &mut Losses, base: Option<u64>, snapshot: &Snapshot) {
        let number = base.map_or(0, |base| base + 1);
        let state = self.world.state();
        let winner = usize::try_from(number)
            .ok()
            .and_then(|index| state.commits.get(index))
            .cloned();
        // The writer may have read the winner before it was pruned, or have found it gone: nobody can tell by now.
        let pruned = number < state.pruned_below;
        drop(state);
        match winner {
            Some(winner) if winner.kind == CommitKind::Append && winner.owner != self.owner => {
                let same = losses.owner == Some(winner.owner);
                let (least, most) = if same {
                    (losses.least, losses.most)
                } else {
                    (0, 0)
                };
                *losses = Losses {
                    owner: Some(winner.owner),
                    least: if pruned { 0 } else { least + 1 },
                    most: most + 1,
                };
            }
            Some(winner) if winner.kind == CommitKind::Sweep => {}
            _ => *losses = Losses::default(),
        }
        if 3 <= losses.least && snapshot.number() < u64::MAX {
            self.world.fail(format!(
                "{} lost {losses:?} and was not told so",
                self.owner
            ));
        }
    }

    fn check_committed(&self, snapshot: &Snapshot, given: &[Entry]) {
        let mut state = self.world.state();
        let all = state.entries_at(snapshot.number()).unwrap_or_default();
        if given.iter().any(|entry| !all.contains(entry)) {
            state.fail(format!(
                "{} was told that it won number {}",
                self.owner,
                snapshot.number()
            ));
        }
    }

    fn check_lost(&self, snapshot: &Snapshot, given: &[Entry], base: Option<u64>) {
        let mut state = self.world.state();
        // After pruning nobody can tell; what the snapshot covers is dropped by the caller.
        let pruned = base.map_or(0, |base| base + 1) < state.pruned_below;
        let all = state.entries_at(snapshot.number()).unwrap_or_default();
        // Entries without a segment are the same whoever writes them.
        let telling = given
            .iter()
            .any(|entry| matches!(entry.kind, EntryKind::Data(_)));
        if !pruned && telling && given.iter().all(|entry| all.contains(entry)) {
            state.fail(format!("{} was told that it lost, and had won", self.owner));
        }
    }

    /// Names what no commit names, and deletes it once the sweep is committed and it is still unused.
    pub(super) async fn sweeper(self) {
        let mut writer = self.writer().await;
        loop {
            for _ in 0..self.world.random(3..30) {
                step().await;
            }
            let Some(base) = writer.snapshot().cloned() else {
                writer = self.writer().await;
                continue;
            };
            let Some(used) = self.used(&base).await else {
                continue;
            };
            let candidates: Vec<Key> = {
                let state = self.world.state();
                let data = |key: &&Key| {
                    key.as_str().starts_with("data/") || key.as_str().contains("/node/")
                };
                let keys = state.objects.keys().filter(data);
                keys.filter(|key| !used.contains(key)).cloned().collect()
            };
            self.intend(CommitKind::Sweep, &[]);
            match writer.sweep(&candidates).await {
                Ok(Appended::Committed(snapshot)) => self.delete(&snapshot, &candidates).await,
                Ok(Appended::Lost { .. }) => {}
                Err(WriterError::Contended { .. }) => return,
                Err(WriterError::Index(error)) => {
                    // Another list would be another sweep: begin again.
                    self.accept(&error);
                    return;
                }
                Err(other) => self.world.fail(format!("the sweeper got {other:?}")),
            }
        }
    }

    async fn delete(&self, snapshot: &Arc<Snapshot>, candidates: &[Key]) {
        let Some(used) = self.used(snapshot).await else {
            return;
        };
        let mut state = self.world.state();
        for key in candidates.iter().filter(|key| !used.contains(key)) {
            state.objects.remove(key);
        }
    }

    /// All objects that a commit names; `None` if they cannot be read just now.
    async fn used(&self, snapshot: &Arc<Snapshot>) -> Option<Vec<Key>> {
        let entries = snapshot.entries(Offset::ZERO, usize::MAX).await.ok()?;
        let mut used: Vec<Key> = Vec::new();
        for entry in &entries {
            if let EntryKind::Data(data) = &entry.kind {
                used.push(snapshot.segment_key(entry.range, data));
            }
        }
        let mut nodes: Vec<Child> = snapshot.commit().root.iter().cloned().collect();
        while let Some(child) = nodes.pop() {
            used.push(crate::keys::node(&partition(), child.hash));
            let node = self.archive.load_node(&partition(), &child).await.ok()?;
            if let NodeBody::Inner(children) = &node.body {
                nodes.extend(children.iter().cloned());
            }
        }
        Some(used)
    }

    pub(super) async fn reader(self) {
        let mut newest = None;
        loop {
            for _ in 0..self.world.random(0..6) {
                step().await;
            }
            let freshness = match self.world.random(0..4) {
                0 => Freshness::Now,
                1 => Freshness::Within(Duration::from_millis(self.world.random(0..20_000))),
                _ => Freshness::Known,
            };
            let (asked_at, there) = {
                let state = self.world.state();
                (state.now, state.commits.len() as u64)
            };
            let snapshot = match self.archive.snapshot(&partition(), freshness).await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    self.accept(&error);
                    continue;
                }
            };
            self.check_fresh(freshness, asked_at, there, snapshot.as_deref());
            let Some(snapshot) = snapshot else { continue };
            if Some(snapshot.number()) < newest {
                self.world.fail(format!(
                    "a reader went back from {newest:?} to {}",
                    snapshot.number()
                ));
            }
            newest = Some(snapshot.number());
            if let Err(error) = self.check_read(&snapshot).await {
                self.accept(&error);
            }
        }
    }

    /// A reader of the primary sees what was there when it asked, as far as it asked.
    fn check_fresh(
        &self,
        asked: Freshness,
        asked_at: Duration,
        there: u64,
        found: Option<&Snapshot>,
    ) {
        let mut state = self.world.state();
        // A look over which the machine slept for a month says what it can; the next one begins anew.
        let slept = Duration::from_secs(24 * 60 * 60) < state.now.saturating_sub(asked_at);
        let damaged = state.damaged_from.is_some() || slept;
        let wanted = match asked {
            _ if self.replica || damaged => return,
            Freshness::Now => there,
            Freshness::Known => return,
            Freshness::Within(age) => {
                let since = asked_at.saturating_sub(age.max(Duration::from_secs(1)));
                state
                    .commits
                    .iter()
                    .take_while(|commit| commit.at < since)
                    .count() as u64
            }
        };
        let count = found.map_or(0, |snapshot| snapshot.number() + 1);
        if count < wanted {
            state.fail(format!(
                "asked for {asked:?}, a reader was shown {count} commits of {wanted}"
            ));
        }
    }

    /// Everything that can be asked of a snapshot, against the model.
    pub(super) async fn check_read(&self, snapshot: &Snapshot) -> Result<(), IndexError> {
        let number = snapshot.number();
        let Some(model) = self.world.state().entries_at(number).map(<[Entry]>::to_vec) else {
            self.world.fail(format!(
                "a reader was shown commit {number}, which nobody made"
            ));
            return Ok(());
        };
        let wrong = |what: &str| {
            self.world
                .fail(format!("{what} of commit {number} differ from the model"))
        };
        if snapshot.entries(Offset::ZERO, usize::MAX).await? != model {
            wrong("the entries");
        }
        if snapshot.totals() != totals(&model) {
            wrong("the sums");
        }
        let top = model
            .last()
            .map_or(10, |e| u64::try_from(e.range.end().get()).unwrap_or(0));
        for _ in 0..2 {
            let offset = at(self.world.random(0..top + 3));
            let covering = model.iter().find(|e| e.range.contains(offset));
            let wanted = match (covering, model.first()) {
                (Some(entry), _) => Lookup::Covered(entry.clone()),
                (None, Some(first)) if offset < first.range.start() => Lookup::BeforeStart,
                (None, _) => Lookup::BeyondEnd,
            };
            if snapshot.lookup(offset).await? != wanted {
                wrong("a look-up");
            }
            let time = i64::try_from(self.world.random(0..1_400)).expect("small");
            let wanted = model.iter().find_map(|e| match &e.kind {
                EntryKind::Data(d) if offset < e.range.end() && time <= d.max_timestamp_ms => {
                    Some((e.range, d.clone()))
                }
                _ => None,
            });
            if snapshot.first_with_timestamp(time, offset).await? != wanted {
                wrong("a look-up by time");
            }
            let wanted: Vec<Entry> = model
                .iter()
                .filter(|e| offset < e.range.end())
                .take(3)
                .cloned()
                .collect();
            if snapshot.entries(offset, 3).await? != wanted {
                wrong("some entries");
            }
        }
        let holes: Vec<&Entry> = model
            .iter()
            .filter(|e| matches!(e.kind, EntryKind::Hole(_)))
            .collect();
        if snapshot
            .holes(Offset::ZERO, usize::MAX)
            .await?
            .iter()
            .collect::<Vec<_>>()
            != holes
        {
            wrong("the holes");
        }
        let mut epochs = Vec::new();
        for entry in &model {
            if let EntryKind::Data(data) = &entry.kind {
                data.epochs
                    .iter()
                    .for_each(|start| push_epoch(&mut epochs, *start));
            }
        }
        if snapshot.epochs().await?.to_vec() != epochs {
            wrong("the epochs");
        }
        Ok(())
    }
}

fn totals(entries: &[Entry]) -> Totals {
    let mut sum = Totals::default();
    for entry in entries {
        match &entry.kind {
            EntryKind::Data(data) => {
                sum.segments += 1;
                sum.records += data.records;
                sum.bytes += data.bytes;
                sum.raw_bytes += data.raw_bytes;
            }
            EntryKind::Hole(_) => sum.holes += 1,
            EntryKind::Empty | EntryKind::Expired => {}
        }
    }
    sum
}
