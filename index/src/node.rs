//! A sealed node of the tree: a leaf of entries, or an inner node of children one level below.

use std::borrow::Cow;

use everlog_format::{Hash, Salt};
use serde::{Deserialize, Serialize};

use crate::canonical::{self, VERSION, corrupt};
use crate::summary::Summary;
use crate::wire::{Child, WireChild, WireEntry, read_all, write_all};
use crate::{Entry, IndexError};

/// How wide nodes may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Entries of a leaf.
    pub(crate) leaf_max_entries: usize,
    /// Children of an inner node.
    pub(crate) inner_max_children: usize,
}

impl Shape {
    /// What version 1 says.
    pub(crate) const VERSION_1: Shape = Shape {
        leaf_max_entries: 64,
        inner_max_children: 256,
    };
}

/// Levels above the leaves. Eight levels of even two children each are more than an archive can fill by appending.
pub(crate) const LEVEL_MAX: u8 = 16;

/// A node that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) level: u8,
    pub(crate) body: NodeBody,
    /// The sum over `body`.
    pub(crate) summary: Summary,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeBody {
    /// Level 0.
    Leaf(Vec<Entry>),
    /// Above.
    Inner(Vec<Child>),
}

#[derive(Serialize, Deserialize)]
struct WireNode {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    children: Option<Vec<WireChild>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<WireEntry>>,
    level: u8,
    reader_features: Vec<String>,
    salt: Salt,
    version: u32,
    #[serde(default)]
    writer_features: Vec<String>,
}

/// A node on its way into the store.
#[derive(Clone, Debug)]
pub(crate) struct SealedNode {
    pub(crate) child: Child,
    pub(crate) bytes: bytes::Bytes,
    pub(crate) node: std::sync::Arc<Node>,
}

impl NodeBody {
    fn sum(&self) -> Result<Option<Summary>, String> {
        match self {
            NodeBody::Leaf(entries) => Summary::of_entries(entries),
            NodeBody::Inner(children) => {
                Summary::join_all(children.iter().map(|c| Cow::Borrowed(&c.summary)))
            }
        }
    }
}

impl Node {
    /// A node of `body`, checked.
    fn new(level: u8, body: NodeBody, shape: Shape) -> Result<Node, String> {
        let (len, max) = match &body {
            NodeBody::Leaf(entries) => (entries.len(), shape.leaf_max_entries),
            NodeBody::Inner(children) => (children.len(), shape.inner_max_children),
        };
        if max < len {
            return Err(format!("{len} entries where {max} are the most"));
        }
        if LEVEL_MAX < level {
            return Err(format!("level {level} where {LEVEL_MAX} is the highest"));
        }
        match &body {
            NodeBody::Leaf(_) if level != 0 => return Err(format!("a leaf at level {level}")),
            NodeBody::Inner(children) => {
                if let Some(child) = children
                    .iter()
                    .find(|c| Some(c.level) != level.checked_sub(1))
                {
                    return Err(format!(
                        "a child of level {} below level {level}",
                        child.level
                    ));
                }
            }
            NodeBody::Leaf(_) => {}
        }
        let summary = body.sum()?.ok_or("a node without entries")?;
        Ok(Node {
            level,
            body,
            summary,
        })
    }

    /// Gives a node its bytes and its name.
    pub(crate) fn seal(
        level: u8,
        body: NodeBody,
        salt: Salt,
        shape: Shape,
    ) -> Result<SealedNode, String> {
        let node = Node::new(level, body, shape)?;
        let (children, entries) = match &node.body {
            NodeBody::Leaf(entries) => (None, Some(write_all(entries))),
            NodeBody::Inner(children) => (Some(write_all(children)), None),
        };
        let wire = WireNode {
            children,
            entries,
            level,
            reader_features: Vec::new(),
            salt,
            version: VERSION,
            writer_features: Vec::new(),
        };
        let bytes = bytes::Bytes::from(canonical::encode(&wire));
        if canonical::OBJECT_MAX_BYTES < bytes.len() {
            return Err(format!("a node of {} bytes", bytes.len()));
        }
        let child = Child {
            hash: Hash::of(&bytes),
            level,
            summary: node.summary.clone(),
        };
        Ok(SealedNode {
            child,
            bytes,
            node: std::sync::Arc::new(node),
        })
    }

    /// Reads a node whose name is `hash`.
    pub(crate) fn decode(hash: Hash, bytes: &[u8], shape: Shape) -> Result<Node, IndexError> {
        let what = format!("node {hash}");
        let found = Hash::of(bytes);
        if found != hash {
            return Err(corrupt(&what, format!("its bytes hash to {found}")));
        }
        let wire: WireNode = canonical::decode(&what, bytes)?;
        let body = match (wire.entries, wire.children) {
            (Some(entries), None) => read_all(entries).map(NodeBody::Leaf),
            (None, Some(children)) => read_all(children).map(NodeBody::Inner),
            _ => Err("a node has either entries or children".to_owned()),
        };
        body.and_then(|body| Node::new(wire.level, body, shape))
            .map_err(|why| corrupt(&what, why))
    }

    /// Whether this is the node that `child` speaks of, beyond its hash.
    pub(crate) fn check_against(&self, child: &Child) -> Result<(), IndexError> {
        if self.level == child.level && self.summary == child.summary {
            return Ok(());
        }
        Err(corrupt(
            &format!("node {}", child.hash),
            "its sums differ from what the node above says",
        ))
    }

    /// About what it takes in memory, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let list = |len: usize, each: usize| u64::try_from(len * each).unwrap_or(u64::MAX);
        let extra = |entry: &Entry| match &entry.kind {
            crate::EntryKind::Data(data) => {
                list(data.epochs.len(), 16) + list(data.supersedes.len(), 32)
            }
            _ => 0,
        };
        256 + match &self.body {
            NodeBody::Leaf(entries) => {
                list(entries.len(), size_of::<Entry>()) + entries.iter().map(extra).sum::<u64>()
            }
            NodeBody::Inner(children) => list(children.len(), size_of::<Child>()),
        }
    }
}
