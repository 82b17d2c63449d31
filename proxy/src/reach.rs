//! The first word to a server: whether anybody answers there, and whether it is a broker.
//!
//! Every broker answers ApiVersions before anybody signs in, so this tells a cluster that is away from one that wants
//! credentials. Used before nodes are looked for, by the pulse, and by the tools, whose Kafka library only says that there was
//! no answer.

use std::collections::{BTreeMap, HashSet};
use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use everlog_store::chain;
use futures::stream::{FuturesUnordered, StreamExt};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::StrBytes;
use tokio::time::{Instant, timeout, timeout_at};

use crate::budget::Budget;
use crate::config::{ProxyError, bootstrap_servers};
use crate::frame::Patience;
use crate::shape;
use crate::upstream::{self, Gone, Upstream};

/// One whole question and answer.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// While a server is silent the next one is asked after this long, sooner if they are many.
const APART_MAX: Duration = Duration::from_millis(250);

/// Of the archiver and the tools too: not more than that.
pub(crate) const CLIENT_ID: StrBytes = StrBytes::from_static_str("everlog");

/// An answer to ApiVersions has some hundred bytes.
const BUDGET_BYTES: u64 = 1 << 20;

/// Why there is nobody to talk to, each server with its own reason.
#[derive(Debug, Default)]
pub struct Unanswered(Vec<(String, BoxError)>);

type BoxError = Box<dyn Error + Send + Sync>;

impl Unanswered {
    pub(crate) fn add(&mut self, host: &str, port: u16, reason: impl Into<BoxError>) {
        self.0.push((format!("{host}:{port}"), reason.into()));
    }

    /// Whether all of them are controllers: then waiting does not help.
    pub fn is_controllers_only(&self) -> bool {
        !self.0.is_empty()
            && self
                .0
                .iter()
                .all(|(_, reason)| reason.downcast_ref::<IsController>().is_some())
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("there is no bootstrap server");
        }
        for (index, (server, reason)) in self.0.iter().enumerate() {
            let between = if index == 0 { "" } else { "; " };
            write!(f, "{between}{server}: {}", chain(reason.as_ref()))?;
        }
        Ok(())
    }
}

// The reasons are in the text: as there are several, none is *the* source.
impl Error for Unanswered {}

/// It answers, and serves no clients.
#[derive(Debug, thiserror::Error)]
#[error(
    "this is a KRaft controller, which serves no clients: give the address of a broker (its `listeners`, not its \
     `controller.listener.names`)"
)]
pub(crate) struct IsController;

/// It was silent for too long.
#[derive(Debug, thiserror::Error)]
#[error("connected, but no answer within {0:.0?}")]
pub(crate) struct NoAnswer(pub(crate) Duration);

/// Asks `servers` (`HOST:PORT`, parted by commas) until a broker answers, for 10 s at most. With TLS (by `protocol`, as
/// librdkafka's `security.protocol` has it) a connection is all that is tried, at one after the other.
pub async fn reach(servers: &str, protocol: Option<&str>) -> Result<(), ReachError> {
    let is_plain = protocol.is_none_or(|protocol| {
        let protocol = protocol.to_ascii_uppercase();
        protocol == "PLAINTEXT" || protocol == "SASL_PLAINTEXT"
    });
    let servers = bootstrap_servers(servers)?;
    let budget = Budget::new(BUDGET_BYTES);
    let reached = if is_plain {
        greet_any(&servers, ANSWER_MAX, &budget).await
    } else {
        connect_any(&servers).await
    };
    Ok(reached?)
}

/// Why [`reach`] reached nobody.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Correct the list.
    #[error(transparent)]
    Servers(#[from] ProxyError),
    /// Correct the list, or try again later.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
}

async fn connect_any(servers: &[(String, u16)]) -> Result<(), Unanswered> {
    let mut unanswered = Unanswered::default();
    for (host, port) in servers {
        match upstream::connect(host, *port).await {
            Ok(_) => return Ok(()),
            Err(error) => unanswered.add(host, *port, error),
        }
    }
    Err(unanswered)
}

/// Until one answers as a broker does, for `limit` at most.
///
/// One that is silent does not hold up the next: all are asked in the first half of the time. Where the first one answers, it
/// is the only one.
pub(crate) async fn greet_any(
    servers: &[(String, u16)],
    limit: Duration,
    budget: &Budget,
) -> Result<(), Unanswered> {
    let until = Instant::now() + limit;
    let mut seen = HashSet::new();
    let servers: Vec<_> = servers.iter().filter(|it| seen.insert(*it)).collect();
    let count = u32::try_from(servers.len()).unwrap_or(u32::MAX).max(1);
    let mut to_ask = servers.iter().enumerate();
    let (mut asked, mut reasons) = (FuturesUnordered::new(), BTreeMap::new());
    loop {
        let mut pause = limit;
        if let Some((index, (host, port))) = to_ask.next() {
            asked.push(async move { (index, greet(host, *port, until, budget).await) });
            pause = APART_MAX.min(limit / 2 / count);
        }
        match timeout(pause, asked.next()).await {
            Ok(Some((_, Ok(())))) => return Ok(()),
            Ok(Some((index, Err(reason)))) => {
                reasons.insert(index, reason);
            }
            Ok(None) => break,
            Err(_elapsed) => {}
        }
    }
    let mut unanswered = Unanswered::default();
    for ((host, port), reason) in servers.into_iter().zip(reasons.into_values()) {
        unanswered.add(host, *port, reason);
    }
    Err(unanswered)
}

async fn greet(host: &str, port: u16, until: Instant, budget: &Budget) -> Result<(), BoxError> {
    let stream = timeout_at(until, upstream::connect(host, port))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))??;
    let left = until.saturating_duration_since(Instant::now());
    let patience = Patience {
        idle: left,
        progress: left,
    };
    let (mut upstream, replies) = upstream::open(stream, budget.clone(), patience);
    let answer = async {
        let mut offered = std::pin::pin!(offered(&mut upstream));
        tokio::select! {
            biased;
            offered = &mut offered => offered,
            // The answer may have come together with the end.
            gone = replies.run() => offered.await.map_err(|_| gone),
        }
    };
    match timeout_at(until, answer).await {
        Ok(Ok(offered)) if is_controller(&offered) => Err(IsController.into()),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(Gone::Io(error))) => Err(error.into()),
        Ok(Err(gone)) => Err(gone.into()),
        Err(_elapsed) => Err(NoAnswer(left).into()),
    }
}

/// What the server at the other end offers.
pub(crate) async fn offered(upstream: &mut Upstream) -> Result<ApiVersionsResponse, Gone> {
    let request = ApiVersionsRequest::default();
    let (key, shape) = (ApiKey::ApiVersions, &shape::API_VERSIONS_RESPONSE);
    upstream
        .call(key, 0, Some(&CLIENT_ID), &request, shape)
        .await
}

/// A controller of KRaft answers ApiVersions too, and Fetch for its own log, but neither of these: what every client needs first.
pub(crate) fn is_controller(offered: &ApiVersionsResponse) -> bool {
    let offers = |key: ApiKey| offered.api_keys.iter().any(|api| api.api_key == key as i16);
    !offered.api_keys.is_empty() && !offers(ApiKey::Metadata) && !offers(ApiKey::Produce)
}

#[cfg(test)]
pub(crate) mod tests {
    use kafka_protocol::messages::api_versions_response::ApiVersion;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::wire;

    /// Takes connections and says nothing on them.
    pub(crate) async fn frozen() -> (String, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((client, _)) = listener.accept().await {
                held.push(client);
            }
        });
        (address.ip().to_string(), address.port())
    }

    /// Answers whatever is asked with these APIs.
    pub(crate) async fn server(keys: Vec<i16>) -> (String, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let len = client.read_i32().await.unwrap_or(0);
                let mut request = vec![0; usize::try_from(len).expect("a length")];
                if len < 8 || client.read_exact(&mut request).await.is_err() {
                    continue;
                }
                let correlation = request[4..8].try_into().expect("four bytes");
                let offer =
                    |key: &i16| ApiVersion::default().with_api_key(*key).with_max_version(9);
                let response =
                    ApiVersionsResponse::default().with_api_keys(keys.iter().map(offer).collect());
                let correlation = i32::from_be_bytes(correlation);
                let frame = wire::encode_response(ApiKey::ApiVersions, 0, correlation, &response)
                    .expect("encodable");
                let len = i32::try_from(frame.len()).expect("small");
                client.write_i32(len).await.expect("taken");
                client.write_all(&frame).await.expect("taken");
            }
        });
        (address.ip().to_string(), address.port())
    }

    /// Of the archiver and the tools it used to be the proxy's.
    #[tokio::test]
    async fn brokers_see_the_products_name() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let asking = tokio::spawn(async move { reach(&address, None).await.is_ok() });
        let (mut client, _) = listener.accept().await.expect("a client");
        let len = client.read_i32().await.expect("a length");
        let mut request = vec![0; usize::try_from(len).expect("a length")];
        client.read_exact(&mut request).await.expect("a request");
        // Behind key, version and correlation id.
        assert_eq!(request[8..], *b"\0\x07everlog");
        drop(client);
        assert!(!asking.await.expect("no panic"));
    }

    async fn told(servers: &[(String, u16)]) -> Unanswered {
        let list: Vec<String> = servers
            .iter()
            .map(|(host, port)| format!("{host}:{port}"))
            .collect();
        match reach(&list.join(","), None).await {
            Err(ReachError::Unanswered(unanswered)) => unanswered,
            other => panic!("{other:?}"),
        }
    }

    /// Only the last of them used to be told, and of that not why.
    #[tokio::test]
    async fn each_server_is_told_with_its_reason() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let servers = [
            ("127.0.0.1".to_owned(), port),
            ("no-such-host.invalid".to_owned(), 9092),
        ];
        let unanswered = told(&servers).await;
        let text = unanswered.to_string();
        assert!(
            text.contains(&format!("127.0.0.1:{port}: Connection refused"))
                && text.contains("; no-such-host.invalid:9092: "),
            "{text}"
        );
        assert!(!unanswered.is_controllers_only());
        let broker = server(vec![0, 1, 3, 18]).await;
        let list = format!("127.0.0.1:{port},{}:{}", broker.0, broker.1);
        assert!(reach(&list, None).await.is_ok(), "one is enough");
        assert!(reach(&list, Some("ssl")).await.is_ok());
    }

    /// They used to be asked one after the other, each for up to 10 s.
    #[tokio::test]
    async fn who_is_silent_holds_up_nobody() {
        let mut servers = Vec::new();
        for _ in 0..12 {
            servers.push(frozen().await);
        }
        // Named by the operator and by the cluster.
        servers.push(servers[0].clone());
        let (budget, begun) = (Budget::new(1 << 20), Instant::now());
        let limit = Duration::from_secs(2);
        let unanswered = greet_any(&servers, limit, &budget).await;
        let unanswered = unanswered.expect_err("all are silent").to_string();
        assert!(begun.elapsed() < 2 * limit, "{:?}", begun.elapsed());
        let (host, port) = &servers[0];
        let first = format!("{host}:{port}: connected, but no answer within 2s");
        assert!(unanswered.starts_with(&first), "{unanswered}");
        assert_eq!(unanswered.matches("no answer").count(), 12);
        servers.push(server(vec![0, 1, 3, 18]).await);
        let begun = Instant::now();
        assert!(greet_any(&servers, ANSWER_MAX, &budget).await.is_ok());
        assert!(begun.elapsed() < ANSWER_MAX / 2 + APART_MAX);
    }

    /// A sound cluster has no more to do with it than before.
    #[tokio::test]
    async fn who_answers_is_the_only_one_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let servers = [
            server(vec![0, 1, 3, 18]).await,
            (address.ip().to_string(), address.port()),
        ];
        let budget = Budget::new(1 << 20);
        assert!(greet_any(&servers, ANSWER_MAX, &budget).await.is_ok());
        let second = timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(second.is_err(), "the second one was asked as well");
    }

    #[tokio::test]
    async fn a_controller_is_known_for_one() {
        // What a controller of Kafka 4 lists first: Fetch is among it.
        let controller = server(vec![1, 17, 18, 19, 52, 53, 62, 63]).await;
        let unanswered = told(std::slice::from_ref(&controller)).await;
        let text = unanswered.to_string();
        assert!(
            text.contains("KRaft controller") && text.contains("address of a broker"),
            "{text}"
        );
        assert!(unanswered.is_controllers_only());
    }
}
