//! Nodes on the local disk (sled), so that a restart does not read the index anew. Nothing here may fail a read: what
//! goes wrong is logged once and the cache is emptied or left out.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use everlog_format::{Hash, contain_panic};
use tracing::warn;

/// Bytes of nodes before the cache starts over. 4 million segments of one partition make 1.3 GiB of nodes, but a reader
/// wants few of them.
const MAX_BYTES: u64 = 256 << 20;
/// sled gives space back late; above this many times the bound on disk the folder is made anew at the next start.
const ON_DISK_FACTOR: u64 = 2;
/// sled's own page cache: small, because decoded nodes are kept above.
const SLED_CACHE_BYTES: u64 = 8 << 20;
/// The folder below the one that the operator named: only this one is ever removed.
pub(crate) const FOLDER: &str = "nodes-1";

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct DiskCache(Arc<Inner>);

struct Inner {
    db: sled::Db,
    bytes: AtomicU64,
    max_bytes: u64,
    /// After a failure nothing is asked of it any more until the next start, which empties it.
    broken: AtomicBool,
    marker: PathBuf,
}

impl DiskCache {
    /// Opens the cache below `dir`, empty if what lies there is damaged; `None` if it cannot be had (another process has
    /// it, the disk is read-only): reading works without it.
    pub(crate) async fn open(dir: &Path) -> Option<DiskCache> {
        DiskCache::open_bounded(dir, MAX_BYTES).await
    }

    /// [`DiskCache::open`] with another bound, in bytes of nodes.
    pub(crate) async fn open_bounded(dir: &Path, max_bytes: u64) -> Option<DiskCache> {
        let folder = dir.join(FOLDER);
        tokio::task::spawn_blocking(move || open(&folder, max_bytes))
            .await
            .ok()
            .flatten()
    }

    pub(crate) async fn get(&self, hash: Hash) -> Option<Bytes> {
        self.with(move |inner| inner.db.get(hash.as_bytes()))
            .await?
            .map(|found| Bytes::copy_from_slice(&found))
    }

    pub(crate) async fn put(&self, hash: Hash, bytes: Bytes) {
        let put = move |inner: &Inner| {
            let len = bytes.len() as u64;
            if inner.max_bytes < inner.bytes.fetch_add(len, Ordering::Relaxed) + len {
                inner.db.clear()?;
                inner.bytes.store(len, Ordering::Relaxed);
            }
            inner.db.insert(hash.as_bytes(), bytes.as_ref())
        };
        self.with(put).await;
    }

    pub(crate) async fn remove(&self, hash: Hash) {
        self.with(move |inner| inner.db.remove(hash.as_bytes()))
            .await;
    }

    /// Runs `work` where it may block. An error or a panic of sled's breaks the cache, never its user.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, sled::Error> + Send + 'static,
    ) -> Option<T> {
        if self.0.broken.load(Ordering::Relaxed) {
            return None;
        }
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let done = contain_panic(|| work(&inner));
            if !matches!(done, Ok(Ok(_))) && !inner.broken.swap(true, Ordering::Relaxed) {
                let error = done
                    .as_ref()
                    .ok()
                    .and_then(|r| r.as_ref().err())
                    .map(|e| e as &dyn Error);
                warn!(error, "the local node cache is broken, going on without it");
                mark_broken(&inner.marker);
            }
            done
        })
        .await;
        done.ok()?.ok()?.ok()
    }
}

/// Marks all caches that this process has opened as broken, so that the next start empties them. For a process that is
/// about to end because of a panic that nobody contains. It may be one of sled's own threads ("sled-io-N" and "log flusher" in
/// sled 0.34) that met damage: left alone, each start would meet the same.
pub fn distrust_disk_caches() {
    MARKERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .for_each(|marker| mark_broken(marker));
}

/// The next start sees the marker and begins with an empty cache. If even this fails, sled's own checks are what is left.
pub(crate) fn mark_broken(marker: &Path) {
    let _ = std::fs::write(marker, b"");
}

/// Where the cache in `folder` has its marker.
pub(crate) fn marker_of(folder: &Path) -> PathBuf {
    folder.with_extension("broken")
}

/// Of all caches that were opened in this process, few as they are.
static MARKERS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn open(folder: &Path, max_bytes: u64) -> Option<DiskCache> {
    let marker = marker_of(folder);
    // Before sled sees a byte of it: its threads read, too.
    MARKERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(marker.clone());
    if marker.exists() && empty(folder) {
        let _ = std::fs::remove_file(&marker);
    }
    let db = match open_sled(folder, max_bytes) {
        Ok(db) => db,
        Err(Failure::Damaged) => {
            warn!(folder = %folder.display(), "the local node cache is damaged, starting with an empty one");
            if !empty(folder) {
                return None;
            }
            open_sled(folder, max_bytes).ok()?
        }
        Err(Failure::NotNow(error)) => {
            warn!(error = &error as &dyn Error, folder = %folder.display(), "going on without a local node cache");
            return None;
        }
    };
    let bytes = AtomicU64::new(db.size_on_disk().unwrap_or(0).min(max_bytes));
    Some(DiskCache(Arc::new(Inner {
        db,
        bytes,
        max_bytes,
        broken: AtomicBool::new(false),
        marker,
    })))
}

enum Failure {
    /// Throwing the folder away helps.
    Damaged,
    /// It may be somebody else's at the moment: leave it alone.
    NotNow(sled::Error),
}

fn open_sled(folder: &Path, max_bytes: u64) -> Result<sled::Db, Failure> {
    let open = || {
        sled::Config::new()
            .path(folder)
            .cache_capacity(SLED_CACHE_BYTES)
            .mode(sled::Mode::HighThroughput)
            .open()
    };
    // sled panics on some damaged files.
    match contain_panic(open) {
        Ok(Ok(db))
            if db
                .size_on_disk()
                .is_ok_and(|bytes| max_bytes.saturating_mul(ON_DISK_FACTOR) < bytes) =>
        {
            Err(Failure::Damaged)
        }
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error @ sled::Error::Io(_))) => Err(Failure::NotNow(error)),
        Ok(Err(_)) | Err(_) => Err(Failure::Damaged),
    }
}

fn empty(folder: &Path) -> bool {
    match std::fs::remove_dir_all(folder) {
        Ok(()) => true,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => {
            warn!(error = &error as &dyn Error, folder = %folder.display(), "cannot empty the local node cache");
            false
        }
    }
}
