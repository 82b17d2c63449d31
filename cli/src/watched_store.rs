//! A store that remembers whether it is answering, for `/healthz` and the metrics. It asks nothing by itself: what the
//! services do anyway tells enough, and a process that does nothing has no trouble to report.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use everlog_store::{
    Body, Digest, Key, ListPage, ProbeError, ProbeReport, Put, Store, StoreError, Usage, chain,
    probe, probe_read_only,
};
use tokio::time::Instant;

/// One attempt that fails is everyday life in an object store. So many in a row, with no answer in between, are not.
const ATTEMPTS_MIN: u64 = 4;

/// Passes everything on to the store inside.
#[derive(Debug)]
pub(crate) struct WatchedStore {
    inner: Arc<dyn Store>,
    /// Requests that ended without an answer.
    unavailable: AtomicU64,
    /// Requests that were refused for good: credentials, permissions, an unknown bucket; also what is at fault on our side, such
    /// as a local file that cannot be uploaded.
    refused: AtomicU64,
    last_answer: Mutex<LastAnswer>,
    /// Why the last request got no answer; none once another has had one.
    silent_words: Mutex<Option<String>>,
    /// Since when requests of a kind are refused, and why the last one was. For each by itself: a store that lets us read may
    /// refuse every write.
    refused_since: Mutex<BTreeMap<Kind, (Instant, String)>>,
}

/// In what words the store's trouble was told last: the metrics have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreWords {
    /// Why it does not answer. `None` also while the first requests are still being repeated.
    pub(crate) silent: Option<String>,
    /// By kind of request, as the metrics name it: why it is refused.
    pub(crate) refused: BTreeMap<&'static str, String>,
}

/// Longer words are cut: what a store answers goes to whoever asks for the health.
const WORDS_MAX: usize = 600;

/// What an operator wants to read of it: the cause, and what helps.
fn words(error: &StoreError) -> String {
    let mut parts = Vec::new();
    if let StoreError::Refused { remedy, .. } = error {
        parts.push(remedy.clone());
    }
    parts.extend(std::error::Error::source(error).map(chain));
    // What a server answers may have lines of its own.
    let text = parts.join(": ");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(WORDS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// What a request wants; each is a right of its own with most stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Read,
    Write,
    List,
    Delete,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Read, Kind::Write, Kind::List, Kind::Delete];

    fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::List => "list",
            Kind::Delete => "delete",
        }
    }
}

#[derive(Debug)]
struct LastAnswer {
    at: Instant,
    /// How many attempts had failed by then.
    failed_attempts: u64,
    /// When the first request after it began. A store that nobody asks is not silent.
    asked: Option<Instant>,
}

impl LastAnswer {
    /// It comes now.
    fn new(failed_attempts: u64) -> LastAnswer {
        LastAnswer {
            at: Instant::now(),
            failed_attempts,
            asked: None,
        }
    }
}

impl WatchedStore {
    pub(crate) fn new(inner: Arc<dyn Store>) -> WatchedStore {
        WatchedStore {
            inner,
            unavailable: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            last_answer: Mutex::new(LastAnswer::new(0)),
            silent_words: Mutex::default(),
            refused_since: Mutex::default(),
        }
    }

    /// Looks whether the store can hold an archive, or only be read from. Of all its requests only the outcome counts here: it
    /// may be refused what nobody asks for later, such as to delete, and would be in trouble for it for ever.
    pub(crate) async fn probe(&self, writes: bool) -> Result<ProbeReport, ProbeError> {
        self.ask();
        let inner = self.inner.as_ref();
        let probed = match writes {
            true => probe(inner).await,
            false => probe_read_only(inner).await,
        };
        match &probed {
            Err(ProbeError::Unavailable { source, .. }) => {
                self.unavailable.fetch_add(1, Ordering::Relaxed);
                *self.silent_words() = Some(words(source));
            }
            Ok(_) | Err(ProbeError::Refused { .. } | ProbeError::Unfit { .. }) => self.answered(),
        }
        probed
    }

    /// For each kind of request: how long it has been refused, without one that was not in between.
    pub(crate) fn refusals(&self) -> [(&'static str, Option<Duration>); 4] {
        let since = self.refused_since();
        Kind::ALL.map(|kind| {
            let refused = since.get(&kind);
            (kind.name(), refused.map(|(since, _)| since.elapsed()))
        })
    }

    /// Why there is trouble, as far as there is any.
    pub(crate) fn words(&self) -> StoreWords {
        let refused = self.refused_since();
        let refused = refused
            .iter()
            .map(|(kind, (_, words))| (kind.name(), words.clone()));
        StoreWords {
            refused: refused.collect(),
            silent: self.silent_words().clone(),
        }
    }

    fn silent_words(&self) -> MutexGuard<'_, Option<String>> {
        self.silent_words
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn refused_since(&self) -> MutexGuard<'_, BTreeMap<Kind, (Instant, String)>> {
        self.refused_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that ended without an answer so far.
    pub(crate) fn unavailable_count(&self) -> u64 {
        self.unavailable.load(Ordering::Relaxed)
    }

    /// Requests that were refused so far.
    pub(crate) fn refused_count(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// While the store does not answer: since it was first asked after its last answer.
    pub(crate) fn silence(&self) -> Option<Duration> {
        let last = self.last_answer();
        let failed = self.failed_attempts().saturating_sub(last.failed_attempts);
        // Those that were under way when it last answered have been waited for since then.
        let since = last.asked.unwrap_or(last.at);
        (ATTEMPTS_MIN <= failed).then(|| since.elapsed())
    }

    /// A retry is an attempt that failed, and so is a request for which no retry helped.
    fn failed_attempts(&self) -> u64 {
        self.inner
            .usage()
            .retried_requests
            .saturating_add(self.unavailable_count())
    }

    /// A request begins.
    fn ask(&self) {
        self.last_answer().asked.get_or_insert_with(Instant::now);
    }

    fn last_answer(&self) -> MutexGuard<'_, LastAnswer> {
        self.last_answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn watched<T>(
        &self,
        kind: Kind,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.ask();
        let result = request.await;
        match &result {
            Err(err @ StoreError::Unavailable { .. }) => {
                self.unavailable.fetch_add(1, Ordering::Relaxed);
                *self.silent_words() = Some(words(err));
                return result;
            }
            Err(err @ StoreError::Refused { .. }) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                let mut refused = self.refused_since();
                let since = refused.get(&kind).map(|(since, _)| *since);
                refused.insert(kind, (since.unwrap_or_else(Instant::now), words(err)));
            }
            // That an object is not there is an answer like any other.
            Err(StoreError::NotFound { .. }) | Ok(_) => {
                self.refused_since().remove(&kind);
            }
        }
        self.answered();
        result
    }

    fn answered(&self) {
        *self.silent_words() = None;
        *self.last_answer() = LastAnswer::new(self.failed_attempts());
    }
}

#[async_trait]
impl Store for WatchedStore {
    fn url(&self) -> &str {
        self.inner.url()
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.watched(Kind::Read, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.watched(Kind::Read, self.inner.get_range(key, range))
            .await
    }

    async fn put_if_absent(
        &self,
        key: &Key,
        body: Body,
        digest: Digest,
    ) -> Result<Put, StoreError> {
        let put = self.inner.put_if_absent(key, body, digest);
        self.watched(Kind::Write, put).await
    }

    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError> {
        let list = self.inner.list(prefix, recursive, token);
        self.watched(Kind::List, list).await
    }

    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError> {
        let list = self.inner.list_first(prefix, limit);
        self.watched(Kind::List, list).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.watched(Kind::Delete, self.inner.delete(key)).await
    }

    fn lists_in_key_order(&self) -> bool {
        self.inner.lists_in_key_order()
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

#[cfg(test)]
mod tests {
    use everlog_store::MemoryStore;
    use everlog_store::faulty::{Fault, FaultyStore};

    use super::*;

    /// A watched store, what makes it fail, and a key that is not in it.
    fn watched_faulty() -> (Arc<FaultyStore>, WatchedStore, Key) {
        let faulty = Arc::new(FaultyStore::new(Arc::new(MemoryStore::default())));
        let store = WatchedStore::new(Arc::clone(&faulty) as Arc<dyn Store>);
        (faulty, store, Key::new("a").expect("a key"))
    }

    #[tokio::test]
    async fn silence_begins_after_some_failures_and_ends_with_an_answer() {
        let (faulty, store, key) = watched_faulty();
        assert!(store.get(&key).await.is_err(), "it is not there");

        faulty.on_operation(|_| Fault::Unavailable);
        for _ in 0..ATTEMPTS_MIN {
            assert_eq!(store.silence(), None);
            assert!(store.get(&key).await.is_err());
        }
        assert!(store.silence().is_some());
        assert!(store.words().silent.is_some(), "and why");

        faulty.on_operation(|_| Fault::Denied);
        assert!(store.get(&key).await.is_err());
        assert_eq!(store.silence(), None, "a refusal is an answer");
        assert_eq!(store.words().silent, None);
        assert_eq!((store.unavailable_count(), store.refused_count()), (4, 1));
    }

    #[tokio::test]
    async fn a_store_that_nobody_asked_was_not_silent_meanwhile() {
        let (faulty, store, key) = watched_faulty();
        assert!(store.get(&key).await.is_err(), "it is not there");
        tokio::time::sleep(Duration::from_millis(20)).await;

        let asked = Instant::now();
        faulty.on_operation(|_| Fault::Unavailable);
        for _ in 0..ATTEMPTS_MIN {
            assert!(store.get(&key).await.is_err());
        }
        let silence = store.silence().expect("it is silent");
        assert!(silence <= asked.elapsed(), "{silence:?}");
    }

    /// A store that refused everything was no trouble at all.
    #[tokio::test]
    async fn a_refusal_holds_until_a_request_of_its_kind_is_not_refused() {
        let (faulty, store, key) = watched_faulty();
        let refused = || {
            let kinds = store.refusals().into_iter();
            let refused = kinds.filter(|(_, time)| time.is_some());
            refused.map(|(kind, _)| kind).collect::<Vec<_>>()
        };
        faulty.on_operation(|_| Fault::Denied);
        assert!(store.get(&key).await.is_err() && store.list_first("", 1).await.is_err());
        assert_eq!(refused(), ["read", "list"]);
        let told = store.words().refused;
        assert!(told.keys().eq(&["list", "read"]) && told.values().all(|words| !words.is_empty()));

        faulty.on_operation(|_| Fault::Unavailable);
        assert!(store.get(&key).await.is_err());
        assert_eq!(refused(), ["read", "list"], "no answer says nothing");

        faulty.on_operation(|_| Fault::None);
        assert!(store.get(&key).await.is_err(), "it is not there");
        assert_eq!(refused(), ["list"]);
        assert!(store.list_first("", 1).await.is_ok());
        assert!(refused().is_empty());
    }
}
