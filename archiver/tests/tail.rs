//! At the live tail, where librdkafka's own notion of the position used to lose single records.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should panic")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{
    archived_end, config, incarnations, memory_archive, open_archive, records, snapshot, start,
    until,
};
use everlog_index::Archive;
use everlog_store::MemoryStore;
use everlog_store::faulty::{Fault, FaultyStore, OperationKind};
use rdkafka::config::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use tokio::time::Instant;

type Mock = MockCluster<'static, DefaultProducerContext>;

/// Sends a record to each partition every `pause` for `time`, so that the consumer comes to the end between any two;
/// calls `meanwhile` before each round. Returns the number of rounds.
async fn trickle(
    mock: &Mock,
    partitions: i32,
    time: Duration,
    pause: Duration,
    mut meanwhile: impl AsyncFnMut(Duration),
) -> i64 {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", mock.bootstrap_servers())
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .create()
        .unwrap();
    let begin = Instant::now();
    let mut rounds = 0;
    while begin.elapsed() < time {
        meanwhile(begin.elapsed()).await;
        for partition in 0..partitions {
            let value = format!("value {rounds}");
            let record = BaseRecord::<str, str>::to("orders").partition(partition);
            producer
                .send(record.payload(&value))
                .map_err(|(e, _)| e)
                .unwrap();
        }
        producer.poll(Duration::ZERO);
        rounds += 1;
        tokio::time::sleep(pause).await;
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    rounds
}

async fn assert_dense(archive: &Arc<Archive>, partition: i32, rounds: i64) {
    let infos = incarnations(archive, "orders").await;
    let snapshot = snapshot(archive, &infos[0], partition).await.unwrap();
    let found: Vec<i64> = records(archive, &snapshot)
        .await
        .iter()
        .map(|record| record.offset)
        .collect();
    let missing: Vec<i64> = (0..rounds)
        .filter(|offset| !found.contains(offset))
        .collect();
    assert!(
        missing.is_empty() && found.len() == usize::try_from(rounds).unwrap(),
        "partition {partition} lacks {missing:?} of {rounds}"
    );
}

/// Partitions that were held back went on by librdkafka's resume, at the position of the application. The batch queue
/// moves that one past the offset of an end-of-partition event, so each hold at the tail skipped one record, and the
/// archive had a covered range that lacked it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_is_skipped_when_partitions_are_held_back_at_the_tail() {
    let mock = Mock::new(1).unwrap();
    mock.create_topic("orders", 2, 1).unwrap();
    let spool = tempfile::tempdir().unwrap();
    let store = FaultyStore::new(Arc::new(MemoryStore::new()));
    // A cut each second and two slow puts for each: cuts pile up, and the partition is held back.
    store.on_operation(|operation| match operation.kind {
        OperationKind::Put => Fault::Delayed(Duration::from_millis(1_200)),
        _ => Fault::None,
    });
    let archive = open_archive(Arc::new(store)).await;
    let mut config = config(&mock.bootstrap_servers(), &["orders"], spool.path());
    config.segment_max_age = Duration::from_secs(1);
    let archiver = start(config, &archive);
    let pause = Duration::from_millis(20);
    let rounds = trickle(&mock, 2, Duration::from_secs(20), pause, async |_| {}).await;
    for partition in 0..2 {
        until("all", async || {
            archived_end(&archive, "orders", partition).await == rounds
        })
        .await;
    }
    assert_eq!(archiver.metric("everlog_archiver_frozen_partitions"), 0.0);
    archiver.stop().await;
    for partition in 0..2 {
        assert_dense(&archive, partition, rounds).await;
    }
}

/// librdkafka itself pauses all partitions of a member at every rebalance and resumes them at the position of the
/// application: with the batch queue, those that stayed where they were lost a record each if the end of the partition
/// was the last that came before, and the next record arrived before the fetch that was under way had ended. So records
/// come more slowly than fetches end (500 ms), and members come and go often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_is_skipped_when_members_come_and_go() {
    let mock = Mock::new(1).unwrap();
    mock.create_topic("orders", 8, 1).unwrap();
    let archive = memory_archive().await;
    let (spool, others_spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let member = |instance: &str, spool: &std::path::Path| {
        let mut config = config(&mock.bootstrap_servers(), &["orders"], spool);
        config.instance_id = instance.to_owned();
        let timeout = ("session.timeout.ms".to_owned(), "6000".to_owned());
        config.kafka_properties = [timeout].into_iter().collect();
        start(config, &archive)
    };
    let archiver = member("one", spool.path());
    // Each under another name, so that it need not wait for the end of the one before.
    let (mut other, mut next, mut count) = (None, Duration::from_secs(8), 0);
    let (time, pause) = (Duration::from_secs(45), Duration::from_millis(930));
    let rounds = trickle(&mock, 8, time, pause, async |elapsed| {
        if elapsed < next {
            return;
        }
        next = elapsed + Duration::from_secs(4);
        if let Some(there) = other.take() {
            let there: common::Running = there;
            there.stop().await;
        }
        count += 1;
        other = Some(member(&format!("other-{count}"), others_spool.path()));
    })
    .await;
    if let Some(other) = other {
        other.stop().await;
    }
    for partition in 0..8 {
        until("all", async || {
            archived_end(&archive, "orders", partition).await == rounds
        })
        .await;
    }
    until("all partitions to come back", async || {
        archiver.metric("everlog_archiver_partitions") == 8.0
    })
    .await;
    archiver.stop().await;
    for partition in 0..8 {
        assert_dense(&archive, partition, rounds).await;
    }
}
