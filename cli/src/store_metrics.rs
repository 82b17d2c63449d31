//! The store's own counters, as Prometheus wants them.

use std::sync::Arc;

use everlog_store::{Store as _, Usage};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntCounterVec, Opts};

use crate::watched_store::WatchedStore;

/// Seconds since the store's last answer while it does not answer, else 0. `/healthz` reads it too.
pub(crate) const SILENT_SECONDS: &str = "everlog_store_silent_seconds";

/// Reads [`Store::usage`](everlog_store::Store::usage) whenever somebody scrapes.
pub(crate) struct StoreMetrics {
    store: Arc<WatchedStore>,
    requests: IntCounterVec,
    bytes: IntCounterVec,
    failures: IntCounterVec,
    silent_seconds: Gauge,
}

impl StoreMetrics {
    pub(crate) fn new(store: Arc<WatchedStore>) -> Result<StoreMetrics, prometheus::Error> {
        let requests = Opts::new(
            "everlog_store_requests_total",
            "Requests to the object store, by kind.",
        );
        let bytes = Opts::new(
            "everlog_store_bytes_total",
            "Body bytes to and from the object store, by direction.",
        );
        let failures = Opts::new(
            "everlog_store_failures_total",
            "Requests to the object store that failed for good: without an answer after all retries, or refused.",
        );
        Ok(StoreMetrics {
            store,
            requests: IntCounterVec::new(requests, &["kind"])?,
            bytes: IntCounterVec::new(bytes, &["direction"])?,
            failures: IntCounterVec::new(failures, &["kind"])?,
            silent_seconds: Gauge::new(
                SILENT_SECONDS,
                "Seconds since the object store's last answer while attempts fail, else 0.",
            )?,
        })
    }
}

impl Collector for StoreMetrics {
    fn desc(&self) -> Vec<&Desc> {
        [
            self.requests.desc(),
            self.bytes.desc(),
            self.failures.desc(),
            self.silent_seconds.desc(),
        ]
        .concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Usage {
            read_requests,
            write_requests,
            retried_requests,
            bytes_read,
            bytes_written,
        } = self.store.usage();
        let set = |counters: &IntCounterVec, label: &str, value: u64| {
            let counter = counters.with_label_values(&[label]);
            // The store's counts never fall, so this adds what came since the last scrape.
            counter.inc_by(value.saturating_sub(counter.get()));
        };
        set(&self.requests, "read", read_requests);
        set(&self.requests, "write", write_requests);
        set(&self.requests, "retry", retried_requests);
        set(&self.bytes, "read", bytes_read);
        set(&self.bytes, "written", bytes_written);
        let (unavailable, refused) = (self.store.unavailable_count(), self.store.refused_count());
        set(&self.failures, "unavailable", unavailable);
        set(&self.failures, "refused", refused);
        let silence = self.store.silence();
        self.silent_seconds
            .set(silence.map_or(0.0, |silence| silence.as_secs_f64()));
        [
            self.requests.collect(),
            self.bytes.collect(),
            self.failures.collect(),
            self.silent_seconds.collect(),
        ]
        .concat()
    }
}
