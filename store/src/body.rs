//! What the backends without a server of their own check before they keep bytes.

use std::ops::Range;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::{Body, Digest, Key, StoreError};

/// The SHA-256 of `bytes`.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// The whole body in memory.
pub(crate) async fn read_body(key: &Key, body: Body) -> Result<Bytes, StoreError> {
    match body {
        Body::Bytes(bytes) => Ok(bytes),
        Body::File { path, len } => {
            let bytes = tokio::fs::read(&path)
                .await
                .map_err(|source| unreadable(key, source))?;
            if bytes.len() as u64 == len {
                Ok(Bytes::from(bytes))
            } else {
                Err(wrong_length(key, len))
            }
        }
    }
}

/// The file to upload cannot be read.
pub(crate) fn unreadable(key: &Key, source: std::io::Error) -> StoreError {
    StoreError::Refused {
        what: format!("put of {key}"),
        remedy: "the local file to upload cannot be read: look at the disk of the data directory"
            .to_owned(),
        source: source.into(),
    }
}

/// The file to upload is not as long as its writer said.
pub(crate) fn wrong_length(key: &Key, len: u64) -> StoreError {
    StoreError::Refused {
        what: format!("put of {key}"),
        remedy: "the local file to upload was changed after it was finished: let nothing else write to the data directory"
            .to_owned(),
        source: format!("the file does not have {len} bytes").into(),
    }
}

/// More than this is hashed away from the runtime's threads, in bytes: some milliseconds.
const HASHED_ON_THE_SPOT_BYTES: usize = 1 << 20;

/// Fails if `bytes` are not what `digest` speaks of, as S3 does by the header `x-amz-checksum-sha256`.
pub(crate) async fn check_digest(
    key: &Key,
    bytes: &Bytes,
    digest: &Digest,
) -> Result<(), StoreError> {
    let found = if bytes.len() <= HASHED_ON_THE_SPOT_BYTES {
        digest_of(bytes)
    } else {
        let bytes = bytes.clone();
        tokio::task::spawn_blocking(move || digest_of(&bytes))
            .await
            .map_err(|stopped| StoreError::Unavailable {
                what: format!("put of {key}"),
                source: stopped.into(),
            })?
    };
    if found == *digest {
        Ok(())
    } else {
        Err(other_bytes(key))
    }
}

/// The bytes are not those that were hashed.
pub(crate) fn other_bytes(key: &Key) -> StoreError {
    StoreError::Refused {
        what: format!("put of {key}"),
        remedy: "the bytes changed between hashing and upload: suspect the local disk or memory"
            .to_owned(),
        source: "the SHA-256 given does not fit the body".into(),
    }
}

/// The object ends before the range does. Nobody asks for a range that he has not read of in the archive, so the
/// object is not the one that the archive names.
pub(crate) fn too_short(key: &Key, range: &Range<u64>, len: Option<u64>) -> StoreError {
    let source = match len {
        Some(len) => format!("the object has {len} bytes"),
        None => "the object is shorter".to_owned(),
    };
    StoreError::Refused {
        what: format!("bytes {} to {} of {key}", range.start, range.end),
        remedy: "the object is not what the archive's index says: run `everlog verify`".to_owned(),
        source: source.into(),
    }
}
