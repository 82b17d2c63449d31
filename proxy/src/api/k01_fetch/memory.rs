//! What one connection remembers from fetch to fetch.

use std::collections::HashMap;
use std::time::Duration;

use everlog_format::PartitionKey;
use tokio::time::Instant;

/// In the cautious mode, watermarks are brought up to date this often.
const REFRESH: Duration = Duration::from_secs(1);

/// Out of range for every log there can be.
const NOWHERE: i64 = i64::MAX;

/// Below this, what shadows bring is not worth a thought.
const DROPPED_MIN: u64 = 256 * 1024;

/// Partitions remembered per connection. A client that fetches more learns the watermarks of the others anew each time.
const MARKS_MAX: usize = 100_000;

/// Where a partition's log ends, as the broker said in a fetch's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) high_watermark: i64,
    /// -1 where only ListOffsets was asked. Clients take that for "unknown"; a guess might lie ahead of the truth.
    pub(super) last_stable_offset: i64,
    /// When it was learnt.
    pub(super) at: Instant,
}

impl Mark {
    /// Too old to say that the log ends at or below `offset`.
    pub(super) fn is_doubtful(&self, offset: i64, now: Instant) -> bool {
        self.high_watermark <= offset && REFRESH <= now.saturating_duration_since(self.at)
    }
}

/// One connection's.
#[derive(Debug, Default)]
pub(crate) struct FetchMemory {
    marks: HashMap<PartitionKey, Mark>,
    pub(super) account: Account,
    /// Grows with each fetch: which archived partition is first at the response's room.
    pub(super) turn: usize,
    /// Archived records found no room in the last response beside live ones: next time they come first.
    pub(super) archive_first: bool,
}

impl FetchMemory {
    pub(super) fn mark(&self, key: &PartitionKey) -> Option<Mark> {
        self.marks.get(key).copied()
    }

    pub(super) fn set_mark(&mut self, key: &PartitionKey, mark: Mark) {
        if self.marks.len() < MARKS_MAX || self.marks.contains_key(key) {
            self.marks.insert(key.clone(), mark);
        }
    }

    pub(super) fn forget_mark(&mut self, key: &PartitionKey) {
        self.marks.remove(key);
    }
}

/// What shadows cost against what they let through.
///
/// While a producer goes on, there is always something behind the last known watermark, and the broker sends at least a
/// whole batch of it. Where that becomes a burden, shadows ask out of range, which brings nothing and proves as much,
/// and only one a second asks for the watermark.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    served: u64,
    dropped: u64,
}

impl Account {
    pub(super) fn served(&mut self, bytes: usize) {
        self.served += bytes as u64;
        self.age();
    }

    pub(super) fn dropped(&mut self, bytes: usize) {
        self.dropped += bytes as u64;
        self.age();
    }

    /// Old sums fade, so that the mode follows what happens now.
    fn age(&mut self) {
        const FADE: u64 = 1 << 30;
        if FADE < self.served + self.dropped {
            (self.served, self.dropped) = (self.served / 2, self.dropped / 2);
        }
    }

    /// More than 5 % of what is served.
    fn is_burden(&self) -> bool {
        DROPPED_MIN < self.dropped && self.served < 20 * self.dropped
    }

    /// Where the next shadow asks.
    pub(super) fn shadow_offset(&self, mark: Mark, now: Instant) -> i64 {
        let fresh = now.saturating_duration_since(mark.at) < REFRESH;
        if self.is_burden() && fresh {
            NOWHERE
        } else {
            mark.high_watermark
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadows_that_bring_too_much_ask_out_of_range_between_refreshes() {
        let now = Instant::now();
        let mark = Mark {
            high_watermark: 7,
            last_stable_offset: 7,
            at: now,
        };
        let mut account = Account::default();
        assert_eq!(account.shadow_offset(mark, now), 7);
        account.dropped(1_000_000);
        assert_eq!(account.shadow_offset(mark, now), NOWHERE);
        assert_eq!(account.shadow_offset(mark, now + REFRESH), 7);
        account.served(20_000_000);
        assert_eq!(account.shadow_offset(mark, now), 7);
    }
}
