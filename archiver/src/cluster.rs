//! Questions to the cluster that are not fetches: metadata, watermarks, topic configurations, topic ids.
//!
//! All calls block a thread of tokio's blocking pool and end by a time-out. Errors say that the cluster did not answer
//! (try again after a pause); what a topic is or is not comes as a value.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use everlog_format::{ClusterId, Offset, TopicId, is_compacted};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Semaphore;

use crate::ArchiverError;
use crate::native::{Described, describe_topics};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Questions for watermarks that may be under way: each partition asks, and where no leader answers each holds a thread
/// until the time-out. Far below the size of tokio's blocking pool (512), which uploads and everything else need too, and not
/// small, since partitions whose leader is there queue behind those whose leader is gone.
const WATERMARKS_MAX: usize = 128;
/// Short, because the mock cluster never answers and the first look at a cluster waits for this.
const CONFIGS_TIMEOUT: Duration = Duration::from_secs(3);
/// A describe that follows a fetch from the same broker: the connection stands, so it answers soon or not at all.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(8);

/// The cluster did not answer, or not usefully: try again after a pause.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// librdkafka's error.
    #[error("the cluster did not answer for {what}")]
    Unavailable {
        /// What was asked.
        what: &'static str,
        /// The cause.
        source: KafkaError,
    },
    /// An answer that can't be used.
    #[error("the cluster's answer for {what} can't be used: {why}")]
    Unusable {
        /// What was asked.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
}

impl ClusterError {
    /// Whether the cluster has answered that there is no such partition.
    pub(crate) fn is_unknown_partition(&self) -> bool {
        let ClusterError::Unavailable { source, .. } = self else {
            return false;
        };
        matches!(
            source.rdkafka_error_code(),
            Some(RDKafkaErrorCode::UnknownPartition | RDKafkaErrorCode::UnknownTopicOrPartition)
        )
    }
}

/// The cluster as its metadata show it.
#[derive(Clone, Debug)]
pub(crate) struct ClusterView {
    pub(crate) brokers: BTreeSet<i32>,
    /// Names of those that have a partition.
    pub(crate) topics: Vec<String>,
}

/// What a topic's configuration says, as far as archiving cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicConfigs {
    /// All of it, for `topic.json`; sensitive values are left out.
    pub(crate) all: BTreeMap<String, String>,
}

impl TopicConfigs {
    pub(crate) fn is_compacted(&self) -> bool {
        self.all
            .get("cleanup.policy")
            .is_some_and(|policy| is_compacted(policy))
    }

    /// `None` if endless or unknown.
    pub(crate) fn retention(&self) -> Option<Duration> {
        self.all
            .get("retention.ms")?
            .parse()
            .ok()
            .map(Duration::from_millis)
    }
}

/// What the cluster says of a topic's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicNow {
    /// The topic is there, in the life that has this id.
    Is(TopicId),
    /// There is no topic of this name.
    Absent,
    /// It does not say: no right to see it, no topic ids, or brokers that do not know it all yet.
    Untold,
}

/// From what one broker described, and whether the list of all topics has it: only both together say that it is not there.
fn topic_now(described: Result<Option<TopicId>, RDKafkaErrorCode>, is_listed: bool) -> TopicNow {
    match described {
        Ok(Some(id)) => TopicNow::Is(id),
        Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
            if !is_listed =>
        {
            TopicNow::Absent
        }
        Ok(None) | Err(_) => TopicNow::Untold,
    }
}

struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            // The operator's properties are also for the consumer; those that this client has no use for are no news.
            _ if facility == "CONFWARN" => tracing::debug!(facility, text, "librdkafka says"),
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::info!(facility, text, "librdkafka warns"),
            _ => tracing::debug!(facility, text, "librdkafka says"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "the connection to the cluster is in trouble, librdkafka retries");
    }
}

/// A topic as its brokers tell of it in one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    pub(crate) id: TopicId,
    pub(crate) partition_count: u32,
}

/// The cluster, to be asked.
#[derive(Clone)]
pub struct Cluster {
    client: Arc<AdminClient<Context>>,
    watermarks: Arc<Semaphore>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl Cluster {
    /// A client with these librdkafka properties. It connects when it is asked something.
    pub fn new(properties: &[(String, String)]) -> Result<Cluster, ArchiverError> {
        let mut config = ClientConfig::new();
        for (key, value) in properties {
            config.set(key, value);
        }
        // It counts as a producer, whose questions would bring a topic that was just deleted back to life.
        config.set("allow.auto.create.topics", "false");
        let client =
            AdminClient::from_config_and_context(&config, Context).map_err(
                |error| match error {
                    KafkaError::ClientConfig(_, why, key, _) => {
                        ArchiverError::Property { key, why }
                    }
                    other => ArchiverError::Client {
                        why: other.to_string(),
                    },
                },
            )?;
        Ok(Cluster {
            client: Arc::new(client),
            watermarks: Arc::new(Semaphore::new(WATERMARKS_MAX)),
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        ask: impl FnOnce(&AdminClient<Context>) -> Result<T, ClusterError> + Send + 'static,
    ) -> Result<T, ClusterError> {
        let client = Arc::clone(&self.client);
        match tokio::task::spawn_blocking(move || ask(&client)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClusterError::Unusable {
                what,
                why: "the asking thread ended".to_owned(),
            }),
        }
    }

    /// The cluster's id.
    pub async fn cluster_id(&self) -> Result<ClusterId, ClusterError> {
        let what = "its id";
        let id = self
            .blocking(what, |client| {
                Ok(client.inner().fetch_cluster_id(REQUEST_TIMEOUT))
            })
            .await?;
        let id = id.ok_or(ClusterError::Unusable {
            what,
            why: "there is none in time".to_owned(),
        })?;
        ClusterId::new(&id).map_err(|error| ClusterError::Unusable {
            what,
            why: error.to_string(),
        })
    }

    /// Brokers and topics; of one topic or of all.
    pub(crate) async fn metadata(
        &self,
        topic: Option<String>,
    ) -> Result<ClusterView, ClusterError> {
        let what = "metadata";
        self.blocking(what, move |client| {
            let metadata = client
                .inner()
                .fetch_metadata(topic.as_deref(), REQUEST_TIMEOUT)
                .map_err(|source| ClusterError::Unavailable { what, source })?;
            let topics = metadata
                .topics()
                .iter()
                .filter(|topic| topic.error().is_none() && !topic.partitions().is_empty());
            Ok(ClusterView {
                brokers: metadata
                    .brokers()
                    .iter()
                    .map(|broker| broker.id())
                    .collect(),
                topics: topics.map(|topic| topic.name().to_owned()).collect(),
            })
        })
        .await
    }

    /// Live start and high watermark, asked of the partition's leader.
    pub async fn watermarks(
        &self,
        topic: &str,
        partition: i32,
    ) -> Result<(Offset, Offset), ClusterError> {
        let what = "watermarks";
        let topic = topic.to_owned();
        let permit = Arc::clone(&self.watermarks).acquire_owned().await;
        let (low, high) = self
            .blocking(what, move |client| {
                // Held by the thread: whoever asked may have given up by now.
                let _permit = permit;
                let asked = client
                    .inner()
                    .fetch_watermarks(&topic, partition, REQUEST_TIMEOUT);
                asked.map_err(|source| ClusterError::Unavailable { what, source })
            })
            .await?;
        let offset = |raw| {
            Offset::new(raw).map_err(|error| ClusterError::Unusable {
                what,
                why: error.to_string(),
            })
        };
        Ok((offset(low)?, offset(high)?))
    }

    /// The configurations of those of `topics` for which the cluster tells them: without the right to DescribeConfigs it
    /// answers with nothing in it, and one that does not know the question (the mock cluster) lets it time out.
    pub(crate) async fn configs(
        &self,
        topics: &[String],
    ) -> Result<HashMap<String, TopicConfigs>, ClusterError> {
        let what = "topic configurations";
        let resources: Vec<_> = topics
            .iter()
            .map(|topic| ResourceSpecifier::Topic(topic))
            .collect();
        let options = AdminOptions::new().request_timeout(Some(CONFIGS_TIMEOUT));
        let answers = self
            .client
            .describe_configs(&resources, &options)
            .await
            .map_err(|source| ClusterError::Unavailable { what, source })?;
        let mut found = HashMap::new();
        for answer in answers.into_iter().flatten() {
            // rdkafka shows a refusal as a topic without a single configuration, which there is none of.
            if answer.entries.is_empty() {
                continue;
            }
            if let rdkafka::admin::OwnedResourceSpecifier::Topic(topic) = answer.specifier {
                let told = answer
                    .entries
                    .into_iter()
                    .filter(|entry| !entry.is_sensitive);
                let all = told
                    .filter_map(|entry| entry.value.map(|value| (entry.name, value)))
                    .collect();
                found.insert(topic, TopicConfigs { all });
            }
        }
        Ok(found)
    }

    /// What `broker` says of `topics`; at most a few hundred at a time.
    pub(crate) async fn describe(
        &self,
        topics: Vec<String>,
        broker: i32,
    ) -> Result<Vec<Described>, ClusterError> {
        let what = "topic ids";
        self.blocking(what, move |client| {
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            describe_topics(
                client.inner().native_ptr(),
                &names,
                Some(broker),
                DESCRIBE_TIMEOUT,
            )
            .map_err(|why| ClusterError::Unusable { what, why })
        })
        .await
    }

    /// What some broker says of each of `topics` now.
    pub async fn topics_now(
        &self,
        topics: &[String],
    ) -> Result<HashMap<String, TopicNow>, ClusterError> {
        let view = self.metadata(None).await?;
        let listed: BTreeSet<&str> = view.topics.iter().map(String::as_str).collect();
        let mut found = HashMap::new();
        for names in topics.chunks(200) {
            for described in self.describe_anywhere(names, &view.brokers).await?.1 {
                let is_listed = listed.contains(described.topic.as_str());
                found.insert(described.topic, topic_now(described.id, is_listed));
            }
        }
        Ok(found)
    }

    /// Asks one broker after the other until one answers, and says which one has.
    async fn describe_anywhere(
        &self,
        topics: &[String],
        brokers: &BTreeSet<i32>,
    ) -> Result<(i32, Vec<Described>), ClusterError> {
        let mut last = ClusterError::Unusable {
            what: "topic ids",
            why: "there is no broker to ask".to_owned(),
        };
        for broker in brokers {
            match self.describe(topics.to_vec(), *broker).await {
                Ok(described) => return Ok((*broker, described)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// What the first broker that answers knows of `topics`, and whether all others have said the same.
    pub(crate) async fn describe_everywhere(
        &self,
        topics: &[String],
        brokers: &BTreeSet<i32>,
    ) -> Result<(Vec<Described>, bool), ClusterError> {
        let (first, described) = self.describe_anywhere(topics, brokers).await?;
        let ids = |described: &[Described]| -> BTreeMap<String, Option<TopicId>> {
            described
                .iter()
                .map(|one| (one.topic.clone(), one.id.as_ref().ok().copied().flatten()))
                .collect()
        };
        let wanted = ids(&described);
        for broker in brokers.iter().filter(|broker| **broker != first) {
            match self.describe(topics.to_vec(), *broker).await {
                Ok(other) if ids(&other) == wanted => {}
                Ok(_) | Err(_) => return Ok((described, false)),
            }
        }
        Ok((described, true))
    }

    /// What `topic` is now, `None` if there is no such topic: asked of the brokers that have served its records.
    ///
    /// A broker takes a new topic into its metadata before it serves it, so one that has served a record of a new
    /// incarnation can't tell the old id afterwards; any other broker might, while it lags. If a serving broker is gone,
    /// all that are left have to agree.
    pub(crate) async fn incarnation(
        &self,
        topic: &str,
        served: &BTreeSet<i32>,
    ) -> Result<Option<Sight>, ClusterError> {
        let what = "topic ids";
        if !served.is_empty()
            && let Ok(sight) = self.agreed(topic, served).await
        {
            return Ok(sight);
        }
        let view = self.metadata(Some(topic.to_owned())).await?;
        if view.brokers.is_empty() {
            return Err(ClusterError::Unusable {
                what,
                why: "the cluster has no broker".to_owned(),
            });
        }
        self.agreed(topic, &view.brokers).await
    }

    async fn agreed(
        &self,
        topic: &str,
        brokers: &BTreeSet<i32>,
    ) -> Result<Option<Sight>, ClusterError> {
        let unusable = |why: String| ClusterError::Unusable {
            what: "topic ids",
            why,
        };
        let mut ids = BTreeSet::new();
        let mut partition_count = 0;
        for broker in brokers {
            let described = self.describe(vec![topic.to_owned()], *broker).await?;
            let described = described
                .into_iter()
                .find(|described| described.topic == topic);
            // Some may not know yet of those that were added.
            let told = described.as_ref().map_or(0, |told| told.partition_count);
            partition_count = partition_count.max(told);
            ids.insert(match described.map(|described| described.id) {
                Some(Ok(Some(id))) => Some(id),
                Some(Ok(None)) => return Err(unusable("the brokers give no topic ids".to_owned())),
                Some(Err(RDKafkaErrorCode::UnknownTopicOrPartition)) => None,
                Some(Err(code)) => return Err(unusable(format!("{code}"))),
                None => return Err(unusable("the topic is not in it".to_owned())),
            });
        }
        match (ids.len(), ids.into_iter().next()) {
            (1, Some(id)) => Ok(id.map(|id| Sight {
                id,
                partition_count,
            })),
            _ => Err(unusable("the brokers do not agree".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_topic_that_nobody_knows_is_absent() {
        let unknown = || Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        assert_eq!(topic_now(unknown(), false), TopicNow::Absent);
        // Listed by one broker, not known to another: it has just been made, or just been deleted.
        assert_eq!(topic_now(unknown(), true), TopicNow::Untold);
        let hidden = Err(RDKafkaErrorCode::TopicAuthorizationFailed);
        assert_eq!(topic_now(hidden, false), TopicNow::Untold);
        assert_eq!(topic_now(Ok(None), true), TopicNow::Untold);
    }

    /// With the cluster away, hundreds of partitions took all threads of the pool, ten seconds each, and uploads waited for
    /// them.
    #[test]
    fn partitions_that_get_no_answer_leave_threads_for_others() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(WATERMARKS_MAX + 8)
            .enable_all()
            .build()
            .unwrap();
        let properties = [("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())];
        let cluster = Cluster::new(&properties).unwrap();
        runtime.block_on(async {
            for partition in 0..300 {
                let cluster = cluster.clone();
                tokio::spawn(async move { cluster.watermarks("orders", partition).await });
            }
            while 0 < cluster.watermarks.available_permits() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let other = tokio::task::spawn_blocking(|| ());
            let other = tokio::time::timeout(Duration::from_secs(3), other).await;
            assert!(other.is_ok(), "it waits for a thread");
        });
        // Not by dropping it: that would wait for the questions' time-out.
        runtime.shutdown_background();
    }

    #[test]
    fn configurations_tell_compaction_and_retention() {
        let configs = |pairs: &[(&str, &str)]| TopicConfigs {
            all: pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        };
        assert!(configs(&[("cleanup.policy", "delete,compact")]).is_compacted());
        assert!(!configs(&[("cleanup.policy", "delete")]).is_compacted());
        assert!(!configs(&[]).is_compacted());
        assert_eq!(
            configs(&[("retention.ms", "1500")]).retention(),
            Some(Duration::from_millis(1_500))
        );
        assert_eq!(configs(&[("retention.ms", "-1")]).retention(), None);
    }
}
