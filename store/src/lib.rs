//! Objects that are never overwritten: get a range, put if absent, list, delete.
//!
//! Every backend keeps the one promise that the archive is built on: of any number of writers racing for a key, at
//! most one puts it, and what it put stays as it is. Conditional delete, the order of listings and multipart
//! uploads are not relied on. Neighbours: `everlog-index` and the two services; nothing here knows what it stores.
//!
//! What has run where: `file://` and `memory://` as they are; `s3://` against an S3 server, not yet against Amazon's own;
//! `az://` against the emulator Azurite; `gs://` only against a server of our own that answers as Google documents it.
//! Neither of the last two has been run against the real service.

mod body;
mod chain;
mod cloud;
pub mod contract;
mod counters;
pub mod faulty;
mod file;
mod key;
mod listing;
mod memory;
mod object_store_api;
mod open;
mod probe;
mod retry;
mod s3;
mod upload;
mod url;

pub use body::digest_of;
pub use chain::chain;
pub use file::FileStore;
pub use key::{InvalidKey, Key};
pub use memory::MemoryStore;
pub use object_store_api::{Body, BoxError, Digest, ListPage, Put, Store, StoreError, Usage};
pub use open::{OpenError, S3Credentials, StoreOptions, open};
pub use probe::{ProbeError, ProbeReport, probe, probe_read_only};
pub use retry::RetryPolicy;
pub use url::{InvalidUrl, check_url};
