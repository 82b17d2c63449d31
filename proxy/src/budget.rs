//! Room in memory for frames, reserved before they are read.
//!
//! When it is used up, sockets are not read from, and TCP tells the peers to wait. There is one budget for requests that
//! are decoded and one for responses: a request keeps its room until the response is there, so with one for both, each
//! could wait for the other. Archived records have a budget of their own inside `replay`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Small frames are not counted: their sum is bounded by the number of connections and of requests in flight on each.
const FREE_BYTES: usize = 16 * 1024;

/// What one permit stands for, in bytes.
const UNIT_BYTES: usize = 4 * 1024;

/// Shared by all connections.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    units: Arc<Semaphore>,
    total: u32,
    /// Those who wait for room.
    waiting: Arc<AtomicUsize>,
}

/// Given back when dropped. `None` for what is too small to count.
pub(crate) type Room = Option<OwnedSemaphorePermit>;

impl Budget {
    pub(crate) fn new(bytes: u64) -> Budget {
        let units = u32::try_from(bytes / UNIT_BYTES as u64)
            .unwrap_or(u32::MAX)
            .max(1);
        Budget {
            units: Arc::new(Semaphore::new(units as usize)),
            total: units,
            waiting: Arc::default(),
        }
    }

    /// Waits until `bytes` fit. What is larger than everything gets everything.
    pub(crate) async fn reserve(&self, bytes: usize) -> Room {
        self.reserve_times(bytes, 1).await
    }

    /// As [`Budget::reserve`] for a frame of `bytes` that takes `factor` times as much.
    pub(crate) async fn reserve_times(&self, bytes: usize, factor: usize) -> Room {
        if bytes <= FREE_BYTES {
            return None;
        }
        let units = u32::try_from((bytes * factor).div_ceil(UNIT_BYTES))
            .unwrap_or(u32::MAX)
            .min(self.total);
        if let Ok(room) = Arc::clone(&self.units).try_acquire_many_owned(units) {
            return Some(room);
        }
        let _waiting = Waiting::in_line(&self.waiting);
        // The semaphore is never closed, so this can't fail.
        Arc::clone(&self.units).acquire_many_owned(units).await.ok()
    }

    /// Whether somebody waits for room now.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Counts one who waits, also if he gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn in_line(waiting: &AtomicUsize) -> Waiting<'_> {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frame_waits_for_room_and_small_ones_do_not() {
        let budget = Budget::new(1 << 20);
        let all = budget.reserve(100 << 20).await;
        assert!(all.is_some());
        assert!(budget.reserve(FREE_BYTES).await.is_none());
        assert!(!budget.is_awaited());
        let mut waiting = Box::pin(budget.reserve(FREE_BYTES + 1));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(budget.is_awaited());
        drop(waiting);
        assert!(!budget.is_awaited(), "he has given up");
        let mut waiting = Box::pin(budget.reserve(FREE_BYTES + 1));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(all);
        assert!(waiting.await.is_some());
        assert!(!budget.is_awaited());
    }
}
