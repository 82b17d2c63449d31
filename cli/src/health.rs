//! Whether the process is fit to be used, as `/healthz` tells it.
//!
//! Two things are told apart. A part that is not up, or has failed, makes the process unfit: status 503. Trouble that
//! restarting would not cure (a store that is away, a partition that stands still) is told in the body and by
//! metrics, at status 200: who kills the process for it only makes it worse.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::proto::{Metric, MetricFamily};

use crate::store_metrics::SILENT_SECONDS;

/// The archiver's gauge, one for each partition: 1 while it stands still.
const FROZEN: &str = "everlog_archiver_frozen";

/// The proxy's gauge: brokers for which it has no port.
const CLUSTER_SILENT_SECONDS: &str = "everlog_archiver_cluster_silent_seconds";
const UNREACHABLE: &str = "everlog_proxy_nodes_unreachable";

/// Partitions that are named; of more only the number is told.
const NAMED_MAX: usize = 20;

/// What the parts of the process say of themselves. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

/// What one part says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It works.
    Ready,
    /// It does not work yet, or no more, and why.
    NotReady(String),
}

impl Health {
    pub(crate) fn set(&self, part: &'static str, state: State) {
        // A map of states is whole at any time, also after a panic elsewhere.
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, state);
    }

    /// Whether all parts are ready, and a line for each.
    pub(crate) fn report(&self) -> (bool, String) {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = !parts.is_empty() && parts.values().all(|state| *state == State::Ready);
        let mut text = String::from(if ready { "ready\n" } else { "not ready\n" });
        for (part, state) in parts.iter() {
            let line = match state {
                State::Ready => format!("{part}: ready\n"),
                State::NotReady(why) => format!("{part}: {why}\n"),
            };
            text.push_str(&line);
        }
        (ready, text)
    }
}

/// A line for each trouble that the metrics tell of. They are the one source, so that body and alarms never disagree.
pub(crate) fn troubles(metrics: &[MetricFamily]) -> String {
    let values = |name: &str| {
        let family = metrics.iter().find(|family| family.name() == name);
        let metrics = family.map(MetricFamily::get_metric).unwrap_or_default();
        metrics
            .iter()
            .filter(|metric| 0.0 < metric.get_gauge().get_value())
    };
    let mut text = String::new();
    if let Some(silent) = values(SILENT_SECONDS).next() {
        let seconds = silent.get_gauge().get_value();
        text.push_str(&format!(
            "trouble: the object store has not answered for {seconds:.0} s\n"
        ));
    }
    if let Some(silent) = values(CLUSTER_SILENT_SECONDS).next() {
        let seconds = silent.get_gauge().get_value();
        text.push_str(&format!(
            "trouble: the cluster has not answered for {seconds:.0} s\n"
        ));
    }
    let mut frozen: Vec<String> = values(FROZEN).map(partition).collect();
    if !frozen.is_empty() {
        let count = frozen.len();
        frozen.sort();
        frozen.truncate(NAMED_MAX);
        if NAMED_MAX < count {
            frozen.push("…".to_owned());
        }
        let names = frozen.join(", ");
        text.push_str(&format!(
            "trouble: {count} partitions stand still: {names}\n"
        ));
    }
    if let Some(unreachable) = values(UNREACHABLE).next() {
        let count = unreachable.get_gauge().get_value();
        text.push_str(&format!(
            "trouble: {count} brokers of the cluster have no port here\n"
        ));
    }
    text
}

/// `topic/partition` of a metric's labels.
fn partition(metric: &Metric) -> String {
    let label = |name: &str| {
        let mut labels = metric.get_label().iter();
        let label = labels.find(|label| label.name() == name);
        label.map(|label| label.value()).unwrap_or_default()
    };
    format!("{}/{}", label("topic"), label("partition"))
}

#[cfg(test)]
mod tests {
    use prometheus::{Gauge, IntGauge, IntGaugeVec, Opts, Registry};

    use super::*;

    #[test]
    fn what_stands_still_is_named() {
        let registry = Registry::new();
        let frozen = Opts::new(FROZEN, "frozen");
        let frozen = IntGaugeVec::new(frozen, &["topic", "partition"]).expect("a metric");
        let silent = Gauge::new(SILENT_SECONDS, "silent").expect("a metric");
        let unreachable = IntGauge::new(UNREACHABLE, "unreachable").expect("a metric");
        registry.register(Box::new(frozen.clone())).expect("new");
        let cluster = Gauge::new(CLUSTER_SILENT_SECONDS, "silent").expect("a metric");
        registry.register(Box::new(cluster.clone())).expect("new");
        registry.register(Box::new(silent.clone())).expect("new");
        registry
            .register(Box::new(unreachable.clone()))
            .expect("new");
        frozen.with_label_values(&["orders", "0"]).set(0);
        assert_eq!(troubles(&registry.gather()), "");
        frozen.with_label_values(&["orders", "3"]).set(1);
        silent.set(12.4);
        cluster.set(30.2);
        unreachable.set(2);
        assert_eq!(
            troubles(&registry.gather()),
            "trouble: the object store has not answered for 12 s\n\
             trouble: the cluster has not answered for 30 s\n\
             trouble: 1 partitions stand still: orders/3\n\
             trouble: 2 brokers of the cluster have no port here\n"
        );
    }

    #[test]
    fn it_is_ready_once_every_part_is() {
        let health = Health::default();
        assert!(!health.report().0, "nobody has said anything yet");
        health.set("archive", State::Ready);
        health.set("proxy", State::NotReady("starting".to_owned()));
        assert_eq!(
            health.report(),
            (
                false,
                "not ready\narchive: ready\nproxy: starting\n".to_owned()
            )
        );
        health.set("proxy", State::Ready);
        assert!(health.report().0);
    }
}
