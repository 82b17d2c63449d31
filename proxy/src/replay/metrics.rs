//! What replay counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tracing::warn;

use super::ReplayError;

/// Handles are cheap: each is a shared number.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub(super) bytes: IntCounter,
    pub(super) records: IntCounter,
    pub(super) cache_hits: IntCounter,
    pub(super) cache_misses: IntCounter,
    pub(super) cache_bytes: IntGauge,
    pub(super) evicted_bytes: IntCounter,
    pub(super) object_reads: IntCounter,
    pub(super) object_bytes: IntCounter,
    pub(super) decoded_bytes: IntCounter,
    pub(super) memory_waits: IntCounter,
    pub(super) read_seconds: Histogram,
    errors: IntCounterVec,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Metrics {
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help));
        let seconds = HistogramOpts::new(
            "everlog_replay_read_seconds",
            "Time to read archived batches for one partition of a fetch, abandoned waits included.",
        )
        .buckets(vec![
            0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
        ]);
        let errors = Opts::new(
            "everlog_replay_errors_total",
            "Reads of the archive that failed, by kind.",
        );
        Metrics {
            bytes: counter(
                "everlog_replay_bytes_total",
                "Bytes of record batches served from the archive.",
            ),
            records: counter(
                "everlog_replay_records_total",
                "Records served from the archive.",
            ),
            cache_hits: counter(
                "everlog_replay_cache_hits_total",
                "Runs of batches that were decoded when asked for.",
            ),
            cache_misses: counter(
                "everlog_replay_cache_misses_total",
                "Runs of batches that had to be waited for.",
            ),
            cache_bytes: register(
                registry,
                IntGauge::new(
                    "everlog_replay_cache_bytes",
                    "Bytes held of the replay memory budget: cached, in flight and in responses.",
                ),
            ),
            evicted_bytes: counter(
                "everlog_replay_cache_evicted_bytes_total",
                "Bytes given up to make room.",
            ),
            object_reads: counter(
                "everlog_replay_object_reads_total",
                "Ranged reads of segments.",
            ),
            object_bytes: counter(
                "everlog_replay_object_bytes_total",
                "Bytes of segments read.",
            ),
            decoded_bytes: counter(
                "everlog_replay_decoded_bytes_total",
                "Bytes of batches that were encoded, for comparison with the bytes served.",
            ),
            memory_waits: counter(
                "everlog_replay_memory_waits_total",
                "Times that a read had to wait for memory.",
            ),
            read_seconds: register(registry, Histogram::with_opts(seconds)),
            errors: register(registry, IntCounterVec::new(errors, &["kind"])),
        }
    }

    pub(super) fn failed(&self, error: &ReplayError) {
        self.errors.with_label_values(&[error.label()]).inc();
    }
}

/// A metric that can't be registered still counts, it only isn't shown: no reason to refuse to serve.
fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("names and labels are constants that fit");
    if let Err(error) = registry.register(Box::new(metric.clone())) {
        warn!(
            error = &error as &dyn std::error::Error,
            "a metric of replay is not shown"
        );
    }
    metric
}
