//! ShareFetch, version 1 (the codec's newest). The broker picks the records, so only live ones are seen; in the response
//! `node_endpoints` are replaced.

use bytes::Bytes;
use kafka_protocol::messages::{ApiKey, ShareFetchResponse};

use crate::api::addressed::{Passing, replace_all};
use crate::shape;
use crate::wire::WireError;

const KEY: ApiKey = ApiKey::ShareFetch;

/// Puts our addresses in the place of the brokers'.
pub(crate) fn patch(passing: &Passing<'_>) -> Result<Option<Bytes>, WireError> {
    let change = |response: &mut ShareFetchResponse, nodes: &_| {
        replace_all(&mut response.node_endpoints, nodes)
    };
    passing.changed(KEY, &shape::SHARE_FETCH_RESPONSE, change)
}
