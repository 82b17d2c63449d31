//! Times that the log carries as labels, for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads this clock"
)]
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// How long ago `ms` was; `None` where there is no label, or one from the future.
pub(super) fn ago(ms: u64) -> Option<Duration> {
    let past = now_ms().checked_sub(ms)?;
    (ms > 0).then(|| Duration::from_millis(past))
}

/// Two units at most: `3d 4h`, `12s`, `40ms`.
pub(super) fn short(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let mut left = duration.as_secs();
    let mut parts = Vec::new();
    for (name, seconds) in units {
        if left >= seconds {
            parts.push(format!("{}{name}", left / seconds));
            left %= seconds;
        }
    }
    parts.truncate(2);
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_units_are_enough() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (61_000, "1m 1s"),
            (3_600_000, "1h"),
            (90_061_000, "1d 1h"),
        ] {
            assert_eq!(short(Duration::from_millis(ms)), text);
        }
        assert_eq!(ago(0), None);
        assert_eq!(ago(u64::MAX), None);
    }
}
