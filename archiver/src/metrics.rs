//! What the archiver tells Prometheus.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// All metrics, registered.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    lag_records: IntGaugeVec,
    unstable_records: IntGaugeVec,
    proven_offset: IntGaugeVec,
    lag_seconds: GaugeVec,
    seconds_since_last_commit: GaugeVec,
    frozen: IntGaugeVec,
    contended: IntCounterVec,
    holders: Holders,
    pub(crate) frozen_partitions: IntGauge,
    pub(crate) partitions: IntGauge,
    pub(crate) holes: IntCounter,
    pub(crate) hole_offsets: IntCounter,
    pub(crate) fetched_records: IntCounter,
    pub(crate) records: IntCounter,
    pub(crate) bytes: IntCounter,
    pub(crate) segments: IntCounter,
    pub(crate) segment_bytes: IntCounter,
    pub(crate) commits: IntCounter,
    pub(crate) commits_lost: IntCounter,
    pub(crate) retries: IntCounter,
    pub(crate) spilled_bytes: IntCounter,
    pub(crate) memory_bytes: IntGauge,
    pub(crate) held_back_topics: IntGauge,
    pub(crate) unmatched_topics: IntGauge,
    pub(crate) fenced: IntGauge,
    pub(crate) cluster_silent_seconds: Gauge,
}

/// Who uses the labels of a topic and partition.
#[derive(Debug, Default)]
struct Held {
    /// Live [`PartitionMetrics`]: a worker that is ending must not remove the series of the one that follows it.
    holders: usize,
    /// What their `frozen` says. Consumer and worker both set it, so looking and setting are one step.
    frozen: Arc<Mutex<bool>>,
}

type Holders = Arc<Mutex<HashMap<(String, String), Held>>>;

/// One partition's own metrics; its labels are removed when the partition is given away.
#[derive(Debug)]
pub(crate) struct PartitionMetrics {
    all: Metrics,
    topic: String,
    partition: String,
    pub(crate) lag_records: IntGauge,
    pub(crate) unstable_records: IntGauge,
    pub(crate) proven_offset: IntGauge,
    pub(crate) lag_seconds: Gauge,
    pub(crate) seconds_since_last_commit: Gauge,
    frozen: IntGauge,
    is_frozen: Arc<Mutex<bool>>,
    /// Whether the consumer reads it.
    is_read: AtomicBool,
    pub(crate) contended: IntCounter,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let labels = &["topic", "partition"];
        let counter = |name, help| added(registry, IntCounter::new(name, help)?);
        let gauge = |name, help| added(registry, IntGauge::new(name, help)?);
        let gauges = |name, help| added(registry, IntGaugeVec::new(Opts::new(name, help), labels)?);
        let floats = |name, help| added(registry, GaugeVec::new(Opts::new(name, help), labels)?);
        Ok(Metrics {
            lag_records: gauges(
                "everlog_archiver_lag_records",
                "Offsets from the archived end to the high watermark.",
            )?,
            unstable_records: gauges(
                "everlog_archiver_unstable_records",
                "Offsets that an open transaction keeps from being read; a hanging one lets this grow.",
            )?,
            proven_offset: gauges(
                "everlog_archiver_proven_offset",
                "What was fetched below this offset will be archived even if the topic is deleted now.",
            )?,
            lag_seconds: floats(
                "everlog_archiver_lag_seconds",
                "Age of the oldest record that is not archived yet, by its own timestamp; where that is not known, how long \
                 the partition has been behind.",
            )?,
            seconds_since_last_commit: floats(
                "everlog_archiver_seconds_since_last_commit",
                "Seconds since this process last committed something of the partition, or since it took it over.",
            )?,
            frozen: gauges(
                "everlog_archiver_frozen",
                "1 while the partition stands still because of trouble.",
            )?,
            contended: added(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "everlog_archiver_contended_total",
                        "Times that the partition was given back because another archiver kept writing to it.",
                    ),
                    labels,
                )?,
            )?,
            holders: Arc::default(),
            frozen_partitions: gauge(
                "everlog_archiver_frozen_partitions",
                "Partitions that stand still.",
            )?,
            partitions: gauge(
                "everlog_archiver_partitions",
                "Partitions that this archiver holds.",
            )?,
            holes: counter(
                "everlog_archiver_holes_total",
                "Holes recorded: records were lost before they were archived.",
            )?,
            hole_offsets: counter(
                "everlog_archiver_hole_offsets_total",
                "Offsets inside recorded holes.",
            )?,
            fetched_records: counter(
                "everlog_archiver_fetched_records_total",
                "Records taken in from the cluster; those read again after trouble count again.",
            )?,
            records: counter("everlog_archiver_records_total", "Records committed.")?,
            bytes: counter(
                "everlog_archiver_bytes_total",
                "Raw bytes of committed keys, values and headers.",
            )?,
            segments: counter("everlog_archiver_segments_total", "Segments committed.")?,
            segment_bytes: counter(
                "everlog_archiver_segment_bytes_total",
                "Bytes of committed segments.",
            )?,
            commits: counter("everlog_archiver_commits_total", "Commits made.")?,
            commits_lost: counter(
                "everlog_archiver_commit_lost_total",
                "Commits lost to another writer.",
            )?,
            retries: counter(
                "everlog_archiver_retries_total",
                "Attempts repeated because store or cluster did not answer.",
            )?,
            spilled_bytes: counter(
                "everlog_archiver_spilled_bytes_total",
                "Packed bytes moved to disk for want of memory.",
            )?,
            memory_bytes: gauge(
                "everlog_archiver_memory_bytes",
                "Bytes of records waiting for an encoder.",
            )?,
            held_back_topics: gauge(
                "everlog_archiver_held_back_topics",
                "Topics that a regex matches and that are not archived, since the cluster has not told their configurations.",
            )?,
            unmatched_topics: gauge(
                "everlog_archiver_unmatched_topics",
                "Names and regexes of the selection that match no topic of the cluster.",
            )?,
            fenced: gauge(
                "everlog_archiver_fenced",
                "1 if another process with the same instance id has taken this archiver's place in the group; 0 again after ten minutes \
                 in which none has.",
            )?,
            cluster_silent_seconds: added(
                registry,
                Gauge::new(
                    "everlog_archiver_cluster_silent_seconds",
                    "Seconds since the cluster last answered, or since the start, by questions some ten seconds apart; 0 while it answers.",
                )?,
            )?,
        })
    }

    pub(crate) fn partition(&self, topic: &str, partition: i32) -> PartitionMetrics {
        let partition = partition.to_string();
        let labels = &[topic, partition.as_str()];
        self.partitions.inc();
        let is_frozen = {
            let mut holders = self
                .holders
                .lock()
                .expect("nobody panics with the lock held");
            let held = holders
                .entry((topic.to_owned(), partition.clone()))
                .or_default();
            held.holders += 1;
            Arc::clone(&held.frozen)
        };
        PartitionMetrics {
            proven_offset: self.proven_offset.with_label_values(labels),
            is_frozen,
            is_read: AtomicBool::new(false),
            lag_records: self.lag_records.with_label_values(labels),
            unstable_records: self.unstable_records.with_label_values(labels),
            lag_seconds: self.lag_seconds.with_label_values(labels),
            seconds_since_last_commit: self.seconds_since_last_commit.with_label_values(labels),
            frozen: self.frozen.with_label_values(labels),
            contended: self.contended.with_label_values(labels),
            all: self.clone(),
            topic: topic.to_owned(),
            partition,
        }
    }
}

fn added<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

impl PartitionMetrics {
    pub(crate) fn set_read(&self, read: bool) {
        self.is_read.store(read, Ordering::Relaxed);
    }

    pub(crate) fn is_read(&self) -> bool {
        self.is_read.load(Ordering::Relaxed)
    }

    pub(crate) fn set_frozen(&self, frozen: bool) {
        let mut is_frozen = self
            .is_frozen
            .lock()
            .expect("nobody panics with the lock held");
        let before = std::mem::replace(&mut *is_frozen, frozen);
        self.frozen.set(i64::from(frozen));
        self.all
            .frozen_partitions
            .add(i64::from(frozen) - i64::from(before));
    }
}

impl Drop for PartitionMetrics {
    fn drop(&mut self) {
        self.all.partitions.dec();
        let mut holders = self
            .all
            .holders
            .lock()
            .expect("nobody panics with the lock held");
        let name = (self.topic.clone(), self.partition.clone());
        if let Some(held) = holders.get_mut(&name)
            && held.holders > 1
        {
            held.holders -= 1;
            return;
        }
        holders.remove(&name);
        self.set_frozen(false);
        let labels = &[self.topic.as_str(), self.partition.as_str()];
        // An error only says that the labels are gone already. `contended` stays: it is a counter.
        let _ = self.all.lag_records.remove_label_values(labels);
        let _ = self.all.unstable_records.remove_label_values(labels);
        let _ = self.all.proven_offset.remove_label_values(labels);
        let _ = self.all.lag_seconds.remove_label_values(labels);
        let _ = self
            .all
            .seconds_since_last_commit
            .remove_label_values(labels);
        let _ = self.all.frozen.remove_label_values(labels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(registry: &Registry, name: &str) -> usize {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        family.map_or(0, |family| family.get_metric().len())
    }

    /// Looked at and then set, two threads could both count the same change, and the sum never came back to 0.
    #[test]
    fn frozen_partitions_are_counted_right_whoever_freezes_and_thaws_them() {
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let partition = metrics.partition("orders", 0);
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let partition = &partition;
                scope.spawn(move || {
                    for round in 0..50_000 {
                        partition.set_frozen((round + seed) % 2 == 0);
                    }
                });
            }
        });
        partition.set_frozen(true);
        assert_eq!(metrics.frozen_partitions.get(), 1);
        partition.set_frozen(false);
        assert_eq!(metrics.frozen_partitions.get(), 0);
    }

    #[test]
    fn a_partitions_series_last_as_long_as_somebody_holds_it() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let name = "everlog_archiver_frozen";
        let first = metrics.partition("orders", 0);
        first.set_frozen(true);
        // Taken and given again while the first worker is still ending.
        let second = metrics.partition("orders", 0);
        assert_eq!(metrics.partitions.get(), 2);
        drop(first);
        assert_eq!(series(&registry, name), 1);
        assert_eq!(metrics.frozen_partitions.get(), 1);
        second.set_frozen(false);
        assert_eq!(metrics.frozen_partitions.get(), 0);
        second.set_frozen(true);
        second.contended.inc();
        drop(second);
        assert_eq!(series(&registry, name), 0);
        assert_eq!(series(&registry, "everlog_archiver_lag_records"), 0);
        assert_eq!(metrics.frozen_partitions.get(), 0);
        assert_eq!(metrics.partitions.get(), 0);
        // A counter that vanished would start over.
        assert_eq!(series(&registry, "everlog_archiver_contended_total"), 1);
    }
}
