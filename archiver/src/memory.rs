//! What the archiver's memory goes to, counted against limits: chunks of records, row groups that are open.
//!
//! Neighbours: `config` divides the memory, `spool` and `encode` take their shares, `consume` waits when there is none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::config::MemoryPlan;

/// A chunk of records is closed once it holds this much.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// All of it.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Records between consumer and encoders.
    pub(crate) chunks: Arc<Gauge>,
    /// Those of them that are on their way to an encoder.
    pub(crate) bursts: Arc<Gauge>,
    /// Row groups that open segments hold.
    pub(crate) writers: Arc<Gauge>,
    spare: Mutex<Vec<Vec<u8>>>,
    spare_max: usize,
}

impl Memory {
    pub(crate) fn new(plan: &MemoryPlan) -> Arc<Memory> {
        Arc::new(Memory {
            chunks: Gauge::new(plan.chunks_bytes),
            bursts: Gauge::new(plan.bursts_bytes),
            writers: Gauge::new(plan.writers_bytes),
            spare: Mutex::default(),
            spare_max: usize::try_from(plan.spare_bytes).unwrap_or(0) / CHUNK_BYTES,
        })
    }

    /// An empty chunk with room for [`CHUNK_BYTES`], used before if there is one: fresh memory costs a page fault for
    /// each page, which is dearer than filling it.
    pub(crate) fn chunk(&self) -> Vec<u8> {
        let spare = self.spare.lock().expect("nobody panics with it").pop();
        spare.unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES))
    }

    /// Keeps a chunk that has been read for the next, unless it is of another size or there are enough.
    pub(crate) fn give_back(&self, mut chunk: Vec<u8>) {
        if chunk.capacity() != CHUNK_BYTES {
            return;
        }
        chunk.clear();
        let mut spare = self.spare.lock().expect("nobody panics with it");
        if spare.len() < self.spare_max {
            spare.push(chunk);
        }
    }
}

/// Bytes in use against a limit, counted by all who hold some.
#[derive(Debug)]
pub(crate) struct Gauge {
    used: AtomicU64,
    limit: u64,
}

impl Gauge {
    pub(crate) fn new(limit: u64) -> Arc<Gauge> {
        Arc::new(Gauge {
            used: AtomicU64::new(0),
            limit,
        })
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn is_over(&self) -> bool {
        self.used() > self.limit
    }
}

/// A share of a [`Gauge`], given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    gauge: Arc<Gauge>,
    bytes: u64,
}

impl Share {
    pub(crate) fn none(gauge: &Arc<Gauge>) -> Share {
        Share {
            gauge: Arc::clone(gauge),
            bytes: 0,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the share `bytes` large.
    pub(crate) fn set(&mut self, bytes: u64) {
        if self.bytes < bytes {
            self.gauge
                .used
                .fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            self.gauge
                .used
                .fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_given_back() {
        let gauge = Gauge::new(10);
        let mut share = Share::none(&gauge);
        share.set(12);
        assert!(gauge.is_over());
        share.set(4);
        assert_eq!(gauge.used(), 4);
        drop(share);
        assert_eq!(gauge.used(), 0);
    }

    #[test]
    fn a_chunk_is_used_again_and_only_so_many_are_kept() {
        let memory = Memory::new(&MemoryPlan {
            chunks_bytes: 0,
            bursts_bytes: 0,
            writers_bytes: 0,
            spare_bytes: u64::try_from(CHUNK_BYTES).unwrap(),
        });
        let mut chunk = memory.chunk();
        chunk.extend_from_slice(b"records");
        let address = chunk.as_ptr();
        memory.give_back(chunk);
        memory.give_back(Vec::with_capacity(CHUNK_BYTES));
        memory.give_back(Vec::with_capacity(7));
        let again = memory.chunk();
        assert!(again.is_empty() && again.as_ptr() == address);
        assert_eq!(memory.spare.lock().unwrap().len(), 0);
    }
}
