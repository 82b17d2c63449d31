//! Line 4: SIGKILL at random moments while archiving. The archive verifies and holds each record once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, Kafka, S3, assert_same, produce_orders, read,
    soak,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const PARTITIONS: i32 = 4;

#[test]
fn an_archiver_that_is_killed_again_and_again_keeps_each_record_once() {
    Case::run("kill", |case| {
        let kills = if soak() { 50 } else { 5 };
        let seed = rand::random();
        case.note(&format!("seed {seed}"));
        let mut rng = StdRng::seed_from_u64(seed);
        let kafka = Kafka::start(case)?;
        let s3 = S3::start(case)?;
        let archive = Archive::on(&s3, "kill");
        let admin = kafka.admin()?;
        admin.create_topic("orders", PARTITIONS, &[])?;
        let options = EverlogOptions {
            command: "archive",
            segment_max_bytes: "512KiB".to_owned(),
            segment_max_age: "1s".to_owned(),
            // A restart of the same member, as a supervisor would do it.
            instance_id: Some("the-archiver".to_owned()),
            data_dir: Some(case.path("data")),
            ..EverlogOptions::default()
        };
        let stop = AtomicBool::new(false);
        let bootstrap = kafka.bootstrap();
        let total = std::thread::scope(|scope| -> Result<u64> {
            let producer = scope.spawn(|| -> Result<u64> {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    produce_orders(&bootstrap, "orders", PARTITIONS, sent..sent + 500, "lz4")?;
                    sent += 500;
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok(sent)
            });
            let outcome = (|| -> Result<()> {
                for number in 0..kills {
                    let mut everlog = Everlog::launch(case, &bootstrap, &archive, &options)?;
                    // From before it has joined its group to the middle of its uploads.
                    let pause = Duration::from_millis(rng.random_range(300..7_000));
                    std::thread::sleep(pause);
                    everlog.process.check_alive()?;
                    everlog.process.kill()?;
                    case.note(&format!(
                        "kill {} after {} ms",
                        number + 1,
                        pause.as_millis()
                    ));
                }
                Ok(())
            })();
            stop.store(true, Ordering::Relaxed);
            let total = producer
                .join()
                .map_err(|_| anyhow!("the producer panicked"))??;
            outcome?;
            Ok(total)
        })?;
        archive.verify()?;
        let before: u64 = archive
            .held_of("orders")?
            .values()
            .map(|held| held.segments)
            .sum();
        case.note(&format!(
            "{before} segments were archived between the kills"
        ));
        ensure!(
            before > 0,
            "no archiver lived long enough to be killed at work"
        );
        let run = Everlog::start(
            case,
            &bootstrap,
            &archive,
            &EverlogOptions {
                command: "run",
                ..options
            },
        )?;
        let ends = admin.ends("orders", PARTITIONS)?;
        archive.wait_archived("orders", &ends, Duration::from_secs(180))?;
        archive.verify()?;
        let held = archive.held_of("orders")?;
        let records: u64 = held.values().map(|held| held.records).sum();
        ensure!(
            records == total,
            "{records} records in the archive, {total} were produced: {held:?}"
        );
        read(Client::Rdkafka, &bootstrap, "orders", &case.path("before"))?;
        admin.delete_records("orders", &ends)?;
        read(
            Client::Rdkafka,
            &run.bootstrap(),
            "orders",
            &case.path("through"),
        )?;
        assert_same(&case.path("before"), &case.path("through"), total)?;
        run.stop()
    });
}
