//! The whole proxy against a scripted broker, over real sockets.

use std::net::SocketAddr;
use std::sync::Mutex;

use bytes::{Bytes, BytesMut};
use everlog_format::TopicSelection;
use everlog_index::ArchiveOptions;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::fetch_request::ReplicaState;
use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::versions::{REVIEWED, Treatment};
use crate::wire::{self, Prefix};

/// A request as the broker saw it, and what it says: a frame from the correlation id on, or nothing.
type Script = dyn Fn(Prefix, Bytes) -> Option<Bytes> + Send + Sync;

struct Broker {
    address: SocketAddr,
    /// Frames from the API key on.
    seen: Arc<Mutex<Vec<Bytes>>>,
}

async fn frame(stream: &mut TcpStream) -> std::io::Result<Bytes> {
    let len = stream.read_i32().await?;
    let mut frame = vec![0; usize::try_from(len).expect("a length")];
    stream.read_exact(&mut frame).await?;
    Ok(frame.into())
}

async fn send(stream: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    let mut bytes = i32::try_from(frame.len())
        .expect("small")
        .to_be_bytes()
        .to_vec();
    bytes.extend_from_slice(frame);
    stream.write_all(&bytes).await
}

impl Broker {
    /// Answers ApiVersions and Metadata like a broker that offers everything; `script` has the first word.
    async fn start(
        script: impl Fn(Prefix, Bytes) -> Option<Bytes> + Send + Sync + 'static,
    ) -> Broker {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, seen) = (
            listener.local_addr().expect("bound"),
            Arc::new(Mutex::new(Vec::new())),
        );
        let (script, log): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (script, log) = (Arc::clone(&script), Arc::clone(&log));
                tokio::spawn(async move {
                    while let Ok(request) = frame(&mut client).await {
                        let prefix = Prefix::read(&request).expect("a request");
                        let answer =
                            script(prefix, request.clone()).or_else(|| usual(prefix, address));
                        log.lock().expect("whole").push(request);
                        if let Some(answer) = answer
                            && send(&mut client, &answer).await.is_err()
                        {
                            return;
                        }
                    }
                });
            }
        });
        Broker { address, seen }
    }

    fn last_seen(&self) -> Bytes {
        self.seen
            .lock()
            .expect("whole")
            .last()
            .cloned()
            .expect("a request")
    }
}

fn usual(prefix: Prefix, address: SocketAddr) -> Option<Bytes> {
    let encoded = match ApiKey::try_from(prefix.key).ok()? {
        ApiKey::ApiVersions => {
            let offer = |key| {
                ApiVersion::default()
                    .with_api_key(key)
                    .with_min_version(0)
                    .with_max_version(50)
            };
            let response =
                ApiVersionsResponse::default().with_api_keys((0..100).map(offer).collect());
            wire::encode_response(
                ApiKey::ApiVersions,
                prefix.version,
                prefix.correlation,
                &response,
            )
        }
        ApiKey::Metadata => {
            let broker = MetadataResponseBroker::default()
                .with_node_id(1.into())
                .with_host(StrBytes::from_static_str("127.0.0.1"))
                .with_port(address.port().into());
            let response = MetadataResponse::default()
                .with_brokers(vec![broker])
                .with_cluster_id((prefix.version >= 2).then(|| StrBytes::from_static_str("c1")));
            wire::encode_response(
                ApiKey::Metadata,
                prefix.version,
                prefix.correlation,
                &response,
            )
        }
        _ => return None,
    };
    Some(encoded.expect("encodable"))
}

struct Running {
    proxy: SocketAddr,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

async fn start(broker: &Broker) -> Running {
    let dir = tempfile::tempdir().expect("a directory");
    let store = everlog_store::open("memory://", Default::default())
        .await
        .expect("a store");
    let options = ArchiveOptions {
        node_cache_dir: None,
        create: true,
    };
    let archive = Archive::open(store, options).await.expect("an archive");
    let config = ProxyConfig {
        bootstrap_servers: broker.address.to_string(),
        listen: "127.0.0.1:0".parse().expect("an address"),
        advertise: Some("proxy.example".to_owned()),
        node_ports: std::collections::BTreeMap::new(),
        topics: TopicSelection::everything(),
        memory_bytes: 64 << 20,
        data_dir: dir.path().to_owned(),
        on_hole: crate::OnHole::Fail,
    };
    let mut proxy = Proxy::bind(config, archive, &Registry::new())
        .await
        .expect("bound");
    let shared = Arc::get_mut(&mut proxy.shared).expect("not yet shared");
    shared.patience = Patience {
        idle: Duration::from_secs(20),
        progress: Duration::from_millis(200),
    };
    shared.first_request = Duration::from_millis(500);
    let (address, shared, shutdown) = (
        proxy.local_addr(),
        Arc::clone(&proxy.shared),
        CancellationToken::new(),
    );
    tokio::spawn(proxy.run(shutdown.clone()));
    Running {
        proxy: address,
        shared,
        shutdown,
        _dir: dir,
    }
}

impl Running {
    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.proxy).await.expect("a connection")
    }
}

/// A request frame with client id "c" around `body`.
fn request(key: i16, version: i16, correlation: i32, body: &[u8]) -> Bytes {
    let flexible = ApiKey::try_from(key).is_ok_and(|key| key.request_header_version(version) >= 2)
        || key >= 88;
    let mut frame = BytesMut::new();
    frame.extend_from_slice(&key.to_be_bytes());
    frame.extend_from_slice(&version.to_be_bytes());
    frame.extend_from_slice(&correlation.to_be_bytes());
    frame.extend_from_slice(&[0, 1, b'c']);
    if flexible {
        frame.extend_from_slice(&[0]);
    }
    frame.extend_from_slice(body);
    frame.freeze()
}

fn encoded<M: Encodable>(version: i16, body: &M) -> Bytes {
    let mut bytes = BytesMut::new();
    body.encode(&mut bytes, version).expect("encodable");
    bytes.freeze()
}

/// A legal body of each API that is not passed blindly.
fn bodies(key: ApiKey, version: i16) -> (Bytes, Bytes) {
    fn both<Q: Encodable, A: Encodable>(version: i16, q: &Q, a: &A) -> (Bytes, Bytes) {
        (encoded(version, q), encoded(version, a))
    }
    match key {
        // Versions 0 to 2 (no transactional id) are not in the codec: acks, timeout, no topics; no topics back.
        ApiKey::Produce if version < 3 => (
            Bytes::from_static(&[0, 1, 0, 0, 0, 9, 0, 0, 0, 0]),
            Bytes::from_static(&[0; 8]),
        ),
        ApiKey::Produce => both(
            version,
            &ProduceRequest::default().with_acks(1),
            &ProduceResponse::default(),
        ),
        ApiKey::Fetch => both(
            version,
            &FetchRequest::default().with_replica_id((-1).into()),
            &FetchResponse::default(),
        ),
        ApiKey::ListOffsets => both(
            version,
            &ListOffsetsRequest::default().with_replica_id((-1).into()),
            &ListOffsetsResponse::default(),
        ),
        ApiKey::Metadata => {
            let topics = if version == 0 { Some(Vec::new()) } else { None };
            (
                encoded(version, &MetadataRequest::default().with_topics(topics)),
                Bytes::new(),
            )
        }
        ApiKey::FindCoordinator => both(
            version,
            &FindCoordinatorRequest::default(),
            &FindCoordinatorResponse::default(),
        ),
        ApiKey::ApiVersions => (
            encoded(version, &ApiVersionsRequest::default()),
            Bytes::new(),
        ),
        ApiKey::OffsetForLeaderEpoch => both(
            version,
            &OffsetForLeaderEpochRequest::default(),
            &OffsetForLeaderEpochResponse::default(),
        ),
        ApiKey::DescribeCluster => both(
            version,
            &DescribeClusterRequest::default().with_endpoint_type(1),
            &DescribeClusterResponse::default().with_endpoint_type(1),
        ),
        ApiKey::ShareFetch => both(
            version,
            &ShareFetchRequest::default(),
            &ShareFetchResponse::default(),
        ),
        ApiKey::ShareAcknowledge => both(
            version,
            &ShareAcknowledgeRequest::default(),
            &ShareAcknowledgeResponse::default(),
        ),
        other => panic!("{other:?} is not passed and has no body here"),
    }
}

#[tokio::test]
async fn every_reviewed_pair_goes_through_and_comes_back() {
    let broker = Broker::start(|prefix, _| {
        let api = versions_of(prefix.key)?;
        let mut answer = prefix.correlation.to_be_bytes().to_vec();
        match api.treatment {
            // Not even a header that the codec would know.
            Treatment::Passed => answer.extend_from_slice(b"anything at all"),
            Treatment::Answered | Treatment::Patched => {
                let key = ApiKey::try_from(prefix.key).expect("decoded");
                if matches!(key, ApiKey::Metadata | ApiKey::ApiVersions) {
                    return None;
                }
                if key.response_header_version(prefix.version) >= 1 {
                    answer.push(0);
                }
                answer.extend_from_slice(&bodies(key, prefix.version).1);
            }
        }
        Some(answer.into())
    })
    .await;
    let running = start(&broker).await;
    let mut client = running.client().await;
    for api in REVIEWED {
        for version in api.min..=api.max {
            let body = match api.treatment {
                Treatment::Passed => Bytes::from_static(b"whatever the client means"),
                _ => bodies(ApiKey::try_from(api.key).expect("decoded"), version).0,
            };
            let correlation = -7 - i32::from(version);
            let asked = request(api.key, version, correlation, &body);
            send(&mut client, &asked).await.expect("written");
            let answer = frame(&mut client)
                .await
                .unwrap_or_else(|e| panic!("{} v{version}: {e}", api.name));
            assert_eq!(
                answer[..4],
                correlation.to_be_bytes(),
                "{} v{version}",
                api.name
            );
            if api.key == ApiKey::SaslHandshake as i16 && version == 0 {
                assert_eq!(answer[4..6], 35i16.to_be_bytes());
                continue;
            }
            let seen = broker.last_seen();
            if api.treatment != Treatment::Answered {
                assert_eq!(
                    (&seen[..4], &seen[8..]),
                    (&asked[..4], &asked[8..]),
                    "{} v{version}",
                    api.name
                );
                assert_ne!(
                    seen[4..8],
                    asked[4..8],
                    "our own correlation ids go upstream"
                );
            }
            if api.treatment == Treatment::Passed {
                assert_eq!(&answer[4..], b"anything at all", "{} v{version}", api.name);
            }
        }
    }
}

fn versions_of(key: i16) -> Option<&'static crate::versions::Reviewed> {
    REVIEWED.iter().find(|api| api.key == key)
}

#[tokio::test]
async fn addresses_lead_to_the_proxy() {
    let broker = Broker::start(|_, _| None).await;
    let running = start(&broker).await;
    let mut client = running.client().await;
    for version in 0..=13 {
        let body = bodies(ApiKey::Metadata, version).0;
        send(&mut client, &request(3, version, 1, &body))
            .await
            .expect("written");
        let answer = frame(&mut client).await.expect("an answer");
        let response: MetadataResponse = wire::decode_response(
            ApiKey::Metadata,
            version,
            &crate::shape::METADATA_RESPONSE,
            &answer,
        )
        .expect("right");
        let [node] = &response.brokers[..] else {
            panic!("one broker")
        };
        assert_eq!((node.node_id.0, &*node.host), (1, "proxy.example"));
        assert_ne!(node.port, i32::from(broker.address.port()));
        let direct =
            TcpStream::connect(("127.0.0.1", u16::try_from(node.port).expect("a port"))).await;
        assert!(direct.is_ok(), "the port is bound");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_acks_0_not_at_all() {
    let broker = Broker::start(|prefix, _| {
        let heartbeat = prefix.key == ApiKey::Heartbeat as i16;
        heartbeat.then(|| Bytes::copy_from_slice(&prefix.correlation.to_be_bytes()))
    })
    .await;
    let running = start(&broker).await;
    let mut client = running.client().await;
    let mut bytes = Vec::new();
    let mut push = |frame: Bytes| {
        bytes.extend_from_slice(&i32::try_from(frame.len()).expect("small").to_be_bytes());
        bytes.extend_from_slice(&frame);
    };
    let records = vec![7; 300_000];
    let mut produce = encoded(9, &ProduceRequest::default().with_acks(0)).to_vec();
    produce.extend_from_slice(&records);
    for correlation in 0..20 {
        match correlation % 4 {
            0 | 1 => push(request(12, 0, correlation, b"group")),
            2 => push(request(
                18,
                3,
                correlation,
                &encoded(3, &ApiVersionsRequest::default()),
            )),
            _ => push(request(0, 9, correlation, &produce)),
        }
    }
    let (mut read, mut write) = client.split();
    let writing = async { write.write_all(&bytes).await.expect("written") };
    let reading = async {
        for correlation in (0..20).filter(|correlation| correlation % 4 != 3) {
            let len = usize::try_from(read.read_i32().await.expect("a length")).expect("a length");
            let mut answer = vec![0; len];
            read.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(answer[..4], i32::to_be_bytes(correlation));
        }
    };
    tokio::join!(writing, reading);
    let produced = broker
        .seen
        .lock()
        .expect("whole")
        .iter()
        .filter(|frame| frame.len() > 300_000)
        .count();
    assert!(produced >= 4, "the records went through whole");
}

#[tokio::test]
async fn a_version_that_is_too_high_is_told_the_range() {
    let broker = Broker::start(|_, _| None).await;
    let running = start(&broker).await;
    let mut client = running.client().await;
    send(&mut client, &request(18, 9, 5, b"a future body"))
        .await
        .expect("written");
    let mut answer = frame(&mut client).await.expect("an answer").slice(4..);
    let response = ApiVersionsResponse::decode(&mut answer, 0).expect("version 0");
    assert_eq!(response.error_code, 35);
    assert_eq!(
        (
            response.api_keys[0].api_key,
            response.api_keys[0].max_version
        ),
        (18, 4)
    );
    send(
        &mut client,
        &request(18, 3, 6, &encoded(3, &ApiVersionsRequest::default())),
    )
    .await
    .expect("written");
    let mut answer = frame(&mut client).await.expect("an answer").slice(4..);
    let response = ApiVersionsResponse::decode(&mut answer, 3).expect("version 3");
    let range = |key| {
        response
            .api_keys
            .iter()
            .find(|api| api.api_key == key)
            .map(|api| (api.min_version, api.max_version))
    };
    assert_eq!(
        (range(0), range(1), range(2), range(27)),
        (Some((0, 13)), Some((4, 18)), Some((1, 10)), None)
    );
}

#[tokio::test]
async fn what_must_be_refused_is() {
    let broker = Broker::start(|_, _| None).await;
    let running = start(&broker).await;
    let mut client = running.client().await;
    let follower = ReplicaState::default().with_replica_id(2.into());
    let body = encoded(16, &FetchRequest::default().with_replica_state(follower));
    send(&mut client, &request(1, 16, 1, &body))
        .await
        .expect("written");
    let answer = frame(&mut client).await.expect("an answer");
    assert_eq!(
        answer[9..11],
        42i16.to_be_bytes(),
        "no archive for followers"
    );
    let mut session = FetchRequest::default()
        .with_session_id(9)
        .with_session_epoch(1);
    session.replica_id = (-1).into();
    send(&mut client, &request(1, 11, 2, &encoded(11, &session)))
        .await
        .expect("written");
    assert_eq!(
        frame(&mut client).await.expect("an answer")[8..10],
        70i16.to_be_bytes(),
        "no session of ours"
    );
    let body = encoded(1, &DescribeClusterRequest::default().with_endpoint_type(2));
    send(&mut client, &request(60, 1, 3, &body))
        .await
        .expect("written");
    assert_eq!(
        frame(&mut client).await.expect("an answer")[9..11],
        114i16.to_be_bytes(),
        "no controllers"
    );
    send(&mut client, &request(52, 0, 4, b"vote"))
        .await
        .expect("written");
    assert!(
        frame(&mut client).await.is_err(),
        "what is not offered closes the connection"
    );
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_ends_the_connection() {
    let broker = Broker::start(|prefix, _| {
        (prefix.key == ApiKey::Heartbeat as i16)
            .then(|| Bytes::copy_from_slice(&(prefix.correlation + 1).to_be_bytes()))
    })
    .await;
    let running = start(&broker).await;
    let mut client = running.client().await;
    send(&mut client, &request(12, 0, 1, b"group"))
        .await
        .expect("written");
    assert!(frame(&mut client).await.is_err());
}

#[tokio::test]
async fn hostile_bytes_close_the_connection_and_nothing_else() {
    let broker = Broker::start(|_, _| None).await;
    let running = start(&broker).await;
    let mut seeds: Vec<Vec<u8>> = vec![
        vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01],
        i32::MAX.to_be_bytes().to_vec(),
        vec![0xff; 64],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0, 0, 0, 100, 0, 3],
        vec![0, 0, 0, 2, 0, 3],
        vec![0, 0],
    ];
    // Frames that begin well: an answered API and then noise, or a claim of two billion topics.
    for (key, version) in [
        (1, 4),
        (1, 17),
        (2, 1),
        (2, 7),
        (18, 3),
        (23, 2),
        (23, 4),
        (60, 0),
    ] {
        for seed in 0..8u64 {
            let noise: Vec<u8> = (0..200)
                .map(|i: u64| (seed.wrapping_mul(31).wrapping_add(i * i) % 251) as u8)
                .collect();
            let body = if seed == 0 { vec![0xff; 40] } else { noise };
            let frame = request(key, version, 1, &body);
            let mut bytes = i32::try_from(frame.len())
                .expect("small")
                .to_be_bytes()
                .to_vec();
            bytes.extend_from_slice(&frame);
            seeds.push(bytes);
        }
    }
    let running = &running;
    let clients = seeds.into_iter().map(|bytes| async move {
        let mut client = running.client().await;
        let _ = client.write_all(&bytes).await;
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(10), client.read_to_end(&mut rest)).await;
        // Noise can be a legal request of an API that answers; what is not is cut off in time.
        assert!(ended.is_ok() || !rest.is_empty(), "{bytes:?}");
    });
    futures::future::join_all(clients).await;
    let mut client = running.client().await;
    send(&mut client, &request(18, 0, 1, b""))
        .await
        .expect("written");
    assert!(frame(&mut client).await.is_ok(), "others are served");
    assert!(
        running
            .shared
            .metrics
            .rejected
            .with_label_values(&["tls"])
            .get()
            == 1
    );
}

#[tokio::test]
async fn a_shutdown_ends_idle_connections() {
    let broker = Broker::start(|_, _| None).await;
    let running = start(&broker).await;
    let mut client = running.client().await;
    send(&mut client, &request(18, 0, 1, b""))
        .await
        .expect("written");
    assert!(frame(&mut client).await.is_ok());
    running.shutdown.cancel();
    assert!(frame(&mut client).await.is_err());
    assert!(
        TcpStream::connect(running.proxy).await.is_err()
            || running.shared.metrics.connections.get() == 0
    );
}

#[tokio::test]
async fn who_never_asks_anything_is_closed_soon() {
    let broker = Broker::start(|_, _| None).await;
    let running = start(&broker).await;
    let (mut silent, mut quiet) = (running.client().await, running.client().await);
    send(&mut quiet, &request(18, 0, 1, b""))
        .await
        .expect("written");
    assert!(frame(&mut quiet).await.is_ok());
    let ended = timeout(Duration::from_secs(5), silent.read(&mut [0; 1])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    send(&mut quiet, &request(18, 0, 2, b""))
        .await
        .expect("written");
    assert!(frame(&mut quiet).await.is_ok(), "who has asked may wait");
}
