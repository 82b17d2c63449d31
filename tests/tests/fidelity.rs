//! Line 1: everything a Kafka topic can hold comes back through the proxy as it was, for each client.
//!
//! Five codecs, null and empty keys and values, headers of all kinds, timestamps 0, -1, out of order and decades apart in a
//! batch, 2 MB records, LogAppendTime, aborted and open transactions, changes of the leader epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use everlog_tests::{
    Archive, Cache, Case, Client, Everlog, EverlogOptions, Fidelity, Kafka, ReadReport, S3,
    assert_same, read, soak,
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

/// Whether a record, by its words `offset timestamp type epoch key value headers`, is odd in one way.
type Odd = fn(&[&str]) -> bool;

fn has_header(record: &[&str], is_odd: impl Fn(&str, &str) -> bool) -> bool {
    record[6]
        .split(',')
        .filter_map(|header| header.split_once('='))
        .any(|(key, value)| is_odd(key, value))
}

/// All that was to be sent is there, or equal reads would prove little.
fn has_every_oddity(folder: &Path) -> Result<()> {
    let oddities: [(&str, Odd); 14] = [
        ("timestamp 0", |record| record[1] == "0"),
        ("timestamp -1", |record| record[1] == "-1"),
        ("CreateTime", |record| record[2] == "0"),
        ("LogAppendTime", |record| record[2] == "1"),
        ("a null key", |record| record[4] == "-"),
        ("an empty key", |record| record[4] == "x"),
        ("a tombstone", |record| record[4] != "-" && record[5] == "-"),
        ("an empty value", |record| record[5] == "x"),
        ("2 MB", |record| record[5].starts_with("#200000")),
        ("a null header", |record| {
            has_header(record, |_, value| value == "-")
        }),
        ("an empty header", |record| {
            has_header(record, |_, value| value == "x")
        }),
        ("an empty header key", |record| {
            has_header(record, |key, _| key == "x")
        }),
        ("a header key that is no text", |record| {
            has_header(record, |key, _| key.starts_with("xfffe"))
        }),
        ("a header that comes twice", |record| {
            let keys = record[6].split(',').map(|header| header.split('=').next());
            keys.clone().collect::<BTreeSet<_>>().len() < keys.count()
        }),
    ];
    let mut missing: BTreeSet<&str> = oddities.iter().map(|(name, _)| *name).collect();
    for partition in 0..PARTITIONS {
        let text = std::fs::read_to_string(folder.join(format!("p{partition}")))?;
        let (mut gaps, mut disorder, mut before) = (0_u64, 0_u64, None);
        let mut epochs = BTreeSet::new();
        for line in text.lines() {
            let record: Vec<&str> = line.split(' ').collect();
            missing.retain(|name| {
                let odd = oddities.iter().find(|(other, _)| other == name);
                !odd.is_some_and(|(_, is_odd)| is_odd(&record))
            });
            let here: (i64, i64) = (record[0].parse()?, record[1].parse()?);
            if let Some((offset, timestamp)) = before.replace(here) {
                gaps += u64::from(offset + 1 < here.0);
                disorder += u64::from(here.1 < timestamp);
            }
            epochs.insert(record[3].to_owned());
        }
        ensure!(
            gaps > 20 && disorder > 100 && epochs.len() > 1,
            "partition {partition} has {gaps} gaps, {disorder} steps back in time and the epochs {epochs:?}"
        );
    }
    ensure!(missing.is_empty(), "nothing was sent with {missing:?}");
    Ok(())
}

/// franz-go gives header keys whole; librdkafka ends them at the first NUL, and so did the archive where the value is null.
fn has_every_key_with_a_nul(folder: &Path) -> Result<()> {
    for partition in 0..PARTITIONS {
        let text = std::fs::read_to_string(folder.join(format!("p{partition}")))?;
        for key in ["x610062", "x656e6400", "x00"] {
            for value in ["-", "x", "x7600"] {
                let header = format!("{key}={value}");
                let is_there = |line: &str| {
                    let headers = line.rsplit(' ').next().unwrap_or_default();
                    headers.split(',').any(|found| found == header)
                };
                ensure!(
                    text.lines().any(is_there),
                    "no header {header} in partition {partition} of {}",
                    folder.display()
                );
            }
        }
    }
    Ok(())
}

/// Reads it with a program that knows nothing but the specification of the format.
fn read_by_format(archive: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut reader = Cache::find()?.python();
    reader.arg("format_reader.py").arg(archive).arg(folder);
    let output = reader.output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "format_reader.py: {told}");
    Ok(())
}

/// What the broker had: times beyond the year 2262 are too late for franz-go, and header keys with a NUL too long for librdkafka.
fn whole_truth(case: &Case, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let read = |client: Client, name: &str| {
        std::fs::read_to_string(case.path(&format!("before-{}", client.name())).join(name))
    };
    for partition in 0..PARTITIONS {
        let name = format!("p{partition}");
        let (records, headers) = (read(Client::Rdkafka, &name)?, read(Client::FranzGo, &name)?);
        let mut lines = String::with_capacity(headers.len());
        for (record, headers) in records.lines().zip(headers.lines()) {
            let record = record.rsplit_once(' ').context("a record")?.0;
            let headers = headers.rsplit_once(' ').context("headers")?.1;
            lines.extend([record, " ", headers, "\n"]);
        }
        std::fs::write(folder.join(name), lines)?;
    }
    Ok(())
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
        // librdkafka gives header keys as they are; Java makes text of them.
        has_every_oddity(&case.path(&format!("before-{}", Client::Rdkafka.name())))?;
        has_every_key_with_a_nul(&case.path(&format!("before-{}", Client::FranzGo.name())))?;
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
        has_every_key_with_a_nul(&case.path(&format!("through-{}", Client::FranzGo.name())))?;
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
        everlog.stop()?;

        read_by_format(&s3.archive_folder("fidelity"), &case.path("by-format"))?;
        whole_truth(case, &case.path("truth"))?;
        assert_same(&case.path("truth"), &case.path("by-format"), records)
    });
}
