//! The name of every object of an archive. Names are made of checked parts, so that none can fail here.

use everlog_format::{Day, Hash, Incarnation, OffsetRange, Partition, PartitionKey};
use everlog_store::Key;

use crate::TopicInfo;

/// `everlog.json`: the format file at the archive's root.
pub(crate) fn format_file() -> Key {
    key("everlog.json".to_owned())
}

/// Below this lies one folder per cluster, in it one per topic id.
pub(crate) const META: &str = "meta";

/// The folder of an incarnation's index.
pub(crate) fn incarnation_folder(incarnation: &Incarnation) -> String {
    format!("{META}/{}/{}", incarnation.cluster, incarnation.topic_id)
}

/// `topic.json` of an incarnation.
pub(crate) fn topic_file(incarnation: &Incarnation) -> Key {
    key(format!("{}/topic.json", incarnation_folder(incarnation)))
}

/// The folder of a partition's commits.
pub(crate) fn commit_folder(at: &PartitionKey) -> String {
    format!(
        "{}/{}/commit",
        incarnation_folder(&at.incarnation),
        at.partition
    )
}

/// A commit. Numbers count downwards in the name, so that the newest comes first in key order.
pub(crate) fn commit(at: &PartitionKey, number: u64) -> Key {
    key(format!("{}/{:020}", commit_folder(at), u64::MAX - number))
}

/// The number in a commit's key; `None` for anything else that lies there.
pub(crate) fn commit_number(key: &Key) -> Option<u64> {
    let name = key.as_str().rsplit('/').next()?;
    let plain = name.len() == 20 && name.bytes().all(|c| c.is_ascii_digit());
    let counted_down: u64 = if plain {
        name.parse().ok()?
    } else {
        return None;
    };
    Some(u64::MAX - counted_down)
}

/// A sealed node.
pub(crate) fn node(at: &PartitionKey, hash: Hash) -> Key {
    key(format!(
        "{}/{}/node/{hash}",
        incarnation_folder(&at.incarnation),
        at.partition
    ))
}

/// The object name of a segment:
/// `data/cluster=<c>/topic=<t>/incarnation=<id8>/dt=<day>/<partition>-<start>-<end>-<hash>.parquet`.
pub fn segment_key(
    topic: &TopicInfo,
    partition: Partition,
    range: OffsetRange,
    day: Day,
    hash: Hash,
) -> Key {
    key(format!(
        "data/cluster={}/topic={}/incarnation={}/dt={day}/{partition}-{}-{}-{hash}.parquet",
        topic.incarnation.cluster,
        topic.name,
        topic.incarnation.topic_id.short(),
        range.start(),
        range.end(),
    ))
}

fn key(text: String) -> Key {
    // Cluster ids have at most 200 characters, topic names 249: no part passes 255, no key 900, and Kafka's own
    // character set is inside the one for keys.
    Key::new(text).expect("names of checked parts are valid keys")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use everlog_format::{ClusterId, Offset, TopicId, TopicName};

    use super::*;

    fn at(cluster: &str) -> PartitionKey {
        PartitionKey {
            incarnation: Incarnation {
                cluster: ClusterId::new(cluster).unwrap(),
                topic_id: TopicId::new("4L6g3nShT-eMCtK--X86sw").unwrap(),
            },
            partition: Partition::new(i32::MAX).unwrap(),
        }
    }

    #[test]
    fn numbers_count_downwards_and_read_back() {
        let at = at("c");
        assert!(commit(&at, 8) < commit(&at, 7));
        for number in [0, 1, 255, u64::MAX - 1, u64::MAX] {
            assert_eq!(commit_number(&commit(&at, number)), Some(number));
        }
        assert_eq!(
            commit(&at, 0).as_str(),
            "meta/c/4L6g3nShT-eMCtK--X86sw/2147483647/commit/18446744073709551615"
        );
        assert_eq!(
            commit_number(&Key::new("a/18446744073709551616").unwrap()),
            None
        );
        assert_eq!(
            commit_number(&Key::new("a/1844674407370955161").unwrap()),
            None
        );
    }

    #[test]
    fn the_longest_names_that_kafka_allows_still_make_keys() {
        let at = at(&"c".repeat(200));
        let topic = TopicInfo {
            incarnation: at.incarnation.clone(),
            name: TopicName::new(&"t".repeat(249)).unwrap(),
            partition_count: 1,
            configs: std::collections::BTreeMap::new(),
        };
        let last = Offset::new(i64::MAX).unwrap();
        let range = OffsetRange::new(Offset::new(i64::MAX - 1).unwrap(), last).unwrap();
        let name = segment_key(&topic, at.partition, range, Day::UNKNOWN, Hash::of(b""));
        assert!(name.as_str().ends_with(".parquet"));
        let longer = "c".repeat(201);
        assert!(
            ClusterId::new(&longer).is_err(),
            "its part of a name would pass 255"
        );
    }
}
