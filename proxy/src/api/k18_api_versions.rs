//! ApiVersions.
//!
//! | version | what happens |
//! |---------|--------------|
//! | 0-4     | asked upstream as the client asked; answered with what both the broker and the reviewed list have. Features pass unchanged: they decide which protocol transactions and groups use |
//! | above   | answered here with UNSUPPORTED_VERSION, our range, and the encoding of version 0 (KIP-511): the client asks again with less |

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};

use crate::connection::Answer;
use crate::conversation::{Conversation, Failed};
use crate::shape;
use crate::upstream::Gone;
use crate::versions;
use crate::wire::{self, Prefix, WireError};

const KEY: ApiKey = ApiKey::ApiVersions;
const NEWEST: i16 = 4;

/// The answer to a version that is newer than ours.
pub(crate) fn too_high(correlation: i32) -> Result<Bytes, WireError> {
    unsupported(correlation, NEWEST)
}

fn unsupported(correlation: i32, newest: i16) -> Result<Bytes, WireError> {
    let ours = ApiVersion::default()
        .with_api_key(KEY as i16)
        .with_min_version(0)
        .with_max_version(newest);
    let response = ApiVersionsResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_api_keys(vec![ours]);
    wire::encode_response(KEY, 0, correlation, &response)
}

/// The broker's answer, cut down to what passes here.
pub(crate) async fn answer(
    conversation: &mut Conversation,
    prefix: Prefix,
    frame: Bytes,
) -> Result<Answer, Failed> {
    let version = prefix.version;
    let _: ApiVersionsRequest =
        conversation.read(KEY, version, &shape::API_VERSIONS_REQUEST, frame.clone())?;
    let reply = conversation
        .upstream
        .send(frame)
        .await?
        .await
        .map_err(|_| Gone::Closed)?;
    if reply.bytes.get(4..6)
        == Some(
            ResponseError::UnsupportedVersion
                .code()
                .to_be_bytes()
                .as_slice(),
        )
    {
        return refused(conversation, prefix.correlation).await;
    }
    let response: Result<ApiVersionsResponse, _> =
        wire::decode_response(KEY, version, &shape::API_VERSIONS_RESPONSE, &reply.bytes);
    let mut response = response.map_err(Gone::from)?;
    if response.error_code == 0 {
        conversation.offered = Some(response.api_keys.clone());
    }
    response.api_keys = versions::intersect(&response.api_keys);
    let encoded =
        wire::encode_response(KEY, version, prefix.correlation, &response).map_err(Gone::from)?;
    Ok(encoded.into())
}

/// Tells the client which versions of ApiVersions the broker and the proxy share, in the encoding of version 0.
///
/// A broker that knows less says so in that encoding too (KIP-511), but not each one: librdkafka's mock cluster answers
/// half in the encoding that was asked for. So it is asked again, with the version that all know.
async fn refused(conversation: &mut Conversation, correlation: i32) -> Result<Answer, Failed> {
    let newest = conversation.version_max(KEY).await?.clamp(0, NEWEST);
    Ok(unsupported(correlation, newest).map_err(Gone::from)?.into())
}
