//! What a Fetch asks for, partition by partition, and the requests that are made of it.

use std::time::Duration;

use everlog_format::{Offset, OffsetRange, PartitionKey};
use everlog_index::Freshness;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{FetchRequest, TopicName};
use uuid::Uuid;

use crate::conversation::Conversation;
use crate::history::{Chain, History};
use crate::plan::{FetchPlan, Live, plan};
use crate::upstream::Gone;

use super::Fetch;
use super::answer::{Part, Served};
use super::memory::Mark;

/// A client that does not wait gives the first look into the archive this long.
const LOOK_MIN: Duration = Duration::from_millis(100);

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
    /// The broker could tell which topic this is, but has not: nothing may be concluded from the missing key.
    pub(super) unresolved: bool,
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

    /// Whether it stands right behind the last known commit while the cluster has committed records there: only these
    /// can be in a newer one. A reader at the log's end, or before an open transaction, has no reason to look.
    fn is_at_known_end(&self) -> bool {
        let covered = self
            .chain
            .snapshot()
            .and_then(|snapshot| snapshot.covered());
        let is_at_end = covered.map(OffsetRange::end) == self.offset();
        let committed_end = self.mark.map_or(-1, |mark| match mark.last_stable_offset {
            -1 => mark.high_watermark,
            end => end,
        });
        covered.is_some() && is_at_end && self.asked.fetch_offset < committed_end
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
    let tells = conversation.tells_topics(by_id).await?;
    let mut all = Vec::new();
    for topic in &request.topics {
        let topic_ref = TopicRef {
            name: topic.topic.clone(),
            id: topic.topic_id,
        };
        let named = conversation.named(&topic_ref, by_id);
        for asked in &topic.partitions {
            let key = named.key(conversation, asked.partition);
            let mark = key.as_ref().and_then(|key| conversation.fetches.mark(key));
            all.push(Wanted {
                topic: topic_ref.clone(),
                asked: asked.clone(),
                name: named.name.clone().filter(|_| key.is_some()),
                unresolved: tells && named.is_unresolved(),
                key,
                chain: Chain::None,
                mark,
                shadow_offset: None,
                plan: FetchPlan::Live,
            });
        }
    }
    let keys = all.iter().map(|wanted| wanted.key.clone()).collect();
    let limit = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
    let history = &conversation.shared.history;
    let limit = limit.max(LOOK_MIN);
    let chains = history.chains(keys, Freshness::Known, limit);
    for (wanted, chain) in all.iter_mut().zip(chains.await) {
        wanted.chain = chain;
    }
    look_past_known_ends(&mut all, history, limit).await;
    Ok(all)
}

/// Looks for newer commits where readers have come to the end of what is known, so that a long replay stays with the
/// archive and does not end up with the brokers.
async fn look_past_known_ends(all: &mut [Wanted], history: &History, limit: Duration) {
    let at_end = |wanted: &&mut Wanted| wanted.is_at_known_end();
    let at_end: Vec<&mut Wanted> = all.iter_mut().filter(at_end).collect();
    if at_end.is_empty() {
        return;
    }
    let keys = at_end.iter().map(|wanted| wanted.key.clone()).collect();
    // Once a second at most: the index sees to that.
    let newest = Freshness::Within(Duration::ZERO);
    for (wanted, chain) in at_end
        .into_iter()
        .zip(history.chains(keys, newest, limit).await)
    {
        // What is known stays true while the store is away.
        if chain.snapshot().is_some() {
            wanted.chain = chain;
        }
    }
}

/// What this connection knows of a topic.
pub(super) struct Named {
    /// `None`: unknown, or not selected for the archive.
    name: Option<TopicName>,
    id: Option<Uuid>,
    /// It may have an archive, as far as can be told.
    is_selected: bool,
}

impl Named {
    /// Selected as far as can be told, but half of its identity is missing.
    fn is_unresolved(&self) -> bool {
        self.is_selected && (self.name.is_none() || self.id.is_none())
    }

    fn key(&self, conversation: &Conversation, partition: i32) -> Option<PartitionKey> {
        match (&self.name, self.id) {
            (Some(_), Some(id)) => conversation.topics.key(id, partition),
            _ => None,
        }
    }
}

impl Conversation {
    /// Name and id of a topic, as far as this connection has learnt them.
    fn named(&self, topic: &TopicRef, by_id: bool) -> Named {
        let (name, id) = if by_id {
            (self.topics.name(topic.id).cloned(), Some(topic.id))
        } else {
            (Some(topic.name.clone()), self.topics.id(&topic.name))
        };
        let is_selected = name.as_ref().is_none_or(|name| {
            self.shared.history.selects(name) && (by_id || !self.topics.lacks_id(name))
        });
        Named {
            name: name.filter(|_| is_selected),
            id,
            is_selected,
        }
    }
}

impl Wanted {
    /// The broker has shown that the name may mean another topic by now: nothing of what is known under it is served
    /// any more, until it was asked for again. An id never changes its topic.
    pub(super) fn forget_topic(&mut self, conversation: &mut Conversation) {
        if !self.topic.id.is_nil() {
            return;
        }
        conversation.topics.forget_name(&self.topic.name);
        self.unresolved = self.key.take().is_some();
        self.name = None;
        self.chain = Chain::None;
        self.mark = None;
    }

    /// Asks the broker once more which topic this is, if it has not said so: it serves it by now.
    pub(super) async fn resolve(
        &mut self,
        conversation: &mut Conversation,
        version: i16,
    ) -> Result<(), Gone> {
        if !self.unresolved {
            return Ok(());
        }
        let by_id = version >= 13;
        if by_id {
            conversation.topics.doubt_id(self.topic.id);
            conversation
                .learn_names(std::iter::once(self.topic.id))
                .await?;
        } else {
            conversation.topics.doubt_name(&self.topic.name);
            conversation
                .learn_ids(std::iter::once(&self.topic.name))
                .await?;
        }
        let named = conversation.named(&self.topic, by_id);
        self.key = named.key(conversation, self.asked.partition);
        self.unresolved = named.is_selected && self.key.is_none();
        self.name = named.name.filter(|_| self.key.is_some());
        Ok(())
    }
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
    /// The client's request without a session, for no more than one response may hold, and with nothing else changed.
    pub(super) fn as_asked(&self) -> FetchRequest {
        let mut request = self.request.clone();
        let most = self.conversation.shared.fetch_bytes_max;
        request.max_bytes = request
            .max_bytes
            .min(i32::try_from(most).unwrap_or(i32::MAX));
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
