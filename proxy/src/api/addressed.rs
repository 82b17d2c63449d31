//! What the responses that name brokers have in common: clients are told the proxy's address instead, and nothing else
//! changes.

use bytes::Bytes;
use kafka_protocol::messages::ApiKey;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
use kafka_protocol::messages::{
    fetch_response, produce_response, share_acknowledge_response, share_fetch_response,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use crate::nodes::Nodes;
use crate::shape::Shape;
use crate::wire::{self, WireError};

/// A broker's response on its way to the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passing<'a> {
    pub(crate) version: i16,
    /// The client's.
    pub(crate) correlation: i32,
    /// From the (broker's) correlation id on.
    pub(crate) frame: &'a Bytes,
    pub(crate) nodes: &'a Nodes,
}

impl Passing<'_> {
    /// The response with what `change` makes of it. `None` where that says that there is nothing to change: then what
    /// came can go on as it is.
    pub(crate) fn changed<M: Decodable + Encodable>(
        &self,
        key: ApiKey,
        shape: &Shape,
        change: impl FnOnce(&mut M, &Nodes) -> bool,
    ) -> Result<Option<Bytes>, WireError> {
        let mut response: M = wire::decode_response(key, self.version, shape, self.frame)?;
        if !change(&mut response, self.nodes) {
            return Ok(None);
        }
        wire::encode_response(key, self.version, self.correlation, &response).map(Some)
    }
}

/// A part of a response that says where a broker is.
pub(crate) trait Addressed {
    /// Node id, host and port.
    fn address(&mut self) -> (i32, &mut StrBytes, &mut i32);
}

macro_rules! addressed {
    ($($part:ty: $id:ident;)*) => {
        $(impl Addressed for $part {
            fn address(&mut self) -> (i32, &mut StrBytes, &mut i32) {
                (self.$id.0, &mut self.host, &mut self.port)
            }
        })*
    };
}

addressed! {
    MetadataResponseBroker: node_id;
    DescribeClusterBroker: broker_id;
    fetch_response::NodeEndpoint: node_id;
    produce_response::NodeEndpoint: node_id;
    share_fetch_response::NodeEndpoint: node_id;
    share_acknowledge_response::NodeEndpoint: node_id;
}

/// Puts our addresses in the place of the brokers'; tells whether there were any.
///
/// A broker whose port can't be had is left out: clients then look for it again, where its own address would lead them
/// around the proxy.
pub(crate) fn replace_all<B: Addressed>(brokers: &mut Vec<B>, nodes: &Nodes) -> bool {
    let were_there = !brokers.is_empty();
    brokers.retain_mut(|broker| {
        let (id, host, port) = broker.address();
        let Some(ours) = nodes.advertised(id, host, *port) else {
            return false;
        };
        (*host, *port) = ours;
        true
    });
    were_there
}
