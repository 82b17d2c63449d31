//! The Kafka protocol in front of archive and cluster: any client reads a topic from its first record to the live tail.
//!
//! *Ask upstream on the client's own connection, then patch the answer.* Each client connection has its own upstream
//! connection, so identity, ACLs, quotas and order are the broker's. Records that the archive covers come from the
//! archive; all else passes. Not here: a client library, an authorizer, a group coordinator, any state that outlives
//! the process except the list of known nodes.
//!
//! The way of a request: `listener` accepts, `connection` reads it and looks it up in `versions`; it passes
//! (`passthrough`, `upstream`), its response is patched (`api`), or `conversation` answers it (`api::k01_fetch` and
//! others) with what `history` and `replay` find in the archive.

mod api;
mod budget;
mod config;
mod connection;
mod conversation;
mod discovery;
mod errors;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod history;
mod listener;
mod metrics;
mod nodes;
mod passthrough;
mod plan;
mod proxy;
mod pulse;
mod reach;
pub mod replay;
mod shape;
mod shared;
mod told;
mod topics;
mod upstream;
mod versions;
mod wire;

pub use config::{OnHole, ProxyConfig, ProxyError};
pub use proxy::Proxy;
pub use reach::{ReachError, Unanswered, reach};
