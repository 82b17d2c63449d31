//! Who may read what. SASL frames pass, each client is to the brokers who it is, and their ACLs hold for archived records as
//! for live ones: what a user gets through the proxy is what the cluster gave him while it still had everything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use everlog_tests::{
    Archive, Cache, Case, Everlog, EverlogOptions, Kafka, KafkaOptions, Process, produce_orders,
    wait_until,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const RECORDS: u64 = 20_000;

const PATIENCE: Duration = Duration::from_secs(30);

/// Sessions end after this long unless the client signs in again on the same connection (KIP-368).
const SESSION: Duration = Duration::from_secs(4);

fn cluster() -> KafkaOptions {
    let users = "org.apache.kafka.common.security.plain.PlainLoginModule required \
                 user_alice=\"a-secret\" user_eve=\"e-secret\" user_bob=\"b-secret\";";
    let properties = [
        ("sasl.enabled.mechanisms", "PLAIN"),
        ("listener.name.sasl.plain.sasl.jaas.config", users),
        (
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        ),
        // Whoever comes by the listener without SASL: the brokers themselves, and the archiver.
        ("super.users", "User:ANONYMOUS"),
        (
            "connections.max.reauth.ms",
            &SESSION.as_millis().to_string(),
        ),
    ];
    KafkaOptions {
        sasl: true,
        properties: properties
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .to_vec(),
        ..KafkaOptions::default()
    }
}

/// Kafka's own tool for ACLs.
fn acls(case: &Case, kafka: &Kafka, words: &[&str]) -> Result<()> {
    let options = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
    let mut command = Cache::find()?.java(&options, "org.apache.kafka.tools.AclCommand");
    command.args(["--bootstrap-server", &kafka.bootstrap()]);
    command.args(words).arg("--force");
    let name = format!("acls-{}.log", words.join("-").replace([':', '/', '*'], "-"));
    Process::start("acls", &command, &case.path(&name))?.wait_success(Duration::from_secs(60))
}

fn consumer(bootstrap: &str, user: &str, password: &str) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("security.protocol", "sasl_plaintext")
        .set("sasl.mechanisms", "PLAIN")
        .set("sasl.username", user)
        .set("sasl.password", password)
        .set("group.id", user)
        .set("enable.auto.commit", "false")
        // Little is fetched ahead, so that what is refused later was not here before.
        .set("max.partition.fetch.bytes", "65536")
        .set("queued.max.messages.kbytes", "256")
        .create()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("orders", 0, Offset::Beginning)?;
    consumer.assign(&list)?;
    Ok(consumer)
}

/// A record, as far as it is compared.
type Read = (i64, Option<Vec<u8>>, Option<Vec<u8>>);

/// How a reader ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It has read so many.
    Enough,
    Refused(RDKafkaErrorCode),
    /// Nothing more came in time.
    Silence,
}

/// Reads until there are `count` records in `read`, or until something else ends it.
fn read_on(
    consumer: &BaseConsumer,
    count: u64,
    patience: Duration,
    read: &mut Vec<Read>,
) -> Outcome {
    let mut until = Instant::now() + patience;
    while (read.len() as u64) < count {
        if until < Instant::now() {
            return Outcome::Silence;
        }
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => {
                let own = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
                read.push((message.offset(), own(message.key()), own(message.payload())));
                until = Instant::now() + patience;
            }
            Some(Err(KafkaError::MessageConsumption(code))) => match code {
                // Connections end and are made again: librdkafka goes on by itself.
                RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown => {}
                code => return Outcome::Refused(code),
            },
            Some(Err(_)) => {}
        }
    }
    Outcome::Enough
}

/// A regex picks no topic of which it is not known that it is no compacted one: neither such a topic, nor one whose
/// configuration the archiver's user may not see.
fn a_regex_leaves_out_what_may_be_compacted(
    case: &Case,
    kafka: &Kafka,
    ends: &BTreeMap<i32, i64>,
) -> Result<()> {
    let config = case.path("alice.toml");
    let properties = "[kafka.properties]\n\"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\"\n\
                      \"sasl.username\" = \"alice\"\n\"sasl.password\" = \"a-secret\"\n";
    std::fs::write(&config, properties)?;
    let archive = Archive::folder(&case.path("alice"));
    let options = EverlogOptions {
        command: "archive",
        extra: vec!["--config".to_owned(), config.display().to_string()],
        ..EverlogOptions::default()
    };
    let archiver = Everlog::start(case, &kafka.sasl_bootstrap(), &archive, &options)?;
    wait_until("a word of what is held back", PATIENCE, || {
        let log = archiver.process.log_text();
        Ok(log.contains("not archived yet") && log.contains("DescribeConfigs"))
    })?;
    let partitions = archiver.metric("everlog_archiver_partitions")?;
    ensure!(partitions == 0.0, "archived all the same");
    for (operation, topic) in [("Read", "table"), ("DescribeConfigs", "*")] {
        let what = ["--add", "--operation", operation, "--topic", topic];
        let whom = ["--allow-principal", "User:alice"];
        acls(case, kafka, &[&what[..], &whom].concat())?;
    }
    archive.wait_archived("orders", ends, Duration::from_secs(60))?;
    wait_until("a word of the compacted topic", PATIENCE, || {
        let log = archiver.process.log_text();
        Ok(log.contains("\"table\"") && log.contains("\"compacted\""))
    })?;
    archiver.stop()?;
    let held = archive.held()?;
    ensure!(held.iter().all(|held| held.topic == "orders"), "{held:?}");
    Ok(())
}

/// What each user gets, and what he reads.
fn all_users(bootstrap: &str) -> Result<Vec<(Outcome, Vec<Read>)>> {
    // librdkafka goes on trying where a topic is hidden.
    let users = [
        ("alice", "a-secret", PATIENCE),
        ("eve", "e-secret", PATIENCE),
        ("bob", "b-secret", Duration::from_secs(8)),
        ("alice", "wrong", Duration::from_secs(8)),
    ];
    users
        .iter()
        .map(|(user, password, patience)| {
            let mut read = Vec::new();
            let consumer = consumer(bootstrap, user, password)?;
            let outcome = read_on(&consumer, RECORDS, *patience, &mut read);
            Ok((outcome, read))
        })
        .collect()
}

#[test]
fn users_read_from_the_archive_what_the_cluster_lets_them_read() {
    Case::run("access", |case| {
        let kafka = Kafka::start_with(case, cluster())?;
        let admin = kafka.admin()?;
        admin.create_topic("orders", 1, &[("segment.bytes", "1048576")])?;
        admin.create_topic("table", 1, &[("cleanup.policy", "compact")])?;
        produce_orders(&kafka.bootstrap(), "table", 1, 0..100, "none")?;
        produce_orders(&kafka.bootstrap(), "orders", 1, 0..RECORDS, "none")?;
        let right = |verb, who, operation, [kind, name]: [&str; 2]| {
            let words = [
                verb,
                "--allow-principal",
                who,
                "--operation",
                operation,
                kind,
                name,
            ];
            acls(case, &kafka, &words)
        };
        // Eve may know of the topic and ask where it begins, but not read it. Bob may nothing.
        right("--add", "User:alice", "Read", ["--topic", "orders"])?;
        right("--add", "User:eve", "Describe", ["--topic", "orders"])?;
        // All may be in groups, so that no other right is missing.
        right("--add", "User:*", "Read", ["--group", "*"])?;
        let direct = all_users(&kafka.sasl_bootstrap())?;
        case.note(&format!("the cluster: {:?}", outcomes(&direct)));
        ensure!(direct[0].0 == Outcome::Enough, "alice: {:?}", direct[0].0);
        let refused = Outcome::Refused(RDKafkaErrorCode::TopicAuthorizationFailed);
        ensure!(direct[1].0 == refused, "eve: {:?}", direct[1].0);
        ensure!(direct[3].0 != Outcome::Enough, "a wrong password");

        let archive = Archive::folder(&case.path("archive"));
        let options = |command| EverlogOptions {
            command,
            ..EverlogOptions::default()
        };
        let archiver = Everlog::start(case, &kafka.bootstrap(), &archive, &options("archive"))?;
        let ends = admin.ends("orders", 1)?;
        archive.wait_archived("orders", &ends, Duration::from_secs(120))?;
        archiver.stop()?;
        let held = archive.held()?;
        ensure!(held.iter().all(|held| held.topic == "orders"), "{held:?}");
        a_regex_leaves_out_what_may_be_compacted(case, &kafka, &ends)?;
        admin.delete_records("orders", &ends)?;

        let proxy = Everlog::start(case, &kafka.sasl_bootstrap(), &archive, &options("proxy"))?;
        let proxied = all_users(&proxy.bootstrap())?;
        case.note(&format!("the proxy: {:?}", outcomes(&proxied)));
        ensure!(
            outcomes(&proxied) == outcomes(&direct),
            "the cluster: {:?}, the proxy: {:?}",
            outcomes(&direct),
            outcomes(&proxied)
        );
        ensure!(proxied == direct, "other records");

        // A session that has to be renewed on the connection, more than once, while only the archive has records.
        let consumer = consumer(&proxy.bootstrap(), "alice", "a-secret")?;
        let mut read = Vec::new();
        for count in [1_000, 2_000, 3_000] {
            let outcome = read_on(&consumer, count, PATIENCE, &mut read);
            ensure!(
                outcome == Outcome::Enough,
                "{outcome:?} after {}",
                read.len()
            );
            std::thread::sleep(SESSION + Duration::from_secs(1));
        }
        // What was allowed is allowed no longer: not one record more than was fetched already.
        right("--remove", "User:alice", "Read", ["--topic", "orders"])?;
        right("--add", "User:alice", "Describe", ["--topic", "orders"])?;
        let outcome = read_on(&consumer, RECORDS, PATIENCE, &mut read);
        case.note(&format!("after {} records: {outcome:?}", read.len()));
        if outcome != refused {
            bail!(
                "alice is read on to: {outcome:?} after {} records",
                read.len()
            );
        }
        let last = read.last().context("some were read")?.0;
        ensure!(last < 5_000, "{last} came after the right to read was gone");
        Ok(())
    });
}

fn outcomes(all: &[(Outcome, Vec<Read>)]) -> Vec<(&Outcome, usize)> {
    all.iter()
        .map(|(outcome, read)| (outcome, read.len()))
        .collect()
}
