//! Faults that pass: no client may be reset, held up, or left without one of its partitions because of them.

use std::sync::Arc;
use std::time::Duration;

use everlog_store::faulty::Fault;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use crate::bench::{Bench, LIVE, Log, TRIMMED, offsets};
use crate::support;

/// OFFSET_OUT_OF_RANGE used to go through while Metadata did not know the topic yet, and for 5 s after: a consumer with
/// `latest` skipped all history, and ListOffsets gave the cluster's own earliest.
#[tokio::test]
async fn a_topic_that_is_not_told_yet_is_no_reason_for_a_reset() {
    for version in [12, 13] {
        let mut bench = Bench::start(Log {
            untold: true,
            ..TRIMMED
        })
        .await;
        assert_eq!(bench.partition(version, 10).await.error_code, 56);
        assert_eq!(bench.earliest(7).await, (56, -1));
        *bench.log.lock().unwrap() = TRIMMED;
        let got = offsets(&bench.partition(version, 10).await);
        assert!(got.contains(&10), "version {version}: {got:?}");
        assert_eq!(bench.earliest(7).await, (0, 0));
    }
}

/// A hundred partitions used to be looked up one after the other, each with its own deadline.
#[tokio::test]
async fn an_archive_that_does_not_answer_holds_up_nobody() {
    let mut bench = Bench::start(TRIMMED).await;
    bench
        .bed
        .store
        .on_operation(|_| Fault::Delayed(Duration::from_secs(60)));
    // Live ones, and one that the cluster has let go of.
    let wanted: Vec<(i32, i64)> = (1..100)
        .map(|partition| (partition, 100))
        .chain([(100, 10)])
        .collect();
    let begun = Instant::now();
    let mut response = bench.fetch_all(13, &wanted, 1 << 20).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{begun:?}");
    let mut partitions = response.responses.remove(0).partitions;
    let gone = partitions.pop().unwrap();
    assert_eq!((gone.partition_index, gone.error_code), (100, 56));
    assert_eq!(partitions.len(), 99);
    assert!(
        partitions
            .iter()
            .all(|live| live.error_code == 0 && live.records.as_deref() == Some(LIVE))
    );
}

/// Eight partitions were searched at a time, each with the whole limit: with some dozens of them clients gave up first.
#[tokio::test]
async fn a_search_for_many_partitions_ends_when_the_client_wants_it() {
    let mut bench = Bench::start(TRIMMED).await;
    let (store, archive) = (&bench.bed.store, &bench.bed.archive);
    for partition in 1..25 {
        let (store, archive) = (Arc::clone(store), Arc::clone(archive));
        let mut bed = support::Bed::in_archive(store, archive, partition).await;
        bed.segment(0..40, &support::records(0..40, 100)).await;
    }
    store.on_operation(|_| Fault::Delayed(Duration::from_secs(60)));
    let asked = (1..25).map(|partition| {
        ListOffsetsPartition::default()
            .with_partition_index(partition)
            .with_timestamp(1_700_000_000_005)
    });
    let topic = ListOffsetsTopic::default()
        .with_name(StrBytes::from_static_str("orders").into())
        .with_partitions(asked.collect());
    let request = ListOffsetsRequest::default()
        .with_replica_id((-1).into())
        .with_topics(vec![topic])
        .with_timeout_ms(1_000);
    let begun = Instant::now();
    let response: ListOffsetsResponse = bench.ask(ApiKey::ListOffsets, 10, &request).await;
    let took = begun.elapsed();
    let partitions = &response.topics[0].partitions;
    assert_eq!(partitions.len(), 24);
    assert!(
        partitions
            .iter()
            .all(|partition| partition.error_code == 56)
    );
    assert!(took < Duration::from_secs(2), "{took:?}");
}

/// Looking for the chains had 2 s of its own, whatever the client wanted.
#[tokio::test]
async fn a_look_for_the_archive_ends_when_the_client_wants_it() {
    let mut bench = Bench::apart(TRIMMED).await;
    bench
        .bed
        .store
        .on_operation(|_| Fault::Delayed(Duration::from_secs(60)));
    let partition = ListOffsetsPartition::default().with_timestamp(-2);
    let topic = ListOffsetsTopic::default()
        .with_name(StrBytes::from_static_str("orders").into())
        .with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default()
        .with_replica_id((-1).into())
        .with_topics(vec![topic])
        .with_timeout_ms(300);
    let begun = Instant::now();
    let response: ListOffsetsResponse = bench.ask(ApiKey::ListOffsets, 10, &request).await;
    let took = begun.elapsed();
    assert_eq!(response.topics[0].partitions[0].error_code, 56);
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[tokio::test]
async fn an_archive_that_is_away_is_never_the_clusters_own_earliest() {
    let mut bench = Bench::start(TRIMMED).await;
    bench.bed.store.on_operation(|_| Fault::Unavailable);
    for question in [-2, 1_700_000_000_005] {
        for version in [1, 7, 10] {
            // The newest commit may be known already; the records that a time is looked for in are not.
            let (error, offset) = bench.list_offsets(version, question).await;
            assert!(
                (error, offset) == (56, -1) || (question == -2 && (error, offset) == (0, 0)),
                "{question} in version {version}: {error} {offset}"
            );
        }
    }
    bench.bed.store.heal();
    assert_eq!(bench.earliest(7).await, (0, 0));
}

/// The Java consumer throws a full response away that lacks one of its partitions, and asks again for ever.
#[tokio::test]
async fn a_response_has_every_partition() {
    let mut bench = Bench::start(Log {
        omits: true,
        ..TRIMMED
    })
    .await;
    for version in [11, 13] {
        let mut response = bench.fetch_all(version, &[(0, 110), (1, 110)], 1000).await;
        let partitions = response.responses.remove(0).partitions;
        let indexes: Vec<i32> = partitions.iter().map(|part| part.partition_index).collect();
        assert_eq!(indexes, [0, 1], "version {version}");
        assert_eq!(
            (
                partitions[0].error_code,
                partitions[0].records.as_deref().unwrap_or_default().len()
            ),
            (0, 0)
        );
    }
}

/// A client that is told at once to try again does so at once.
#[tokio::test]
async fn what_may_pass_is_waited_for_within_the_clients_time() {
    let mut bench = Bench::start(Log {
        start: 110,
        ..TRIMMED
    })
    .await;
    let begun = Instant::now();
    assert_eq!(bench.partition(13, 105).await.error_code, 56);
    assert!(Duration::from_millis(280) < begun.elapsed());
    assert!(begun.elapsed() < Duration::from_millis(1500));
}

/// A reader that paused at the log's end finds that end archived, and let go of by the cluster, when it goes on. It used
/// to be asked of the cluster again and again, with three questions behind each "out of range".
#[tokio::test]
async fn a_reader_that_paused_at_the_end_goes_on_in_the_archive() {
    let mut bench = Bench::start(Log {
        end: 100,
        ..TRIMMED
    })
    .await;
    assert_eq!(offsets(&bench.partition(13, 95).await).last(), Some(&99));
    bench
        .bed
        .segment(100..200, &support::records(100..200, 100))
        .await;
    *bench.log.lock().unwrap() = Log {
        start: 190,
        end: 210,
        ..TRIMMED
    };
    tokio::time::sleep(Duration::from_millis(1100)).await;
    bench.fetched.lock().unwrap().clear();
    for from in [100, 150] {
        let data = bench.partition(13, from).await;
        assert_eq!((data.error_code, data.high_watermark), (0, 210));
        assert_eq!(offsets(&data).last(), Some(&199));
    }
    let fetched = bench.fetched.lock().unwrap();
    assert!(
        fetched.iter().all(|asked| *asked == (210, 1)),
        "{fetched:?}"
    );
}

/// Both sides could fill the response alone.
#[tokio::test]
async fn archived_and_live_partitions_of_one_request_starve_neither() {
    let mut bench = Bench::start(TRIMMED).await;
    for max_bytes in [1, 30, 5000, 1 << 20] {
        let (mut archived, mut live) = (0, 0);
        for _ in 0..10 {
            let mut response = bench.fetch_all(13, &[(0, 0), (1, 100)], max_bytes).await;
            for part in response.responses.remove(0).partitions {
                assert_eq!(part.error_code, 0);
                let has_records = part.records.is_some_and(|records| !records.is_empty());
                *[&mut archived, &mut live][usize::from(part.partition_index == 1)] +=
                    i32::from(has_records);
            }
        }
        assert!(
            archived >= 4 && live >= 4,
            "{max_bytes} bytes: {archived} and {live} of 10"
        );
    }
}

#[tokio::test]
async fn the_end_of_a_forgotten_epoch_comes_from_the_archive() {
    let mut bench = Bench::start(Log {
        end: 300,
        ..TRIMMED
    })
    .await;
    let mut records = support::records(100..140, 100);
    for record in &mut records[20..] {
        record.leader_epoch = Some(7);
    }
    bench.bed.segment(100..140, &records).await;
    bench.log.lock().unwrap().start = 200;
    for version in [2, 3, 4] {
        assert_eq!(
            epoch_end(&mut bench, version).await,
            (0, 0, 120),
            "version {version}"
        );
    }
    // Another topic by the same name, a moment later: not the old one's epochs.
    bench.log.lock().unwrap().recreated = true;
    assert_eq!(epoch_end(&mut bench, 4).await, (0, 0, 200));
}

/// Error, epoch and end of epoch 0.
async fn epoch_end(bench: &mut Bench, version: i16) -> (i16, i32, i64) {
    let partition = OffsetForLeaderPartition::default().with_leader_epoch(0);
    let topic = OffsetForLeaderTopic::default()
        .with_topic(StrBytes::from_static_str("orders").into())
        .with_partitions(vec![partition]);
    let mut request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
    request.replica_id = (-1).into();
    let response: OffsetForLeaderEpochResponse = bench
        .ask(ApiKey::OffsetForLeaderEpoch, version, &request)
        .await;
    let answer = &response.topics[0].partitions[0];
    (answer.error_code, answer.leader_epoch, answer.end_offset)
}
