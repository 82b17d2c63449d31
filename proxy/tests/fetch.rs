//! Archived fetches against a scripted broker: what proves that a client may read, and what the client then gets.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]
#![allow(
    dead_code,
    unused_imports,
    reason = "the support module is shared with other tests"
)]

#[path = "replay/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use everlog_format::{TopicSelection, decode_batches};
use everlog_proxy::{OnHole, Proxy, ProxyConfig};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// How the broker of partition orders/0 behaves.
#[derive(Clone, Copy, Debug)]
struct Log {
    start: i64,
    end: i64,
    /// An error for every fetch.
    refuse: i16,
    throttle_ms: i32,
    /// Another life of the topic than the archive knows.
    recreated: bool,
}

const LIVE: &[u8] = b"records of the cluster";

struct Bench {
    log: Arc<Mutex<Log>>,
    /// Offset and partition_max_bytes of each fetched partition.
    fetched: Arc<Mutex<Vec<(i64, i32)>>>,
    client: TcpStream,
    bed: support::Bed,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

async fn frame(stream: &mut TcpStream) -> std::io::Result<Bytes> {
    let len = stream.read_i32().await?;
    let mut frame = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut frame).await?;
    Ok(frame.into())
}

async fn send(stream: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    stream
        .write_i32(i32::try_from(frame.len()).unwrap())
        .await?;
    stream.write_all(frame).await
}

fn answer(key: ApiKey, version: i16, correlation: i32, body: &impl Encodable) -> Bytes {
    let mut frame = BytesMut::new();
    let header = ResponseHeader::default().with_correlation_id(correlation);
    header
        .encode(&mut frame, key.response_header_version(version))
        .unwrap();
    body.encode(&mut frame, version).unwrap();
    frame.freeze()
}

fn topic_id(log: Log) -> uuid::Uuid {
    let archived = everlog_format::TopicId::new("4L6g3nShT-eMCtK--X86sw")
        .unwrap()
        .as_uuid();
    if log.recreated {
        uuid::Uuid::from_u128(7)
    } else {
        archived
    }
}

fn respond(mut request: Bytes, log: Log, fetched: &Mutex<Vec<(i64, i32)>>) -> Bytes {
    let key = ApiKey::try_from(i16::from_be_bytes([request[0], request[1]])).unwrap();
    let version = i16::from_be_bytes([request[2], request[3]]);
    let header = RequestHeader::decode(&mut request, key.request_header_version(version)).unwrap();
    let correlation = header.correlation_id;
    match key {
        ApiKey::ApiVersions => {
            let offer = |key| ApiVersion::default().with_api_key(key).with_max_version(50);
            let response =
                ApiVersionsResponse::default().with_api_keys((0..100).map(offer).collect());
            answer(key, version, correlation, &response)
        }
        ApiKey::Metadata => {
            let asked = MetadataRequest::decode(&mut request, version)
                .unwrap()
                .topics
                .unwrap_or_default();
            let known = |_: &_| {
                MetadataResponseTopic::default()
                    .with_name(Some(StrBytes::from_static_str("orders").into()))
                    .with_topic_id(topic_id(log))
            };
            let response = MetadataResponse::default()
                .with_cluster_id(Some(StrBytes::from_static_str("test-cluster")))
                .with_topics(asked.iter().map(known).collect());
            answer(key, version, correlation, &response)
        }
        ApiKey::ListOffsets => {
            let asked = ListOffsetsRequest::decode(&mut request, version).unwrap();
            let question = asked.topics[0].partitions[0].timestamp;
            let partition = ListOffsetsPartitionResponse::default().with_offset(match question {
                -1 => log.end,
                -2 => log.start,
                _ => -1,
            });
            let topic = ListOffsetsTopicResponse::default()
                .with_name(asked.topics[0].name.clone())
                .with_partitions(vec![partition]);
            answer(
                key,
                version,
                correlation,
                &ListOffsetsResponse::default().with_topics(vec![topic]),
            )
        }
        ApiKey::Fetch => {
            let asked = FetchRequest::decode(&mut request, version).unwrap();
            assert_eq!(
                (asked.session_id, asked.session_epoch),
                (0, -1),
                "no sessions upstream"
            );
            let mut response = FetchResponse::default().with_throttle_time_ms(log.throttle_ms);
            for topic in asked.topics.iter().filter(|_| log.throttle_ms == 0) {
                let one = |asked: &FetchPartition| {
                    fetched
                        .lock()
                        .unwrap()
                        .push((asked.fetch_offset, asked.partition_max_bytes));
                    serve(asked.fetch_offset, log)
                };
                response.responses.push(
                    FetchableTopicResponse::default()
                        .with_topic(topic.topic.clone())
                        .with_topic_id(topic.topic_id)
                        .with_partitions(topic.partitions.iter().map(one).collect()),
                );
            }
            answer(key, version, correlation, &response)
        }
        other => panic!("{other:?} is not in the script"),
    }
}

fn serve(offset: i64, log: Log) -> PartitionData {
    let out_of_range = offset < log.start || log.end < offset;
    let error = if log.refuse != 0 {
        log.refuse
    } else {
        i16::from(out_of_range)
    };
    let mut data = PartitionData::default()
        .with_error_code(error)
        .with_records(Some(Bytes::new()));
    (data.high_watermark, data.last_stable_offset) = (-1, -1);
    if error == 0 {
        (
            data.high_watermark,
            data.last_stable_offset,
            data.log_start_offset,
        ) = (log.end, log.end, log.start);
        if offset < log.end {
            data.records = Some(Bytes::from_static(LIVE));
        }
    }
    // Versions before 5 are not used here.
    data
}

impl Bench {
    /// The archive holds [0, 100), with a hole at [40, 60).
    async fn start(log: Log) -> Bench {
        let mut bed = support::Bed::new().await;
        bed.segment(0..40, &support::records(0..40, 100)).await;
        bed.hole(40..60).await;
        bed.segment(60..100, &support::records(60..100, 100)).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker: SocketAddr = listener.local_addr().unwrap();
        let (log, fetched) = (Arc::new(Mutex::new(log)), Arc::new(Mutex::new(Vec::new())));
        let (log_there, fetched_there) = (Arc::clone(&log), Arc::clone(&fetched));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (log, fetched) = (Arc::clone(&log_there), Arc::clone(&fetched_there));
                tokio::spawn(async move {
                    while let Ok(request) = frame(&mut stream).await {
                        let response = respond(request, *log.lock().unwrap(), &fetched);
                        send(&mut stream, &response).await.unwrap();
                    }
                });
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let config = ProxyConfig {
            bootstrap_servers: broker.to_string(),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            node_ports: BTreeMap::new(),
            topics: TopicSelection::everything(),
            memory_bytes: 64 << 20,
            data_dir: dir.path().to_owned(),
            on_hole: OnHole::Fail,
        };
        let proxy = Proxy::bind(
            config,
            Arc::clone(&bed.archive),
            &prometheus::Registry::new(),
        )
        .await
        .unwrap();
        let (address, shutdown) = (proxy.local_addr(), CancellationToken::new());
        tokio::spawn(proxy.run(shutdown.clone()));
        let client = TcpStream::connect(address).await.unwrap();
        Bench {
            log,
            fetched,
            client,
            bed,
            shutdown,
            _dir: dir,
        }
    }

    async fn ask<A: Decodable>(&mut self, key: ApiKey, version: i16, body: &impl Encodable) -> A {
        let mut request = BytesMut::new();
        let header = RequestHeader::default()
            .with_request_api_key(key as i16)
            .with_request_api_version(version)
            .with_correlation_id(3);
        header
            .encode(&mut request, key.request_header_version(version))
            .unwrap();
        body.encode(&mut request, version).unwrap();
        send(&mut self.client, &request).await.unwrap();
        let mut response = frame(&mut self.client).await.unwrap();
        ResponseHeader::decode(&mut response, key.response_header_version(version)).unwrap();
        A::decode(&mut response, version).unwrap()
    }

    async fn fetch(&mut self, version: i16, offset: i64) -> FetchResponse {
        let partition = FetchPartition::default()
            .with_fetch_offset(offset)
            .with_partition_max_bytes(1 << 20);
        let mut topic = FetchTopic::default().with_partitions(vec![partition]);
        if version >= 13 {
            topic.topic_id = topic_id(*self.log.lock().unwrap());
        } else {
            topic.topic = StrBytes::from_static_str("orders").into();
        }
        let mut request = FetchRequest::default()
            .with_max_wait_ms(300)
            .with_max_bytes(1 << 20)
            .with_topics(vec![topic]);
        request.replica_id = (-1).into();
        self.ask(ApiKey::Fetch, version, &request).await
    }

    async fn partition(&mut self, version: i16, offset: i64) -> PartitionData {
        let mut response = self.fetch(version, offset).await;
        response.responses.remove(0).partitions.remove(0)
    }
}

fn offsets(data: &PartitionData) -> Vec<i64> {
    let bytes = data.records.clone().unwrap();
    decode_batches(&bytes)
        .flat_map(|batch| batch.unwrap().records)
        .map(|record| record.offset)
        .collect()
}

const TRIMMED: Log = Log {
    start: 90,
    end: 120,
    refuse: 0,
    throttle_ms: 0,
    recreated: false,
};

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
        let partition = ListOffsetsPartition::default().with_timestamp(question);
        let topic = ListOffsetsTopic::default()
            .with_name(StrBytes::from_static_str("orders").into())
            .with_partitions(vec![partition]);
        let mut request = ListOffsetsRequest::default().with_topics(vec![topic]);
        request.replica_id = (-1).into();
        for version in [1, 7, 10] {
            let response: ListOffsetsResponse =
                bench.ask(ApiKey::ListOffsets, version, &request).await;
            assert_eq!(
                response.topics[0].partitions[0].offset, wanted,
                "{question} in version {version}"
            );
        }
    }
}
