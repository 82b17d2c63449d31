//! Line 1: everything a Kafka topic can hold comes back through the proxy as it was, for each client.
//!
//! Five codecs, null and empty keys and values, headers of all kinds, timestamps 0, -1, out of order and decades apart in a
//! batch, 2 MB records, LogAppendTime, aborted and open transactions, changes of the leader epoch.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, Fidelity, Kafka, ReadReport, S3, assert_same,
    read, soak,
};

const PARTITIONS: i32 = 4;

fn read_all(
    case: &Case,
    bootstrap: &str,
    topic: &str,
    name: &str,
) -> Result<BTreeMap<Client, ReadReport>> {
    let mut reports = BTreeMap::new();
    for client in Client::ALL {
        let folder = case.path(&format!("{name}-{}", client.name()));
        let report = read(client, bootstrap, topic, &folder)?;
        case.note(&format!("{name}: {client:?} {report:?}"));
        reports.insert(client, report);
    }
    Ok(reports)
}

#[test]
fn each_client_reads_through_the_proxy_what_it_read_from_the_broker() {
    Case::run("fidelity", |case| {
        let records = if soak() { 1_000_000 } else { 40_000 };
        let mut kafka = Kafka::start(case)?;
        let s3 = S3::start(case)?;
        let archive = Archive::on(&s3, "fidelity");
        let admin = kafka.admin()?;
        let odd = Fidelity {
            topic: "odd".to_owned(),
            partitions: PARTITIONS,
            seed: 20_260_101,
            day: 0,
        };
        let scratch = case.path("transactions");
        admin.create_topic(&odd.topic, PARTITIONS, &[("segment.bytes", "16777216")])?;

        // The log begins with aborted records, and its very first ones are gone before anything is archived.
        odd.transactions(&kafka.bootstrap(), &scratch, records / 40, 0)?;
        odd.mixed(&kafka.bootstrap(), records / 2, 1)?;
        admin.delete_records(
            &odd.topic,
            &(0..PARTITIONS).map(|partition| (partition, 3)).collect(),
        )?;
        odd.hand_made(&kafka.bootstrap())?;
        kafka.stop(1)?;
        kafka.restart(1)?;
        admin.wait_leaders(&odd.topic, PARTITIONS)?;
        case.note("half of it is there, and the leader epoch has changed");

        let options = EverlogOptions {
            topics: vec!["odd".to_owned()],
            segment_max_bytes: if soak() { "16MiB" } else { "1MiB" }.to_owned(),
            ..EverlogOptions::default()
        };
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
        odd.log_append_time(&kafka.bootstrap(), &admin, records / 20, 2)?;
        odd.transactions(&kafka.bootstrap(), &scratch, records / 40, 4)?;
        odd.mixed(&kafka.bootstrap(), records * 2 / 5, 5)?;
        odd.hand_made(&kafka.bootstrap())?;
        odd.transactions(&kafka.bootstrap(), &scratch, 200, 6)?;
        odd.leave_open(&kafka.bootstrap(), &scratch)?;
        odd.mixed(&kafka.bootstrap(), 100, 7)?;
        case.note("all of it is there");

        let before = read_all(case, &kafka.bootstrap(), &odd.topic, "before")?;
        let ends = admin.ends(&odd.topic, PARTITIONS)?;
        archive.wait_archived(
            &odd.topic,
            &ends,
            Duration::from_secs(if soak() { 900 } else { 120 }),
        )?;
        let held = archive.held_of(&odd.topic)?;
        case.note(&format!("archived: {held:?}"));
        admin.delete_records(&odd.topic, &ends)?;

        let through = read_all(case, &everlog.bootstrap(), &odd.topic, "through")?;
        for client in Client::ALL {
            let (one, two) = (
                format!("before-{}", client.name()),
                format!("through-{}", client.name()),
            );
            assert_same(&case.path(&one), &case.path(&two), before[&client].records)?;
            ensure!(
                before[&client] == through[&client],
                "{:?} became {:?}",
                before[&client],
                through[&client]
            );
        }
        let records: u64 = held.values().map(|held| held.records).sum();
        ensure!(
            records == before[&Client::Rdkafka].records,
            "the archive counts {records} records"
        );
        ensure!(
            held.values().all(|held| held.start == 3 && held.holes == 0),
            "{held:?}"
        );
        archive.verify()?;
        everlog.stop()
    });
}
