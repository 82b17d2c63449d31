//! Whether the process is fit to be used, as `/healthz` tells it.
//!
//! Two things are told apart. A part that is not up, or has failed, makes the process unfit: status 503. Trouble that
//! restarting would not cure (a store that is away, a partition that stands still) is told in the body and by
//! metrics, at status 200: who kills the process for it only makes it worse.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus::proto::{Metric, MetricFamily};

use crate::store_metrics::{REFUSED_SECONDS, SILENT_SECONDS};
use crate::table::counted;
use crate::watched_store::{StoreWords, WatchedStore};

/// The archiver's gauge, one for each partition: 1 while it stands still.
const FROZEN: &str = "everlog_archiver_frozen";

/// The archiver's gauge and the proxy's: how long the cluster has not answered.
const CLUSTER_SILENT_SECONDS: [&str; 2] = [
    "everlog_archiver_cluster_silent_seconds",
    "everlog_proxy_cluster_silent_seconds",
];

/// The archiver's gauge: topics that a regex matches and whose configurations it cannot learn.
const HELD_BACK: &str = "everlog_archiver_held_back_topics";

/// The archiver's gauge: words of the selection that match no topic of the cluster.
const UNMATCHED: &str = "everlog_archiver_unmatched_topics";

/// The archiver's gauge: 1 while another process has its instance id, too, and takes its place in the group.
const FENCED: &str = "everlog_archiver_fenced";

/// The proxy's gauge: brokers for which it has no port.
const UNREACHABLE: &str = "everlog_proxy_nodes_unreachable";

/// Why a store refuses, where its own words are not known.
const REFUSED_FOR: &str =
    "the log has the words (credentials, permissions, an object that is cut short, the local disk)";

/// Partitions that are named; of more only the number is told.
const NAMED_MAX: usize = 20;

/// What the parts of the process say of themselves. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, State>>>,
    /// Asked for the words that its metrics lack; once it is open.
    store: Arc<OnceLock<Arc<WatchedStore>>>,
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

    /// The store whose words are told with its trouble; the first one counts.
    pub(crate) fn watch_store(&self, store: Arc<WatchedStore>) {
        let _is_the_first = self.store.set(store);
    }

    /// A line for each trouble.
    pub(crate) fn troubles(&self, metrics: &[MetricFamily]) -> String {
        let words = self.store.get().map(|store| store.words());
        troubles(metrics, &words.unwrap_or_default())
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

/// A line for each trouble that the metrics tell of. They are the one source, so that body and alarms never disagree; `words` only
/// say more of the store's.
fn troubles(metrics: &[MetricFamily], words: &StoreWords) -> String {
    [
        store_troubles(metrics, words),
        cluster_troubles(metrics),
        archiver_troubles(metrics),
        proxy_troubles(metrics),
    ]
    .concat()
}

/// The gauges of this name that are above 0.
fn values<'a>(metrics: &'a [MetricFamily], name: &str) -> impl Iterator<Item = &'a Metric> {
    let family = metrics.iter().find(|family| family.name() == name);
    let metrics = family.map(MetricFamily::get_metric).unwrap_or_default();
    metrics
        .iter()
        .filter(|metric| 0.0 < metric.get_gauge().get_value())
}

fn store_troubles(metrics: &[MetricFamily], words: &StoreWords) -> String {
    let mut text = String::new();
    if let Some(silent) = values(metrics, SILENT_SECONDS).next() {
        let seconds = silent.get_gauge().get_value();
        // While the first requests are being repeated, nobody has given the reason yet.
        let why = words.silent.as_deref().unwrap_or("the log has the words");
        text.push_str(&format!(
            "trouble: the object store has not answered for {seconds:.0} s: {why}\n"
        ));
    }
    for refused in values(metrics, REFUSED_SECONDS) {
        let (kind, seconds) = (label(refused, "kind"), refused.get_gauge().get_value());
        let why = words.refused.get(kind).map_or(REFUSED_FOR, String::as_str);
        text.push_str(&format!(
            "trouble: the object store has refused every request to {kind} for {seconds:.0} s: {why}\n"
        ));
    }
    text
}

fn cluster_troubles(metrics: &[MetricFamily]) -> String {
    let mut text = String::new();
    // Archiver and proxy ask for themselves; beside each other they are silent about the same cluster.
    let silent = CLUSTER_SILENT_SECONDS
        .iter()
        .flat_map(|name| values(metrics, name));
    let silent = silent.map(|metric| metric.get_gauge().get_value());
    if let Some(seconds) = silent.reduce(f64::max) {
        text.push_str(&format!(
            "trouble: the cluster has not answered for {seconds:.0} s\n"
        ));
    }
    text
}

fn archiver_troubles(metrics: &[MetricFamily]) -> String {
    let mut text = String::new();
    let mut frozen: Vec<String> = values(metrics, FROZEN).map(partition).collect();
    if !frozen.is_empty() {
        let count = frozen.len();
        frozen.sort();
        frozen.truncate(NAMED_MAX);
        if NAMED_MAX < count {
            frozen.push("…".to_owned());
        }
        let names = frozen.join(", ");
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let stand = counted(count, "partition stands", "partitions stand");
        text.push_str(&format!("trouble: {stand} still: {names}\n"));
    }
    if let Some(held_back) = values(metrics, HELD_BACK).next() {
        let count = whole(held_back);
        let (topics, their) = match count.as_str() {
            "1" => ("topic that a regex matches is", "its configuration"),
            _ => ("topics that a regex matches are", "their configurations"),
        };
        text.push_str(&format!(
            "trouble: {count} {topics} not archived, since the cluster does not tell {their}: the log has the names, and what to do\n"
        ));
    }
    if let Some(unmatched) = values(metrics, UNMATCHED).next() {
        let count = whole(unmatched);
        let (words, them) = match count.as_str() {
            "1" => ("name or regex in `topics` matches", "it"),
            _ => ("names or regexes in `topics` match", "them"),
        };
        text.push_str(&format!(
            "trouble: {count} {words} no topic of the cluster: the log has {them}\n"
        ));
    }
    if values(metrics, FENCED).next().is_some() {
        text.push_str(
            "trouble: another process with the same instance id has taken this archiver's place in the group, within the last ten minutes: give each \
             archiver an instance id of its own (--instance-id, `instance_id`; the host name unless one is given)\n",
        );
    }
    text
}

fn proxy_troubles(metrics: &[MetricFamily]) -> String {
    let mut text = String::new();
    if let Some(unreachable) = values(metrics, UNREACHABLE).next() {
        let count = whole(unreachable);
        let (brokers, it, one) = match count.as_str() {
            "1" => ("broker of the cluster has", "it", "it one"),
            _ => ("brokers of the cluster have", "them", "them one"),
        };
        text.push_str(&format!(
            "trouble: {count} {brokers} no port here: clients cannot reach {it} through the proxy (--node-ports gives {one})\n"
        ));
    }
    text
}

/// The text of a gauge of whole numbers: nothing is cut off.
fn whole(metric: &Metric) -> String {
    format!("{:.0}", metric.get_gauge().get_value())
}

/// `topic/partition` of a metric's labels.
fn partition(metric: &Metric) -> String {
    format!("{}/{}", label(metric, "topic"), label(metric, "partition"))
}

fn label<'a>(metric: &'a Metric, name: &str) -> &'a str {
    let mut labels = metric.get_label().iter();
    let label = labels.find(|label| label.name() == name);
    label.map(|label| label.value()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use prometheus::{Gauge, GaugeVec, IntGauge, IntGaugeVec, Opts, Registry};

    use super::*;

    fn troubles(metrics: &[MetricFamily]) -> String {
        super::troubles(metrics, &StoreWords::default())
    }

    #[test]
    fn what_stands_still_is_named() {
        let registry = Registry::new();
        let frozen = Opts::new(FROZEN, "frozen");
        let frozen = IntGaugeVec::new(frozen, &["topic", "partition"]).expect("a metric");
        let silent = Gauge::new(SILENT_SECONDS, "silent").expect("a metric");
        let unreachable = IntGauge::new(UNREACHABLE, "unreachable").expect("a metric");
        registry.register(Box::new(frozen.clone())).expect("new");
        let [cluster, of_proxy] = CLUSTER_SILENT_SECONDS.map(|name| {
            let gauge = Gauge::new(name, "silent").expect("a metric");
            registry.register(Box::new(gauge.clone())).expect("new");
            gauge
        });
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
            "trouble: the object store has not answered for 12 s: the log has the words\n\
             trouble: the cluster has not answered for 30 s\n\
             trouble: 1 partition stands still: orders/3\n\
             trouble: 2 brokers of the cluster have no port here: clients cannot reach them through the proxy \
             (--node-ports gives them one)\n"
        );
        // A proxy of its own had no line for it.
        cluster.set(0.0);
        of_proxy.set(41.0);
        frozen.with_label_values(&["orders", "0"]).set(1);
        unreachable.set(1);
        let told = troubles(&registry.gather());
        for line in [
            "the cluster has not answered for 41 s",
            "2 partitions stand still: orders/0, orders/3",
            "1 broker of the cluster has no port here: clients cannot reach it",
        ] {
            assert!(told.contains(line), "{told}");
        }
    }

    #[test]
    fn a_store_that_refuses_is_trouble() {
        let registry = Registry::new();
        let refused = Opts::new(REFUSED_SECONDS, "refused");
        let refused = GaugeVec::new(refused, &["kind"]).expect("a metric");
        registry.register(Box::new(refused.clone())).expect("new");
        refused.with_label_values(&["read"]).set(0.0);
        refused.with_label_values(&["write"]).set(31.0);
        let told = troubles(&registry.gather());
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(
            told.starts_with(
                "trouble: the object store has refused every request to write for 31 s"
            )
        );
        // Who has no room for the spool, or a segment that is cut short, was sent to his permissions.
        for cause in ["permissions", "cut short", "local disk"] {
            assert!(told.contains(cause), "{cause}: {told}");
        }
    }

    /// They were in no line: all was ready, and retention removed what nobody archived.
    #[test]
    fn topics_that_are_held_back_are_trouble() {
        let registry = Registry::new();
        let held_back = IntGauge::new(HELD_BACK, "held back").expect("a metric");
        registry.register(Box::new(held_back.clone())).expect("new");
        assert_eq!(troubles(&registry.gather()), "");
        held_back.set(1);
        assert_eq!(
            troubles(&registry.gather()),
            "trouble: 1 topic that a regex matches is not archived, since the cluster does not tell its configuration: the log has \
             the names, and what to do\n"
        );
        held_back.set(1_200);
        let told = troubles(&registry.gather());
        assert!(
            told.starts_with("trouble: 1200 topics that a regex matches are not archived"),
            "{told}"
        );
    }

    /// A line of the log was all there was, and who brought the process up looked at its health.
    #[test]
    fn topics_that_are_not_there_and_a_place_that_is_taken_are_trouble() {
        let registry = Registry::new();
        let [unmatched, fenced] = [UNMATCHED, FENCED].map(|name| {
            let gauge = IntGauge::new(name, "told").expect("a metric");
            registry.register(Box::new(gauge.clone())).expect("new");
            gauge
        });
        assert_eq!(troubles(&registry.gather()), "");
        unmatched.set(1);
        assert_eq!(
            troubles(&registry.gather()),
            "trouble: 1 name or regex in `topics` matches no topic of the cluster: the log has it\n"
        );
        unmatched.set(3);
        assert_eq!(
            troubles(&registry.gather()),
            "trouble: 3 names or regexes in `topics` match no topic of the cluster: the log has them\n"
        );
        unmatched.set(0);
        fenced.set(1);
        let told = troubles(&registry.gather());
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains("--instance-id, `instance_id`"), "{told}");
    }

    /// A gauge of another name would be trouble that nobody hears of.
    #[tokio::test]
    async fn the_archivers_gauges_have_these_names() {
        let (registry, dir) = (Registry::new(), tempfile::tempdir().expect("a directory"));
        let options = everlog_index::ArchiveOptions {
            node_cache_dir: None,
            create: true,
        };
        let store = Arc::new(everlog_store::MemoryStore::new());
        let archive = everlog_index::Archive::open(store, options).await;
        let config = everlog_archiver::ArchiverConfig {
            bootstrap_servers: "127.0.0.1:1".to_owned(),
            kafka_properties: Default::default(),
            topics: everlog_format::TopicSelection::everything(),
            group_id: "group".to_owned(),
            instance_id: "instance".to_owned(),
            spool_dir: dir.path().to_owned(),
            segment_max_bytes: 64 << 20,
            segment_max_age: std::time::Duration::from_secs(60),
            memory_bytes: 256 << 20,
        };
        let archive = archive.expect("an archive");
        let _archiver = everlog_archiver::Archiver::new(config, archive, &registry)
            .expect("it connects to nothing yet");
        let families = registry.gather();
        for name in [HELD_BACK, UNMATCHED, FENCED, CLUSTER_SILENT_SECONDS[0]] {
            assert!(
                families.iter().any(|family| family.name() == name),
                "{name}"
            );
        }
    }

    /// Whose directory was unmounted was told to wait for an answer, and whose disk was full to look at his permissions.
    #[test]
    fn the_stores_own_words_are_told() {
        let registry = Registry::new();
        let silent = Gauge::new(SILENT_SECONDS, "silent").expect("a metric");
        let refused = Opts::new(REFUSED_SECONDS, "refused");
        let refused = GaugeVec::new(refused, &["kind"]).expect("a metric");
        registry.register(Box::new(silent.clone())).expect("new");
        registry.register(Box::new(refused.clone())).expect("new");
        silent.set(12.0);
        refused.with_label_values(&["list"]).set(3.0);
        let words = StoreWords {
            silent: Some("the directory is gone".to_owned()),
            refused: BTreeMap::from([("list", "allow it: status 403".to_owned())]),
        };
        assert_eq!(
            super::troubles(&registry.gather(), &words),
            "trouble: the object store has not answered for 12 s: the directory is gone\n\
             trouble: the object store has refused every request to list for 3 s: allow it: status 403\n"
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
