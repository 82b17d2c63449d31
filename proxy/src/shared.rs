//! What all connections of a proxy share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::budget::Budget;
use crate::frame::Patience;
use crate::history::History;
use crate::metrics::Metrics;
use crate::nodes::{Nodes, Target};
use crate::upstream;

/// One for each proxy.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) nodes: Nodes,
    pub(crate) history: History,
    /// For requests that are decoded, several times their size.
    pub(crate) requests: Budget,
    /// For the brokers' answers, until clients have them.
    pub(crate) responses: Budget,
    pub(crate) metrics: Arc<Metrics>,
    /// Host and port of each bootstrap server.
    pub(crate) bootstrap: Vec<(String, u16)>,
    /// Where the next search for a bootstrap server begins, so that load is spread.
    pub(crate) turn: AtomicUsize,
    pub(crate) patience: Patience,
    /// How long a connection may be silent before its first request. Clients send it at once; who opens connections and
    /// says nothing holds one with a broker for each.
    pub(crate) first_request: Duration,
    /// How long a client may not take a single byte of its response. Consumers that work on a batch for minutes read
    /// nothing meanwhile; they find a closed connection and ask again.
    pub(crate) client_write: Duration,
    /// The same while others wait for the memory that its response takes: a few that sleep must not stop all the rest.
    pub(crate) crowded_write: Duration,
    /// The most record bytes of one Fetch response, whatever the client allows: what a slow client can hold up.
    pub(crate) fetch_bytes_max: usize,
}

impl Shared {
    /// Connects to where `target` is upstream.
    pub(crate) async fn connect(&self, target: Target) -> io::Result<TcpStream> {
        match target {
            Target::Node(id) => {
                let (host, port) = self.nodes.address(id).ok_or(io::ErrorKind::NotFound)?;
                upstream::connect(&host, port).await
            }
            Target::Bootstrap => self.connect_to_any().await,
        }
    }

    async fn connect_to_any(&self) -> io::Result<TcpStream> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for index in 0..self.bootstrap.len() {
            let (host, port) = &self.bootstrap[first.wrapping_add(index) % self.bootstrap.len()];
            match upstream::connect(host, *port).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Whether somebody waits for memory that responses hold.
    pub(crate) fn is_crowded(&self) -> bool {
        self.responses.is_awaited() || self.history.is_memory_awaited()
    }

    /// Shows how many nodes have no port.
    pub(crate) fn note_nodes(&self) {
        self.metrics
            .nodes_unreachable
            .set(i64::try_from(self.nodes.unreachable()).unwrap_or(i64::MAX));
    }
}
