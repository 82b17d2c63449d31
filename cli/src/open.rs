//! From configuration to an open archive.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use everlog_index::{Archive, ArchiveOptions, IndexError};
use everlog_store::{
    Key, OpenError, ProbeError, RetryPolicy, S3Credentials, Store, StoreError, StoreOptions,
};
use tracing::warn;

use crate::config::ArchivePlace;
use crate::watched_store::WatchedStore;

const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The store's own words are told with its trouble.
const AWAY: &str = "the object store does not answer";

/// What every archive has at its root.
const FORMAT_FILE: &str = "everlog.json";

/// How long a tool tries at its first contact: a person waits, and mostly it is an address that is wrong.
const FIRST_CONTACT_MAX: Duration = Duration::from_secs(4);

/// Why a tool has no archive to look at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// Nobody has made one at this place, or the place is another.
    #[error(
        "there is no archive at {url} yet: `everlog run` or `everlog archive` makes it; if one should be there, the address is wrong"
    )]
    NoArchive {
        /// As the operator gave it.
        url: String,
    },
    /// The place is wrong, or something around it.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The store is there; its archive is not, or cannot be read.
    #[error("the archive could not be opened")]
    Archive(#[from] IndexError),
}

/// For tools: nothing is written, and index nodes are read from the store itself and not from a cache.
///
/// A store that does not answer is told within seconds. One that has answered once is waited for later: a check that
/// takes days outlives the store's restarts.
pub(crate) async fn open_to_read(place: &ArchivePlace) -> Result<Arc<Archive>, ReadError> {
    let impatient = RetryPolicy {
        answer_max: FIRST_CONTACT_MAX,
        total_max: FIRST_CONTACT_MAX,
        ..RetryPolicy::default()
    };
    let options = || ArchiveOptions {
        node_cache_dir: None,
        create: false,
    };
    let open = |retry| async move {
        let store = store(place, true, retry).await?;
        Ok::<_, ReadError>(Archive::open(store, options()).await?)
    };
    let absent = |err| match err {
        ReadError::Store(OpenError::Absent { .. })
        | ReadError::Archive(IndexError::NoArchive { .. }) => ReadError::NoArchive {
            url: place.url.clone(),
        },
        err => err,
    };
    open(impatient).await.map_err(absent)?;
    open(RetryPolicy::default()).await.map_err(absent)
}

/// The store of a service. Asks it nothing yet. `writes` is for who archives, and makes the directory of `file://`; who only
/// reads waits for it, since a proxy may be started before the archiver, and tells `waiting` for what.
pub(crate) async fn store_to_serve(
    place: &ArchivePlace,
    writes: bool,
    waiting: impl Fn(String),
) -> Result<Arc<WatchedStore>> {
    let mut pause = RETRY_PAUSE_MIN;
    loop {
        match store(place, !writes, RetryPolicy::default()).await {
            Ok(store) => return Ok(Arc::new(WatchedStore::new(store))),
            Err(err @ OpenError::Absent { .. }) => {
                waiting(no_archive(&place.url));
                warn!(
                    error = &err as &dyn Error,
                    pause_s = pause.as_secs(),
                    "there is no archive yet, waiting for an archiver to make it"
                );
                wait(&mut pause).await;
            }
            Err(err) => return Err(err.into()),
        }
    }
}

/// For services: the store is probed first, so that a missing right or a store that ignores conditions is told at the
/// start and not by the first commit. `create` makes an archive where there is none. While the store does not answer, or
/// somebody else has to make the archive, this waits, and tells `waiting` for what: a service must come up by itself. Gives also whether
/// there was no archive before.
pub(crate) async fn open_to_serve(
    store: Arc<WatchedStore>,
    create: bool,
    node_cache_dir: PathBuf,
    waiting: impl Fn(String),
) -> Result<(Arc<Archive>, bool)> {
    let mut pause = RETRY_PAUSE_MIN;
    let report = loop {
        match store.probe(create).await {
            Ok(report) => break report,
            Err(err @ ProbeError::Unavailable { .. }) => {
                waiting(AWAY.to_owned());
                warn!(
                    error = &err as &dyn Error,
                    pause_s = pause.as_secs(),
                    "the object store is away, will retry"
                );
                wait(&mut pause).await;
            }
            // Its text tells the cause already.
            Err(err) => bail!("{err}"),
        }
    };
    for warning in report.warnings {
        warn!(warning, "the store is fit, but");
    }
    let store: Arc<dyn Store> = store;
    let is_new = create && is_empty(store.as_ref()).await;
    loop {
        let node_cache_dir = Some(node_cache_dir.clone());
        let options = ArchiveOptions {
            node_cache_dir,
            create,
        };
        match Archive::open(Arc::clone(&store), options).await {
            Ok(archive) => return Ok((archive, is_new)),
            Err(err @ IndexError::Store(StoreError::Unavailable { .. })) => {
                waiting(AWAY.to_owned());
                warn!(
                    error = &err as &dyn Error,
                    pause_s = pause.as_secs(),
                    "the object store is away, will retry"
                );
                wait(&mut pause).await;
            }
            // Only without `create`: a proxy may be started before the archiver that makes the archive.
            Err(err @ IndexError::NoArchive { .. }) => {
                waiting(no_archive(store.url()));
                warn!(
                    error = &err as &dyn Error,
                    pause_s = pause.as_secs(),
                    "there is no archive yet, waiting for an archiver to make it"
                );
                wait(&mut pause).await;
            }
            Err(err) => return Err(err).context("the archive could not be opened"),
        }
    }
}

fn no_archive(url: &str) -> String {
    format!(
        "there is no archive at {url} yet: waiting for an archiver to make it; if one should be there, the address is wrong"
    )
}

/// Whether nobody has made an archive here yet. Only for a word in the log, so no other answer matters.
async fn is_empty(store: &dyn Store) -> bool {
    match Key::new(FORMAT_FILE) {
        Ok(key) => matches!(store.get(&key).await, Err(StoreError::NotFound { .. })),
        Err(_) => false,
    }
}

async fn wait(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(RETRY_PAUSE_MAX);
}

async fn store(
    place: &ArchivePlace,
    read_only: bool,
    retry: RetryPolicy,
) -> Result<Arc<dyn Store>, OpenError> {
    let s3 = &place.s3;
    let credentials = s3
        .access_key_id
        .as_ref()
        .zip(s3.secret_access_key.as_ref())
        .map(|(id, secret)| S3Credentials {
            access_key_id: id.reveal().to_owned(),
            secret_access_key: secret.reveal().to_owned(),
            session_token: s3
                .session_token
                .as_ref()
                .map(|token| token.reveal().to_owned()),
        });
    let options = StoreOptions {
        region: s3.region.clone(),
        endpoint_url: s3.endpoint.clone(),
        path_style: s3.path_style,
        credentials,
        lists_in_key_order: s3.lists_in_key_order,
        read_only,
        retry,
    };
    everlog_store::open(&place.url, options).await
}

#[cfg(test)]
mod tests {
    use everlog_store::MemoryStore;
    use everlog_store::faulty::{Fault, FaultyStore, OperationKind};

    use super::*;

    /// Where nothing may be deleted, as careful users of an archive have it, the probe's own deletes were refused. Nothing else
    /// deletes, so `/healthz` and the metric told of it for as long as the process ran.
    #[tokio::test]
    async fn a_store_that_lets_nobody_delete_is_no_trouble() {
        let faulty = FaultyStore::new(Arc::new(MemoryStore::default()));
        faulty.on_operation(|operation| match operation.kind {
            OperationKind::Delete => Fault::Denied,
            _ => Fault::None,
        });
        let store = Arc::new(WatchedStore::new(Arc::new(faulty)));
        let report = store.probe(true).await.expect("it is fit");
        assert!(!report.warnings.is_empty(), "its objects stay");
        let dir = tempfile::tempdir().expect("a directory");
        open_to_serve(Arc::clone(&store), true, dir.path().to_owned(), |_| {})
            .await
            .expect("an archive");
        for (kind, refused) in store.refusals() {
            assert_eq!(refused, None, "{kind}");
        }
        assert_eq!((store.refused_count(), store.silence()), (0, None));
    }

    /// What the probe meets must not be lost either: it is the first to ask.
    #[tokio::test]
    async fn a_store_that_does_not_answer_the_probe_is_silent() {
        let faulty = Arc::new(FaultyStore::new(Arc::new(MemoryStore::default())));
        let store = WatchedStore::new(Arc::clone(&faulty) as Arc<dyn Store>);
        faulty.on_operation(|_| Fault::Unavailable);
        while store.silence().is_none() {
            assert!(store.probe(true).await.is_err());
            assert!(store.unavailable_count() < 10, "it is never silent");
        }
        faulty.on_operation(|_| Fault::None);
        assert!(store.probe(true).await.is_ok());
        assert_eq!(store.silence(), None);
    }
}
