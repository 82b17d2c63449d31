//! Looks at start-up whether the store can hold an archive, and says what to mend if it can't.
//!
//! What is asked for cannot be seen later without harm: a store that ignores the condition of a put loses commits in
//! silence, and one that answers 403 for absent objects (S3 without the right to list) makes "not there" unknowable.
//! Below `meta/probe/` each run uses names of its own and deletes them; nothing else looks there.

use bytes::Bytes;
use futures::future::join_all;

use crate::body::digest_of;
use crate::{Body, Key, Put, Store, StoreError, chain};

/// What was found beside the answer "fit".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// For the log: nothing that hinders.
    pub warnings: Vec<String>,
}

/// Why the store can't be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It did not answer: try again after a pause.
    #[error("{url} could not be examined: {}", chain(.source))]
    Unavailable {
        /// Which archive.
        url: String,
        /// What failed.
        source: StoreError,
    },
    /// A right is missing or the set-up is wrong: the source holds the remedy.
    #[error("{url} cannot be used: {}", chain(.source))]
    Refused {
        /// Which archive.
        url: String,
        /// What failed.
        source: StoreError,
    },
    /// It answers, but not as an archive needs it.
    #[error("{url} cannot hold an archive: {problem}; {remedy}")]
    Unfit {
        /// Which archive.
        url: String,
        /// What it does.
        problem: String,
        /// What the operator can do.
        remedy: String,
    },
}

const RACERS: u8 = 8;
const NAMES_MAX: usize = 3;

/// Reads and writes: for those who archive. About 20 small requests.
pub async fn probe(store: &dyn Store) -> Result<ProbeReport, ProbeError> {
    let mut report = probe_read_only(store).await?;
    let mut used = Vec::new();
    let examined = examine(store, &mut used).await;
    for key in used {
        if let Err(error) = store.delete(&key).await {
            report
                .warnings
                .push(format!("cannot delete the probe object {key}: {error}"));
        }
    }
    examined.map(|()| report)
}

/// Reads only: for those who replay. Two small requests; nothing is written.
pub async fn probe_read_only(store: &dyn Store) -> Result<ProbeReport, ProbeError> {
    let key = fresh_key(store)?;
    match store.get(&key).await {
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(failed(store, error)),
        Ok(_) => {
            return Err(unfit(
                store,
                "it returns an object that nobody has put",
                "check the endpoint URL: what answers is no object store",
            ));
        }
    }
    let page = store
        .list_first("meta/probe", 1)
        .await
        .map_err(|error| failed(store, error))?;
    if page
        .objects
        .iter()
        .any(|(name, _)| !name.as_str().starts_with("meta/probe/"))
    {
        return Err(unfit(
            store,
            "its listing holds names outside the prefix asked for",
            "use another object store",
        ));
    }
    Ok(ProbeReport::default())
}

/// Every key that it may have written goes into `used`.
async fn examine(store: &dyn Store, used: &mut Vec<Key>) -> Result<(), ProbeError> {
    let first = Bytes::from_static(b"everlog probe: may be deleted");
    let key = put_first(store, &first, used).await?;
    let second = put(
        store,
        &key,
        Bytes::from_static(b"everlog probe: must not be here"),
    )
    .await?;
    let found = store
        .get(&key)
        .await
        .map_err(|error| failed(store, error))?;
    if second == Put::Created || found != first {
        return Err(ignores_condition(
            store,
            "an existing object was overwritten",
        ));
    }
    let part = store
        .get_range(&key, 8..13)
        .await
        .map_err(|error| failed(store, error))?;
    if part.as_ref() != b"probe" {
        return Err(unfit(
            store,
            "a ranged read returned other bytes",
            "use a store that obeys the header Range",
        ));
    }
    listed(store, &key).await?;
    race(store, used).await
}

async fn put(store: &dyn Store, key: &Key, bytes: Bytes) -> Result<Put, ProbeError> {
    let digest = digest_of(&bytes);
    store
        .put_if_absent(key, Body::Bytes(bytes), digest)
        .await
        .map_err(|error| failed(store, error))
}

/// Puts under a name that nobody has. A refusal is no answer yet: our own repeated request can have met itself.
async fn put_first(
    store: &dyn Store,
    bytes: &Bytes,
    used: &mut Vec<Key>,
) -> Result<Key, ProbeError> {
    for _ in 0..NAMES_MAX {
        let key = fresh_key(store)?;
        used.push(key.clone());
        let put = put(store, &key, bytes.clone()).await?;
        match store.get(&key).await {
            Ok(found) if found == *bytes => return Ok(key),
            Ok(_) => {
                return Err(unfit(
                    store,
                    "an object came back with other bytes",
                    "use another object store",
                ));
            }
            Err(StoreError::NotFound { .. }) if put == Put::Refused => {}
            Err(StoreError::NotFound { .. }) => {
                return Err(unfit(
                    store,
                    "an object that was just put is not found",
                    "use a store with read-after-write consistency; write to the archive's own region",
                ));
            }
            Err(error) => return Err(failed(store, error)),
        }
    }
    Err(unfit(
        store,
        "puts of new objects are refused as if they existed",
        "use a store that knows If-None-Match: *",
    ))
}

async fn listed(store: &dyn Store, key: &Key) -> Result<(), ProbeError> {
    let mut token = None;
    loop {
        let page = store
            .list("meta/probe", true, token)
            .await
            .map_err(|error| failed(store, error))?;
        if page.objects.iter().any(|(name, _)| name == key) {
            return Ok(());
        }
        token = page.next;
        if token.is_none() {
            return Err(unfit(
                store,
                "an object that was just put is not listed",
                "use a store with consistent listings",
            ));
        }
    }
}

/// A store that looks first and writes later passes one put after the other, and fails here, most times.
async fn race(store: &dyn Store, used: &mut Vec<Key>) -> Result<(), ProbeError> {
    let key = fresh_key(store)?;
    used.push(key.clone());
    let body = |racer: u8| Bytes::from(vec![racer; 64]);
    let puts = join_all((0..RACERS).map(|racer| put(store, &key, body(racer)))).await;
    let puts = puts.into_iter().collect::<Result<Vec<_>, _>>()?;
    let winners: Vec<u8> = (0..RACERS)
        .zip(puts)
        .filter(|(_, put)| *put == Put::Created)
        .map(|(racer, _)| racer)
        .collect();
    let found = match store.get(&key).await {
        Ok(found) => found,
        // All met each other: allowed, if unusual.
        Err(StoreError::NotFound { .. }) if winners.is_empty() => return Ok(()),
        Err(error) => return Err(failed(store, error)),
    };
    match winners.as_slice() {
        [] => Ok(()),
        [winner] if found == body(*winner) => Ok(()),
        _ => Err(ignores_condition(
            store,
            "of several writers at the same time more than one was told that it had won",
        )),
    }
}

fn fresh_key(store: &dyn Store) -> Result<Key, ProbeError> {
    Key::new(format!("meta/probe/{:032x}", rand::random::<u128>())).map_err(|_| {
        unfit(
            store,
            "the probe's own name is illegal",
            "this is a fault of everlog: report it",
        )
    })
}

fn failed(store: &dyn Store, source: StoreError) -> ProbeError {
    let url = store.url().to_owned();
    match source {
        StoreError::Unavailable { .. } => ProbeError::Unavailable { url, source },
        StoreError::Refused { .. } | StoreError::NotFound { .. } => {
            ProbeError::Refused { url, source }
        }
    }
}

fn unfit(store: &dyn Store, problem: &str, remedy: &str) -> ProbeError {
    ProbeError::Unfit {
        url: store.url().to_owned(),
        problem: problem.to_owned(),
        remedy: remedy.to_owned(),
    }
}

fn ignores_condition(store: &dyn Store, problem: &str) -> ProbeError {
    unfit(
        store,
        problem,
        "use a store that obeys conditional puts (If-None-Match: *), or a newer version of this one: without them two \
         archivers destroy each other's work",
    )
}
