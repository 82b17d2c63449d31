//! The archiver against librdkafka's mock cluster, in one process and without Java. What the mock can't show
//! (transactions, DeleteRecords, topics created again, real retention) is tried on real brokers elsewhere.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should panic")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{
    archived_end, config, entries, incarnations, memory_archive, records, snapshot, start, until,
};
use everlog_format::{Header, Record, TimestampType};
use everlog_index::{Archive, EntryKind};
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header as SentHeader, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

type Mock = MockCluster<'static, DefaultProducerContext>;

fn producer(mock: &Mock) -> BaseProducer {
    ClientConfig::new()
        .set("bootstrap.servers", mock.bootstrap_servers())
        .create()
        .unwrap()
}

/// Sends records `from..to` of a partition: keys, values, headers and times vary with the number.
fn send(
    producer: &BaseProducer,
    topic: &str,
    partition: i32,
    numbers: std::ops::Range<i64>,
    value_bytes: usize,
) {
    for number in numbers {
        let record = expected(number, value_bytes);
        let mut sent = BaseRecord::<Vec<u8>, Vec<u8>>::to(topic)
            .partition(partition)
            .timestamp(record.timestamp_ms);
        if let Some(key) = &record.key {
            sent = sent.key(key);
        }
        if let Some(value) = &record.value {
            sent = sent.payload(value);
        }
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, header| {
                let key = std::str::from_utf8(&header.key).unwrap();
                headers.insert(SentHeader {
                    key,
                    value: header.value.as_deref(),
                })
            });
        sent = sent.headers(headers);
        while let Err((_, back)) = producer.send(sent) {
            producer.poll(Duration::from_millis(10));
            sent = back;
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

/// What [`send`] sends as `number`, with the number as its offset.
fn expected(number: i64, value_bytes: usize) -> Record {
    let text = |what: &str| format!("{what} {number} ").into_bytes();
    let header = |key: &str, value: Option<Vec<u8>>| Header {
        key: key.as_bytes().to_vec(),
        value,
    };
    Record {
        offset: number,
        timestamp_ms: 1_700_000_000_000 + (number % 7) * 1_000,
        timestamp_type: TimestampType::Create,
        leader_epoch: None,
        key: match number % 3 {
            0 => None,
            1 => Some(Vec::new()),
            _ => Some(text("key")),
        },
        value: match number % 5 {
            0 => None,
            1 => Some(Vec::new()),
            _ => Some(
                text("value")
                    .into_iter()
                    .cycle()
                    .take(value_bytes)
                    .collect(),
            ),
        },
        headers: match number % 4 {
            0 => Vec::new(),
            1 => vec![
                header("same", Some(text("one"))),
                header("same", None),
                header("same", Some(Vec::new())),
            ],
            2 => vec![header("", Some(text("nameless")))],
            _ => vec![header("last", None)],
        },
    }
}

fn without_epoch(mut record: Record) -> Record {
    record.leader_epoch = None;
    record
}

async fn assert_archived(
    archive: &Arc<Archive>,
    topic: &str,
    partition: i32,
    numbers: std::ops::Range<i64>,
    value_bytes: usize,
) {
    let infos = incarnations(archive, topic).await;
    let snapshot = snapshot(archive, &infos[0], partition).await.unwrap();
    let found: Vec<_> = records(archive, &snapshot)
        .await
        .into_iter()
        .map(without_epoch)
        .collect();
    let wanted: Vec<_> = numbers
        .map(|number| expected(number, value_bytes))
        .collect();
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(found, wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_of_every_partition_is_archived_once() {
    let mock = Mock::new(1).unwrap();
    mock.create_topic("orders", 3, 1).unwrap();
    mock.create_topic("other", 1, 1).unwrap();
    let spool = tempfile::tempdir().unwrap();
    let archive = memory_archive().await;
    let producer = producer(&mock);
    send(&producer, "orders", 0, 0..3_000, 300);
    send(&producer, "other", 0, 0..10, 300);
    let archiver = start(
        config(&mock.bootstrap_servers(), &["orders"], spool.path()),
        &archive,
    );
    send(&producer, "orders", 1, 0..500, 300);
    until("partition 0", async || {
        archived_end(&archive, "orders", 0).await == 3_000
    })
    .await;
    until("partition 1", async || {
        archived_end(&archive, "orders", 1).await == 500
    })
    .await;
    send(&producer, "orders", 1, 500..700, 300);
    until("the rest", async || {
        archived_end(&archive, "orders", 1).await == 700
    })
    .await;
    until("no lag", async || {
        archiver.metric("everlog_archiver_lag_records") == 0.0
    })
    .await;
    assert_eq!(archiver.metric("everlog_archiver_partitions"), 3.0);
    assert_eq!(archiver.metric("everlog_archiver_records_total"), 3_700.0);
    assert_eq!(archiver.metric("everlog_archiver_frozen_partitions"), 0.0);
    assert_eq!(archiver.metric("everlog_archiver_holes_total"), 0.0);
    archiver.stop().await;
    assert_archived(&archive, "orders", 0, 0..3_000, 300).await;
    assert_archived(&archive, "orders", 1, 0..700, 300).await;
    assert!(incarnations(&archive, "other").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_at_the_archives_own_end() {
    let mock = Mock::new(1).unwrap();
    mock.create_topic("orders", 1, 1).unwrap();
    let spool = tempfile::tempdir().unwrap();
    let archive = memory_archive().await;
    let producer = producer(&mock);
    let mut sent = 0;
    for round in 0..3 {
        let archiver = start(
            config(&mock.bootstrap_servers(), &["orders"], spool.path()),
            &archive,
        );
        send(&producer, "orders", 0, sent..sent + 400, 200);
        sent += 400;
        // The last round waits for the age limit, those before are ended while records are open: stopping commits.
        until("a beginning", async || {
            archiver.metric("everlog_archiver_lag_records") > 0.0
                || archived_end(&archive, "orders", 0).await == sent
        })
        .await;
        if round == 2 {
            until("all", async || {
                archived_end(&archive, "orders", 0).await == sent
            })
            .await;
        }
        archiver.stop().await;
    }
    assert_archived(&archive, "orders", 0, 0..sent, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_cluster_forgot_while_nobody_looked_becomes_a_hole() {
    let mock = Mock::new(1).unwrap();
    mock.create_topic("orders", 1, 1).unwrap();
    let spool = tempfile::tempdir().unwrap();
    let archive = memory_archive().await;
    let producer = producer(&mock);
    let archiver = start(
        config(&mock.bootstrap_servers(), &["orders"], spool.path()),
        &archive,
    );
    send(&producer, "orders", 0, 0..100, 200);
    until("the beginning", async || {
        archived_end(&archive, "orders", 0).await == 100
    })
    .await;
    archiver.stop().await;
    // The mock keeps 5 MiB of a partition.
    send(&producer, "orders", 0, 100..4_000, 4_000);
    let archiver = start(
        config(&mock.bootstrap_servers(), &["orders"], spool.path()),
        &archive,
    );
    until("the end", async || {
        archived_end(&archive, "orders", 0).await == 4_000
    })
    .await;
    assert_eq!(archiver.metric("everlog_archiver_holes_total"), 1.0);
    archiver.stop().await;
    let infos = incarnations(&archive, "orders").await;
    let snapshot = snapshot(&archive, &infos[0], 0).await.unwrap();
    let all = entries(&snapshot).await;
    let holes: Vec<_> = all
        .iter()
        .filter(|entry| matches!(entry.kind, EntryKind::Hole(_)))
        .collect();
    assert_eq!(holes.len(), 1);
    let hole = holes[0].range;
    assert_eq!(hole.start().get(), 100);
    assert!(hole.end().get() < 4_000);
    let found: Vec<_> = records(&archive, &snapshot)
        .await
        .into_iter()
        .map(without_epoch)
        .collect();
    let small = (0..100).map(|number| expected(number, 200));
    let wanted: Vec<_> = small
        .chain((hole.end().get()..4_000).map(|number| expected(number, 4_000)))
        .collect();
    assert!(
        found == wanted,
        "{} records instead of {}",
        found.len(),
        wanted.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_appear_later_are_found() {
    let mock = Mock::new(1).unwrap();
    mock.create_topic("a-first", 1, 1).unwrap();
    let spool = tempfile::tempdir().unwrap();
    let archive = memory_archive().await;
    let producer = producer(&mock);
    send(&producer, "a-first", 0, 0..50, 100);
    let archiver = start(
        config(
            &mock.bootstrap_servers(),
            &["a-first,a-second"],
            spool.path(),
        ),
        &archive,
    );
    until("the first topic", async || {
        archived_end(&archive, "a-first", 0).await == 50
    })
    .await;
    mock.create_topic("a-second", 1, 1).unwrap();
    send(&producer, "a-second", 0, 0..70, 100);
    until("the second topic", async || {
        archived_end(&archive, "a-second", 0).await == 70
    })
    .await;
    archiver.stop().await;
    assert_archived(&archive, "a-first", 0, 0..50, 100).await;
    assert_archived(&archive, "a-second", 0, 0..70, 100).await;
}

/// The mock does not answer DescribeConfigs, so any of its topics may be a compacted one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_only_a_regex_matches_waits_until_its_configuration_is_told() {
    let mock = Mock::new(1).unwrap();
    mock.create_topic("plain", 1, 1).unwrap();
    mock.create_topic("perhaps-compacted", 1, 1).unwrap();
    let spool = tempfile::tempdir().unwrap();
    let archive = memory_archive().await;
    let producer = producer(&mock);
    send(&producer, "plain", 0, 0..50, 100);
    send(&producer, "perhaps-compacted", 0, 0..50, 100);
    let topics = ["plain", "p.*"];
    let archiver = start(
        config(&mock.bootstrap_servers(), &topics, spool.path()),
        &archive,
    );
    until("the topic that was named", async || {
        archived_end(&archive, "plain", 0).await == 50
    })
    .await;
    assert_eq!(archiver.metric("everlog_archiver_partitions"), 1.0);
    assert_eq!(archiver.metric("everlog_archiver_held_back_topics"), 1.0);
    archiver.stop().await;
    assert!(incarnations(&archive, "perhaps-compacted").await.is_empty());
}
