//! OffsetForLeaderEpoch, versions 2 to 4: asked upstream as the client asked; where the cluster has forgotten the epoch,
//! the archive knows its end exactly.
//!
//! A cluster that has let go of an epoch names the start of the first one it still knows, which lies behind the true
//! end. That makes clients validate too little, never too much. So trouble in the archive leaves the cluster's answer
//! as it is.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use everlog_index::{EpochStart, Freshness};
use kafka_protocol::messages::offset_for_leader_epoch_response::EpochEndOffset;
use kafka_protocol::messages::{
    ApiKey, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse, TopicName,
};
use tokio::time::{Duration, Instant, timeout_at};

use crate::connection::Answer;
use crate::conversation::{Conversation, Failed};
use crate::history::Sought;
use crate::shape;
use crate::topics::NameAge;
use crate::upstream::{Frame, Gone};
use crate::wire::{self, Prefix};

const KEY: ApiKey = ApiKey::OffsetForLeaderEpoch;

/// For all partitions together. The epochs lie in the tree's nodes, most of them cached.
const LIMIT: Duration = Duration::from_secs(2);

/// Answers one OffsetForLeaderEpoch.
pub(crate) async fn answer(
    conversation: &mut Conversation,
    prefix: Prefix,
    frame: Bytes,
) -> Result<Answer, Failed> {
    let version = prefix.version;
    let shape = &shape::OFFSET_FOR_LEADER_EPOCH_REQUEST;
    let request: OffsetForLeaderEpochRequest =
        conversation.read(KEY, version, shape, frame.clone())?;
    let reply = conversation.upstream.send(frame).await?;
    let Frame { bytes, room } = reply.await.map_err(|_| Gone::Closed)?;
    let mut response: OffsetForLeaderEpochResponse = wire::decode_response(
        KEY,
        version,
        &shape::OFFSET_FOR_LEADER_EPOCH_RESPONSE,
        &bytes,
    )
    .map_err(Gone::from)?;
    // A follower truncates its log by this answer: it gets the leader's.
    if version < 3 || request.replica_id.0 < 0 {
        sharpen(conversation, &request, &mut response).await?;
    }
    let encoded =
        wire::encode_response(KEY, version, prefix.correlation, &response).map_err(Gone::from)?;
    Ok(Answer {
        chunks: vec![encoded],
        room,
    })
}

async fn sharpen(
    conversation: &mut Conversation,
    request: &OffsetForLeaderEpochRequest,
    response: &mut OffsetForLeaderEpochResponse,
) -> Result<(), Gone> {
    let shared = Arc::clone(&conversation.shared);
    let selected = request
        .topics
        .iter()
        .filter(|topic| shared.history.selects(&topic.topic));
    let selected: Vec<_> = selected.collect();
    if selected.is_empty() {
        return Ok(());
    }
    // After the broker's answer, so that it is the same topic that both speak of.
    conversation
        .learn_ids(selected.iter().map(|topic| &topic.topic), NameAge::Now)
        .await?;
    let mut asked = Vec::new();
    for topic in selected {
        for partition in &topic.partitions {
            let key = conversation
                .topics
                .key_of(&topic.topic, partition.partition);
            let topic = &topic.topic;
            let sought = key.map(|key| Sought {
                topic: topic.clone(),
                key,
            });
            asked.push((topic, partition, sought));
        }
    }
    let mut answers: HashMap<(TopicName, i32), &mut EpochEndOffset> = HashMap::new();
    for topic in &mut response.topics {
        for answer in &mut topic.partitions {
            if answer.error_code == 0 {
                answers.insert((topic.topic.clone(), answer.partition), answer);
            }
        }
    }
    let until = Instant::now() + LIMIT;
    let sought = asked.iter().map(|(.., sought)| sought.clone()).collect();
    let history = &shared.history;
    let chains = history.chains(sought, Freshness::Known, LIMIT).await;
    for ((topic, asked, _), chain) in asked.into_iter().zip(chains) {
        let answer = answers.get_mut(&(topic.clone(), asked.partition));
        let Some((answer, snapshot)) = answer.zip(chain.snapshot()) else {
            continue;
        };
        if let Ok(Ok(epochs)) = timeout_at(until, snapshot.epochs()).await {
            merge(answer, asked.leader_epoch, &epochs);
        }
    }
    Ok(())
}

/// Replaces the cluster's answer if the archive knows an earlier end of the very epoch that was asked for.
///
/// The archive knows epochs by their records. The last one of it may go on in the cluster, and one without records is
/// not in it: for both the cluster's answer stays. So does "never heard of it" (-1), which is for epochs above the
/// leader's.
fn merge(live: &mut EpochEndOffset, asked: i32, archived: &[EpochStart]) {
    let Some(index) = archived.iter().position(|entry| entry.epoch == asked) else {
        return;
    };
    let Some(next) = archived.get(index + 1) else {
        return;
    };
    if next.start.get() < live.end_offset {
        live.leader_epoch = asked;
        live.end_offset = next.start.get();
    }
}

#[cfg(test)]
mod tests {
    use everlog_format::Offset;

    use super::*;

    fn archive() -> Vec<EpochStart> {
        let entry = |(epoch, start)| EpochStart {
            epoch,
            start: Offset::new(start).expect("not negative"),
        };
        [(0, 0), (2, 100), (5, 300)].map(entry).to_vec()
    }

    /// What the cluster answers, as (epoch, end), and what the client gets.
    #[track_caller]
    fn check(asked: i32, live: (i32, i64), answer: (i32, i64)) {
        let mut merged = EpochEndOffset::default()
            .with_leader_epoch(live.0)
            .with_end_offset(live.1);
        merge(&mut merged, asked, &archive());
        assert_eq!(
            (merged.leader_epoch, merged.end_offset),
            answer,
            "epoch {asked}"
        );
    }

    #[test]
    fn a_forgotten_epoch_ends_where_the_archive_says() {
        check(0, (0, 900), (0, 100));
        check(2, (2, 900), (2, 300));
    }

    #[test]
    fn what_the_cluster_still_knows_is_its_own() {
        check(2, (2, 299), (2, 299));
        check(5, (5, 900), (5, 900));
    }

    #[test]
    fn an_epoch_without_records_or_above_the_leaders_is_left_alone() {
        check(1, (1, 900), (1, 900));
        check(7, (-1, -1), (-1, -1));
        check(0, (-1, -1), (-1, -1));
    }
}
