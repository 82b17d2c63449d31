//! Growing the tree behind its end, and walking it.
//!
//! Only the right edge of the tree ever changes here: a full leaf is sealed, and the nodes above it are written anew
//! with it in place. Everything to the left is shared with all earlier commits.

use std::ops::ControlFlow;
use std::sync::Arc;

use everlog_format::{Offset, PartitionKey, Salt};

use crate::canonical::corrupt;
use crate::commit::Commit;
use crate::node::{Node, NodeBody, SealedNode, Shape};
use crate::node_cache::NodeCache;
use crate::summary::Summary;
use crate::wire::Child;
use crate::{Entry, EntryKind, IndexError};

/// An open leaf with about this many bytes of JSON is sealed before it is full, so that a commit stays small whatever
/// its entries carry.
const OPEN_LEAF_MAX_BYTES: usize = 256 << 10;

/// A tree after entries were added.
pub(crate) struct Grown {
    pub(crate) root: Option<Child>,
    pub(crate) open: Vec<Entry>,
    /// To be put before a commit may name them, children before parents.
    pub(crate) nodes: Vec<SealedNode>,
}

/// Adds entries behind `base`. Reads the right edge of the tree if a leaf gets full, and nothing else.
pub(crate) async fn grow(
    nodes: &NodeCache,
    at: &PartitionKey,
    base: Option<&Commit>,
    entries: &[Entry],
    shape: Shape,
    salt: &mut (dyn FnMut() -> Salt + Send),
) -> Result<Grown, IndexError> {
    let root = base.and_then(|c| c.root.clone());
    let mut open: Vec<Entry> = base.map(|c| c.open.clone()).unwrap_or_default();
    open.extend_from_slice(entries);
    if seal_at(&open, shape).is_none() {
        return Ok(Grown {
            root,
            open,
            nodes: Vec::new(),
        });
    }
    let mut edge = Edge {
        levels: read_edge(nodes, at, root, shape).await?,
        shape,
        salt,
        sealed: Vec::new(),
    };
    let damaged = |why| corrupt(&format!("what was to be written to {at}"), why);
    while let Some(len) = seal_at(&open, shape) {
        let rest = open.split_off(len);
        let leaf = std::mem::replace(&mut open, rest);
        let leaf = edge.seal(0, NodeBody::Leaf(leaf)).map_err(damaged)?;
        edge.push(leaf).map_err(damaged)?;
    }
    let root = edge.finish().map_err(damaged)?;
    Ok(Grown {
        root: Some(root),
        open,
        nodes: edge.sealed,
    })
}

/// How many of the open entries make a leaf; `None` while there is room.
fn seal_at(open: &[Entry], shape: Shape) -> Option<usize> {
    let mut bytes = 0;
    for (index, entry) in open.iter().enumerate() {
        bytes += match &entry.kind {
            EntryKind::Data(data) => 320 + 28 * data.epochs.len() + 67 * data.supersedes.len(),
            _ => 80,
        };
        if shape.leaf_max_entries <= index + 1 || OPEN_LEAF_MAX_BYTES <= bytes {
            return Some(index + 1);
        }
    }
    None
}

/// The nodes on the right edge that still have room: `levels[i]` holds children of level `i`, without the one that
/// `levels[i - 1]` is about to become.
struct Edge<'a> {
    levels: Vec<Vec<Child>>,
    shape: Shape,
    salt: &'a mut (dyn FnMut() -> Salt + Send),
    sealed: Vec<SealedNode>,
}

impl Edge<'_> {
    fn seal(&mut self, level: u8, body: NodeBody) -> Result<Child, String> {
        let node = Node::seal(level, body, (self.salt)(), self.shape)?;
        let child = node.child.clone();
        self.sealed.push(node);
        Ok(child)
    }

    /// Adds a child at the right end of its level, closing the node there if it is full.
    fn push(&mut self, child: Child) -> Result<(), String> {
        let mut child = child;
        loop {
            let level = usize::from(child.level);
            while self.levels.len() <= level {
                self.levels.push(Vec::new());
            }
            let siblings = &mut self.levels[level];
            if siblings.len() < self.shape.inner_max_children {
                siblings.push(child);
                return Ok(());
            }
            let full = std::mem::replace(siblings, vec![child.clone()]);
            child = self.seal(child.level + 1, NodeBody::Inner(full))?;
        }
    }

    /// Closes all levels; the last node is the root.
    fn finish(&mut self) -> Result<Child, String> {
        let mut level = 0;
        loop {
            let siblings = std::mem::take(&mut self.levels[level]);
            let top = self.levels[level + 1..].iter().all(Vec::is_empty);
            match <[Child; 1]>::try_from(siblings) {
                Ok([root]) if top => return Ok(root),
                Ok([only]) => self.close(level, vec![only])?,
                Err(siblings) if siblings.is_empty() => {}
                Err(siblings) => self.close(level, siblings)?,
            }
            level += 1;
        }
    }

    fn close(&mut self, level: usize, siblings: Vec<Child>) -> Result<(), String> {
        let above = u8::try_from(level + 1).map_err(|_| "too many levels")?;
        let node = self.seal(above, NodeBody::Inner(siblings))?;
        self.push(node)
    }
}

/// Reads the right edge. A node that is full, with everything right of it full, is left closed: it need not be written
/// again.
async fn read_edge(
    nodes: &NodeCache,
    at: &PartitionKey,
    root: Option<Child>,
    shape: Shape,
) -> Result<Vec<Vec<Child>>, IndexError> {
    let Some(root) = root else {
        return Ok(Vec::new());
    };
    let top = usize::from(root.level);
    let mut path: Vec<Vec<Child>> = Vec::new();
    let mut next = root.clone();
    while next.level != 0 {
        let node = nodes.load(at, &next).await?;
        let NodeBody::Inner(children) = &node.body else {
            break;
        };
        path.push(children.clone());
        let Some(last) = children.last() else { break };
        next = last.clone();
    }
    // From the bottom: `path` now ends with the node of level 1, whose children are leaves.
    let mut levels: Vec<Vec<Child>> = vec![Vec::new(); top + 1];
    let mut below_is_full = true;
    for (level, mut children) in path.into_iter().rev().enumerate() {
        let full = below_is_full && children.len() == shape.inner_max_children;
        if full {
            continue;
        }
        if !below_is_full {
            children.pop();
        }
        levels[level] = children;
        below_is_full = false;
    }
    if below_is_full {
        levels[top] = vec![root];
    }
    Ok(levels)
}

/// Goes through the entries below `root` that end above `from`, in order. `descend` is asked before a node is read;
/// `visit` ends the walk by breaking.
pub(crate) async fn walk(
    nodes: &NodeCache,
    at: &PartitionKey,
    root: &Child,
    from: Offset,
    descend: &mut (dyn FnMut(&Summary) -> bool + Send),
    visit: &mut (dyn FnMut(&Entry) -> ControlFlow<()> + Send),
) -> Result<ControlFlow<()>, IndexError> {
    let wanted = |summary: &Summary| from < summary.range.end();
    if !wanted(&root.summary) || !descend(&root.summary) {
        return Ok(ControlFlow::Continue(()));
    }
    let mut path: Vec<(Arc<Node>, usize)> = vec![(nodes.load(at, root).await?, 0)];
    while let Some((node, next)) = path.last_mut() {
        match &node.body {
            NodeBody::Leaf(entries) => {
                let first = entries.partition_point(|e| e.range.end() <= from);
                for entry in &entries[first..] {
                    if visit(entry).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                path.pop();
            }
            NodeBody::Inner(children) => {
                let Some(child) = children.get(*next) else {
                    path.pop();
                    continue;
                };
                *next += 1;
                if wanted(&child.summary) && descend(&child.summary) {
                    let child = child.clone();
                    let node = nodes.load(at, &child).await?;
                    path.push((node, 0));
                }
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}
