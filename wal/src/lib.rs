//! A log on a raw block device or a preallocated file, for bytes that have been acknowledged and are not yet anywhere else.
//!
//! Many streams share one ring. A record is durable when `Wal::append` resolves, carries a number that is dense within its stream
//! ([`Seq`]) and stays until its stream is trimmed past it. What a crash leaves is decided by the table in `recovery`; what the
//! device holds, byte by byte, by `header` and `block`. The decisions are made in `core`, a plain state machine without clock,
//! randomness or I/O; `Wal` drives it with a thread and a [`Device`].
//!
//! Not here: Kafka, the meaning of a record, replication. One device is one copy.

pub mod aligned;
pub mod blank;
pub mod block;
mod bytes_at;
mod cache;
pub mod core;
#[cfg(any(test, feature = "mutations"))]
pub mod crash;
pub mod device;
mod drain;
pub mod error;
pub mod export;
pub mod format;
pub mod geometry;
pub mod guard;
mod habit;
pub mod header;
pub mod index;
mod log;
mod lsn;
pub mod reader;
pub mod recovery;
pub mod reservation;
pub mod rules;
mod writer;

pub use aligned::AlignedBuf;
pub use device::Device;
pub use drain::Cursor;
pub use log::{Appended, OpenOptions, Record, Wal};
pub use lsn::{LogId, Lsn, Seq, StreamId};
