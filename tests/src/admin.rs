//! Topics, configs, deletions and watermarks, by librdkafka's admin client.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::wait_until;

const PATIENCE: Duration = Duration::from_secs(30);
/// A broker that was killed counts as alive for 9 seconds, and on a busy machine the rest takes its time.
const LEADERS_MAX: Duration = Duration::from_secs(120);

/// An admin client.
pub struct Admin {
    client: AdminClient<DefaultClientContext>,
    asker: BaseConsumer,
    runtime: tokio::runtime::Runtime,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// Talks to `bootstrap`.
    pub fn new(bootstrap: &str) -> Result<Admin> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap);
        let client = config.create()?;
        config
            .set("isolation.level", "read_committed")
            .set("group.id", "everlog-tests-admin");
        let asker = config.create()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Admin {
            client,
            asker,
            runtime,
        })
    }

    fn options() -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(PATIENCE))
            .operation_timeout(Some(PATIENCE))
    }

    /// Creates a topic, replicated over up to 3 nodes, and waits until all its partitions have a leader.
    pub fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Result<()> {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        let results = self
            .runtime
            .block_on(self.client.create_topics([&topic], &Admin::options()))?;
        for result in results {
            result.map_err(|(name, code)| anyhow!("creating {name}: {code}"))?;
        }
        self.wait_leaders(name, partitions)
    }

    /// Waits until all partitions of the topic have a leader. A question that gets no answer is put again: the broker
    /// asked may have been killed just now.
    pub fn wait_leaders(&self, name: &str, partitions: i32) -> Result<()> {
        wait_until("leaders", LEADERS_MAX, || {
            let asked = self.client.inner().fetch_metadata(Some(name), PATIENCE);
            let Ok(metadata) = asked else {
                return Ok(false);
            };
            let topic = metadata
                .topics()
                .first()
                .context("no topic in the answer")?;
            let led = topic
                .partitions()
                .iter()
                .filter(|partition| partition.leader() >= 0)
                .count();
            Ok(topic.error().is_none() && i32::try_from(led)? == partitions)
        })
    }

    /// Deletes a topic and waits until the cluster has forgotten it.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let results = self
            .runtime
            .block_on(self.client.delete_topics(&[name], &Admin::options()))?;
        for result in results {
            result.map_err(|(name, code)| anyhow!("deleting {name}: {code}"))?;
        }
        wait_until("the topic to be gone", PATIENCE, || {
            let metadata = self.client.inner().fetch_metadata(None, PATIENCE)?;
            Ok(!metadata.topics().iter().any(|topic| topic.name() == name))
        })
    }

    /// Lets a topic grow to `count` partitions, and waits until all have a leader.
    pub fn create_partitions(&self, name: &str, count: usize) -> Result<()> {
        let wanted = NewPartitions::new(name, count);
        let results = self
            .runtime
            .block_on(self.client.create_partitions([&wanted], &Admin::options()))?;
        for result in results {
            result.map_err(|(name, code)| anyhow!("adding partitions to {name}: {code}"))?;
        }
        self.wait_leaders(name, i32::try_from(count)?)
    }

    /// Sets one config of a topic (and resets those that were set by this call before).
    pub fn set_topic_config(&self, name: &str, configs: &[(&str, &str)]) -> Result<()> {
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (key, value) in configs {
            change = change.set(key, value);
        }
        let results = self
            .runtime
            .block_on(self.client.alter_configs([&change], &Admin::options()))?;
        for result in results {
            result.map_err(|(name, code)| anyhow!("altering {name:?}: {code}"))?;
        }
        Ok(())
    }

    /// DeleteRecords: lets the cluster forget what lies below the given offsets, and waits until it has.
    pub fn delete_records(&self, name: &str, before: &BTreeMap<i32, i64>) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for (&partition, &offset) in before {
            list.add_partition_offset(name, partition, Offset::Offset(offset))?;
        }
        let done = self
            .runtime
            .block_on(self.client.delete_records(&list, &Admin::options()))?;
        for element in done.elements() {
            element
                .error()
                .with_context(|| format!("deleting records of {name} {}", element.partition()))?;
        }
        for (&partition, &offset) in before {
            let (start, _) = self.watermarks(name, partition)?;
            if start < offset {
                bail!("{name} {partition} still starts at {start} and not at {offset}");
            }
        }
        Ok(())
    }

    /// Live start and end of a partition as a `read_committed` consumer sees them.
    pub fn watermarks(&self, name: &str, partition: i32) -> Result<(i64, i64)> {
        Ok(self.asker.fetch_watermarks(name, partition, PATIENCE)?)
    }

    /// The ends (for `read_committed`) of partitions 0 to `partitions` - 1.
    pub fn ends(&self, name: &str, partitions: i32) -> Result<BTreeMap<i32, i64>> {
        (0..partitions)
            .map(|partition| Ok((partition, self.watermarks(name, partition)?.1)))
            .collect()
    }
}
