//! The first word to a server: whether anybody answers there, and whether it is a broker.
//!
//! Every broker answers ApiVersions before anybody signs in, so this tells a cluster that is away from one that wants
//! credentials. Used before nodes are looked for, by the pulse, and by the tools, whose Kafka library only says that there was
//! no answer.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::StrBytes;
use tokio::time::timeout;

use crate::budget::Budget;
use crate::config::{ProxyError, bootstrap_servers};
use crate::frame::Patience;
use crate::shape;
use crate::upstream::{self, Gone, Upstream};

/// One whole question and answer.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(10);

pub(crate) const CLIENT_ID: StrBytes = StrBytes::from_static_str("everlog-proxy");

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
            write!(f, "{between}{server}: {reason}")?;
            let mut cause = reason.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
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
#[error("connected, but no answer within {} s", ANSWER_MAX.as_secs())]
pub(crate) struct NoAnswer;

/// Asks `servers` (`HOST:PORT`, parted by commas) one after the other until a broker answers. With TLS (by `protocol`, as
/// librdkafka's `security.protocol` has it) a connection is all that is tried.
pub async fn reach(servers: &str, protocol: Option<&str>) -> Result<(), ReachError> {
    let is_plain = protocol.is_none_or(|protocol| {
        let protocol = protocol.to_ascii_uppercase();
        protocol == "PLAINTEXT" || protocol == "SASL_PLAINTEXT"
    });
    let servers = bootstrap_servers(servers)?;
    let budget = Budget::new(BUDGET_BYTES);
    let reached = if is_plain {
        greet_any(&servers, &budget).await
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

/// Until one answers as a broker does.
pub(crate) async fn greet_any(
    servers: &[(String, u16)],
    budget: &Budget,
) -> Result<(), Unanswered> {
    let mut unanswered = Unanswered::default();
    for (host, port) in servers {
        match timeout(ANSWER_MAX, greet(host, *port, budget)).await {
            Ok(Ok(offered)) if is_controller(&offered) => unanswered.add(host, *port, IsController),
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(Gone::Io(error))) => unanswered.add(host, *port, error),
            Ok(Err(gone)) => unanswered.add(host, *port, gone),
            Err(_elapsed) => unanswered.add(host, *port, NoAnswer),
        }
    }
    Err(unanswered)
}

async fn greet(host: &str, port: u16, budget: &Budget) -> Result<ApiVersionsResponse, Gone> {
    let stream = upstream::connect(host, port).await?;
    let patience = Patience {
        idle: ANSWER_MAX,
        progress: ANSWER_MAX,
    };
    let (mut upstream, replies) = upstream::open(stream, budget.clone(), patience);
    let mut offered = std::pin::pin!(offered(&mut upstream));
    tokio::select! {
        biased;
        offered = &mut offered => offered,
        // The answer may have come together with the end.
        gone = replies.run() => offered.await.map_err(|_| gone),
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
