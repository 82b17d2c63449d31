//! Three nodes: every node is reached at its own port, and a dead leader changes nothing but the epoch; not even for one
//! who was in the middle of the archive.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, Kafka, KafkaOptions, Reading, S3, assert_same,
    count_lines, produce_orders, read, wait_until,
};

const PARTITIONS: i32 = 6;

fn three_nodes() -> KafkaOptions {
    KafkaOptions {
        nodes: 3,
        heap: "-Xmx320m",
        ..KafkaOptions::default()
    }
}

/// Three nodes with the topic `orders`, an S3 server, and everlog between them.
fn start(case: &Case, archive: &str) -> anyhow::Result<(Kafka, S3, Archive, Everlog)> {
    let kafka = Kafka::start_with(case, three_nodes())?;
    let s3 = S3::start(case)?;
    let archive = Archive::on(&s3, archive);
    kafka.admin()?.create_topic("orders", PARTITIONS, &[])?;
    let options = EverlogOptions::default();
    let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
    Ok((kafka, s3, archive, everlog))
}

#[test]
fn a_dead_node_changes_nothing_for_readers_of_history() {
    Case::run("cluster", |case| {
        let (mut kafka, _s3, archive, everlog) = start(case, "cluster")?;
        let admin = kafka.admin()?;
        produce_orders(&kafka.bootstrap(), "orders", PARTITIONS, 0..6000, "zstd")?;
        kafka.kill(2)?;
        case.note("node 2 is dead");
        produce_orders(
            &kafka.bootstrap(),
            "orders",
            PARTITIONS,
            6000..12_000,
            "lz4",
        )?;
        let ends = admin.ends("orders", PARTITIONS)?;
        archive.wait_archived("orders", &ends, Duration::from_secs(120))?;
        for client in Client::ALL {
            let report = read(
                client,
                &kafka.bootstrap(),
                "orders",
                &case.path(&format!("before-{}", client.name())),
            )?;
            ensure!(report.records == 12_000, "{client:?} {report:?}");
        }
        // A request that meets the dead node, or waits for a replica there, times out: asked again, by a client that knows
        // the new leaders.
        wait_until("records to be deleted", Duration::from_secs(180), || {
            let deleted = kafka.admin()?.delete_records("orders", &ends);
            if let Err(error) = &deleted {
                case.note(&format!("not deleted yet: {error:#}"));
            }
            Ok(deleted.is_ok())
        })?;
        for client in Client::ALL {
            let name = format!("without-2-{}", client.name());
            read(client, &everlog.bootstrap(), "orders", &case.path(&name))?;
            assert_same(
                &case.path(&format!("before-{}", client.name())),
                &case.path(&name),
                12_000,
            )?;
        }
        kafka.restart(2)?;
        admin.wait_leaders("orders", PARTITIONS)?;
        produce_orders(
            &kafka.bootstrap(),
            "orders",
            PARTITIONS,
            12_000..12_600,
            "none",
        )?;
        let report = read(
            Client::Java,
            &everlog.bootstrap(),
            "orders",
            &case.path("after"),
        )?;
        ensure!(report.records == 12_600, "{report:?}");
        ensure!(count_lines(&case.path("after"))? == 12_600);
        everlog.stop()
    });
}

/// Whether a reader has written a line.
fn has_begun(folder: &Path) -> bool {
    let file = |partition| folder.join(format!("p{partition}"));
    (0..PARTITIONS).any(|partition| file(partition).metadata().is_ok_and(|file| file.len() > 0))
}

/// Readers that stop in the middle of the archive with an answer on its way to them, while the node that they read from
/// dies. They go on where they were, at other nodes, and once more when the dead one comes back.
#[test]
fn slow_readers_in_the_archive_outlive_their_nodes() {
    const RECORDS: u64 = 120_000;
    Case::run("slow-readers", |case| {
        let (mut kafka, _s3, archive, everlog) = start(case, "slow-readers")?;
        let admin = kafka.admin()?;
        produce_orders(&kafka.bootstrap(), "orders", PARTITIONS, 0..RECORDS, "zstd")?;
        let before = case.path("before");
        read(Client::Rdkafka, &kafka.bootstrap(), "orders", &before)?;
        let ends = admin.ends("orders", PARTITIONS)?;
        archive.wait_archived("orders", &ends, Duration::from_secs(120))?;
        admin.delete_records("orders", &ends)?;

        let folder = |client: Client| case.path(client.name());
        let mut readings = Vec::new();
        for client in Client::ALL {
            let reading = Reading::start(client, &everlog.bootstrap(), "orders", &folder(client))?;
            // At once: all of it takes a reader no more than a second.
            let begun = Instant::now();
            while !has_begun(&folder(client)) {
                ensure!(
                    begun.elapsed() < Duration::from_secs(60),
                    "{client:?} reads nothing"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
            reading.pause()?;
            let lines = count_lines(&folder(client))?;
            case.note(&format!("{client:?} stands after {lines} of {RECORDS}"));
            ensure!(
                lines < RECORDS,
                "{client:?} was too fast to be met in the archive"
            );
            readings.push(reading);
        }
        for node in [2, 3] {
            kafka.kill(node)?;
            case.note(&format!("node {node} is dead"));
            for reading in &readings {
                reading.resume()?;
            }
            std::thread::sleep(Duration::from_millis(300));
            for reading in &readings {
                reading.pause()?;
            }
            kafka.restart(node)?;
            admin.wait_leaders("orders", PARTITIONS)?;
        }
        for reading in &readings {
            reading.resume()?;
        }
        for (client, reading) in Client::ALL.into_iter().zip(readings) {
            let report = reading.finish()?;
            ensure!(report.records == RECORDS, "{client:?} {report:?}");
            assert_same(&before, &folder(client), RECORDS)?;
        }
        everlog.stop()
    });
}
