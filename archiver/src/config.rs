//! What an archiver is told, and the librdkafka properties that follow from it.

use std::path::PathBuf;
use std::time::Duration;

use everlog_format::TopicSelection;

use crate::native::Consumer;
use crate::{ArchiverError, Cluster, KafkaProperties};

/// librdkafka's own queue of fetched and not yet delivered messages, in bytes. Part of `memory_bytes`.
pub const QUEUE_BYTES: u64 = 32 << 20;

/// The least `memory_bytes`: librdkafka's queue, two encoders, and some room for chunks.
pub const MEMORY_BYTES_MIN: u64 = 96 << 20;

/// How to archive.
#[derive(Clone, Debug)]
pub struct ArchiverConfig {
    /// `host:port` of some brokers, commas between them.
    pub bootstrap_servers: String,
    /// Passed to librdkafka as given. Those that would break the archive ([`crate::REFUSED_PROPERTIES`]) are refused.
    pub kafka_properties: KafkaProperties,
    /// Which topics.
    pub topics: TopicSelection,
    /// The consumer group. Archivers with the same group share the partitions.
    pub group_id: String,
    /// The stable name of this member of the group; no two members running at the same time may share it.
    pub instance_id: String,
    /// A local directory for open segments, for this process alone; its content is disposable.
    pub spool_dir: PathBuf,
    /// A segment is cut at about this many bytes of Parquet, at least 64 KiB.
    pub segment_max_bytes: u64,
    /// A segment is cut once its first record was fetched this long ago, at least a second.
    pub segment_max_age: Duration,
    /// What the archiver may use in all, librdkafka's queue included; at least [`MEMORY_BYTES_MIN`].
    pub memory_bytes: u64,
}

impl ArchiverConfig {
    /// Makes the clients of an archiver that has these properties and this much memory in bytes, and lets them go: librdkafka
    /// looks at what does not fit together only then. They know no broker, so nothing is connected to.
    ///
    /// # Errors
    /// The first thing that librdkafka refuses, in its words.
    pub fn try_clients(
        kafka_properties: &KafkaProperties,
        memory_bytes: u64,
    ) -> Result<(), ArchiverError> {
        let config = ArchiverConfig {
            bootstrap_servers: String::new(),
            kafka_properties: kafka_properties.clone(),
            topics: TopicSelection::everything(),
            group_id: "everlog".to_owned(),
            instance_id: "everlog".to_owned(),
            spool_dir: PathBuf::new(),
            segment_max_bytes: 0,
            segment_max_age: Duration::ZERO,
            memory_bytes,
        };
        drop(Cluster::new(&config.client_properties())?);
        drop(Consumer::new(&config.consumer_properties(), 1)?);
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), ArchiverError> {
        self.kafka_properties.check_names()?;
        let wrong = |key: &'static str, why: String| Err(ArchiverError::Setting { key, why });
        if self.bootstrap_servers.trim().is_empty() {
            return wrong("bootstrap_servers", "names no broker".to_owned());
        }
        if self.group_id.is_empty() || self.instance_id.is_empty() {
            return wrong("group_id and instance_id", "must not be empty".to_owned());
        }
        if self.memory_bytes < MEMORY_BYTES_MIN {
            return wrong(
                "memory_bytes",
                format!(
                    "is {}, but at least {MEMORY_BYTES_MIN} are needed",
                    self.memory_bytes
                ),
            );
        }
        if self.segment_max_bytes < 64 << 10 {
            return wrong(
                "segment_max_bytes",
                format!("is {}, the least is 65536", self.segment_max_bytes),
            );
        }
        if self.segment_max_age < Duration::from_secs(1) {
            return wrong("segment_max_age", "is less than a second".to_owned());
        }
        Ok(())
    }

    /// What the cluster's administrative client gets.
    pub(crate) fn client_properties(&self) -> Vec<(String, String)> {
        let mut all = vec![("client.id".to_owned(), "everlog-archiver".to_owned())];
        all.push((
            "bootstrap.servers".to_owned(),
            self.bootstrap_servers.clone(),
        ));
        all.extend(
            self.kafka_properties
                .iter()
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        all
    }

    /// What the consumer gets. The operator's properties come before those that the archive's correctness rests on.
    pub(crate) fn consumer_properties(&self) -> Vec<(String, String)> {
        let mut all = vec![("session.timeout.ms".to_owned(), "10000".to_owned())];
        // Partitions that are added to a topic wait for this; librdkafka's five minutes are long beside a short retention.
        all.push((
            "topic.metadata.refresh.interval.ms".to_owned(),
            "15000".to_owned(),
        ));
        // A poll can be held back by a slow disk or encoder; being thrown out of the group for that helps nobody.
        all.push(("max.poll.interval.ms".to_owned(), "600000".to_owned()));
        all.push((
            "fetch.max.bytes".to_owned(),
            fetch_bytes(self.memory_bytes).to_string(),
        ));
        // A full queue is an everyday thing here: the encoders are slower than the cluster. librdkafka's second of waiting
        // would let them run dry each time.
        all.push(("fetch.queue.backoff.ms".to_owned(), "10".to_owned()));
        all.extend(self.client_properties());
        let queue_kib = (QUEUE_BYTES >> 10).to_string();
        let fixed: [(&str, &str); 11] = [
            ("group.id", self.group_id.as_str()),
            ("group.instance.id", self.instance_id.as_str()),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("isolation.level", "read_committed"),
            ("auto.offset.reset", "error"),
            ("check.crcs", "true"),
            ("enable.partition.eof", "true"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("allow.auto.create.topics", "false"),
            ("queued.max.messages.kbytes", queue_kib.as_str()),
        ];
        all.extend(
            fixed
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        all
    }
}

/// Bytes in one fetch answer. librdkafka inflates an answer as a whole and looks at its queue's limit only before it
/// asks for one: each broker's can overshoot the limit by its inflated size. So many bytes keep records that compress
/// 40 : 1 within a third of the memory. Beyond a MiB for each partition of a broker, more would not be used anyway; less
/// than a MiB is dear where brokers are far away.
fn fetch_bytes(memory_bytes: u64) -> u64 {
    (memory_bytes / 128).clamp(1 << 20, 8 << 20)
}

/// How `memory_bytes` is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    /// Records waiting to be encoded, in bytes.
    pub(crate) chunks_bytes: u64,
    /// How much of that may be on its way to the encoders. More would not make them faster, but be cold in the
    /// processor's caches by the time it is read.
    pub(crate) bursts_bytes: u64,
    /// Row groups that open segments hold, in bytes.
    pub(crate) writers_bytes: u64,
    /// Chunks that are empty and wait to be used again, in bytes.
    pub(crate) spare_bytes: u64,
}

impl MemoryPlan {
    pub(crate) fn of(memory_bytes: u64) -> MemoryPlan {
        // Beside librdkafka's queue: the message batch in hand and one chunk of arrays for each encoder.
        let fixed = QUEUE_BYTES + (32 << 20);
        let rest = memory_bytes.saturating_sub(fixed).max(16 << 20);
        let spare_bytes = (rest / 8).min(16 << 20);
        let chunks_bytes = (rest - spare_bytes) / 2;
        MemoryPlan {
            chunks_bytes,
            bursts_bytes: (chunks_bytes / 2).min(32 << 20),
            writers_bytes: rest - spare_bytes - chunks_bytes,
            spare_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(properties: &[(&str, &str)]) -> KafkaProperties {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        properties.iter().map(owned).collect()
    }

    fn config(properties: &[(&str, &str)]) -> ArchiverConfig {
        ArchiverConfig {
            bootstrap_servers: "localhost:9092".to_owned(),
            kafka_properties: given(properties),
            topics: TopicSelection::parse(&["orders"]).unwrap(),
            group_id: "everlog-archiver".to_owned(),
            instance_id: "here".to_owned(),
            spool_dir: PathBuf::from("/nowhere"),
            segment_max_bytes: 1 << 20,
            segment_max_age: Duration::from_secs(1),
            memory_bytes: 256 << 20,
        }
    }

    #[test]
    fn a_property_that_would_break_the_archive_is_refused_by_name() {
        for (key, _) in crate::REFUSED_PROPERTIES {
            let error = config(&[(key, "x")]).check().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(
            config(&[("client.rack", "a"), ("security.protocol", "ssl")])
                .check()
                .is_ok()
        );
    }

    #[test]
    fn what_does_not_fit_together_is_told_before_anything_connects() {
        let tried = |properties| ArchiverConfig::try_clients(&given(properties), 256 << 20);
        tried(&[]).unwrap();
        tried(&[("session.timeout.ms", "20000")]).unwrap();
        let told = tried(&[("session.timeout.ms", "700000")]).unwrap_err();
        assert!(told.to_string().contains("session.timeout.ms"), "{told}");
        let told = tried(&[("message.max.bytes", "900000000")]).unwrap_err();
        assert!(told.to_string().contains("message.max.bytes"), "{told}");
    }

    #[test]
    fn passwords_are_not_printed_by_accident() {
        let printed = format!("{:?}", config(&[("sasl.password", "hunter2")]));
        assert!(printed.contains("sasl.password") && !printed.contains("hunter2"));
    }

    #[test]
    fn what_the_archive_rests_on_comes_after_the_operators_own() {
        let all = config(&[("session.timeout.ms", "20000")]).consumer_properties();
        let last = |wanted: &str| {
            all.iter()
                .rev()
                .find(|(key, _)| key == wanted)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(last("session.timeout.ms"), Some("20000"));
        assert_eq!(last("isolation.level"), Some("read_committed"));
        assert_eq!(last("auto.offset.reset"), Some("error"));
    }

    #[test]
    fn a_fetch_is_small_where_memory_is() {
        assert_eq!(fetch_bytes(MEMORY_BYTES_MIN), 1 << 20);
        assert_eq!(fetch_bytes(512 << 20), 4 << 20);
        assert_eq!(fetch_bytes(64 << 30), 8 << 20);
        let all = config(&[("fetch.max.bytes", "3000000")]).consumer_properties();
        let fetch = all.iter().rev().find(|(key, _)| key == "fetch.max.bytes");
        assert_eq!(fetch.map(|(_, value)| value.as_str()), Some("3000000"));
    }

    #[test]
    fn memory_below_the_floor_is_refused_and_the_rest_is_divided() {
        let mut config = config(&[]);
        config.memory_bytes = MEMORY_BYTES_MIN - 1;
        assert!(config.check().is_err());
        let plan = MemoryPlan::of(256 << 20);
        assert_eq!(
            plan.chunks_bytes + plan.writers_bytes + plan.spare_bytes + (64 << 20),
            256 << 20
        );
        assert!(plan.bursts_bytes < plan.chunks_bytes);
    }
}
