//! The harness judged by itself: two reads of the same broker are equal, all three clients agree on plain records, and a
//! difference is found.

use anyhow::{Result, bail, ensure};
use everlog_tests::{
    Case, Client, Fidelity, Kafka, assert_same, count_lines, produce_orders, read, same, wait_until,
};
use std::time::Duration;

#[test]
fn two_reads_of_one_broker_are_equal_and_a_changed_record_is_found() {
    Case::run("harness", |case| {
        let kafka = Kafka::start(case)?;
        let bootstrap = kafka.bootstrap();
        let admin = kafka.admin()?;
        admin.create_topic("plain", 3, &[])?;
        produce_orders(&bootstrap, "plain", 3, 0..1000, "zstd")?;
        for client in Client::ALL {
            let report = read(
                client,
                &bootstrap,
                "plain",
                &case.path(&format!("plain-{}", client.name())),
            )?;
            ensure!(report.records == 1000, "{client:?} read {report:?}");
        }
        assert_same(&case.path("plain-java"), &case.path("plain-rdkafka"), 1000)?;
        assert_same(&case.path("plain-java"), &case.path("plain-franz-go"), 1000)?;
        case.note("plain records are equal in all clients");

        let fidelity = Fidelity {
            topic: "odd".to_owned(),
            partitions: 4,
            seed: 7,
            day: 0,
        };
        admin.create_topic("odd", 4, &[])?;
        fidelity.transactions(&bootstrap, &case.path("transactions"), 300, 0)?;
        fidelity.mixed(&bootstrap, 2000, 1)?;
        fidelity.hand_made(&bootstrap)?;
        fidelity.log_append_time(&bootstrap, &admin, 200, 2)?;
        fidelity.transactions(&bootstrap, &case.path("transactions"), 300, 1)?;
        fidelity.leave_open(&bootstrap, &case.path("transactions"))?;
        fidelity.mixed(&bootstrap, 100, 9)?;
        for client in Client::ALL {
            let (one, two) = (
                format!("odd-{}-1", client.name()),
                format!("odd-{}-2", client.name()),
            );
            let report = read(client, &bootstrap, "odd", &case.path(&one))?;
            read(client, &bootstrap, "odd", &case.path(&two))?;
            assert_same(&case.path(&one), &case.path(&two), report.records)?;
            ensure!(report.records > 2500, "{client:?} read {report:?}");
            case.note(&format!("{client:?} {report:?}"));
        }
        let changed = case.path("odd-java-2/p0");
        let text = std::fs::read_to_string(&changed)?;
        std::fs::write(
            &changed,
            text.replacen("= ", "=x00 ", 1).replacen(" x", " x00", 1),
        )?;
        if same(&case.path("odd-java-1"), &case.path("odd-java-2")).is_ok() {
            bail!("a changed record was not found");
        }
        ensure!(count_lines(&case.path("odd-java-1"))? > 2500);
        Ok(())
    });
}

#[test]
fn three_nodes_outlive_one_and_a_wait_ends() {
    Case::run("three-nodes", |case| -> Result<()> {
        let options = everlog_tests::KafkaOptions {
            nodes: 3,
            heap: "-Xmx320m",
            ..Default::default()
        };
        let mut kafka = Kafka::start_with(case, options)?;
        let admin = kafka.admin()?;
        admin.create_topic("t", 2, &[])?;
        produce_orders(&kafka.bootstrap(), "t", 2, 0..100, "none")?;
        kafka.kill(2)?;
        produce_orders(&kafka.bootstrap(), "t", 2, 100..200, "lz4")?;
        kafka.restart(2)?;
        let report = read(Client::Rdkafka, &kafka.bootstrap(), "t", &case.path("t"))?;
        ensure!(report.records == 200, "{report:?}");
        ensure!(wait_until("nothing", Duration::ZERO, || Ok(false)).is_err());
        Ok(())
    });
}
