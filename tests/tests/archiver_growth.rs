//! Topics that grow, and topics with many partitions: all of it is archived, within the memory that was given.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use everlog_tests::{
    Archive, Case, Everlog, EverlogOptions, Kafka, S3, produce_inflating, produce_orders,
    wait_until,
};

/// librdkafka looks for new partitions every five minutes; with a short retention that is late.
#[test]
fn partitions_that_are_added_to_a_topic_are_archived_within_a_minute() {
    Case::run("grown", |case| {
        let (kafka, s3) = (Kafka::start(case)?, S3::start(case)?);
        let archive = Archive::on(&s3, "grown");
        let admin = kafka.admin()?;
        admin.create_topic("orders", 1, &[])?;
        let options = EverlogOptions {
            command: "archive",
            topics: vec!["orders".to_owned()],
            segment_max_age: "1s".to_owned(),
            ..EverlogOptions::default()
        };
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
        produce_orders(&kafka.bootstrap(), "orders", 1, 0..100, "none")?;
        let minute = Duration::from_secs(60);
        archive.wait_archived("orders", &BTreeMap::from([(0, 100)]), minute)?;
        admin.create_partitions("orders", 3)?;
        produce_orders(&kafka.bootstrap(), "orders", 3, 0..300, "none")?;
        let ends = BTreeMap::from([(0, 200), (1, 100), (2, 100)]);
        archive.wait_archived("orders", &ends, minute)?;
        everlog.stop()
    });
}

/// The least that `everlog archive` takes.
const MEMORY_MIB: u64 = 192;

/// A little for each of many partitions, and nothing is cut before the end: what is open has to go to disk. Once even the
/// chunks that were not full yet took more than all of the memory.
fn trickles(case: &Case, partitions: i32, records: u64) -> Result<()> {
    let (kafka, s3) = (Kafka::start(case)?, S3::start(case)?);
    let archive = Archive::on(&s3, "trickle");
    let admin = kafka.admin()?;
    admin.create_topic("wide", partitions, &[])?;
    let options = |age: &str| EverlogOptions {
        command: "archive",
        topics: vec!["wide".to_owned()],
        segment_max_bytes: "256MiB".to_owned(),
        segment_max_age: age.to_owned(),
        instance_id: Some("trickle".to_owned()),
        extra: vec!["--memory".to_owned(), format!("{MEMORY_MIB}MiB")],
        ..EverlogOptions::default()
    };
    let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options("10m"))?;
    let rounds = 10;
    for round in 0..rounds {
        let numbers = round * records / rounds..(round + 1) * records / rounds;
        produce_orders(&kafka.bootstrap(), "wide", partitions, numbers, "zstd")?;
    }
    wait_until("everything to be fetched", Duration::from_secs(60), || {
        let fetched = everlog.metric("everlog_archiver_fetched_records_total")?;
        Ok(fetched >= f64::from(u32::try_from(records)?))
    })?;
    let peak = everlog.process.usage()?.peak_rss_bytes >> 20;
    case.note(&format!(
        "{records} records are open with at most {peak} MiB"
    ));
    ensure!(
        everlog.metric("everlog_archiver_segments_total")? < 0.5,
        "segments were cut: this has shown nothing"
    );
    ensure!(peak < MEMORY_MIB, "{peak} MiB");
    everlog.stop()?;
    let held = |archive: &Archive| -> Result<u64> {
        Ok(archive.held()?.iter().map(|held| held.records).sum())
    };
    case.note(&format!("{} of them are committed", held(&archive)?));
    let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options("1s"))?;
    let ends = admin.ends("wide", partitions)?;
    archive.wait_archived("wide", &ends, Duration::from_secs(120))?;
    ensure!(held(&archive)? == records, "{} records", held(&archive)?);
    archive.verify()?;
    everlog.stop()
}

#[test]
fn a_hundred_partitions_that_trickle_stay_within_the_memory_and_lose_nothing() {
    Case::run("trickle-100", |case| trickles(case, 100, 100_000));
}

#[test]
fn three_hundred_partitions_that_trickle_stay_within_the_memory_and_lose_nothing() {
    Case::run("trickle-300", |case| trickles(case, 300, 120_000));
}

/// One answer of 8 MiB used to become more than the whole memory. An answer holds a MiB of each partition at most, so it
/// takes many for one that size.
#[test]
fn records_that_inflate_forty_fold_stay_within_the_memory() {
    const PARTITIONS: i32 = 10;
    Case::run("inflating", |case| {
        let (kafka, s3) = (Kafka::start(case)?, S3::start(case)?);
        let archive = Archive::on(&s3, "inflating");
        let admin = kafka.admin()?;
        admin.create_topic("zeros", PARTITIONS, &[])?;
        let records = 600_000;
        produce_inflating(&kafka.bootstrap(), "zeros", PARTITIONS, records)?;
        let options = EverlogOptions {
            command: "archive",
            topics: vec!["zeros".to_owned()],
            segment_max_bytes: "256MiB".to_owned(),
            extra: vec!["--memory".to_owned(), format!("{MEMORY_MIB}MiB")],
            ..EverlogOptions::default()
        };
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
        let ends = admin.ends("zeros", PARTITIONS)?;
        archive.wait_archived("zeros", &ends, Duration::from_secs(120))?;
        let peak = everlog.process.usage()?.peak_rss_bytes >> 20;
        let mut log_bytes = 0;
        for partition in 0..PARTITIONS {
            let folder = kafka.data_folder(1).join(format!("zeros-{partition}"));
            let log = folder.join("00000000000000000000.log");
            log_bytes += std::fs::metadata(log)?.len();
        }
        case.note(&format!(
            "{} KiB in the broker's log, at most {peak} MiB in the archiver",
            log_bytes >> 10
        ));
        ensure!(peak < MEMORY_MIB, "{peak} MiB");
        everlog.stop()
    });
}
