//! The two clocks, read in one place. What is decided from them is decided in `decide`, which gets plain durations.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// For pauses and ages.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads this clock"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since 1970, to compare with record timestamps.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads this clock"
)]
pub(crate) fn unix_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
