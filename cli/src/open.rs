//! From configuration to an open archive.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use everlog_index::{Archive, ArchiveOptions, IndexError};
use everlog_store::{
    ProbeError, S3Credentials, Store, StoreError, StoreOptions, probe, probe_read_only,
};
use tracing::warn;

use crate::config::ArchivePlace;
use crate::watched_store::WatchedStore;

const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// For tools: nothing is written, and index nodes are read from the store itself and not from a cache.
pub(crate) async fn open_to_read(place: &ArchivePlace) -> Result<Arc<Archive>> {
    let store = store(place, true).await?;
    let options = ArchiveOptions {
        node_cache_dir: None,
        create: false,
    };
    Archive::open(store, options)
        .await
        .context("the archive could not be opened")
}

/// The store of a service. Asks it nothing yet. `writes` is for who archives.
pub(crate) async fn store_to_serve(
    place: &ArchivePlace,
    writes: bool,
) -> Result<Arc<WatchedStore>> {
    let store = store(place, !writes).await?;
    Ok(Arc::new(WatchedStore::new(store)))
}

/// For services: the store is probed first, so that a missing right or a store that ignores conditions is told at the
/// start and not by the first commit. `create` makes an archive where there is none. While the store does not answer this
/// waits: a service must come up by itself once the store does.
pub(crate) async fn open_to_serve(
    store: Arc<dyn Store>,
    create: bool,
    node_cache_dir: PathBuf,
) -> Result<Arc<Archive>> {
    let mut pause = RETRY_PAUSE_MIN;
    let report = loop {
        let probed = if create {
            probe(store.as_ref()).await
        } else {
            probe_read_only(store.as_ref()).await
        };
        match probed {
            Ok(report) => break report,
            Err(err @ ProbeError::Unavailable { .. }) => wait(&err, &mut pause).await,
            // Its text tells the cause already.
            Err(err) => bail!("{err}"),
        }
    };
    for warning in report.warnings {
        warn!(warning, "the store is fit, but");
    }
    loop {
        let node_cache_dir = Some(node_cache_dir.clone());
        let options = ArchiveOptions {
            node_cache_dir,
            create,
        };
        match Archive::open(Arc::clone(&store), options).await {
            Ok(archive) => return Ok(archive),
            Err(err @ IndexError::Store(StoreError::Unavailable { .. })) => {
                wait(&err, &mut pause).await
            }
            Err(err) => return Err(err).context("the archive could not be opened"),
        }
    }
}

async fn wait(err: &(dyn std::error::Error + 'static), pause: &mut Duration) {
    warn!(
        error = err,
        pause_s = pause.as_secs(),
        "the object store is away, will retry"
    );
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(RETRY_PAUSE_MAX);
}

async fn store(place: &ArchivePlace, read_only: bool) -> Result<Arc<dyn Store>> {
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
        ..StoreOptions::default()
    };
    Ok(everlog_store::open(&place.url, options).await?)
}
