//! The benchmark: archiving against a bare consumer, replay against the broker, sizes, a cold seek; the log on a device
//! against fio and dd.
//!
//! Rounds are interleaved, so that whatever else the machine does hits all sides. Rates count the bytes of keys and values.

mod archiving;
mod figures;
mod wal;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;

use crate::{
    Archive, Cache, Case, Everlog, EverlogOptions, Kafka, KafkaOptions, Process, ProcessUsage, S3,
    produce_orders, wait_until,
};
use archiving::Archiving;
use figures::Figures;

const PARTITIONS: i32 = 4;
const STEP_MAX: Duration = Duration::from_secs(900);
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;
/// Logs by the producer's codec, and what their figures end in.
const LOGS: [(&str, &str); 2] = [("none", ""), ("zstd", "_zstd")];

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of `archive`, `replay`, `wal`; empty: all.
    pub groups: Vec<String>,
    /// MiB of values in each log (`EVERLOG_BENCH_MIB`, default 2048).
    pub mebibytes: u64,
    /// Rounds (`EVERLOG_BENCH_ROUNDS`, default 3).
    pub rounds: u32,
    /// Seconds of each run of the log (`EVERLOG_BENCH_WAL_SECONDS`, default 3).
    pub wal_seconds: u64,
    /// The log that is recovered, in GiB (`EVERLOG_BENCH_WAL_GIB`, default 10; 0: none).
    pub wal_gibibytes: u64,
    /// One JSON object of medians instead of a table.
    pub json: bool,
}

impl Options {
    /// Sizes from the environment.
    pub fn from_environment(groups: Vec<String>, json: bool) -> Result<Options> {
        let number = |name: &str, default: u64| -> Result<u64> {
            std::env::var(name).map_or(Ok(default), |text| {
                text.parse().with_context(|| format!("{name}={text}"))
            })
        };
        for group in &groups {
            ensure!(
                ["archive", "replay", "wal"].contains(&group.as_str()),
                "no group {group}: there are archive, replay and wal"
            );
        }
        let rounds = u32::try_from(number("EVERLOG_BENCH_ROUNDS", 3)?)?;
        Ok(Options {
            groups,
            mebibytes: number("EVERLOG_BENCH_MIB", 2048)?,
            rounds,
            wal_seconds: number("EVERLOG_BENCH_WAL_SECONDS", 3)?,
            wal_gibibytes: number("EVERLOG_BENCH_WAL_GIB", 10)?,
            json,
        })
    }

    fn wants(&self, group: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|wanted| wanted == group)
    }
}

/// Reads `records` records of a topic as fast as librdkafka can and drops them; gives a line of JSON.
pub fn drain(
    bootstrap: &str,
    topic: &str,
    records: u64,
    place: Option<(i32, i64)>,
) -> Result<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "everlog-bench")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("check.crcs", "true")
        .set("queued.max.messages.kbytes", "65536")
        .create()?;
    let mut list = TopicPartitionList::new();
    match place {
        Some((partition, offset)) => {
            list.add_partition_offset(topic, partition, Offset::Offset(offset))?
        }
        None => {
            let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30))?;
            for partition in metadata.topics().first().context("no topic")?.partitions() {
                list.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
            }
        }
    }
    let start = Instant::now();
    consumer.assign(&list)?;
    let (mut seen, mut bytes) = (0_u64, 0);
    let mut progress = Instant::now();
    while seen < records {
        match consumer.poll(Duration::from_millis(500)) {
            Some(message) => {
                let message = message?;
                seen += 1;
                bytes += message.payload_len() + message.key_len();
                if seen % 1024 == 0 {
                    progress = Instant::now();
                }
            }
            None if progress.elapsed() > Duration::from_secs(60) => {
                bail!("stalled after {seen} records")
            }
            None => {}
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(format!(
        "{{\"records\":{seen},\"bytes\":{bytes},\"seconds\":{seconds}}}"
    ))
}

/// One measured read: rate in MiB/s, the client's usage.
struct Drained {
    mebibytes_per_second: f64,
    bytes: f64,
    usage: ProcessUsage,
}

struct Bench<'a> {
    case: &'a Case,
    options: Options,
    kafka: Kafka,
    s3: S3,
    records: u64,
    figures: Figures,
    count: u32,
}

fn beside(name: &str) -> Result<Command> {
    let own = std::env::current_exe()?;
    Ok(Command::new(own.parent().context("a folder")?.join(name)))
}

/// Bytes of a partition's log segments, or of any files with that ending, below `folder`.
fn bytes_below(folder: &Path, part: &str, ending: &str) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if path.is_dir() {
            sum += bytes_below(&path, part, ending)?;
        } else if path.to_string_lossy().contains(part) && path.to_string_lossy().ends_with(ending)
        {
            sum += entry.metadata()?.len();
        }
    }
    Ok(sum)
}

/// Runs the wanted groups and prints the table, or the object of medians.
pub fn run(options: &Options) -> Result<()> {
    let mut outcome = Ok(());
    Case::run("bench", |case| {
        let mut figures = Figures::default();
        if options.wants("wal") {
            let of_log = wal::WalOptions {
                rounds: options.rounds,
                seconds: options.wal_seconds,
                gibibytes: options.wal_gibibytes,
            };
            wal::run(case, of_log, &mut figures)?;
        }
        if options.wants("archive") || options.wants("replay") {
            figures = with_kafka(case, options, figures)?;
        }
        outcome = figures.print(options.json);
        Ok(())
    });
    outcome
}

/// The groups that need a broker and a store.
fn with_kafka(case: &Case, options: &Options, figures: Figures) -> Result<Figures> {
    let heap = KafkaOptions {
        heap: "-Xmx1g",
        ..KafkaOptions::default()
    };
    let kafka = Kafka::start_with(case, heap)?;
    let s3 = S3::start(case)?;
    let mut bench = Bench {
        case,
        options: options.clone(),
        kafka,
        s3,
        records: 0,
        figures,
        count: 0,
    };
    bench.produce()?;
    for round in 1..=bench.options.rounds {
        for (log, suffix) in LOGS {
            case.note(&format!("round {round}, {log}"));
            bench.round(round, log, suffix)?;
        }
    }
    Ok(bench.figures)
}

impl Bench<'_> {
    fn produce(&mut self) -> Result<()> {
        let admin = self.kafka.admin()?;
        let sample: usize = (0..200).map(|number| crate::order_json(number).len()).sum();
        self.records = self.options.mebibytes * 1_048_576 * 200 / u64::try_from(sample)?;
        for (log, suffix) in LOGS {
            admin.create_topic(log, PARTITIONS, &[])?;
            produce_orders(
                &self.kafka.bootstrap(),
                log,
                PARTITIONS,
                0..self.records,
                log,
            )?;
            let bytes = bytes_below(&self.kafka.data_folder(1), &format!("/{log}-"), ".log")?;
            self.case.note(&format!(
                "{log}: {} records, {} MiB in the broker's log",
                self.records,
                bytes >> 20
            ));
            self.figures.add(
                &format!("log_mib{suffix}"),
                f64::from(u32::try_from(bytes >> 10)?) / 1024.0,
            );
        }
        Ok(())
    }

    fn round(&mut self, round: u32, log: &str, suffix: &str) -> Result<()> {
        let archive = Archive::on(&self.s3, &format!("bench-{log}-{round}"));
        let direct = self.kafka.bootstrap();
        let bare = self.bare(&direct, log)?;
        self.case.note(&format!(
            "a bare consumer reads at {:.0} MiB/s",
            bare.mebibytes_per_second
        ));
        self.note_client("bare", suffix, &bare);
        // The replay needs an archive too.
        let rate = self.archive(&archive, log, suffix)?;
        if self.options.wants("archive") {
            self.figures.add(
                &format!("archive_vs_bare_consumer{suffix}"),
                rate / bare.mebibytes_per_second,
            );
            let held = archive.held_of(log)?;
            let stored: u64 = held.values().map(|held| held.bytes).sum();
            let kept = bytes_below(&self.kafka.data_folder(1), &format!("/{log}-"), ".log")?;
            let name = if suffix.is_empty() {
                "bytes_vs_log_uncompressed"
            } else {
                "bytes_vs_log_zstd"
            };
            self.figures.add(name, as_f64(stored) / as_f64(kept));
        }
        if self.options.wants("replay") {
            self.replay(&archive, log, suffix, &direct)?;
            self.cold_seek(&archive, log, suffix)?;
            let sidecar = Archive::on(&self.s3, &format!("bench-run-{log}-{round}"));
            self.sidecar(&sidecar, log, suffix)?;
        }
        Ok(())
    }

    /// What the client itself took has names of its own: `replay_cpu_s_per_gib` is the proxy's.
    fn note_client(&mut self, what: &str, suffix: &str, drained: &Drained) {
        self.figures.add(
            &format!("{what}_mib_s{suffix}"),
            drained.mebibytes_per_second,
        );
        self.figures.add(
            &format!("{what}_client_cpu_s_per_gib{suffix}"),
            drained.usage.cpu_seconds / (drained.bytes / GIB),
        );
        self.figures.add(
            &format!("{what}_client_rss_mib{suffix}"),
            as_f64(drained.usage.peak_rss_bytes) / MIB,
        );
    }

    fn client(&mut self, name: &str, command: &Command) -> Result<Drained> {
        self.count += 1;
        let log = self.case.path(&format!("client-{}-{name}.log", self.count));
        let mut process = Process::start(name, command, &log)?;
        let usage = process.wait_measured(STEP_MAX)?;
        let text = process.log_text();
        let line = text
            .lines()
            .find(|line| line.starts_with("{\"records\""))
            .with_context(|| text.clone())?;
        let parsed: Value = serde_json::from_str(line)?;
        let number = |name: &str| {
            parsed[name]
                .as_f64()
                .with_context(|| format!("no {name} in {line}"))
        };
        let bytes = number("bytes")?;
        Ok(Drained {
            mebibytes_per_second: bytes / MIB / number("seconds")?,
            bytes,
            usage,
        })
    }

    fn bare(&mut self, bootstrap: &str, log: &str) -> Result<Drained> {
        let mut command = beside("bare-consumer")?;
        command.args([bootstrap, log, &self.records.to_string()]);
        self.client("bare-consumer", &command)
    }

    fn java(&mut self, bootstrap: &str, log: &str) -> Result<Drained> {
        let mut command = Cache::find()?.java(&["-Xmx512m", "-XX:+UseG1GC"], "Client");
        command.args(["drain", bootstrap, log, &self.records.to_string()]);
        self.client("java", &command)
    }

    /// Archives a whole log with a fresh archiver; gives its rate in MiB/s, from the first assignment to the last commit.
    ///
    /// Once everything is fetched it is asked to end, and commits what is open: segments wait for no age limit, neither
    /// here nor in the rate.
    fn archive(&mut self, archive: &Archive, log: &str, suffix: &str) -> Result<f64> {
        self.count += 1;
        let options = EverlogOptions {
            command: "archive",
            topics: vec![log.to_owned()],
            // Small enough for several segments of each partition, so that uploads and fetches overlap.
            segment_max_bytes: "32MiB".to_owned(),
            segment_max_age: "10m".to_owned(),
            environment: vec![(
                "EVERLOG_GROUP_ID".to_owned(),
                format!("bench-{}", self.count),
            )],
            ..EverlogOptions::default()
        };
        let start = Instant::now();
        let mut everlog = Everlog::launch(self.case, &self.kafka.bootstrap(), archive, &options)?;
        let wanted = as_f64(self.records);
        wait_until("all records to be fetched", STEP_MAX, || {
            everlog.process.check_alive()?;
            Ok(everlog
                .metric("everlog_archiver_fetched_records_total")
                .is_ok_and(|records| records >= wanted))
        })?;
        everlog.process.signal("TERM")?;
        let usage = everlog.process.wait_measured(STEP_MAX)?;
        let elapsed = start.elapsed();
        let archiving = Archiving::of(&everlog.process.log_text())?;
        let held = archive.held_of(log)?;
        let records: u64 = held.values().map(|held| held.records).sum();
        ensure!(
            records == self.records,
            "{records} of {} records are archived",
            self.records
        );
        let bytes = as_f64(held.values().map(|held| held.raw_bytes).sum());
        let rate = bytes / MIB / archiving.work.as_secs_f64();
        self.case.note(&format!(
            "archived at {rate:.0} MiB/s, {:.2} CPU s/GiB",
            usage.cpu_seconds / (bytes / GIB)
        ));
        if self.options.wants("archive") {
            self.figures.add(&format!("archive_mib_s{suffix}"), rate);
            self.figures.add(
                &format!("archive_start_ms{suffix}"),
                elapsed.saturating_sub(archiving.to_end).as_secs_f64() * 1000.0,
            );
            self.figures.add(
                &format!("archive_cpu_s_per_gib{suffix}"),
                usage.cpu_seconds / (bytes / GIB),
            );
            self.figures.add(
                &format!("archive_rss_mib{suffix}"),
                as_f64(usage.peak_rss_bytes) / MIB,
            );
            self.figures
                .add("peak_rss_mib", as_f64(usage.peak_rss_bytes) / MIB);
        }
        Ok(rate)
    }

    fn proxy(&mut self, archive: &Archive, log: &str) -> Result<Everlog> {
        let options = EverlogOptions {
            command: "proxy",
            topics: vec![log.to_owned()],
            ..EverlogOptions::default()
        };
        Everlog::start(self.case, &self.kafka.bootstrap(), archive, &options)
    }

    fn replay(&mut self, archive: &Archive, log: &str, suffix: &str, direct: &str) -> Result<()> {
        let bare = self.bare(direct, log)?;
        let proxy = self.proxy(archive, log)?;
        let through = self.bare(&proxy.bootstrap(), log)?;
        let usage = proxy.process.usage()?;
        let served = proxy.metric("everlog_replay_records_total")?;
        ensure!(
            served >= as_f64(self.records),
            "only {served} records came from the archive"
        );
        proxy.stop()?;
        self.note_client("replay", suffix, &through);
        self.figures.add(
            &format!("replay_vs_broker{suffix}"),
            through.mebibytes_per_second / bare.mebibytes_per_second,
        );
        self.figures.add(
            &format!("replay_cpu_s_per_gib{suffix}"),
            usage.cpu_seconds / (through.bytes / GIB),
        );
        self.figures
            .add("peak_rss_mib", as_f64(usage.peak_rss_bytes) / MIB);

        let java = self.java(direct, log)?;
        self.note_client("java", suffix, &java);
        let proxy = self.proxy(archive, log)?;
        let through = self.java(&proxy.bootstrap(), log)?;
        let usage = proxy.process.usage()?;
        proxy.stop()?;
        self.note_client("replay_java", suffix, &through);
        self.figures.add(
            &format!("replay_vs_broker_java{suffix}"),
            through.mebibytes_per_second / java.mebibytes_per_second,
        );
        self.figures.add(
            &format!("replay_cpu_s_per_gib_java{suffix}"),
            usage.cpu_seconds / (through.bytes / GIB),
        );
        self.figures
            .add("peak_rss_mib", as_f64(usage.peak_rss_bytes) / MIB);
        Ok(())
    }

    /// `everlog run`: archives a log while a client reads it through the same process, and serves it once more when all of
    /// it is archived. For its memory.
    fn sidecar(&mut self, archive: &Archive, log: &str, suffix: &str) -> Result<()> {
        self.count += 1;
        let options = EverlogOptions {
            topics: vec![log.to_owned()],
            segment_max_bytes: "32MiB".to_owned(),
            segment_max_age: "5s".to_owned(),
            environment: vec![(
                "EVERLOG_GROUP_ID".to_owned(),
                format!("bench-{}", self.count),
            )],
            ..EverlogOptions::default()
        };
        let everlog = Everlog::start(self.case, &self.kafka.bootstrap(), archive, &options)?;
        self.bare(&everlog.bootstrap(), log)?;
        let ends = self.kafka.admin()?.ends(log, PARTITIONS)?;
        archive.wait_archived(log, &ends, STEP_MAX)?;
        self.bare(&everlog.bootstrap(), log)?;
        let served = everlog.metric("everlog_replay_records_total")?;
        ensure!(
            served >= as_f64(self.records),
            "only {served} records came from the archive"
        );
        let peak = as_f64(everlog.process.usage()?.peak_rss_bytes) / MIB;
        everlog.stop()?;
        self.figures.add(&format!("run_rss_mib{suffix}"), peak);
        self.figures.add("peak_rss_mib", peak);
        Ok(())
    }

    /// The first record after a seek to the middle, with nothing cached but the newest commit.
    fn cold_seek(&mut self, archive: &Archive, log: &str, suffix: &str) -> Result<()> {
        let held: BTreeMap<i32, crate::Held> = archive.held_of(log)?;
        let range = &held[&1];
        let middle = range.start.midpoint(range.end);
        let proxy = self.proxy(archive, log)?;
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", proxy.bootstrap())
            .set("group.id", "everlog-bench")
            .set("auto.offset.reset", "error")
            .create()?;
        // Makes the connections, and lets the proxy find the newest commit.
        consumer.fetch_watermarks(log, 1, Duration::from_secs(30))?;
        // All reads of the store: nodes of the tree as well as segments.
        let reads_name = "everlog_store_requests_total{kind=\"read\"}";
        let before = proxy.metric(reads_name)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(log, 1, Offset::Offset(middle))?;
        let start = Instant::now();
        consumer.assign(&list)?;
        let first = loop {
            if let Some(message) = consumer.poll(Duration::from_millis(500)) {
                break message?.offset();
            }
            ensure!(
                start.elapsed() < Duration::from_secs(60),
                "nothing came after a cold seek"
            );
        };
        let milliseconds = start.elapsed().as_secs_f64() * 1000.0;
        ensure!(first == middle, "sought {middle}, got {first}");
        let reads = proxy.metric(reads_name)? - before;
        ensure!(reads >= 1.0, "a cold seek read nothing");
        self.figures
            .add(&format!("cold_seek_object_reads{suffix}"), reads);
        self.figures
            .add(&format!("cold_seek_ms{suffix}"), milliseconds);
        drop(consumer);
        proxy.stop()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures are shown with three digits"
)]
fn as_f64(count: u64) -> f64 {
    count as f64
}
