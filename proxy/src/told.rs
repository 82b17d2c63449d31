//! Which troubles of the archive get a line in the log: clients repeat their requests for as long as trouble lasts.
//!
//! Decides only. The metrics count every time, and `history` writes the lines.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// The same trouble of the same partition is told at most this often.
const PAUSE: Duration = Duration::from_secs(10);
/// Troubles that are remembered; more than so many within [`PAUSE`] are not told.
const REMEMBERED_MAX: usize = 4_096;
/// Partitions for which trouble of one kind is told within [`PAUSE`] if it is one that passes: a store that is away is
/// trouble for all of them.
const PASSING_MAX: usize = 8;

/// Whose trouble it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Subject {
    /// Its name, or its id where the name is not known.
    pub(crate) topic: String,
    pub(crate) partition: i32,
}

/// What was told a short while ago.
#[derive(Debug, Default)]
pub(crate) struct Told(HashMap<(&'static str, Subject), Instant>);

impl Told {
    /// Whether trouble of this kind is to be told now. One kind never keeps another quiet, nor one partition another,
    /// unless it is trouble that passes.
    pub(crate) fn is_due(
        &mut self,
        kind: &'static str,
        subject: &Subject,
        passes: bool,
        now: Instant,
    ) -> bool {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < PAUSE;
        let line = (kind, subject.clone());
        if self.0.get(&line).is_some_and(is_recent) {
            return false;
        }
        self.0.retain(|_, at| is_recent(at));
        let same_kind = self.0.keys().filter(|(told, _)| *told == kind).count();
        if self.0.len() == REMEMBERED_MAX || passes && PASSING_MAX <= same_kind {
            return false;
        }
        self.0.insert(line, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(partition: i32) -> Subject {
        Subject {
            topic: "orders".to_owned(),
            partition,
        }
    }

    /// One clock served all troubles: a hole that was met just after a slow answer was never told.
    #[test]
    fn one_trouble_does_not_keep_another_quiet() {
        let (mut told, begin) = (Told::default(), Instant::now());
        assert!(told.is_due("slow", &subject(0), true, begin));
        assert!(told.is_due("hole", &subject(0), false, begin));
        assert!(told.is_due("hole", &subject(1), false, begin));
        assert!(!told.is_due("hole", &subject(1), false, begin + PAUSE / 2));
        assert!(told.is_due("hole", &subject(1), false, begin + PAUSE));
    }

    #[test]
    fn an_outage_of_all_partitions_is_told_for_some() {
        let (mut told, begin) = (Told::default(), Instant::now());
        let mut lines = |passes, at| {
            let due =
                (0..10_000).filter(|number| told.is_due("slow", &subject(*number), passes, at));
            due.count()
        };
        assert_eq!(lines(true, begin), PASSING_MAX);
        assert_eq!(lines(true, begin + PAUSE), PASSING_MAX);
        assert_eq!(lines(false, begin + PAUSE), REMEMBERED_MAX - PASSING_MAX);
        assert_eq!(told.0.len(), REMEMBERED_MAX);
    }
}
