//! What clusters do to an archiver: records deleted before it has read them, topics deleted with what it holds, a log that
//! was truncated behind its back, a damaged batch. It never skips in silence, and goes on by itself where that is right.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use everlog_tests::{
    Archive, Case, Everlog, EverlogOptions, Kafka, KafkaOptions, S3, produce_orders, wait_until,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(120);

fn archiving(segment_max_age: &str) -> EverlogOptions {
    EverlogOptions {
        command: "archive",
        topics: vec!["orders".to_owned()],
        segment_max_age: segment_max_age.to_owned(),
        ..EverlogOptions::default()
    }
}

fn records(archive: &Archive, topic: &str) -> Result<u64> {
    Ok(archive
        .held()?
        .iter()
        .filter(|held| held.topic == topic)
        .map(|held| held.records)
        .sum())
}

/// Whether the log has a line with `what` that names all of `parts`.
fn has_line(everlog: &Everlog, what: &str, parts: &[&str]) -> Result<()> {
    let log = everlog.process.log_text();
    let mut lines = log.lines().filter(|line| line.contains(what));
    let names_all = |line: &str| parts.iter().all(|part| line.contains(part));
    ensure!(
        lines.clone().any(names_all),
        "no line about {what:?} names {parts:?}: {:?}",
        lines.next()
    );
    Ok(())
}

/// Reads from the first record on: `records` come, and then an error.
fn reads_up_to(bootstrap: &str, records: usize) -> Result<()> {
    let reader: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "reader")
        .create()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("orders", 0, Offset::Offset(0))?;
    reader.assign(&list)?;
    let mut found = 0;
    let mut failure = None;
    wait_until("the error behind the last record", PATIENCE, || {
        match reader.poll(Duration::from_millis(100)) {
            Some(Ok(_)) => found += 1,
            Some(Err(error)) => failure = Some(error),
            None => {}
        }
        Ok(failure.is_some())
    })?;
    ensure!(found == records, "{found} records, then {failure:?}");
    Ok(())
}

#[test]
fn records_deleted_ahead_of_the_archiver_are_a_hole_and_it_goes_on() {
    Case::run("overtaken", |case| {
        let (kafka, s3) = (Kafka::start(case)?, S3::start(case)?);
        let archive = Archive::on(&s3, "overtaken");
        let admin = kafka.admin()?;
        admin.create_topic("orders", 1, &[])?;
        let options = EverlogOptions {
            command: "run",
            ..archiving("1s")
        };
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
        produce_orders(&kafka.bootstrap(), "orders", 1, 0..500, "none")?;
        archive.wait_archived("orders", &BTreeMap::from([(0, 500)]), PATIENCE)?;
        ensure!(everlog.metric("everlog_archiver_holes_total")? < 0.5);
        everlog.process.signal("STOP")?;
        produce_orders(&kafka.bootstrap(), "orders", 1, 500..2000, "none")?;
        admin.delete_records("orders", &BTreeMap::from([(0, 1500)]))?;
        everlog.process.signal("CONT")?;
        archive.wait_archived("orders", &BTreeMap::from([(0, 2000)]), PATIENCE)?;
        let held = &archive.held_of("orders")?[&0];
        ensure!(
            (held.records, held.holes) == (1000, 1),
            "a hole of 1000 and 1000 records: {held:?}"
        );
        for (name, wanted) in [
            ("everlog_archiver_holes_total", 1.0),
            ("everlog_archiver_hole_offsets_total", 1000.0),
            ("everlog_archiver_frozen_partitions", 0.0),
        ] {
            wait_until(name, PATIENCE, || {
                Ok((everlog.metric(name)? - wanted).abs() < 0.5)
            })?;
        }
        let parts = ["\"orders\"", "\"partition\":0", "[500, 1500)", "on_hole"];
        has_line(&everlog, "recording a hole", &parts)?;
        reads_up_to(&everlog.bootstrap(), 500)?;
        // It used to give ids alone, and no way out.
        let parts = [
            "\"orders\"",
            "\"partition\":\"0\"",
            "[500, 1500)",
            "on_hole",
        ];
        has_line(&everlog, "a client asked for records that are lost", &parts)?;
        archive.verify()?;
        everlog.stop()
    });
}

/// Used to be dropped whole; and the archiver's own questions used to bring the topic back to life on brokers that create
/// topics by themselves.
#[test]
fn what_was_fetched_of_a_deleted_topic_is_archived_and_the_topic_stays_deleted() {
    Case::run("deleted", |case| {
        let options = KafkaOptions {
            properties: vec![("auto.create.topics.enable".to_owned(), "true".to_owned())],
            ..KafkaOptions::default()
        };
        let (kafka, s3) = (Kafka::start_with(case, options)?, S3::start(case)?);
        let archive = Archive::on(&s3, "deleted");
        let admin = kafka.admin()?;
        admin.create_topic("orders", 2, &[])?;
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &archiving("10m"))?;
        let fetched = |wanted: f64| {
            wait_until("records to be fetched", PATIENCE, || {
                Ok(everlog.metric("everlog_archiver_fetched_records_total")? >= wanted)
            })
        };
        produce_orders(&kafka.bootstrap(), "orders", 2, 0..2000, "none")?;
        fetched(2000.0)?;
        wait_until("all brokers to have shown the topic's id", PATIENCE, || {
            Ok(everlog.metric("everlog_archiver_proven_offset")? >= 2000.0)
        })?;
        ensure!(records(&archive, "orders")? == 0);
        produce_orders(&kafka.bootstrap(), "orders", 2, 2000..2300, "none")?;
        fetched(2300.0)?;
        admin.delete_topic("orders")?;
        wait_until("what was proven to be archived", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(500));
            Ok(records(&archive, "orders")? >= 2000)
        })?;
        // By then it has asked for the topic again, and given it up.
        wait_until("the partitions to be let go", PATIENCE, || {
            Ok(everlog.metric("everlog_archiver_partitions")? < 0.5)
        })?;
        ensure!(records(&archive, "orders")? <= 2300);
        let held = archive.held()?;
        let id = &held.first().context("nothing is held")?.topic_id;
        let gone = "a topic that is being archived is gone from the cluster";
        // The group may have been faster than the watch, which looks every ten seconds.
        wait_until("the topic's end to be told", PATIENCE, || {
            Ok(everlog.process.log_text().contains(gone))
        })?;
        has_line(&everlog, gone, &["WARN", "\"orders\"", id])?;
        archive.verify()?;
        everlog.stop()?;
        let asker: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap())
            .create()?;
        let metadata = asker.fetch_metadata(None, Duration::from_secs(30))?;
        let is_back = metadata
            .topics()
            .iter()
            .any(|topic| topic.name() == "orders");
        ensure!(!is_back, "the topic was created again");
        Ok(())
    });
}

/// Waits until it has tried `times`, and said each time in its log what is wrong.
fn frozen_again(everlog: &Everlog, line: &str, times: usize) -> Result<()> {
    wait_until("the archiver to try again and again", PATIENCE, || {
        Ok(everlog.process.log_text().matches(line).count() >= times)
    })
}

/// Changes one byte behind `text` in a log file.
fn flip(log: &Path, text: &str) -> Result<()> {
    let mut bytes = std::fs::read(log)?;
    let at = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes())
        .with_context(|| format!("{text} in {}", log.display()))?;
    bytes[at + text.len()] ^= 1;
    Ok(std::fs::write(log, bytes)?)
}

/// Flips a bit of record 150, while the broker is down.
fn damage(kafka: &mut Kafka) -> Result<()> {
    let log = kafka
        .data_folder(1)
        .join("orders-0/00000000000000000000.log");
    kafka.stop(1)?;
    flip(&log, "\"number\":150,")?;
    kafka.restart(1)
}

/// With the age that was asked for, the segment would be cut long after the cluster has let go of its records.
#[test]
fn a_short_retention_is_outrun_whatever_age_segments_may_reach() {
    Case::run("retention", |case| {
        let options = KafkaOptions {
            properties: vec![(
                "log.retention.check.interval.ms".to_owned(),
                "1000".to_owned(),
            )],
            ..KafkaOptions::default()
        };
        let (kafka, s3) = (Kafka::start_with(case, options)?, S3::start(case)?);
        let archive = Archive::on(&s3, "retention");
        let admin = kafka.admin()?;
        let configs = [
            ("retention.ms", "24000"),
            // The records' own timestamps are of another year.
            ("message.timestamp.type", "LogAppendTime"),
        ];
        admin.create_topic("orders", 1, &configs)?;
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &archiving("1h"))?;
        produce_orders(&kafka.bootstrap(), "orders", 1, 0..1000, "none")?;
        wait_until("the cluster to forget", PATIENCE, || {
            Ok(admin.watermarks("orders", 0)? == (1000, 1000))
        })?;
        let held = &archive.held_of("orders")?[&0];
        ensure!((held.end, held.records) == (1000, 1000), "{held:?}");
        has_line(&everlog, "committed", &["orders", "\"retention\""])?;
        everlog.stop()
    });
}

/// librdkafka reports a batch with a wrong checksum and goes on behind it: a segment cut there would claim to hold it.
#[test]
fn a_damaged_batch_freezes_its_partition_and_is_never_skipped() {
    Case::run("damaged", |case| {
        let (mut kafka, s3) = (Kafka::start(case)?, S3::start(case)?);
        let archive = Archive::on(&s3, "damaged");
        kafka.admin()?.create_topic("orders", 1, &[])?;
        for first in [0, 100, 200] {
            produce_orders(&kafka.bootstrap(), "orders", 1, first..first + 100, "none")?;
        }
        damage(&mut kafka)?;
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &archiving("1s"))?;
        wait_until("the partition to freeze", PATIENCE, || {
            Ok(everlog.metric("everlog_archiver_frozen_partitions")? > 0.5)
        })?;
        wait_until("what lies before it to be archived", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(500));
            Ok(records(&archive, "orders")? > 0)
        })?;
        frozen_again(&everlog, "the partition is frozen where it stands", 4)?;
        let held = &archive.held_of("orders")?[&0];
        ensure!(
            held.end <= 150 && held.records == u64::try_from(held.end)?,
            "{held:?}"
        );
        ensure!(everlog.metric("everlog_archiver_frozen_partitions")? > 0.5);
        // The same bit once more: sound again.
        damage(&mut kafka)?;
        archive.wait_archived("orders", &BTreeMap::from([(0, 300)]), PATIENCE)?;
        ensure!(records(&archive, "orders")? == 300);
        wait_until("the partition to thaw", PATIENCE, || {
            Ok(everlog.metric("everlog_archiver_frozen_partitions")? < 0.5)
        })?;
        archive.verify()?;
        everlog.stop()
    });
}

/// Used to grow no more as soon as a partition was not read: an alarm on it stayed silent for the very partitions that it
/// was made for.
#[test]
fn the_lag_of_a_frozen_partition_grows() {
    Case::run("frozen-lag", |case| {
        let (mut kafka, s3) = (Kafka::start(case)?, S3::start(case)?);
        let archive = Archive::on(&s3, "frozen-lag");
        kafka.admin()?.create_topic("orders", 1, &[])?;
        for first in [0, 100] {
            produce_orders(&kafka.bootstrap(), "orders", 1, first..first + 100, "none")?;
        }
        damage(&mut kafka)?;
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &archiving("1s"))?;
        frozen_again(&everlog, "the partition is frozen where it stands", 3)?;
        let lag = |name: &str| everlog.metric(&format!("everlog_archiver_{name}"));
        let seconds = lag("lag_seconds")?;
        produce_orders(&kafka.bootstrap(), "orders", 1, 200..1200, "none")?;
        wait_until("the lag to grow", PATIENCE, || {
            Ok(lag("lag_records")? > 1000.0 && lag("lag_seconds")? > seconds)
        })?;
        ensure!(lag("frozen_partitions")? > 0.5);
        everlog.stop()
    });
}

/// A partition with two replicas, as one broker has it.
struct Placed {
    leader: u16,
    follower: u16,
    in_sync: usize,
}

/// Asks with a client of its own, that knows nothing old. An error where the broker that answers does not know the topic
/// yet, or no leader of it.
fn placed(bootstrap: &str) -> Result<Placed> {
    let asker: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()?;
    let metadata = asker.fetch_metadata(Some("orders"), Duration::from_secs(30))?;
    let topic = metadata.topics().first().context("no topic")?;
    let partition = topic.partitions().first().context("no partition")?;
    let leader = partition.leader();
    let other = partition.replicas().iter().find(|id| **id != leader);
    Ok(Placed {
        leader: u16::try_from(leader).context("no leader")?,
        follower: u16::try_from(*other.context("one replica")?)?,
        in_sync: partition.isr().len(),
    })
}

/// Waits until the partition is as wanted. Brokers learn of a change one after the other, so that each answer before may
/// be an old one, or none.
fn wait_placed(kafka: &Kafka, what: &str, wanted: impl Fn(&Placed) -> bool) -> Result<Placed> {
    let (mut found, mut last) = (None, String::new());
    wait_until(what, PATIENCE, || {
        found = match placed(&kafka.bootstrap()) {
            Ok(placed) if wanted(&placed) => Some(placed),
            Ok(Placed {
                leader, in_sync, ..
            }) => {
                last = format!("node {leader} leads, {in_sync} in sync");
                None
            }
            Err(error) => {
                last = format!("{error:#}");
                None
            }
        };
        Ok(found.is_some())
    })
    .with_context(|| last)?;
    found.context("found")
}

/// By its offsets alone the new log looks like the old one's continuation. librdkafka asks for the end of an epoch only
/// once it learns of a newer one, and not when a partition is assigned: this used to be archived without a word.
#[test]
fn a_log_truncated_and_grown_again_while_the_archiver_was_away_freezes_its_partition() {
    Case::run("truncated", |case| {
        let property = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let options = KafkaOptions {
            nodes: 3,
            heap: "-Xmx320m",
            properties: vec![
                property("default.replication.factor", "2"),
                property("unclean.leader.election.enable", "true"),
            ],
            ..KafkaOptions::default()
        };
        let (mut kafka, s3) = (Kafka::start_with(case, options)?, S3::start(case)?);
        let archive = Archive::on(&s3, "truncated");
        let admin = kafka.admin()?;
        let configs = [
            ("min.insync.replicas", "1"),
            ("unclean.leader.election.enable", "true"),
        ];
        admin.create_topic("orders", 1, &configs)?;
        let (both, alone) = ("both replicas in sync", "the leader alone");
        let Placed {
            leader, follower, ..
        } = wait_placed(&kafka, both, |now| now.in_sync == 2)?;
        // Acknowledged by all that are in sync, so the follower has them too.
        produce_orders(&kafka.bootstrap(), "orders", 1, 0..1000, "none")?;
        wait_placed(&kafka, both, |now| (now.leader, now.in_sync) == (leader, 2))?;
        kafka.stop(follower)?;
        wait_placed(&kafka, alone, |now| {
            (now.leader, now.in_sync) == (leader, 1)
        })?;
        produce_orders(&kafka.bootstrap(), "orders", 1, 1000..2000, "none")?;
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &archiving("1s"))?;
        archive.wait_archived("orders", &BTreeMap::from([(0, 2000)]), PATIENCE)?;
        everlog.stop()?;
        kafka.kill(leader)?;
        kafka.restart(follower)?;
        case.note("waiting for a leader that lacks half of the log");
        wait_placed(&kafka, "the unclean election", |now| now.leader == follower)?;
        produce_orders(&kafka.bootstrap(), "orders", 1, 500_000..503_000, "none")?;
        // A client that knew the old leader may get no answer at first.
        let mut end = None;
        wait_until("the log's end", PATIENCE, || {
            end = kafka.admin()?.watermarks("orders", 0).ok();
            Ok(end.is_some())
        })?;
        let end = end.map(|(_, end)| end);
        ensure!(
            end == Some(4000),
            "1000 records and 3000 new ones, not an end at {end:?}"
        );
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &archiving("1s"))?;
        wait_until("the partition to freeze", PATIENCE, || {
            Ok(everlog.metric("everlog_archiver_frozen_partitions")? > 0.5)
        })?;
        frozen_again(&everlog, "truncated and written anew", 3)?;
        let held = &archive.held_of("orders")?[&0];
        ensure!((held.end, held.records) == (2000, 2000), "{held:?}");
        ensure!(everlog.metric("everlog_archiver_frozen_partitions")? > 0.5);
        let log = everlog.process.log_text();
        ensure!(log.contains("truncated and written anew"), "{log}");
        archive.verify()?;
        everlog.stop()
    });
}
