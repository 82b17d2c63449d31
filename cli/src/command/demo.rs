//! `everlog demo`: the main job on this machine alone. A stand-in cluster that forgets, the real archiver, the real proxy,
//! and an ordinary consumer that reads from the first record to the live tail and compares every one.

mod orders;
mod place;
mod produce;
mod progress;
mod replay;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use everlog_archiver::{Archiver, ArchiverConfig, Cluster, KafkaProperties, TopicNow};
use everlog_format::{Incarnation, Partition, PartitionKey, TopicSelection};
use everlog_index::{Archive, Freshness, Snapshot};
use everlog_proxy::{OnHole, Proxy, ProxyConfig};
use prometheus::Registry;
use rdkafka::mocking::MockCluster;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::DemoArgs;
use crate::config::{ArchivePlace, Roles, memory_split};
use crate::data_dir::DataDir;
use crate::open::{open_to_serve, store_to_serve};
use crate::table::{Table, grouped, short_bytes};
use crate::terminal::print;

use place::Place;
use produce::{AHEAD_MAX_BYTES, Sent, produce};
use progress::Progress;
use replay::{Replayed, replay};

const TOPIC: &str = "orders";
const PARTITIONS: usize = 4;

/// Small, so that the archive is never far behind what the stand-in cluster keeps.
const SEGMENT_MAX_BYTES: u64 = 384 << 10;
const SEGMENT_MAX_AGE: Duration = Duration::from_secs(2);

const MEMORY_BYTES: u64 = 512 << 20;

/// The share of the bytes that is in the archive, and mostly forgotten by the cluster, before the reader starts.
const BEFORE_REPLAY_PERCENT: u64 = 75;

/// What is produced at an easy pace once the reader has caught up.
const TAIL_RECORDS: i64 = 8_000;

/// For the archive to take in the last records, once nothing more comes.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// What producer, reader and watcher know of each other.
#[derive(Debug)]
struct Shared {
    archive: Arc<Archive>,
    /// Known once the archiver has met the topic.
    keys: OnceLock<Vec<PartitionKey>>,
    /// The archived ends, as last seen by the watcher.
    archived: [std::sync::atomic::AtomicI64; PARTITIONS],
    sent: Arc<Sent>,
    replayed: Replayed,
    /// The first record's time.
    start_ms: i64,
    stop: CancellationToken,
}

impl Shared {
    fn archived_end(&self, partition: usize) -> i64 {
        self.archived
            .get(partition)
            .map_or(0, |end| end.load(Ordering::Acquire))
    }

    fn archived_total(&self) -> i64 {
        (0..PARTITIONS)
            .map(|partition| self.archived_end(partition))
            .sum()
    }

    fn replayed(&self, partition: usize) -> i64 {
        self.replayed
            .next
            .get(partition)
            .map_or(0, |next| next.load(Ordering::Acquire))
    }

    fn replayed_total(&self) -> i64 {
        (0..PARTITIONS)
            .map(|partition| self.replayed(partition))
            .sum()
    }

    /// The newest commit that this process knows. The archiver publishes its commits in the archive they share.
    async fn snapshot(&self, partition: usize) -> Result<Option<Arc<Snapshot>>> {
        match self.keys.get().and_then(|keys| keys.get(partition)) {
            Some(key) => Ok(self.archive.snapshot(key, Freshness::Known).await?),
            None => Ok(None),
        }
    }
}

/// Runs the demo.
pub(crate) async fn demo(args: DemoArgs) -> Result<ExitCode> {
    let place = Place::prepare(&args.dir)?;
    let bytes = u64::from(args.megabytes) * 1_000_000;
    print(&introduction(&place, args.megabytes))?;

    let mock = MockCluster::new(1).context("librdkafka's stand-in cluster could not be started")?;
    let servers = mock.bootstrap_servers();
    mock.create_topic(TOPIC, i32::try_from(PARTITIONS)?, 1)
        .context("the stand-in cluster made no topic")?;
    let data_dir = DataDir::open(Some(&place.data()))?;
    let archive_place = ArchivePlace {
        url: place.archive_url()?,
        s3: Default::default(),
    };
    let store = store_to_serve(&archive_place, true, |_| {}).await?;
    let (archive, _) = open_to_serve(store, true, data_dir.node_cache(), |_| {}).await?;
    let shared = Arc::new(Shared {
        archive: Arc::clone(&archive),
        keys: OnceLock::new(),
        archived: Default::default(),
        sent: Arc::default(),
        replayed: Replayed::default(),
        start_ms: start_ms(bytes)?,
        stop: CancellationToken::new(),
    });
    // However this ends, nothing goes on behind it.
    let _stop = shared.stop.clone().drop_guard();

    let mut tasks = Tasks {
        archiver: Some(start_archiver(&servers, &shared, &data_dir)?),
        watcher: Some(tokio::spawn(watch(servers.clone(), Arc::clone(&shared)))),
        ..Tasks::default()
    };
    let (to, with) = (servers.clone(), Arc::clone(&shared));
    tasks.producer = Some(tokio::task::spawn_blocking(move || {
        produce(&to, &with, bytes, TAIL_RECORDS)
    }));

    let progress = Progress::new(Arc::clone(&shared), bytes);
    let before = bytes * BEFORE_REPLAY_PERCENT / 100;
    tasks
        .until(
            || shared.sent.bytes.load(Ordering::Relaxed) >= before,
            &progress,
        )
        .await?;
    progress.say("The cluster has forgotten most of it. Starting the proxy, and a consumer that reads from offset 0.");
    check_forgotten(&servers).await?;
    let proxy = start_proxy(&servers, &shared, &data_dir).await?;
    let with = Arc::clone(&shared);
    tasks.reader = Some(tokio::task::spawn_blocking(move || {
        replay(&proxy.to_string(), &with)
    }));
    let differences = tasks.finish(&shared, &progress).await?;
    progress.finish();

    let ends = check_forgotten(&servers).await?;
    conclude(&shared, &place, &ends, &differences).await
}

fn introduction(place: &Place, megabytes: u32) -> String {
    format!(
        "everlog demo: about {megabytes} MB of orders go through a Kafka cluster that forgets; none is lost.\n\
         The cluster is librdkafka's mock cluster in this process: a stand-in for Kafka, not Kafka. It keeps 5 MiB of each \
         of {PARTITIONS} partitions. Archiver, archive, proxy and clients are the real thing.\n\
         Archive: {}\n",
        place.archive().display()
    )
}

/// So that the last record is about now, and none lies in the future.
#[expect(
    clippy::disallowed_methods,
    reason = "the demo's records are to look fresh"
)]
fn start_ms(bulk_bytes: u64) -> Result<i64> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock stands before 1970")?;
    Ok(orders::start_ms(
        i64::try_from(now.as_millis())?,
        partition_bytes(bulk_bytes),
    ))
}

/// What one partition gets at most: one may be ahead of the others, and the tail comes on top.
fn partition_bytes(bulk_bytes: u64) -> u64 {
    let tail_bytes = TAIL_RECORDS.unsigned_abs() * 1_100;
    (bulk_bytes + tail_bytes) / u64::try_from(PARTITIONS).unwrap_or(1) + AHEAD_MAX_BYTES
}

fn start_archiver(
    servers: &str,
    shared: &Arc<Shared>,
    data_dir: &DataDir,
) -> Result<JoinHandle<Result<()>>> {
    let memory = memory_split(MEMORY_BYTES, Roles::BOTH).context("the demo's memory is enough")?;
    let config = ArchiverConfig {
        bootstrap_servers: servers.to_owned(),
        kafka_properties: KafkaProperties::default(),
        topics: TopicSelection::parse(&[TOPIC])?,
        group_id: "everlog-archiver".to_owned(),
        instance_id: "demo".to_owned(),
        spool_dir: data_dir.spool(),
        segment_max_bytes: SEGMENT_MAX_BYTES,
        segment_max_age: SEGMENT_MAX_AGE,
        memory_bytes: memory.archiver_bytes,
    };
    let archiver = Archiver::new(config, Arc::clone(&shared.archive), &Registry::new())?;
    let stop = shared.stop.clone();
    Ok(tokio::spawn(async move { Ok(archiver.run(stop).await?) }))
}

/// On whatever ports are free; a user names one with `--listen`.
async fn start_proxy(
    servers: &str,
    shared: &Arc<Shared>,
    data_dir: &DataDir,
) -> Result<SocketAddr> {
    let memory = memory_split(MEMORY_BYTES, Roles::BOTH).context("the demo's memory is enough")?;
    let config = ProxyConfig {
        bootstrap_servers: servers.to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise: None,
        node_ports: BTreeMap::new(),
        topics: TopicSelection::parse(&[TOPIC])?,
        memory_bytes: memory.proxy_bytes,
        data_dir: data_dir.proxy()?,
        on_hole: OnHole::Fail,
    };
    let proxy = Proxy::bind(config, Arc::clone(&shared.archive), &Registry::new())
        .await
        .context("the proxy")?;
    let (address, stop) = (proxy.local_addr(), shared.stop.clone());
    tokio::spawn(async move {
        if let Err(err) = proxy.run(stop.clone()).await {
            tracing::error!(error = &err as &dyn std::error::Error, "the proxy failed");
            stop.cancel();
        }
    });
    Ok(address)
}

/// Learns the topic's id, then follows the archived ends.
async fn watch(servers: String, shared: Arc<Shared>) -> Result<()> {
    let cluster = Cluster::new(&[("bootstrap.servers".to_owned(), servers)])?;
    let cluster_id = cluster.cluster_id().await?;
    let topics = cluster.topics_now(&[TOPIC.to_owned()]).await?;
    let Some(TopicNow::Is(topic_id)) = topics.get(TOPIC).copied() else {
        bail!("the stand-in cluster gives the topic no id");
    };
    let incarnation = Incarnation {
        cluster: cluster_id,
        topic_id,
    };
    let partitions = (0..).take(PARTITIONS).filter_map(Partition::new);
    let keys = partitions
        .map(|partition| PartitionKey {
            incarnation: incarnation.clone(),
            partition,
        })
        .collect();
    let _already_set = shared.keys.set(keys);
    while !shared.stop.is_cancelled() {
        for partition in 0..PARTITIONS {
            let covered = shared
                .snapshot(partition)
                .await?
                .and_then(|snapshot| snapshot.covered());
            if let (Some(range), Some(end)) = (covered, shared.archived.get(partition)) {
                end.store(range.end().get(), Ordering::Release);
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// The first offset that each partition still has, and the next one. All must have lost their beginning, or there would
/// be nothing to show.
async fn check_forgotten(servers: &str) -> Result<Vec<(i64, i64)>> {
    let cluster = Cluster::new(&[("bootstrap.servers".to_owned(), servers.to_owned())])?;
    let mut ends = Vec::new();
    for partition in (0..).take(PARTITIONS) {
        let (start, end) = cluster.watermarks(TOPIC, partition).await?;
        if start.get() == 0 {
            bail!(
                "partition {partition} still has its first record: the demo proves nothing, give it more --megabytes"
            );
        }
        ends.push((start.get(), end.get()));
    }
    Ok(ends)
}

/// What runs beside the main line. None may end before its time.
#[derive(Default)]
struct Tasks {
    archiver: Option<JoinHandle<Result<()>>>,
    watcher: Option<JoinHandle<Result<()>>>,
    producer: Option<JoinHandle<Result<()>>>,
    reader: Option<JoinHandle<Result<Vec<String>>>>,
    /// The reader's, once it is through.
    differences: Option<Vec<String>>,
}

impl Tasks {
    /// Waits for `reached`, and reports whatever fails before that.
    async fn until(&mut self, reached: impl Fn() -> bool, progress: &Progress) -> Result<()> {
        while !reached() {
            progress.tick();
            tokio::time::sleep(Duration::from_millis(100)).await;
            for (name, task) in [
                ("archiver", &mut self.archiver),
                ("watcher", &mut self.watcher),
                ("producer", &mut self.producer),
            ] {
                if let Some(handle) = task.take_if(|handle| handle.is_finished()) {
                    handle
                        .await?
                        .with_context(|| format!("the {name} failed"))?;
                    if name != "producer" {
                        bail!("the {name} ended before its time");
                    }
                }
            }
            if let Some(reader) = self.reader.take_if(|reader| reader.is_finished()) {
                self.differences = Some(reader.await?.context("the reader failed")?);
            }
        }
        Ok(())
    }

    /// Lets reader and producer come to their end, then the archive take in the rest. Gives the differences.
    async fn finish(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<Vec<String>> {
        while self.differences.is_none() {
            // One look at everything, then again.
            let looked = std::cell::Cell::new(false);
            self.until(|| looked.replace(true), progress).await?;
        }
        let all_archived = || shared.archived_total() >= shared.sent.delivered_total();
        let settled = tokio::time::timeout(SETTLE_MAX, self.until(all_archived, progress)).await;
        settled.with_context(|| {
            format!(
                "the archive has not everything after {} s",
                SETTLE_MAX.as_secs()
            )
        })??;
        shared.stop.cancel();
        for task in [
            self.producer.take(),
            self.archiver.take(),
            self.watcher.take(),
        ]
        .into_iter()
        .flatten()
        {
            task.await??;
        }
        Ok(self.differences.take().unwrap_or_default())
    }
}

async fn conclude(
    shared: &Shared,
    place: &Place,
    ends: &[(i64, i64)],
    differences: &[String],
) -> Result<ExitCode> {
    let mut table = Table::new(&[
        ">partition",
        ">records sent",
        ">still in the cluster",
        ">in the archive",
        ">replayed",
        ">equal",
    ]);
    let mut sums = [0; 5];
    let (mut stored, mut raw, mut segments) = (0, 0, 0);
    let mut all_well = differences.is_empty();
    for partition in 0..PARTITIONS {
        let snapshot = shared
            .snapshot(partition)
            .await?
            .context("a partition without a commit")?;
        let totals = snapshot.totals();
        (stored, raw, segments) = (
            stored + totals.bytes,
            raw + totals.raw_bytes,
            segments + totals.segments,
        );
        let (live_start, end) = ends.get(partition).copied().unwrap_or_default();
        let equal = shared
            .replayed
            .equal
            .get(partition)
            .map_or(0, |equal| equal.load(Ordering::Relaxed));
        let sent = shared.sent.delivered(partition);
        let archived = i64::try_from(totals.records)?;
        all_well &= sent == archived
            && sent == equal
            && sent == shared.replayed(partition)
            && totals.holes == 0;
        let row = [
            sent,
            end - live_start,
            archived,
            shared.replayed(partition),
            equal,
        ];
        sums.iter_mut()
            .zip(row)
            .for_each(|(sum, number)| *sum += number);
        table.row(cells(partition.to_string(), row));
    }
    table.row(cells("all".to_owned(), sums));
    let live = shared.replayed.live.load(Ordering::Relaxed);
    print(&format!(
        "\n{}\n{} of raw records lie in {segments} segments of {} together. {} of the replayed records came from the live \
         tail, the rest from the archive.",
        table.render(),
        short_bytes(raw),
        short_bytes(stored),
        grouped(live),
    ))?;
    for difference in differences {
        print(difference)?;
    }
    if !all_well {
        bail!("the replay is not what was sent");
    }
    print(&place.look_further()?)?;
    Ok(ExitCode::SUCCESS)
}

fn cells(name: String, numbers: [i64; 5]) -> Vec<String> {
    std::iter::once(name)
        .chain(
            numbers
                .into_iter()
                .map(|number| grouped(number.unsigned_abs())),
        )
        .collect()
}
