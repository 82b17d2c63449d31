//! Archived fetches against a scripted broker: what proves that a client may read, and what the client then gets.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "../replay/support.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

mod bench;
mod crowd;
mod identity;
mod told;
mod trouble;

use bench::{Bench, LIVE, Log, TRIMMED, offsets};
use everlog_proxy::OnHole;

#[tokio::test]
async fn history_comes_from_the_archive_and_watermarks_from_the_cluster() {
    let mut bench = Bench::start(TRIMMED).await;
    for version in [5, 11, 12, 13, 16, 18] {
        let data = bench.partition(version, 10).await;
        assert_eq!(data.error_code, 0, "version {version}");
        assert_eq!(
            (
                data.high_watermark,
                data.last_stable_offset,
                data.log_start_offset
            ),
            (120, 120, 0)
        );
        let got = offsets(&data);
        assert!(
            got.contains(&10) && got.last() == Some(&39),
            "version {version}: {got:?}"
        );
    }
    // A shadow at the watermark stood for each: no byte of history was asked of the cluster.
    assert!(
        bench
            .fetched
            .lock()
            .unwrap()
            .iter()
            .all(|asked| *asked == (120, 1))
    );
    // Where the archive and the cluster both have it, the archive answers; from its end on, the cluster.
    assert_eq!(offsets(&bench.partition(13, 95).await).last(), Some(&99));
    assert_eq!(bench.partition(13, 100).await.records.unwrap(), LIVE);
    assert_eq!(bench.partition(13, 100).await.log_start_offset, 0);
}

#[tokio::test]
async fn without_the_brokers_word_no_archived_byte_leaves() {
    let mut bench = Bench::start(Log {
        refuse: 29,
        ..TRIMMED
    })
    .await;
    for version in [5, 12, 13, 18] {
        let data = bench.partition(version, 10).await;
        assert_eq!(
            (data.error_code, data.records.unwrap().len()),
            (29, 0),
            "version {version}"
        );
    }
    *bench.log.lock().unwrap() = Log {
        throttle_ms: 70,
        ..TRIMMED
    };
    let response = bench.fetch(13, 10).await;
    assert_eq!(
        (response.throttle_time_ms, response.responses.len()),
        (70, 0),
        "throttled: proves nothing"
    );
    *bench.log.lock().unwrap() = Log {
        refuse: 74,
        ..TRIMMED
    };
    assert_eq!(bench.partition(13, 10).await.error_code, 74);
    *bench.log.lock().unwrap() = TRIMMED;
    assert_eq!(bench.partition(13, 10).await.error_code, 0);
}

#[tokio::test]
async fn between_archive_and_cluster_the_client_tries_again() {
    let mut bench = Bench::start(Log {
        start: 110,
        ..TRIMMED
    })
    .await;
    assert_eq!(bench.partition(13, 105).await.error_code, 56);
    assert_eq!(
        bench.partition(5, 105).await.error_code,
        6,
        "old clients know another code"
    );
    // The archiver catches up: the next fetch is served.
    bench
        .bed
        .segment(100..115, &support::records(100..115, 100))
        .await;
    assert_eq!(offsets(&bench.partition(13, 105).await).last(), Some(&114));
    assert_eq!(
        bench.partition(13, 130).await.error_code,
        1,
        "above the log's end it is out of range"
    );
}

#[tokio::test]
async fn a_hole_is_an_error_and_never_a_reset() {
    let mut bench = Bench::start(TRIMMED).await;
    assert_eq!(bench.partition(13, 45).await.error_code, 2);
    assert_eq!(offsets(&bench.partition(13, 60).await).first(), Some(&60));
    assert_eq!(bench.earliest(7).await, (0, 0));
}

#[tokio::test]
async fn a_hole_is_crossed_only_where_the_operator_said_so() {
    let mut bench = Bench::with(TRIMMED, OnHole::Skip).await;
    let data = bench.partition(13, 45).await;
    assert_eq!(data.error_code, 0);
    let got = offsets(&data);
    assert_eq!((got.first(), got.last()), (Some(&60), Some(&99)));
    // Up to the hole as ever: the bridge begins where the client stands.
    assert_eq!(offsets(&bench.partition(13, 30).await).last(), Some(&39));
}

#[tokio::test]
async fn another_life_of_the_topic_has_no_history() {
    let mut bench = Bench::start(Log {
        recreated: true,
        ..TRIMMED
    })
    .await;
    for version in [12, 13] {
        assert_eq!(
            bench.partition(version, 10).await.error_code,
            1,
            "version {version}"
        );
    }
}

#[tokio::test]
async fn what_the_cluster_lost_does_not_come_back() {
    let mut bench = Bench::start(Log {
        start: 0,
        ..TRIMMED
    })
    .await;
    assert_eq!(offsets(&bench.partition(13, 85).await).last(), Some(&99));
    // An unclean election cut the log below what this connection last saw.
    *bench.log.lock().unwrap() = Log {
        start: 0,
        end: 80,
        ..TRIMMED
    };
    assert_eq!(bench.partition(13, 85).await.error_code, 1);
    assert!(!offsets(&bench.partition(13, 10).await).is_empty());
}

#[tokio::test]
async fn earliest_is_the_archives_and_latest_the_clusters() {
    let mut bench = Bench::start(TRIMMED).await;
    for (question, wanted) in [
        (-2, 0),
        (-1, 120),
        (1_700_000_000_005, 5),
        (1_700_000_000_041, 60),
    ] {
        for version in [1, 7, 10] {
            let answer = bench.list_offsets(version, question).await;
            assert_eq!(answer, (0, wanted), "{question} in version {version}");
        }
    }
}
