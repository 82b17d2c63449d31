//! The shortest way through the product: produce, archive, let the cluster forget, read it back with each client.

use std::time::Duration;

use anyhow::{Result, ensure};
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, Kafka, S3, assert_same, produce_orders, read,
};

fn spine(case: &Case, archive: &Archive) -> Result<()> {
    let kafka = Kafka::start(case)?;
    let admin = kafka.admin()?;
    admin.create_topic("orders", 2, &[])?;
    produce_orders(&kafka.bootstrap(), "orders", 2, 0..1000, "zstd")?;
    for client in Client::ALL {
        read(
            client,
            &kafka.bootstrap(),
            "orders",
            &case.path(&format!("before-{}", client.name())),
        )?;
    }
    let options = EverlogOptions {
        topics: vec!["orders".to_owned()],
        ..EverlogOptions::default()
    };
    let everlog = Everlog::start(case, &kafka.bootstrap(), archive, &options)?;
    let ends = admin.ends("orders", 2)?;
    archive.wait_archived("orders", &ends, Duration::from_secs(60))?;
    case.note("archived");
    admin.delete_records("orders", &ends)?;
    // A few live ones behind the seam.
    produce_orders(&kafka.bootstrap(), "orders", 2, 1000..1010, "none")?;
    for client in Client::ALL {
        let live = format!("live-{}", client.name());
        read(client, &kafka.bootstrap(), "orders", &case.path(&live))?;
        for partition in 0..2 {
            let name = format!("p{partition}");
            let mut wanted =
                std::fs::read(case.path(&format!("before-{}", client.name())).join(&name))?;
            wanted.extend(std::fs::read(case.path(&live).join(&name))?);
            std::fs::write(
                case.path(&format!("before-{}", client.name())).join(&name),
                wanted,
            )?;
        }
        let through = case.path(&format!("through-{}", client.name()));
        let report = read(client, &everlog.bootstrap(), "orders", &through)?;
        assert_same(
            &case.path(&format!("before-{}", client.name())),
            &through,
            1010,
        )?;
        ensure!(
            report.ranges.values().all(|range| range.0 == 0),
            "{report:?}"
        );
        case.note(&format!("{client:?} read {report:?}"));
    }
    archive.verify()?;
    everlog.stop()?;
    Ok(())
}

#[test]
fn each_client_reads_on_s3_what_the_broker_has_forgotten() {
    Case::run("spine-s3", |case| {
        let s3 = S3::start(case)?;
        let archive = Archive::on(&s3, "spine");
        spine(case, &archive)
    });
}

#[test]
fn each_client_reads_from_a_folder_what_the_broker_has_forgotten() {
    Case::run("spine-folder", |case| {
        spine(case, &Archive::folder(&case.path("archive")))
    });
}
