//! FindCoordinator. The request passes undecoded; in the response the coordinator's address is replaced, at the top
//! (versions 0 to 3) and in the list (4 to 6).
//!
//! "No coordinator" (node -1, an empty host) stays as it is.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, FindCoordinatorResponse};
use kafka_protocol::protocol::StrBytes;

use crate::api::addressed::Passing;
use crate::nodes::Nodes;
use crate::shape;
use crate::wire::WireError;

const KEY: ApiKey = ApiKey::FindCoordinator;

/// Puts our addresses in the place of the brokers'.
pub(crate) fn patch(passing: &Passing<'_>) -> Result<Option<Bytes>, WireError> {
    let change = |response: &mut FindCoordinatorResponse, nodes: &_| {
        if passing.version <= 3 {
            replace(
                nodes,
                &mut response.node_id.0,
                &mut response.host,
                &mut response.port,
                &mut response.error_code,
            );
        }
        for one in &mut response.coordinators {
            replace(
                nodes,
                &mut one.node_id.0,
                &mut one.host,
                &mut one.port,
                &mut one.error_code,
            );
        }
        true
    };
    passing.changed(KEY, &shape::FIND_COORDINATOR_RESPONSE, change)
}

fn replace(nodes: &Nodes, node: &mut i32, host: &mut StrBytes, port: &mut i32, error: &mut i16) {
    if *node < 0 || host.is_empty() {
        return;
    }
    match nodes.advertised(*node, host, *port) {
        Some((ours, our_port)) => (*host, *port) = (ours, our_port),
        None => {
            (*node, *host, *port) = (-1, StrBytes::new(), -1);
            *error = ResponseError::CoordinatorNotAvailable.code();
        }
    }
}
