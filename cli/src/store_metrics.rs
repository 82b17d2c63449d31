//! The store's own counters, as Prometheus wants them.

use std::sync::{Arc, Mutex, PoisonError};

use everlog_store::{Store as _, Usage};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, IntCounterVec, Opts};

use crate::watched_store::WatchedStore;

/// Seconds since the store's last answer while it does not answer, else 0. `/healthz` reads it too.
pub(crate) const SILENT_SECONDS: &str = "everlog_store_silent_seconds";

/// By kind of request: seconds since the store began to refuse it, else 0. `/healthz` reads it too.
pub(crate) const REFUSED_SECONDS: &str = "everlog_store_refused_seconds";

/// Reads [`Store::usage`](everlog_store::Store::usage) whenever somebody scrapes.
pub(crate) struct StoreMetrics {
    store: Arc<WatchedStore>,
    collecting: Mutex<()>,
    requests: IntCounterVec,
    bytes: IntCounterVec,
    failures: IntCounterVec,
    silent_seconds: Gauge,
    refused_seconds: GaugeVec,
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
        let refused = Opts::new(
            REFUSED_SECONDS,
            "Seconds since the object store began to refuse requests of a kind, until one is not refused; else 0.",
        );
        Ok(StoreMetrics {
            store,
            collecting: Mutex::new(()),
            requests: IntCounterVec::new(requests, &["kind"])?,
            bytes: IntCounterVec::new(bytes, &["direction"])?,
            failures: IntCounterVec::new(failures, &["kind"])?,
            refused_seconds: GaugeVec::new(refused, &["kind"])?,
            silent_seconds: Gauge::new(
                SILENT_SECONDS,
                "While attempts fail, seconds since the object store was first asked after its last answer, else 0.",
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
            self.refused_seconds.desc(),
        ]
        .concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Two scrapes at the same time would both add what came since the last one.
        let _alone = self
            .collecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
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
        for (kind, refused) in self.store.refusals() {
            // The first scrape may come at once, and 0 would say that all is well.
            let seconds = refused.map_or(0.0, |refused| refused.as_secs_f64().max(0.001));
            self.refused_seconds.with_label_values(&[kind]).set(seconds);
        }
        [
            self.requests.collect(),
            self.bytes.collect(),
            self.failures.collect(),
            self.silent_seconds.collect(),
            self.refused_seconds.collect(),
        ]
        .concat()
    }
}
