//! Line 5: two archivers on one partition, one that sleeps in the middle of an upload, a topic that is created again: one chain,
//! nothing twice, nothing of one life in another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use everlog_tests::{
    Admin, Archive, Case, Client, Everlog, EverlogOptions, FaultProxy, Faults, Held, Kafka, S3,
    assert_same, produce_orders, read, soak, wait_until,
};

const PARTITIONS: i32 = 2;

fn small_segments() -> EverlogOptions {
    EverlogOptions {
        command: "archive",
        topics: vec!["orders".to_owned()],
        segment_max_bytes: "256KiB".to_owned(),
        segment_max_age: "1s".to_owned(),
        ..EverlogOptions::default()
    }
}

/// The archive holds exactly `total` records, and through a proxy they are what the broker had.
fn holds_each_once(case: &Case, kafka: &Kafka, archive: &Archive, total: u64) -> Result<()> {
    let admin = kafka.admin()?;
    let ends = admin.ends("orders", PARTITIONS)?;
    archive.verify()?;
    let held = archive.held_of("orders")?;
    let records: u64 = held.values().map(|held| held.records).sum();
    ensure!(
        records == total,
        "{records} records in the archive, {total} were produced: {held:?}"
    );
    read(
        Client::Rdkafka,
        &kafka.bootstrap(),
        "orders",
        &case.path("before"),
    )?;
    admin.delete_records("orders", &ends)?;
    let options = EverlogOptions {
        command: "proxy",
        ..EverlogOptions::default()
    };
    let proxy = Everlog::start(case, &kafka.bootstrap(), archive, &options)?;
    read(
        Client::Rdkafka,
        &proxy.bootstrap(),
        "orders",
        &case.path("through"),
    )?;
    assert_same(&case.path("before"), &case.path("through"), total)?;
    proxy.stop()
}

#[test]
fn two_archivers_forced_onto_the_same_partitions_make_one_chain() {
    Case::run("rivals", |case| {
        let kafka = Kafka::start(case)?;
        let s3 = S3::start(case)?;
        let archive = Archive::on(&s3, "rivals");
        let admin = kafka.admin()?;
        admin.create_topic("orders", PARTITIONS, &[])?;
        // Kafka would give each partition to one of them only: two groups, as a wrong set-up would have it.
        let mut rivals = Vec::new();
        for group in ["one", "two"] {
            let environment = vec![("EVERLOG_GROUP_ID".to_owned(), group.to_owned())];
            let options = EverlogOptions {
                environment,
                ..small_segments()
            };
            rivals.push(Everlog::launch(
                case,
                &kafka.bootstrap(),
                &archive,
                &options,
            )?);
        }
        let rounds = if soak() { 200 } else { 30 };
        for round in 0..rounds {
            produce_orders(
                &kafka.bootstrap(),
                "orders",
                PARTITIONS,
                round * 500..(round + 1) * 500,
                "zstd",
            )?;
            std::thread::sleep(Duration::from_millis(200));
        }
        archive.wait_archived(
            "orders",
            &admin.ends("orders", PARTITIONS)?,
            Duration::from_secs(120),
        )?;
        let mut lost = Vec::new();
        for rival in &mut rivals {
            rival.process.check_alive()?;
            lost.push(rival.metric("everlog_archiver_commit_lost_total")?);
        }
        case.note(&format!("commits that the rivals lost: {lost:?}"));
        // Or they were no rivals, and this has shown nothing.
        ensure!(lost.iter().sum::<f64>() > 0.0, "nobody lost a commit");
        drop(rivals);
        holds_each_once(case, &kafka, &archive, rounds * 500)
    });
}

/// Each took the other's place, again and again; both were ready, and no metric moved.
#[test]
fn two_archivers_with_one_instance_id_say_so_and_lose_nothing() {
    Case::run("namesakes", |case| {
        let kafka = Kafka::start(case)?;
        let archive = Archive::folder(&case.path("archive"));
        let admin = kafka.admin()?;
        admin.create_topic("orders", PARTITIONS, &[])?;
        let options = EverlogOptions {
            instance_id: Some("the-same".to_owned()),
            ..small_segments()
        };
        let namesakes = [
            Everlog::start(case, &kafka.bootstrap(), &archive, &options)?,
            Everlog::start(case, &kafka.bootstrap(), &archive, &options)?,
        ];
        let mut produced = 0;
        wait_until("both to be fenced", Duration::from_secs(120), || {
            produce_orders(
                &kafka.bootstrap(),
                "orders",
                PARTITIONS,
                produced..produced + 100,
                "zstd",
            )?;
            produced += 100;
            let mut fenced = 0.0;
            for namesake in &namesakes {
                fenced += namesake.metric("everlog_archiver_fenced")?;
            }
            Ok(fenced == 2.0)
        })?;
        for namesake in &namesakes {
            let (status, body) = namesake.health()?;
            ensure!(
                status == 200 && body.contains("trouble:") && body.contains("--instance-id"),
                "{status} {body}"
            );
            let log = namesake.process.log_text();
            let told = |word: &str| log.lines().any(|line| line.contains(word));
            ensure!(
                told("the-same") && told("--instance-id") && !told("librdkafka retries"),
                "{log}"
            );
        }
        archive.wait_archived(
            "orders",
            &admin.ends("orders", PARTITIONS)?,
            Duration::from_secs(240),
        )?;
        drop(namesakes);
        holds_each_once(case, &kafka, &archive, produced)
    });
}

#[test]
fn an_archiver_that_sleeps_in_the_middle_of_an_upload_wakes_into_anothers_chain() {
    Case::run("sleeper", |case| {
        let kafka = Kafka::start(case)?;
        let s3 = S3::start(case)?;
        let relay = FaultProxy::start(s3.port())?;
        let archive = Archive::on(&s3, "sleeper");
        let slow = Archive::through(&s3, relay.port(), "sleeper");
        let admin = kafka.admin()?;
        admin.create_topic("orders", PARTITIONS, &[])?;
        produce_orders(&kafka.bootstrap(), "orders", PARTITIONS, 0..2000, "zstd")?;
        let mut sleeper = Everlog::start(case, &kafka.bootstrap(), &slow, &small_segments())?;
        archive.wait_archived(
            "orders",
            &admin.ends("orders", PARTITIONS)?,
            Duration::from_secs(60),
        )?;

        // Uploads are on their way, and do not arrive.
        relay.set(Faults::Hold);
        produce_orders(&kafka.bootstrap(), "orders", PARTITIONS, 2000..6000, "zstd")?;
        wait_until("an upload to be under way", Duration::from_secs(30), || {
            Ok(relay.counts().1 > 0)
        })?;
        sleeper.process.signal("STOP")?;
        case.note("one archiver sleeps in the middle of an upload");
        let other = Everlog::start(case, &kafka.bootstrap(), &archive, &small_segments())?;
        archive.wait_archived(
            "orders",
            &admin.ends("orders", PARTITIONS)?,
            Duration::from_secs(120),
        )?;
        case.note("the other one has taken over");
        produce_orders(&kafka.bootstrap(), "orders", PARTITIONS, 6000..8000, "zstd")?;
        archive.wait_archived(
            "orders",
            &admin.ends("orders", PARTITIONS)?,
            Duration::from_secs(120),
        )?;
        if soak() {
            std::thread::sleep(Duration::from_secs(60));
        }
        // Now the old requests arrive, and then their sender wakes up.
        ensure!(relay.held() > 0, "nothing is on its way");
        relay.set(Faults::None);
        wait_until(
            "the old requests to arrive",
            Duration::from_secs(30),
            || Ok(relay.held() == 0),
        )?;
        sleeper.process.signal("CONT")?;
        produce_orders(
            &kafka.bootstrap(),
            "orders",
            PARTITIONS,
            8000..10_000,
            "zstd",
        )?;
        archive.wait_archived(
            "orders",
            &admin.ends("orders", PARTITIONS)?,
            Duration::from_secs(120),
        )?;
        let taken = "the group took the partition away";
        wait_until("the sleeper to notice", Duration::from_secs(60), || {
            Ok(sleeper.process.log_text().matches(taken).count() >= 2)
        })?;
        sleeper.process.check_alive()?;
        drop(other);
        // The one that slept is of use again.
        produce_orders(
            &kafka.bootstrap(),
            "orders",
            PARTITIONS,
            10_000..11_000,
            "zstd",
        )?;
        archive.wait_archived(
            "orders",
            &admin.ends("orders", PARTITIONS)?,
            Duration::from_secs(120),
        )?;
        sleeper.stop()?;
        holds_each_once(case, &kafka, &archive, 11_000)
    });
}

/// The workers of the partitions that it no longer has used to make it known with as many as before.
fn comes_back_with_fewer_partitions(
    kafka: &Kafka,
    admin: &Admin,
    archive: &Archive,
    folder: &Path,
) -> Result<()> {
    let before: BTreeSet<String> = archive.held()?.into_iter().map(|it| it.topic_id).collect();
    admin.delete_topic("orders")?;
    admin.create_topic("orders", 1, &[])?;
    produce_orders(&kafka.bootstrap(), "orders", 1, 0..1000, "zstd")?;
    let mut newest = Vec::new();
    wait_until("the last life", Duration::from_secs(120), || {
        std::thread::sleep(Duration::from_millis(500));
        newest = archive.held()?;
        newest.retain(|held| !before.contains(&held.topic_id));
        Ok(newest.iter().map(|held| held.records).sum::<u64>() == 1000)
    })?;
    let id = &newest[0].topic_id;
    for cluster in std::fs::read_dir(folder.join("meta"))? {
        let topic = std::fs::read(cluster?.path().join(id).join("topic.json"))?;
        let topic: serde_json::Value = serde_json::from_slice(&topic)?;
        ensure!(topic["partition_count"] == 1, "{topic}");
    }
    Ok(())
}

#[test]
fn a_topic_that_is_created_again_is_another_archive() {
    Case::run("lives", |case| {
        let kafka = Kafka::start(case)?;
        let s3 = S3::start(case)?;
        let archive = Archive::on(&s3, "lives");
        let admin = kafka.admin()?;
        let options = EverlogOptions {
            command: "run",
            ..small_segments()
        };
        let everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
        let mut lives: Vec<(String, u64)> = Vec::new();
        // Each life has more records than the one before; the archiver sleeps through the last change.
        for (life, count) in [2000_u64, 5000, 9000].into_iter().enumerate() {
            let asleep = life == 2;
            if asleep {
                everlog.process.signal("STOP")?;
            }
            if life > 0 {
                admin.delete_topic("orders")?;
            }
            admin.create_topic("orders", PARTITIONS, &[])?;
            let first = u64::try_from(life)? * 1_000_000;
            produce_orders(
                &kafka.bootstrap(),
                "orders",
                PARTITIONS,
                first..first + count,
                "zstd",
            )?;
            if asleep {
                everlog.process.signal("CONT")?;
            }
            let half = i64::try_from(count / 2)?;
            let mut newest = BTreeMap::<i32, Held>::new();
            wait_until(
                &format!("life {life} to be archived"),
                Duration::from_secs(120),
                || {
                    std::thread::sleep(Duration::from_millis(500));
                    let known: Vec<&String> = lives.iter().map(|(id, _)| id).collect();
                    newest = archive
                        .held()?
                        .into_iter()
                        .filter(|held| !known.contains(&&held.topic_id))
                        .map(|held| (held.partition, held))
                        .collect();
                    Ok(newest.len() == 2 && newest.values().all(|held| held.end >= half))
                },
            )?;
            let records: u64 = newest.values().map(|held| held.records).sum();
            ensure!(
                records == count,
                "life {life} holds {records} records and had {count}: {newest:?}"
            );
            let id = newest[&0].topic_id.clone();
            lives.push((id, count));
            case.note(&format!("life {life} is archived with {count} records"));

            let (before, through) = (format!("before-{life}"), format!("through-{life}"));
            read(
                Client::Java,
                &kafka.bootstrap(),
                "orders",
                &case.path(&before),
            )?;
            admin.delete_records("orders", &admin.ends("orders", PARTITIONS)?)?;
            read(
                Client::Java,
                &everlog.bootstrap(),
                "orders",
                &case.path(&through),
            )?;
            assert_same(&case.path(&before), &case.path(&through), count)?;
        }
        comes_back_with_fewer_partitions(&kafka, &admin, &archive, &s3.archive_folder("lives"))?;
        // The earlier lives are as they were.
        for (id, count) in &lives {
            let records: u64 = archive
                .held()?
                .iter()
                .filter(|held| held.topic_id == *id)
                .map(|held| held.records)
                .sum();
            ensure!(
                records == *count,
                "life {id} holds {records} records and had {count}"
            );
        }
        archive.verify()?;
        everlog.stop()
    });
}
