//! Positions in a partition and half-open runs of them.

use std::fmt;

/// The position of one record in its partition, 0 to `i64::MAX`.
///
/// Kafka's negative sentinels (`-1` latest, `-2` earliest) are questions, not positions; they end where a request is
/// decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(i64);

/// An offset below zero came from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("offset {0} is negative")]
pub struct NegativeOffset(pub i64);

impl Offset {
    /// The first offset a partition can have.
    pub const ZERO: Offset = Offset(0);

    /// Checks that `raw` is a position.
    pub fn new(raw: i64) -> Result<Offset, NegativeOffset> {
        if raw < 0 {
            Err(NegativeOffset(raw))
        } else {
            Ok(Offset(raw))
        }
    }

    /// The number Kafka uses.
    pub fn get(self) -> i64 {
        self.0
    }

    /// The next position, or `None` after the last one Kafka can express. Saturating here would make two records
    /// share a name.
    pub fn next(self) -> Option<Offset> {
        self.0.checked_add(1).map(Offset)
    }

    /// How many positions lie in `[self, end)`; 0 if `end` is not above.
    pub fn distance_to(self, end: Offset) -> u64 {
        u64::try_from(end.0.saturating_sub(self.0)).unwrap_or(0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A run of offsets from `start` up to, not including, `end`. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OffsetRange {
    // Invariant: start < end.
    start: Offset,
    end: Offset,
}

impl OffsetRange {
    /// `None` if the range would hold no offset.
    pub fn new(start: Offset, end: Offset) -> Option<OffsetRange> {
        (start < end).then_some(OffsetRange { start, end })
    }

    /// The first offset inside.
    pub fn start(self) -> Offset {
        self.start
    }

    /// The first offset behind.
    pub fn end(self) -> Offset {
        self.end
    }

    /// Whether `offset` lies inside.
    pub fn contains(self, offset: Offset) -> bool {
        self.start <= offset && offset < self.end
    }

    /// How many offsets lie inside, at least 1.
    pub fn offset_count(self) -> u64 {
        self.start.distance_to(self.end)
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_offset_has_no_next() {
        assert_eq!(Offset::new(i64::MAX).ok().and_then(Offset::next), None);
        assert_eq!(Offset::new(-1), Err(NegativeOffset(-1)));
    }

    #[test]
    fn a_range_is_half_open_and_never_empty() {
        let at = |raw| Offset::new(raw).expect("not negative");
        assert_eq!(OffsetRange::new(at(5), at(5)), None);
        let range = OffsetRange::new(at(5), at(7)).expect("not empty");
        assert!(range.contains(at(5)) && range.contains(at(6)) && !range.contains(at(7)));
        assert_eq!(range.offset_count(), 2);
    }
}
