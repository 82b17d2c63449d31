//! What a Fetch asks for, partition by partition, and the requests that are made of it.

use std::collections::HashSet;
use std::time::Duration;

use everlog_format::{Offset, OffsetRange, PartitionKey};
use everlog_index::Freshness;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{ApiKey, FetchRequest, TopicName};
use uuid::Uuid;

use crate::conversation::Conversation;
use crate::history::{Chain, History, Sought};
use crate::plan::{FetchPlan, Live, plan};
use crate::topics::{NameAge, Topics};
use crate::upstream::Gone;

use super::Fetch;
use super::answer::{Part, Served};
use super::memory::Mark;

/// From this version on, topics are asked for by id.
pub(super) const BY_ID: i16 = 13;

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
    /// The broker could tell which topic this is and that it has the partition, but has not: nothing may be concluded from
    /// the missing key.
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

    /// The id of its topic, where it is known and selected for the archive.
    pub(super) fn id(&self) -> Option<Uuid> {
        Some(self.key.as_ref()?.incarnation.topic_id.as_uuid())
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

/// The version in which a client that names topics gets its shadows by id; `None`: in its own.
///
/// A topic that was deleted and made anew keeps its name. Below the old life's archived end its log may be long enough
/// to answer each shadow as the old one did; asked by id, the broker says that it knows no such topic.
pub(super) async fn proof_version(
    conversation: &mut Conversation,
    version: i16,
) -> Result<Option<i16>, Gone> {
    if version >= BY_ID {
        return Ok(None);
    }
    let newest = conversation.version_max(ApiKey::Fetch).await?;
    Ok((newest >= BY_ID).then_some(BY_ID))
}

/// The request's partitions, with what the archive has of each.
pub(super) async fn wanted(
    conversation: &mut Conversation,
    request: &FetchRequest,
    version: i16,
) -> Result<Vec<Wanted>, Gone> {
    let by_id = version >= BY_ID;
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
            // Shadows by id prove what a name means; brokers that know no fetch by id have to be asked each time.
            let age = match proof_version(conversation, version).await? {
                Some(_) => NameAge::Cached,
                None => NameAge::Now,
            };
            conversation.learn_ids(selected.into_iter(), age).await?;
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
                unresolved: tells && named.is_unresolved(asked.partition),
                key,
                chain: Chain::None,
                mark,
                shadow_offset: None,
                plan: FetchPlan::Live,
            });
        }
    }
    let sought = all.iter().map(Wanted::sought).collect();
    let limit = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
    let history = &conversation.shared.history;
    let limit = limit.max(LOOK_MIN);
    let chains = history.chains(sought, Freshness::Known, limit);
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
    let sought = at_end.iter().map(|wanted| wanted.sought()).collect();
    // Once a second at most: the index sees to that.
    let newest = Freshness::Within(Duration::ZERO);
    for (wanted, chain) in at_end
        .into_iter()
        .zip(history.chains(sought, newest, limit).await)
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
    /// How many partitions it has, as far as was told.
    partitions: i32,
    /// It may have an archive, as far as can be told.
    is_selected: bool,
}

impl Named {
    /// Selected as far as can be told, but a part of its identity is missing, or it was not told of this partition.
    fn is_unresolved(&self, partition: i32) -> bool {
        let is_told = self.name.is_some() && self.id.is_some() && partition < self.partitions;
        self.is_selected && !is_told
    }

    fn key(&self, conversation: &Conversation, partition: i32) -> Option<PartitionKey> {
        match (&self.name, self.id) {
            (Some(_), Some(id)) if partition < self.partitions => {
                conversation.topics.key(id, partition)
            }
            _ => None,
        }
    }
}

impl Conversation {
    /// Name and id of a topic, as far as this connection has learnt them.
    fn named(&self, topic: &TopicRef, by_id: bool) -> Named {
        let (name, id, partitions) = if by_id {
            let named = self.topics.named(topic.id);
            let (name, partitions) = named.map_or((None, 0), |(name, count)| (Some(name), count));
            (name.cloned(), Some(topic.id), partitions)
        } else {
            let told = self.topics.id(&topic.name);
            let (id, partitions) = told.map_or((None, 0), |(id, count)| (Some(id), count));
            (Some(topic.name.clone()), id, partitions)
        };
        let is_selected = name.as_ref().is_none_or(|name| {
            self.shared.history.selects(name) && (by_id || !self.topics.lacks_id(name))
        });
        Named {
            name: name.filter(|_| is_selected),
            id,
            partitions,
            is_selected,
        }
    }
}

impl Wanted {
    /// What to look for in the archive.
    pub(super) fn sought(&self) -> Option<Sought> {
        let (topic, key) = self.name.clone().zip(self.key.clone())?;
        Some(Sought { topic, key })
    }

    /// The broker serves this partition, of which it has not told when it was asked how many there are: there are more by
    /// now.
    pub(super) fn doubt_partition_count(&self, topics: &mut Topics) {
        let (topic, partition) = (&self.topic, self.asked.partition);
        if topics.named(topic.id).is_some() {
            topics.doubt_id(topic.id, partition);
        } else if topics.id(&topic.name).is_some() {
            topics.doubt_name(&topic.name, partition);
        }
    }

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
}

impl Fetch<'_> {
    /// Asks the broker once more which topics these are: what it has not said it can say by now, since it serves them; and
    /// a name may have come to mean another topic, which only a shadow would have shown.
    pub(super) async fn resolve(&mut self, indexes: &[usize]) -> Result<(), Gone> {
        let by_id = self.prefix.version >= BY_ID;
        let history = &self.conversation.shared.history;
        let asked = indexes.iter().map(|index| &self.wanted[*index]);
        if by_id {
            for wanted in asked.clone().filter(|wanted| wanted.unresolved) {
                let (id, partition) = (wanted.topic.id, wanted.asked.partition);
                self.conversation.topics.doubt_id(id, partition);
            }
            let ids: Vec<Uuid> = asked.map(|wanted| wanted.topic.id).collect();
            self.conversation.learn_names(ids.into_iter()).await?;
        } else {
            let selected = asked.map(|wanted| &wanted.topic.name);
            let selected = selected.filter(|name| history.selects(name));
            let names: HashSet<TopicName> = selected.cloned().collect();
            self.conversation
                .learn_ids(names.iter(), NameAge::Now)
                .await?;
        }
        let tells = self.conversation.tells_topics(by_id).await?;
        for index in indexes {
            let wanted = &mut self.wanted[*index];
            let partition = wanted.asked.partition;
            let named = self.conversation.named(&wanted.topic, by_id);
            let key = named.key(self.conversation, partition);
            if key != wanted.key {
                wanted.mark = None;
            }
            wanted.key = key;
            wanted.unresolved = tells && named.is_unresolved(partition);
            wanted.name = named.name.filter(|_| wanted.key.is_some());
        }
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

/// What the broker is asked in one round.
pub(super) struct Questions {
    /// In the client's version: live partitions, and behind them the shadows unless they are in `proof`.
    pub(super) request: FetchRequest,
    /// Shadows by id, for a client that names topics, and their version. Never without a partition.
    pub(super) proof: Option<(i16, FetchRequest)>,
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

    /// Live partitions as asked, and a shadow for each archived one, to be answered at once.
    pub(super) fn with_shadows(&mut self, live_bytes: usize) -> Questions {
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
        let by_id = |wanted: &Wanted| TopicRef {
            name: TopicName::default(),
            id: wanted.id().unwrap_or_default(),
        };
        let shadow = |wanted: &Wanted| {
            let shadow = FetchPartition::default()
                .with_partition(wanted.asked.partition)
                .with_current_leader_epoch(wanted.asked.current_leader_epoch)
                .with_fetch_offset(wanted.shadow_offset?)
                .with_partition_max_bytes(1);
            Some(shadow)
        };
        if let Some(version) = self.proof_version {
            let shadows: Vec<(TopicRef, FetchPartition)> = self
                .wanted
                .iter()
                .filter_map(|wanted| Some((by_id(wanted), shadow(wanted)?)))
                .collect();
            let mut proof = request.clone();
            // The broker's first partition may bring a batch: not more than one.
            proof.max_bytes = 1;
            proof.topics = topics(
                shadows
                    .iter()
                    .map(|(topic, shadow)| (topic, shadow.clone())),
            );
            request.topics = topics(live);
            // Whatever was archived may have turned out to be live.
            let proof = (!proof.topics.is_empty()).then_some((version, proof));
            return Questions { request, proof };
        }
        let shadows = self.wanted.iter();
        let shadows = shadows.filter_map(|wanted| Some((&wanted.topic, shadow(wanted)?)));
        request.topics = topics(live.chain(shadows));
        Questions {
            request,
            proof: None,
        }
    }
}
