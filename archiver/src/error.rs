//! What can keep an archiver from starting or going on at all.

use std::path::PathBuf;

/// Why an archiver does not start, or stops. Whatever can heal by itself (the cluster or the store being away, a lost
/// commit, a partition in trouble) is handled inside and never becomes one of these.
#[derive(Debug, thiserror::Error)]
pub enum ArchiverError {
    /// A librdkafka property that must not be set, or that librdkafka refuses: mend the configuration.
    #[error("kafka property {key}: {why}")]
    Property {
        /// The property.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// A setting of everlog's own that can't work: mend the configuration.
    #[error("{key}: {why}")]
    Setting {
        /// The setting's name.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// librdkafka can't make a client from these properties: mend the configuration.
    #[error("the Kafka client can't be created: {why}")]
    Client {
        /// librdkafka's words.
        why: String,
    },
    /// The spool directory can't be used: free it, make it writable, or name another.
    #[error("the spool directory {path} can't be used")]
    Spool {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Another process uses the spool directory: give each archiver its own.
    #[error("the spool directory {path} is in use by another process")]
    SpoolInUse {
        /// Which.
        path: PathBuf,
    },
    /// A metric's name is taken in the registry: two archivers in one process need two registries.
    #[error("the archiver's metrics can't be registered")]
    Metrics(#[from] prometheus::Error),
    /// The system starts no more threads: raise its limit, or start the process again.
    #[error("the archiver's consumer thread can't be started")]
    Thread(#[source] std::io::Error),
    /// A thread of the archiver ended by a bug.
    #[error("the archiver's {what} ended unexpectedly")]
    Died {
        /// Which part.
        what: &'static str,
    },
}
