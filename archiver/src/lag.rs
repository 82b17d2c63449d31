//! How far the archive is behind one partition: known while it is read, and estimated while it stands still, so that an
//! alarm on it goes off for a frozen partition too.

use everlog_format::Offset;

/// Carried from session to session.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lag {
    high_watermark: i64,
    /// `None` before anybody has told.
    archived_end: Option<Offset>,
    /// When the oldest offset that is not archived came, as far as that is known: a record's own timestamp, or when it
    /// was first seen that the archive is behind. `None` while it is not behind.
    behind_since_ms: Option<i64>,
}

impl Lag {
    /// The cluster has said where its log ends.
    pub(crate) fn high_watermark(&mut self, offset: i64) {
        self.high_watermark = offset;
    }

    /// Everything below `end` is archived. What comes first now is as old as it gets only from now on, unless
    /// [`Lag::oldest`] knows better.
    pub(crate) fn archived(&mut self, end: Offset) {
        if self.archived_end != Some(end) {
            self.archived_end = Some(end);
            self.behind_since_ms = None;
        }
    }

    /// Nobody could say where the archive ends; with nothing better known, everything that the cluster has is behind.
    pub(crate) fn archived_at_least(&mut self, live_start: Offset) {
        self.archived_end.get_or_insert(live_start);
    }

    /// The timestamp of the first record that is not archived.
    pub(crate) fn oldest(&mut self, timestamp_ms: i64) {
        if 0 < timestamp_ms {
            self.behind_since_ms = Some(timestamp_ms);
        }
    }

    /// Offsets from the archived end to the high watermark.
    pub(crate) fn records(&self) -> i64 {
        let Some(end) = self.archived_end else {
            return 0;
        };
        self.high_watermark.saturating_sub(end.get()).max(0)
    }

    /// For how long the archive has been behind.
    pub(crate) fn seconds(&mut self, unix_ms: i64) -> f64 {
        if self.records() == 0 {
            self.behind_since_ms = None;
            return 0.0;
        }
        let since = *self.behind_since_ms.get_or_insert(unix_ms);
        let age_ms = u64::try_from(unix_ms.saturating_sub(since)).unwrap_or(0);
        std::time::Duration::from_millis(age_ms).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(raw: i64) -> Offset {
        Offset::new(raw).unwrap()
    }

    #[test]
    fn lag_grows_while_nothing_is_archived_and_ends_when_all_is() {
        let mut lag = Lag::default();
        assert_eq!((lag.records(), lag.seconds(1_000)), (0, 0.0));
        lag.archived(at(100));
        lag.high_watermark(140);
        lag.oldest(400);
        assert_eq!((lag.records(), lag.seconds(1_400)), (40, 1.0));
        // Nothing is delivered any more, and records keep coming.
        lag.high_watermark(200);
        assert_eq!((lag.records(), lag.seconds(6_400)), (100, 6.0));
        lag.archived(at(140));
        assert_eq!((lag.records(), lag.seconds(7_000)), (60, 0.0));
        assert_eq!(lag.seconds(9_000), 2.0);
        lag.archived(at(140));
        assert_eq!(lag.seconds(10_000), 3.0);
        lag.archived(at(200));
        assert_eq!((lag.records(), lag.seconds(11_000)), (0, 0.0));
        lag.high_watermark(201);
        assert_eq!(lag.seconds(12_000), 0.0);
    }

    #[test]
    fn an_archive_that_cant_be_asked_counts_as_empty_only_if_nothing_is_known_of_it() {
        let mut lag = Lag::default();
        lag.high_watermark(50);
        assert_eq!(lag.records(), 0);
        lag.archived_at_least(at(10));
        assert_eq!(lag.records(), 40);
        lag.archived(at(45));
        lag.archived_at_least(at(10));
        assert_eq!(lag.records(), 5);
    }
}
