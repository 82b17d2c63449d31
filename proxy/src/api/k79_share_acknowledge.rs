//! ShareAcknowledge, version 1 (the codec's newest). The broker picks the records, so only live ones are seen; in the response
//! `node_endpoints` are replaced.

use bytes::Bytes;
use kafka_protocol::messages::{ApiKey, ShareAcknowledgeResponse};

use crate::nodes::Nodes;
use crate::shape;
use crate::wire::{self, WireError};

const KEY: ApiKey = ApiKey::ShareAcknowledge;

/// Puts our addresses in the place of the brokers'.
pub(crate) fn patch(
    version: i16,
    correlation: i32,
    frame: &Bytes,
    nodes: &Nodes,
) -> Result<Option<Bytes>, WireError> {
    let mut response: ShareAcknowledgeResponse =
        wire::decode_response(KEY, version, &shape::SHARE_ACKNOWLEDGE_RESPONSE, frame)?;
    if response.node_endpoints.is_empty() {
        return Ok(None);
    }
    response.node_endpoints.retain_mut(|node| {
        let Some((host, port)) = nodes.advertised(node.node_id.0, &node.host, node.port) else {
            return false;
        };
        (node.host, node.port) = (host, port);
        true
    });
    wire::encode_response(KEY, version, correlation, &response).map(Some)
}
