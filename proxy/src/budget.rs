//! Room in memory for frames, reserved before they are read.
//!
//! When it is used up, sockets are not read from, and TCP tells the peers to wait. Archived records have a budget of
//! their own inside `replay`.

use std::sync::Arc;

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
        }
    }

    /// Waits until `bytes` fit. What is larger than everything gets everything.
    pub(crate) async fn reserve(&self, bytes: usize) -> Room {
        if bytes <= FREE_BYTES {
            return None;
        }
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES))
            .unwrap_or(u32::MAX)
            .min(self.total);
        // The semaphore is never closed, so this can't fail.
        Arc::clone(&self.units).acquire_many_owned(units).await.ok()
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
        let mut waiting = std::pin::pin!(budget.reserve(FREE_BYTES + 1));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(all);
        assert!(waiting.await.is_some());
    }
}
