//! Which (API key, version) pairs a client may use, and what happens to each.
//!
//! A pair is on the list only once its schema was read for broker addresses (fields named host, port or endpoint).
//! What is not on the list does not exist for clients: it is left out of ApiVersions, and using it closes the
//! connection, as a broker does. `docs/protocol.md` shows the same list with the reasons.

use kafka_protocol::messages::api_versions_response::ApiVersion;

/// What the proxy does with a request and its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// Decoded, asked upstream in a form of our own, answered from archive and cluster.
    Answered,
    /// The request passes as it is; broker addresses in the response are replaced.
    Patched,
    /// Passes both ways without being decoded.
    Passed,
}

/// One reviewed API.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reviewed {
    pub(crate) key: i16,
    pub(crate) name: &'static str,
    pub(crate) min: i16,
    pub(crate) max: i16,
    pub(crate) treatment: Treatment,
}

const fn reviewed(
    key: i16,
    name: &'static str,
    min: i16,
    max: i16,
    treatment: Treatment,
) -> Reviewed {
    Reviewed {
        key,
        name,
        min,
        max,
        treatment,
    }
}

use Treatment::{Answered, Passed, Patched};

/// The list, by key. No version is on it that the schemas of Kafka 4.3.1 (in its `kafka-clients` jar) do not have, but for
/// Produce; so none is older than what brokers offer since 4.0. All of them were searched for addresses there: the ones
/// that are passed have none of a broker's.
pub(crate) static REVIEWED: &[Reviewed] = &[
    // Versions 0 to 2 are gone since 4.0, but brokers still offer them, and so do we: librdkafka switches compression
    // off without them (KAFKA-18659). Who uses them gets the broker's refusal.
    reviewed(0, "Produce", 0, 13, Patched),
    reviewed(1, "Fetch", 4, 18, Answered),
    // The codec ends at 10; 11 only adds a question about tiered storage.
    reviewed(2, "ListOffsets", 1, 10, Answered),
    reviewed(3, "Metadata", 0, 13, Patched),
    reviewed(8, "OffsetCommit", 2, 10, Passed),
    reviewed(9, "OffsetFetch", 1, 10, Passed),
    reviewed(10, "FindCoordinator", 0, 6, Patched),
    reviewed(11, "JoinGroup", 0, 9, Passed),
    reviewed(12, "Heartbeat", 0, 4, Passed),
    reviewed(13, "LeaveGroup", 0, 5, Passed),
    reviewed(14, "SyncGroup", 0, 5, Passed),
    // Shows the proxy's address as the members' host: documented, not patched.
    reviewed(15, "DescribeGroups", 0, 6, Passed),
    reviewed(16, "ListGroups", 0, 5, Passed),
    // Version 0 is offered, since librdkafka takes its absence for "no SASL", and refused when used: raw tokens
    // without frames would follow.
    reviewed(17, "SaslHandshake", 0, 1, Passed),
    reviewed(18, "ApiVersions", 0, 4, Answered),
    reviewed(19, "CreateTopics", 2, 7, Passed),
    reviewed(20, "DeleteTopics", 1, 6, Passed),
    reviewed(21, "DeleteRecords", 0, 2, Passed),
    reviewed(22, "InitProducerId", 0, 5, Passed),
    reviewed(23, "OffsetForLeaderEpoch", 2, 4, Answered),
    // From 4 on it is spoken between brokers.
    reviewed(24, "AddPartitionsToTxn", 0, 3, Passed),
    reviewed(25, "AddOffsetsToTxn", 0, 4, Passed),
    reviewed(26, "EndTxn", 0, 5, Passed),
    reviewed(28, "TxnOffsetCommit", 0, 5, Passed),
    // The hosts in these three are those of ACL rules.
    reviewed(29, "DescribeAcls", 1, 3, Passed),
    reviewed(30, "CreateAcls", 1, 3, Passed),
    reviewed(31, "DeleteAcls", 1, 3, Passed),
    reviewed(32, "DescribeConfigs", 1, 4, Passed),
    reviewed(33, "AlterConfigs", 0, 2, Passed),
    reviewed(34, "AlterReplicaLogDirs", 1, 2, Passed),
    reviewed(35, "DescribeLogDirs", 1, 5, Passed),
    reviewed(36, "SaslAuthenticate", 0, 2, Passed),
    reviewed(37, "CreatePartitions", 0, 3, Passed),
    reviewed(38, "CreateDelegationToken", 1, 3, Passed),
    reviewed(39, "RenewDelegationToken", 1, 2, Passed),
    reviewed(40, "ExpireDelegationToken", 1, 2, Passed),
    reviewed(41, "DescribeDelegationToken", 1, 3, Passed),
    reviewed(42, "DeleteGroups", 0, 2, Passed),
    reviewed(43, "ElectLeaders", 0, 2, Passed),
    reviewed(44, "IncrementalAlterConfigs", 0, 1, Passed),
    reviewed(45, "AlterPartitionReassignments", 0, 1, Passed),
    reviewed(46, "ListPartitionReassignments", 0, 0, Passed),
    reviewed(47, "OffsetDelete", 0, 0, Passed),
    reviewed(48, "DescribeClientQuotas", 0, 1, Passed),
    reviewed(49, "AlterClientQuotas", 0, 1, Passed),
    reviewed(50, "DescribeUserScramCredentials", 0, 0, Passed),
    reviewed(51, "AlterUserScramCredentials", 0, 0, Passed),
    reviewed(57, "UpdateFeatures", 0, 2, Passed),
    reviewed(60, "DescribeCluster", 0, 2, Patched),
    reviewed(61, "DescribeProducers", 0, 0, Passed),
    reviewed(65, "DescribeTransactions", 0, 0, Passed),
    reviewed(66, "ListTransactions", 0, 2, Passed),
    reviewed(68, "ConsumerGroupHeartbeat", 0, 1, Passed),
    reviewed(69, "ConsumerGroupDescribe", 0, 1, Passed),
    reviewed(71, "GetTelemetrySubscriptions", 0, 0, Passed),
    reviewed(72, "PushTelemetry", 0, 0, Passed),
    reviewed(74, "ListConfigResources", 0, 1, Passed),
    reviewed(75, "DescribeTopicPartitions", 0, 0, Passed),
    reviewed(76, "ShareGroupHeartbeat", 1, 1, Passed),
    reviewed(77, "ShareGroupDescribe", 1, 1, Passed),
    // Version 2 is newer than the codec.
    reviewed(78, "ShareFetch", 1, 1, Patched),
    reviewed(79, "ShareAcknowledge", 1, 1, Patched),
    // The hosts in these two are where instances of the application offer Interactive Queries.
    reviewed(88, "StreamsGroupHeartbeat", 0, 0, Passed),
    reviewed(89, "StreamsGroupDescribe", 0, 0, Passed),
    reviewed(90, "DescribeShareGroupOffsets", 0, 1, Passed),
    reviewed(91, "AlterShareGroupOffsets", 0, 0, Passed),
    reviewed(92, "DeleteShareGroupOffsets", 0, 0, Passed),
];

/// The reviewed API that a request names; `None` closes the connection.
pub(crate) fn find(key: i16, version: i16) -> Option<&'static Reviewed> {
    let api = REVIEWED.iter().find(|api| api.key == key)?;
    (api.min <= version && version <= api.max).then_some(api)
}

/// What both sides can do, per key. An API whose range would be empty is left out.
pub(crate) fn intersect(offered: &[ApiVersion]) -> Vec<ApiVersion> {
    let both = |broker: &ApiVersion| {
        let ours = REVIEWED.iter().find(|api| api.key == broker.api_key)?;
        let (min, max) = (
            ours.min.max(broker.min_version),
            ours.max.min(broker.max_version),
        );
        (min <= max).then(|| broker.clone().with_min_version(min).with_max_version(max))
    };
    offered.iter().filter_map(both).collect()
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::ApiKey;

    use super::*;

    fn offer(key: i16, min: i16, max: i16) -> ApiVersion {
        ApiVersion::default()
            .with_api_key(key)
            .with_min_version(min)
            .with_max_version(max)
    }

    #[track_caller]
    fn check(offered: (i16, i16, i16), common: Option<(i16, i16)>) {
        let got = intersect(&[offer(offered.0, offered.1, offered.2)]);
        let got: Vec<_> = got
            .iter()
            .map(|api| (api.min_version, api.max_version))
            .collect();
        assert_eq!(got, Vec::from_iter(common), "{offered:?}");
    }

    #[test]
    fn the_range_is_what_both_sides_know() {
        check((1, 4, 18), Some((4, 18)));
        check((1, 0, 11), Some((4, 11)));
        check((1, 4, 99), Some((4, 18)));
        check((1, 0, 3), None);
        check((2, 1, 11), Some((1, 10)));
        check((0, 0, 13), Some((0, 13)));
        check((0, 3, 14), Some((3, 13)));
    }

    #[test]
    fn what_nobody_reviewed_is_hidden() {
        for key in [
            4, 5, 6, 7, 27, 52, 53, 54, 55, 56, 58, 59, 62, 63, 64, 67, 70, 73, 80, 81, 82, 83, 87,
            99, -1,
        ] {
            check((key, 0, 0), None);
            assert!(find(key, 0).is_none(), "{key}");
        }
        assert!(find(24, 4).is_none() && find(24, 3).is_some());
    }

    #[test]
    fn the_list_is_in_order_and_without_repetition() {
        assert!(REVIEWED.windows(2).all(|pair| pair[0].key < pair[1].key));
        assert!(
            REVIEWED
                .iter()
                .all(|api| 0 <= api.min && api.min <= api.max)
        );
    }

    #[test]
    fn what_is_decoded_lies_within_the_codec() {
        for api in REVIEWED.iter().filter(|api| api.treatment != Passed) {
            let codec = ApiKey::try_from(api.key)
                .expect("a key that the codec knows")
                .valid_versions();
            // Produce below 3 has no addresses in its response, so it passes undecoded.
            assert!(
                api.max <= codec.max && (api.min >= codec.min || api.key == 0),
                "{:?}",
                api.key
            );
        }
    }

    #[test]
    fn the_page_in_docs_says_the_same() {
        let page = include_str!("../../docs/protocol.md");
        let rows: Vec<&str> = page
            .lines()
            .filter(|line| line.split('|').count() == 7)
            .skip(2)
            .collect();
        assert_eq!(rows.len(), REVIEWED.len());
        for (row, api) in rows.iter().zip(REVIEWED) {
            let range = if api.min == api.max {
                api.min.to_string()
            } else {
                format!("{}-{}", api.min, api.max)
            };
            let treatment = format!("{:?}", api.treatment).to_lowercase();
            let start = format!("| {} | {} | {range} | {treatment} |", api.key, api.name);
            assert!(row.starts_with(&start), "{row} is not {start}");
        }
    }
}
