//! From a URL to a store.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::retry::RetryPolicy;
use crate::url::{InvalidUrl, Location, Scheme};
use crate::{BoxError, FileStore, MemoryStore, Store};

/// How to reach the store. What is `None` comes from the environment as each provider's own tools take it from there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreOptions {
    /// `s3://`: the bucket's region.
    pub region: Option<String>,
    /// A server other than the provider's own, like `http://127.0.0.1:9000`. S3 also takes it from `AWS_ENDPOINT_URL_S3`,
    /// `AWS_ENDPOINT_URL` and the profile. `az://`: with the account as its path if the server wants it there. `gs://`:
    /// without TLS no credentials are sent.
    pub endpoint_url: Option<String>,
    /// `s3://`: bucket in the path instead of the host name. `None`: only with an endpoint that is not Amazon's.
    pub path_style: Option<bool>,
    /// `s3://`: these instead of what the AWS chain finds.
    pub credentials: Option<S3Credentials>,
    /// `s3://`: whether listings come in the order of keys. `None`: yes for Amazon's general purpose buckets, else no,
    /// which costs more list requests at a cold start and is never wrong.
    pub lists_in_key_order: Option<bool>,
    /// `file://`: the directory has to be there. Else it is created.
    pub read_only: bool,
    /// Deadlines and repetition for the stores reached over a network.
    pub retry: RetryPolicy,
}

/// A key pair. Prints without its secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Credentials {
    /// Public half.
    pub access_key_id: String,
    /// Secret half.
    pub secret_access_key: String,
    /// For credentials that run out.
    pub session_token: Option<String>,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// Why there is no store. All of it is for the operator to mend.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The text is no archive URL.
    #[error(transparent)]
    Url(#[from] InvalidUrl),
    /// `file://`, only to be read, and the directory is not there (yet): whoever writes makes it. Wait for that, or say that there
    /// is nothing.
    #[error("there is no archive at {url} yet: the directory is not there")]
    Absent {
        /// Which archive.
        url: String,
    },
    /// The URL is right, something around it is not.
    #[error("cannot open {url}: {remedy}")]
    Setup {
        /// Which archive.
        url: String,
        /// What the operator can do.
        remedy: String,
        /// The cause.
        source: BoxError,
    },
}

/// Opens the archive's store. Except for `file://`, no request is made that touches the bucket: see [`crate::probe`].
pub async fn open(url: &str, options: StoreOptions) -> Result<Arc<dyn Store>, OpenError> {
    match Location::parse(url)? {
        Location::Memory => Ok(Arc::new(MemoryStore::new())),
        Location::Directory(path) => match FileStore::open(&path, !options.read_only).await {
            Ok(store) => Ok(Arc::new(store)),
            Err(error) if options.read_only && error.kind() == io::ErrorKind::NotFound => {
                Err(OpenError::Absent {
                    url: url.to_owned(),
                })
            }
            Err(error) => Err(OpenError::Setup {
                url: url.to_owned(),
                remedy: match options.read_only {
                    true => "give a directory that this user can read",
                    false => "give a directory that this user can read and write",
                }
                .to_owned(),
                source: error.into(),
            }),
        },
        Location::Bucket {
            scheme: Scheme::S3,
            bucket,
            prefix,
        } => Ok(Arc::new(
            Box::pin(crate::s3::S3Store::open(&bucket, &prefix, &options)).await?,
        )),
        Location::Bucket {
            scheme,
            bucket,
            prefix,
        } => Ok(Arc::new(crate::cloud::CloudStore::open(
            scheme, &bucket, &prefix, &options,
        )?)),
    }
}
