//! What every backend must keep, as one suite: for tests of this crate and for those that start real servers.
//!
//! It works below a folder with a random name, so that it can run beside others in one bucket, and leaves its objects
//! there. It says what is broken instead of panicking.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::Barrier;

use crate::body::digest_of;
use crate::{Body, Key, Put, Store, StoreError, chain};

/// How long to race: rounds of 20 writers for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// With 64 bytes each.
    pub small: usize,
    /// With 1 MiB each.
    pub large: usize,
}

impl Default for Rounds {
    fn default() -> Rounds {
        Rounds {
            small: 50,
            large: 10,
        }
    }
}

const WRITERS: u8 = 20;
/// Of one name, as long as each meets its own repetition.
const PUTS_MAX: usize = 5;
/// More than a page of S3 (1,000).
const LISTED_KEYS: usize = 1_150;

/// A promise that was not kept.
#[derive(Debug, thiserror::Error)]
#[error("the store breaks its contract: {0}")]
pub struct Broken(String);

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Broken {
        Broken(format!("unexpected error: {}", chain(&error)))
    }
}

fn demand(kept: bool, promise: impl FnOnce() -> String) -> Result<(), Broken> {
    if kept { Ok(()) } else { Err(Broken(promise())) }
}

/// Checks all of it.
pub async fn check_all(store: &Arc<dyn Store>, rounds: Rounds) -> Result<(), Broken> {
    let root = format!("contract/{:016x}", rand::random::<u64>());
    let suite = Suite { store, root };
    suite.absent_objects_are_not_found().await?;
    suite.what_was_put_is_read().await?;
    suite.files_are_put_whole().await?;
    suite.an_object_is_never_overwritten().await?;
    suite.other_bytes_than_hashed_are_refused().await?;
    suite.ranges_are_exact().await?;
    suite.listings_are_complete().await?;
    suite.a_deleted_name_is_free_again().await?;
    suite.one_writer_wins(64, rounds.small).await?;
    suite.one_writer_wins(1024 * 1024, rounds.large).await
}

struct Suite<'a> {
    store: &'a Arc<dyn Store>,
    root: String,
}

impl Suite<'_> {
    fn key(&self, name: &str) -> Result<Key, Broken> {
        Key::new(format!("{}/{name}", self.root)).map_err(|error| Broken(error.to_string()))
    }

    async fn put(&self, key: &Key, bytes: impl Into<Bytes>) -> Result<Put, StoreError> {
        let bytes = bytes.into();
        let digest = digest_of(&bytes);
        self.store
            .put_if_absent(key, Body::Bytes(bytes), digest)
            .await
    }

    /// Puts under a name that nobody has.
    async fn put_new(&self, key: &Key, bytes: impl Into<Bytes>) -> Result<(), Broken> {
        let bytes = bytes.into();
        let body = Body::Bytes(bytes.clone());
        self.put_new_body(key, body, &bytes).await
    }

    /// The store may call it refused if it has repeated the request and met itself: then the object is there, or, after
    /// a conflict of the two, has to be put again.
    async fn put_new_body(&self, key: &Key, body: Body, bytes: &Bytes) -> Result<(), Broken> {
        let (digest, retried) = (digest_of(bytes), self.store.usage().retried_requests);
        for _ in 0..PUTS_MAX {
            let put = self.store.put_if_absent(key, body.clone(), digest);
            if put.await? == Put::Created {
                return Ok(());
            }
            let repeated = self.store.usage().retried_requests != retried;
            demand(repeated, || format!("the first put of {key} is refused"))?;
            match self.store.get(key).await {
                Ok(found) => {
                    return demand(found == bytes, || {
                        format!("after a refused first put, {key} holds other bytes")
                    });
                }
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Broken(format!(
            "{PUTS_MAX} puts of {key} are refused for nothing"
        )))
    }

    async fn absent_objects_are_not_found(&self) -> Result<(), Broken> {
        let key = self.key("absent/deep/down")?;
        for found in [
            self.store.get(&key).await,
            self.store.get_range(&key, 0..4).await,
        ] {
            let right = matches!(&found, Err(StoreError::NotFound { key: named }) if *named == key);
            demand(right, || format!("an absent object gives {found:?}"))?;
        }
        self.store.delete(&key).await?;
        let page = self.store.list(&self.root, true, None).await?;
        demand(
            page.objects.is_empty() && page.folders.is_empty() && page.next.is_none(),
            || format!("an empty prefix lists {page:?}"),
        )
    }

    async fn what_was_put_is_read(&self) -> Result<(), Broken> {
        for len in [0_usize, 1, 63, 64 * 1024, 3 * 1024 * 1024 + 1] {
            let key = self.key(&format!("put/len={len}"))?;
            let bytes = Bytes::from(pattern(len));
            self.put_new(&key, bytes.clone()).await?;
            let found = self.store.get(&key).await?;
            demand(found == bytes, || {
                format!("{len} bytes came back as {} or others", found.len())
            })?;
        }
        Ok(())
    }

    async fn files_are_put_whole(&self) -> Result<(), Broken> {
        let key = self.key("put/file.parquet")?;
        let bytes = Bytes::from(pattern(9 * 1024 * 1024 + 17));
        let digest = digest_of(&bytes);
        let path =
            std::env::temp_dir().join(format!("everlog-contract-{:032x}", rand::random::<u128>()));
        let local = |error: std::io::Error| Broken(format!("cannot write a local file: {error}"));
        tokio::fs::write(&path, &bytes).await.map_err(local)?;
        let len = bytes.len() as u64;
        let result = async {
            let body = |len| Body::File {
                path: path.clone(),
                len,
            };
            let longer = self.store.put_if_absent(&key, body(len + 1), digest).await;
            demand(matches!(longer, Err(StoreError::Refused { .. })), || {
                format!("a file that is shorter than announced gives {longer:?}")
            })?;
            self.put_new_body(&key, body(len), &bytes).await?;
            let again = self.store.put_if_absent(&key, body(len), digest).await?;
            demand(again == Put::Refused, || {
                format!("the same file again is {again:?}")
            })?;
            let found = self.store.get(&key).await?;
            demand(found == bytes, || {
                "a file came back with other bytes".to_owned()
            })
        }
        .await;
        tokio::fs::remove_file(&path).await.map_err(local)?;
        result?;
        let gone = self
            .store
            .put_if_absent(&self.key("put/gone")?, Body::File { path, len }, digest)
            .await;
        demand(matches!(gone, Err(StoreError::Refused { .. })), || {
            format!("a file that is gone gives {gone:?}")
        })
    }

    async fn an_object_is_never_overwritten(&self) -> Result<(), Broken> {
        let key = self.key("put/once")?;
        self.put_new(&key, "first").await?;
        let second = self.put(&key, "other").await?;
        let same = self.put(&key, "first").await?;
        demand((second, same) == (Put::Refused, Put::Refused), || {
            format!("more puts of one key are {second:?}, {same:?}")
        })?;
        let found = self.store.get(&key).await?;
        demand(found.as_ref() == b"first", || {
            format!("a refused put changed the object to {found:?}")
        })
    }

    async fn other_bytes_than_hashed_are_refused(&self) -> Result<(), Broken> {
        let key = self.key("put/damaged")?;
        let digest = digest_of(b"what was hashed");
        let put = self
            .store
            .put_if_absent(
                &key,
                Body::Bytes(Bytes::from_static(b"what was not")),
                digest,
            )
            .await;
        demand(matches!(put, Err(StoreError::Refused { .. })), || {
            format!("bytes with another hash give {put:?}")
        })?;
        let found = self.store.get(&key).await;
        demand(matches!(found, Err(StoreError::NotFound { .. })), || {
            "bytes with another hash were kept".to_owned()
        })
    }

    async fn ranges_are_exact(&self) -> Result<(), Broken> {
        let key = self.key("range")?;
        let bytes = pattern(100_000);
        self.put_new(&key, bytes.clone()).await?;
        for (start, end) in [
            (0, 100_000),
            (0, 1),
            (99_999, 100_000),
            (7, 70_000),
            (500, 500),
        ] {
            let found = self.store.get_range(&key, start as u64..end as u64).await?;
            let right = bytes.get(start..end).is_some_and(|wanted| wanted == found);
            demand(right, || {
                format!(
                    "bytes {start} to {end} came back as {} or others",
                    found.len()
                )
            })?;
        }
        for range in [99_999..100_001, 100_000..100_001, 200_000..300_000] {
            let found = self
                .store
                .get_range(&key, range.clone())
                .await
                .map(|bytes| bytes.len());
            demand(matches!(found, Err(StoreError::Refused { .. })), || {
                format!("a range {range:?} beyond gives {found:?}")
            })?;
        }
        Ok(())
    }

    async fn listings_are_complete(&self) -> Result<(), Broken> {
        // `-` and `.` sort before `/`, `0` after it.
        let mut names: Vec<String> = (0..LISTED_KEYS)
            .map(|n| format!("list/many/{n:05}"))
            .collect();
        let few = [
            "list/a",
            "list/a-b/x",
            "list/a.b",
            "list/ab/y",
            "list/aa/z/deep",
            "list/dt=2026-11-21/w",
            "list/many0",
        ];
        names.extend(few.map(str::to_owned));
        let put_one = |name: String| async move {
            let key = self.key(&name)?;
            self.put_new(&key, name).await
        };
        futures::stream::iter(names.clone())
            .map(put_one)
            .buffer_unordered(16)
            .try_collect::<()>()
            .await?;

        let (keys, folders) = self.list("list", true).await?;
        let wanted: BTreeSet<String> = names
            .iter()
            .map(|name| format!("{}/{name}", self.root))
            .collect();
        demand(keys == wanted && folders.is_empty(), || {
            format!(
                "{} of {} keys are listed, without {:?}; {} folders",
                keys.len(),
                wanted.len(),
                wanted.difference(&keys).take(5).collect::<Vec<_>>(),
                folders.len()
            )
        })?;
        let (keys, folders) = self.list("list", false).await?;
        let here: BTreeSet<String> = ["a", "a.b", "many0"]
            .map(|name| format!("{}/list/{name}", self.root))
            .into();
        let below: BTreeSet<String> = ["a-b", "aa", "ab", "dt=2026-11-21", "many"]
            .map(str::to_owned)
            .into();
        demand(keys == here && folders == below, || {
            format!("one level lists {keys:?} and {folders:?}")
        })?;
        let (keys, folders) = self.list("list/aa", false).await?;
        demand(
            keys.is_empty() && folders == BTreeSet::from(["z".to_owned()]),
            || format!("a folder with one folder lists {keys:?} and {folders:?}"),
        )?;
        let (keys, _) = self.list("list/man", true).await?;
        demand(keys.is_empty(), || {
            "a prefix that ends within a name lists objects".to_owned()
        })?;
        self.first_pages().await
    }

    async fn first_pages(&self) -> Result<(), Broken> {
        let prefix = format!("{}/list/many", self.root);
        for limit in [1_u16, 5, 1_000] {
            let page = self.store.list_first(&prefix, limit).await?;
            demand(
                page.objects.len() == usize::from(limit) && page.next.is_some(),
                || format!("the first {limit} keys are {}", page.objects.len()),
            )?;
            let sizes_right = page
                .objects
                .iter()
                .all(|(_, size)| *size == "list/many/00000".len() as u64);
            demand(sizes_right, || "a listing shows wrong sizes".to_owned())?;
            let expected = |n: usize| format!("{prefix}/{n:05}");
            let in_order = page
                .objects
                .iter()
                .enumerate()
                .all(|(n, (key, _))| key.as_str() == expected(n));
            demand(in_order || !self.store.lists_in_key_order(), || {
                "the first page does not hold the first keys".to_owned()
            })?;
        }
        let all = self
            .store
            .list_first(&format!("{}/list/aa", self.root), 1)
            .await?;
        demand(all.objects.len() == 1 && all.next.is_none(), || {
            format!("the only key of a folder is {all:?}")
        })
    }

    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
    ) -> Result<(BTreeSet<String>, BTreeSet<String>), Broken> {
        let prefix = format!("{}/{prefix}", self.root);
        let (mut keys, mut folders, mut token) = (BTreeSet::new(), BTreeSet::new(), None);
        for _ in 0..LISTED_KEYS {
            let page = self.store.list(&prefix, recursive, token).await?;
            for (key, _) in page.objects {
                demand(keys.insert(key.to_string()), || {
                    format!("{key} is listed twice")
                })?;
            }
            // A page may repeat a folder: those who read must take them as a set.
            folders.extend(page.folders);
            token = page.next;
            if token.is_none() {
                return Ok((keys, folders));
            }
        }
        Err(Broken("a listing does not end".to_owned()))
    }

    async fn a_deleted_name_is_free_again(&self) -> Result<(), Broken> {
        let key = self.key("deleted/it")?;
        self.put_new(&key, "one").await?;
        self.store.delete(&key).await?;
        self.store.delete(&key).await?;
        let found = self.store.get(&key).await;
        demand(matches!(found, Err(StoreError::NotFound { .. })), || {
            format!("a deleted object gives {found:?}")
        })?;
        let (keys, folders) = self.list("deleted", false).await?;
        demand(keys.is_empty() && folders.is_empty(), || {
            format!("a deleted object is listed: {keys:?}, {folders:?}")
        })?;
        self.put_new(&key, "two").await?;
        let found = self.store.get(&key).await?;
        demand(found.as_ref() == b"two", || {
            format!("after deletion and a new put: {found:?}")
        })
    }

    /// The promise that all else is built on.
    async fn one_writer_wins(&self, len: usize, rounds: usize) -> Result<(), Broken> {
        for round in 0..rounds {
            let key = self.key(&format!("race/{len}/{round}"))?;
            let barrier = Arc::new(Barrier::new(usize::from(WRITERS)));
            let retried = self.store.usage().retried_requests;
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    tokio::spawn(write(
                        Arc::clone(self.store),
                        key.clone(),
                        writer,
                        len,
                        Arc::clone(&barrier),
                    ))
                })
                .collect();
            let mut winners = Vec::new();
            for (writer, task) in writers.into_iter().enumerate() {
                let put = task.await.map_err(|error| Broken(error.to_string()))??;
                if put == Put::Created {
                    winners.push(writer);
                }
            }
            // A put that was repeated after a lost answer may have been refused because of itself.
            let repeated = self.store.usage().retried_requests != retried;
            demand(
                winners.len() == 1 || (winners.is_empty() && repeated),
                || format!("round {round} with {len} bytes has the winners {winners:?}"),
            )?;
            let reads = futures::future::join_all((0..4).map(|_| self.store.get(&key))).await;
            for read in reads {
                let read = read?;
                let writer = read.first().copied().unwrap_or(u8::MAX);
                let whole = read == vec![writer; len]
                    && winners.iter().all(|winner| *winner == usize::from(writer));
                demand(whole, || {
                    format!("round {round}: the winner is {winners:?}, read is {writer}")
                })?;
            }
        }
        Ok(())
    }
}

async fn write(
    store: Arc<dyn Store>,
    key: Key,
    writer: u8,
    len: usize,
    barrier: Arc<Barrier>,
) -> Result<Put, Broken> {
    let bytes = Bytes::from(vec![writer; len]);
    let digest = digest_of(&bytes);
    barrier.wait().await;
    Ok(store
        .put_if_absent(&key, Body::Bytes(bytes), digest)
        .await?)
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| u8::try_from((n * 31 + n / 251) % 256).unwrap_or_default())
        .collect()
}
