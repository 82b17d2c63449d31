//! Questions to the cluster that are not fetches: metadata, watermarks, topic configurations, topic ids.
//!
//! All calls block a thread of tokio's blocking pool and end by a time-out. Errors say that the cluster did not answer
//! (try again after a pause); what a topic is or is not comes as a value.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use everlog_format::{ClusterId, Offset, TopicId};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use crate::ArchiverError;
use crate::native::{Described, describe_topics};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
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

/// A topic as the cluster's metadata show it.
#[derive(Clone, Debug)]
pub(crate) struct TopicView {
    pub(crate) name: String,
    /// Leader node ids by partition number; -1 without a leader.
    pub(crate) leaders: BTreeMap<i32, i32>,
}

/// The cluster as its metadata show it.
#[derive(Clone, Debug)]
pub(crate) struct ClusterView {
    pub(crate) brokers: BTreeSet<i32>,
    pub(crate) topics: Vec<TopicView>,
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
            .is_some_and(|policy| policy.split(',').any(|part| part.trim() == "compact"))
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

/// The cluster, to be asked.
#[derive(Clone)]
pub struct Cluster {
    client: Arc<AdminClient<Context>>,
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
                topics: topics
                    .map(|topic| TopicView {
                        name: topic.name().to_owned(),
                        leaders: topic
                            .partitions()
                            .iter()
                            .map(|partition| (partition.id(), partition.leader()))
                            .collect(),
                    })
                    .collect(),
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
        let (low, high) = self
            .blocking(what, move |client| {
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

    /// The configurations of topics (a cluster that does not know the question lets it time out); `None` if this cluster does not tell them (the mock cluster, or no permission).
    pub(crate) async fn configs(&self, topics: &[String]) -> Option<HashMap<String, TopicConfigs>> {
        let resources: Vec<_> = topics
            .iter()
            .map(|topic| ResourceSpecifier::Topic(topic))
            .collect();
        let options = AdminOptions::new().request_timeout(Some(CONFIGS_TIMEOUT));
        let answers = match self.client.describe_configs(&resources, &options).await {
            Ok(answers) => answers,
            Err(error) => {
                tracing::debug!(%error, "the cluster does not tell topic configurations, taking the defaults");
                return None;
            }
        };
        let mut found = HashMap::new();
        for answer in answers.into_iter().flatten() {
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
        Some(found)
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

    /// The ids of `topics` as some broker sees them now; those that the cluster does not have are left out.
    pub async fn topic_ids(
        &self,
        topics: &[String],
    ) -> Result<HashMap<String, TopicId>, ClusterError> {
        let view = self.metadata(None).await?;
        let mut found = HashMap::new();
        for names in topics.chunks(200) {
            for described in self.describe_anywhere(names, &view.brokers).await?.1 {
                if let Ok(Some(id)) = described.id {
                    found.insert(described.topic, id);
                }
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

    /// The id of `topic` now, `None` if there is no such topic: asked of the brokers that have served its records.
    ///
    /// A broker takes a new topic into its metadata before it serves it, so one that has served a record of a new
    /// incarnation can't tell the old id afterwards; any other broker might, while it lags. If a serving broker is gone,
    /// all that are left have to agree.
    pub(crate) async fn incarnation(
        &self,
        topic: &str,
        served: &BTreeSet<i32>,
    ) -> Result<Option<TopicId>, ClusterError> {
        let what = "topic ids";
        if !served.is_empty()
            && let Ok(id) = self.agreed_id(topic, served).await
        {
            return Ok(id);
        }
        let view = self.metadata(Some(topic.to_owned())).await?;
        if view.brokers.is_empty() {
            return Err(ClusterError::Unusable {
                what,
                why: "the cluster has no broker".to_owned(),
            });
        }
        self.agreed_id(topic, &view.brokers).await
    }

    async fn agreed_id(
        &self,
        topic: &str,
        brokers: &BTreeSet<i32>,
    ) -> Result<Option<TopicId>, ClusterError> {
        let unusable = |why: String| ClusterError::Unusable {
            what: "topic ids",
            why,
        };
        let mut ids = BTreeSet::new();
        for broker in brokers {
            let described = self.describe(vec![topic.to_owned()], *broker).await?;
            let id = described
                .into_iter()
                .find(|described| described.topic == topic)
                .map(|described| described.id);
            ids.insert(match id {
                Some(Ok(Some(id))) => Some(id),
                Some(Ok(None)) => return Err(unusable("the brokers give no topic ids".to_owned())),
                Some(Err(RDKafkaErrorCode::UnknownTopicOrPartition)) => None,
                Some(Err(code)) => return Err(unusable(format!("{code}"))),
                None => return Err(unusable("the topic is not in it".to_owned())),
            });
        }
        match (ids.len(), ids.into_iter().next()) {
            (1, Some(id)) => Ok(id),
            _ => Err(unusable("the brokers do not agree".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
