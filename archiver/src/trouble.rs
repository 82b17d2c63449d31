//! Which of librdkafka's complaints are told: it reports one outage several times a second, for as long as it lasts.
//!
//! Decides only; `native` hears the complaints and writes the lines, and the watch's questions say when all is well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode;

/// How often an outage that goes on is told of again.
const REPEAT_EVERY: Duration = Duration::from_secs(60);
/// How long nothing is reported of a broker that is well again: librdkafka keeps an error back that is the same as the
/// one before for 30 seconds.
const CALM: Duration = Duration::from_secs(60);
/// Lines of one facility that are told within [`REPEAT_EVERY`].
const LINES_MAX: u32 = 10;

/// The trouble with the connections, from the first complaint after all was well to the answer that ends it.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    current: Option<Current>,
    /// When the question was put that is not answered yet.
    asked: Option<Instant>,
}

#[derive(Debug)]
struct Current {
    since: Instant,
    last: Instant,
    told_at: Instant,
    /// Codes that were told: another one may say why, so it does not wait.
    told: BTreeSet<i32>,
    held_back: u64,
    /// Whether no broker at all could be reached.
    is_away: bool,
}

/// The end of some trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) lasted: Duration,
    /// Whether no broker at all could be reached.
    pub(crate) was_away: bool,
    /// Complaints that were not told.
    pub(crate) held_back: u64,
}

impl Trouble {
    /// librdkafka complains. `Some`: to be told, with how many were held back since the one told before.
    pub(crate) fn reported(&mut self, code: i32, now: Instant) -> Option<u64> {
        let is_away = code == RDKafkaErrorCode::AllBrokersDown as i32;
        let Some(current) = &mut self.current else {
            self.current = Some(Current {
                since: now,
                last: now,
                told_at: now,
                told: BTreeSet::from([code]),
                held_back: 0,
                is_away,
            });
            return Some(0);
        };
        current.last = now;
        current.is_away |= is_away;
        let is_new = current.told.insert(code);
        if is_new || REPEAT_EVERY <= now.saturating_duration_since(current.told_at) {
            current.told_at = now;
            return Some(std::mem::take(&mut current.held_back));
        }
        current.held_back += 1;
        None
    }

    /// The cluster is about to be asked something.
    pub(crate) fn asking(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// It has answered. That ends an outage of the whole cluster, if nothing was reported since the question; of a single
    /// broker it says nothing, since another one may have answered: that trouble is over once it has been calm.
    pub(crate) fn answered(&mut self, now: Instant) -> Option<Over> {
        let asked = self.asked.take()?;
        let current = self.current.as_ref()?;
        let calm = CALM <= now.saturating_duration_since(current.last);
        if asked <= current.last || !(current.is_away || calm) {
            return None;
        }
        let over = self.current.take()?;
        let end = if over.is_away { now } else { over.last };
        Some(Over {
            lasted: end.saturating_duration_since(over.since),
            was_away: over.is_away,
            held_back: over.held_back,
        })
    }
}

/// librdkafka's own log lines, by facility (a few dozen constants of its source).
#[derive(Debug, Default)]
pub(crate) struct LineLimit(BTreeMap<String, Window>);

#[derive(Debug)]
struct Window {
    since: Instant,
    told: u32,
    held_back: u64,
}

impl LineLimit {
    /// `Some`: to be told, with how many of this facility were held back since the one told before.
    pub(crate) fn told(&mut self, facility: &str, now: Instant) -> Option<u64> {
        if !self.0.contains_key(facility) {
            let window = Window {
                since: now,
                told: 0,
                held_back: 0,
            };
            self.0.insert(facility.to_owned(), window);
        }
        let window = self.0.get_mut(facility)?;
        if REPEAT_EVERY <= now.saturating_duration_since(window.since) {
            window.since = now;
            window.told = 0;
        }
        if window.told == LINES_MAX {
            window.held_back += 1;
            return None;
        }
        window.told += 1;
        Some(std::mem::take(&mut window.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: i32 = RDKafkaErrorCode::AllBrokersDown as i32;
    const TRANSPORT: i32 = RDKafkaErrorCode::BrokerTransportFailure as i32;
    const AUTHENTICATION: i32 = RDKafkaErrorCode::Authentication as i32;

    /// A cluster that was away for a minute used to give 332 lines, none of which was a warning.
    #[test]
    fn an_outage_is_told_once_a_minute_and_at_its_end() {
        let begin = crate::clock::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut trouble = Trouble::default();
        let told: Vec<(u64, u64)> = (0..332)
            .map(|number| number * 200)
            .filter_map(|ms| Some((ms, trouble.reported(AWAY, at(ms))?)))
            .collect();
        assert_eq!(told, [(0, 0), (60_000, 299)]);
        // Asked before the last complaint: the answer may be older than it.
        trouble.asking(at(66_200));
        assert_eq!(trouble.answered(at(70_000)), None);
        trouble.asking(at(76_000));
        let over = Over {
            lasted: Duration::from_secs(77),
            was_away: true,
            held_back: 31,
        };
        assert_eq!(trouble.answered(at(77_000)), Some(over));
        trouble.asking(at(86_000));
        assert_eq!(trouble.answered(at(87_000)), None);
        // The next outage is told at once.
        assert_eq!(trouble.reported(AWAY, at(88_000)), Some(0));
    }

    #[test]
    fn another_complaint_is_told_at_once() {
        let begin = crate::clock::now();
        let at = |secs| begin + Duration::from_secs(secs);
        let mut trouble = Trouble::default();
        assert_eq!(trouble.reported(AWAY, at(0)), Some(0));
        assert_eq!(trouble.reported(AWAY, at(1)), None);
        assert_eq!(trouble.reported(AUTHENTICATION, at(2)), Some(1));
        assert_eq!(trouble.reported(AUTHENTICATION, at(3)), None);
        assert_eq!(trouble.reported(AWAY, at(62)), Some(1));
    }

    #[test]
    fn the_trouble_with_one_broker_is_over_once_it_is_calm() {
        let begin = crate::clock::now();
        let at = |secs| begin + Duration::from_secs(secs);
        let mut trouble = Trouble::default();
        assert_eq!(trouble.reported(TRANSPORT, at(0)), Some(0));
        assert_eq!(trouble.reported(TRANSPORT, at(31)), None);
        for secs in [40, 60, 89] {
            // Another broker answers.
            trouble.asking(at(secs));
            assert_eq!(trouble.answered(at(secs + 1)), None, "{secs}");
        }
        trouble.asking(at(95));
        let over = Over {
            lasted: Duration::from_secs(31),
            was_away: false,
            held_back: 1,
        };
        assert_eq!(trouble.answered(at(96)), Some(over));
    }

    #[test]
    fn a_facility_tells_ten_lines_a_minute() {
        let begin = crate::clock::now();
        let at = |secs| begin + Duration::from_secs(secs);
        let mut limit = LineLimit::default();
        let told = (0..50).filter_map(|_| limit.told("FAIL", at(1))).count();
        assert_eq!(told, 10);
        assert_eq!(limit.told("CONFWARN", at(1)), Some(0));
        assert_eq!(limit.told("FAIL", at(61)), Some(40));
        assert_eq!(limit.told("FAIL", at(61)), Some(0));
    }
}
