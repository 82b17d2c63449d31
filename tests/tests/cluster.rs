//! Three nodes: every node is reached at its own port, and a dead leader changes nothing but the epoch.

use std::time::Duration;

use anyhow::ensure;
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, Kafka, KafkaOptions, S3, assert_same,
    count_lines, produce_orders, read, wait_until,
};

const PARTITIONS: i32 = 6;

#[test]
fn a_dead_node_changes_nothing_for_readers_of_history() {
    Case::run("cluster", |case| {
        let options = KafkaOptions {
            nodes: 3,
            heap: "-Xmx320m",
            ..KafkaOptions::default()
        };
        let mut kafka = Kafka::start_with(case, options)?;
        let s3 = S3::start(case)?;
        let archive = Archive::on(&s3, "cluster");
        let admin = kafka.admin()?;
        admin.create_topic("orders", PARTITIONS, &[])?;
        let everlog = Everlog::start(
            case,
            &kafka.bootstrap(),
            &archive,
            &EverlogOptions::default(),
        )?;
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
