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

/// The same where the new log is as long as the old one, so that it answers every shadow as the old one did.
#[tokio::test]
async fn a_topic_that_was_made_anew_with_as_many_records_has_no_history() {
    // Brokers before 3.1 know no fetch by id: there the name is asked for each time.
    for fetch_max in [50, 12] {
        let log = Log {
            fetch_max,
            ..TRIMMED
        };
        for version in [5, 11, 12] {
            let mut bench = Bench::start(log).await;
            assert!(offsets(&bench.partition(version, 10).await).contains(&10));
            *bench.log.lock().unwrap() = Log {
                start: 0,
                recreated: true,
                ..log
            };
            for _ in 0..3 {
                let data = bench.partition(version, 10).await;
                assert_eq!(data.error_code, 0, "version {version}");
                assert_eq!(
                    data.records.unwrap(),
                    LIVE,
                    "version {version}, fetch {fetch_max}"
                );
                assert_eq!(data.log_start_offset, 0);
            }
        }
    }
}

/// The same for what is asked by name alone: 5 s long the old life's start was the new one's.
#[tokio::test]
async fn offsets_are_those_of_the_topic_that_the_name_means_now() {
    let mut bench = Bench::start(TRIMMED).await;
    assert_eq!(bench.list_offsets(7, 1_700_000_000_005).await, (0, 5));
    assert_eq!(bench.earliest(7).await, (0, 0));
    *bench.log.lock().unwrap() = Log {
        start: 30,
        by_time: 50,
        recreated: true,
        ..TRIMMED
    };
    assert_eq!(bench.list_offsets(7, 1_700_000_000_005).await, (0, 50));
    assert_eq!(bench.earliest(7).await, (0, 30));
}

/// With live partitions in the same request, whose answer comes in a frame of its own.
#[tokio::test]
async fn archived_and_live_partitions_stand_in_one_answer_whatever_the_version() {
    for version in [4, 5, 11, 12, 13, 18] {
        let mut bench = Bench::start(TRIMMED).await;
        let wanted = [(0, 10), (1, 110)];
        let mut response = bench.fetch_all(version, &wanted, 1 << 20).await;
        let partitions = response.responses.remove(0).partitions;
        assert_eq!(partitions.len(), 2, "version {version}");
        assert_eq!(offsets(&partitions[0]).last(), Some(&39));
        assert_eq!(partitions[1].records.clone().unwrap(), LIVE);
        // Live partitions are asked in the client's words, and never for history.
        let fetched = bench.fetched.lock().unwrap().clone();
        assert!(fetched.contains(&(110, 1 << 20)), "{fetched:?}");
        assert!(
            fetched.iter().all(|(offset, _)| *offset >= 110),
            "{fetched:?}"
        );
    }
}

/// What the broker refuses to a shadow by id is refused in the client's own version.
#[tokio::test]
async fn an_old_client_understands_what_a_shadow_by_id_is_told() {
    let mut bench = Bench::start(TRIMMED).await;
    for (refuse, version, told) in [
        (29, 11, 29),
        (3, 11, 3),
        (6, 5, 6),
        (56, 11, 56),
        (56, 5, 6),
    ] {
        *bench.log.lock().unwrap() = TRIMMED;
        assert!(!offsets(&bench.partition(version, 10).await).is_empty());
        *bench.log.lock().unwrap() = Log { refuse, ..TRIMMED };
        let data = bench.partition(version, 10).await;
        let got = (data.error_code, data.records.unwrap().len());
        assert_eq!(got, (told, 0), "{refuse} in version {version}");
    }
    *bench.log.lock().unwrap() = Log {
        throttle_ms: 70,
        ..TRIMMED
    };
    for version in [5, 11] {
        let response = bench.fetch(version, 10).await;
        let got = (response.throttle_time_ms, response.responses.len());
        assert_eq!(got, (70, 0), "throttled: proves nothing");
    }
}

/// Each partition that a client made up was looked for in the archive, and remembered for as long as the proxy ran.
#[tokio::test]
async fn partitions_that_a_topic_does_not_have_are_not_looked_for() {
    let mut bench = Bench::apart(Log {
        partitions: 1,
        ..TRIMMED
    })
    .await;
    assert!(!offsets(&bench.partition(13, 10).await).is_empty());
    let reads = bench.bed.store.operations().len();
    let made_up: Vec<(i32, i64)> = (1_000..2_000).map(|partition| (partition, 110)).collect();
    for version in [11, 13] {
        bench.fetch_all(version, &made_up, 1 << 20).await;
    }
    assert_eq!(bench.bed.store.operations().len(), reads);
}

/// A topic gets more partitions while a client is connected.
#[tokio::test]
async fn partitions_that_were_added_are_found() {
    for version in [11, 13] {
        let mut bench = Bench::start(Log {
            partitions: 0,
            ..TRIMMED
        })
        .await;
        // Not told of yet, though the broker serves it: its records, and no word of "out of range".
        assert_eq!(bench.partition(version, 110).await.records.unwrap(), LIVE);
        assert_eq!(bench.partition(version, 10).await.error_code, 56);
        assert_eq!(bench.earliest(7).await, (56, -1));
        *bench.log.lock().unwrap() = TRIMMED;
        let data = bench.partition(version, 10).await;
        assert_eq!((data.error_code, offsets(&data).last()), (0, Some(&39)));
        assert_eq!(bench.earliest(7).await, (0, 0));
    }
}

/// For up to 10 s after the first commit of a partition, "earliest" was the cluster's: a consumer that began then skipped
/// what only the archive had.
#[tokio::test]
async fn earliest_knows_a_first_commit_at_once() {
    let mut bench = Bench::empty(TRIMMED).await;
    assert_eq!(bench.earliest(7).await, (0, 90));
    bench
        .bed
        .segment(0..100, &support::records(0..100, 100))
        .await;
    // Looks are a second apart.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(bench.earliest(7).await, (0, 0));
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
