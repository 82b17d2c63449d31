//! ListOffsets, versions 1 to 10: asked upstream as the client asked, then merged with what the archive knows.
//!
//! | question | answer |
//! |----------|--------|
//! | -1 latest, also for `read_committed` | the cluster's |
//! | -2 earliest | the archive's start, with the epoch there |
//! | -3 largest timestamp | the larger of both sides, of equals the lower offset |
//! | -4, -5 (tiered storage) | the cluster's: they describe the broker |
//! | a time | the archive's match if there is one, else the cluster's; the lower offset where both have one |
//!
//! An error of the broker goes through, so DESCRIBE, leadership and epochs are its business. While the archive can't be
//! read, the answer is KAFKA_STORAGE_ERROR, never the cluster's own earliest, which would skip all history.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use everlog_index::{Freshness, Snapshot};
use futures::stream::{self, StreamExt};
use kafka_protocol::messages::list_offsets_response::ListOffsetsPartitionResponse;
use kafka_protocol::messages::{ApiKey, ListOffsetsRequest, ListOffsetsResponse, TopicName};

use crate::connection::Answer;
use crate::conversation::{Conversation, EARLIEST, Failed};
use crate::errors::{HistoryError, error_code};
use crate::history::{Chain, History};
use crate::replay::TimestampHit;
use crate::shape;
use crate::upstream::{Frame, Gone};
use crate::wire::{self, Prefix};

const KEY: ApiKey = ApiKey::ListOffsets;

/// The record with the largest timestamp.
const MAX_TIMESTAMP: i64 = -3;

/// A commit that was looked for this long ago is new enough.
const FRESH: Freshness = Freshness::Within(Duration::from_secs(10));

/// Clients give up after 30 s; version 10 says how long they wait.
const LIMIT_MAX: Duration = Duration::from_secs(20);

/// For the chains of all partitions together.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Partitions whose archives are searched at the same time.
const SEARCHES: usize = 8;

/// Answers one ListOffsets.
pub(crate) async fn answer(
    conversation: &mut Conversation,
    prefix: Prefix,
    frame: Bytes,
) -> Result<Answer, Failed> {
    let version = prefix.version;
    let (header, request): (_, ListOffsetsRequest) =
        wire::decode_request(KEY, version, &shape::LIST_OFFSETS_REQUEST, frame.clone())
            .map_err(Failed::Request)?;
    conversation.client_id = header.client_id;
    let reply = conversation.upstream.send(frame).await?;
    let Frame { bytes, room } = reply.await.map_err(|_| Gone::Closed)?;
    let mut response: ListOffsetsResponse =
        wire::decode_response(KEY, version, &shape::LIST_OFFSETS_RESPONSE, &bytes)
            .map_err(Gone::from)?;
    let searches = searches(conversation, &request, &response).await?;
    let limit = match u64::try_from(request.timeout_ms) {
        Ok(limit) if version >= 10 && limit > 0 => Duration::from_millis(limit).min(LIMIT_MAX),
        _ => LIMIT_MAX,
    };
    if !searches.is_empty() {
        merge_all(
            &conversation.shared.history,
            &searches,
            &mut response,
            version,
            limit,
        )
        .await;
    }
    let encoded =
        wire::encode_response(KEY, version, prefix.correlation, &response).map_err(Gone::from)?;
    Ok(Answer {
        chunks: vec![encoded],
        room,
    })
}

/// What is asked of partitions that may have an archive.
type Searches = HashMap<(TopicName, i32), (i64, Chain)>;

/// One question that the archive can answer too.
struct Question {
    topic: TopicName,
    partition: i32,
    timestamp: i64,
}

async fn searches(
    conversation: &mut Conversation,
    request: &ListOffsetsRequest,
    response: &ListOffsetsResponse,
) -> Result<Searches, Gone> {
    let mut found = HashMap::new();
    let questions = questions(request, response, &conversation.shared.history);
    if questions.is_empty() {
        return Ok(found);
    }
    let names: Vec<&TopicName> = questions.iter().map(|question| &question.topic).collect();
    conversation.learn_ids(names.iter().copied()).await?;
    let unknown =
        |conversation: &Conversation, name: &TopicName| conversation.topics.id(name).is_none();
    if names.iter().any(|name| unknown(conversation, name)) {
        // The broker has just answered for this topic, so it knows it by now.
        for name in &names {
            conversation.topics.doubt_name(name);
        }
        conversation.learn_ids(names.iter().copied()).await?;
    }
    let tells = conversation.tells_topics(false).await?;
    let key = |question: &Question| {
        let id = conversation.topics.id(&question.topic)?;
        conversation.topics.key(id, question.partition)
    };
    let keys: Vec<_> = questions.iter().map(key).collect();
    let history = &conversation.shared.history;
    let chains = history.chains(keys.clone(), FRESH, LOOK_MAX).await;
    for ((question, key), chain) in questions.into_iter().zip(keys).zip(chains) {
        let chain = match (key, chain) {
            // Which topic it is was not told, so it is not known either that it has no history.
            (None, _) if tells => Chain::Unknown(history.failed(HistoryError::NoTopic)),
            (_, Chain::None) => continue,
            (_, chain) => chain,
        };
        let place = (question.topic, question.partition);
        found.insert(place, (question.timestamp, chain));
    }
    Ok(found)
}

/// What the broker answered without an error and the archive may know better.
fn questions(
    request: &ListOffsetsRequest,
    response: &ListOffsetsResponse,
    history: &History,
) -> Vec<Question> {
    // A follower asks for its own purposes.
    if request.replica_id.0 >= 0 {
        return Vec::new();
    }
    let topics = response.topics.iter();
    let answers = topics.flat_map(|topic| topic.partitions.iter().map(move |p| (&topic.name, p)));
    let answered: HashSet<(&TopicName, i32)> = answers
        .filter(|(_, partition)| partition.error_code == 0)
        .map(|(name, partition)| (name, partition.partition_index))
        .collect();
    let knows = |question: i64| question == EARLIEST || question == MAX_TIMESTAMP || question >= 0;
    let topics = request.topics.iter();
    let asked = topics.flat_map(|topic| topic.partitions.iter().map(move |p| (&topic.name, p)));
    asked
        .filter(|(name, partition)| {
            knows(partition.timestamp)
                && answered.contains(&(*name, partition.partition_index))
                && history.selects(name)
        })
        .map(|(name, partition)| Question {
            topic: name.clone(),
            partition: partition.partition_index,
            timestamp: partition.timestamp,
        })
        .collect()
}

async fn merge_all(
    history: &History,
    searches: &Searches,
    response: &mut ListOffsetsResponse,
    version: i16,
    limit: Duration,
) {
    let partitions = response.topics.iter_mut().flat_map(|topic| {
        let name = &topic.name;
        topic.partitions.iter_mut().filter_map(move |partition| {
            let search = searches.get(&(name.clone(), partition.partition_index))?;
            (partition.error_code == 0).then_some((partition, search))
        })
    });
    // Collected first: the stream must not borrow the closure above.
    let partitions: Vec<_> = partitions.collect();
    stream::iter(partitions)
        .for_each_concurrent(SEARCHES, |(partition, (question, chain))| async move {
            let archived = match chain {
                Chain::None => return,
                Chain::Unknown(error) => Err(error.clone()),
                Chain::Known(snapshot) => search(history, snapshot, *question, limit).await,
            };
            match archived {
                Ok(archived) => merge(partition, *question, archived, version),
                Err(error) => fail(partition, &error),
            }
        })
        .await;
}

/// The archive's own answer to a question; `None` if no record of it matches.
async fn search(
    history: &History,
    snapshot: &Arc<Snapshot>,
    question: i64,
    limit: Duration,
) -> Result<Option<TimestampHit>, HistoryError> {
    match question {
        EARLIEST => {
            let Some(covered) = snapshot.covered() else {
                return Ok(None);
            };
            let leader_epoch = history.epoch_at(snapshot, covered.start(), limit).await?;
            Ok(Some(TimestampHit {
                offset: covered.start(),
                timestamp_ms: -1,
                leader_epoch,
            }))
        }
        MAX_TIMESTAMP => history.max_timestamp(snapshot, limit).await,
        timestamp => {
            history
                .offset_for_timestamp(snapshot, timestamp, limit)
                .await
        }
    }
}

/// Puts the archive's answer in the place of the cluster's where it is the right one.
fn merge(
    live: &mut ListOffsetsPartitionResponse,
    question: i64,
    archived: Option<TimestampHit>,
    version: i16,
) {
    let Some(archived) = archived else { return };
    let offset = archived.offset.get();
    let better = match question {
        // Nothing live matches.
        _ if live.offset < 0 => true,
        MAX_TIMESTAMP => (live.timestamp, -live.offset) < (archived.timestamp_ms, -offset),
        // The lower offset; of the same record the cluster's own word.
        _ => offset < live.offset,
    };
    if better {
        live.offset = offset;
        live.timestamp = archived.timestamp_ms;
        // Versions before 4 have no field for it.
        live.leader_epoch = if version >= 4 {
            archived.leader_epoch.unwrap_or(-1)
        } else {
            -1
        };
    }
}

fn fail(live: &mut ListOffsetsPartitionResponse, error: &HistoryError) {
    live.error_code = error_code(error).code();
    (live.offset, live.timestamp, live.leader_epoch) = (-1, -1, -1);
}

#[cfg(test)]
mod tests {
    use everlog_format::Offset;

    use super::*;

    /// (offset, timestamp) on both sides and of the answer; -1 is none.
    #[track_caller]
    fn check(question: i64, live: (i64, i64), archived: Option<(i64, i64)>, answer: (i64, i64)) {
        let mut merged = ListOffsetsPartitionResponse::default()
            .with_offset(live.0)
            .with_timestamp(live.1);
        let hit = archived.map(|(offset, timestamp_ms)| TimestampHit {
            offset: Offset::new(offset).expect("not negative"),
            timestamp_ms,
            leader_epoch: Some(3),
        });
        merge(&mut merged, question, hit, 7);
        assert_eq!(
            (merged.offset, merged.timestamp),
            answer,
            "question {question}"
        );
    }

    #[test]
    fn earliest_is_the_archives_start() {
        check(EARLIEST, (900, -1), Some((0, -1)), (0, -1));
        check(EARLIEST, (900, -1), Some((900, -1)), (900, -1));
        check(EARLIEST, (5, -1), Some((9, -1)), (5, -1));
    }

    #[test]
    fn by_time_the_lower_offset_wins() {
        check(1000, (900, 1000), Some((4, 1001)), (4, 1001));
        check(1000, (-1, -1), Some((4, 1001)), (4, 1001));
        check(1000, (900, 1000), None, (900, 1000));
        check(1000, (-1, -1), None, (-1, -1));
        check(1000, (3, 1500), Some((4, 1001)), (3, 1500));
    }

    #[test]
    fn the_largest_timestamp_is_that_of_either_side() {
        check(MAX_TIMESTAMP, (900, 1000), Some((4, 2000)), (4, 2000));
        check(MAX_TIMESTAMP, (900, 3000), Some((4, 2000)), (900, 3000));
        check(MAX_TIMESTAMP, (900, 2000), Some((4, 2000)), (4, 2000));
        check(MAX_TIMESTAMP, (-1, -1), Some((4, 2000)), (4, 2000));
    }

    #[test]
    fn trouble_never_shows_the_clusters_own_earliest() {
        let mut live = ListOffsetsPartitionResponse::default().with_offset(900);
        fail(&mut live, &HistoryError::Slow);
        assert_eq!((live.error_code, live.offset), (56, -1));
    }
}
