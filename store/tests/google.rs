//! `gs://` against a server of our own that answers as Google documents its XML API, for want of a better one: the public
//! emulators know neither the condition of a put nor pages of listings there. What it can't show is how the real service
//! behaves.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use everlog_store::contract::{Rounds, check_all};
use everlog_store::{
    Body, Key, RetryPolicy, StoreError, StoreOptions, digest_of, open, probe, probe_read_only,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// Every so many requests are answered 503.
const THROTTLED: u64 = 23;

#[derive(Default)]
struct Bucket {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    requests: AtomicU64,
    unconditional: AtomicU64,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Reply {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
}

const META: &str =
    "etag: \"e\"\r\nx-goog-generation: 1\r\nlast-modified: Sat, 21 Nov 2026 13:00:00 GMT\r\n";

fn error(status: &'static str, code: &str) -> Reply {
    let body =
        format!("<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>");
    Reply {
        status,
        headers: String::new(),
        body: body.into_bytes(),
    }
}

fn done(status: &'static str, headers: String, body: Vec<u8>) -> Reply {
    Reply {
        status,
        headers,
        body,
    }
}

impl Bucket {
    fn answer(&self, request: Request) -> Reply {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        if number % THROTTLED == THROTTLED - 1 {
            return error("503 Service Unavailable", "ServiceUnavailable");
        }
        let Some(path) = request.path.strip_prefix("/lake") else {
            return error("404 Not Found", "NoSuchBucket");
        };
        let mut objects = self.objects.lock().unwrap();
        let Some(name) = path.strip_prefix('/').filter(|name| !name.is_empty()) else {
            return list(&objects, &request.query);
        };
        match request.method.as_str() {
            "PUT" => {
                let condition = request.headers.get("x-goog-if-generation-match");
                if condition.is_none_or(|value| value != "0") {
                    self.unconditional.fetch_add(1, Ordering::Relaxed);
                } else if objects.contains_key(name) {
                    return error("412 Precondition Failed", "PreconditionFailed");
                }
                objects.insert(name.to_owned(), request.body);
                done("200 OK", META.to_owned(), Vec::new())
            }
            "GET" => match objects.get(name) {
                Some(object) => get(object, request.headers.get("range")),
                None => error("404 Not Found", "NoSuchKey"),
            },
            "DELETE" if objects.remove(name).is_some() => {
                done("204 No Content", String::new(), Vec::new())
            }
            "DELETE" => error("404 Not Found", "NoSuchKey"),
            _ => error("405 Method Not Allowed", "MethodNotAllowed"),
        }
    }
}

fn get(object: &[u8], range: Option<&String>) -> Reply {
    let Some(range) = range else {
        return done("200 OK", META.to_owned(), object.to_vec());
    };
    let (first, last) = range
        .strip_prefix("bytes=")
        .unwrap()
        .split_once('-')
        .unwrap();
    let first: usize = first.parse().unwrap();
    let end = object.len().min(last.parse::<usize>().unwrap() + 1);
    if first >= object.len() {
        return error("416 Requested Range Not Satisfiable", "InvalidRange");
    }
    let (last, len) = (end - 1, object.len());
    let headers = format!("{META}content-range: bytes {first}-{last}/{len}\r\n");
    done(
        "206 Partial Content",
        headers,
        object.get(first..end).unwrap().to_vec(),
    )
}

fn list(objects: &BTreeMap<String, Vec<u8>>, query: &BTreeMap<String, String>) -> Reply {
    let text = |name: &str| query.get(name).cloned().unwrap_or_default();
    assert_eq!(text("list-type"), "2");
    let (prefix, token) = (text("prefix"), text("continuation-token"));
    let flat = text("delimiter").is_empty();
    let names: BTreeSet<String> = objects
        .keys()
        .filter_map(|name| {
            let rest = name.strip_prefix(&prefix)?;
            let folder = rest.find('/').filter(|_| !flat)?;
            Some(format!("{prefix}{}/", rest.get(..folder)?))
        })
        .chain(objects.keys().filter_map(|name| {
            let rest = name.strip_prefix(&prefix)?;
            (flat || !rest.contains('/')).then(|| name.clone())
        }))
        .filter(|name| *name > token)
        .collect();
    let max = text("max-keys").parse().unwrap_or(1_000).min(1_000);
    let mut body = "<?xml version='1.0'?><ListBucketResult>".to_owned();
    for name in names.iter().take(max) {
        match objects.get(name) {
            Some(object) => write!(
                body,
                "<Contents><Key>{name}</Key><Size>{}</Size><ETag>\"e\"</ETag>\
                 <LastModified>2026-11-21T13:00:00.000Z</LastModified></Contents>",
                object.len()
            ),
            None => write!(
                body,
                "<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"
            ),
        }
        .unwrap();
    }
    if let Some(last) = names
        .iter()
        .nth(max.saturating_sub(1))
        .filter(|_| names.len() > max)
    {
        write!(
            body,
            "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
        )
        .unwrap();
    }
    body.push_str("</ListBucketResult>");
    done("200 OK", String::new(), body.into_bytes())
}

fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap().to_owned();
    for part in parts {
        let (code, rest) = part.split_at(2);
        decoded.push(u8::from_str_radix(code, 16).unwrap().into());
        decoded.push_str(rest);
    }
    decoded
}

async fn read(socket: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let len = headers.get("content-length").map_or("0", String::as_str);
    let mut body = vec![0; len.parse().unwrap()];
    socket.read_exact(&mut body).await.ok()?;
    Some(Request {
        method,
        path: decoded(path),
        query: pairs
            .map(|(name, value)| (name.to_owned(), decoded(value)))
            .collect(),
        headers,
        body,
    })
}

async fn serve(bucket: Arc<Bucket>, socket: TcpStream) {
    let mut socket = BufReader::new(socket);
    while let Some(request) = read(&mut socket).await {
        let Reply {
            status,
            headers,
            body,
        } = bucket.answer(request);
        let len = body.len();
        let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {len}\r\n\r\n");
        let all = [head.into_bytes(), body].concat();
        if socket.get_mut().write_all(&all).await.is_err() {
            return;
        }
    }
}

/// Starts the server; the other half is its address.
async fn start() -> (Arc<Bucket>, String) {
    let bucket = Arc::new(Bucket::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let shared = Arc::clone(&bucket);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(Arc::clone(&shared), socket));
        }
    });
    (bucket, endpoint)
}

fn options(endpoint: String) -> StoreOptions {
    StoreOptions {
        endpoint_url: Some(endpoint),
        ..StoreOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn google_keeps_the_contract_while_it_throttles() {
    let (bucket, endpoint) = start().await;
    for url in ["gs://lake", "gs://lake/some/prefix"] {
        let store = open(url, options(endpoint.clone())).await.unwrap();
        probe_read_only(store.as_ref()).await.unwrap();
        let report = probe(store.as_ref()).await.unwrap();
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        let rounds = Rounds {
            small: 20,
            large: 3,
        };
        check_all(&store, rounds).await.unwrap();
        let usage = store.usage();
        assert!(usage.retried_requests > 50, "{usage:?}");
    }
    assert_eq!(bucket.unconditional.load(Ordering::Relaxed), 0);
    let objects = bucket.objects.lock().unwrap();
    assert!(
        objects
            .keys()
            .any(|name| name.starts_with("some/prefix/contract/"))
    );
    assert!(objects.keys().all(|name| !name.contains("meta/probe")));
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_no_empty_archive() {
    let (_, endpoint) = start().await;
    let store = open("gs://sea", options(endpoint)).await.unwrap();
    let key = Key::new("everlog.json").unwrap();
    let Err(StoreError::Refused { remedy, .. }) = store.get(&key).await else {
        panic!("not refused")
    };
    assert!(remedy.contains("create the bucket"), "{remedy}");
}

/// The server takes the connection and reads nothing.
#[tokio::test]
async fn an_upload_that_nobody_reads_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let options = StoreOptions {
        endpoint_url: Some(endpoint),
        retry: RetryPolicy {
            stall_max: Duration::from_millis(400),
            pause_max: Duration::from_millis(20),
            total_max: Duration::from_millis(100),
            ..RetryPolicy::default()
        },
        ..StoreOptions::default()
    };
    let store = open("gs://lake", options).await.unwrap();
    // More than the kernel's buffers hold, and four minutes by its size.
    let bytes = Bytes::from(vec![7; 64 * 1024 * 1024]);
    let digest = digest_of(&bytes);
    let key = Key::new("data/a").unwrap();
    let begun = Instant::now();
    let put = store.put_if_absent(&key, Body::Bytes(bytes), digest).await;
    let Err(StoreError::Unavailable { source, .. }) = put else {
        panic!("{put:?}")
    };
    let text = source.to_string();
    assert!(text.contains("bytes were taken"), "{text}");
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    drop(listener);
}
