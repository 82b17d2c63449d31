//! What the log's thread has learned about trying things that only pay if the next moment is like the last ones.
//!
//! How fast a caller comes back, and whether others append meanwhile, is for the callers to decide. So the thread tries, sees whether
//! it paid, and leaves off where it does not. Nothing that is written depends on it, only when it is written.

/// As many that paid in a row make a habit; one that did not costs two of them.
const SCORE_MAX: u32 = 16;
/// From here on it is settled.
const SETTLED: u32 = 8;
/// What does not pay is tried again each so many times.
const TRY_AGAIN: u32 = 32;

/// Whether something has paid of late.
#[derive(Debug, Default)]
pub(crate) struct Habit {
    score: u32,
    /// Chances let pass since it was last tried.
    passed: u32,
}

impl Habit {
    /// To be asked at each chance: yes if it has paid of late, and now and then besides.
    pub(crate) fn is_worth_a_try(&mut self) -> bool {
        self.passed += 1;
        self.score > 0 || self.passed >= TRY_AGAIN
    }

    /// It has paid again and again.
    pub(crate) fn is_settled(&self) -> bool {
        self.score >= SETTLED
    }

    pub(crate) fn learn(&mut self, paid: bool) {
        self.passed = 0;
        self.score = if paid {
            (self.score + 1).min(SCORE_MAX)
        } else {
            self.score.saturating_sub(2)
        };
    }

    /// It would have been wrong now.
    pub(crate) fn unlearn(&mut self) {
        self.score = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pays_becomes_a_habit_and_what_does_not_is_left() {
        let mut habit = Habit::default();
        assert!(!habit.is_settled());
        (0..SETTLED).for_each(|_| habit.learn(true));
        assert!(habit.is_settled() && habit.is_worth_a_try());
        // More than a third of the tries in vain, and it stops.
        for _ in 0..100 {
            habit.learn(true);
            habit.learn(false);
        }
        assert!(!habit.is_settled() && !habit.is_worth_a_try());
    }

    #[test]
    fn what_does_not_pay_is_tried_seldom() {
        let mut habit = Habit::default();
        let mut tries = 0;
        for _ in 0..10 * TRY_AGAIN {
            if habit.is_worth_a_try() {
                habit.learn(false);
                tries += 1;
            }
        }
        assert_eq!(tries, 10);
        habit.learn(true);
        habit.unlearn();
        assert!(!habit.is_worth_a_try());
    }
}
