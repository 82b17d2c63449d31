//! What a Fetch asks for, partition by partition, and the requests that are made of it.

use everlog_format::{Offset, PartitionKey};
use everlog_index::Freshness;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{FetchRequest, TopicName};
use uuid::Uuid;

use crate::conversation::Conversation;
use crate::history::Chain;
use crate::plan::{FetchPlan, Live, plan};
use crate::upstream::Gone;

use super::Fetch;
use super::answer::{Part, Served};
use super::memory::Mark;

/// A topic as this version of the request names it: by name up to 12, by id from 13 on. The other half is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TopicRef {
    pub(super) name: TopicName,
    pub(super) id: Uuid,
}

/// One partition of the request.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) topic: TopicRef,
    pub(super) asked: FetchPartition,
    /// Its name, where it is known and selected for the archive.
    pub(super) name: Option<TopicName>,
    /// Under which the archive has it; set together with `name`.
    pub(super) key: Option<PartitionKey>,
    pub(super) chain: Chain,
    /// The last that the broker said of this partition on this connection.
    pub(super) mark: Option<Mark>,
    /// Where its shadow of this round asked.
    pub(super) shadow_offset: Option<i64>,
    pub(super) plan: FetchPlan,
}

impl Wanted {
    pub(super) fn is_archived(&self) -> bool {
        self.plan == FetchPlan::Archive
    }

    /// `None` for a negative offset, which is the broker's to refuse.
    pub(super) fn offset(&self) -> Option<Offset> {
        Offset::new(self.asked.fetch_offset).ok()
    }

    pub(super) fn partition_max_bytes(&self) -> usize {
        usize::try_from(self.asked.partition_max_bytes).unwrap_or(0)
    }

    pub(super) fn make_plan(&mut self) {
        let covered = self
            .chain
            .snapshot()
            .and_then(|snapshot| snapshot.covered());
        let end = self
            .mark
            .and_then(|mark| Offset::new(mark.high_watermark).ok());
        self.plan = match self.offset() {
            Some(offset) => plan(offset, covered, Live::Unasked { end }),
            None => FetchPlan::Live,
        };
    }

    /// The same log start in every answer, wherever its records come from.
    pub(super) fn finish(&self, part: &mut Part) {
        let Some(covered) = self
            .chain
            .snapshot()
            .and_then(|snapshot| snapshot.covered())
        else {
            return;
        };
        let start = &mut part.data.log_start_offset;
        if part.data.error_code == 0 && (*start < 0 || covered.start().get() < *start) {
            *start = covered.start().get();
        }
        if part.served == Served::Archive {
            // Records beside a preferred replica would be lost: clients go there and drop them.
            part.data.preferred_read_replica = (-1).into();
        }
    }
}

/// The request's partitions, with what the archive has of each.
pub(super) async fn wanted(
    conversation: &mut Conversation,
    request: &FetchRequest,
    version: i16,
) -> Result<Vec<Wanted>, Gone> {
    let by_id = version >= 13;
    if by_id {
        conversation
            .learn_names(request.topics.iter().map(|topic| topic.topic_id))
            .await?;
    } else {
        let shared = std::sync::Arc::clone(&conversation.shared);
        let selected = request
            .topics
            .iter()
            .map(|topic| &topic.topic)
            .filter(|name| shared.history.selects(name));
        let selected: Vec<&TopicName> = selected.collect();
        if !selected.is_empty() {
            conversation.learn_ids(selected.into_iter()).await?;
        }
    }
    let mut all = Vec::new();
    for topic in &request.topics {
        let (name, id) = if by_id {
            (
                conversation.topics.name(topic.topic_id).cloned(),
                Some(topic.topic_id),
            )
        } else {
            (
                Some(topic.topic.clone()),
                conversation.topics.id(&topic.topic),
            )
        };
        let name = name.filter(|name| conversation.shared.history.selects(name));
        for asked in &topic.partitions {
            let key = match (&name, id) {
                (Some(_), Some(id)) => conversation.topics.key(id, asked.partition),
                _ => None,
            };
            let chain = match &key {
                Some(key) => {
                    conversation
                        .shared
                        .history
                        .chain(key, Freshness::Known)
                        .await
                }
                None => Chain::None,
            };
            let mark = key.as_ref().and_then(|key| conversation.fetches.mark(key));
            all.push(Wanted {
                topic: TopicRef {
                    name: topic.topic.clone(),
                    id: topic.topic_id,
                },
                asked: asked.clone(),
                name: name.clone().filter(|_| key.is_some()),
                key,
                chain,
                mark,
                shadow_offset: None,
                plan: FetchPlan::Live,
            });
        }
    }
    Ok(all)
}

/// Groups partitions under their topics, in order; neighbours of one topic share an entry.
fn topics<'a>(partitions: impl Iterator<Item = (&'a TopicRef, FetchPartition)>) -> Vec<FetchTopic> {
    let mut topics: Vec<FetchTopic> = Vec::new();
    for (topic, partition) in partitions {
        match topics.last_mut() {
            Some(last) if last.topic == topic.name && last.topic_id == topic.id => {
                last.partitions.push(partition)
            }
            _ => topics.push(
                FetchTopic::default()
                    .with_topic(topic.name.clone())
                    .with_topic_id(topic.id)
                    .with_partitions(vec![partition]),
            ),
        }
    }
    topics
}

impl Fetch<'_> {
    /// The client's request without a session, and with nothing else changed.
    pub(super) fn as_asked(&self) -> FetchRequest {
        let mut request = self.request.clone();
        request.session_id = 0;
        // -1 asks for no session; versions before 7 have no field for it.
        request.session_epoch = -1;
        request.forgotten_topics_data = Vec::new();
        request.topics = topics(
            self.wanted
                .iter()
                .map(|wanted| (&wanted.topic, wanted.asked.clone())),
        );
        request
    }

    /// Live partitions as asked, then a shadow for each archived one, to be answered at once.
    pub(super) fn with_shadows(&mut self, live_bytes: usize) -> FetchRequest {
        let (account, now) = (
            self.conversation.fetches.account,
            tokio::time::Instant::now(),
        );
        for wanted in &mut self.wanted {
            wanted.shadow_offset = wanted
                .mark
                .filter(|_| wanted.is_archived())
                .map(|mark| account.shadow_offset(mark, now));
        }
        let mut request = self.as_asked();
        request.max_wait_ms = 0;
        request.min_bytes = 0;
        request.max_bytes = i32::try_from(live_bytes).unwrap_or(i32::MAX);
        let live = self.wanted.iter().filter(|wanted| !wanted.is_archived());
        let live = live.map(|wanted| (&wanted.topic, wanted.asked.clone()));
        let shadows = self.wanted.iter().filter_map(|wanted| {
            let shadow = FetchPartition::default()
                .with_partition(wanted.asked.partition)
                .with_current_leader_epoch(wanted.asked.current_leader_epoch)
                .with_fetch_offset(wanted.shadow_offset?)
                .with_partition_max_bytes(1);
            Some((&wanted.topic, shadow))
        });
        request.topics = topics(live.chain(shadows));
        request
    }
}
