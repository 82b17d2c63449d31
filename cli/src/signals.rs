//! SIGTERM and SIGINT: the first asks everything to come to an end, the second does not ask.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long services may take to finish what they are at. Below the 30 s that Kubernetes gives a pod by default.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(25);

/// A signal so soon after the first is the first once more: supervisors such as `timeout` send it to the process and then
/// to its group, and nobody has seen yet whether the first was enough.
const SECOND_AFTER: Duration = Duration::from_secs(1);

/// A token that is cancelled by the first signal. The second one ends the process at once, with the exit status that
/// shells give to a process killed by it.
pub(crate) fn shutdown_on_signal() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 143),
                _ = interrupt.recv() => ("SIGINT", 130),
            }
        };
        let (name, _) = next().await;
        info!(
            signal = name,
            drain_max_s = DRAIN_MAX.as_secs(),
            "asked to stop, will finish what is under way"
        );
        token.cancel();
        let asked = Instant::now();
        let (name, status) = loop {
            let again = next().await;
            if SECOND_AFTER < asked.elapsed() {
                break again;
            }
        };
        warn!(signal = name, "asked to stop again, stopping at once");
        std::process::exit(status);
    });
    Ok(shutdown)
}
