//! Topic names and ids as this connection's client may see them, and the cluster's id.
//!
//! Asked for on the client's own connection, never shared between clients: whom the broker hides a topic from must not
//! learn of it here. A name can come to mean another topic, so it is asked for again after a while, and before each answer
//! that nothing else proves; an id never changes its name.
//!
//! The number of partitions is learnt as well: no archive is looked for, and nothing is kept, of partitions that a client
//! makes up. It grows, so whoever is told by the broker of a partition above it asks again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use everlog_format::{ClusterId, Incarnation, Partition, PartitionKey, TopicId};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use kafka_protocol::messages::{ApiKey, MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;
use uuid::Uuid;

use crate::shape;
use crate::upstream::{Gone, Upstream};

/// A name's id is asked for again after this long.
const NAME_AGE_MAX: Duration = Duration::from_secs(5);

/// An id the broker did not know (yet) is asked for again after this long.
const UNKNOWN_AGE_MAX: Duration = Duration::from_secs(5);

/// Topic ids came with version 10, asking by id with version 12.
pub(crate) const BY_NAME_MIN: i16 = 10;
pub(crate) const BY_ID_MIN: i16 = 12;
const NEWEST: i16 = 13;

/// What the broker said of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// That it does not know it; or it did not say.
    Nothing,
    /// That the topic has no id. So it can have no archive.
    NoId,
    /// Its id, and how many partitions it has.
    Id(Uuid, i32),
}

/// How old the answer to a question for names may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameAge {
    /// 5 s: the broker's answer to what is asked under the name will prove that it still means the same topic.
    Cached,
    /// Asked now: nothing else proves it.
    Now,
}

/// What one connection has learnt.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    cluster: Option<ClusterId>,
    by_name: HashMap<TopicName, (Told, Instant)>,
    /// With the name, the number of partitions.
    by_id: HashMap<Uuid, (Option<(TopicName, i32)>, Instant)>,
}

impl Topics {
    /// Makes sure that the ids of `names` are known, as far as the broker knows them.
    pub(crate) async fn learn_ids(
        &mut self,
        names: impl Iterator<Item = &TopicName>,
        age: NameAge,
        upstream: &mut Upstream,
        version_max: i16,
        client_id: Option<&StrBytes>,
    ) -> Result<(), Gone> {
        if version_max < BY_NAME_MIN {
            return Ok(());
        }
        let stale = |name: &&TopicName| {
            age == NameAge::Now
                || self
                    .by_name
                    .get(*name)
                    .is_none_or(|(_, at)| NAME_AGE_MAX <= at.elapsed())
        };
        // One stale name makes all of them be asked for: one request every five seconds, not one for each name.
        let names: HashSet<&TopicName> = names.collect();
        if !names.iter().any(stale) {
            return Ok(());
        }
        let wanted = names
            .iter()
            .map(|name| MetadataRequestTopic::default().with_name(Some((*name).clone())));
        let wanted = wanted.collect();
        let response = self
            .ask(wanted, upstream, version_max.min(NEWEST), client_id)
            .await?;
        let now = Instant::now();
        self.by_name
            .retain(|_, (_, at)| at.elapsed() < NAME_AGE_MAX);
        for name in names {
            self.by_name.insert(name.clone(), (Told::Nothing, now));
        }
        for topic in response.topics {
            if let Some(name) = topic.name {
                let told = match (topic.error_code, topic.topic_id) {
                    (0, id) if id.is_nil() => Told::NoId,
                    (0, id) => Told::Id(id, partition_count(&topic.partitions)),
                    _ => Told::Nothing,
                };
                self.by_name.insert(name, (told, now));
            }
        }
        Ok(())
    }

    /// Makes sure that the names of `ids` are known, as far as the broker knows them.
    pub(crate) async fn learn_names(
        &mut self,
        ids: impl Iterator<Item = Uuid>,
        upstream: &mut Upstream,
        version_max: i16,
        client_id: Option<&StrBytes>,
    ) -> Result<(), Gone> {
        if version_max < BY_ID_MIN {
            return Ok(());
        }
        let missing = |id: &Uuid| match self.by_id.get(id) {
            Some((Some(_), _)) => false,
            Some((None, at)) => UNKNOWN_AGE_MAX <= at.elapsed(),
            None => true,
        };
        let missing: Vec<Uuid> = ids.filter(missing).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let wanted = missing
            .iter()
            .map(|id| MetadataRequestTopic::default().with_topic_id(*id))
            .collect();
        let response = self
            .ask(wanted, upstream, version_max.min(NEWEST), client_id)
            .await?;
        let now = Instant::now();
        // A client that invents ids must not fill the memory.
        self.by_id.retain(|_, (name, _)| name.is_some());
        for id in missing {
            self.by_id.insert(id, (None, now));
        }
        for topic in response.topics {
            if let (0, Some(name)) = (topic.error_code, topic.name) {
                let named = (name, partition_count(&topic.partitions));
                self.by_id.insert(topic.topic_id, (Some(named), now));
            }
        }
        Ok(())
    }

    /// Drops what is known of a name if that leaves it open which archive `partition` has: the broker has just answered
    /// for it, so it can tell by now.
    pub(crate) fn doubt_name(&mut self, name: &TopicName, partition: i32) {
        let is_told = match self.by_name.get(name) {
            Some((Told::Id(_, partitions), _)) => partition < *partitions,
            Some((Told::Nothing | Told::NoId, _)) | None => false,
        };
        if !is_told {
            self.forget_name(name);
        }
    }

    /// Drops what a name means: the broker has shown that it may mean another topic by now.
    pub(crate) fn forget_name(&mut self, name: &TopicName) {
        self.by_name.remove(name);
    }

    /// As [`Topics::doubt_name`], for an id.
    pub(crate) fn doubt_id(&mut self, id: Uuid, partition: i32) {
        if self
            .named(id)
            .is_none_or(|(_, partitions)| partitions <= partition)
        {
            self.by_id.remove(&id);
        }
    }

    async fn ask(
        &mut self,
        topics: Vec<MetadataRequestTopic>,
        upstream: &mut Upstream,
        version: i16,
        client_id: Option<&StrBytes>,
    ) -> Result<MetadataResponse, Gone> {
        // No topic may come into being because the proxy asked.
        let request = MetadataRequest::default()
            .with_topics(Some(topics))
            .with_allow_auto_topic_creation(false);
        let response: MetadataResponse = upstream
            .call(
                ApiKey::Metadata,
                version,
                client_id,
                &request,
                &shape::METADATA_RESPONSE,
            )
            .await?;
        if let Some(cluster) = response
            .cluster_id
            .as_deref()
            .and_then(|id| ClusterId::new(id).ok())
        {
            self.cluster = Some(cluster);
        }
        Ok(response)
    }

    /// The name that an id has, and its number of partitions.
    pub(crate) fn named(&self, id: Uuid) -> Option<(&TopicName, i32)> {
        let (name, partitions) = self.by_id.get(&id)?.0.as_ref()?;
        Some((name, *partitions))
    }

    /// The id that a name has now, and its number of partitions.
    pub(crate) fn id(&self, name: &TopicName) -> Option<(Uuid, i32)> {
        match self.by_name.get(name)?.0 {
            Told::Id(id, partitions) => Some((id, partitions)),
            Told::Nothing | Told::NoId => None,
        }
    }

    /// Under which key the archive has this partition of a name; `None` too for one that the topic does not have.
    pub(crate) fn key_of(&self, name: &TopicName, partition: i32) -> Option<PartitionKey> {
        let (id, partitions) = self.id(name)?;
        if partition < partitions {
            self.key(id, partition)
        } else {
            None
        }
    }

    /// Whether the broker said that the topic has no id.
    pub(crate) fn lacks_id(&self, name: &TopicName) -> bool {
        self.by_name
            .get(name)
            .is_some_and(|(told, _)| *told == Told::NoId)
    }

    /// Under which key the archive has this partition, if the topic has it.
    pub(crate) fn key(&self, id: Uuid, partition: i32) -> Option<PartitionKey> {
        let incarnation = Incarnation {
            cluster: self.cluster.clone()?,
            topic_id: TopicId::from_uuid(id)?,
        };
        Some(PartitionKey {
            incarnation,
            partition: Partition::new(partition)?,
        })
    }
}

/// Partitions without a leader, or in other trouble, are named as well.
fn partition_count(partitions: &[MetadataResponsePartition]) -> i32 {
    let last = partitions
        .iter()
        .map(|partition| partition.partition_index)
        .max();
    last.map_or(0, |last| last.saturating_add(1))
}
