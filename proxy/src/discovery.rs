//! The first look at the cluster, before any client is served.

use std::error::Error;
use std::time::Duration;

use everlog_format::ClusterId;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, MetadataResponse,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::api::k03_metadata;
use crate::budget::Budget;
use crate::frame::Patience;
use crate::nodes::Broker;
use crate::shape;
use crate::upstream::{self, Gone};

/// A cluster that starts together with the proxy has this long.
const PATIENCE: Duration = Duration::from_secs(60);

const ASK_AGAIN_MIN: Duration = Duration::from_millis(250);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(5);

/// One whole question and answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

const CLIENT_ID: StrBytes = StrBytes::from_static_str("everlog-proxy");

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
    Unreachable(#[source] Box<dyn Error + Send + Sync>),
}

/// Asks one bootstrap server after the other until one answers, or patience ends.
pub(crate) async fn discover(
    servers: &[(String, u16)],
    budget: &Budget,
) -> Result<Cluster, Undiscovered> {
    let begun = Instant::now();
    let mut pause = ASK_AGAIN_MIN;
    loop {
        let mut last: Box<dyn Error + Send + Sync> = "there is no bootstrap server".into();
        for (host, port) in servers {
            match timeout(ANSWER_MAX, ask(host, *port, budget)).await {
                Ok(Ok(cluster)) => {
                    let nodes = cluster.brokers.len();
                    info!(server = %format_args!("{host}:{port}"), cluster = cluster.id.as_ref().map(display), nodes, "found the cluster");
                    return Ok(cluster);
                }
                // It knew ApiVersions and then hung up on Metadata.
                Ok(Err(Asked::AfterVersions(Gone::Closed))) => return Err(Undiscovered::Closed),
                Ok(Err(Asked::AfterVersions(error) | Asked::First(error))) => last = error.into(),
                Err(elapsed) => last = elapsed.into(),
            }
        }
        if PATIENCE <= begun.elapsed() {
            return Err(Undiscovered::Unreachable(last));
        }
        let servers_text: Vec<String> = servers
            .iter()
            .map(|(host, port)| format!("{host}:{port}"))
            .collect();
        warn!(
            servers = servers_text.join(","),
            error = &*last as &dyn Error,
            ?pause,
            "no bootstrap server answers, will ask again"
        );
        sleep(pause).await;
        pause = (pause * 2).min(ASK_AGAIN_MAX);
    }
}

enum Asked {
    First(Gone),
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
        let request = ApiVersionsRequest::default();
        let key = ApiKey::ApiVersions;
        let offered: ApiVersionsResponse = upstream
            .call(
                key,
                0,
                Some(&CLIENT_ID),
                &request,
                &shape::API_VERSIONS_RESPONSE,
            )
            .await
            .map_err(first)?;
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
    let response = tokio::select! {
        biased;
        response = questions => response?,
        gone = replies.run() => return Err(Asked::AfterVersions(gone)),
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
