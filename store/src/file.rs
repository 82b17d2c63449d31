//! `file:///dir`: objects as files, for one machine or a shared file system with hard links.
//!
//! A put writes a file of its own below [`disk::STAGING`], syncs it, links it to its name (which fails if the name is
//! taken: that is put-if-absent), and syncs the directory. A crash at any point leaves either nothing under the name
//! or all of it, and at worst a file in the staging folder:
//!
//! | case | staged file | linked | directory synced | after a crash |
//! |------|-------------|--------|------------------|---------------|
//! | A    | torn        | no     | -                | absent; the staged file is swept a day later |
//! | B    | whole       | no     | -                | absent; as A |
//! | C    | whole       | yes    | no               | there or not, but whole: the put had not answered |
//! | D    | whole       | yes    | yes              | there |
//!
//! The staging folder also marks the directory as the archive's. Once it has been seen there, a directory without it is taken for
//! gone and not for empty: the mount point of a file system that is no longer mounted must not get commits of its own.
//!
//! The library `object_store` has a local store too. It stages beside the name, so that a crash leaves strange files
//! among the Parquet ones that SQL engines look at, and it wants the whole body in memory.

mod disk;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use self::disk::Disk;
use crate::counters::Counters;
use crate::listing::PAGE_KEYS_MAX;
use crate::{Body, Digest, Key, ListPage, Put, Store, StoreError, Usage};

/// Objects below one directory.
#[derive(Debug)]
pub struct FileStore {
    url: String,
    disk: Arc<Disk>,
    counters: Counters,
}

/// A network file system can hang for ever. The thread can't be stopped, but the caller goes on.
const DEADLINE: Duration = Duration::from_secs(60);
/// A disk slower than this is as good as gone.
const BYTES_PER_SECOND_MIN: u64 = 1024 * 1024;

impl FileStore {
    /// The store below `root`, an absolute path. With `create`, makes the directory if it is not there, and sweeps what
    /// crashes left in the staging folder more than a day ago.
    pub async fn open(root: &Path, create: bool) -> std::io::Result<FileStore> {
        let root = root.to_owned();
        let url = format!("file://{}", root.display());
        let open = move || Disk::open(root, create);
        let disk = tokio::task::spawn_blocking(open)
            .await
            .map_err(std::io::Error::other)??;
        Ok(FileStore {
            url,
            disk: Arc::new(disk),
            counters: Counters::default(),
        })
    }

    /// Runs `work` on a thread of its own; `bytes` is what it may have to move.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &str,
        bytes: u64,
        work: impl FnOnce(&Disk) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let disk = Arc::clone(&self.disk);
        let deadline = DEADLINE + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
        let done =
            tokio::time::timeout(deadline, tokio::task::spawn_blocking(move || work(&disk))).await;
        let unavailable = |source| StoreError::Unavailable {
            what: what.to_owned(),
            source,
        };
        match done {
            Ok(Ok(result)) => result,
            Ok(Err(join)) => Err(unavailable(join.into())),
            Err(elapsed) => Err(unavailable(elapsed.into())),
        }
    }

    async fn page(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        self.counters.read_request();
        let prefix = prefix.to_owned();
        let what = format!("listing of {prefix:?}");
        self.blocking(&what, 0, move |disk| {
            disk.list(&prefix, recursive, token, limit)
        })
        .await
    }
}

#[async_trait]
impl Store for FileStore {
    fn url(&self) -> &str {
        &self.url
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.counters.read_request();
        let name = key.clone();
        // The size is not known yet: as long as the largest segment may take.
        let bytes = self
            .blocking(&format!("get of {key}"), 1 << 30, move |disk| {
                disk.read(&name, None)
            })
            .await?;
        self.counters.read_bytes(bytes.len());
        Ok(bytes)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.counters.read_request();
        let name = key.clone();
        let len = range.end.saturating_sub(range.start);
        let read = move |disk: &Disk| disk.read(&name, Some(range));
        let bytes = self.blocking(&format!("get of {key}"), len, read).await?;
        self.counters.read_bytes(bytes.len());
        Ok(bytes)
    }

    async fn put_if_absent(
        &self,
        key: &Key,
        body: Body,
        digest: Digest,
    ) -> Result<Put, StoreError> {
        self.counters.write_request();
        let name = key.clone();
        let len = body.len();
        let put = self
            .blocking(&format!("put of {key}"), len, move |disk| {
                disk.put(&name, &body, &digest)
            })
            .await?;
        if put == Put::Created {
            self.counters.wrote_bytes(len);
        }
        Ok(put)
    }

    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError> {
        self.page(prefix, recursive, token, PAGE_KEYS_MAX).await
    }

    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError> {
        self.page(prefix, true, None, usize::from(limit)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.counters.write_request();
        let name = key.clone();
        self.blocking(&format!("deletion of {key}"), 0, move |disk| {
            disk.delete(&name)
        })
        .await
    }

    fn lists_in_key_order(&self) -> bool {
        true
    }

    fn usage(&self) -> Usage {
        self.counters.usage()
    }
}
