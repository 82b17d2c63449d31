//! SaslHandshake. Version 1 passes, and the SaslAuthenticate frames behind it too.
//!
//! Version 0 is answered here with UNSUPPORTED_VERSION: raw tokens without frames would follow it.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, SaslHandshakeResponse};

use crate::wire::{self, WireError};

/// The refusal of version 0.
pub(crate) fn refuse(correlation: i32) -> Result<Bytes, WireError> {
    let response =
        SaslHandshakeResponse::default().with_error_code(ResponseError::UnsupportedVersion.code());
    wire::encode_response(ApiKey::SaslHandshake, 0, correlation, &response)
}
