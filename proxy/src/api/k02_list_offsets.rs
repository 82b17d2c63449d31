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
//! read, the answer is KAFKA_STORAGE_ERROR, never the cluster's own earliest, which would skip all history. The same
//! where neither side can speak for the records between the archived end and the live start: the cluster's match may
//! not be the first one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use everlog_index::{Freshness, Snapshot};
use futures::stream::{self, StreamExt};
use kafka_protocol::messages::list_offsets_response::ListOffsetsPartitionResponse;
use kafka_protocol::messages::{ApiKey, ListOffsetsRequest, ListOffsetsResponse, TopicName};
use tokio::time::Instant;

use crate::connection::Answer;
use crate::conversation::{Conversation, EARLIEST, Failed};
use crate::errors::{HistoryError, error_code};
use crate::history::{Chain, History, Sought};
use crate::replay::TimestampHit;
use crate::shape;
use crate::topics::NameAge;
use crate::upstream::{Frame, Gone};
use crate::wire::{self, Prefix};

const KEY: ApiKey = ApiKey::ListOffsets;

/// The record with the largest timestamp.
const MAX_TIMESTAMP: i64 = -3;

/// A commit that was looked for this long ago is new enough.
const FRESH: Freshness = Freshness::Within(Duration::from_secs(10));

/// For all that the archive is asked in a request. Clients give up after 30 s; version 10 says how long they wait.
const LIMIT_MAX: Duration = Duration::from_secs(20);

/// For one look at the chains of all partitions together.
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
    let begun = Instant::now();
    let request: ListOffsetsRequest =
        conversation.read(KEY, version, &shape::LIST_OFFSETS_REQUEST, frame.clone())?;
    let reply = conversation.upstream.send(frame).await?;
    let Frame { bytes, room } = reply.await.map_err(|_| Gone::Closed)?;
    let mut response: ListOffsetsResponse =
        wire::decode_response(KEY, version, &shape::LIST_OFFSETS_RESPONSE, &bytes)
            .map_err(Gone::from)?;
    let limit = match u64::try_from(request.timeout_ms) {
        Ok(limit) if version >= 10 && limit > 0 => Duration::from_millis(limit).min(LIMIT_MAX),
        _ => LIMIT_MAX,
    };
    // One deadline for all that the archive is asked: a limit for each partition would add up to more than any client waits.
    // How long the broker takes is its own business.
    let until = begun + limit;
    let searches = searches(conversation, &request, &response, until).await?;
    let mut found = search_all(&conversation.shared.history, &searches, until).await;
    mind_the_gap(conversation, &searches, &mut found, until).await?;
    for topic in &mut response.topics {
        for partition in &mut topic.partitions {
            let place = (topic.name.clone(), partition.partition_index);
            if let Some((search, archived)) = searches.get(&place).zip(found.remove(&place)) {
                match archived {
                    Ok(archived) => merge(partition, search.question, archived, version),
                    Err(error) => fail(partition, &error),
                }
            }
        }
    }
    let encoded =
        wire::encode_response(KEY, version, prefix.correlation, &response).map_err(Gone::from)?;
    Ok(Answer {
        chunks: vec![encoded],
        room,
    })
}

/// A partition, as the request names it.
type Place = (TopicName, i32);

/// What is asked of partitions that may have an archive.
type Searches = HashMap<Place, Search>;

/// What the archive says to each question; nothing where no record of it matches.
type Found = HashMap<Place, Result<Option<TimestampHit>, HistoryError>>;

/// One of them.
struct Search {
    question: i64,
    /// `None` only beside [`Chain::Unknown`].
    sought: Option<Sought>,
    chain: Chain,
}

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
    until: Instant,
) -> Result<Searches, Gone> {
    let mut found = HashMap::new();
    let questions = questions(request, response, &conversation.shared.history);
    if questions.is_empty() {
        return Ok(found);
    }
    // After the broker's answer, and never from memory: the name may have come to mean another topic since.
    let names = || questions.iter().map(|question| &question.topic);
    conversation.learn_ids(names(), NameAge::Now).await?;
    let unknown = |conversation: &Conversation, question: &Question| {
        let (name, partition) = (&question.topic, question.partition);
        conversation.topics.key_of(name, partition).is_none() && !conversation.topics.lacks_id(name)
    };
    if questions
        .iter()
        .any(|question| unknown(conversation, question))
    {
        // The broker has just answered for it, so it can tell by now.
        conversation.learn_ids(names(), NameAge::Now).await?;
    }
    let tells = conversation.tells_topics(false).await?;
    let sought = |question: &Question| {
        let (topic, partition) = (question.topic.clone(), question.partition);
        let key = conversation.topics.key_of(&topic, partition)?;
        Some(Sought { topic, key })
    };
    let sought: Vec<_> = questions.iter().map(sought).collect();
    let history = &conversation.shared.history;
    let chains = newest_chains(history, sought.clone(), until).await;
    for ((question, sought), chain) in questions.into_iter().zip(sought).zip(chains) {
        let may_have_one = tells && !conversation.topics.lacks_id(&question.topic);
        let chain = match (&sought, chain) {
            // Which topic it is was not told, so it is not known either that it has no history.
            (None, _) if may_have_one => {
                let (topic, partition) = (&question.topic, question.partition);
                Chain::Unknown(history.failed(topic, partition, HistoryError::NoTopic))
            }
            (_, Chain::None) => continue,
            (_, chain) => chain,
        };
        let search = Search {
            question: question.timestamp,
            sought,
            chain,
        };
        found.insert((question.topic, question.partition), search);
    }
    Ok(found)
}

/// A commit may be 10 s old. That there is none may not: whoever asks for the earliest offset just after the first
/// commit would begin behind it.
async fn newest_chains(
    history: &History,
    sought: Vec<Option<Sought>>,
    until: Instant,
) -> Vec<Chain> {
    let left = || LOOK_MAX.min(until.saturating_duration_since(Instant::now()));
    let mut chains = history.chains(sought.clone(), FRESH, left()).await;
    let doubted: Vec<usize> = (0..chains.len())
        .filter(|index| sought[*index].is_some() && matches!(chains[*index], Chain::None))
        .collect();
    let asked = doubted.iter().map(|index| sought[*index].clone()).collect();
    // Once a second at most: the index sees to that.
    let newest = Freshness::Within(Duration::ZERO);
    let again = history.chains(asked, newest, left()).await;
    for (index, chain) in doubted.into_iter().zip(again) {
        chains[index] = chain;
    }
    chains
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

/// Asks the archive of each partition, some at a time; whose turn comes after `until` gets what is at hand.
async fn search_all(history: &History, searches: &Searches, until: Instant) -> Found {
    let ask = |(place, search): (&Place, &Search)| {
        let (place, question, chain) = (place.clone(), search.question, search.chain.clone());
        async move {
            let found = match chain {
                Chain::None => Ok(None),
                Chain::Unknown(error) => Err(error),
                Chain::Known(snapshot) => ask_archive(history, &snapshot, question, until).await,
            };
            (place, found)
        }
    };
    // Collected first: the stream must not borrow the closure.
    let asked: Vec<_> = searches.iter().map(ask).collect();
    stream::iter(asked)
        .buffer_unordered(SEARCHES)
        .collect()
        .await
}

/// Where the archive has no match, or not necessarily the largest one, the cluster's word stands; but only if its log
/// still holds everything behind the commit that was searched. If it does not, a newer commit may.
async fn mind_the_gap(
    conversation: &mut Conversation,
    searches: &Searches,
    found: &mut Found,
    until: Instant,
) -> Result<(), Gone> {
    let is_open = |place: &Place, answer: &Result<Option<TimestampHit>, HistoryError>| {
        let question = searches.get(place).map(|search| search.question);
        match answer {
            Ok(hit) => question == Some(MAX_TIMESTAMP) || hit.is_none(),
            Err(_) => false,
        }
    };
    let open: Vec<Place> = found
        .iter()
        .filter(|(place, answer)| is_open(place, answer))
        .map(|(place, _)| place.clone())
        .collect();
    // After the archive was searched: a log only loses its beginning, so what it still has now it had before.
    let starts = conversation.live_offsets(&open, EARLIEST).await?;
    let history = &conversation.shared.history;
    let reaches = |chain: &Chain, start: i64| {
        let end = chain.snapshot().and_then(|snapshot| snapshot.covered());
        end.is_some_and(|covered| start <= covered.end().get())
    };
    let mut behind = Vec::new();
    for place in open {
        let Some(search) = searches.get(&place) else {
            continue;
        };
        match starts.get(&place).copied() {
            Some(start) if reaches(&search.chain, start) => {}
            Some(start) => behind.push((place, search, start)),
            None => {
                let failed = history.failed(&place.0, place.1, HistoryError::NoLiveStart);
                found.insert(place, Err(failed));
            }
        }
    }
    let sought = behind.iter().map(|(_, search, _)| search.sought.clone());
    let left = until.saturating_duration_since(Instant::now());
    let newest = Freshness::Within(Duration::ZERO);
    let chains = history.chains(sought.collect(), newest, left).await;
    let mut newer = Searches::new();
    for ((place, search, start), chain) in behind.into_iter().zip(chains) {
        match chain {
            Chain::Known(_) if reaches(&chain, start) => {
                let (question, sought) = (search.question, search.sought.clone());
                let search = Search {
                    question,
                    sought,
                    chain,
                };
                newer.insert(place, search);
            }
            Chain::Known(_) | Chain::None => {
                let failed = history.failed(&place.0, place.1, HistoryError::NotYet);
                found.insert(place, Err(failed));
            }
            Chain::Unknown(error) => {
                found.insert(place, Err(error));
            }
        }
    }
    found.extend(search_all(history, &newer, until).await);
    Ok(())
}

/// The archive's own answer to a question; `None` if no record of it matches.
async fn ask_archive(
    history: &History,
    snapshot: &Arc<Snapshot>,
    question: i64,
    until: Instant,
) -> Result<Option<TimestampHit>, HistoryError> {
    let limit = until.saturating_duration_since(Instant::now());
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
