//! One program: draws its cast from the seed, lets it act for a while, then lets all be well and looks at what is left.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use everlog_store::{Key, Store};
use rand::Rng;

use super::actors::{Process, make_entry};
use super::sim_store::SimStore;
use super::world::{Intent, World, partition, topic};
use crate::clock::Clock;
use crate::commit::CommitKind;
use crate::node::Shape;
use crate::node_cache::NodeCache;
use crate::shared::{Random, Shared, Tuning};
use crate::taken::{Decision, Row};
use crate::{Appended, Archive, EntryKind, Freshness, IndexError, WriterError, keys};

/// 31 days: after this, commits that had a later one may be gone.
const PRUNING_AGE: Duration = Duration::from_secs(31 * 24 * 60 * 60);

struct Actor {
    process: u64,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

struct Program {
    world: World,
    shape: Shape,
    broken: Option<(Row, Decision)>,
    actors: Vec<Actor>,
    owners: u64,
}

/// The rows that the program reached, or what went wrong.
pub(super) fn run(seed: u64, broken: Option<(Row, Decision)>) -> Result<BTreeSet<String>, String> {
    let world = World::new(seed);
    let shape = {
        let mut state = world.state();
        Shape {
            leaf_max_entries: state.rng.random_range(2..5),
            inner_max_children: state.rng.random_range(2..5),
        }
    };
    let mut program = Program {
        world: world.clone(),
        shape,
        broken,
        actors: Vec::new(),
        owners: 0,
    };
    program.act();
    if world.state().failure.is_none() {
        program.settle();
    }
    let mut state = world.state();
    match state.failure.take() {
        Some(why) => Err(why),
        None => Ok(std::mem::take(&mut state.rows)),
    }
}

/// Polls a future to its end where nobody else acts.
fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(done) = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            return done;
        }
    }
}

impl Program {
    fn process(&mut self, replica: bool) -> Process {
        self.owners += 1;
        let (world, owner) = (self.world.clone(), self.owners);
        let store: Arc<dyn Store> = Arc::new(SimStore {
            world: world.clone(),
            owner,
            replica,
        });
        let (clock, dice, rows) = (world.clone(), world.clone(), world.clone());
        let tuning = Tuning {
            clock: Clock::from_fn(move || clock.state().now),
            random: Random::from_fn(move || dice.state().rng.random()),
            lag_window_entries: if replica { u16::MAX } else { 2 },
        };
        let nodes = NodeCache::new(Arc::clone(&store), self.shape, None);
        let shared = Shared {
            store,
            nodes,
            shape: self.shape,
            tuning,
            sabotage: self.broken,
            on_row: Some(Arc::new(move |row: Row| {
                let mut state = rows.state();
                state.rows.insert(format!("{row:?}"));
                if matches!(row, Row::V | Row::W) {
                    state.recalled.insert(owner);
                }
            })),
        };
        let archive = Archive::from_shared(Arc::new(shared), Vec::new());
        archive.know(&topic());
        Process {
            world,
            archive,
            owner,
            replica,
        }
    }

    fn spawn(&mut self, process: u64, future: impl Future<Output = ()> + 'static) {
        self.actors.push(Actor {
            process,
            future: Box::pin(future),
        });
    }

    fn spawn_archiver(&mut self) {
        let process = self.process(false);
        if self.world.dice(2) {
            // `everlog run`: a proxy that shares the archiver's archive.
            self.spawn(process.owner, process.clone().reader());
        }
        self.spawn(process.owner, process.archiver());
    }

    fn spawn_reader(&mut self) {
        let replica = self.world.dice(3);
        let process = self.process(replica);
        self.spawn(process.owner, process.reader());
    }

    fn spawn_sweeper(&mut self) {
        let process = self.process(false);
        self.spawn(process.owner, process.sweeper());
    }

    fn act(&mut self) {
        for _ in 0..self.world.random(1..4) {
            self.spawn_archiver();
        }
        let sweeps = self.world.dice(2);
        if sweeps {
            self.spawn_sweeper();
        }
        if self.world.dice(2) {
            self.spawn_reader();
        }
        let prunes = self.world.dice(3);
        for _ in 0..self.world.random(50..500) {
            if self.world.state().failure.is_some() {
                return;
            }
            match self.world.random(0..200) {
                0 => self.crash(),
                1 => self.spawn_archiver(),
                2 if sweeps => self.spawn_sweeper(),
                3 => self.spawn_reader(),
                4..=7 if prunes => self.prune(),
                8..=30 => self.arrive(),
                _ => self.step(),
            }
        }
    }

    fn step(&mut self) {
        if self.actors.is_empty() {
            return self.spawn_archiver();
        }
        let index = self.world.random(0..self.actors.len() as u64);
        let index = usize::try_from(index).expect("an index");
        let actor = &mut self.actors[index];
        if actor
            .future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
        {
            self.actors.swap_remove(index);
        }
    }

    /// Kills a process with everything in it, wherever it stands.
    fn crash(&mut self) {
        if let Some(process) = self.actors.first().map(|actor| actor.process) {
            self.actors.retain(|actor| actor.process != process);
        }
    }

    /// A put that was given up arrives after all, or never.
    fn arrive(&self) {
        let mut state = self.world.state();
        if !state.delayed.is_empty() {
            let len = state.delayed.len();
            let index = state.rng.random_range(0..len);
            let put = state.delayed.swap_remove(index);
            if state.rng.random_ratio(3, 4) {
                state.put(put);
            }
        }
    }

    /// A month goes by, in which nobody but the pruner does anything.
    fn prune(&self) {
        let mut state = self.world.state();
        if state.puts_under_way != 0 {
            return;
        }
        // No request lives for a month.
        state.delayed.clear();
        state.now += PRUNING_AGE;
        let newest = (state.commits.len() as u64).saturating_sub(1);
        let below = if state.rng.random_ratio(1, 3) {
            state.rng.random_range(0..=newest)
        } else {
            newest
        };
        for number in state.pruned_below..below {
            state.objects.remove(&keys::commit(&partition(), number));
        }
        state.pruned_below = state.pruned_below.max(below);
    }

    /// No more faults: what is there must be whole, and work must go on.
    fn settle(&mut self) {
        self.world.state().ending = true;
        self.actors.clear();
        while !self.world.state().delayed.is_empty() {
            self.arrive();
        }
        self.world.state().now += Duration::from_secs(100);
        let process = self.process(false);
        let world = self.world.clone();
        if let Err(why) = finish(check_end(&process)) {
            world.fail(why);
        }
        self.damage();
    }

    /// Something else lies where the next commit belongs: the writer stops, whatever it is.
    fn damage(&mut self) {
        let process = self.process(false);
        let world = self.world.clone();
        let Ok(mut writer) = finish(process.archive.writer(&partition())) else {
            return world.fail("no writer in good times");
        };
        let number = writer.snapshot().map_or(0, |s| s.number() + 1);
        let garbage = match world.random(0..3) {
            0 => b"{}".to_vec(),
            1 => vec![0xff; 10],
            // A commit of another place.
            _ => match writer.snapshot() {
                Some(snapshot) => snapshot.commit().encode(&partition()),
                None => Vec::new(),
            },
        };
        {
            let mut state = world.state();
            state.damaged_from = Some(number);
            state
                .objects
                .insert(keys::commit(&partition(), number), garbage.into());
        }
        let start = writer.next_offset().unwrap_or(everlog_format::Offset::ZERO);
        let entry = make_entry(&world, start);
        let intent = Intent {
            kind: CommitKind::Append,
            entries: vec![entry.clone()],
        };
        world.state().intents.insert(process.owner, intent);
        match finish(writer.append(vec![entry])) {
            Err(WriterError::Index(IndexError::Corrupt { .. })) => {}
            other => world.fail(format!("a writer met damage and said {other:?}")),
        }
        // The store shows less than it had: no number is free for sure.
        let Some(base) = writer.snapshot().map(|s| s.number()) else {
            return;
        };
        {
            let mut state = world.state();
            state.now += PRUNING_AGE;
            let gone: Vec<Key> = (0..=base + 1)
                .map(|n| keys::commit(&partition(), n))
                .collect();
            gone.iter().for_each(|key| drop(state.objects.remove(key)));
        }
        let entry = make_entry(&world, writer.next_offset().unwrap_or(start));
        match finish(writer.append(vec![entry])) {
            Err(WriterError::Index(IndexError::Corrupt { .. })) => {}
            other => world.fail(format!("a writer whose chain is gone said {other:?}")),
        }
    }
}

async fn check_end(process: &Process) -> Result<(), String> {
    let world = &process.world;
    let broken = |what: &str| {
        let what = what.to_owned();
        move |error: IndexError| format!("{what}: {error:?}")
    };
    // Twice over a day, so that rows U to W have their turn with a chain that stands still.
    let mut writer = process
        .archive
        .writer(&partition())
        .await
        .map_err(broken("opening a writer"))?;
    for round in 0..2 {
        if round == 1 {
            world.state().now += PRUNING_AGE;
        }
        let start = writer.next_offset().unwrap_or(everlog_format::Offset::ZERO);
        let entry = make_entry(world, start);
        let intent = Intent {
            kind: CommitKind::Append,
            entries: vec![entry.clone()],
        };
        world.state().intents.insert(process.owner, intent);
        match writer.append(vec![entry]).await {
            Ok(Appended::Committed(_)) => {}
            other => return Err(format!("an append in good times ended with {other:?}")),
        }
    }
    let newest = process
        .archive
        .snapshot(&partition(), Freshness::Now)
        .await
        .map_err(broken("reading"))?;
    let newest = newest.ok_or("a chain with commits was called empty")?;
    let count = world.state().commits.len() as u64;
    if newest.number() + 1 != count {
        return Err(format!(
            "the newest is {} of {count} commits",
            newest.number()
        ));
    }
    process
        .check_read(&newest)
        .await
        .map_err(broken("reading the newest"))?;
    // Nothing that is committed may have been swept.
    let entries = newest
        .entries(everlog_format::Offset::ZERO, usize::MAX)
        .await
        .map_err(broken("entries"))?;
    for entry in &entries {
        if let EntryKind::Data(data) = &entry.kind {
            let key = newest.segment_key(entry.range, data);
            if !world.state().objects.contains_key(&key) {
                return Err(format!("{key} is committed and was deleted"));
            }
        }
    }
    Ok(())
}
