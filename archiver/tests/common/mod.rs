//! What the tests of this crate share: reading an archive back, and starting an archiver.
#![expect(clippy::disallowed_methods, reason = "the tests wait in real time")]
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use everlog_archiver::{Archiver, ArchiverConfig, ArchiverError, KafkaProperties};
use everlog_format::{
    Offset, Partition, PartitionKey, Record, RowGroupReader, Segment, TopicSelection,
};
use everlog_index::{Archive, ArchiveOptions, Entry, EntryKind, Freshness, Snapshot, TopicInfo};
use everlog_store::{MemoryStore, Store};
use prometheus::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// An archiver that runs.
pub(crate) struct Running {
    pub(crate) registry: Registry,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ArchiverError>>,
}

/// The log of all tests of this process.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Kept;

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log's lines (of level INFO and above) about a topic, which only one test of the process may use.
pub(crate) fn log_of(topic: &str) -> String {
    let bytes = LOG.lock().unwrap().clone();
    let named = format!("topic=\"{topic}\"");
    let lines = String::from_utf8_lossy(&bytes).into_owned();
    let lines = lines.lines().filter(|line| line.contains(&named));
    lines.fold(String::new(), |all, line| all + line + "\n")
}

/// Small segments, cut often.
pub(crate) fn config(bootstrap: &str, topics: &[&str], spool: &Path) -> ArchiverConfig {
    ArchiverConfig {
        bootstrap_servers: bootstrap.to_owned(),
        kafka_properties: KafkaProperties::default(),
        topics: TopicSelection::parse(topics).unwrap(),
        group_id: "everlog-archiver".to_owned(),
        instance_id: "test".to_owned(),
        spool_dir: spool.to_owned(),
        segment_max_bytes: 256 << 10,
        segment_max_age: Duration::from_secs(2),
        memory_bytes: 96 << 20,
    }
}

pub(crate) fn start(config: ArchiverConfig, archive: &Arc<Archive>) -> Running {
    let shown = tracing_subscriber::fmt::layer()
        .with_test_writer()
        .with_filter(tracing_subscriber::EnvFilter::from_default_env());
    let kept = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(|| Kept)
        .with_filter(LevelFilter::INFO);
    // An error says that another test of this process has done it.
    let _ = tracing_subscriber::registry()
        .with(shown)
        .with(kept)
        .try_init();
    let registry = Registry::new();
    let archiver = Archiver::new(config, Arc::clone(archive), &registry).unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(archiver.run(shutdown.clone()));
    Running {
        registry,
        shutdown,
        task,
    }
}

impl Running {
    /// Tells it to stop, without waiting.
    pub(crate) fn shutdown(&self) {
        self.shutdown.cancel();
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// The sum of a metric over its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let Some(family) = family else { return 0.0 };
        family
            .get_metric()
            .iter()
            .map(|metric| metric.get_gauge().get_value() + metric.get_counter().get_value())
            .sum()
    }
}

pub(crate) async fn memory_archive() -> Arc<Archive> {
    open_archive(Arc::new(MemoryStore::new())).await
}

pub(crate) async fn open_archive(store: Arc<dyn Store>) -> Arc<Archive> {
    Archive::open(
        store,
        ArchiveOptions {
            node_cache_dir: None,
            create: true,
        },
    )
    .await
    .unwrap()
}

/// Waits until `done` says so, and fails after a minute with `what`.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let start = Instant::now();
    while !done().await {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "not within a minute: {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The incarnations of a topic by name, in no order.
pub(crate) async fn incarnations(archive: &Arc<Archive>, topic: &str) -> Vec<TopicInfo> {
    let topics = archive.topics().await.unwrap();
    topics
        .into_iter()
        .filter(|info| info.name.as_str() == topic)
        .collect()
}

pub(crate) async fn snapshot(
    archive: &Arc<Archive>,
    info: &TopicInfo,
    partition: i32,
) -> Option<Arc<Snapshot>> {
    let key = PartitionKey {
        incarnation: info.incarnation.clone(),
        partition: Partition::new(partition).unwrap(),
    };
    archive.snapshot(&key, Freshness::Now).await.unwrap()
}

/// The archived end of the topic's only incarnation; 0 while there is none.
pub(crate) async fn archived_end(archive: &Arc<Archive>, topic: &str, partition: i32) -> i64 {
    let infos = incarnations(archive, topic).await;
    let Some(info) = infos.first() else { return 0 };
    match snapshot(archive, info, partition).await {
        Some(snapshot) => snapshot.covered().map_or(0, |covered| covered.end().get()),
        None => 0,
    }
}

pub(crate) async fn entries(snapshot: &Snapshot) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    let mut from = snapshot.covered().unwrap().start();
    loop {
        let some = snapshot.entries(from, 1_000).await.unwrap();
        let Some(last) = some.last() else { return all };
        from = last.range.end();
        all.extend(some);
    }
}

/// All records of a partition, in the archive's order; checks that entries touch and that each segment is what its
/// entry says.
pub(crate) async fn records(archive: &Arc<Archive>, snapshot: &Snapshot) -> Vec<Record> {
    let mut all = Vec::new();
    let mut end: Option<Offset> = None;
    for entry in entries(snapshot).await {
        assert!(
            end.is_none_or(|end| end == entry.range.start()),
            "{entry:?} does not start at {end:?}"
        );
        end = Some(entry.range.end());
        let EntryKind::Data(data) = &entry.kind else {
            continue;
        };
        let key = snapshot.segment_key(entry.range, data);
        let bytes = archive.store().get(&key).await.unwrap();
        assert_eq!(everlog_format::Hash::of(&bytes), data.hash);
        let footer = bytes.len() - usize::try_from(data.footer_len).unwrap();
        let segment = Arc::new(Segment::parse(&bytes.slice(footer..), data.bytes).unwrap());
        assert_eq!(segment.range(), entry.range);
        let before = all.len();
        for (index, group) in segment.row_groups().iter().enumerate() {
            let range = usize::try_from(group.bytes.start).unwrap()
                ..usize::try_from(group.bytes.end).unwrap();
            let mut reader = RowGroupReader::new(&segment, index, bytes.slice(range)).unwrap();
            while let Some(slice) = reader.next_slice(1 << 20).unwrap() {
                all.extend(slice.to_records());
            }
        }
        assert_eq!(u64::try_from(all.len() - before).unwrap(), data.records);
        let inside = |record: &Record| entry.range.contains(Offset::new(record.offset).unwrap());
        assert!(all[before..].iter().all(inside));
    }
    assert!(
        all.is_sorted_by(|a, b| a.offset < b.offset),
        "a record is twice or out of order"
    );
    all
}
