//! DescribeCluster, versions 0 to 2. In the response the brokers' addresses are replaced.
//!
//! A question for the controllers' endpoints (`endpoint_type` 2) is refused as a broker's listener refuses it: there is
//! no port of ours behind which a controller could be reached.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, DescribeClusterRequest, DescribeClusterResponse};
use kafka_protocol::protocol::StrBytes;

use crate::api::addressed::{Passing, replace_all};
use crate::shape;
use crate::wire::{self, WireError};

const KEY: ApiKey = ApiKey::DescribeCluster;
const BROKERS: i8 = 1;

/// The refusal, if the request asks for anything but brokers.
pub(crate) fn refuse(
    version: i16,
    correlation: i32,
    frame: Bytes,
) -> Result<Option<Bytes>, WireError> {
    let (_, request): (_, DescribeClusterRequest) =
        wire::decode_request(KEY, version, &shape::DESCRIBE_CLUSTER_REQUEST, frame)?;
    if request.endpoint_type == BROKERS {
        return Ok(None);
    }
    let response = DescribeClusterResponse::default()
        .with_error_code(ResponseError::MismatchedEndpointType.code())
        .with_error_message(Some(StrBytes::from_static_str(
            "only brokers can be reached through everlog",
        )));
    wire::encode_response(KEY, version, correlation, &response).map(Some)
}

/// Puts our addresses in the place of the brokers'.
pub(crate) fn patch(passing: &Passing<'_>) -> Result<Option<Bytes>, WireError> {
    let change = |response: &mut DescribeClusterResponse, nodes: &_| {
        replace_all(&mut response.brokers, nodes)
    };
    passing.changed(KEY, &shape::DESCRIBE_CLUSTER_RESPONSE, change)
}
