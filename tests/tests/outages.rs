//! Line 6: Kafka gone, S3 gone, answers of S3 lost, S3 full of 503, S3 silent: no crash, no loss, and work goes on by itself; clients
//! see retriable errors only and never skip history.

use std::time::Duration;

use anyhow::{Result, ensure};
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, FaultProxy, Faults, Follower, Kafka, S3,
    assert_same, count_lines, produce_orders, read, soak, wait_until,
};

const PARTITIONS: i32 = 2;

struct Scene<'a> {
    case: &'a Case,
    kafka: Kafka,
    s3: S3,
    relay: FaultProxy,
    archive: Archive,
    everlog: Everlog,
    followers: Vec<(Client, Follower)>,
    sent: u64,
    trouble: Duration,
}

impl Scene<'_> {
    fn produce(&mut self, count: u64) -> Result<()> {
        produce_orders(
            &self.kafka.bootstrap(),
            "orders",
            PARTITIONS,
            self.sent..self.sent + count,
            "lz4",
        )?;
        self.sent += count;
        Ok(())
    }

    /// Everything works: the followers reach the tail, the archive reaches it too, and the cluster forgets.
    fn is_well(&mut self, after: &str) -> Result<()> {
        self.produce(500)?;
        let admin = self.kafka.admin()?;
        let ends = admin.ends("orders", PARTITIONS)?;
        self.everlog.process.check_alive()?;
        self.archive
            .wait_archived("orders", &ends, Duration::from_secs(120))?;
        for (client, follower) in &mut self.followers {
            let sent = self.sent;
            wait_until(
                &format!("{client:?} at the tail after {after}"),
                Duration::from_secs(90),
                || {
                    follower.check_alive()?;
                    Ok(count_lines(follower.folder())? >= sent)
                },
            )?;
        }
        admin.delete_records("orders", &ends)?;
        self.case.note(&format!("well again after: {after}"));
        Ok(())
    }

    /// Since `before` bytes of log, it has said what is wrong and that it goes on trying.
    fn has_told(&self, name: &str, before: usize, wrong: &str) -> Result<()> {
        let log = self.everlog.process.log_text();
        let lines = log.get(before..).unwrap_or_default();
        let tells = |line: &&str| line.contains(wrong) && line.contains("retr");
        ensure!(
            lines.lines().any(|line| tells(&line)),
            "no line of the log tells of {name} by {wrong:?} and a retry:\n{lines}"
        );
        Ok(())
    }

    /// The archiver used to repeat librdkafka's complaints several times a second, never as a warning, and to say nothing
    /// at the end of them.
    fn has_told_the_outage_in_few_words(&self, before: usize) -> Result<()> {
        let lines = |what: &str| -> Vec<String> {
            let log = self.everlog.process.log_text();
            let log = log.get(before..).unwrap_or_default();
            let found = log.lines().filter(|line| line.contains(what));
            found.map(str::to_owned).collect()
        };
        wait_until(
            "the end of the outage to be told",
            Duration::from_secs(60),
            || Ok(!lines("the cluster is back").is_empty()),
        )?;
        let told = lines("the connection to the cluster is in trouble, librdkafka retries");
        let warns = told.first().is_some_and(|line| line.contains("WARN"));
        ensure!(warns && told.len() <= 8, "{told:#?}");
        Ok(())
    }

    /// A client that reads from the beginning while there is trouble may get nothing, but nothing wrong either.
    fn reads_nothing_wrong(&self, name: &str) -> Result<()> {
        let folder = self.case.path(&format!("during-{name}"));
        let reader = Follower::start(
            Client::Rdkafka,
            &self.everlog.bootstrap(),
            "orders",
            name,
            &folder,
            Follower::ENDLESS,
        )?;
        std::thread::sleep(self.trouble);
        reader.stop()?;
        for partition in 0..PARTITIONS {
            if folder.join(format!("p{partition}")).exists() {
                let offsets = everlog_tests::offsets(&folder, partition)?;
                let skipped = offsets
                    .iter()
                    .enumerate()
                    .find(|(index, offset)| i64::try_from(*index).ok() != Some(**offset));
                ensure!(
                    skipped.is_none(),
                    "during {name}, partition {partition} skipped to {skipped:?}"
                );
            }
        }
        Ok(())
    }
}

#[test]
fn trouble_around_everlog_passes_without_loss() {
    Case::run("outages", |case| {
        let kafka = Kafka::start(case)?;
        let s3 = S3::start(case)?;
        let relay = FaultProxy::start(s3.port())?;
        let archive = Archive::on(&s3, "outages");
        let admin = kafka.admin()?;
        admin.create_topic("orders", PARTITIONS, &[])?;
        produce_orders(&kafka.bootstrap(), "orders", PARTITIONS, 0..4000, "zstd")?;
        let options = EverlogOptions {
            topics: vec!["orders".to_owned()],
            segment_max_bytes: "256KiB".to_owned(),
            segment_max_age: "1s".to_owned(),
            ..EverlogOptions::default()
        };
        let through = Archive::through(&s3, relay.port(), "outages");
        let everlog = Everlog::start(case, &kafka.bootstrap(), &through, &options)?;
        let mut followers = Vec::new();
        for client in Client::ALL {
            let follower = Follower::start(
                client,
                &everlog.bootstrap(),
                "orders",
                client.name(),
                &case.path(client.name()),
                Follower::ENDLESS,
            )?;
            followers.push((client, follower));
        }
        let trouble = Duration::from_secs(if soak() { 60 } else { 8 });
        let mut scene = Scene {
            case,
            kafka,
            s3,
            relay,
            archive,
            everlog,
            followers,
            sent: 4000,
            trouble,
        };
        scene.is_well("the start")?;

        for (name, faults) in [
            ("answers-lost", Faults::LoseAnswers(0.4)),
            ("some-503", Faults::Unavailable(0.5)),
            ("full-of-503", Faults::Unavailable(1.0)),
            ("silence", Faults::Hang),
        ] {
            let before = scene.everlog.process.log_text().len();
            let hit_before = scene.relay.counts().1;
            scene.relay.set(faults);
            scene.produce(1500)?;
            scene.reads_nothing_wrong(name)?;
            ensure!(scene.relay.counts().1 > hit_before, "{name} hit nothing");
            scene.relay.set(Faults::None);
            scene.is_well(name)?;
            // Single faults are repeated without a word, and metrics count them. Silence shows by a deadline only.
            if faults == Faults::Unavailable(1.0) || faults == Faults::Hang && soak() {
                scene.has_told(name, before, "object store")?;
            }
        }

        let before = scene.everlog.process.log_text().len();
        scene.s3.kill()?;
        scene.produce(1500)?;
        scene.reads_nothing_wrong("s3-gone")?;
        scene.s3.restart()?;
        scene.is_well("S3 was gone")?;
        scene.has_told("S3 gone", before, "object store")?;

        let before = scene.everlog.process.log_text().len();
        scene.kafka.kill(1)?;
        scene.reads_nothing_wrong("kafka-gone")?;
        scene.kafka.restart(1)?;
        scene.kafka.admin()?.wait_leaders("orders", PARTITIONS)?;
        scene.is_well("Kafka was gone")?;
        scene.has_told("Kafka gone", before, "cluster")?;
        scene.has_told_the_outage_in_few_words(before)?;

        for (_, follower) in scene.followers.drain(..) {
            follower.stop()?;
        }
        scene.archive.verify()?;
        let total = scene.sent;
        // All followers saw the same; and one read from the beginning now is equal to what they saw through all of it.
        read(
            Client::Rdkafka,
            &scene.everlog.bootstrap(),
            "orders",
            &case.path("after"),
        )?;
        for client in Client::ALL {
            assert_same(&case.path(client.name()), &case.path("after"), total)?;
        }
        let log = scene.everlog.process.log_text();
        ensure!(!log.contains("panicked"), "something panicked");
        scene.everlog.stop()
    });
}
