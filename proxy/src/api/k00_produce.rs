//! Produce. The request passes undecoded, since records must arrive as they were sent.
//!
//! | version | what happens |
//! |---------|--------------|
//! | 0-9     | passes both ways |
//! | 10-13   | `node_endpoints` (KIP-951) of the response are replaced; all else stays, `log_start_offset` too: an idempotent producer takes a lower one for lost records |

use bytes::Bytes;
use kafka_protocol::messages::{ApiKey, ProduceResponse};

use crate::api::addressed::{Passing, replace_all};
use crate::shape::{self, unsigned_varint};
use crate::wire::{Prefix, WireError};

const KEY: ApiKey = ApiKey::Produce;

/// What must be read of a request before it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acks {
    /// A response will come.
    Some,
    /// acks=0: there is no response, and nothing may wait for one.
    None,
    /// The bytes so far end before the field.
    Unread,
    /// The bytes can't be a Produce request.
    Malformed,
}

/// Finds `acks` at the beginning of a request frame (from the API key on).
pub(crate) fn acks(version: i16, frame: &[u8]) -> Acks {
    match read_acks(version, frame) {
        Ok(0) => Acks::None,
        Ok(_) => Acks::Some,
        Err(Short::Unread) => Acks::Unread,
        Err(Short::Malformed) => Acks::Malformed,
    }
}

enum Short {
    Unread,
    Malformed,
}

fn read_acks(version: i16, frame: &[u8]) -> Result<i16, Short> {
    let flexible = version >= 9;
    let mut at = Prefix::BYTES;
    // The client id is an old string even in flexible headers.
    skip_string(frame, &mut at)?;
    if flexible {
        for _ in 0..varint(frame, &mut at)? {
            let _tag = varint(frame, &mut at)?;
            at += varint(frame, &mut at)? as usize;
        }
        // The transactional id: one more than its length, 0 for null.
        at += (varint(frame, &mut at)? as usize).saturating_sub(1);
    } else if version >= 3 {
        skip_string(frame, &mut at)?;
    }
    let bytes = frame.get(at..at + 2).ok_or(Short::Unread)?;
    Ok(i16::from_be_bytes([bytes[0], bytes[1]]))
}

fn skip_string(frame: &[u8], at: &mut usize) -> Result<(), Short> {
    let bytes = frame.get(*at..*at + 2).ok_or(Short::Unread)?;
    let len = i16::from_be_bytes([bytes[0], bytes[1]]);
    *at += 2;
    match len {
        -1 => Ok(()),
        len => {
            *at += usize::try_from(len).map_err(|_| Short::Malformed)?;
            Ok(())
        }
    }
}

fn varint(frame: &[u8], at: &mut usize) -> Result<u32, Short> {
    let rest = frame.get(*at..).ok_or(Short::Unread)?;
    let (value, len) = unsigned_varint(rest).ok_or(if rest.len() < 5 {
        Short::Unread
    } else {
        Short::Malformed
    })?;
    *at += len;
    Ok(value)
}

/// Puts our addresses in the place of the brokers'.
pub(crate) fn patch(passing: &Passing<'_>) -> Result<Option<Bytes>, WireError> {
    if passing.version < 10 {
        return Ok(None);
    }
    let change = |response: &mut ProduceResponse, nodes: &_| {
        replace_all(&mut response.node_endpoints, nodes)
    };
    passing.changed(KEY, &shape::PRODUCE_RESPONSE, change)
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::{ProduceRequest, RequestHeader};
    use kafka_protocol::protocol::{Encodable, StrBytes};

    use super::*;

    #[test]
    fn acks_are_found_whatever_stands_before_them() {
        let long = StrBytes::from_string("t".repeat(128));
        for version in 3..=13 {
            for (acks_sent, wanted) in [(0, Acks::None), (1, Acks::Some), (-1, Acks::Some)] {
                for id in [
                    None,
                    Some(StrBytes::from_static_str("t")),
                    Some(long.clone()),
                ] {
                    for client in [
                        None,
                        Some(StrBytes::from_static_str("")),
                        Some(long.clone()),
                    ] {
                        let request = ProduceRequest::default()
                            .with_acks(acks_sent)
                            .with_timeout_ms(30_000)
                            .with_transactional_id(id.clone().map(Into::into));
                        let header = RequestHeader::default()
                            .with_request_api_version(version)
                            .with_client_id(client);
                        let mut frame = bytes::BytesMut::new();
                        header
                            .encode(&mut frame, KEY.request_header_version(version))
                            .expect("encodable");
                        request.encode(&mut frame, version).expect("encodable");
                        assert_eq!(acks(version, &frame), wanted, "version {version} {id:?}");
                        for len in Prefix::BYTES..frame.len() {
                            let early = acks(version, &frame[..len]);
                            assert!(
                                early == Acks::Unread || early == wanted,
                                "version {version} cut to {len}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_oldest_versions_have_no_transactional_id() {
        let frame = [0, 0, 0, 1, 0, 0, 0, 9, 0, 1, b'c', 0, 0, 0, 0, 1, 0];
        assert_eq!(acks(1, &frame), Acks::None);
    }
}
