//! `gs://` and `az://`, by the crate `object_store`.
//!
//! Its own repetition is off, for the reasons given in [`crate::retry`]. It takes a body only as a whole: a segment
//! is held in memory while it goes up, one at a time.
//!
//! Not run against the real services so far. `az` keeps the contract on the emulator Azurite (the end-to-end tests), `gs`
//! on a server of our own (`tests/google.rs`).

mod http;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::StaticCredentialProvider;
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    BackoffConfig, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, RetryConfig,
};
use tokio::sync::Semaphore;

use self::http::Connector;
use crate::body::{check_digest, read_body, too_short};
use crate::chain;
use crate::listing::{PAGE_KEYS_MAX, with_slash};
use crate::retry::{Failure, Retry, What, within};
use crate::upload::Progress;
use crate::url::Scheme;
use crate::{Body, Digest, Key, ListPage, OpenError, Put, Store, StoreError, StoreOptions, Usage};

/// Room made for a body before the first byte, whatever the server says of its length.
const RESERVED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Larger than any segment, for the deadline of a get whose length is not known yet.
const OBJECT_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;

/// What both clients can do.
trait Client: ObjectStore + PaginatedListStore {}
impl<T: ObjectStore + PaginatedListStore> Client for T {}

/// Objects in a bucket or container, below a prefix.
pub(crate) struct CloudStore {
    url: String,
    scheme: Scheme,
    client: Arc<dyn Client>,
    /// With a slash at its end, or empty.
    prefix: String,
    retry: Retry,
    /// One body out of a file at a time: each is in memory as a whole.
    file_bodies: Semaphore,
}

impl fmt::Debug for CloudStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudStore")
            .field("url", &self.url)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

impl CloudStore {
    pub(crate) fn open(
        scheme: Scheme,
        bucket: &str,
        prefix: &str,
        options: &StoreOptions,
    ) -> Result<CloudStore, OpenError> {
        let (word, remedy) = match scheme {
            Scheme::Gs => (
                "gs",
                "give credentials as GOOGLE_APPLICATION_CREDENTIALS, or run where a service account gives them",
            ),
            _ => (
                "az",
                "give AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or a workload identity",
            ),
        };
        let url = if prefix.is_empty() {
            format!("{word}://{bucket}")
        } else {
            format!("{word}://{bucket}/{prefix}")
        };
        let client = build(scheme, bucket, options).map_err(|error| OpenError::Setup {
            url: url.clone(),
            remedy: remedy.to_owned(),
            source: chain(&error).into(),
        })?;
        Ok(CloudStore {
            url,
            scheme,
            client,
            prefix: with_slash(prefix),
            retry: Retry::new(options.retry),
            file_bodies: Semaphore::new(1),
        })
    }

    fn path(&self, key: &Key) -> Path {
        // Keys and prefixes hold nothing that a path would have to encode.
        Path::from(format!("{}{key}", self.prefix))
    }

    async fn fetch(&self, key: &Key, range: Option<&Range<u64>>) -> Result<Bytes, Failure> {
        let policy = &self.retry.policy;
        let options = GetOptions {
            range: range.map(|range| GetRange::Bounded(range.clone())),
            ..GetOptions::default()
        };
        let path = self.path(key);
        let sent = async {
            self.client
                .get_opts(&path, options)
                .await
                .map_err(|error| failure(What::Get(key), error))
        };
        let response = within(policy.answer_max, "the answer", sent).await?;
        let len = response.range.end.saturating_sub(response.range.start);
        if let Some(range) = range
            && response.range != *range
        {
            let StoreError::Refused { remedy, source, .. } =
                too_short(key, range, Some(response.meta.size))
            else {
                return Err(Failure::transient("the answer holds another range"));
            };
            return Err(Failure::Refused { remedy, source });
        }
        let limit = policy.transfer_max(len.min(OBJECT_BYTES_MAX)) + policy.answer_max;
        let bytes = within(limit, "the body", self.receive(response.into_stream(), len)).await?;
        if bytes.len() as u64 == len {
            Ok(bytes)
        } else {
            Err(Failure::transient(format!(
                "the body ended after {} of {len} bytes",
                bytes.len()
            )))
        }
    }

    async fn receive(
        &self,
        mut body: futures::stream::BoxStream<'static, object_store::Result<Bytes>>,
        expected: u64,
    ) -> Result<Bytes, Failure> {
        let room = usize::try_from(expected.min(RESERVED_BYTES_MAX)).unwrap_or(0);
        let mut bytes = BytesMut::with_capacity(room);
        loop {
            let next = async {
                body.next()
                    .await
                    .transpose()
                    .map_err(|error| Failure::transient(chain(&error)))
            };
            let Some(chunk) = within(
                self.retry.policy.stall_max,
                "the next piece of the body",
                next,
            )
            .await?
            else {
                return Ok(bytes.freeze());
            };
            self.retry.counters.read_bytes(chunk.len());
            if (bytes.len() + chunk.len()) as u64 > expected {
                return Err(Failure::transient(
                    "the body is longer than its length says",
                ));
            }
            bytes.extend_from_slice(&chunk);
        }
    }

    async fn send(&self, key: &Key, body: &Bytes) -> Result<Put, Failure> {
        let path = self.path(key);
        let progress = Progress::new(body.len() as u64);
        let mut options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        // For the client below.
        options.extensions.insert(Arc::clone(&progress));
        let payload = PutPayload::from(body.clone());
        let sent = self.client.put_opts(&path, payload, options);
        let result = match progress.watch(&self.retry.policy, sent).await? {
            Ok(_) => Put::Created,
            Err(
                Error::AlreadyExists { .. }
                | Error::Precondition { .. }
                | Error::NotModified { .. },
            ) => Put::Refused,
            Err(error) => return Err(failure(What::Put(key), error)),
        };
        self.retry.counters.wrote_bytes(body.len() as u64);
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
        let options = PaginatedListOptions {
            delimiter: (!recursive).then(|| "/".into()),
            max_keys: Some(limit.clamp(1, PAGE_KEYS_MAX)),
            page_token: token.map(str::to_owned),
            ..PaginatedListOptions::default()
        };
        let from = (!root.is_empty()).then_some(root.as_str());
        let sent = async {
            self.client
                .list_paginated(from, options)
                .await
                .map_err(|error| failure(What::List(prefix), error))
        };
        let response = within(self.retry.policy.answer_max, "the listing", sent).await?;
        let mut page = ListPage {
            next: response.page_token,
            ..ListPage::default()
        };
        for object in response.result.objects {
            let name = object.location.as_ref().strip_prefix(self.prefix.as_str());
            if let Some(key) = name.and_then(|name| Key::new(name).ok()) {
                page.objects.push((key, object.size));
            }
        }
        for folder in response.result.common_prefixes {
            let name = folder
                .as_ref()
                .strip_prefix(root.as_str())
                .map(|name| name.trim_end_matches('/'));
            page.folders.extend(
                name.filter(|name| Key::new(*name).is_ok())
                    .map(str::to_owned),
            );
        }
        Ok(page)
    }

    async fn get_checked(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        self.retry
            .run(What::Get(key), || self.fetch(key, range.as_ref()))
            .await
    }
}

fn build(
    scheme: Scheme,
    bucket: &str,
    options: &StoreOptions,
) -> object_store::Result<Arc<dyn Client>> {
    let retry = RetryConfig {
        max_retries: 0,
        retry_timeout: Duration::ZERO,
        backoff: BackoffConfig::default(),
    };
    let connector = Connector {
        connect_max: options.retry.answer_max.min(Duration::from_secs(5)),
    };
    if scheme == Scheme::Gs {
        let mut builder = GoogleCloudStorageBuilder::from_env()
            .with_http_connector(connector)
            .with_retry(retry);
        if let Some(endpoint) = &options.endpoint_url {
            builder = builder.with_base_url(endpoint);
            // Nobody's token goes over the wire in the clear. Such servers are for tests and want none.
            if endpoint.starts_with("http://") {
                let bearer = String::new();
                let nobody = StaticCredentialProvider::new(GcpCredential { bearer });
                builder = builder.with_credentials(Arc::new(nobody));
            }
        }
        return Ok(Arc::new(builder.with_bucket_name(bucket).build()?));
    }
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_http_connector(connector)
        .with_retry(retry);
    if let Some(endpoint) = &options.endpoint_url {
        builder = builder.with_endpoint(endpoint.clone());
    }
    Ok(Arc::new(builder.with_container_name(bucket).build()?))
}

/// What an error means for the caller. The library shows the status only through its variants and its text.
fn failure(what: What<'_>, error: Error) -> Failure {
    let text = chain(&error);
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let remedy = match &error {
        Error::NotFound { .. }
            if says(&[
                "NoSuchBucket",
                "ContainerNotFound",
                "The specified container does not exist",
                "The specified bucket does not exist",
            ]) =>
        {
            "create the bucket or container, or correct the archive's URL"
        }
        // Only these words: a proxy or a wrong endpoint answers 404 as well.
        Error::NotFound { .. }
            if says(&[
                "NoSuchKey",
                "BlobNotFound",
                "ResourceNotFound",
                "No such object",
                // All that is left of it in the answer to a deletion, which goes to Azure as a batch of one.
                "The specified blob does not exist",
            ]) =>
        {
            return Failure::NotFound;
        }
        Error::NotFound { .. } => {
            "check the endpoint URL: what answers does not seem to be an object store"
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => match what {
            What::Get(_) => "allow the account to read objects and to list the bucket or container",
            What::Put(_) => "allow the account to create objects",
            What::Delete(_) => "allow the account to delete objects",
            What::List(_) => "allow the account to list the bucket or container",
        },
        Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::InvalidPath { .. } => {
            "this is a fault of everlog: report it"
        }
        // The library's own words, when it has read of the object's length in the answer.
        Error::Generic { .. } if says(&["Wanted range starting at"]) => {
            "the object is not what the archive's index says: run `everlog verify`"
        }
        Error::Generic { .. } => match status_of(&text) {
            Some(416) => "the object is not what the archive's index says: run `everlog verify`",
            Some(400..500) if says(&["performing token request"]) => {
                "check the credentials: the service that exchanges them for a token refuses"
            }
            Some(status)
                if (400..500).contains(&status) && !matches!(status, 408 | 409 | 425 | 429) =>
            {
                "look up the error; trying again as it is does not help"
            }
            _ => return Failure::transient(text),
        },
        _ => return Failure::transient(text),
    };
    Failure::refused(remedy, text)
}

/// The number behind "status code: ", where the library's messages have it.
fn status_of(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

#[async_trait]
impl Store for CloudStore {
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
        let _turn = match &body {
            Body::File { .. } => self.file_bodies.acquire().await.ok(),
            Body::Bytes(_) => None,
        };
        let bytes = read_body(key, body).await?;
        check_digest(key, &bytes, &digest).await?;
        self.retry
            .run(What::Put(key), || self.send(key, &bytes))
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
        let path = self.path(key);
        let attempt = || async {
            let sent = async {
                self.client
                    .delete(&path)
                    .await
                    .map_err(|error| failure(What::Delete(key), error))
            };
            match within(self.retry.policy.answer_max, "the deletion", sent).await {
                Ok(()) | Err(Failure::NotFound) => Ok(()),
                Err(failure) => Err(failure),
            }
        };
        self.retry.run(What::Delete(key), attempt).await
    }

    fn lists_in_key_order(&self) -> bool {
        // Google promises it; Azure with a hierarchical namespace does not.
        self.scheme == Scheme::Gs
    }

    fn usage(&self) -> Usage {
        self.retry.counters.usage()
    }
}
