//! Whether the cluster answers, asked for nobody but the operator.
//!
//! Without clients a proxy has nothing to do with the cluster, and with some it only sees single connections fail. So it asks
//! a bootstrap server, or a node, now and then. What comes of it is a gauge and a line in the log; no request depends on it.

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use prometheus::Gauge;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::budget::Budget;
use crate::reach::greet_any;

/// As often as the archiver looks at the cluster.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(10);

/// A silence is told when it begins, and again after so long.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Asks until it is dropped. `answered` is when the cluster answered last. `servers` are asked, the first ones first, until one
/// answers; after `every` without an answer it is a silence, however many they are.
pub(crate) async fn watch(
    servers: impl Fn() -> Vec<(String, u16)>,
    mut answered: Instant,
    every: Duration,
    silent_seconds: Gauge,
    budget: Budget,
) -> Infallible {
    let mut told: Option<Instant> = None;
    loop {
        sleep(every.saturating_sub(answered.elapsed())).await;
        let asked = Instant::now();
        match greet_any(&servers(), every, &budget).await {
            Ok(()) => {
                answered = Instant::now();
                silent_seconds.set(0.0);
                if told.take().is_some() {
                    info!("the cluster answers again");
                }
            }
            Err(unanswered) => {
                let silent = answered.elapsed();
                silent_seconds.set(silent.as_secs_f64());
                if told.is_none_or(|told| TELL_AGAIN <= told.elapsed()) {
                    told = Some(Instant::now());
                    warn!(
                        silent_s = silent.as_secs(),
                        error = &unanswered as &dyn Error,
                        "the cluster does not answer: clients get nothing live, and nothing archived either"
                    );
                }
                sleep(every.saturating_sub(asked.elapsed())).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::reach::tests::{frozen, server};

    async fn wait_for(gauge: &Gauge, wanted: impl Fn(f64) -> bool) {
        let reached = async {
            while !wanted(gauge.get()) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(20), reached).await;
        assert!(reached.is_ok(), "the gauge stands at {}", gauge.get());
    }

    /// A proxy of its own used to say nothing while the cluster was away.
    #[tokio::test]
    async fn silence_is_counted_until_somebody_answers() {
        let gauge = Gauge::new("silent", "silent").expect("a gauge");
        let free = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let gone = (
            "127.0.0.1".to_owned(),
            free.local_addr().expect("bound").port(),
        );
        drop(free);
        let servers = Arc::new(Mutex::new(vec![gone.clone()]));
        let list = Arc::clone(&servers);
        let watching = tokio::spawn(watch(
            move || list.lock().expect("whole").clone(),
            Instant::now(),
            Duration::from_millis(20),
            gauge.clone(),
            Budget::new(1 << 20),
        ));
        wait_for(&gauge, |seconds| 0.1 < seconds).await;
        // A node is as good as a bootstrap server.
        let broker = server(vec![0, 1, 3, 18]).await;
        *servers.lock().expect("whole") = vec![gone, broker];
        wait_for(&gauge, |seconds| seconds == 0.0).await;
        watching.abort();
    }

    /// The gauge stood at 0 until each server had had its 10 s: for minutes where many are frozen.
    #[tokio::test]
    async fn a_large_cluster_is_silent_as_soon_as_a_small_one() {
        let gauge = Gauge::new("silent", "silent").expect("a gauge");
        let mut servers = Vec::new();
        for _ in 0..30 {
            servers.push(frozen().await);
        }
        let watching = tokio::spawn(watch(
            move || servers.clone(),
            Instant::now(),
            Duration::from_millis(500),
            gauge.clone(),
            Budget::new(1 << 20),
        ));
        wait_for(&gauge, |seconds| 0.5 < seconds).await;
        watching.abort();
    }
}
