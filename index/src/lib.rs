//! What an archive holds: for every partition a chain of numbered commits, each naming a Merkle tree over segments.
//!
//! Put-if-absent of the next commit is the only point at which data becomes part of the archive, and the only thing
//! that keeps two writers apart: no lease, no epoch, no clock. Neighbours: `everlog-store` below; the archiver appends
//! through [`Writer`], everybody reads through [`Snapshot`]. Segments' own bytes are `everlog-format`'s.

mod archive;
mod canonical;
mod chain;
mod clock;
mod commit;
mod disk_cache;
mod entry;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod keys;
#[cfg(test)]
mod model;
mod node;
mod node_cache;
mod shared;
mod slot;
mod snapshot;
mod summary;
mod taken;
#[cfg(test)]
mod tests;
mod topics;
mod tree;
mod verify;
mod wire;
mod writer;

pub use archive::{Archive, ArchiveOptions, Freshness, IndexError, TopicInfo};
pub use clock::Clock;
pub use commit::CommitKind;
pub use disk_cache::distrust_disk_caches;
pub use entry::{DataEntry, Entry, EntryKind, EpochStart, HoleReason};
pub use keys::segment_key;
pub use shared::{Random, Tuning};
pub use snapshot::{Lookup, Snapshot, Totals};
pub use verify::{Named, Verifier};
pub use writer::{Appended, Writer, WriterError};
