//! Accepting clients: one loop for each bound port, one task for each client, and a bound on how many there are.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::connection;
use crate::nodes::{Bound, Target};
use crate::shared::Shared;

/// Client connections at a time, over all ports. Each has a second one upstream, so twice as many files are open.
const CONNECTIONS_MAX: usize = 8192;

/// After a failure of `accept` (no more files), connections end meanwhile.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// What accept loops share.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Door {
    /// Nothing is accepted yet. `shutdown` ends the loops, and lets each connection finish what it has begun.
    pub(crate) fn new(shared: Arc<Shared>, shutdown: CancellationToken) -> Door {
        Door {
            shared,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            tasks: TaskTracker::new(),
            shutdown,
        }
    }

    /// Begins to accept on a bound port.
    pub(crate) fn open(&self, bound: Bound) {
        let door = self.clone();
        self.tasks.spawn(async move {
            let shutdown = door.shutdown.clone();
            shutdown
                .run_until_cancelled(door.accept_all(bound.listener, bound.target))
                .await
        });
    }

    /// Waits until the last connection has ended. Call it after the shutdown.
    pub(crate) async fn emptied(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn accept_all(&self, listener: TcpListener, target: Target) {
        loop {
            // Taken before a client is: whoever finds no place waits in the system's queue.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((client, _)) => {
                    let (shared, shutdown) = (Arc::clone(&self.shared), self.shutdown.clone());
                    self.tasks.spawn(async move {
                        connection::serve(client, target, shared, shutdown).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(
                        %target,
                        error = &error as &dyn Error,
                        "can't accept a connection, will try again"
                    );
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}
