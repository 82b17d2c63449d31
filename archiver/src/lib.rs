//! From Kafka into the archive: fetch, spool, encode, upload, commit, in this order for every segment.
//!
//! The archive's own end says where to go on, never the consumer group; a segment counts once its commit is there, and
//! whatever was not committed is read again from the cluster. Nothing is read back from the archive here but the last
//! footer of a partition. Neighbours: `everlog-format` makes segments, `everlog-index` keeps the chains and decides who
//! wrote, `everlog-store` holds the objects.
//!
//! | part | does |
//! |------|------|
//! | `service` | starts and ends everything |
//! | `watch` | which topics there are |
//! | `consume`, `slots`, `slot` | the one thread that polls; one slot a partition |
//! | `worker`, `session`, `encode`, `commit` | one task a partition: opens, encodes, uploads, commits |
//! | `lag` | how far behind a partition is, also while it stands still |
//! | `trouble` | which of librdkafka's complaints are told |
//! | `decide` | where to begin, what is covered, when to cut: plain functions |
//! | `chunk`, `spool`, `memory` | records between consumer and encoder, and what they may take |
//! | `cluster`, `native` | questions to the cluster; librdkafka's C interface |
//!
//! # Limits
//! - Header keys with a NUL byte are read from librdkafka's memory (see `native`): it has to be the bundled version.
//! - Memory holds for records that compress up to about 40 : 1. librdkafka inflates a fetch answer as a whole: one of
//!   `fetch.max.bytes` (a 128th of the memory, 1 to 8 MiB; the operator may set less, together with `message.max.bytes`)
//!   for each broker comes on top of its queue's 32 MiB, multiplied by what it inflates to.
//! - Brokers have to give topic ids (Kafka 2.8 with KIP-516).
//! - When a topic is deleted, what was not fetched by then is lost. Of what was fetched, everything is archived that came
//!   before the last time that all brokers were asked for the topic's id and showed it, which is every ten seconds while
//!   all of them answer: what came later could be of another topic with the same name. With the archiver away at that
//!   moment, or ended before the store took it, or with a cluster that for a minute does not say that the topic is gone
//!   after the group has taken the partition, whatever was not committed is lost.
//! - A log that was truncated is recognised by the last archived record, as long as the cluster should still hold it and
//!   the record has a leader epoch; in topics that are compacted, or whose configuration is not told, only by an epoch
//!   that goes backwards or differs at that very record.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a test that can't go on should panic")
)]

mod chunk;
mod clock;
mod cluster;
mod commit;
mod config;
mod consume;
mod decide;
mod encode;
mod error;
mod kafka_properties;
mod lag;
#[cfg(test)]
mod logged;
mod memory;
mod message;
mod metrics;
mod native;
mod service;
mod session;
mod silence;
mod slot;
mod slots;
mod spool;
mod trouble;
mod watch;
mod worker;

pub use cluster::{Cluster, ClusterError, TopicNow};
pub use config::{ArchiverConfig, MEMORY_BYTES_MIN, QUEUE_BYTES};
pub use error::ArchiverError;
pub use kafka_properties::{KafkaProperties, REFUSED_PROPERTIES};
pub use service::Archiver;
