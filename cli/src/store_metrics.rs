//! The store's own counters, as Prometheus wants them.

use std::sync::Arc;

use everlog_store::{Store, Usage};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts};

/// Reads [`Store::usage`] whenever somebody scrapes.
pub(crate) struct StoreMetrics {
    store: Arc<dyn Store>,
    requests: IntCounterVec,
    bytes: IntCounterVec,
}

impl StoreMetrics {
    pub(crate) fn new(store: Arc<dyn Store>) -> Result<StoreMetrics, prometheus::Error> {
        let requests = Opts::new(
            "everlog_store_requests_total",
            "Requests to the object store, by kind.",
        );
        let bytes = Opts::new(
            "everlog_store_bytes_total",
            "Body bytes to and from the object store, by direction.",
        );
        Ok(StoreMetrics {
            store,
            requests: IntCounterVec::new(requests, &["kind"])?,
            bytes: IntCounterVec::new(bytes, &["direction"])?,
        })
    }
}

impl Collector for StoreMetrics {
    fn desc(&self) -> Vec<&Desc> {
        [self.requests.desc(), self.bytes.desc()].concat()
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
        [self.requests.collect(), self.bytes.collect()].concat()
    }
}
