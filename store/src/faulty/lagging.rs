//! A copy of a store that is behind.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rand::Rng;

use crate::{Body, Digest, Key, ListPage, Put, Store, StoreError, Usage};

/// A read-only copy that is behind: it shows only the keys that have arrived. Puts and deletes are refused.
///
/// Objects never change, so a copy that is behind can lack keys but never show other bytes.
#[derive(Debug)]
pub struct LaggingReader {
    source: Arc<dyn Store>,
    arrived: Mutex<BTreeSet<Key>>,
}

impl LaggingReader {
    /// Nothing has arrived yet.
    pub fn new(source: Arc<dyn Store>) -> LaggingReader {
        LaggingReader {
            source,
            arrived: Mutex::new(BTreeSet::new()),
        }
    }

    /// `key` has arrived.
    pub fn arrive(&self, key: Key) {
        self.arrived().insert(key);
    }

    /// Each key that is there and has not arrived does so with `chance` (0.0 to 1.0), one by one, in any order.
    ///
    /// Fails as the source's listing does.
    pub async fn arrive_some(
        &self,
        rng: &mut (dyn rand::RngCore + Send),
        chance: f64,
    ) -> Result<(), StoreError> {
        let mut token = None;
        loop {
            let page = self.source.list("", true, token).await?;
            for (key, _) in page.objects {
                if rng.random_bool(chance) {
                    self.arrive(key);
                }
            }
            token = page.next;
            if token.is_none() {
                return Ok(());
            }
        }
    }

    fn arrived(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, key: &Key) -> Result<(), StoreError> {
        if self.arrived().contains(key) {
            Ok(())
        } else {
            Err(StoreError::NotFound { key: key.clone() })
        }
    }

    fn shown(&self, prefix: &str, mut page: ListPage) -> ListPage {
        let arrived = self.arrived();
        let root = crate::listing::with_slash(prefix);
        page.objects.retain(|(key, _)| arrived.contains(key));
        page.folders.retain(|folder| {
            let start = format!("{root}{folder}/");
            arrived.iter().any(|key| key.as_str().starts_with(&start))
        });
        page
    }

    fn read_only(name: &Key) -> StoreError {
        StoreError::Refused {
            what: format!("change of {name}"),
            remedy: "write to the archive's own region".to_owned(),
            source: "a lagging reader takes no writes".into(),
        }
    }
}

#[async_trait]
impl Store for LaggingReader {
    fn url(&self) -> &str {
        self.source.url()
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.check(key)?;
        self.source.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.check(key)?;
        self.source.get_range(key, range).await
    }

    async fn put_if_absent(
        &self,
        key: &Key,
        _body: Body,
        _digest: Digest,
    ) -> Result<Put, StoreError> {
        Err(LaggingReader::read_only(key))
    }

    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError> {
        Ok(self.shown(prefix, self.source.list(prefix, recursive, token).await?))
    }

    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError> {
        // Pages of the source, until enough of what has arrived is found.
        let (mut found, mut token) = (ListPage::default(), None);
        loop {
            let page = self.source.list(prefix, true, token).await?;
            token = page.next.clone();
            found.objects.extend(self.shown(prefix, page).objects);
            let wanted = usize::from(limit).max(1);
            if found.objects.len() > wanted || token.is_none() {
                let more = found.objects.len() > wanted || token.is_some();
                found.objects.truncate(wanted);
                found.next = found
                    .objects
                    .last()
                    .filter(|_| more)
                    .map(|(key, _)| key.to_string());
                return Ok(found);
            }
        }
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        Err(LaggingReader::read_only(key))
    }

    fn lists_in_key_order(&self) -> bool {
        self.source.lists_in_key_order()
    }

    fn usage(&self) -> Usage {
        self.source.usage()
    }
}
