//! Which topic a name means, how far the archive is known to go, and what lies between the two sides.

use std::time::Duration;

use kafka_protocol::messages::{ApiKey, FetchResponse};
use tokio::time::Instant;

use crate::bench::{Bench, LIVE, Log, TRIMMED, offsets};
use crate::support;

/// For up to 5 s a name meant the topic that it had meant before: a consumer of the new one got records of the old.
#[tokio::test]
async fn a_topic_that_was_made_anew_under_the_clients_eyes_has_no_history() {
    let mut bench = Bench::start(TRIMMED).await;
    assert!(offsets(&bench.partition(12, 10).await).contains(&10));
    *bench.log.lock().unwrap() = Log {
        start: 0,
        end: 20,
        recreated: true,
        ..TRIMMED
    };
    let data = bench.partition(12, 10).await;
    // Nothing, or the new topic's own.
    assert_eq!(data.error_code, 0);
    let records = data.records.unwrap_or_default();
    assert!(
        records.is_empty() || records == LIVE,
        "{} bytes",
        records.len()
    );
    assert_eq!(bench.partition(12, 10).await.records.unwrap(), LIVE);
}

/// The same through the time in which it does not exist.
#[tokio::test]
async fn a_topic_that_was_deleted_is_asked_for_anew() {
    let mut bench = Bench::start(TRIMMED).await;
    assert!(offsets(&bench.partition(12, 10).await).contains(&10));
    *bench.log.lock().unwrap() = Log {
        refuse: 3,
        untold: true,
        ..TRIMMED
    };
    assert_eq!(bench.partition(12, 10).await.error_code, 3);
    *bench.log.lock().unwrap() = Log {
        start: 0,
        recreated: true,
        ..TRIMMED
    };
    for _ in 0..3 {
        let data = bench.partition(12, 10).await;
        assert_eq!((data.error_code, data.records.unwrap()), (0, LIVE.into()));
    }
}

/// Each out-of-range fetch and each search for the earliest offset got KAFKA_STORAGE_ERROR for ever.
#[tokio::test]
async fn topics_without_ids_pass_without_history() {
    let mut bench = Bench::start(Log {
        idless: true,
        ..TRIMMED
    })
    .await;
    assert_eq!(bench.earliest(7).await, (0, 90));
    let begun = Instant::now();
    assert_eq!(bench.partition(12, 10).await.error_code, 1);
    assert!(begun.elapsed() < Duration::from_millis(250), "at once");
    assert_eq!(bench.partition(12, 100).await.records.unwrap(), LIVE);
}

/// The cluster's first match behind its log start was taken for the first one, whatever had been let go of before it.
#[tokio::test]
async fn a_time_between_archive_and_cluster_is_looked_for_again() {
    for question in [1_700_000_000_107, -3] {
        let mut bench = Bench::apart(Log {
            start: 110,
            by_time: 110,
            ..TRIMMED
        })
        .await;
        assert_eq!(
            bench.list_offsets(7, question).await,
            (56, -1),
            "{question}"
        );
        // A match in the archive is the first one, whatever follows.
        assert_eq!(bench.list_offsets(7, 1_700_000_000_041).await, (0, 60));
        bench
            .bed
            .segment(100..115, &support::records(100..115, 100))
            .await;
        let until = Instant::now() + Duration::from_secs(10);
        let answer = loop {
            let answer = bench.list_offsets(7, question).await;
            if answer.0 == 0 || until < Instant::now() {
                break answer;
            }
        };
        let wanted = if question < 0 { 114 } else { 107 };
        assert_eq!(answer, (0, wanted), "{question}");
    }
}

/// Without a gap the cluster's match is the first one.
#[tokio::test]
async fn a_time_behind_the_archive_is_the_clusters() {
    let mut bench = Bench::start(Log {
        by_time: 117,
        ..TRIMMED
    })
    .await;
    let answer = bench.list_offsets(7, 1_700_000_000_117).await;
    assert_eq!(answer, (0, 117));
}

/// Once a replay had come to the end of what the proxy knew, the brokers served the rest of it.
#[tokio::test]
async fn a_reader_at_the_known_end_finds_newer_commits() {
    let mut bench = Bench::apart(Log {
        end: 115,
        ..TRIMMED
    })
    .await;
    assert_eq!(offsets(&bench.partition(13, 95).await).last(), Some(&99));
    bench
        .bed
        .segment(100..115, &support::records(100..115, 100))
        .await;
    // Looks are a second apart.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(offsets(&bench.partition(13, 100).await).last(), Some(&114));
    // At the log's end nobody looks.
    let reads = bench.bed.store.operations().len();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for _ in 0..3 {
        assert!(bench.partition(13, 115).await.records.unwrap().is_empty());
    }
    assert_eq!(bench.bed.store.operations().len(), reads);
}

#[tokio::test]
async fn a_session_that_nobody_opened_is_not_found() {
    let mut bench = Bench::start(TRIMMED).await;
    for id in [0, 9] {
        let mut request = bench.fetch_request(13, &[], 1000);
        (request.session_id, request.session_epoch) = (id, 1);
        let response: FetchResponse = bench.ask(ApiKey::Fetch, 13, &request).await;
        assert_eq!((response.error_code, response.responses.len()), (70, 0));
    }
}
