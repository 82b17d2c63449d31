//! Reading a chain of commits: the newest one, the next one, and whether what a commit names has arrived.

use std::ops::ControlFlow;
use std::sync::Arc;

use everlog_format::{Hash, Offset, PartitionKey};
use everlog_store::{ListPage, StoreError};
use tracing::debug;

use crate::canonical::corrupt;
use crate::commit::{Commit, name};
use crate::shared::Shared;
use crate::summary::end_of;
use crate::tree::walk;
use crate::{Entry, EntryKind, IndexError, Snapshot, TopicInfo, keys};

/// Keys asked for when the store lists in key order: the newest, and some before it for a replica that lags.
const NEWEST_KEYS: u16 = 8;
/// Commits that a reader steps over one by one before it lists instead.
pub(crate) const STEPS_MAX: usize = 64;

/// The chain of one partition.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) shared: Arc<Shared>,
    pub(crate) key: PartitionKey,
    pub(crate) topic: Arc<TopicInfo>,
}

/// A commit as it lies in the store.
pub(crate) struct Found {
    pub(crate) bytes: bytes::Bytes,
    pub(crate) commit: Commit,
    pub(crate) writer_features: Vec<String>,
}

impl Chain {
    /// Commit `number`; `None` if there is none.
    pub(crate) async fn get(&self, number: u64) -> Result<Option<Found>, IndexError> {
        let bytes = match self
            .shared
            .store
            .get(&keys::commit(&self.key, number))
            .await
        {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(other) => return Err(other.into()),
        };
        let (commit, writer_features) =
            Commit::decode(&self.key, number, &bytes, self.shared.shape)?;
        Ok(Some(Found {
            bytes,
            commit,
            writer_features,
        }))
    }

    pub(crate) fn snapshot(&self, found: Found) -> Arc<Snapshot> {
        let hash = Hash::of(&found.bytes);
        let features = found.writer_features;
        Arc::new(Snapshot::new(self.clone(), found.commit, hash, features))
    }

    /// Commit `number` as a snapshot; `None` if there is none.
    pub(crate) async fn get_snapshot(
        &self,
        number: u64,
    ) -> Result<Option<Arc<Snapshot>>, IndexError> {
        Ok(self.get(number).await?.map(|found| self.snapshot(found)))
    }

    /// The commit after `before`, checked against it.
    pub(crate) async fn next(
        &self,
        before: &Snapshot,
    ) -> Result<Option<Arc<Snapshot>>, IndexError> {
        let Some(number) = before.number().checked_add(1) else {
            return Ok(None);
        };
        let Some(next) = self.get_snapshot(number).await? else {
            return Ok(None);
        };
        next.commit()
            .check_follows(before.commit(), before.hash())
            .map_err(|why| corrupt(&name(&self.key, number), why))?;
        Ok(Some(next))
    }

    /// Some of the newest numbers, newest first, and whether there may be more. At least one if the chain has any.
    async fn newest_numbers(&self) -> Result<(Vec<u64>, bool), IndexError> {
        let store = &self.shared.store;
        if store.lists_in_key_order() {
            let page = store
                .list_first(&keys::commit_folder(&self.key), NEWEST_KEYS)
                .await?;
            let more = page.next.is_some();
            let numbers = numbers_of(&page);
            // Things that are no commits may have filled the page.
            if !numbers.is_empty() || !more {
                return Ok((numbers, more));
            }
        }
        Ok((self.all_numbers().await?, false))
    }

    /// All numbers, newest first, by the whole listing.
    pub(crate) async fn all_numbers(&self) -> Result<Vec<u64>, IndexError> {
        let folder = keys::commit_folder(&self.key);
        let (mut numbers, mut token) = (Vec::new(), None);
        loop {
            let page = self.shared.store.list(&folder, true, token).await?;
            numbers.extend(numbers_of(&page));
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers.dedup();
        Ok(numbers)
    }

    /// The newest commit there is, for a writer: what it names is not looked for, since a writer works on the primary.
    pub(crate) async fn newest(&self) -> Result<Option<Arc<Snapshot>>, IndexError> {
        let (numbers, _) = self.newest_numbers().await?;
        let Some(number) = numbers.first() else {
            return Ok(None);
        };
        match self.get_snapshot(*number).await? {
            Some(newest) => self.last_after(newest).await.map(Some),
            None => Err(IndexError::Missing {
                what: name(&self.key, *number),
            }),
        }
    }

    /// The last commit that can be reached from `from` by stepping, at most [`STEPS_MAX`] on.
    async fn last_after(&self, from: Arc<Snapshot>) -> Result<Arc<Snapshot>, IndexError> {
        let mut last = from;
        for _ in 0..STEPS_MAX {
            match self.next(&last).await? {
                Some(next) => last = next,
                None => break,
            }
        }
        Ok(last)
    }

    /// The newest commit that is complete, for a reader that knows none. `None`: the chain has no commit.
    ///
    /// Where newer commits have arrived before what they name, the one before them is served: a complete prefix.
    pub(crate) async fn newest_complete(&self) -> Result<Option<Arc<Snapshot>>, IndexError> {
        let (mut numbers, mut more) = self.newest_numbers().await?;
        let Some(first) = numbers.first().copied() else {
            return Ok(None);
        };
        let mut tried = 0;
        while tried < numbers.len() {
            let number = numbers[tried];
            let before = numbers
                .get(tried + 1)
                .copied()
                .filter(|b| b.checked_add(1) == Some(number));
            tried += 1;
            if let Some(snapshot) = self.complete(number, before).await? {
                return Ok(Some(snapshot));
            }
            debug!(partition = %self.key, number, "a commit has not arrived whole yet");
            if tried == numbers.len() && more {
                let last = number;
                numbers = self.all_numbers().await?;
                more = false;
                tried = numbers.partition_point(|n| last <= *n);
            }
        }
        Err(IndexError::Missing {
            what: format!("what {} names", name(&self.key, first)),
        })
    }

    /// Commit `number` if it and its newest objects are there. `before` is the number before it where the listing showed
    /// that one: the chain of hashes is checked over this link.
    async fn complete(
        &self,
        number: u64,
        before: Option<u64>,
    ) -> Result<Option<Arc<Snapshot>>, IndexError> {
        let before = async {
            match before {
                Some(number) => self.get_snapshot(number).await,
                None => Ok(None),
            }
        };
        let (found, before) = futures::future::try_join(self.get_snapshot(number), before).await?;
        let Some(found) = found else {
            return Ok(None);
        };
        if let Some(before) = before {
            found
                .commit()
                .check_follows(before.commit(), before.hash())
                .map_err(|why| corrupt(&name(&self.key, number), why))?;
        }
        let window = usize::from(self.shared.tuning.lag_window_entries);
        let complete = self.has_arrived(&found, Arrived::Newest(window)).await?;
        Ok(complete.then_some(found))
    }

    /// The newest complete commit at or after `known`, for a reader that has read the chain within a day.
    pub(crate) async fn newest_complete_after(
        &self,
        known: &Arc<Snapshot>,
    ) -> Result<Arc<Snapshot>, IndexError> {
        let (mut last, mut complete) = (Arc::clone(known), Arc::clone(known));
        for _ in 0..STEPS_MAX {
            let Some(next) = self.next(&last).await? else {
                return Ok(complete);
            };
            last = next;
            let since = end_of(complete.commit().summary.as_ref());
            if self.has_arrived(&last, Arrived::Since(since)).await? {
                complete = Arc::clone(&last);
            } else {
                // Either it has not arrived whole, or a later one has replaced what it names: only the next tells.
                debug!(partition = %self.key, number = last.number(), "a commit is not there whole");
            }
        }
        self.newest_complete_past(&complete).await
    }

    /// The newest complete commit found by listing, which must continue `known`.
    pub(crate) async fn newest_complete_past(
        &self,
        known: &Arc<Snapshot>,
    ) -> Result<Arc<Snapshot>, IndexError> {
        match self.newest_complete().await? {
            // A replica may show less than we know; what we know stays true.
            Some(found) if known.number() < found.number() => {
                found
                    .commit()
                    .check_outgrows(known.commit())
                    .map_err(|why| corrupt(&name(&self.key, found.number()), why))?;
                Ok(found)
            }
            Some(found) if known.number() == found.number() && known.hash() != found.hash() => Err(
                corrupt(&name(&self.key, found.number()), "its bytes have changed"),
            ),
            _ => Ok(Arc::clone(known)),
        }
    }

    /// Whether the objects of the newest entries are there, nodes on the way included.
    async fn has_arrived(&self, snapshot: &Snapshot, which: Arrived) -> Result<bool, IndexError> {
        let commit = snapshot.commit();
        let Some(summary) = &commit.summary else {
            return Ok(true);
        };
        let from = match which {
            Arrived::Since(None) => summary.range.start(),
            Arrived::Since(Some(end)) => end,
            Arrived::Newest(0) => return Ok(true),
            // Inside the open leaf if it is long enough; else the whole of the last sealed leaf's end is looked at.
            Arrived::Newest(count) => match commit.open.len().checked_sub(count) {
                Some(index) => commit.open[index].range.start(),
                None => commit
                    .root
                    .as_ref()
                    .map_or(summary.range.start(), |root| last_of(root.summary.range)),
            },
        };
        let mut entries: Vec<Entry> = Vec::new();
        if let Some(root) = &commit.root {
            let mut keep = |entry: &Entry| {
                entries.push(entry.clone());
                ControlFlow::Continue(())
            };
            match walk(
                &self.shared.nodes,
                &self.key,
                root,
                from,
                &mut |_| true,
                &mut keep,
            )
            .await
            {
                Ok(_) => {}
                Err(IndexError::Missing { .. }) => return Ok(false),
                Err(other) => return Err(other),
            }
        }
        entries.extend(commit.open.iter().filter(|e| from < e.range.end()).cloned());
        for entry in entries {
            let EntryKind::Data(data) = &entry.kind else {
                continue;
            };
            let key = snapshot.segment_key(entry.range, data);
            match self
                .shared
                .store
                .get_range(&key, data.bytes - 1..data.bytes)
                .await
            {
                Ok(_) => {}
                Err(StoreError::NotFound { .. }) => return Ok(false),
                Err(other) => return Err(other.into()),
            }
        }
        Ok(true)
    }
}

/// Which entries' objects a reader asks for.
#[derive(Clone, Copy)]
enum Arrived {
    /// Those that end above this, or all.
    Since(Option<Offset>),
    /// About this many.
    Newest(usize),
}

/// The last offset of a range.
fn last_of(range: everlog_format::OffsetRange) -> Offset {
    Offset::new(range.end().get() - 1).unwrap_or(range.start())
}

/// The numbers of the commits on a page, newest first.
fn numbers_of(page: &ListPage) -> Vec<u64> {
    let mut numbers: Vec<u64> = page
        .objects
        .iter()
        .filter_map(|(key, _)| keys::commit_number(key))
        .collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers
}
