//! `memory://`: a store that lives as long as its last handle. For tests and for trying things; each one opened is
//! empty and of its own.
//!
//! Written here rather than taken from a library because the tests of the index run many thousand programs on it, and
//! because its listings are to come in pages as those of the real stores do.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use async_trait::async_trait;
use bytes::Bytes;

use crate::body::{check_digest, read_body, too_short};
use crate::counters::Counters;
use crate::listing::{PAGE_KEYS_MAX, Pager, Step};
use crate::{Body, Digest, Key, ListPage, Put, Store, StoreError, Usage};

/// Objects in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: RwLock<BTreeMap<String, Bytes>>,
    counters: Counters,
}

impl MemoryStore {
    /// An empty one.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    fn objects(&self) -> RwLockReadGuard<'_, BTreeMap<String, Bytes>> {
        // A panic elsewhere can't leave the map half changed: each change is one insert or one remove.
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.counters.read_request();
        self.objects()
            .get(key.as_str())
            .cloned()
            .ok_or_else(|| StoreError::NotFound { key: key.clone() })
    }

    fn page(&self, prefix: &str, recursive: bool, token: Option<String>, limit: usize) -> ListPage {
        self.counters.read_request();
        let mut pager = Pager::new(prefix, recursive, token, limit);
        let objects = self.objects();
        let mut from = pager.start();
        // One `range` for each folder that is jumped, so that a deep tree is not walked key by key.
        'jump: loop {
            for (name, body) in objects.range(from.clone()..) {
                match pager.offer(name, body.len() as u64) {
                    Step::Next => {}
                    Step::JumpTo(next) => {
                        from = next;
                        continue 'jump;
                    }
                    Step::Done => break 'jump,
                }
            }
            break;
        }
        pager.finish()
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> &str {
        "memory://"
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        let bytes = self.find(key)?;
        self.counters.read_bytes(bytes.len());
        Ok(bytes)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        let bytes = self.find(key)?;
        let bounds = usize::try_from(range.start)
            .ok()
            .zip(usize::try_from(range.end).ok());
        match bounds {
            Some((start, end)) if start <= end && end <= bytes.len() => {
                self.counters.read_bytes(end - start);
                Ok(bytes.slice(start..end))
            }
            _ => Err(too_short(key, &range, Some(bytes.len() as u64))),
        }
    }

    async fn put_if_absent(
        &self,
        key: &Key,
        body: Body,
        digest: Digest,
    ) -> Result<Put, StoreError> {
        self.counters.write_request();
        let bytes = read_body(key, body).await?;
        check_digest(key, &bytes, &digest).await?;
        self.counters.wrote_bytes(bytes.len() as u64);
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        if objects.contains_key(key.as_str()) {
            return Ok(Put::Refused);
        }
        objects.insert(key.as_str().to_owned(), bytes);
        Ok(Put::Created)
    }

    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError> {
        Ok(self.page(prefix, recursive, token, PAGE_KEYS_MAX))
    }

    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError> {
        Ok(self.page(prefix, true, None, usize::from(limit)))
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.counters.write_request();
        self.objects
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key.as_str());
        Ok(())
    }

    fn lists_in_key_order(&self) -> bool {
        true
    }

    fn usage(&self) -> Usage {
        self.counters.usage()
    }
}
