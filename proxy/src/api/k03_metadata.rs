//! Metadata. The request passes undecoded; in the response, versions 0 to 13, the brokers' addresses are replaced.
//!
//! Node ids, cluster id, controller, racks, topic ids and authorized operations stay as they are. A broker whose port
//! can't be had is left out: clients then look for its partitions' leader again, where its own address would lead them
//! around the proxy.

use bytes::Bytes;
use kafka_protocol::messages::{ApiKey, MetadataResponse};

use crate::api::addressed::{Passing, replace_all};
use crate::nodes::Broker;
use crate::shape;
use crate::wire::WireError;

const KEY: ApiKey = ApiKey::Metadata;

/// Puts our addresses in the place of the brokers'.
pub(crate) fn patch(passing: &Passing<'_>) -> Result<Option<Bytes>, WireError> {
    let change =
        |response: &mut MetadataResponse, nodes: &_| replace_all(&mut response.brokers, nodes);
    passing.changed(KEY, &shape::METADATA_RESPONSE, change)
}

/// The brokers that a response names.
pub(crate) fn brokers(response: &MetadataResponse) -> Vec<Broker> {
    let usable = |broker: &kafka_protocol::messages::metadata_response::MetadataResponseBroker| {
        let port = u16::try_from(broker.port).ok()?;
        let known = broker.node_id.0 >= 0 && !broker.host.is_empty();
        known.then(|| Broker {
            id: broker.node_id.0,
            host: broker.host.to_string(),
            port,
        })
    };
    response.brokers.iter().filter_map(usable).collect()
}
