//! The service: binds every port, then serves until it is told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use everlog_index::Archive;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::budget::Budget;
use crate::config::{ProxyConfig, ProxyError, bootstrap_servers};
use crate::discovery::{Cluster, Undiscovered, discover};
use crate::frame::Patience;
use crate::history::History;
use crate::listener::Door;
use crate::metrics::Metrics;
use crate::nodes::{Bound, Nodes, Ports, Target};
use crate::pulse;
use crate::reach::Unanswered;
use crate::replay::Replay;
use crate::shared::Shared;

/// Of a connection that has not asked anything yet.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// A client is silent for at most this long: longer than brokers wait (10 minutes by default), so it is they who decide.
const IDLE: Duration = Duration::from_secs(15 * 60);

/// Inside a frame the next byte comes within this time.
const PROGRESS: Duration = Duration::from_secs(30);

/// See [`Shared::client_write`].
const CLIENT_WRITE: Duration = Duration::from_secs(120);

/// See [`Shared::crowded_write`].
const CROWDED_WRITE: Duration = Duration::from_secs(10);

/// Connections may finish what they have begun for this long.
const DRAIN: Duration = Duration::from_secs(5);

/// Bound, but not yet serving.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    bootstrap: Bound,
    bound: mpsc::UnboundedReceiver<Bound>,
    /// When the cluster answered last: before it was looked for, if it did not.
    answered: Instant,
}

impl Proxy {
    /// Finds the cluster's nodes and binds the bootstrap port and a port for each node.
    ///
    /// Waits up to a minute for a bootstrap server; without one, goes on with the nodes of the last run, if any.
    pub async fn bind(
        config: ProxyConfig,
        archive: Arc<Archive>,
        registry: &Registry,
    ) -> Result<Proxy, ProxyError> {
        Proxy::bind_telling(config, archive, registry, |_| {}).await
    }

    /// As [`Proxy::bind`]. Tells `unanswered`, each time it has asked in vain, why no bootstrap server answers.
    pub async fn bind_telling(
        config: ProxyConfig,
        archive: Arc<Archive>,
        registry: &Registry,
        unanswered: impl Fn(&Unanswered),
    ) -> Result<Proxy, ProxyError> {
        let ip = config.listen.ip();
        if ip.is_unspecified() && config.advertise.is_none() {
            return Err(ProxyError::NeedsAdvertise {
                listen: config.listen,
            });
        }
        let bootstrap = bootstrap_servers(&config.bootstrap_servers)?;
        let listening = |source| ProxyError::Listen {
            listen: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listening)?;
        let local_addr = listener.local_addr().map_err(listening)?;
        let metrics = Arc::new(Metrics::register(registry)?);
        // A quarter for frames in flight, the rest for what is read from the archive.
        let requests = Budget::new(config.memory_bytes / 16);
        let responses = Budget::new(config.memory_bytes / 16 * 3);
        let (sender, bound) = mpsc::unbounded_channel();
        let ports = Ports {
            listen: config.listen,
            chosen: config.node_ports.clone(),
        };
        let advertise = config.advertise.clone().unwrap_or_else(|| ip.to_string());
        let nodes = Nodes::new(ports, &advertise, &config.data_dir, sender);
        let begun = Instant::now();
        let silent = &metrics.cluster_silent_seconds;
        let found = discover(&bootstrap, &responses, begun, silent, unanswered).await;
        let answered = match start_nodes(&nodes, &config, found)? {
            Found::Cluster => Instant::now(),
            Found::KeptNodes => begun,
        };
        let replay = Replay::new(Arc::clone(&archive), config.memory_bytes / 4 * 3, registry);
        let history = History::new(
            archive,
            replay,
            config.topics,
            config.on_hole,
            Arc::clone(&metrics),
        );
        let shared = Shared {
            nodes,
            history,
            requests,
            responses,
            metrics,
            bootstrap,
            turn: AtomicUsize::new(0),
            patience: Patience {
                idle: IDLE,
                progress: PROGRESS,
            },
            first_request: FIRST_REQUEST,
            client_write: CLIENT_WRITE,
            crowded_write: CROWDED_WRITE,
            fetch_bytes_max: fetch_bytes_max(config.memory_bytes),
        };
        let bootstrap = Bound {
            listener,
            target: Target::Bootstrap,
        };
        Ok(Proxy {
            shared: Arc::new(shared),
            local_addr,
            bootstrap,
            bound,
            answered,
        })
    }

    /// Where clients bootstrap.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown`; then connections may finish what they have begun, for 5 s at most.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), ProxyError> {
        let door = Door::new(Arc::clone(&self.shared), shutdown.clone());
        info!(listen = %self.local_addr, nodes = self.shared.nodes.count(), "the proxy is serving");
        door.open(self.bootstrap);
        let shared = Arc::clone(&self.shared);
        let servers = move || [shared.bootstrap.clone(), shared.nodes.addresses()].concat();
        let silent = self.shared.metrics.cluster_silent_seconds.clone();
        let budget = self.shared.responses.clone();
        let mut pulse = Box::pin(pulse::watch(
            servers,
            self.answered,
            pulse::ASK_EVERY,
            silent,
            budget,
        ));
        loop {
            tokio::select! {
                never = &mut pulse => match never {},
                () = shutdown.cancelled() => break,
                bound = self.bound.recv() => match bound {
                    Some(bound) => door.open(bound),
                    None => shutdown.cancelled().await,
                },
            }
        }
        if timeout(DRAIN, door.emptied()).await.is_err() {
            warn!(
                connections = self.shared.metrics.connections.get(),
                "connections did not end in time and are cut"
            );
        }
        Ok(())
    }
}

/// What a proxy starts with.
enum Found {
    /// It has answered.
    Cluster,
    /// It has not; there are the nodes of the last run.
    KeptNodes,
}

fn start_nodes(
    nodes: &Nodes,
    config: &ProxyConfig,
    found: Result<Cluster, Undiscovered>,
) -> Result<Found, ProxyError> {
    match found {
        Ok(Cluster { id, brokers }) => {
            nodes.start(id.as_ref(), &brokers)?;
            Ok(Found::Cluster)
        }
        Err(Undiscovered::Closed) => {
            nodes.start(None, &[])?;
            let kept = nodes.count();
            warn!(
                kept,
                "the cluster tells its nodes only to clients that sign in: others are bound when one does"
            );
            Ok(Found::Cluster)
        }
        Err(Undiscovered::Controllers(source)) => Err(ProxyError::Controllers {
            servers: config.bootstrap_servers.clone(),
            source,
        }),
        Err(Undiscovered::Unreachable(source)) => {
            nodes.start(None, &[])?;
            if nodes.count() == 0 {
                return Err(ProxyError::Unreachable {
                    servers: config.bootstrap_servers.clone(),
                    source,
                });
            }
            warn!(
                error = &source as &dyn std::error::Error,
                "the cluster is away: going on with the nodes last known"
            );
            Ok(Found::KeptNodes)
        }
    }
}

/// A sixteenth of the memory, so that a few slow clients do not hold all of it; never so little that a fetch of many
/// partitions crawls.
fn fetch_bytes_max(memory_bytes: u64) -> usize {
    usize::try_from(memory_bytes / 16)
        .unwrap_or(usize::MAX)
        .clamp(4 << 20, 64 << 20)
}

#[cfg(test)]
mod tests;
