//! The walk accepts exactly what the codec writes, in every version, and nothing that is cut short.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{
    FetchPartition, FetchTopic, ForgottenTopic, ReplicaState,
};
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint,
    PartitionData,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes, VersionRange};

use super::*;

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

#[track_caller]
fn check<M: Encodable + Decodable + Debug>(
    shape: &Shape,
    versions: VersionRange,
    make: impl Fn(i16) -> M,
) {
    for version in versions.min..=versions.max {
        let mut body = BytesMut::new();
        make(version).encode(&mut body, version).expect("encodable");
        assert_eq!(shape.check(&body, version), Ok(()), "version {version}");
        for len in 0..body.len() {
            // The codec and the walk must agree on where a message is too short: a walk that stops early would let
            // an unproved length through.
            let cut = Bytes::copy_from_slice(&body[..len]);
            let walked = shape.check(&cut, version).is_ok();
            let decoded = M::decode(&mut cut.clone(), version).is_ok();
            assert_eq!(
                walked,
                decoded,
                "version {version} cut to {len} of {}",
                body.len()
            );
        }
    }
}

fn all(min: i16, max: i16) -> VersionRange {
    VersionRange { min, max }
}

#[test]
fn fetch() {
    check(&FETCH_REQUEST, all(4, 18), |v| {
        let mut partition = FetchPartition::default()
            .with_fetch_offset(7)
            .with_partition_max_bytes(1);
        partition.current_leader_epoch = if v >= 9 { 3 } else { -1 };
        partition.high_watermark = if v >= 18 { 5 } else { partition.high_watermark };
        let mut topic = FetchTopic::default().with_partitions(vec![partition.clone(), partition]);
        let mut forgotten = ForgottenTopic::default().with_partitions(vec![1, 2]);
        if v <= 12 {
            topic.topic = text("orders").into();
            forgotten.topic = text("gone").into();
        }
        let mut request = FetchRequest::default().with_topics(vec![topic]);
        if v >= 7 {
            request.forgotten_topics_data = vec![forgotten];
        }
        if v >= 11 {
            request.rack_id = text("rack");
        }
        if v >= 12 {
            request.cluster_id = Some(text("cluster"));
        }
        if v >= 15 {
            request.replica_state = ReplicaState::default().with_replica_id(3.into());
        }
        request
    });
    check(&FETCH_RESPONSE, all(4, 18), |v| {
        let mut partition = PartitionData::default()
            .with_records(Some(Bytes::from_static(b"records")))
            .with_aborted_transactions(Some(vec![AbortedTransaction::default()]));
        if v >= 12 {
            partition.diverging_epoch = EpochEndOffset::default().with_epoch(1).with_end_offset(2);
            partition.current_leader = LeaderIdAndEpoch::default()
                .with_leader_id(1.into())
                .with_leader_epoch(2);
        }
        let mut topic =
            FetchableTopicResponse::default().with_partitions(vec![partition.clone(), partition]);
        if v <= 12 {
            topic.topic = text("orders").into();
        }
        let mut response = FetchResponse::default().with_responses(vec![topic]);
        if v >= 16 {
            response.node_endpoints = vec![
                NodeEndpoint::default()
                    .with_host(text("host"))
                    .with_rack(Some(text("r"))),
            ];
        }
        response
    });
}

#[test]
fn offsets_and_epochs() {
    use kafka_protocol::messages::{list_offsets_request as q, list_offsets_response as r};
    check(&LIST_OFFSETS_REQUEST, all(1, 10), |_| {
        ListOffsetsRequest::default().with_topics(vec![
            q::ListOffsetsTopic::default()
                .with_name(text("orders").into())
                .with_partitions(vec![q::ListOffsetsPartition::default(); 2]),
        ])
    });
    check(&LIST_OFFSETS_RESPONSE, all(1, 10), |_| {
        ListOffsetsResponse::default().with_topics(vec![
            r::ListOffsetsTopicResponse::default()
                .with_name(text("orders").into())
                .with_partitions(vec![r::ListOffsetsPartitionResponse::default(); 2]),
        ])
    });
    use kafka_protocol::messages::{
        offset_for_leader_epoch_request as eq, offset_for_leader_epoch_response as er,
    };
    check(&OFFSET_FOR_LEADER_EPOCH_REQUEST, all(2, 4), |_| {
        OffsetForLeaderEpochRequest::default().with_topics(vec![
            eq::OffsetForLeaderTopic::default()
                .with_topic(text("orders").into())
                .with_partitions(vec![eq::OffsetForLeaderPartition::default(); 2]),
        ])
    });
    check(&OFFSET_FOR_LEADER_EPOCH_RESPONSE, all(2, 4), |_| {
        OffsetForLeaderEpochResponse::default().with_topics(vec![
            er::OffsetForLeaderTopicResult::default()
                .with_topic(text("orders").into())
                .with_partitions(vec![er::EpochEndOffset::default(); 2]),
        ])
    });
}

#[test]
fn addresses() {
    use kafka_protocol::messages::{
        describe_cluster_response as d, find_coordinator_response as f,
    };
    use kafka_protocol::messages::{metadata_response as m, produce_response as p};
    check(&METADATA_RESPONSE, all(0, 13), |v| {
        let partition = m::MetadataResponsePartition::default()
            .with_replica_nodes(vec![1.into(), 2.into()])
            .with_isr_nodes(vec![1.into()]);
        let topic = m::MetadataResponseTopic::default()
            .with_name(Some(text("orders").into()))
            .with_partitions(vec![partition.clone(), partition]);
        let mut broker = m::MetadataResponseBroker::default()
            .with_host(text("host"))
            .with_port(9092);
        broker.rack = (v >= 1).then(|| text("rack"));
        MetadataResponse::default()
            .with_brokers(vec![broker])
            .with_topics(vec![topic])
    });
    check(&FIND_COORDINATOR_RESPONSE, all(0, 6), |v| {
        let mut response = FindCoordinatorResponse::default();
        if v <= 3 {
            response.host = text("host");
        } else {
            response.coordinators = vec![
                f::Coordinator::default()
                    .with_host(text("host"))
                    .with_key(text("g")),
            ];
        }
        response
    });
    check(&DESCRIBE_CLUSTER_RESPONSE, all(0, 2), |_| {
        DescribeClusterResponse::default().with_brokers(vec![
            d::DescribeClusterBroker::default().with_host(text("host")),
        ])
    });
    check(&DESCRIBE_CLUSTER_REQUEST, all(0, 2), |_| {
        DescribeClusterRequest::default()
    });
    check(&PRODUCE_RESPONSE, all(3, 13), |v| {
        let mut partition = p::PartitionProduceResponse::default();
        if v >= 8 {
            partition.record_errors = vec![p::BatchIndexAndErrorMessage::default()];
        }
        let mut topic =
            p::TopicProduceResponse::default().with_partition_responses(vec![partition]);
        if v <= 12 {
            topic.name = text("orders").into();
        }
        let mut response = ProduceResponse::default().with_responses(vec![topic]);
        if v >= 10 {
            response.node_endpoints = vec![p::NodeEndpoint::default().with_host(text("host"))];
        }
        response
    });
    use kafka_protocol::messages::{share_acknowledge_response as sa, share_fetch_response as sf};
    check(&SHARE_FETCH_RESPONSE, all(1, 1), |_| {
        let partition = sf::PartitionData::default()
            .with_records(Some(Bytes::from_static(b"r")))
            .with_acquired_records(vec![sf::AcquiredRecords::default()]);
        ShareFetchResponse::default()
            .with_responses(vec![
                sf::ShareFetchableTopicResponse::default().with_partitions(vec![partition]),
            ])
            .with_node_endpoints(vec![sf::NodeEndpoint::default().with_host(text("host"))])
    });
    check(&SHARE_ACKNOWLEDGE_RESPONSE, all(1, 1), |_| {
        let partition = sa::PartitionData::default();
        ShareAcknowledgeResponse::default()
            .with_responses(vec![
                sa::ShareAcknowledgeTopicResponse::default().with_partitions(vec![partition]),
            ])
            .with_node_endpoints(vec![sa::NodeEndpoint::default().with_host(text("host"))])
    });
}

#[test]
fn versions() {
    use kafka_protocol::messages::api_versions_response as a;
    check(&API_VERSIONS_REQUEST, all(0, 4), |v| {
        let mut request = ApiVersionsRequest::default();
        if v >= 3 {
            request.client_software_name = text("java");
        }
        request
    });
    check(&API_VERSIONS_RESPONSE, all(0, 4), |v| {
        let mut response =
            ApiVersionsResponse::default().with_api_keys(vec![a::ApiVersion::default(); 3]);
        if v >= 3 {
            response.supported_features =
                vec![a::SupportedFeatureKey::default().with_name(text("f"))];
            response.finalized_features_epoch = 7;
            response.finalized_features =
                vec![a::FinalizedFeatureKey::default().with_name(text("f"))];
        }
        response
    });
}

#[test]
fn a_claim_of_two_billion_elements_is_refused() {
    // Fetch v4: replica, wait, min, max, isolation, then the count of topics.
    let mut body = vec![0u8; 17];
    body.extend(i32::MAX.to_be_bytes());
    assert_eq!(FETCH_REQUEST.check(&body, 4), Err(Malformed));
    let mut compact = vec![0u8; 13 + 8];
    compact.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert_eq!(FETCH_REQUEST.check(&compact, 16), Err(Malformed));
}
