//! What a proxy is told, and how it can fail to start.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use everlog_format::TopicSelection;

use crate::reach::Unanswered;

/// What a client gets that asks for records of which a commit says that they were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnHole {
    /// An error that clients raise.
    #[default]
    Fail,
    /// The records behind it, with a line in the log and a metric.
    Skip,
}

/// What a proxy is told.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// `HOST:PORT`, separated by commas.
    pub bootstrap_servers: String,
    /// Where clients bootstrap; port 0 takes any (then the nodes' ports are any, too).
    pub listen: SocketAddr,
    /// The host that clients are told; default: the address of `listen`.
    pub advertise: Option<String>,
    /// Ports of single nodes; default: listen port + 1 + node id.
    pub node_ports: BTreeMap<i32, u16>,
    /// What may be served from the archive.
    pub topics: TopicSelection,
    /// Bounds cached and archived records and frames in flight, in bytes.
    pub memory_bytes: u64,
    /// Where known nodes are kept. Must exist.
    pub data_dir: PathBuf,
    /// What happens at a hole.
    pub on_hole: OnHole,
}

/// Why a proxy can't start or go on, split by what the operator does.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Name the host that clients reach: the wildcard address means nothing to them.
    #[error(
        "listening on all addresses ({listen}) needs --advertise HOST: clients are told where each broker is, and \
         {ip} is no address they could connect to",
        ip = listen.ip()
    )]
    NeedsAdvertise {
        /// The listen address.
        listen: SocketAddr,
    },
    /// Correct the list.
    #[error("{text:?} is no HOST:PORT in the bootstrap servers")]
    BootstrapServers {
        /// The part that can't be read.
        text: String,
    },
    /// Choose another listen port, or end what holds it.
    #[error("can't listen on {listen} (--listen)")]
    Listen {
        /// The listen address.
        listen: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Choose another port for this node, or end what holds it.
    #[error(
        "can't listen on port {port} for node {node}; choose another one with --node-ports {node}=PORT"
    )]
    NodePort {
        /// The node's id.
        node: i32,
        /// The port that was tried.
        port: u16,
        /// The system's reason.
        source: io::Error,
    },
    /// Choose a port for this node.
    #[error(
        "node {node} has no port: {listen} + 1 + {node} is none; choose one with --node-ports {node}=PORT"
    )]
    NodePortRange {
        /// The node's id.
        node: i32,
        /// The listen port.
        listen: u16,
    },
    /// Start the cluster, or correct the address.
    #[error("no bootstrap server of {servers} answered")]
    Unreachable {
        /// As configured.
        servers: String,
        /// Each server's reason.
        source: Unanswered,
    },
    /// Correct the address: no waiting turns a controller into a broker.
    #[error("none of the bootstrap servers {servers} is a broker")]
    Controllers {
        /// As configured.
        servers: String,
        /// Each server's reason.
        source: Unanswered,
    },
    /// A bug: two proxies share one registry.
    #[error("the proxy's metrics can't be registered")]
    Metrics(#[from] prometheus::Error),
}

/// The hosts and ports of a list of bootstrap servers. An IPv6 address stands in brackets.
pub(crate) fn bootstrap_servers(list: &str) -> Result<Vec<(String, u16)>, ProxyError> {
    let one = |text: &str| {
        // librdkafka allows a protocol in front.
        let bare = text
            .trim()
            .rsplit_once("://")
            .map_or(text.trim(), |(_, rest)| rest);
        let (host, port) = bare.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = port.parse().ok().filter(|port| *port != 0)?;
        (!host.is_empty()).then(|| (host.to_owned(), port))
    };
    let parts: Vec<&str> = list
        .split(',')
        .filter(|part| !part.trim().is_empty())
        .collect();
    if parts.is_empty() {
        return Err(ProxyError::BootstrapServers {
            text: list.to_owned(),
        });
    }
    let read = |text: &&str| {
        one(text).ok_or_else(|| ProxyError::BootstrapServers {
            text: text.trim().to_owned(),
        })
    };
    parts.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_servers_are_hosts_with_ports() {
        let parsed = bootstrap_servers("a:1, PLAINTEXT://b.c:2,[::1]:3").expect("a list");
        assert_eq!(
            parsed,
            [
                ("a".to_owned(), 1),
                ("b.c".to_owned(), 2),
                ("::1".to_owned(), 3)
            ]
        );
        for bad in ["", "a", "a:", ":1", "a:0", "a:70000", "a:1,b"] {
            assert!(bootstrap_servers(bad).is_err(), "{bad:?}");
        }
    }
}
