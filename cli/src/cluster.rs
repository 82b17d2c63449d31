//! What `inspect` asks the cluster: which life of each topic it has, and how far its logs reach.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use everlog_archiver::Cluster;
use everlog_format::{ClusterId, TopicId};
use futures::{StreamExt, TryStreamExt};

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

/// A cluster's partitions, as far as they were asked for.
#[derive(Clone, Debug)]
pub(crate) struct ClusterView {
    pub(crate) cluster: ClusterId,
    /// The ids that the topics have today. An archive can hold earlier lives of the same name.
    pub(crate) topic_ids: BTreeMap<String, TopicId>,
    pub(crate) watermarks: BTreeMap<(String, i32), Watermarks>,
}

/// Asks for `partitions`. Topics that the cluster does not have are left out.
pub(crate) async fn view(
    bootstrap_servers: &str,
    properties: &BTreeMap<String, String>,
    partitions: &BTreeSet<(String, i32)>,
) -> Result<ClusterView> {
    let mut all: Vec<(String, String)> =
        vec![("client.id".to_owned(), "everlog-inspect".to_owned())];
    all.extend(
        properties
            .iter()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    all.push(("bootstrap.servers".to_owned(), bootstrap_servers.to_owned()));
    let client = Cluster::new(&all)?;

    let cluster = client
        .cluster_id()
        .await
        .with_context(|| format!("no broker answered at {bootstrap_servers}"))?;
    let topics: BTreeSet<&String> = partitions.iter().map(|(topic, _)| topic).collect();
    let topics: Vec<String> = topics.into_iter().cloned().collect();
    let topic_ids: BTreeMap<String, TopicId> =
        client.topic_ids(&topics).await?.into_iter().collect();
    let client = &client;
    let there = partitions
        .iter()
        .filter(|(topic, _)| topic_ids.contains_key(topic))
        .cloned();
    let watermarks = futures::stream::iter(there)
        .map(|(topic, partition)| async move {
            let asked = client.watermarks(&topic, partition).await;
            let (low, high) = asked.with_context(|| format!("of {topic}/{partition}"))?;
            anyhow::Ok((
                (topic, partition),
                Watermarks {
                    live_start: low.get(),
                    high_watermark: high.get(),
                },
            ))
        })
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await?;
    Ok(ClusterView {
        cluster,
        topic_ids,
        watermarks,
    })
}
