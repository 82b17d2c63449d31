//! Counts of requests and bytes that every backend keeps for [`Usage`].

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Usage;

/// Shared by all requests of one store. Relaxed: each number is right by itself, no two are compared.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    read_requests: AtomicU64,
    write_requests: AtomicU64,
    retried_requests: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Counters {
    pub(crate) fn read_request(&self) {
        self.read_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn write_request(&self) {
        self.write_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn retried_request(&self) {
        self.retried_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read_bytes(&self, len: usize) {
        self.bytes_read.fetch_add(len as u64, Ordering::Relaxed);
    }

    pub(crate) fn wrote_bytes(&self, len: u64) {
        self.bytes_written.fetch_add(len, Ordering::Relaxed);
    }

    pub(crate) fn usage(&self) -> Usage {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Usage {
            read_requests: load(&self.read_requests),
            write_requests: load(&self.write_requests),
            retried_requests: load(&self.retried_requests),
            bytes_read: load(&self.bytes_read),
            bytes_written: load(&self.bytes_written),
        }
    }
}
