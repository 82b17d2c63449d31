//! Many clients, large answers, little memory: nobody waits for himself, and nobody for one that sleeps.

use std::time::Duration;

use kafka_protocol::messages::ApiKey;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};

use crate::bench::{Bench, LIVE, Log, TRIMMED};

/// What the bench gives the proxy for answers of brokers: three sixteenths of its memory.
const RESPONSES: usize = 12 << 20;

/// A request kept the room that it takes until its answer was there, out of the same budget that the answer needs: an
/// answer that needs all of it never came.
#[tokio::test]
async fn a_large_request_and_its_large_answer_do_not_wait_for_each_other() {
    let partitions = 1_000;
    let mut bench = Bench::start(Log {
        more_bytes: 2 * RESPONSES / 1_000,
        ..TRIMMED
    })
    .await;
    let wanted: Vec<(i32, i64)> = (1..=partitions).map(|partition| (partition, 100)).collect();
    let answer = timeout(
        Duration::from_secs(10),
        bench.fetch_all(13, &wanted, i32::MAX),
    );
    let mut response = answer.await.expect("an answer");
    let got = response.responses.remove(0).partitions;
    assert_eq!(got.len(), wanted.len());
    assert!(got.iter().all(|part| {
        let records = part.records.as_deref().unwrap_or_default();
        part.error_code == 0 && records.starts_with(LIVE)
    }));
}

/// Only archived records used to be bounded: a hundred consumers that allow 50 MiB each could ask for all of it.
#[tokio::test]
async fn one_answer_of_the_cluster_is_bounded_too() {
    let mut bench = Bench::start(TRIMMED).await;
    for (asked, upstream) in [(i32::MAX, 4 << 20), (50 << 20, 4 << 20), (1000, 1000)] {
        bench.fetch_all(13, &[(0, 100)], asked).await;
        assert_eq!(*bench.max_bytes.lock().unwrap(), upstream);
    }
}

/// One that did not take its answer kept all others from theirs for two minutes.
#[tokio::test]
async fn a_client_that_sleeps_is_cut_off_when_others_need_the_memory() {
    let mut bench = Bench::start(Log {
        more_bytes: RESPONSES,
        ..TRIMMED
    })
    .await;
    let request = bench.fetch_request(13, &[(1, 100)], i32::MAX);
    bench.begin(ApiKey::Fetch, 13, &request).await;
    let mut asleep = bench.reconnect().await;
    // Its answer has begun to arrive: it has the room.
    asleep.readable().await.unwrap();
    let begun = Instant::now();
    let others = timeout(
        Duration::from_secs(60),
        bench.fetch_all(13, &[(1, 100)], i32::MAX),
    );
    assert_eq!(others.await.expect("in time").responses.len(), 1);
    assert!(begun.elapsed() < Duration::from_secs(30), "{begun:?}");
    let mut rest = Vec::new();
    let cut = asleep.read_to_end(&mut rest).await;
    assert!(
        cut.is_err() || rest.len() < RESPONSES,
        "it was not waited for"
    );
}

/// Without sessions each fetch names all partitions. It stays one question upstream, whose size grows with their number
/// and nothing else.
#[tokio::test]
async fn a_thousand_partitions_are_one_question() {
    let mut bench = Bench::start(TRIMMED).await;
    // Archived, and a thousand at the log's end.
    let mut wanted: Vec<(i32, i64)> = (1..=1_000).map(|partition| (partition, 120)).collect();
    wanted.insert(500, (0, 10));
    bench.fetch_all(13, &wanted, 1 << 20).await;
    let rounds = 20;
    for version in [11, 13] {
        bench.fetched.lock().unwrap().clear();
        for _ in 0..rounds {
            let mut response = bench.fetch_all(version, &wanted, 1 << 20).await;
            let got = response.responses.remove(0).partitions;
            let places = got.iter().map(|part| part.partition_index);
            assert!(places.eq(wanted.iter().map(|(partition, _)| *partition)));
            assert!(got.iter().all(|part| part.error_code == 0));
        }
        let asked = bench.fetched.lock().unwrap().len();
        assert_eq!(asked, rounds * wanted.len(), "version {version}");
    }
}
