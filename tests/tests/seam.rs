//! Line 2: consumer groups cross from archive to cluster while a producer goes on, without a gap or a duplicate, and
//! resume where they stopped; archived and live partitions in one request starve neither.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow, ensure};
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, Follower, Kafka, S3, assert_same, count_lines,
    offsets, produce_orders, soak, wait_until,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const PARTITIONS: i32 = 3;

/// Produces until told to stop; gives the number of records.
fn produce_on(bootstrap: &str, stop: &AtomicBool, sent: &AtomicU64) -> Result<u64> {
    while !stop.load(Ordering::Relaxed) {
        let next = sent.load(Ordering::Relaxed);
        produce_orders(bootstrap, "orders", PARTITIONS, next..next + 150, "lz4")?;
        sent.store(next + 150, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(sent.load(Ordering::Relaxed))
}

fn no_gap_and_no_duplicate(folder: &Path) -> Result<()> {
    for partition in 0..PARTITIONS {
        let offsets = offsets(folder, partition)?;
        let broken = offsets.windows(2).find(|pair| pair[1] != pair[0] + 1);
        ensure!(
            broken.is_none(),
            "partition {partition}: {broken:?} in {}",
            folder.display()
        );
        ensure!(
            offsets.first() == Some(&0),
            "partition {partition} starts at {:?}",
            offsets.first()
        );
    }
    Ok(())
}

#[test]
fn groups_cross_the_seam_while_a_producer_goes_on() {
    Case::run("seam", |case| {
        let kafka = Kafka::start(case)?;
        let s3 = S3::start(case)?;
        let archive = Archive::on(&s3, "seam");
        let admin = kafka.admin()?;
        admin.create_topic("orders", PARTITIONS, &[("segment.bytes", "1048576")])?;
        let first = if soak() { 600_000 } else { 30_000 };
        produce_orders(&kafka.bootstrap(), "orders", PARTITIONS, 0..first, "zstd")?;
        // The witness reads the broker itself, before anything is forgotten.
        let witness = Follower::start(
            Client::Rdkafka,
            &kafka.bootstrap(),
            "orders",
            "witness",
            &case.path("witness"),
            Follower::ENDLESS,
        )?;
        let options = EverlogOptions {
            segment_max_bytes: "1MiB".to_owned(),
            ..EverlogOptions::default()
        };
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
        archive.wait_archived(
            "orders",
            &admin.ends("orders", PARTITIONS)?,
            Duration::from_secs(300),
        )?;
        wait_until("the witness", Duration::from_secs(120), || {
            Ok(count_lines(&case.path("witness"))? >= first)
        })?;
        admin.delete_records("orders", &admin.ends("orders", PARTITIONS)?)?;
        case.note("the cluster has forgotten the first part");

        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(first));
        let bootstrap = kafka.bootstrap();
        std::thread::scope(|scope| -> Result<()> {
            let producer = scope.spawn(|| produce_on(&bootstrap, &stop, &sent));
            let outcome = (|| {
                // Each stops within the archived part, and starts again.
                let mut followers = Vec::new();
                for client in Client::ALL {
                    let folder = case.path(client.name());
                    let start = |count| {
                        Follower::start(
                            client,
                            &everlog.bootstrap(),
                            "orders",
                            client.name(),
                            &folder,
                            count,
                        )
                    };
                    start(first / 5)?.finish()?;
                    let got = count_lines(&folder)?;
                    ensure!(
                        got < first,
                        "{client:?} read {got} and was to stop within the archived part"
                    );
                    followers.push((client, start(Follower::ENDLESS)?));
                }
                case.note("all groups go on after a stop in the archived part");
                let seen = sent.load(Ordering::Relaxed);
                for (client, follower) in &mut followers {
                    wait_until(
                        &format!("{client:?} at the tail"),
                        Duration::from_secs(240),
                        || {
                            follower.check_alive()?;
                            Ok(count_lines(follower.folder())? >= seen)
                        },
                    )?;
                }
                case.note("all groups are in the live part");
                // The seam moves under them.
                archive.wait_archived(
                    "orders",
                    &admin.ends("orders", PARTITIONS)?,
                    Duration::from_secs(60),
                )?;
                let ends: BTreeMap<i32, i64> = archive
                    .held_of("orders")?
                    .into_values()
                    .map(|held| (held.partition, held.end))
                    .collect();
                admin.delete_records("orders", &ends)?;
                std::thread::sleep(Duration::from_secs(3));
                Ok(followers)
            })();
            stop.store(true, Ordering::Relaxed);
            let total = producer
                .join()
                .map_err(|_| anyhow!("the producer panicked"))??;
            wait_until("the witness", Duration::from_secs(60), || {
                Ok(count_lines(witness.folder())? >= total)
            })?;
            witness.stop()?;
            for (client, mut follower) in outcome? {
                let folder = case.path(client.name());
                wait_until(
                    &format!("{client:?} at the end"),
                    Duration::from_secs(60),
                    || {
                        follower.check_alive()?;
                        Ok(count_lines(&folder)? >= total)
                    },
                )?;
                follower.stop()?;
                no_gap_and_no_duplicate(&folder)?;
                // Java is compared with librdkafka here: plain records look the same to both.
                assert_same(&case.path("witness"), &folder, total)?;
                case.note(&format!("{client:?} has {total} records, each once"));
            }
            Ok(())
        })?;
        everlog.stop()
    });
}

fn now_ms() -> Result<i64> {
    Ok(i64::try_from(
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis(),
    )?)
}

#[test]
fn a_request_for_archived_and_live_partitions_starves_neither() {
    Case::run("starve", |case| {
        let kafka = Kafka::start(case)?;
        let s3 = S3::start(case)?;
        let archive = Archive::on(&s3, "starve");
        let admin = kafka.admin()?;
        // All history is in partition 0; partition 1 only lives.
        admin.create_topic("both", 2, &[])?;
        let history = if soak() { 600_000 } else { 80_000 };
        produce_orders(&kafka.bootstrap(), "both", 1, 0..history, "none")?;
        let run = Everlog::start(
            case,
            &kafka.bootstrap(),
            &archive,
            &EverlogOptions::default(),
        )?;
        let ends = BTreeMap::from([(0, i64::try_from(history)?)]);
        archive.wait_archived("both", &ends, Duration::from_secs(300))?;
        run.stop()?;
        admin.delete_records("both", &ends)?;
        let options = EverlogOptions {
            command: "proxy",
            ..EverlogOptions::default()
        };
        let proxy = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;

        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap())
            .set("linger.ms", "0")
            .create()?;
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", proxy.bootstrap())
            .set("group.id", "both")
            .set("auto.offset.reset", "error")
            // So that the history needs many requests, and is still being read when live records come.
            .set("queued.max.messages.kbytes", "1024")
            // By default librdkafka waits a second whenever that queue is full, and reads 1,600 records a second, from a broker too.
            .set("fetch.queue.backoff.ms", "10")
            .create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("both", 0, Offset::Beginning)?;
        list.add_partition_offset("both", 1, Offset::Beginning)?;
        consumer.assign(&list)?;
        let (mut old, mut live, mut sent, mut worst_ms) = (0_u64, 0_u64, 0_u64, 0_i64);
        let start = Instant::now();
        while old < history || live < sent {
            if u128::from(sent) < start.elapsed().as_millis() / 100 && old < history {
                let record = BaseRecord::<[u8], [u8]>::to("both")
                    .partition(1)
                    .timestamp(now_ms()?)
                    .payload(b"live");
                producer.send(record).map_err(|(error, _)| error)?;
                sent += 1;
            }
            // Not flush: it takes its time, and would set the pace of this loop.
            producer.poll(Duration::ZERO);
            if let Some(message) = consumer.poll(Duration::from_millis(50)) {
                let message = message?;
                if message.partition() == 0 {
                    old += 1;
                    if old % 100 == 0 {
                        // About 10,000 records a second: the history takes several seconds.
                        std::thread::sleep(Duration::from_millis(10));
                    }
                } else {
                    live += 1;
                    let sent_ms = message.timestamp().to_millis().unwrap_or(0);
                    worst_ms = worst_ms.max(now_ms()? - sent_ms);
                }
            }
            ensure!(
                start.elapsed() < Duration::from_secs(300),
                "stalled: {old} old and {live} of {sent} live records"
            );
        }
        case.note(&format!(
            "{old} old, {live} live records, the live ones at most {worst_ms} ms late"
        ));
        ensure!(
            live > 20,
            "only {live} live records: the history was over too soon to say anything"
        );
        ensure!(worst_ms < 5_000, "a live record was {worst_ms} ms late");
        proxy.stop()
    });
}
