//! What all handles on one archive share: the store, the node cache, and where time and randomness come from.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use everlog_format::Salt;
use everlog_store::{Body, Put, Store, StoreError};
use rand::RngCore;

use crate::IndexError;
use crate::canonical::corrupt;
use crate::clock::Clock;
use crate::node::Shape;
use crate::node_cache::NodeCache;

/// A commit may be pruned 30 days after a later one exists, so a number that was free a while ago may be free again for
/// another reason. Who has not read the chain for this long finds the newest by listing before it trusts a free number.
pub(crate) const CHAIN_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a put that was refused is tried again while the key stays free.
pub(crate) const FREE_KEY_ATTEMPTS: u32 = 5;

/// What tests and unusual places set; [`Tuning::default`] is right for everybody else.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Has to count suspension.
    pub clock: Clock,
    /// Where 16 random bytes come from.
    pub random: Random,
    /// How many of the newest entries a reader wants to see the objects of before it serves a commit that it has come
    /// upon by listing (of a commit that it probed for, it asks for all that is new). On a replica whose objects arrive
    /// out of order, raise it to the number of commits that may lag; 0 asks for none.
    pub lag_window_entries: u16,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            clock: Clock::system(),
            random: Random::system(),
            lag_window_entries: 2,
        }
    }
}

/// A source of 16 random bytes at a time.
#[derive(Clone)]
pub struct Random(Arc<dyn Fn() -> [u8; 16] + Send + Sync>);

impl Random {
    /// The operating system's.
    pub fn system() -> Random {
        Random(Arc::new(|| {
            let mut bytes = [0; 16];
            rand::rng().fill_bytes(&mut bytes);
            bytes
        }))
    }

    /// A test's own; no two calls may give the same bytes.
    pub fn from_fn(draw: impl Fn() -> [u8; 16] + Send + Sync + 'static) -> Random {
        Random(Arc::new(draw))
    }

    pub(crate) fn salt(&self) -> Salt {
        Salt::new((self.0)())
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

#[cfg(test)]
pub(crate) type OnRow = Arc<dyn Fn(crate::taken::Row) + Send + Sync>;

#[cfg_attr(not(test), derive(Debug))]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) nodes: NodeCache,
    pub(crate) shape: Shape,
    pub(crate) tuning: Tuning,
    /// The row of the taken-number table that a test has broken, and what is done instead.
    #[cfg(test)]
    pub(crate) sabotage: Option<(crate::taken::Row, crate::taken::Decision)>,
    /// Told of every row that decides.
    #[cfg(test)]
    pub(crate) on_row: Option<OnRow>,
}

/// Puts an object that nobody else can have meant to put with other bytes: a node, whose name is its hash, or a file
/// that is the same whoever writes it. `Ok(false)`: other bytes are there.
pub(crate) async fn put_once(
    store: &dyn Store,
    key: &everlog_store::Key,
    bytes: &bytes::Bytes,
) -> Result<bool, IndexError> {
    let digest = everlog_store::digest_of(bytes);
    for _ in 0..FREE_KEY_ATTEMPTS {
        if store
            .put_if_absent(key, Body::Bytes(bytes.clone()), digest)
            .await?
            == Put::Created
        {
            return Ok(true);
        }
        // A refusal proves nothing; only what lies there does.
        match store.get(key).await {
            Ok(found) => return Ok(found == *bytes),
            Err(StoreError::NotFound { .. }) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(still_free(key))
}

/// The store keeps refusing a key that is free: a rival's put that never ends, or a store that is unwell. Worth a pause.
pub(crate) fn still_free(key: &everlog_store::Key) -> IndexError {
    IndexError::Store(StoreError::Unavailable {
        what: format!("put {key}"),
        source: "the store refuses the key and says that it is free".into(),
    })
}

impl Shared {
    /// Puts a node under its hash.
    pub(crate) async fn put_node(
        &self,
        at: &everlog_format::PartitionKey,
        node: &crate::node::SealedNode,
    ) -> Result<(), IndexError> {
        let key = crate::keys::node(at, node.child.hash);
        if put_once(self.store.as_ref(), &key, &node.bytes).await? {
            self.nodes.keep(node).await;
            Ok(())
        } else {
            Err(corrupt(
                key.as_str(),
                "it holds bytes that do not hash to its name",
            ))
        }
    }
}

#[cfg(test)]
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}
