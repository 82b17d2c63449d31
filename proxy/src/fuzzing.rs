//! The decoders of what clients and brokers send, for the fuzz targets alone: nothing else builds this.

use bytes::Bytes;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable};

use crate::api::k00_produce::{Acks, acks};
use crate::shape::{self, Shape};
use crate::wire::Prefix;

/// Reads `body` as one of the messages that are decoded here: which one, and in which of its versions, is up to the
/// numbers, whatever they are.
pub fn message(which: u8, version: i16, body: &[u8]) {
    /// Name, first and last version.
    macro_rules! messages {
        ($($message:ident: $shape:ident, $min:literal, $max:literal;)*) => {
            let all: &[fn(i16, &[u8])] = &[$(|version, body| {
                read::<$message>(&shape::$shape, $min + version.rem_euclid($max - $min + 1), body);
            }),*];
            all[usize::from(which) % all.len()](version, body);
        };
    }
    messages! {
        FetchRequest: FETCH_REQUEST, 4, 18;
        FetchResponse: FETCH_RESPONSE, 4, 18;
        ListOffsetsRequest: LIST_OFFSETS_REQUEST, 1, 10;
        ListOffsetsResponse: LIST_OFFSETS_RESPONSE, 1, 10;
        MetadataResponse: METADATA_RESPONSE, 0, 13;
        ProduceResponse: PRODUCE_RESPONSE, 3, 13;
        FindCoordinatorResponse: FIND_COORDINATOR_RESPONSE, 0, 6;
        ApiVersionsRequest: API_VERSIONS_REQUEST, 0, 4;
        ApiVersionsResponse: API_VERSIONS_RESPONSE, 0, 4;
        OffsetForLeaderEpochRequest: OFFSET_FOR_LEADER_EPOCH_REQUEST, 2, 4;
        OffsetForLeaderEpochResponse: OFFSET_FOR_LEADER_EPOCH_RESPONSE, 2, 4;
        DescribeClusterRequest: DESCRIBE_CLUSTER_REQUEST, 0, 2;
        DescribeClusterResponse: DESCRIBE_CLUSTER_RESPONSE, 0, 2;
        ShareFetchResponse: SHARE_FETCH_RESPONSE, 1, 1;
        ShareAcknowledgeResponse: SHARE_ACKNOWLEDGE_RESPONSE, 1, 1;
    }
}

fn read<M: Decodable + Encodable>(shape: &Shape, version: i16, body: &[u8]) {
    if shape.check(body, version).is_err() {
        return;
    }
    let mut bytes = Bytes::copy_from_slice(body);
    if let Ok(message) = M::decode(&mut bytes, version) {
        let mut again = bytes::BytesMut::new();
        // What a response is patched with must not make it one that can't be written.
        let size = message.compute_size(version);
        assert!(message.encode(&mut again, version).is_ok() == size.is_ok());
    }
}

/// Finds `acks` at the beginning of a Produce request that arrives byte by byte.
pub fn produce(version: i16, frame: &[u8]) {
    let whole = acks(version, frame);
    for len in Prefix::BYTES.min(frame.len())..frame.len() {
        let early = acks(version, &frame[..len]);
        assert!(early == Acks::Unread || early == whole, "cut to {len}");
    }
}
