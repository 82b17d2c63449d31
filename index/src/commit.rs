//! One numbered commit: its bytes, and the rules that it and its neighbours keep.

use std::borrow::Cow;

use everlog_format::{ClusterId, Hash, Partition, PartitionKey, Salt, TopicId};
use serde::{Deserialize, Serialize};

use crate::canonical::{self, Decimal, VERSION, corrupt};
use crate::node::{LEVEL_MAX, Shape};
use crate::summary::{Summary, end_of};
use crate::wire::{Child, WireChild, WireEntry, read_all, write_all};
use crate::{Entry, IndexError};

/// Why a commit was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitKind {
    /// An archiver added entries behind the end.
    Append,
    /// Maintenance changed what entries point to, never what ranges they cover.
    Rewrite,
    /// Maintenance named objects that it is about to delete: whoever has uploaded and not committed starts over.
    Sweep,
}

/// Object names that one sweep may hold.
pub(crate) const SWEEP_MAX_LEN: usize = 10_000;

/// A commit that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) number: u64,
    /// Drawn once per assignment.
    pub(crate) writer: Salt,
    pub(crate) kind: CommitKind,
    /// The hash of commit `number - 1`; `None` for number 0.
    pub(crate) previous: Option<Hash>,
    /// The tree over all sealed leaves.
    pub(crate) root: Option<Child>,
    /// The entries behind it.
    pub(crate) open: Vec<Entry>,
    /// What a sweep names.
    pub(crate) sweep: Vec<String>,
    /// The sum over root and open leaf; `None` while there is no entry.
    pub(crate) summary: Option<Summary>,
}

#[derive(Serialize, Deserialize)]
struct WireCommit {
    cluster: ClusterId,
    kind: String,
    next_offset: Option<Decimal<i64>>,
    number: Decimal<u64>,
    open: Vec<WireEntry>,
    partition: i32,
    previous: Option<Hash>,
    reader_features: Vec<String>,
    root: Option<WireChild>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sweep: Vec<String>,
    topic_id: TopicId,
    version: u32,
    writer: Salt,
    writer_features: Vec<String>,
}

/// What a new commit is made of; the rest follows.
pub(crate) struct Draft {
    pub(crate) number: u64,
    pub(crate) writer: Salt,
    pub(crate) kind: CommitKind,
    pub(crate) previous: Option<Hash>,
    pub(crate) root: Option<Child>,
    pub(crate) open: Vec<Entry>,
    pub(crate) sweep: Vec<String>,
}

impl Commit {
    /// Checks a draft against every rule that holds inside one commit.
    pub(crate) fn new(draft: Draft, shape: Shape) -> Result<Commit, String> {
        let Draft {
            number,
            writer,
            kind,
            previous,
            root,
            open,
            sweep,
        } = draft;
        if (number == 0) != previous.is_none() {
            return Err("only commit 0 has none before it".to_owned());
        }
        if shape.leaf_max_entries < open.len() {
            return Err(format!("an open leaf of {} entries", open.len()));
        }
        if root.as_ref().is_some_and(|root| LEVEL_MAX < root.level) {
            return Err("a root above the highest level".to_owned());
        }
        if SWEEP_MAX_LEN < sweep.len() || (kind != CommitKind::Sweep && !sweep.is_empty()) {
            return Err("a list of swept objects that is too long or out of place".to_owned());
        }
        let sealed = root.iter().map(|root| Cow::Borrowed(&root.summary));
        let open_sum = Summary::of_entries(&open)?.map(Cow::Owned);
        let summary = Summary::join_all(sealed.chain(open_sum))?;
        Ok(Commit {
            number,
            writer,
            kind,
            previous,
            root,
            open,
            sweep,
            summary,
        })
    }

    /// The bytes of the commit as one of `key`'s chain.
    pub(crate) fn encode(&self, key: &PartitionKey) -> Vec<u8> {
        canonical::encode(&WireCommit {
            cluster: key.incarnation.cluster.clone(),
            kind: match self.kind {
                CommitKind::Append => "append",
                CommitKind::Rewrite => "rewrite",
                CommitKind::Sweep => "sweep",
            }
            .to_owned(),
            next_offset: end_of(self.summary.as_ref()).map(|end| Decimal(end.get())),
            number: Decimal(self.number),
            open: write_all(&self.open),
            partition: key.partition.get(),
            previous: self.previous,
            reader_features: Vec::new(),
            root: self.root.as_ref().map(WireChild::from),
            sweep: self.sweep.clone(),
            topic_id: key.incarnation.topic_id,
            version: VERSION,
            writer: self.writer,
            writer_features: Vec::new(),
        })
    }

    /// Reads the commit that lies at `number` of `key`'s chain, and what it asks of writers.
    pub(crate) fn decode(
        key: &PartitionKey,
        number: u64,
        bytes: &[u8],
        shape: Shape,
    ) -> Result<(Commit, Vec<String>), IndexError> {
        let what = name(key, number);
        let wire: WireCommit = canonical::decode(&what, bytes)?;
        let at_home = wire.cluster == key.incarnation.cluster
            && wire.topic_id == key.incarnation.topic_id
            && Partition::new(wire.partition) == Some(key.partition)
            && wire.number.0 == number;
        if !at_home {
            return Err(corrupt(&what, "it is a commit of another place"));
        }
        let next_offset = wire.next_offset.map(|end| end.0);
        let commit = Commit::from_wire(wire, shape);
        let features = commit.map_err(|why| corrupt(&what, why))?;
        if end_of(features.0.summary.as_ref()).map(everlog_format::Offset::get) != next_offset {
            return Err(corrupt(
                &what,
                "its next offset is not its last entry's end",
            ));
        }
        Ok(features)
    }

    fn from_wire(wire: WireCommit, shape: Shape) -> Result<(Commit, Vec<String>), String> {
        let draft = Draft {
            number: wire.number.0,
            writer: wire.writer,
            kind: match wire.kind.as_str() {
                "append" => CommitKind::Append,
                "rewrite" => CommitKind::Rewrite,
                "sweep" => CommitKind::Sweep,
                other => return Err(format!("it is of the kind {other:?}")),
            },
            previous: wire.previous,
            root: wire.root.map(Child::try_from).transpose()?,
            open: read_all(wire.open)?,
            sweep: wire.sweep,
        };
        Ok((Commit::new(draft, shape)?, wire.writer_features))
    }

    /// The rules between a commit and the one before it, whose hash is `hash`.
    pub(crate) fn check_follows(&self, before: &Commit, hash: Hash) -> Result<(), String> {
        if before.number.checked_add(1) != Some(self.number) {
            return Err(format!("it does not follow number {}", before.number));
        }
        if self.previous != Some(hash) {
            return Err(format!(
                "it names another commit {} than the one that is there",
                before.number
            ));
        }
        self.check_outgrows(before)
    }

    /// The rules between a commit and any earlier one.
    pub(crate) fn check_outgrows(&self, before: &Commit) -> Result<(), String> {
        let next_to = before.number.checked_add(1) == Some(self.number);
        let Some(old) = &before.summary else {
            return if next_to && self.kind != CommitKind::Append && self.summary.is_some() {
                Err("maintenance has begun the archive".to_owned())
            } else {
                Ok(())
            };
        };
        let Some(new) = &self.summary else {
            return Err("its entries are gone".to_owned());
        };
        if new.range.start() != old.range.start() {
            return Err("the archive's start has moved".to_owned());
        }
        if new.range.end() < old.range.end() {
            return Err("the archived end has gone back".to_owned());
        }
        let same = |kind: CommitKind| next_to && self.kind == kind;
        if !same(CommitKind::Append) && next_to && new.range.end() != old.range.end() {
            return Err("maintenance has moved the archived end".to_owned());
        }
        if same(CommitKind::Sweep) && (self.root != before.root || self.open != before.open) {
            return Err("a sweep has changed the tree".to_owned());
        }
        if same(CommitKind::Append)
            && self.root == before.root
            && !self.open.starts_with(&before.open)
        {
            return Err("an append has changed entries that were there".to_owned());
        }
        Ok(())
    }
}

/// How messages call a commit.
pub(crate) fn name(key: &PartitionKey, number: u64) -> String {
    format!("commit {number} of {key}")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use everlog_format::{Offset, OffsetRange};

    use super::*;
    use crate::EntryKind;

    fn commit(number: u64, kind: CommitKind, bounds: &[i64]) -> Commit {
        let offset = |raw: i64| Offset::new(raw).unwrap();
        let open = bounds.windows(2).map(|pair| Entry {
            range: OffsetRange::new(offset(pair[0]), offset(pair[1])).unwrap(),
            kind: EntryKind::Empty,
        });
        let draft = Draft {
            number,
            writer: Salt::new([1; 16]),
            kind,
            previous: (number != 0).then(|| Hash::of(b"before")),
            root: None,
            open: open.collect(),
            sweep: Vec::new(),
        };
        Commit::new(draft, Shape::VERSION_1).unwrap()
    }

    #[test]
    fn a_commit_outgrows_the_one_before() {
        use CommitKind::{Append, Rewrite, Sweep};
        let hash = Hash::of(b"before");
        let before = commit(3, Append, &[5, 10, 20]);
        let nothing = commit(3, Append, &[]);
        let check = |before: &Commit, kind, bounds: &[i64]| {
            commit(4, kind, bounds).check_follows(before, hash).is_ok()
        };
        assert!(check(&before, Append, &[5, 10, 20, 30]));
        assert!(check(&before, Rewrite, &[5, 20]));
        assert!(check(&before, Sweep, &[5, 10, 20]));
        assert!(check(&nothing, Append, &[7, 8]));
        assert!(check(&nothing, Sweep, &[]));
        for (kind, bounds) in [
            (Append, &[][..]),
            (Append, &[6, 10, 20]),
            (Append, &[4, 10, 20]),
            (Append, &[5, 10]),
            (Append, &[5, 20, 30]),
            (Rewrite, &[5, 20, 30]),
            (Sweep, &[5, 20]),
            (Sweep, &[5, 10, 20, 30]),
        ] {
            assert!(!check(&before, kind, bounds), "{kind:?} {bounds:?}");
        }
        assert!(!check(&nothing, Rewrite, &[7, 8]));
        assert!(!check(&nothing, Sweep, &[7, 8]));
        let next = commit(4, Append, &[5, 10, 20, 30]);
        assert!(next.check_follows(&before, Hash::of(b"other")).is_err());
        assert!(
            commit(5, Append, &[5, 20])
                .check_follows(&before, hash)
                .is_err()
        );
        // Over a gap only the bounds count.
        assert!(commit(9, Append, &[5, 20]).check_outgrows(&before).is_ok());
        assert!(commit(9, Append, &[5, 10]).check_outgrows(&before).is_err());
    }
}
