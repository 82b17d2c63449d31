//! Why archived records could not be read, split by what the caller does next.

use std::sync::Arc;

use everlog_format::{Offset, OffsetRange};
use everlog_index::IndexError;
use everlog_store::{BoxError, StoreError};

/// What went wrong. Cheap to clone: one failed download answers everybody who waited for it. Nothing failed is
/// cached, so the next call tries again.
///
/// None of these may become OFFSET_OUT_OF_RANGE at a client: that would reset its position and skip history.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReplayError {
    /// The store did not answer in time, after its own retries: a retriable error or an empty answer to the client.
    #[error("the archive is unavailable: {what}")]
    Unavailable {
        /// What was being read.
        what: String,
        /// The last cause.
        source: Arc<BoxError>,
    },
    /// The store refuses (credentials, permission, an object of another length): retriable for the client, and the
    /// operator must act.
    #[error("the archive can't be read: {what}")]
    Refused {
        /// What was being read.
        what: String,
        /// The cause.
        source: Arc<BoxError>,
    },
    /// A commit names an object that is not there. Look for a newer commit once; if it still names it, a retriable
    /// error to the client and an alarm: the replica lags, or archived records are lost.
    #[error("{what} is named by a commit but is not there")]
    Missing {
        /// The object.
        what: String,
    },
    /// The object is there and contradicts itself or the commit: archived data is damaged. An error that the client
    /// shows, and an alarm.
    #[error("{what} is damaged: {why}")]
    Corrupt {
        /// The object.
        what: String,
        /// Which rule it breaks.
        why: String,
    },
    /// Written by a newer everlog: as [`ReplayError::Refused`], with an upgrade as the remedy.
    #[error("{what} needs a newer version of everlog")]
    Unsupported {
        /// The object.
        what: String,
    },
    /// The offset is not in the snapshot: the caller's plan was wrong or made for another snapshot. Plan again.
    #[error("offset {offset} is not in the archived range {covered:?}")]
    NotCovered {
        /// What was asked for.
        offset: Offset,
        /// What the snapshot covers.
        covered: Option<OffsetRange>,
    },
}

impl ReplayError {
    /// The word for metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            ReplayError::Unavailable { .. } => "unavailable",
            ReplayError::Refused { .. } => "refused",
            ReplayError::Missing { .. } => "missing",
            ReplayError::Corrupt { .. } => "corrupt",
            ReplayError::Unsupported { .. } => "unsupported",
            ReplayError::NotCovered { .. } => "not_covered",
        }
    }

    pub(super) fn corrupt(what: impl ToString, why: impl ToString) -> ReplayError {
        ReplayError::Corrupt {
            what: what.to_string(),
            why: why.to_string(),
        }
    }

    /// The process is shutting down, or a task of ours panicked.
    pub(super) fn interrupted(what: impl ToString, source: impl Into<BoxError>) -> ReplayError {
        ReplayError::Unavailable {
            what: what.to_string(),
            source: Arc::new(source.into()),
        }
    }
}

impl From<StoreError> for ReplayError {
    fn from(error: StoreError) -> ReplayError {
        match error {
            StoreError::NotFound { key } => ReplayError::Missing {
                what: key.to_string(),
            },
            StoreError::Unavailable { what, source } => ReplayError::Unavailable {
                what,
                source: Arc::new(source),
            },
            StoreError::Refused { ref what, .. } => ReplayError::Refused {
                what: what.clone(),
                source: Arc::new(error.into()),
            },
        }
    }
}

impl From<IndexError> for ReplayError {
    fn from(error: IndexError) -> ReplayError {
        match error {
            IndexError::Store(store) => store.into(),
            IndexError::Corrupt { what, why } => ReplayError::Corrupt { what, why },
            IndexError::Unsupported { what, .. } => ReplayError::Unsupported { what },
            IndexError::Missing { what } => ReplayError::Missing { what },
            IndexError::NoArchive { ref url } => ReplayError::Refused {
                what: url.clone(),
                source: Arc::new(error.into()),
            },
        }
    }
}
