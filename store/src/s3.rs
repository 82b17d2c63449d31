//! `s3://bucket/prefix`, by the AWS SDK with its whole chain of credentials and settings.
//!
//! The SDK's own retries are off: [`crate::retry`] repeats, so that a repeated put is known as one. Uploads are always a
//! single PutObject with the SHA-256 given (`x-amz-checksum-sha256`), which S3 checks; of a multipart upload it
//! would keep a checksum of checksums. Files are streamed.

mod answer;
mod connect;
#[cfg(test)]
mod tests;
mod watch;

use std::error::Error as _;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::primitives::{ByteStream, Length};
use base64::Engine as _;
use bytes::{Bytes, BytesMut};

use self::answer::{Answer, find_credentials_error, judge};
use self::watch::WatchUpload;
use crate::body::{too_short, unreadable, wrong_length};
use crate::chain;
use crate::listing::{PAGE_KEYS_MAX, with_slash};
use crate::retry::{Failure, Retry, What, within};
use crate::upload::Progress;
use crate::{Body, Digest, Key, ListPage, OpenError, Put, Store, StoreError, StoreOptions, Usage};

/// S3 takes no more in one PutObject.
const PUT_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;
/// Read from a file at once while it goes up.
const FILE_BUFFER_BYTES: usize = 256 * 1024;
/// Room made for a body before the first byte, whatever the server says of its length.
const RESERVED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Objects in a bucket, below a prefix.
#[derive(Debug)]
pub(crate) struct S3Store {
    url: String,
    client: Client,
    bucket: String,
    /// With a slash at its end, or empty.
    prefix: String,
    in_key_order: bool,
    retry: Retry,
    /// A request has succeeded. From then on credentials that can't be loaded are a passing trouble (of the instance's
    /// metadata service, for one) and no longer a mistake in the set-up.
    proven: AtomicBool,
}

impl S3Store {
    pub(crate) async fn open(
        bucket: &str,
        prefix: &str,
        options: &StoreOptions,
    ) -> Result<S3Store, OpenError> {
        let url = if prefix.is_empty() {
            format!("s3://{bucket}")
        } else {
            format!("s3://{bucket}/{prefix}")
        };
        let connection = Box::pin(connect::connect(&url, bucket, options)).await?;
        Ok(S3Store {
            url,
            client: connection.client,
            bucket: bucket.to_owned(),
            prefix: with_slash(prefix),
            in_key_order: connection.in_key_order,
            retry: Retry::new(options.retry),
            proven: AtomicBool::new(false),
        })
    }

    fn name(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    /// What an error of the SDK means for the caller.
    fn failure<E>(&self, what: What<'_>, error: SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let answer = match &error {
            SdkError::ServiceError(service) => Answer {
                status: Some(service.raw().status().as_u16()),
                code: service.err().code().map(str::to_owned),
                region: service
                    .raw()
                    .headers()
                    .get("x-amz-bucket-region")
                    .map(str::to_owned),
                ..Answer::default()
            },
            SdkError::ResponseError(response) => Answer {
                status: Some(response.raw().status().as_u16()),
                ..Answer::default()
            },
            other => Answer::without_response(other),
        };
        judge(
            what,
            &self.bucket,
            &answer,
            self.proven.load(Ordering::Relaxed),
            Box::new(Readable::new(&error)),
        )
    }

    async fn fetch(&self, key: &Key, range: Option<&Range<u64>>) -> Result<Bytes, Failure> {
        let policy = &self.retry.policy;
        let what = What::Get(key);
        let request = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.name(key))
            .set_range(
                range.map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1))),
            );
        let sent = async {
            request
                .send()
                .await
                .map_err(|error| self.failure(what, error))
        };
        let response = within(policy.answer_max, "the answer", sent).await?;
        self.proven.store(true, Ordering::Relaxed);
        let len = response
            .content_length
            .and_then(|len| u64::try_from(len).ok());
        let expected = match range {
            Some(range) => Some(range.end - range.start),
            None => len,
        };
        if let (Some(range), Some(len)) = (range, len)
            && len != range.end - range.start
        {
            return Err(wrong_range(key, range, len));
        }
        let limit = policy.transfer_max(expected.unwrap_or(PUT_BYTES_MAX)) + policy.answer_max;
        let received = self.receive(response.body, expected);
        let bytes = within(limit, "the body", received).await?;
        match expected {
            Some(expected) if bytes.len() as u64 != expected => Err(Failure::transient(format!(
                "the body ended after {} of {expected} bytes",
                bytes.len()
            ))),
            _ => Ok(bytes),
        }
    }

    /// The body, copied once from the connection's buffers into one piece.
    async fn receive(&self, mut body: ByteStream, expected: Option<u64>) -> Result<Bytes, Failure> {
        let stall_max = self.retry.policy.stall_max;
        let room = usize::try_from(expected.unwrap_or(0).min(RESERVED_BYTES_MAX)).unwrap_or(0);
        let mut bytes = BytesMut::with_capacity(room);
        loop {
            let next = async { body.next().await.transpose().map_err(Failure::transient) };
            let Some(chunk) = within(stall_max, "the next piece of the body", next).await? else {
                return Ok(bytes.freeze());
            };
            self.retry.counters.read_bytes(chunk.len());
            if expected.is_some_and(|expected| (bytes.len() + chunk.len()) as u64 > expected) {
                return Err(Failure::transient(
                    "the body is longer than its length says",
                ));
            }
            bytes.extend_from_slice(&chunk);
        }
    }

    async fn send(&self, key: &Key, body: &Body, checksum: &str) -> Result<Put, Failure> {
        let what = What::Put(key);
        let stream = match body {
            Body::Bytes(bytes) => ByteStream::from(bytes.clone()),
            Body::File { path, len } => {
                let stream = ByteStream::read_from()
                    .path(path)
                    .length(Length::Exact(*len));
                let stream = stream.buffer_size(FILE_BUFFER_BYTES).build().await;
                stream.map_err(|error| refusal(unreadable(key, std::io::Error::other(error))))?
            }
        };
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.name(key))
            .if_none_match("*")
            .checksum_sha256(checksum)
            .content_length(i64::try_from(body.len()).unwrap_or(i64::MAX))
            .body(stream);
        let progress = Progress::new(body.len());
        let sent = request
            .customize()
            .interceptor(WatchUpload::new(&progress))
            .send();
        let result = match progress.watch(&self.retry.policy, sent).await? {
            Ok(_) => Put::Created,
            // 412: taken. 409: another put of this key is under way. Both prove nothing, see `Put`.
            Err(error)
                if matches!(
                    error.raw_response().map(|raw| raw.status().as_u16()),
                    Some(409 | 412)
                ) =>
            {
                Put::Refused
            }
            Err(error) => return Err(self.failure(what, error)),
        };
        self.proven.store(true, Ordering::Relaxed);
        self.retry.counters.wrote_bytes(body.len());
        Ok(result)
    }

    async fn page(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<&str>,
        limit: usize,
    ) -> Result<ListPage, Failure> {
        let root = format!("{}{}", self.prefix, with_slash(prefix));
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(&root)
            .max_keys(i32::try_from(limit.clamp(1, PAGE_KEYS_MAX)).unwrap_or(1))
            .set_delimiter((!recursive).then(|| "/".to_owned()))
            .set_continuation_token(token.map(str::to_owned));
        let sent = async {
            request
                .send()
                .await
                .map_err(|error| self.failure(What::List(prefix), error))
        };
        let response = within(self.retry.policy.answer_max, "the listing", sent).await?;
        self.proven.store(true, Ordering::Relaxed);
        let mut page = ListPage::default();
        for object in response.contents() {
            // What is no key of ours was not put by us: the markers that consoles make for folders, for one.
            let name = object
                .key()
                .and_then(|name| name.strip_prefix(self.prefix.as_str()));
            if let Some(key) = name.and_then(|name| Key::new(name).ok()) {
                page.objects.push((
                    key,
                    object
                        .size()
                        .and_then(|size| u64::try_from(size).ok())
                        .unwrap_or(0),
                ));
            }
        }
        for folder in response.common_prefixes() {
            let name = folder
                .prefix()
                .and_then(|name| name.strip_prefix(root.as_str()));
            let name = name
                .map(|name| name.trim_end_matches('/'))
                .filter(|name| Key::new(*name).is_ok());
            page.folders.extend(name.map(str::to_owned));
        }
        if response.is_truncated() == Some(true) {
            page.next = response.next_continuation_token().map(str::to_owned);
            // To go on as if this were all would be to miss objects.
            if page.next.is_none() {
                return Err(Failure::refused(
                    "use a store that knows ListObjectsV2",
                    "the listing is cut short and has no token to go on with",
                ));
            }
        }
        Ok(page)
    }

    async fn get_checked(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        self.retry
            .run(What::Get(key), || self.fetch(key, range.as_ref()))
            .await
    }
}

/// An answer to a ranged request that has another length.
fn wrong_range(key: &Key, range: &Range<u64>, len: u64) -> Failure {
    if len < range.end - range.start {
        return refusal(too_short(key, range, None));
    }
    Failure::refused(
        "use a store that obeys the header Range",
        format!(
            "asked for {} bytes, the answer has {len}",
            range.end - range.start
        ),
    )
}

fn refusal(error: StoreError) -> Failure {
    match error {
        StoreError::Refused { remedy, source, .. } => Failure::Refused { remedy, source },
        StoreError::NotFound { .. } => Failure::NotFound,
        StoreError::Unavailable { source, .. } => Failure::Transient(source),
    }
}

/// The SDK says it of each place where there are no credentials, before it says why.
const NOT_ENABLED: &str = "the credential provider was not enabled: ";

/// The SDK's errors say "service error" and hide the rest in their sources, one of which prints as a struct; messages print
/// only the top.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Readable {
    text: String,
}

impl Readable {
    fn new<E>(error: &SdkError<E, HttpResponse>) -> Readable
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let status = error.raw_response().map(|raw| raw.status().as_u16());
        let text = match (find_credentials_error(error), error) {
            // Its own words only say that there was an error, or that it was not enabled.
            (Some(credentials), _) => {
                chain(credentials.source().unwrap_or(credentials)).replace(NOT_ENABLED, "")
            }
            (None, SdkError::ServiceError(service)) => words_of(service.err()),
            (None, error) => chain(error),
        };
        let parts = status.map(|status| format!("status {status}"));
        let parts = parts
            .into_iter()
            .chain((!text.is_empty()).then(|| one_line(&text)));
        Readable {
            text: parts.collect::<Vec<_>>().join(": "),
        }
    }
}

/// S3's own code and words, and the id that its makers ask for. Nothing if its answer had none.
fn words_of<E: ProvideErrorMetadata>(error: &E) -> String {
    let meta = error.meta();
    let words = [meta.code(), meta.message()].into_iter().flatten();
    let text = words.collect::<Vec<_>>().join(": ");
    match meta.request_id() {
        Some(id) if !text.is_empty() => format!("{text} (request {id})"),
        _ => text,
    }
}

/// Lists of the SDK's have a line for each item.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut all = String::new();
    for line in lines {
        let between = match all.chars().last() {
            None => "",
            Some(':') => " ",
            Some(_) => "; ",
        };
        all.push_str(between);
        all.push_str(line);
    }
    all
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> &str {
        &self.url
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.get_checked(key, None).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        // HTTP has no words for an empty range.
        if range.is_empty() {
            return if range.start == range.end {
                Ok(Bytes::new())
            } else {
                Err(too_short(key, &range, None))
            };
        }
        self.get_checked(key, Some(range)).await
    }

    async fn put_if_absent(
        &self,
        key: &Key,
        body: Body,
        digest: Digest,
    ) -> Result<Put, StoreError> {
        if body.len() > PUT_BYTES_MAX {
            return Err(StoreError::Refused {
                what: What::Put(key).to_string(),
                remedy: "keep segments below 5 GiB".to_owned(),
                source: format!("the object has {} bytes", body.len()).into(),
            });
        }
        if let Body::File { path, len } = &body {
            let meta = tokio::fs::metadata(path)
                .await
                .map_err(|error| unreadable(key, error))?;
            if meta.len() != *len {
                return Err(wrong_length(key, *len));
            }
        }
        let checksum = base64::engine::general_purpose::STANDARD.encode(digest);
        self.retry
            .run(What::Put(key), || self.send(key, &body, &checksum))
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError> {
        let attempt = || self.page(prefix, recursive, token.as_deref(), PAGE_KEYS_MAX);
        self.retry.run(What::List(prefix), attempt).await
    }

    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError> {
        let attempt = || self.page(prefix, true, None, usize::from(limit));
        self.retry.run(What::List(prefix), attempt).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let attempt = || async {
            let request = self
                .client
                .delete_object()
                .bucket(&self.bucket)
                .key(self.name(key));
            let sent = async {
                request
                    .send()
                    .await
                    .map_err(|error| self.failure(What::Delete(key), error))
            };
            match within(self.retry.policy.answer_max, "the deletion", sent).await {
                Ok(_) | Err(Failure::NotFound) => Ok(()),
                Err(failure) => Err(failure),
            }
        };
        self.retry.run(What::Delete(key), attempt).await
    }

    fn lists_in_key_order(&self) -> bool {
        self.in_key_order
    }

    fn usage(&self) -> Usage {
        self.retry.counters.usage()
    }
}
