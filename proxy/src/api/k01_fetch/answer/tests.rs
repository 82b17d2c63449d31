//! What is written by hand reads back through the codec, in every version.

use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, FetchableTopicResponse, LeaderIdAndEpoch,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::*;
use crate::history::Chain;
use crate::plan::FetchPlan;
use crate::shape;

fn wanted(version: i16, topic: u8, partition: i32) -> Wanted {
    let name = StrBytes::from_string(format!("topic-{topic}"));
    let by_id = version >= 13;
    Wanted {
        topic: TopicRef {
            name: if by_id {
                Default::default()
            } else {
                name.into()
            },
            id: if by_id {
                Uuid::from_bytes([topic; 16])
            } else {
                Uuid::nil()
            },
        },
        asked: FetchPartition::default().with_partition(partition),
        name: None,
        key: None,
        unresolved: false,
        chain: Chain::None,
        mark: None,
        shadow_offset: None,
        plan: FetchPlan::Live,
    }
}

fn sent(version: i16, wanted: &[Wanted]) -> FetchResponse {
    let mut response = FetchResponse::default().with_throttle_time_ms(3);
    for (index, one) in wanted.iter().enumerate() {
        let offset = i64::try_from(index).expect("small");
        let mut data = PartitionData::default()
            .with_partition_index(one.asked.partition)
            .with_high_watermark(100 + offset)
            .with_last_stable_offset(90 + offset)
            .with_records(Some(Bytes::from(vec![b'r'; index * 70])));
        data.aborted_transactions = match index % 3 {
            0 => None,
            1 => Some(Vec::new()),
            _ => Some(vec![
                AbortedTransaction::default()
                    .with_producer_id(5.into())
                    .with_first_offset(offset),
            ]),
        };
        data.log_start_offset = if version >= 5 { 7 } else { -1 };
        if version >= 12 && index == 1 {
            data.current_leader = LeaderIdAndEpoch::default()
                .with_leader_id(4.into())
                .with_leader_epoch(9);
            data.unknown_tagged_fields
                .insert(77, Bytes::from_static(b"later"));
        }
        let topic = FetchableTopicResponse::default()
            .with_topic(one.topic.name.clone())
            .with_topic_id(one.topic.id);
        if response
            .responses
            .last()
            .is_none_or(|last| last.topic != topic.topic || last.topic_id != topic.topic_id)
        {
            response.responses.push(topic);
        }
        response
            .responses
            .last_mut()
            .expect("just pushed")
            .partitions
            .push(data);
    }
    if version >= 16 {
        let node = NodeEndpoint::default()
            .with_node_id(4.into())
            .with_host(StrBytes::from_static_str("h"));
        response.node_endpoints = vec![
            node.clone().with_rack(Some(StrBytes::from_static_str("r"))),
            node,
        ];
    }
    response
}

#[test]
fn the_codec_reads_what_was_written_in_every_version() {
    for version in 4..=18 {
        let wanted: Vec<Wanted> = [(1, 0), (1, 1), (2, 0), (2, 5), (3, 1)]
            .map(|(topic, index)| wanted(version, topic, index))
            .into();
        let response = sent(version, &wanted);
        let parts = Parts::sort(response.clone(), &wanted, None);
        let prefix = Prefix {
            key: KEY as i16,
            version,
            correlation: 12,
        };
        let answer = encode(prefix, &wanted, parts);
        let frame: Bytes = answer.chunks.concat().into();
        assert_eq!(frame[..4], 12i32.to_be_bytes());
        let read: FetchResponse =
            wire::decode_response(KEY, version, &shape::FETCH_RESPONSE, &frame)
                .expect("version {version}");
        assert_eq!(read, response, "version {version}");
    }
}

#[test]
fn aborted_transactions_are_sorted() {
    let wanted = [wanted(12, 1, 0)];
    let mut response = sent(12, &wanted);
    let at = |offset| AbortedTransaction::default().with_first_offset(offset);
    response.responses[0].partitions[0].aborted_transactions = Some(vec![at(9), at(3)]);
    let parts = Parts::sort(response, &wanted, None);
    let aborted = parts.parts[0]
        .data
        .aborted_transactions
        .as_ref()
        .expect("a list");
    assert_eq!(
        aborted
            .iter()
            .map(|one| one.first_offset)
            .collect::<Vec<_>>(),
        [3, 9]
    );
}
