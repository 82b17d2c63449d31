//! The program's store as one actor sees it: each request is two steps, so that anything can come between the request,
//! its effect and its answer.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use everlog_store::{Body, Digest, Key, ListPage, Put, Store, StoreError, Usage};
use rand::Rng;

use super::world::{Delayed, Owner, World};

/// Lets the scheduler choose who goes on.
pub(super) fn step() -> Step {
    Step(false)
}

pub(super) struct Step(bool);

impl Future for Step {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.0 {
            return Poll::Ready(());
        }
        self.0 = true;
        Poll::Pending
    }
}

#[derive(Debug)]
pub(super) struct SimStore {
    pub(super) world: World,
    pub(super) owner: Owner,
    /// Sees objects late, each by itself.
    pub(super) replica: bool,
}

fn away(what: &str) -> StoreError {
    StoreError::Unavailable {
        what: what.to_owned(),
        source: "a fault of the program".into(),
    }
}

/// Counts a put from its request to its effect, even if its future is dropped.
struct UnderWay<'a>(&'a World);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state().puts_under_way -= 1;
    }
}

impl SimStore {
    async fn begin(&self, what: &str) -> Result<(), StoreError> {
        step().await;
        let mut state = self.world.state();
        let pause = Duration::from_millis(state.rng.random_range(0..400));
        state.now += pause;
        if state.faulty() {
            Err(away(what))
        } else {
            Ok(())
        }
    }

    fn find(&self, key: &Key) -> Result<Bytes, StoreError> {
        let state = self.world.state();
        let late = self.replica && state.visible_at.get(key).is_some_and(|at| state.now < *at);
        match state.objects.get(key) {
            Some(bytes) if !late => Ok(bytes.clone()),
            _ => Err(StoreError::NotFound { key: key.clone() }),
        }
    }

    /// The effect of a put and its answer, faults included.
    fn put(&self, put: Delayed) -> Result<Put, StoreError> {
        let mut state = self.world.state();
        let what = put.key.to_string();
        if !state.faulty() {
            return Ok(if state.put(put) {
                Put::Created
            } else {
                Put::Refused
            });
        }
        match state.rng.random_range(0..8) {
            // Not carried out.
            0 => Err(away(&what)),
            // Carried out, the answer lost.
            1 => {
                state.put(put);
                Err(away(&what))
            }
            // Carried out, and the repeated request was refused.
            2 => {
                state.put(put);
                Ok(Put::Refused)
            }
            // A conflict with a rival whose own put then fails.
            3 => Ok(Put::Refused),
            // Still on its way when the answer is given up.
            4..=6 => {
                state.delayed.push(put);
                Err(away(&what))
            }
            // Carried out, and the repeated request lacked a permission for a moment.
            _ => {
                state.put(put);
                let remedy = "wait".to_owned();
                Err(StoreError::Refused {
                    what,
                    remedy,
                    source: "a fault of the program".into(),
                })
            }
        }
    }
}

#[async_trait]
impl Store for SimStore {
    fn url(&self) -> &str {
        "sim://"
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.begin(key.as_str()).await?;
        let found = self.find(key);
        step().await;
        found
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        let bytes = self.get(key).await?;
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let part = bytes.get(index(range.start)..index(range.end)).map(|_| ());
        part.map(|()| bytes.slice(index(range.start)..index(range.end)))
            .ok_or_else(|| StoreError::Refused {
                what: key.to_string(),
                remedy: String::new(),
                source: "too short".into(),
            })
    }

    async fn put_if_absent(
        &self,
        key: &Key,
        body: Body,
        digest: Digest,
    ) -> Result<Put, StoreError> {
        let Body::Bytes(bytes) = body else {
            return Err(away("files are not simulated"));
        };
        if everlog_store::digest_of(&bytes) != digest {
            self.world.fail(format!("the digest of {key} is wrong"));
        }
        let intent = self.world.state().intents.get(&self.owner).cloned();
        let put = Delayed {
            key: key.clone(),
            bytes,
            owner: self.owner,
            intent,
        };
        self.world.state().puts_under_way += 1;
        let under_way = UnderWay(&self.world);
        step().await;
        let answer = self.put(put);
        drop(under_way);
        step().await;
        answer
    }

    async fn list(
        &self,
        prefix: &str,
        _recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError> {
        self.begin(prefix).await?;
        let from: usize = token.and_then(|t| t.parse().ok()).unwrap_or(0);
        let mut keys: Vec<Key> = self.listed(prefix);
        if !self.lists_in_key_order() {
            // Any order will do; this one is the wrong way round.
            keys.reverse();
        }
        let page_len = 5;
        let next = (from + page_len < keys.len()).then(|| (from + page_len).to_string());
        let objects = keys
            .into_iter()
            .skip(from)
            .take(page_len)
            .map(|key| (key, 1))
            .collect();
        Ok(ListPage {
            objects,
            folders: Vec::new(),
            next,
        })
    }

    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError> {
        self.begin(prefix).await?;
        let keys = self.listed(prefix);
        // Fewer than asked for, as servers may.
        let limit = usize::from(limit.min(3));
        let next = (limit < keys.len()).then(|| limit.to_string());
        let objects = keys.into_iter().take(limit).map(|key| (key, 1)).collect();
        Ok(ListPage {
            objects,
            folders: Vec::new(),
            next,
        })
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.begin(key.as_str()).await?;
        self.world.state().objects.remove(key);
        Ok(())
    }

    fn lists_in_key_order(&self) -> bool {
        self.world.state().keys_in_order
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }
}

impl SimStore {
    fn listed(&self, prefix: &str) -> Vec<Key> {
        let state = self.world.state();
        let below = format!("{prefix}/");
        let late =
            |key: &Key| self.replica && state.visible_at.get(key).is_some_and(|at| state.now < *at);
        state
            .objects
            .keys()
            .filter(|key| key.as_str().starts_with(&below) && !late(key))
            .cloned()
            .collect()
    }
}
