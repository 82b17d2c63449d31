//! Sealed nodes: from memory, from the local disk, from the store, in this order. A node never changes and is named by
//! its hash, so nothing here is ever out of date; what the disk gives back is hashed again, and a cache that is broken
//! is thrown away. Commits are never kept here: they are what may be new.

use std::sync::Arc;

use bytes::Bytes;
use everlog_format::{Hash, PartitionKey};
use everlog_store::{Store, StoreError};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::disk_cache::DiskCache;
use crate::node::{Node, SealedNode, Shape};
use crate::wire::Child;
use crate::{IndexError, keys};

/// What decoded nodes may take in memory, in bytes.
const MEMORY_MAX_BYTES: u64 = 16 << 20;
/// A first guess for the cache's own tables; it grows.
const MEMORY_NODES: usize = 512;

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<Hash, Arc<Node>> for ByBytes {
    fn weight(&self, _: &Hash, node: &Arc<Node>) -> u64 {
        node.memory_bytes()
    }
}

pub(crate) struct NodeCache {
    store: Arc<dyn Store>,
    shape: Shape,
    memory: Cache<Hash, Arc<Node>, ByBytes>,
    disk: Option<DiskCache>,
}

impl std::fmt::Debug for NodeCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCache")
            .field("memory_bytes", &self.memory.weight())
            .finish_non_exhaustive()
    }
}

impl NodeCache {
    pub(crate) fn new(store: Arc<dyn Store>, shape: Shape, disk: Option<DiskCache>) -> NodeCache {
        let memory = Cache::with_weighter(MEMORY_NODES, MEMORY_MAX_BYTES, ByBytes);
        NodeCache {
            store,
            shape,
            memory,
            disk,
        }
    }

    /// The node that `child` names, checked against it. Concurrent callers share one read.
    pub(crate) async fn load(
        &self,
        at: &PartitionKey,
        child: &Child,
    ) -> Result<Arc<Node>, IndexError> {
        let read = self.read(at, child.hash);
        let node = self.memory.get_or_insert_async(&child.hash, read).await?;
        node.check_against(child)?;
        Ok(node)
    }

    /// A node that this process has just put: the next seal needs it.
    pub(crate) async fn keep(&self, sealed: &SealedNode) {
        self.memory
            .insert(sealed.child.hash, Arc::clone(&sealed.node));
        if let Some(disk) = &self.disk {
            disk.put(sealed.child.hash, sealed.bytes.clone()).await;
        }
    }

    async fn read(&self, at: &PartitionKey, hash: Hash) -> Result<Arc<Node>, IndexError> {
        if let Some(disk) = &self.disk
            && let Some(bytes) = disk.get(hash).await
        {
            match Node::decode(hash, &bytes, self.shape) {
                Ok(node) => return Ok(Arc::new(node)),
                Err(_) => disk.remove(hash).await,
            }
        }
        let bytes = fetch(self.store.as_ref(), at, hash).await?;
        let node = Node::decode(hash, &bytes, self.shape)?;
        if let Some(disk) = &self.disk {
            disk.put(hash, bytes).await;
        }
        Ok(Arc::new(node))
    }
}

/// The bytes of a node, from the store itself.
pub(crate) async fn fetch(
    store: &dyn Store,
    at: &PartitionKey,
    hash: Hash,
) -> Result<Bytes, IndexError> {
    match store.get(&keys::node(at, hash)).await {
        Ok(bytes) => Ok(bytes),
        Err(StoreError::NotFound { .. }) => Err(IndexError::Missing {
            what: format!("node {hash} of {at}"),
        }),
        Err(other) => Err(other.into()),
    }
}
