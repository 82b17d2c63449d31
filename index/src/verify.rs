//! Going through everything that a chain names, for `everlog verify`: every commit, every node and every entry is read
//! from the store itself, past all caches, and every rule is checked again.
//!
//! What only commits older than the last rewrite or sweep name may be gone by right: maintenance deletes what it has
//! replaced. Everything else has to be there.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use everlog_format::{Hash, OffsetRange, PartitionKey};
use everlog_store::Key;

use crate::canonical::corrupt;
use crate::chain::Chain;
use crate::commit::{CommitKind, name};
use crate::node::{Node, NodeBody};
use crate::node_cache::fetch;
use crate::wire::Child;
use crate::{Archive, DataEntry, EntryKind, IndexError, Snapshot, keys};

/// Something that the chain names and that has just been checked, or is for the caller to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A commit: read, its hash compared with what the next one says, all rules checked.
    Commit {
        /// Its number.
        number: u64,
    },
    /// A node: read, hashed, sums and levels checked.
    Node {
        /// Its object.
        key: Key,
    },
    /// A segment that an entry names. Its object has not been read.
    Segment {
        /// Its object.
        key: Key,
        /// What the entry covers.
        range: OffsetRange,
        /// What the entry says.
        data: DataEntry,
    },
}

/// One walk over one chain, from the newest commit down to the oldest that is kept.
#[derive(Debug)]
pub struct Verifier {
    chain: Chain,
    /// Numbers still to come, newest first.
    numbers: VecDeque<u64>,
    after: Option<Arc<Snapshot>>,
    /// A rewrite or sweep lies above: what is only named below may be gone.
    may_be_gone: bool,
    nodes: Vec<Child>,
    segments: VecDeque<Named>,
    seen: HashSet<Hash>,
}

impl Archive {
    /// Begins to verify a partition; `None` if its topic is unknown.
    pub async fn verifier(&self, key: &PartitionKey) -> Result<Option<Verifier>, IndexError> {
        let Some(chain) = self.chain(key).await? else {
            return Ok(None);
        };
        let numbers: VecDeque<u64> = chain.all_numbers().await?.into();
        Ok(Some(Verifier {
            chain,
            numbers,
            after: None,
            may_be_gone: false,
            nodes: Vec::new(),
            segments: VecDeque::new(),
            seen: HashSet::new(),
        }))
    }
}

impl Verifier {
    /// The next object; `Ok(None)` at the end. After an error the walk can go on behind what is damaged.
    pub async fn next(&mut self) -> Result<Option<Named>, IndexError> {
        loop {
            if let Some(segment) = self.segments.pop_front() {
                return Ok(Some(segment));
            }
            if let Some(child) = self.nodes.pop() {
                match self.node(&child).await? {
                    Some(named) => return Ok(Some(named)),
                    None => continue,
                }
            }
            let Some(number) = self.numbers.pop_front() else {
                return Ok(None);
            };
            if let Some(named) = self.commit(number).await? {
                return Ok(Some(named));
            }
        }
    }

    async fn commit(&mut self, number: u64) -> Result<Option<Named>, IndexError> {
        let after = self.after.take();
        let Some(commit) = self.chain.get_snapshot(number).await? else {
            // Pruned since the listing: the oldest may go while we read.
            return Ok(None);
        };
        if let Some(after) = &after {
            let damaged = |why| corrupt(&name(&self.chain.key, after.number()), why);
            if after.number() == number + 1 {
                after
                    .commit()
                    .check_follows(commit.commit(), commit.hash())
                    .map_err(damaged)?;
            } else {
                // Pruning takes the oldest first, so that the kept ones are without a gap.
                let gap = format!("number {} between two that are kept is missing", number + 1);
                self.after = Some(commit);
                return Err(damaged(gap));
            }
            self.may_be_gone |= after.kind() != CommitKind::Append;
        }
        self.nodes.extend(commit.commit().root.clone());
        for entry in &commit.commit().open {
            self.add_segment(entry);
        }
        self.after = Some(commit);
        Ok(Some(Named::Commit { number }))
    }

    /// `None`: seen before, or gone by right.
    async fn node(&mut self, child: &Child) -> Result<Option<Named>, IndexError> {
        if !self.seen.insert(child.hash) {
            return Ok(None);
        }
        let at = &self.chain.key;
        let bytes = match fetch(self.chain.shared.store.as_ref(), at, child.hash).await {
            Err(IndexError::Missing { .. }) if self.may_be_gone => return Ok(None),
            bytes => bytes?,
        };
        let node = Node::decode(child.hash, &bytes, self.chain.shared.shape)?;
        node.check_against(child)?;
        match &node.body {
            NodeBody::Inner(children) => self.nodes.extend(children.iter().rev().cloned()),
            NodeBody::Leaf(entries) => entries.iter().for_each(|entry| self.add_segment(entry)),
        }
        Ok(Some(Named::Node {
            key: keys::node(&self.chain.key, child.hash),
        }))
    }

    fn add_segment(&mut self, entry: &crate::Entry) {
        // What a rewrite replaced is named below it only, and may be deleted.
        if let EntryKind::Data(data) = &entry.kind
            && !self.may_be_gone
            && self.seen.insert(data.hash)
        {
            let topic = &self.chain.topic;
            let key = keys::segment_key(
                topic,
                self.chain.key.partition,
                entry.range,
                data.day,
                data.hash,
            );
            self.segments.push_back(Named::Segment {
                key,
                range: entry.range,
                data: data.clone(),
            });
        }
    }
}
