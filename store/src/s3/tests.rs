//! S3 answers, good and bad, by a scripted server on loopback.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::{RetryPolicy, S3Credentials, digest_of};

/// What the server does with one request.
#[derive(Clone, Debug)]
enum Reply {
    /// Status line and headers without the length, and the body.
    Answer(&'static str, &'static str),
    /// As `Answer`, but promises this many bytes and then hangs up.
    Short(&'static str, &'static str, usize),
    /// Hangs up without a word.
    HangUp,
    /// Reads only the head, and never answers.
    Ignore,
    /// Reads a MiB every 80 ms and answers 200.
    ReadSlowly,
    /// Sends the head, and never the body.
    Stall(usize),
}

const NO_SUCH_KEY: Reply = Reply::Answer("404 Not Found", "<Error><Code>NoSuchKey</Code></Error>");
const SLOW_DOWN: Reply = Reply::Answer("503 Slow Down", "<Error><Code>SlowDown</Code></Error>");
const DENIED: Reply = Reply::Answer("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>");
const TAKEN: Reply = Reply::Answer(
    "412 Precondition Failed",
    "<Error><Code>PreconditionFailed</Code></Error>",
);
const CONFLICT: Reply = Reply::Answer(
    "409 Conflict",
    "<Error><Code>ConditionalRequestConflict</Code></Error>",
);
const DONE: Reply = Reply::Answer("200 OK", "");

struct Server {
    store: S3Store,
    /// The heads of all requests, in lower case.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Gives the replies one after the other, the last for ever.
    async fn start(replies: Vec<Reply>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, replies.clone(), Arc::clone(&seen)));
            }
        });
        let options = StoreOptions {
            region: Some("us-east-1".to_owned()),
            endpoint_url: Some(format!("http://127.0.0.1:{port}")),
            credentials: Some(S3Credentials {
                access_key_id: "test".to_owned(),
                secret_access_key: "test".to_owned(),
                session_token: None,
            }),
            retry: RetryPolicy {
                answer_max: Duration::from_millis(400),
                bytes_per_second_min: 1024 * 1024,
                stall_max: Duration::from_millis(400),
                pause_first: Duration::from_millis(5),
                pause_max: Duration::from_millis(20),
                total_max: Duration::from_secs(1),
            },
            ..StoreOptions::default()
        };
        Server {
            store: S3Store::open("lake", "deep/er", &options).await.unwrap(),
            heads,
        }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve(mut socket: TcpStream, replies: Vec<Reply>, heads: Arc<Mutex<Vec<String>>>) {
    loop {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            let Ok(byte) = socket.read_u8().await else {
                return;
            };
            bytes.push(byte);
        }
        let head = String::from_utf8(bytes).unwrap().to_lowercase();
        let reply = {
            let mut heads = heads.lock().unwrap();
            heads.push(head.clone());
            replies
                .get(heads.len() - 1)
                .or(replies.last())
                .cloned()
                .unwrap()
        };
        if matches!(reply, Reply::Ignore) {
            std::future::pending::<()>().await;
        }
        let len = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let len: usize = len.map_or(0, |len| len.parse().unwrap());
        let mut body = vec![0; len];
        for piece in body.chunks_mut(1024 * 1024) {
            if matches!(reply, Reply::ReadSlowly) {
                tokio::time::sleep(Duration::from_millis(80)).await;
            }
            if socket.read_exact(piece).await.is_err() {
                return;
            }
        }
        let write = |status: &str, len: usize, body: &str| {
            format!("HTTP/1.1 {status}\r\ncontent-length: {len}\r\n\r\n{body}")
        };
        let _sent = match reply {
            Reply::ReadSlowly => socket.write_all(write("200 OK", 0, "").as_bytes()).await,
            Reply::Answer(status, body) => {
                socket
                    .write_all(write(status, body.len(), body).as_bytes())
                    .await
            }
            Reply::Short(status, body, len) => {
                let _sent = socket.write_all(write(status, len, body).as_bytes()).await;
                return;
            }
            Reply::Stall(len) => {
                let _sent = socket
                    .write_all(write("206 Partial Content", len, "").as_bytes())
                    .await;
                std::future::pending().await
            }
            Reply::HangUp | Reply::Ignore => return,
        };
    }
}

fn key() -> Key {
    Key::new("a/b").unwrap()
}

async fn put(server: &Server, len: usize) -> Result<Put, StoreError> {
    let bytes = Bytes::from(vec![7; len]);
    let digest = digest_of(&bytes);
    server
        .store
        .put_if_absent(&key(), Body::Bytes(bytes), digest)
        .await
}

#[tokio::test]
async fn a_put_is_conditional_single_and_carries_its_hash() {
    let server = Server::start(vec![DONE]).await;
    assert_eq!(put(&server, 3).await.unwrap(), Put::Created);
    let heads = server.heads();
    let head = heads.first().unwrap();
    assert!(head.starts_with("put /lake/deep/er/a/b"), "{head}");
    assert!(head.contains("if-none-match: *\r\n"), "{head}");
    assert!(
        head.contains("x-amz-checksum-sha256: ") && head.contains("content-length: 3\r\n"),
        "{head}"
    );
    assert!(
        !head.contains("crc32") && !head.contains("aws-chunked"),
        "{head}"
    );
    assert_eq!(server.store.usage().bytes_written, 3);
}

#[tokio::test]
async fn both_words_for_taken_are_a_refusal_and_are_not_repeated() {
    for reply in [TAKEN, CONFLICT] {
        let server = Server::start(vec![reply]).await;
        assert_eq!(put(&server, 3).await.unwrap(), Put::Refused);
        assert_eq!(server.heads().len(), 1);
    }
}

/// The answer to the first try is lost, the second meets the object that the first has made.
#[tokio::test]
async fn a_put_repeated_after_a_lost_answer_ends_as_a_refusal() {
    let server = Server::start(vec![Reply::HangUp, TAKEN]).await;
    assert_eq!(put(&server, 3).await.unwrap(), Put::Refused);
    let usage = server.store.usage();
    assert_eq!((usage.write_requests, usage.retried_requests), (2, 1));
}

#[tokio::test]
async fn throttling_lost_connections_and_silence_are_tried_again() {
    let answer = Reply::Answer("200 OK", "hello");
    for trouble in [
        SLOW_DOWN,
        Reply::HangUp,
        Reply::Ignore,
        Reply::Short("200 OK", "he", 5),
        Reply::Stall(5),
    ] {
        let server = Server::start(vec![trouble.clone(), trouble.clone(), answer.clone()]).await;
        let found = server.store.get(&key()).await;
        assert_eq!(found.unwrap().as_ref(), b"hello", "{trouble:?}");
        assert_eq!(server.store.usage().retried_requests, 2, "{trouble:?}");
    }
}

#[tokio::test]
async fn an_outage_ends_in_unavailable_within_bounded_time() {
    for trouble in [SLOW_DOWN, Reply::HangUp, Reply::Ignore, Reply::Stall(5)] {
        let server = Server::start(vec![trouble.clone()]).await;
        let begun = Instant::now();
        let found = server.store.get_range(&key(), 0..5).await;
        assert!(
            matches!(found, Err(StoreError::Unavailable { .. })),
            "{trouble:?}: {found:?}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{trouble:?}: {:?}",
            begun.elapsed()
        );
    }
}

/// Uploads used to be able to hang for ever in other archivers: the server takes no byte and says nothing.
#[tokio::test]
async fn an_upload_that_nobody_reads_ends() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 * 1024 * 1024).unwrap();
    let len = 64 * 1024 * 1024;
    let body = Body::File {
        path: file.path().to_owned(),
        len,
    };
    // More than the kernel's buffers hold.
    let bodies = [Body::Bytes(Bytes::from(vec![7; 64 * 1024 * 1024])), body];
    for body in bodies {
        let server = Server::start(vec![Reply::Ignore]).await;
        let begun = Instant::now();
        let done = server.store.put_if_absent(&key(), body, [7; 32]).await;
        let Err(StoreError::Unavailable { source, .. }) = done else {
            panic!("{done:?}")
        };
        let text = source.to_string();
        assert!(text.contains("bytes were taken"), "{text}");
        // Three tries that end 0.4 s after the last byte. The deadline by size is 64 s for each.
        assert_eq!(server.heads().len(), 3);
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{:?}",
            begun.elapsed()
        );
    }
}

/// The server reads one piece now and then: slower than `stall_max` for the whole, but never still.
#[tokio::test]
async fn an_upload_that_is_slow_but_moves_is_not_given_up() {
    let server = Server::start(vec![Reply::ReadSlowly]).await;
    let begun = Instant::now();
    assert_eq!(put(&server, 24 * 1024 * 1024).await.unwrap(), Put::Created);
    assert!(
        begun.elapsed() > 2 * Duration::from_millis(400),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(server.heads().len(), 1);
}

#[tokio::test]
async fn only_no_such_key_is_absent() {
    let server = Server::start(vec![NO_SUCH_KEY]).await;
    assert!(matches!(
        server.store.get(&key()).await,
        Err(StoreError::NotFound { .. })
    ));
    server.store.delete(&key()).await.unwrap();
    let replies = [
        DENIED,
        Reply::Answer("404 Not Found", ""),
        Reply::Answer("404 Not Found", "<html>nginx</html>"),
        Reply::Answer("404 Not Found", "<Error><Code>NoSuchBucket</Code></Error>"),
    ];
    for reply in replies {
        let server = Server::start(vec![reply.clone()]).await;
        let found = server.store.get(&key()).await;
        assert!(
            matches!(found, Err(StoreError::Refused { .. })),
            "{reply:?}: {found:?}"
        );
        assert_eq!(server.heads().len(), 1, "a refusal is not repeated");
    }
}

#[tokio::test]
async fn a_denied_read_says_what_right_is_missing_and_why() {
    let server = Server::start(vec![DENIED]).await;
    let Err(StoreError::Refused { remedy, source, .. }) = server.store.get(&key()).await else {
        panic!("not refused")
    };
    assert!(
        remedy.contains("s3:ListBucket") && remedy.contains("lake"),
        "{remedy}"
    );
    assert!(source.to_string().contains("403"), "{source}");
}

#[tokio::test]
async fn a_server_that_ignores_the_range_or_has_less_is_refused() {
    let server = Server::start(vec![Reply::Answer("200 OK", "0123456789")]).await;
    let found = server.store.get_range(&key(), 2..4).await;
    assert!(
        matches!(&found, Err(StoreError::Refused { remedy, .. }) if remedy.contains("Range")),
        "{found:?}"
    );
    let server = Server::start(vec![Reply::Answer("206 Partial Content", "01")]).await;
    let found = server.store.get_range(&key(), 2..6).await;
    assert!(
        matches!(&found, Err(StoreError::Refused { remedy, .. }) if remedy.contains("verify")),
        "{found:?}"
    );
    assert!(
        server
            .heads()
            .iter()
            .all(|head| head.contains("range: bytes=2-5\r\n"))
    );
}

#[tokio::test]
async fn a_listing_cut_short_without_a_token_is_refused() {
    let body = "<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>deep/er/x/1</Key><Size>3</Size></Contents>\
                <Contents><Key>deep/er/x/</Key><Size>0</Size></Contents></ListBucketResult>";
    let server = Server::start(vec![Reply::Answer("200 OK", body)]).await;
    assert!(matches!(
        server.store.list("x", true, None).await,
        Err(StoreError::Refused { .. })
    ));
}

#[tokio::test]
async fn markers_of_folders_are_no_objects() {
    let body = "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>deep/er/x/1</Key><Size>3</Size></Contents>\
                <Contents><Key>deep/er/x/</Key><Size>0</Size></Contents></ListBucketResult>";
    let server = Server::start(vec![Reply::Answer("200 OK", body)]).await;
    let page = server.store.list("x", true, None).await.unwrap();
    assert_eq!(page.objects, [(Key::new("x/1").unwrap(), 3)]);
    assert!(
        server
            .heads()
            .first()
            .unwrap()
            .contains("prefix=deep%2fer%2fx%2f"),
        "{:?}",
        server.heads()
    );
    assert!(
        !server.store.lists_in_key_order(),
        "nothing is known of this store's order"
    );
}

/// The words were followed by a struct of the SDK's with the same words in it.
#[tokio::test]
async fn an_answer_is_told_in_the_stores_words_and_not_as_a_struct() {
    let body = "<Error><Code>AccessDenied</Code><Message>not you</Message></Error>";
    for (status, body, told) in [
        (
            "403 Forbidden\r\nx-amz-request-id: R1",
            body,
            "status 403: AccessDenied: not you (request R1)",
        ),
        ("403 Forbidden", "", "status 403"),
    ] {
        let server = Server::start(vec![Reply::Answer(status, body)]).await;
        let found = server.store.list_first("x", 1).await;
        let Err(StoreError::Refused { source, .. }) = found else {
            panic!("{found:?}")
        };
        assert_eq!(source.to_string(), told);
    }
}

/// The list of the places that were looked at has a line for each, and stood behind words on a dispatch failure and a provider
/// that was not enabled.
#[test]
fn an_error_of_the_credentials_is_one_line_without_the_sdks_own_words() {
    use aws_credential_types::provider::error::CredentialsError;
    use aws_sdk_s3::operation::get_object::GetObjectError;
    let list = "nothing found. Attempted:\n  Environment: no variable\n  Profile: no file\n";
    for error in [
        CredentialsError::not_loaded(list),
        CredentialsError::provider_error(list),
    ] {
        let error = SdkError::<GetObjectError, HttpResponse>::construction_failure(error);
        assert_eq!(
            Readable::new(&error).to_string(),
            "nothing found. Attempted: Environment: no variable; Profile: no file"
        );
    }
}
