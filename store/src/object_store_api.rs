//! The interface that every backend offers, and what can come of a request.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Key;

/// A cause whose type the caller has no use for.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The SHA-256 of the bytes to put. S3 gets it as `x-amz-checksum-sha256` and refuses other bytes.
pub type Digest = [u8; 32];

/// What to upload. A file is streamed, so that a segment of 256 MiB takes no memory.
#[derive(Clone, Debug)]
pub enum Body {
    /// Small objects: nodes, commits.
    Bytes(Bytes),
    /// A finished local file of exactly `len` bytes.
    File {
        /// Where it lies.
        path: PathBuf,
        /// Its size.
        len: u64,
    },
}

impl Body {
    /// In bytes.
    pub fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { len, .. } => *len,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a put ended. Neither is an error, and a refusal proves nothing: it can be the answer to our own repeated
/// request, or to a rival that then failed. Get the key: bytes prove that it is taken and by what, not-found means
/// put again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a refused put proves nothing: get the key to see what is there"]
pub enum Put {
    /// The object is there, and it is this call's.
    Created,
    /// The backend says that the key is taken or contended (412 or 409).
    Refused,
}

/// One page of a listing. The order of keys is the backend's: do not rely on it.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Keys and sizes in bytes.
    pub objects: Vec<(Key, u64)>,
    /// Names of the "folders" directly below the prefix, without it and without the slash.
    pub folders: Vec<String>,
    /// Present if there is more: give it to the next call.
    pub next: Option<String>,
}

/// What went wrong, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Only a clear answer "there is no such object" becomes this; never a refusal, never a timeout.
    #[error("object {key} is not there")]
    NotFound {
        /// Which.
        key: Key,
    },
    /// Timeout, throttling, a lost connection or a 5xx, after the retries of this layer: try again after a pause. For
    /// a put: it may have happened.
    #[error("the object store did not answer for {what}")]
    Unavailable {
        /// Key or prefix, and the operation.
        what: String,
        /// The last cause.
        source: BoxError,
    },
    /// Credentials, permission, an unknown bucket, a malformed request: trying again as it is does not help.
    #[error("the object store refused {what}: {remedy}")]
    Refused {
        /// Key or prefix, and the operation.
        what: String,
        /// What the operator can do.
        remedy: String,
        /// The cause.
        source: BoxError,
    },
}

/// An archive's objects. Implementations retry with back-off and jitter inside and keep a deadline on every request.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// The archive's URL without secrets, for messages.
    fn url(&self) -> &str;

    /// The whole object.
    async fn get(&self, key: &Key) -> Result<Bytes, StoreError>;

    /// Bytes `range` of the object, exactly as long as asked; an object that is too short is
    /// [`StoreError::Refused`].
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Puts the object if no object has this name, all of it or nothing, durably.
    ///
    /// After [`StoreError::Unavailable`] it may or may not be there.
    async fn put_if_absent(&self, key: &Key, body: Body, digest: Digest)
    -> Result<Put, StoreError>;

    /// One page of what lies below `prefix` (whole path parts, without the slash at the end; empty: the root).
    /// `recursive` lists all depths and no folders, else one level and its folders. `token` is the page before's
    /// `next`.
    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError>;

    /// Like [`Store::list`] of all depths from its first page, but asks for at most `limit` keys (1 to 1,000): the cheap
    /// way to the first key where the store lists in key order. `next` tells whether there is more.
    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError>;

    /// Deletes the object; one that is not there is no error.
    async fn delete(&self, key: &Key) -> Result<(), StoreError>;

    /// Whether listings come in the order of keys (S3 proper, GCS, the local ones) so that the first page shows the
    /// first key.
    fn lists_in_key_order(&self) -> bool;

    /// Requests and bytes so far, for metrics.
    fn usage(&self) -> Usage;
}

/// Counted since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Requests that read: get, get range, list.
    pub read_requests: u64,
    /// Requests that write: put, delete.
    pub write_requests: u64,
    /// Requests that were repeated.
    pub retried_requests: u64,
    /// Body bytes received.
    pub bytes_read: u64,
    /// Body bytes sent.
    pub bytes_written: u64,
}
