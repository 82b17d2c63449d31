//! The brokers of the cluster: where each is upstream, and at which of our ports clients find it.
//!
//! Port N reaches node N, always. All ports are bound before the first client is served, from what the cluster says and
//! from what was known in the last run, since after a restart clients come back to the ports they know. A node that
//! joins later is bound before the response that names it is released.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use everlog_format::ClusterId;
use kafka_protocol::protocol::StrBytes;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::ProxyError;

/// A port that could not be had is tried again at most this often.
const BIND_AGAIN: Duration = Duration::from_secs(10);

/// What a listening socket of ours leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Any bootstrap server.
    Bootstrap,
    /// The broker with this node id.
    Node(i32),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Bootstrap => f.write_str("bootstrap"),
            Target::Node(id) => write!(f, "node {id}"),
        }
    }
}

/// A bound socket that waits for its accept loop.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: TcpListener,
    pub(crate) target: Target,
}

/// A broker as a response names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broker {
    pub(crate) id: i32,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Where ports come from.
#[derive(Clone, Debug)]
pub(crate) struct Ports {
    pub(crate) listen: SocketAddr,
    pub(crate) chosen: BTreeMap<i32, u16>,
}

/// All known brokers. Shared by all connections.
#[derive(Debug)]
pub(crate) struct Nodes {
    advertise: StrBytes,
    ports: Ports,
    kept: PathBuf,
    state: Mutex<State>,
    bound: mpsc::UnboundedSender<Bound>,
}

#[derive(Debug, Default)]
struct State {
    cluster: Option<ClusterId>,
    nodes: BTreeMap<i32, Node>,
}

#[derive(Debug)]
struct Node {
    host: String,
    port: u16,
    /// Our port for it, or when binding it failed last.
    listening: Result<u16, Instant>,
}

/// `nodes.json`: what was known when the process ended.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    cluster_id: Option<ClusterId>,
    nodes: BTreeMap<i32, KeptNode>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptNode {
    host: String,
    port: u16,
}

impl Ports {
    fn of(&self, node: i32) -> Option<u16> {
        if let Some(port) = self.chosen.get(&node) {
            return Some(*port);
        }
        // Port 0 means "any" (tests): then every node gets any port too.
        if self.listen.port() == 0 {
            return Some(0);
        }
        let port = i64::from(self.listen.port()) + 1 + i64::from(node);
        u16::try_from(port).ok().filter(|_| node >= 0)
    }

    fn bind(&self, node: i32) -> Result<(TcpListener, u16), ProxyError> {
        let port = self.of(node).ok_or(ProxyError::NodePortRange {
            node,
            listen: self.listen.port(),
        })?;
        let failed = |source| ProxyError::NodePort { node, port, source };
        let listener =
            StdListener::bind(SocketAddr::new(self.listen.ip(), port)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        Ok((listener, port))
    }
}

impl Nodes {
    /// Nothing is bound yet. `advertise` is the host that clients are told.
    pub(crate) fn new(
        ports: Ports,
        advertise: &str,
        data_dir: &Path,
        bound: mpsc::UnboundedSender<Bound>,
    ) -> Nodes {
        let advertise = StrBytes::from_string(advertise.to_owned());
        Nodes {
            advertise,
            ports,
            kept: data_dir.join("nodes.json"),
            state: Mutex::default(),
            bound,
        }
    }

    /// Binds the ports of `brokers` and of the nodes kept from earlier runs on the same cluster.
    pub(crate) fn start(
        &self,
        cluster: Option<&ClusterId>,
        brokers: &[Broker],
    ) -> Result<(), ProxyError> {
        let kept = self.read_kept();
        let same_cluster =
            cluster.is_none() || kept.cluster_id.is_none() || kept.cluster_id.as_ref() == cluster;
        let mut all = BTreeMap::new();
        if same_cluster {
            all.extend(
                kept.nodes
                    .into_iter()
                    .map(|(id, node)| (id, (node.host, node.port))),
            );
        } else {
            warn!(
                kept = kept.cluster_id.as_ref().map(display),
                now = cluster.map(display),
                "the kept nodes belong to another cluster and are ignored"
            );
        }
        all.extend(
            brokers
                .iter()
                .map(|broker| (broker.id, (broker.host.clone(), broker.port))),
        );
        let mut state = self.lock();
        state.cluster = cluster
            .cloned()
            .or(kept.cluster_id.filter(|_| same_cluster));
        for (id, (host, port)) in all {
            let (listener, listening) = match self.ports.bind(id) {
                Ok(bound) => bound,
                // One that has left the cluster for good must not keep the proxy from starting. Should it come back, it
                // is bound as one that joins.
                Err(error) if !brokers.is_empty() && brokers.iter().all(|one| one.id != id) => {
                    warn!(
                        node = id,
                        error = &error as &dyn std::error::Error,
                        "a node of an earlier run is forgotten: the cluster does not name it, and its port can't be had"
                    );
                    continue;
                }
                Err(error) => return Err(error),
            };
            info!(node = id, port = listening, upstream = %format_args!("{host}:{port}"), "node is reached at port");
            state.nodes.insert(
                id,
                Node {
                    host,
                    port,
                    listening: Ok(listening),
                },
            );
            self.hand_over(listener, id);
        }
        self.keep(&state);
        Ok(())
    }

    /// How many nodes are known.
    pub(crate) fn count(&self) -> usize {
        self.lock().nodes.len()
    }

    /// How many nodes have no port.
    pub(crate) fn unreachable(&self) -> usize {
        self.lock()
            .nodes
            .values()
            .filter(|node| node.listening.is_err())
            .count()
    }

    /// Where all nodes are upstream.
    pub(crate) fn addresses(&self) -> Vec<(String, u16)> {
        let state = self.lock();
        let address = |node: &Node| (node.host.clone(), node.port);
        state.nodes.values().map(address).collect()
    }

    /// Where `node` is upstream.
    pub(crate) fn address(&self, node: i32) -> Option<(String, u16)> {
        self.lock()
            .nodes
            .get(&node)
            .map(|node| (node.host.clone(), node.port))
    }

    /// Takes in a broker that a response names and says what clients are to be told instead: `None` if its port could
    /// not be had, which is tried again later. Telling them the broker's own address would lead them around the proxy.
    pub(crate) fn advertised(&self, id: i32, host: &str, port: i32) -> Option<(StrBytes, i32)> {
        let port = u16::try_from(port).ok()?;
        let mut state = self.lock();
        let known = state.nodes.get(&id);
        if let Some(Node {
            host: old_host,
            port: old_port,
            listening: Ok(listening),
        }) = known
            && (old_host.as_str(), *old_port) == (host, port)
        {
            return Some((self.advertise.clone(), i32::from(*listening)));
        }
        let is_unchanged =
            known.is_some_and(|node| (node.host.as_str(), node.port) == (host, port));
        if is_unchanged
            && known
                .is_some_and(|node| matches!(node.listening, Err(at) if at.elapsed() < BIND_AGAIN))
        {
            // Every response names the brokers: that a port can't be had is logged and kept once in a while only.
            return None;
        }
        let listening = match known.map(|node| node.listening) {
            Some(Ok(listening)) => Ok(listening),
            Some(Err(failed)) if failed.elapsed() < BIND_AGAIN => Err(failed),
            Some(Err(_)) | None => self.bind_late(id),
        };
        info!(node = id, upstream = %format_args!("{host}:{port}"), "node joined or moved");
        state.nodes.insert(
            id,
            Node {
                host: host.to_owned(),
                port,
                listening,
            },
        );
        self.keep(&state);
        Some((self.advertise.clone(), i32::from(listening.ok()?)))
    }

    fn bind_late(&self, id: i32) -> Result<u16, Instant> {
        match self.ports.bind(id) {
            Ok((listener, port)) => {
                self.hand_over(listener, id);
                Ok(port)
            }
            Err(error) => {
                error!(
                    node = id,
                    error = &error as &dyn std::error::Error,
                    "clients can't reach a node"
                );
                Err(Instant::now())
            }
        }
    }

    fn hand_over(&self, listener: TcpListener, id: i32) {
        // The receiver lives as long as the proxy runs; at its end nobody needs the socket.
        let _ = self.bound.send(Bound {
            listener,
            target: Target::Node(id),
        });
    }

    fn read_kept(&self) -> Kept {
        let text = match std::fs::read(&self.kept) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Kept::default(),
            Err(error) => {
                warn!(path = %self.kept.display(), error = &error as &dyn std::error::Error, "kept nodes can't be read");
                return Kept::default();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            warn!(path = %self.kept.display(), error = &error as &dyn std::error::Error, "kept nodes are damaged");
            Kept::default()
        })
    }

    /// Losing the file costs a restart its knowledge of nodes that are down just then: worth a warning, not a failure.
    fn keep(&self, state: &State) {
        let node = |node: &Node| KeptNode {
            host: node.host.clone(),
            port: node.port,
        };
        let kept = Kept {
            cluster_id: state.cluster.clone(),
            nodes: state
                .nodes
                .iter()
                .map(|(id, known)| (*id, node(known)))
                .collect(),
        };
        let written = serde_json::to_vec_pretty(&kept)
            .map_err(io::Error::from)
            .and_then(|text| {
                let beside = self.kept.with_extension("json.new");
                std::fs::write(&beside, text)?;
                std::fs::rename(&beside, &self.kept)
            });
        if let Err(error) = written {
            warn!(path = %self.kept.display(), error = &error as &dyn std::error::Error, "nodes can't be kept");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while the lock is held; if it did, the map would still be whole.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(dir: &Path, ports: Ports) -> (Nodes, mpsc::UnboundedReceiver<Bound>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Nodes::new(ports, "proxy.example.", dir, sender), receiver)
    }

    fn any_port() -> Ports {
        Ports {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            chosen: BTreeMap::new(),
        }
    }

    fn broker(id: i32, host: &str) -> Broker {
        Broker {
            id,
            host: host.to_owned(),
            port: 9092,
        }
    }

    #[test]
    fn a_port_follows_from_the_node_id() {
        let ports = Ports {
            listen: SocketAddr::from(([127, 0, 0, 1], 19_092)),
            chosen: BTreeMap::from([(7, 80)]),
        };
        assert_eq!(ports.of(0), Some(19_093));
        assert_eq!(ports.of(200), Some(19_293));
        assert_eq!(ports.of(7), Some(80));
        assert_eq!(ports.of(60_000), None);
        assert_eq!(ports.of(-1), None);
    }

    #[tokio::test]
    async fn known_nodes_are_bound_again_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = ClusterId::new("c1").expect("a name");
        let (first, _bound) = nodes(dir.path(), any_port());
        first
            .start(Some(&cluster), &[broker(1, "a"), broker(2, "b")])
            .expect("ports");
        let (second, mut bound) = nodes(dir.path(), any_port());
        second
            .start(Some(&cluster), &[broker(1, "moved")])
            .expect("ports");
        assert_eq!(second.address(1), Some(("moved".to_owned(), 9092)));
        assert_eq!(second.address(2), Some(("b".to_owned(), 9092)));
        assert_eq!(bound.try_recv().expect("a socket").target, Target::Node(1));
        assert_eq!(bound.try_recv().expect("a socket").target, Target::Node(2));
        let (third, _bound) = nodes(dir.path(), any_port());
        third
            .start(
                Some(&ClusterId::new("c2").expect("a name")),
                &[broker(3, "c")],
            )
            .expect("ports");
        assert_eq!((third.count(), third.address(1)), (1, None));
    }

    #[tokio::test]
    async fn a_node_that_joins_is_bound_before_it_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let (nodes, mut bound) = nodes(dir.path(), any_port());
        nodes.start(None, &[]).expect("no ports");
        let (host, port) = nodes.advertised(5, "new", 9092).expect("a port");
        let socket = bound.try_recv().expect("a socket");
        assert_eq!(&*host, "proxy.example.");
        assert_eq!(
            i32::from(socket.listener.local_addr().expect("bound").port()),
            port
        );
        assert_eq!(nodes.advertised(5, "new", 9092), Some((host, port)));
        assert!(bound.try_recv().is_err(), "bound once");
    }

    /// A broker that was taken out of the cluster years ago kept the proxy from starting once its port had another use.
    #[tokio::test]
    async fn a_node_that_left_for_good_needs_no_port() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, bound) = nodes(dir.path(), any_port());
        first
            .start(None, &[broker(1, "a"), broker(3, "gone")])
            .expect("ports");
        drop(bound);
        let taken = StdListener::bind("127.0.0.1:0").expect("a port");
        let ports = Ports {
            chosen: BTreeMap::from([(3, taken.local_addr().expect("bound").port())]),
            ..any_port()
        };
        // While the cluster does not answer, nobody knows whether it has left.
        let (unsure, _bound) = nodes(dir.path(), ports.clone());
        assert!(unsure.start(None, &[]).is_err());
        let (second, _bound) = nodes(dir.path(), ports);
        second.start(None, &[broker(1, "a")]).expect("ports");
        assert_eq!((second.count(), second.address(3)), (1, None));
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_node_and_flag() {
        let dir = tempfile::tempdir().expect("a directory");
        let taken = StdListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("bound").port();
        let ports = Ports {
            chosen: BTreeMap::from([(3, port)]),
            ..any_port()
        };
        let (nodes, _bound) = nodes(dir.path(), ports);
        let error = nodes
            .start(None, &[broker(3, "x")])
            .expect_err("taken")
            .to_string();
        assert!(
            error.contains("node 3") && error.contains("--node-ports"),
            "{error}"
        );
        assert_eq!(
            nodes.advertised(3, "x", 9092),
            None,
            "never the broker's own address"
        );
        assert_eq!(nodes.unreachable(), 1);
    }
}
