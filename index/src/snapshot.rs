//! One commit of one partition, to read from.

use std::ops::ControlFlow;
use std::sync::Arc;

use everlog_format::{Day, Hash, Offset, OffsetRange, PartitionKey};
use everlog_store::Key;
use tokio::sync::OnceCell;

use crate::chain::Chain;
use crate::commit::{Commit, CommitKind};
use crate::summary::{Summary, push_epoch};
use crate::tree::walk;
use crate::{DataEntry, Entry, EntryKind, EpochStart, IndexError, TopicInfo, keys};

/// Where an offset lies in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Below the first entry: before the archive began.
    BeforeStart,
    /// This entry covers it.
    Covered(Entry),
    /// At or above the archived end.
    BeyondEnd,
}

/// Sums over all entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Data entries.
    pub segments: u64,
    /// Records.
    pub records: u64,
    /// Stored bytes of segments.
    pub bytes: u64,
    /// Uncompressed bytes of keys, values and headers.
    pub raw_bytes: u64,
    /// Hole entries.
    pub holes: u64,
}

/// One immutable commit and the way to the tree below it.
///
/// A node that is not there is [`IndexError::Missing`]: ask the archive for a newer snapshot, and if that one still
/// names it, it is a replica that lags or data that is lost. Either way the error may be tried again, and is never a
/// reason to skip.
#[derive(Debug)]
pub struct Snapshot {
    chain: Chain,
    commit: Commit,
    hash: Hash,
    writer_features: Vec<String>,
    epochs: OnceCell<Arc<[EpochStart]>>,
}

impl Snapshot {
    pub(crate) fn new(
        chain: Chain,
        commit: Commit,
        hash: Hash,
        writer_features: Vec<String>,
    ) -> Snapshot {
        Snapshot {
            chain,
            commit,
            hash,
            writer_features,
            epochs: OnceCell::new(),
        }
    }

    pub(crate) fn commit(&self) -> &Commit {
        &self.commit
    }

    pub(crate) fn writer_features(&self) -> &[String] {
        &self.writer_features
    }

    /// Whose.
    pub fn key(&self) -> &PartitionKey {
        &self.chain.key
    }

    /// The topic as first seen.
    pub fn topic(&self) -> &TopicInfo {
        &self.chain.topic
    }

    /// The commit's number, from 0.
    pub fn number(&self) -> u64 {
        self.commit.number
    }

    /// The SHA-256 of the commit's bytes.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Why the commit was made.
    pub fn kind(&self) -> CommitKind {
        self.commit.kind
    }

    /// From the archive's start to the archived end; `None` while no commit has an entry.
    pub fn covered(&self) -> Option<OffsetRange> {
        self.commit.summary.as_ref().map(|s| s.range)
    }

    /// Sums over all entries.
    pub fn totals(&self) -> Totals {
        self.commit
            .summary
            .as_ref()
            .map(|s| s.totals)
            .unwrap_or_default()
    }

    /// How many entries there are.
    pub fn entry_count(&self) -> u64 {
        self.commit.summary.as_ref().map_or(0, |s| s.entries)
    }

    /// Largest record timestamp in the archive, in ms; `None` without records.
    pub fn max_timestamp_ms(&self) -> Option<i64> {
        self.commit
            .summary
            .as_ref()
            .and_then(|s| s.max_timestamp_ms)
    }

    /// The label of the last data entry.
    pub fn last_day(&self) -> Option<Day> {
        self.commit.summary.as_ref().and_then(|s| s.last_day)
    }

    /// The entry that covers `offset`: at most three node reads for 4 million segments, none for what is cached.
    pub async fn lookup(&self, offset: Offset) -> Result<Lookup, IndexError> {
        match self.covered() {
            None => return Ok(Lookup::BeyondEnd),
            Some(covered) if offset < covered.start() => return Ok(Lookup::BeforeStart),
            Some(covered) if covered.end() <= offset => return Ok(Lookup::BeyondEnd),
            Some(_) => {}
        }
        let found = self.find(offset, &mut |_| true, &mut |_| true).await?;
        // Entries touch, so the first that ends above an offset inside the covered range holds it.
        Ok(found.map_or(Lookup::BeyondEnd, Lookup::Covered))
    }

    /// The first data entry at or above `from` (by range end) whose largest timestamp is at or above `timestamp_ms`.
    /// The caller searches inside, and goes on from the entry's end where the segment's match lies below `from`.
    pub async fn first_with_timestamp(
        &self,
        timestamp_ms: i64,
        from: Offset,
    ) -> Result<Option<(OffsetRange, DataEntry)>, IndexError> {
        let reaches = |max: Option<i64>| max.is_some_and(|max| timestamp_ms <= max);
        let mut descend = |summary: &Summary| reaches(summary.max_timestamp_ms);
        let mut wanted = |entry: &Entry| matches!(&entry.kind, EntryKind::Data(data) if reaches(Some(data.max_timestamp_ms)));
        let found = self.find(from, &mut descend, &mut wanted).await?;
        Ok(found.and_then(|entry| match entry.kind {
            EntryKind::Data(data) => Some((entry.range, data)),
            EntryKind::Empty | EntryKind::Hole(_) | EntryKind::Expired => None,
        }))
    }

    /// The first data entry that holds a record with the largest timestamp.
    pub async fn max_timestamp_entry(
        &self,
    ) -> Result<Option<(OffsetRange, DataEntry)>, IndexError> {
        match self.max_timestamp_ms() {
            Some(max) => self.first_with_timestamp(max, Offset::ZERO).await,
            None => Ok(None),
        }
    }

    /// The entries that overlap `[from, ...)`, at most `limit`, in order.
    pub async fn entries(&self, from: Offset, limit: usize) -> Result<Vec<Entry>, IndexError> {
        self.select(from, limit, &mut |_| true, &mut |_| true).await
    }

    /// The holes that overlap `[from, ...)`, at most `limit`, in order. Reads only where there are some.
    pub async fn holes(&self, from: Offset, limit: usize) -> Result<Vec<Entry>, IndexError> {
        let mut descend = |summary: &Summary| summary.totals.holes != 0;
        self.select(from, limit, &mut descend, &mut |entry| {
            matches!(entry.kind, EntryKind::Hole(_))
        })
        .await
    }

    /// The epoch starts of the whole archive, merged and ascending. Reads only where epochs change, once per snapshot.
    pub async fn epochs(&self) -> Result<Arc<[EpochStart]>, IndexError> {
        self.epochs
            .get_or_try_init(|| self.read_epochs())
            .await
            .cloned()
    }

    /// The object name of a segment.
    pub fn segment_key(&self, range: OffsetRange, data: &DataEntry) -> Key {
        keys::segment_key(
            &self.chain.topic,
            self.chain.key.partition,
            range,
            data.day,
            data.hash,
        )
    }

    async fn read_epochs(&self) -> Result<Arc<[EpochStart]>, IndexError> {
        // Both closures add to the list, the one for whole subtrees and the other for entries; the walk calls them in
        // order and never at the same time.
        let starts = std::sync::Mutex::new(Vec::new());
        let add = |start: EpochStart| {
            push_epoch(
                &mut starts
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
                start,
            );
        };
        let mut descend = |summary: &Summary| match summary.epochs {
            None => false,
            Some(span) if span.count == 1 => {
                add(span.first);
                false
            }
            Some(_) => true,
        };
        let mut visit = |entry: &Entry| {
            if let EntryKind::Data(data) = &entry.kind {
                data.epochs.iter().copied().for_each(add);
            }
            ControlFlow::Continue(())
        };
        self.walk(Offset::ZERO, &mut descend, &mut visit).await?;
        let starts = starts
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(starts.into())
    }

    async fn find(
        &self,
        from: Offset,
        descend: &mut (dyn FnMut(&Summary) -> bool + Send),
        wanted: &mut (dyn FnMut(&Entry) -> bool + Send),
    ) -> Result<Option<Entry>, IndexError> {
        Ok(self.select(from, 1, descend, wanted).await?.pop())
    }

    async fn select(
        &self,
        from: Offset,
        limit: usize,
        descend: &mut (dyn FnMut(&Summary) -> bool + Send),
        wanted: &mut (dyn FnMut(&Entry) -> bool + Send),
    ) -> Result<Vec<Entry>, IndexError> {
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        let mut visit = |entry: &Entry| {
            if wanted(entry) {
                found.push(entry.clone());
            }
            if found.len() == limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        self.walk(from, descend, &mut visit).await?;
        Ok(found)
    }

    /// Goes through all entries that end above `from`: those below the root, then the open ones.
    async fn walk(
        &self,
        from: Offset,
        descend: &mut (dyn FnMut(&Summary) -> bool + Send),
        visit: &mut (dyn FnMut(&Entry) -> ControlFlow<()> + Send),
    ) -> Result<(), IndexError> {
        if let Some(root) = &self.commit.root {
            let nodes = &self.chain.shared.nodes;
            if walk(nodes, &self.chain.key, root, from, descend, visit)
                .await?
                .is_break()
            {
                return Ok(());
            }
        }
        let first = self.commit.open.partition_point(|e| e.range.end() <= from);
        for entry in &self.commit.open[first..] {
            if visit(entry).is_break() {
                break;
            }
        }
        Ok(())
    }
}
