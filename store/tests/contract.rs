//! The contract suite on the stores that need no server, the probe, and stores that must fail both.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use everlog_store::contract::{Rounds, check_all};
use everlog_store::{
    Body, Digest, Key, ListPage, MemoryStore, OpenError, ProbeError, Put, Store, StoreError,
    StoreOptions, Usage, digest_of, open, probe, probe_read_only,
};

async fn file_store(dir: &tempfile::TempDir) -> Arc<dyn Store> {
    let url = format!("file://{}/some where/deep", dir.path().display()).replace(' ', "%20");
    open(&url, StoreOptions::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_contract() {
    let store = open("memory://", StoreOptions::default()).await.unwrap();
    check_all(
        &store,
        Rounds {
            small: 200,
            large: 20,
        },
    )
    .await
    .unwrap();
    assert!(probe(store.as_ref()).await.unwrap().warnings.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_keep_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let store = file_store(&dir).await;
    check_all(&store, Rounds::default()).await.unwrap();
    assert!(probe(store.as_ref()).await.unwrap().warnings.is_empty());
    let staged = std::fs::read_dir(dir.path().join("some where/deep/.staging~"))
        .unwrap()
        .count();
    assert_eq!(staged, 0, "staged files are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_leaves_nothing_and_the_read_only_one_writes_nothing() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    probe_read_only(store.as_ref()).await.unwrap();
    assert_eq!(store.usage().write_requests, 0);
    probe(store.as_ref()).await.unwrap();
    assert_eq!(store.list("", true, None).await.unwrap().objects, []);
}

/// Ways in which real stores fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// The header If-None-Match is not known.
    IgnoresCondition,
    /// Looks, and writes later.
    LooksFirst,
    /// 403 for what is not there.
    HidesAbsence,
    /// Lists one page and says it is all.
    CutsListings,
}

#[derive(Debug)]
struct Flawed {
    inner: MemoryStore,
    flaw: Flaw,
}

#[async_trait]
impl Store for Flawed {
    fn url(&self) -> &str {
        "memory://"
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        match self.inner.get(key).await {
            Err(StoreError::NotFound { .. }) if self.flaw == Flaw::HidesAbsence => {
                Err(StoreError::Refused {
                    what: format!("get of {key}"),
                    remedy: "allow s3:ListBucket".to_owned(),
                    source: "status 403".into(),
                })
            }
            other => other,
        }
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.get_range(key, range).await
    }

    async fn put_if_absent(
        &self,
        key: &Key,
        body: Body,
        digest: Digest,
    ) -> Result<Put, StoreError> {
        if self.flaw == Flaw::LooksFirst && self.inner.get(key).await.is_ok() {
            return Ok(Put::Refused);
        }
        if self.flaw == Flaw::LooksFirst {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        if matches!(self.flaw, Flaw::LooksFirst | Flaw::IgnoresCondition) {
            self.inner.delete(key).await?;
        }
        self.inner.put_if_absent(key, body, digest).await
    }

    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError> {
        let mut page = self.inner.list(prefix, recursive, token).await?;
        if self.flaw == Flaw::CutsListings {
            page.next = None;
        }
        Ok(page)
    }

    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError> {
        self.inner.list_first(prefix, limit).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    fn lists_in_key_order(&self) -> bool {
        true
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flawed_stores_fail_the_contract_and_the_probe() {
    for flaw in [
        Flaw::IgnoresCondition,
        Flaw::LooksFirst,
        Flaw::HidesAbsence,
        Flaw::CutsListings,
    ] {
        let store: Arc<dyn Store> = Arc::new(Flawed {
            inner: MemoryStore::new(),
            flaw,
        });
        let broken = check_all(
            &store,
            Rounds {
                small: 20,
                large: 0,
            },
        )
        .await
        .unwrap_err();
        let probed = probe(store.as_ref()).await;
        match flaw {
            Flaw::IgnoresCondition | Flaw::LooksFirst => {
                assert!(
                    matches!(probed, Err(ProbeError::Unfit { .. })),
                    "{flaw:?}: {probed:?}"
                );
                assert!(probed.unwrap_err().to_string().contains("If-None-Match"));
            }
            Flaw::HidesAbsence => {
                assert!(
                    matches!(probed, Err(ProbeError::Refused { .. })),
                    "{probed:?}"
                );
                assert!(probed.unwrap_err().to_string().contains("s3:ListBucket"));
            }
            // Only a thousand objects show it.
            Flaw::CutsListings => {
                assert!(broken.to_string().contains("keys are listed"), "{broken}")
            }
        }
    }
}

#[tokio::test]
async fn a_file_store_shows_neither_staged_files_nor_what_is_no_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = file_store(&dir).await;
    let root = dir.path().join("some where/deep");
    let key = Key::new("data/a").unwrap();
    assert_eq!(put(&store, &key, b"x").await.unwrap(), Put::Created);
    std::fs::write(root.join(".staging~/left by a crash"), "y").unwrap();
    std::fs::write(root.join("data/not a key"), "y").unwrap();
    std::fs::create_dir_all(root.join("data/empty/folder")).unwrap();
    let all = store.list("", true, None).await.unwrap();
    assert_eq!(all.objects, [(key, 1)]);
    let page = store.list("data", false, None).await.unwrap();
    assert_eq!((page.objects.len(), page.folders.len()), (1, 0), "{page:?}");
    let folder = store.get(&Key::new("data/empty").unwrap()).await;
    assert!(
        matches!(folder, Err(StoreError::NotFound { .. })),
        "{folder:?}"
    );
}

/// What used to be at stake: an unmounted directory looks like an archive without objects, and history is skipped.
#[tokio::test]
async fn a_directory_that_vanished_is_not_an_empty_archive() {
    let dir = tempfile::tempdir().unwrap();
    let store = file_store(&dir).await;
    std::fs::remove_dir_all(dir.path().join("some where")).unwrap();
    let key = Key::new("everlog.json").unwrap();
    assert!(matches!(
        store.get(&key).await,
        Err(StoreError::Unavailable { .. })
    ));
    assert!(matches!(
        store.list("", true, None).await,
        Err(StoreError::Unavailable { .. })
    ));
    assert!(matches!(
        put(&store, &key, b"x").await,
        Err(StoreError::Unavailable { .. })
    ));
}

#[tokio::test]
async fn a_read_only_file_store_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/absent", dir.path().display());
    let options = StoreOptions {
        read_only: true,
        ..StoreOptions::default()
    };
    let error = open(&url, options).await.unwrap_err();
    // It used to be told like a directory that may not be read, though whoever archives has only to make it.
    assert!(matches!(error, OpenError::Absent { .. }), "{error}");
    assert!(!dir.path().join("absent").exists());
    std::fs::write(dir.path().join("a-file"), "x").unwrap();
    let url = format!("file://{}/a-file", dir.path().display());
    let options = StoreOptions {
        read_only: true,
        ..StoreOptions::default()
    };
    let error = open(&url, options).await.unwrap_err();
    assert!(error.to_string().contains("give a directory"), "{error}");
}

#[tokio::test]
async fn old_staged_files_are_swept_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("some where/deep");
    drop(file_store(&dir).await);
    let (old, new) = (root.join(".staging~/old"), root.join(".staging~/new"));
    std::fs::write(&new, "x").unwrap();
    let file = std::fs::File::create(&old).unwrap();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
    file.set_modified(long_ago).unwrap();
    drop(file_store(&dir).await);
    assert!(!old.exists() && new.exists());
}

async fn put(store: &Arc<dyn Store>, key: &Key, bytes: &'static [u8]) -> Result<Put, StoreError> {
    store
        .put_if_absent(
            key,
            Body::Bytes(Bytes::from_static(bytes)),
            digest_of(bytes),
        )
        .await
}
