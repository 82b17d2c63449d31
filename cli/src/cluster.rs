//! What `inspect` asks the cluster: which life of each topic it has, and how far its logs reach.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use everlog_archiver::{Cluster, KafkaProperties, TopicNow};
use everlog_format::ClusterId;
use futures::StreamExt;

/// Partitions asked for at a time.
const PARALLEL: usize = 8;

/// What a cluster holds of one partition today.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watermarks {
    /// The first offset it still has.
    pub(crate) live_start: i64,
    /// The offset that the next record will get.
    pub(crate) high_watermark: i64,
}

/// A cluster's topics, as far as they were asked for.
#[derive(Clone, Debug)]
pub(crate) struct ClusterView {
    pub(crate) cluster: ClusterId,
    /// An archive can hold earlier lives of the same name.
    pub(crate) topics: BTreeMap<String, TopicNow>,
}

impl ClusterView {
    /// Whether this life of the topic is the one that the cluster has now; `None` if that is not known.
    pub(crate) fn is_live(&self, cluster: &str, topic: &str, topic_id: &str) -> Option<bool> {
        if self.cluster.as_str() != cluster {
            return None;
        }
        match self.topics.get(topic)? {
            TopicNow::Is(id) => Some(id.to_string() == topic_id),
            TopicNow::Absent => Some(false),
            TopicNow::Untold => None,
        }
    }

    /// Whether the cluster has a topic of this name; `false` also if it did not say.
    pub(crate) fn has(&self, topic: &str) -> bool {
        matches!(self.topics.get(topic), Some(TopicNow::Is(_)))
    }
}

/// A cluster that has answered.
pub(crate) struct Asked {
    client: Cluster,
    pub(crate) view: ClusterView,
}

/// By partition of a topic: its ends, or why the cluster did not tell them.
pub(crate) type Ends = BTreeMap<(String, i32), Result<Watermarks>>;

/// Asks which of `topics` there are now.
pub(crate) async fn ask(
    bootstrap_servers: &str,
    properties: &KafkaProperties,
    topics: BTreeSet<String>,
) -> Result<Asked> {
    // Before librdkafka, which tries on in silence and then only says that there was no answer.
    let protocol = properties.get("security.protocol").map(String::as_str);
    everlog_proxy::reach(bootstrap_servers, protocol).await?;
    let mut all: Vec<(String, String)> =
        vec![("client.id".to_owned(), "everlog-inspect".to_owned())];
    all.extend(
        properties
            .iter()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    all.push(("bootstrap.servers".to_owned(), bootstrap_servers.to_owned()));
    let client = Cluster::new(&all)?;
    // It has been reached a moment ago, so the way there is not the reason.
    let cluster = client.cluster_id().await.with_context(|| {
        format!(
            "{bootstrap_servers} does not tell which cluster it is: look at `security.protocol` and the credentials in \
             [kafka.properties], and at the brokers' logs"
        )
    })?;
    let topics: Vec<String> = topics.into_iter().collect();
    let topics = client
        .topics_now(&topics)
        .await
        .context("it does not tell its topics")?
        .into_iter()
        .collect();
    Ok(Asked {
        client,
        view: ClusterView { cluster, topics },
    })
}

impl Asked {
    /// The ends of `partitions`, which have to be of topics that are there. One without a leader leaves the others be.
    pub(crate) async fn ends(&self, partitions: BTreeSet<(String, i32)>) -> Ends {
        futures::stream::iter(partitions)
            .map(|(topic, partition)| async move {
                let asked = self.client.watermarks(&topic, partition).await;
                let ends = asked.map_err(Into::into).map(|(low, high)| Watermarks {
                    live_start: low.get(),
                    high_watermark: high.get(),
                });
                ((topic, partition), ends)
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await
    }
}
