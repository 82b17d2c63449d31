//! What the proxy counts.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters and gauges of one proxy; registered once.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Open client connections.
    pub(crate) connections: IntGauge,
    /// Connections that were closed because of what the client sent or how slowly it did.
    pub(crate) rejected: IntCounterVec,
    /// Requests by API.
    pub(crate) requests: IntCounterVec,
    /// Requests that ended their connection, or got an error that the proxy made, by API.
    pub(crate) request_errors: IntCounterVec,
    /// Record bytes sent from the archive.
    pub(crate) replayed_bytes: IntCounter,
    /// Record bytes that shadow fetches brought and that were dropped.
    pub(crate) shadow_dropped_bytes: IntCounter,
    /// Fetches that met a hole.
    pub(crate) holes_met: IntCounter,
    /// Archive reads that failed, by kind.
    pub(crate) archive_failures: IntCounterVec,
    /// Nodes whose port could not be had.
    pub(crate) nodes_unreachable: IntGauge,
    /// How long the cluster has not answered.
    pub(crate) cluster_silent_seconds: Gauge,
}

impl Metrics {
    /// Fails only if a name is taken: two proxies on one registry.
    pub(crate) fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let metrics = Metrics {
            connections: IntGauge::new("everlog_proxy_connections", "Open client connections")?,
            rejected: IntCounterVec::new(
                Opts::new(
                    "everlog_proxy_rejected_total",
                    "Client connections closed for a fault of the client",
                ),
                &["reason"],
            )?,
            requests: IntCounterVec::new(
                Opts::new("everlog_proxy_requests_total", "Requests by API"),
                &["api"],
            )?,
            request_errors: IntCounterVec::new(
                Opts::new(
                    "everlog_proxy_request_errors_total",
                    "Requests that the proxy refused or could not finish",
                ),
                &["api"],
            )?,
            replayed_bytes: IntCounter::new(
                "everlog_proxy_replayed_bytes_total",
                "Record bytes sent to clients from the archive",
            )?,
            shadow_dropped_bytes: IntCounter::new(
                "everlog_proxy_shadow_dropped_bytes_total",
                "Record bytes that shadow fetches brought from the cluster and that were dropped",
            )?,
            holes_met: IntCounter::new(
                "everlog_proxy_holes_met_total",
                "Fetches that met a hole in the archive",
            )?,
            archive_failures: IntCounterVec::new(
                Opts::new(
                    "everlog_proxy_archive_failures_total",
                    "Failed reads of the archive by kind",
                ),
                &["kind"],
            )?,
            nodes_unreachable: IntGauge::new(
                "everlog_proxy_nodes_unreachable",
                "Brokers of the cluster for which no port could be had here, so that clients cannot reach them through the \
                 proxy; the log says which, and --node-ports gives them another",
            )?,
            cluster_silent_seconds: Gauge::new(
                "everlog_proxy_cluster_silent_seconds",
                "Seconds since the cluster last answered, or since the start, by questions some ten seconds apart; 0 while it \
                 answers",
            )?,
        };
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.rejected.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.request_errors.clone()))?;
        registry.register(Box::new(metrics.replayed_bytes.clone()))?;
        registry.register(Box::new(metrics.shadow_dropped_bytes.clone()))?;
        registry.register(Box::new(metrics.holes_met.clone()))?;
        registry.register(Box::new(metrics.archive_failures.clone()))?;
        registry.register(Box::new(metrics.nodes_unreachable.clone()))?;
        registry.register(Box::new(metrics.cluster_silent_seconds.clone()))?;
        Ok(metrics)
    }
}
