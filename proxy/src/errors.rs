//! Our own failures as Kafka's codes.

use std::sync::Arc;

use everlog_index::IndexError;
use everlog_store::StoreError;
use kafka_protocol::ResponseError;

use crate::replay::ReplayError;

/// Why records that the archive should have could not be delivered, split by what the client is told.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    /// The archive could not be read.
    #[error("archived records could not be read")]
    Replay(#[from] ReplayError),
    /// It is not known what the archive holds.
    #[error("the archive's index could not be read")]
    Index(#[source] Arc<IndexError>),
    /// The archive did not answer in time; the work goes on.
    #[error("the archive did not answer in time")]
    Slow,
    /// A commit says that these records were lost, and the operator wants to know.
    #[error("the records are lost: a hole")]
    Hole,
    /// The cluster has let it go and no commit covers it yet: the archiver may still hold it.
    #[error("no commit covers the offset yet")]
    NotYet,
    /// The cluster serves the topic but has not told its name and id yet: what the archive has of it can't be said.
    #[error("the cluster did not say which topic this is")]
    NoTopic,
    /// What the cluster still holds could not be found out.
    #[error("the cluster did not say what it holds")]
    NoLiveStart,
}

impl HistoryError {
    /// Whether waiting for it to pass makes sense, so that an answer is held back until the client's deadline: a client
    /// that asks again at once would spin.
    pub(crate) fn may_pass(&self) -> bool {
        error_code(self) == ResponseError::KafkaStorageError
    }

    /// Whether the newest commit names what is not there. A replica that is behind catches up, and what was deleted never
    /// comes back: from here they look the same.
    pub(crate) fn is_absence(&self) -> bool {
        match self {
            HistoryError::Replay(error) => matches!(error, ReplayError::Missing { .. }),
            HistoryError::Index(error) => matches!(error.as_ref(), IndexError::Missing { .. }),
            HistoryError::Slow
            | HistoryError::Hole
            | HistoryError::NotYet
            | HistoryError::NoTopic
            | HistoryError::NoLiveStart => false,
        }
    }

    /// Whether time alone cures it: a store that is slow or away, an archiver that is behind. What does not pass, or may
    /// not, waits for somebody who mends it, whatever the client is told.
    pub(crate) fn passes(&self) -> bool {
        match self {
            HistoryError::Replay(error) => match error {
                ReplayError::Unavailable { .. } | ReplayError::NotCovered { .. } => true,
                ReplayError::Missing { .. }
                | ReplayError::Refused { .. }
                | ReplayError::Corrupt { .. }
                | ReplayError::Unsupported { .. } => false,
            },
            HistoryError::Index(error) => match error.as_ref() {
                IndexError::Store(StoreError::Unavailable { .. } | StoreError::NotFound { .. }) => {
                    true
                }
                IndexError::Missing { .. }
                | IndexError::Store(StoreError::Refused { .. })
                | IndexError::NoArchive { .. }
                | IndexError::Unsupported { .. }
                | IndexError::Corrupt { .. } => false,
            },
            HistoryError::Slow
            | HistoryError::NotYet
            | HistoryError::NoLiveStart
            | HistoryError::NoTopic => true,
            HistoryError::Hole => false,
        }
    }

    /// The word for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            HistoryError::Replay(error) => match error {
                ReplayError::Unavailable { .. } => "unavailable",
                ReplayError::Refused { .. } => "refused",
                ReplayError::Missing { .. } => "missing",
                ReplayError::Corrupt { .. } => "corrupt",
                ReplayError::Unsupported { .. } => "unsupported",
                ReplayError::NotCovered { .. } => "not_covered",
            },
            HistoryError::Index(_) => "index",
            HistoryError::Slow => "slow",
            HistoryError::Hole => "hole",
            HistoryError::NotYet => "not_yet",
            HistoryError::NoLiveStart => "no_live_start",
            HistoryError::NoTopic => "no_topic",
        }
    }
}

/// What the client is told. Never OFFSET_OUT_OF_RANGE: that resets consumers, and with `latest` skips all history.
#[deny(clippy::wildcard_enum_match_arm)] // A new failure compiles only once somebody has placed it here.
pub(crate) fn error_code(error: &HistoryError) -> ResponseError {
    match error {
        HistoryError::Replay(replay) => match replay {
            // All clients refresh metadata and try again: right while the store is slow, or until the operator has
            // mended credentials or upgraded.
            ReplayError::Unavailable { .. }
            | ReplayError::Refused { .. }
            | ReplayError::Unsupported { .. } => ResponseError::KafkaStorageError,
            // A replica of the archive that lags looks like this too, and will catch up.
            ReplayError::Missing { .. } | ReplayError::NotCovered { .. } => {
                ResponseError::KafkaStorageError
            }
            // The Java consumer and librdkafka raise this; franz-go retries it in silence, so it is counted as well.
            ReplayError::Corrupt { .. } => ResponseError::CorruptMessage,
        },
        HistoryError::Index(index) => match index.as_ref() {
            IndexError::Store(
                StoreError::Unavailable { .. }
                | StoreError::Refused { .. }
                | StoreError::NotFound { .. },
            )
            | IndexError::Missing { .. }
            | IndexError::NoArchive { .. }
            | IndexError::Unsupported { .. } => ResponseError::KafkaStorageError,
            // The index contradicts itself. The records may well be whole: a rebuilt or newer commit mends it, so the
            // client waits while the alarm rings.
            IndexError::Corrupt { .. } => ResponseError::KafkaStorageError,
        },
        HistoryError::Slow
        | HistoryError::NotYet
        | HistoryError::NoLiveStart
        | HistoryError::NoTopic => ResponseError::KafkaStorageError,
        // Not OFFSET_OUT_OF_RANGE: a consumer with `auto.offset.reset=earliest` would start over at the first archived
        // record, come to the same hole, and go round for ever; franz-go would jump it.
        HistoryError::Hole => ResponseError::CorruptMessage,
    }
}

/// As a Fetch of this version knows it: KAFKA_STORAGE_ERROR came with version 6; before, brokers said
/// NOT_LEADER_OR_FOLLOWER, which makes clients look again as well.
pub(crate) fn fetch_error_code(error: &HistoryError, version: i16) -> i16 {
    match error_code(error) {
        ResponseError::KafkaStorageError if version <= 5 => {
            ResponseError::NotLeaderOrFollower.code()
        }
        code => code.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Damage used to be told as trouble after which "its client will ask again".
    #[test]
    fn what_somebody_has_to_mend_does_not_pass() {
        let corrupt = || ReplayError::Corrupt {
            what: "a segment".to_owned(),
            why: "another hash".to_owned(),
        };
        let damaged = HistoryError::Replay(corrupt());
        assert!(!damaged.passes() && !damaged.may_pass());
        let newer = ReplayError::Unsupported {
            what: "a segment".to_owned(),
        };
        let newer = HistoryError::Replay(newer);
        assert!(!newer.passes() && newer.may_pass());
        assert!(HistoryError::Slow.passes() && HistoryError::NotYet.passes());
    }

    #[test]
    fn old_clients_get_a_code_that_they_know() {
        assert_eq!(fetch_error_code(&HistoryError::NotYet, 5), 6);
        assert_eq!(fetch_error_code(&HistoryError::NotYet, 6), 56);
        assert_eq!(fetch_error_code(&HistoryError::Hole, 4), 2);
    }

    #[test]
    fn nothing_resets_a_consumer() {
        let what = || "x".to_owned();
        for error in [
            HistoryError::Hole,
            HistoryError::NotYet,
            HistoryError::Slow,
            HistoryError::NoLiveStart,
            HistoryError::NoTopic,
            HistoryError::Replay(ReplayError::Missing { what: what() }),
            HistoryError::Replay(ReplayError::Corrupt {
                what: what(),
                why: what(),
            }),
            HistoryError::Index(Arc::new(IndexError::Missing { what: what() })),
        ] {
            assert_ne!(error_code(&error), ResponseError::OffsetOutOfRange);
        }
    }
}
