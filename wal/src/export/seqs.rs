//! A set of record numbers, kept as runs.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::Seq;

/// Numbers of one stream. As small as the stream has gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeqSet {
    // Invariant: start -> end, start < end, runs neither overlap nor touch.
    runs: BTreeMap<Seq, Seq>,
}

impl SeqSet {
    /// Adds a number; `false` if it was there.
    pub fn insert(&mut self, seq: Seq) -> bool {
        let before = self.runs.range(..=seq).next_back();
        let before = before.map(|(start, end)| (*start, *end));
        if before.is_some_and(|(_, end)| seq < end) {
            return false;
        }
        let start = match before {
            Some((start, end)) if end == seq => start,
            _ => seq,
        };
        // The run behind, if it begins right here, becomes part of this one.
        let next = seq.plus(1);
        let end = self.runs.remove(&next).unwrap_or(next);
        self.runs.insert(start, end);
        true
    }

    pub fn contains(&self, seq: Seq) -> bool {
        let before = self.runs.range(..=seq).next_back();
        before.is_some_and(|(_, end)| seq < *end)
    }

    /// The runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<Seq>> {
        self.runs.iter().map(|(start, end)| *start..*end)
    }

    /// How many numbers there are.
    pub fn count(&self) -> u64 {
        self.runs().map(|run| run.end.since(run.start)).sum()
    }

    /// What is missing between the first and the last.
    pub fn gaps(&self) -> Vec<Range<Seq>> {
        let ends = self.runs.values();
        let starts = self.runs.keys().skip(1);
        ends.zip(starts).map(|(end, start)| *end..*start).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(numbers in proptest::collection::vec(0u64..60, 0..80)) {
            let mut set = SeqSet::default();
            let mut model = std::collections::BTreeSet::new();
            for number in numbers {
                prop_assert_eq!(set.insert(Seq::new(number)), model.insert(number));
            }
            prop_assert_eq!(set.count(), u64::try_from(model.len()).expect("small"));
            for number in 0..61 {
                prop_assert_eq!(set.contains(Seq::new(number)), model.contains(&number));
            }
            let runs: Vec<_> = set.runs().collect();
            for pair in runs.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            let missing: u64 = set.gaps().iter().map(|gap| gap.end.since(gap.start)).sum();
            let span = model.last().map_or(0, |last| last + 1 - model.first().expect("it has a last"));
            prop_assert_eq!(missing + set.count(), span);
        }
    }
}
