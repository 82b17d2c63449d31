//! The decoders of objects, for the fuzz targets alone: nothing else builds this.

use everlog_format::{ClusterId, Hash, Incarnation, Partition, PartitionKey, Salt, TopicId};

use crate::commit::Commit;
use crate::node::{Node, Shape};

fn key() -> PartitionKey {
    PartitionKey {
        incarnation: Incarnation {
            cluster: ClusterId::new("c").expect("a name"),
            topic_id: TopicId::new("4L6g3nShT-eMCtK--X86sw").expect("an id"),
        },
        partition: Partition::new(0).expect("a partition"),
    }
}

/// Reads `bytes` as commit `number` of partition 0 of the topic `4L6g3nShT-eMCtK--X86sw` of the cluster `c`.
pub fn commit(number: u64, bytes: &[u8]) {
    let (key, shape) = (key(), Shape::VERSION_1);
    if let Ok((commit, _)) = Commit::decode(&key, number, bytes, shape) {
        let again = Commit::decode(&key, number, &commit.encode(&key), shape);
        assert_eq!(again.expect("what is written can be read").0, commit);
    }
}

/// Reads `bytes` as a node.
pub fn node(bytes: &[u8]) {
    let shape = Shape::VERSION_1;
    if let Ok(node) = Node::decode(Hash::of(bytes), bytes, shape) {
        let sealed = Node::seal(node.level, node.body.clone(), Salt::new([0; 16]), shape);
        let sealed = sealed.expect("what can be read can be written");
        let again = Node::decode(sealed.child.hash, &sealed.bytes, shape);
        assert_eq!(again.expect("what is written can be read"), node);
        again_against(&sealed.child, &node);
    }
}

fn again_against(child: &crate::wire::Child, node: &Node) {
    node.check_against(child).expect("its own sums");
}
