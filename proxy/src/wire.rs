//! Headers and bodies: from bytes to the codec's structures and back, each length proved first.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use crate::shape::{Malformed, Shape};

/// Why bytes could not be turned into a message, or a message into bytes. The connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// A length contradicts the message's size.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The codec found something else wrong, or a field that the version does not have.
    #[error("{0}")]
    Codec(String),
}

fn codec(error: impl ToString) -> WireError {
    WireError::Codec(error.to_string())
}

/// The first eight bytes of every request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefix {
    pub(crate) key: i16,
    pub(crate) version: i16,
    /// The client's.
    pub(crate) correlation: i32,
}

impl Prefix {
    pub(crate) const BYTES: usize = 8;

    pub(crate) fn read(bytes: &[u8]) -> Result<Prefix, Malformed> {
        let (key, rest) = bytes.split_first_chunk::<2>().ok_or(Malformed)?;
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(Malformed)?;
        let (correlation, _) = rest.split_first_chunk::<4>().ok_or(Malformed)?;
        Ok(Prefix {
            key: i16::from_be_bytes(*key),
            version: i16::from_be_bytes(*version),
            correlation: i32::from_be_bytes(*correlation),
        })
    }
}

/// A request frame's bytes, from the API key on, taken apart.
pub(crate) fn decode_request<M: Decodable>(
    key: ApiKey,
    version: i16,
    shape: &Shape,
    mut frame: Bytes,
) -> Result<(RequestHeader, M), WireError> {
    let header =
        RequestHeader::decode(&mut frame, key.request_header_version(version)).map_err(codec)?;
    shape.check(&frame, version)?;
    Ok((header, M::decode(&mut frame, version).map_err(codec)?))
}

/// A request from the API key on. The correlation id is a gap that the upstream connection fills.
pub(crate) fn encode_request<M: Encodable>(
    key: ApiKey,
    version: i16,
    client_id: Option<&StrBytes>,
    body: &M,
) -> Result<BytesMut, WireError> {
    let header = RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_client_id(client_id.cloned());
    let mut frame = BytesMut::new();
    header
        .encode(&mut frame, key.request_header_version(version))
        .map_err(codec)?;
    body.encode(&mut frame, version).map_err(codec)?;
    Ok(frame)
}

/// The body of a response frame (which begins with the correlation id).
pub(crate) fn decode_response<M: Decodable>(
    key: ApiKey,
    version: i16,
    shape: &Shape,
    frame: &Bytes,
) -> Result<M, WireError> {
    let mut body = response_body(key, version, frame)?;
    shape.check(&body, version)?;
    M::decode(&mut body, version).map_err(codec)
}

fn response_body(key: ApiKey, version: i16, frame: &Bytes) -> Result<Bytes, Malformed> {
    let mut header_bytes = 4;
    if key.response_header_version(version) >= 1 {
        // Tagged fields of the header: brokers send none, but may.
        let mut rest = frame.get(4..).ok_or(Malformed)?;
        let (tags, len) = crate::shape::unsigned_varint(rest).ok_or(Malformed)?;
        (rest, header_bytes) = (&rest[len..], header_bytes + len);
        for _ in 0..tags {
            let (_, tag_len) = crate::shape::unsigned_varint(rest).ok_or(Malformed)?;
            let (value, value_len) =
                crate::shape::unsigned_varint(&rest[tag_len..]).ok_or(Malformed)?;
            let len = tag_len + value_len + value as usize;
            (rest, header_bytes) = (rest.get(len..).ok_or(Malformed)?, header_bytes + len);
        }
    }
    if frame.len() < header_bytes {
        return Err(Malformed);
    }
    Ok(frame.slice(header_bytes..))
}

/// Begins a response frame: correlation id and the header's end.
pub(crate) fn response_header(key: ApiKey, version: i16, correlation: i32) -> BytesMut {
    let mut frame = BytesMut::with_capacity(64);
    frame.put_i32(correlation);
    if key.response_header_version(version) >= 1 {
        frame.put_u8(0);
    }
    frame
}

/// A whole response frame, from the correlation id on.
pub(crate) fn encode_response<M: Encodable>(
    key: ApiKey,
    version: i16,
    correlation: i32,
    body: &M,
) -> Result<Bytes, WireError> {
    let mut frame = response_header(key, version, correlation);
    frame.reserve(body.compute_size(version).map_err(codec)?);
    body.encode(&mut frame, version).map_err(codec)?;
    Ok(frame.freeze())
}
