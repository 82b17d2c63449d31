//! A proxy between a scripted broker and a client that speaks raw frames.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use everlog_format::{TopicSelection, decode_batches};
use everlog_index::{Archive, ArchiveOptions};
use everlog_proxy::{OnHole, Proxy, ProxyConfig};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support;

/// How the broker of the topic orders behaves, whatever the partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// An error for every fetch.
    pub(crate) refuse: i16,
    pub(crate) throttle_ms: i32,
    /// Another life of the topic than the archive knows.
    pub(crate) recreated: bool,
    /// Metadata does not know the topic, though fetches are answered.
    pub(crate) untold: bool,
    /// Partition 0 is left out of fetch answers.
    pub(crate) omits: bool,
    /// Topics have no ids.
    pub(crate) idless: bool,
    /// What a question for a time or the largest timestamp is answered with.
    pub(crate) by_time: i64,
    /// Zeros behind the records of each partition.
    pub(crate) more_bytes: usize,
    /// How many partitions Metadata tells of, whatever is asked of the others.
    pub(crate) partitions: i32,
    /// The newest version of Fetch.
    pub(crate) fetch_max: i16,
}

pub(crate) const LIVE: &[u8] = b"records of the cluster";

/// Where the proxy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Where the archiver does, which tells it of its commits.
    Together,
    Apart,
}

pub(crate) struct Bench {
    pub(crate) log: Arc<Mutex<Log>>,
    /// Offset and partition_max_bytes of each fetched partition.
    pub(crate) fetched: Arc<Mutex<Vec<(i64, i32)>>>,
    /// `max_bytes` of the last fetch.
    pub(crate) max_bytes: Arc<Mutex<i32>>,
    client: TcpStream,
    proxy: SocketAddr,
    registry: prometheus::Registry,
    pub(crate) bed: support::Bed,
    _dir: tempfile::TempDir,
}

async fn frame(stream: &mut TcpStream) -> std::io::Result<Bytes> {
    let len = stream.read_i32().await?;
    let mut frame = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut frame).await?;
    Ok(frame.into())
}

/// In one piece: two would wait for each other's acknowledgement.
async fn send(stream: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    let mut bytes = i32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(frame);
    stream.write_all(&bytes).await
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
    if log.idless {
        uuid::Uuid::nil()
    } else if log.recreated {
        uuid::Uuid::from_u128(7)
    } else {
        archived
    }
}

fn respond(
    mut request: Bytes,
    log: Log,
    fetched: &Mutex<Vec<(i64, i32)>>,
    max_bytes: &Mutex<i32>,
) -> Bytes {
    let key = ApiKey::try_from(i16::from_be_bytes([request[0], request[1]])).unwrap();
    let version = i16::from_be_bytes([request[2], request[3]]);
    let header = RequestHeader::decode(&mut request, key.request_header_version(version)).unwrap();
    let correlation = header.correlation_id;
    match key {
        ApiKey::ApiVersions => {
            let offer = |key| {
                let is_fetch = key == ApiKey::Fetch as i16;
                let max = if is_fetch { log.fetch_max } else { 50 };
                ApiVersion::default()
                    .with_api_key(key)
                    .with_max_version(max)
            };
            let response =
                ApiVersionsResponse::default().with_api_keys((0..100).map(offer).collect());
            answer(key, version, correlation, &response)
        }
        ApiKey::Metadata => {
            let asked = MetadataRequest::decode(&mut request, version)
                .unwrap()
                .topics
                .unwrap_or_default();
            let known = |asked: &MetadataRequestTopic| {
                if log.untold {
                    return MetadataResponseTopic::default()
                        .with_error_code(if asked.name.is_some() { 3 } else { 100 })
                        .with_name(asked.name.clone())
                        .with_topic_id(asked.topic_id);
                }
                if asked.name.is_none() && asked.topic_id != topic_id(log) {
                    return MetadataResponseTopic::default()
                        .with_error_code(100)
                        .with_topic_id(asked.topic_id);
                }
                let partition =
                    |index| MetadataResponsePartition::default().with_partition_index(index);
                MetadataResponseTopic::default()
                    .with_name(Some(StrBytes::from_static_str("orders").into()))
                    .with_topic_id(topic_id(log))
                    .with_partitions((0..log.partitions).map(partition).collect())
            };
            let response = MetadataResponse::default()
                .with_cluster_id(Some(StrBytes::from_static_str("test-cluster")))
                .with_topics(asked.iter().map(known).collect());
            answer(key, version, correlation, &response)
        }
        ApiKey::ListOffsets => {
            let asked = ListOffsetsRequest::decode(&mut request, version).unwrap();
            let one = |asked: &ListOffsetsPartition| {
                ListOffsetsPartitionResponse::default()
                    .with_partition_index(asked.partition_index)
                    .with_offset(match asked.timestamp {
                        -1 => log.end,
                        -2 => log.start,
                        _ => log.by_time,
                    })
            };
            let partitions = asked.topics[0].partitions.iter().map(one).collect();
            let topic = ListOffsetsTopicResponse::default()
                .with_name(asked.topics[0].name.clone())
                .with_partitions(partitions);
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
            *max_bytes.lock().unwrap() = asked.max_bytes;
            let mut response = FetchResponse::default().with_throttle_time_ms(log.throttle_ms);
            for topic in asked.topics.iter().filter(|_| log.throttle_ms == 0) {
                let one = |asked: &FetchPartition| {
                    fetched
                        .lock()
                        .unwrap()
                        .push((asked.fetch_offset, asked.partition_max_bytes));
                    let is_other = version >= 13 && topic.topic_id != topic_id(log);
                    let refuse = if is_other { 100 } else { log.refuse };
                    serve(asked, Log { refuse, ..log })
                };
                let told = |asked: &&FetchPartition| !log.omits || asked.partition != 0;
                response.responses.push(
                    FetchableTopicResponse::default()
                        .with_topic(topic.topic.clone())
                        .with_topic_id(topic.topic_id)
                        .with_partitions(topic.partitions.iter().filter(told).map(one).collect()),
                );
            }
            answer(key, version, correlation, &response)
        }
        ApiKey::OffsetForLeaderEpoch => {
            let asked = OffsetForLeaderEpochRequest::decode(&mut request, version).unwrap();
            // The epochs below 7 are forgotten: the answer is where that one starts.
            let one = |asked: &OffsetForLeaderPartition| {
                EpochEndOffset::default()
                    .with_partition(asked.partition)
                    .with_leader_epoch(asked.leader_epoch)
                    .with_end_offset(log.start)
            };
            let topic = OffsetForLeaderTopicResult::default()
                .with_topic(asked.topics[0].topic.clone())
                .with_partitions(asked.topics[0].partitions.iter().map(one).collect());
            let response = OffsetForLeaderEpochResponse::default().with_topics(vec![topic]);
            answer(key, version, correlation, &response)
        }
        other => panic!("{other:?} is not in the script"),
    }
}

fn serve(asked: &FetchPartition, log: Log) -> PartitionData {
    let offset = asked.fetch_offset;
    let out_of_range = offset < log.start || log.end < offset;
    let error = if log.refuse != 0 {
        log.refuse
    } else {
        i16::from(out_of_range)
    };
    let mut data = PartitionData::default()
        .with_partition_index(asked.partition)
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
            let mut records = LIVE.to_vec();
            records.resize(LIVE.len() + log.more_bytes, 0);
            data.records = Some(records.into());
        }
    }
    // Versions before 5 are not used here.
    data
}

impl Bench {
    /// The archive holds [0, 100), with a hole at [40, 60).
    pub(crate) async fn start(log: Log) -> Bench {
        Bench::with(log, OnHole::Fail).await
    }

    pub(crate) async fn with(log: Log, on_hole: OnHole) -> Bench {
        Bench::build(log, on_hole, Place::Together, true).await
    }

    /// The proxy in a process of its own: nobody tells it what is committed.
    pub(crate) async fn apart(log: Log) -> Bench {
        Bench::build(log, OnHole::Fail, Place::Apart, true).await
    }

    /// As [`Bench::apart`], with an archive that knows the topic and has nothing of it yet.
    pub(crate) async fn empty(log: Log) -> Bench {
        Bench::build(log, OnHole::Fail, Place::Apart, false).await
    }

    async fn build(log: Log, on_hole: OnHole, place: Place, is_filled: bool) -> Bench {
        let mut bed = support::Bed::new().await;
        if is_filled {
            bed.segment(0..40, &support::records(0..40, 100)).await;
            bed.hole(40..60).await;
            bed.segment(60..100, &support::records(60..100, 100)).await;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker: SocketAddr = listener.local_addr().unwrap();
        let (log, fetched) = (Arc::new(Mutex::new(log)), Arc::new(Mutex::new(Vec::new())));
        let max_bytes = Arc::new(Mutex::new(0));
        let (log_there, fetched_there) = (Arc::clone(&log), Arc::clone(&fetched));
        let max_bytes_there = Arc::clone(&max_bytes);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (log, fetched) = (Arc::clone(&log_there), Arc::clone(&fetched_there));
                let max_bytes = Arc::clone(&max_bytes_there);
                tokio::spawn(async move {
                    while let Ok(request) = frame(&mut stream).await {
                        let log = *log.lock().unwrap();
                        let response = respond(request, log, &fetched, &max_bytes);
                        if send(&mut stream, &response).await.is_err() {
                            // The proxy has given its client up.
                            return;
                        }
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
            on_hole,
        };
        let archive = if place == Place::Apart {
            let store = Arc::clone(&bed.store) as Arc<dyn everlog_store::Store>;
            Archive::open(store, ArchiveOptions::default())
                .await
                .unwrap()
        } else {
            Arc::clone(&bed.archive)
        };
        let registry = prometheus::Registry::new();
        let proxy = Proxy::bind(config, archive, &registry).await.unwrap();
        let address = proxy.local_addr();
        // Until the test's runtime ends.
        tokio::spawn(proxy.run(CancellationToken::new()));
        let client = TcpStream::connect(address).await.unwrap();
        Bench {
            log,
            fetched,
            max_bytes,
            client,
            proxy: address,
            registry,
            bed,
            _dir: dir,
        }
    }

    pub(crate) async fn ask<A: Decodable>(
        &mut self,
        key: ApiKey,
        version: i16,
        body: &impl Encodable,
    ) -> A {
        self.begin(key, version, body).await;
        let mut response = frame(&mut self.client).await.unwrap();
        ResponseHeader::decode(&mut response, key.response_header_version(version)).unwrap();
        A::decode(&mut response, version).unwrap()
    }

    /// Sends a request and does not look at the answer.
    pub(crate) async fn begin(&mut self, key: ApiKey, version: i16, body: &impl Encodable) {
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
    }

    /// Goes on with a new connection; gives the old one.
    pub(crate) async fn reconnect(&mut self) -> TcpStream {
        let fresh = TcpStream::connect(self.proxy).await.unwrap();
        std::mem::replace(&mut self.client, fresh)
    }

    /// Failures of the archive of one kind so far.
    pub(crate) fn failures(&self, kind: &str) -> f64 {
        let families = self.registry.gather();
        let failures = families
            .iter()
            .find(|family| family.name() == "everlog_proxy_archive_failures_total");
        let metrics = failures.map_or(&[][..], |family| family.get_metric());
        let is_kind = |metric: &&prometheus::proto::Metric| {
            metric.get_label().iter().any(|label| label.value() == kind)
        };
        let metric = metrics.iter().find(is_kind);
        metric.map_or(0.0, |metric| metric.get_counter().get_value())
    }

    pub(crate) async fn fetch(&mut self, version: i16, offset: i64) -> FetchResponse {
        self.fetch_all(version, &[(0, offset)], 1 << 20).await
    }

    /// Fetches partitions, each at an offset.
    pub(crate) async fn fetch_all(
        &mut self,
        version: i16,
        wanted: &[(i32, i64)],
        max_bytes: i32,
    ) -> FetchResponse {
        let request = self.fetch_request(version, wanted, max_bytes);
        self.ask(ApiKey::Fetch, version, &request).await
    }

    pub(crate) fn fetch_request(
        &self,
        version: i16,
        wanted: &[(i32, i64)],
        max_bytes: i32,
    ) -> FetchRequest {
        let partition = |(partition, offset): &(i32, i64)| {
            FetchPartition::default()
                .with_partition(*partition)
                .with_fetch_offset(*offset)
                .with_partition_max_bytes(max_bytes)
        };
        let mut topic =
            FetchTopic::default().with_partitions(wanted.iter().map(partition).collect());
        if version >= 13 {
            topic.topic_id = topic_id(*self.log.lock().unwrap());
        } else {
            topic.topic = StrBytes::from_static_str("orders").into();
        }
        let mut request = FetchRequest::default()
            .with_max_wait_ms(300)
            .with_max_bytes(max_bytes)
            .with_topics(vec![topic]);
        request.replica_id = (-1).into();
        request
    }

    pub(crate) async fn earliest(&mut self, version: i16) -> (i16, i64) {
        self.list_offsets(version, -2).await
    }

    /// Error code and offset.
    pub(crate) async fn list_offsets(&mut self, version: i16, question: i64) -> (i16, i64) {
        let partition = ListOffsetsPartition::default().with_timestamp(question);
        let topic = ListOffsetsTopic::default()
            .with_name(StrBytes::from_static_str("orders").into())
            .with_partitions(vec![partition]);
        let mut request = ListOffsetsRequest::default().with_topics(vec![topic]);
        request.replica_id = (-1).into();
        let response: ListOffsetsResponse = self.ask(ApiKey::ListOffsets, version, &request).await;
        let answer = &response.topics[0].partitions[0];
        (answer.error_code, answer.offset)
    }

    pub(crate) async fn partition(&mut self, version: i16, offset: i64) -> PartitionData {
        let mut response = self.fetch(version, offset).await;
        response.responses.remove(0).partitions.remove(0)
    }
}

pub(crate) fn offsets(data: &PartitionData) -> Vec<i64> {
    let bytes = data.records.clone().unwrap();
    decode_batches(&bytes)
        .flat_map(|batch| batch.unwrap().records)
        .map(|record| record.offset)
        .collect()
}

pub(crate) const TRIMMED: Log = Log {
    start: 90,
    end: 120,
    refuse: 0,
    throttle_ms: 0,
    recreated: false,
    untold: false,
    omits: false,
    idless: false,
    by_time: -1,
    more_bytes: 0,
    partitions: 1_000,
    fetch_max: 50,
};
