//! The first look at the cluster, before any client is served.

use std::error::Error;
use std::time::Duration;

use everlog_format::ClusterId;
use kafka_protocol::messages::{ApiKey, MetadataRequest, MetadataResponse};
use prometheus::Gauge;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::api::k03_metadata;
use crate::budget::Budget;
use crate::frame::Patience;
use crate::nodes::Broker;
use crate::reach::{
    ANSWER_MAX, CLIENT_ID, IsController, NoAnswer, Unanswered, is_controller, offered,
};
use crate::shape;
use crate::upstream::{self, Gone};

/// A cluster that starts together with the proxy has this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the gauge of the silence moves.
const COUNT_EVERY: Duration = Duration::from_secs(1);

const ASK_AGAIN_MIN: Duration = Duration::from_millis(250);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(5);

/// What the cluster says of itself.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) id: Option<ClusterId>,
    pub(crate) brokers: Vec<Broker>,
}

/// Why the cluster did not say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undiscovered {
    /// It answers, but not to us: the first client that signs in will bring the nodes.
    #[error("the cluster wants clients to authenticate")]
    Closed,
    /// Nobody answers.
    #[error("no answer")]
    Unreachable(#[source] Unanswered),
    /// Somebody does, and none of them serves clients.
    #[error("no broker")]
    Controllers(#[source] Unanswered),
}

/// Asks one bootstrap server after the other until one answers, or patience ends; `begun` is when that was. Counts the seconds
/// meanwhile, and tells `unanswered` each time why nobody answers.
pub(crate) async fn discover(
    servers: &[(String, u16)],
    budget: &Budget,
    begun: Instant,
    silent_seconds: &Gauge,
    unanswered: impl Fn(&Unanswered),
) -> Result<Cluster, Undiscovered> {
    let count = async {
        loop {
            sleep(COUNT_EVERY).await;
            silent_seconds.set(begun.elapsed().as_secs_f64());
        }
    };
    let discovered = tokio::select! {
        biased;
        discovered = ask_all(servers, budget, begun, unanswered) => discovered,
        never = count => never,
    };
    silent_seconds.set(match &discovered {
        // They did answer, if not with what was asked for.
        Ok(_) | Err(Undiscovered::Closed | Undiscovered::Controllers(_)) => 0.0,
        Err(Undiscovered::Unreachable(_)) => begun.elapsed().as_secs_f64(),
    });
    discovered
}

async fn ask_all(
    servers: &[(String, u16)],
    budget: &Budget,
    begun: Instant,
    tell: impl Fn(&Unanswered),
) -> Result<Cluster, Undiscovered> {
    let mut pause = ASK_AGAIN_MIN;
    loop {
        let mut unanswered = Unanswered::default();
        for (host, port) in servers {
            match timeout(ANSWER_MAX, ask(host, *port, budget)).await {
                Ok(Ok(cluster)) => {
                    let nodes = cluster.brokers.len();
                    info!(server = %format_args!("{host}:{port}"), cluster = cluster.id.as_ref().map(display), nodes, "found the cluster");
                    return Ok(cluster);
                }
                // It knew ApiVersions and then hung up on Metadata.
                Ok(Err(Asked::AfterVersions(Gone::Closed))) => return Err(Undiscovered::Closed),
                Ok(Err(Asked::First(Gone::Io(error)))) => unanswered.add(host, *port, error),
                Ok(Err(Asked::AfterVersions(gone) | Asked::First(gone))) => {
                    unanswered.add(host, *port, gone);
                }
                Ok(Err(Asked::Controller)) => unanswered.add(host, *port, IsController),
                Err(_elapsed) => unanswered.add(host, *port, NoAnswer(ANSWER_MAX)),
            }
        }
        tell(&unanswered);
        if unanswered.is_controllers_only() {
            return Err(Undiscovered::Controllers(unanswered));
        }
        if PATIENCE <= begun.elapsed() {
            return Err(Undiscovered::Unreachable(unanswered));
        }
        warn!(
            error = &unanswered as &dyn Error,
            ?pause,
            "no bootstrap server answers, will ask again"
        );
        sleep(pause).await;
        pause = (pause * 2).min(ASK_AGAIN_MAX);
    }
}

enum Asked {
    First(Gone),
    Controller,
    AfterVersions(Gone),
}

async fn ask(host: &str, port: u16, budget: &Budget) -> Result<Cluster, Asked> {
    let first = |error: Gone| Asked::First(error);
    let stream = upstream::connect(host, port)
        .await
        .map_err(Gone::from)
        .map_err(first)?;
    let patience = Patience {
        idle: ANSWER_MAX,
        progress: ANSWER_MAX,
    };
    let (mut upstream, replies) = upstream::open(stream, budget.clone(), patience);
    let questions = async {
        let offered = offered(&mut upstream).await.map_err(first)?;
        if is_controller(&offered) {
            return Err(Asked::Controller);
        }
        let metadata = offered
            .api_keys
            .iter()
            .find(|api| api.api_key == ApiKey::Metadata as i16);
        let version = metadata.map_or(0, |api| api.max_version).clamp(0, 12);
        // No topics; before version 1 an empty list meant all of them.
        let request = MetadataRequest::default().with_topics(Some(Vec::new()));
        let response: Result<MetadataResponse, Gone> = upstream
            .call(
                ApiKey::Metadata,
                version,
                Some(&CLIENT_ID),
                &request,
                &shape::METADATA_RESPONSE,
            )
            .await;
        response.map_err(Asked::AfterVersions)
    };
    let mut questions = std::pin::pin!(questions);
    let response = tokio::select! {
        biased;
        response = &mut questions => response?,
        // What came before the end still counts: it tells how far the questions got.
        gone = replies.run() => match questions.await {
            Err(Asked::First(_)) => return Err(Asked::First(gone)),
            Err(Asked::AfterVersions(_)) => return Err(Asked::AfterVersions(gone)),
            other => other?,
        },
    };
    let id = response
        .cluster_id
        .as_deref()
        .and_then(|id| ClusterId::new(id).ok());
    Ok(Cluster {
        id,
        brokers: k03_metadata::brokers(&response),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    use crate::reach::tests::server;

    /// The gauge stood at 0 for the whole minute, and only the log had the reason.
    #[tokio::test]
    async fn a_cluster_that_is_away_is_counted_and_told() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let servers = [("127.0.0.1".to_owned(), port)];
        let (budget, told) = (Budget::new(1 << 20), Mutex::new(Vec::new()));
        let gauge = Gauge::new("silent", "silent").expect("a gauge");
        let tell = |unanswered: &Unanswered| {
            told.lock().expect("whole").push(unanswered.to_string());
        };
        let looking = discover(&servers, &budget, Instant::now(), &gauge, tell);
        let looked = timeout(COUNT_EVERY * 2, looking).await;
        assert!(looked.is_err(), "it has patience");
        assert!(0.9 < gauge.get(), "{}", gauge.get());
        let told = told.into_inner().expect("whole");
        let first = told.first().expect("told at once");
        let refused = format!("127.0.0.1:{port}: Connection refused");
        assert!(first.starts_with(&refused), "{first}");

        // Here one answers.
        let (broker, silent) = (server(vec![1, 18, 52]).await, |_: &Unanswered| {});
        let looked = discover(&[broker], &budget, Instant::now(), &gauge, silent).await;
        assert!(matches!(looked, Err(Undiscovered::Controllers(_))));
        assert_eq!(gauge.get(), 0.0);
    }

    /// A forwarder in front of a broker that is still starting takes connections and closes them at once. That used to be
    /// told as a cluster that wants clients to sign in: neither the next server was asked nor was there any patience.
    #[tokio::test]
    async fn who_hangs_up_at_once_has_asked_for_no_credentials() {
        let budget = Budget::new(1 << 20);
        let forwarder = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let port = forwarder.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((client, _)) = forwarder.accept().await {
                drop(client);
            }
        });
        let asked = ask("127.0.0.1", port, &budget).await;
        assert!(matches!(asked, Err(Asked::First(_))));
        // One that answers, and closes at the next question.
        let (host, port) = server(vec![0, 1, 3, 18]).await;
        let asked = ask(&host, port, &budget).await;
        assert!(matches!(
            asked,
            Err(Asked::AfterVersions(Gone::Closed | Gone::Io(_)))
        ));
        let (host, port) = server(vec![1, 18, 52]).await;
        let asked = ask(&host, port, &budget).await;
        assert!(matches!(asked, Err(Asked::Controller)));
    }
}
