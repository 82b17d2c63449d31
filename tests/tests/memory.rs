//! Line 9, in part: `everlog run` stays under 512 MiB with 100 partitions, while it archives and replays.

use std::time::Duration;

use anyhow::ensure;
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, Kafka, S3, produce_orders, read, soak,
};

const PARTITIONS: i32 = 100;

#[test]
fn run_stays_under_512_mib_with_100_partitions() {
    Case::run("memory", |case| {
        let kafka = Kafka::start(case)?;
        let s3 = S3::start(case)?;
        let archive = Archive::on(&s3, "memory");
        let admin = kafka.admin()?;
        admin.create_topic("wide", PARTITIONS, &[])?;
        let records = if soak() { 2_000_000 } else { 200_000 };
        produce_orders(&kafka.bootstrap(), "wide", PARTITIONS, 0..records, "zstd")?;
        case.note("produced");
        let options = EverlogOptions {
            segment_max_bytes: "256MiB".to_owned(),
            segment_max_age: "15s".to_owned(),
            ..EverlogOptions::default()
        };
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
        let ends = admin.ends("wide", PARTITIONS)?;
        archive.wait_archived("wide", &ends, Duration::from_secs(600))?;
        case.note(&format!(
            "archived with at most {} MiB",
            everlog.process.usage()?.peak_rss_bytes >> 20
        ));
        admin.delete_records("wide", &ends)?;
        for client in [Client::Rdkafka, Client::Java] {
            let report = read(
                client,
                &everlog.bootstrap(),
                "wide",
                &case.path(client.name()),
            )?;
            ensure!(
                report.records == records,
                "{client:?} read {}",
                report.records
            );
        }
        let peak = everlog.process.usage()?.peak_rss_bytes >> 20;
        case.note(&format!("replayed with at most {peak} MiB"));
        ensure!(peak < 512, "{peak} MiB");
        everlog.stop()
    });
}
