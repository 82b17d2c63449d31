//! Deadlines, back-off and the one place where a request is repeated, for the stores that are reached over a network.
//!
//! The libraries below repeat nothing themselves: each repetition is seen and counted here, and a repeated put that
//! meets its own first try ends as [`crate::Put::Refused`], which proves nothing and is treated so above.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::counters::Counters;
use crate::{BoxError, Key, StoreError, chain};

/// How long to wait and how often to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// A request without a body gets this long for its answer.
    pub answer_max: Duration,
    /// A body gets more time, as if it moved at this many bytes a second. An upload can hang for ever otherwise.
    pub bytes_per_second_min: u64,
    /// A download of which nothing arrives, or an upload of which nothing is taken, for this long is given up, however
    /// much time is left.
    pub stall_max: Duration,
    /// The first pause is drawn between nothing and this; the bound doubles with each try.
    pub pause_first: Duration,
    /// Up to this.
    pub pause_max: Duration,
    /// No try begins later than this after the first one, but for the third: a large body that was lost after minutes
    /// gets another chance.
    pub total_max: Duration,
}

/// Longer than the restarts, failovers and rolling upgrades of most stores: those who asked need not begin anew.
const TOTAL_MAX: Duration = Duration::from_secs(90);

/// So many tries there are in any case.
const TRIES_MIN: u32 = 3;

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            answer_max: Duration::from_secs(15),
            bytes_per_second_min: 256 * 1024,
            stall_max: Duration::from_secs(20),
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_secs(5),
            total_max: TOTAL_MAX,
        }
    }
}

impl RetryPolicy {
    /// How long a body of `bytes` may take, beyond the time for the answer.
    pub(crate) fn transfer_max(&self, bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1_000) / self.bytes_per_second_min.max(1))
    }

    /// The pause after try number `tries` (from 1), with `unit` drawn from [0, 1): full jitter, so that those who failed
    /// together do not come back together. `None`: that was the last one, `elapsed` after the first began.
    fn pause(&self, tries: u32, elapsed: Duration, unit: f64) -> Option<Duration> {
        let doubled = self
            .pause_first
            .saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1)));
        let pause = doubled.min(self.pause_max).mul_f64(unit);
        (tries < TRIES_MIN || elapsed + pause < self.total_max).then_some(pause)
    }
}

/// How one try failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Worth another try.
    Transient(BoxError),
    /// Trying again does not help.
    Refused { remedy: String, source: BoxError },
    /// The clear answer that there is no such object.
    NotFound,
}

impl Failure {
    pub(crate) fn transient(source: impl Into<BoxError>) -> Failure {
        Failure::Transient(source.into())
    }

    pub(crate) fn refused(remedy: impl Into<String>, source: impl Into<BoxError>) -> Failure {
        Failure::Refused {
            remedy: remedy.into(),
            source: source.into(),
        }
    }
}

/// `work`, given up after `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(Failure::transient(format!(
            "{what} took more than {limit:?}"
        ))),
    }
}

/// What is being done, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What<'a> {
    Get(&'a Key),
    Put(&'a Key),
    Delete(&'a Key),
    List(&'a str),
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Get(key) => write!(f, "get of {key}"),
            What::Put(key) => write!(f, "put of {key}"),
            What::Delete(key) => write!(f, "deletion of {key}"),
            What::List(prefix) => write!(f, "listing of {prefix:?}"),
        }
    }
}

/// Repeats requests for one store.
#[derive(Debug)]
pub(crate) struct Retry {
    pub(crate) policy: RetryPolicy,
    pub(crate) counters: Counters,
    outage: Mutex<Outage>,
}

/// So that an outage under load gives a line now and then and not one for each request.
#[derive(Debug, Default)]
struct Outage {
    warned: Option<Instant>,
    unwarned: u64,
}

const WARNING_PAUSE: Duration = Duration::from_secs(5);

impl Retry {
    pub(crate) fn new(policy: RetryPolicy) -> Retry {
        Retry {
            policy,
            counters: Counters::default(),
            outage: Mutex::default(),
        }
    }

    /// Tries until it works, can't work, or time is up. Each try keeps its own deadline.
    pub(crate) async fn run<T, F>(
        &self,
        what: What<'_>,
        mut attempt: impl FnMut() -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let begun = Instant::now();
        let mut tries = 0_u32;
        loop {
            match what {
                What::Get(_) | What::List(_) => self.counters.read_request(),
                What::Put(_) | What::Delete(_) => self.counters.write_request(),
            }
            tries = tries.saturating_add(1);
            let source = match Box::pin(attempt()).await {
                Ok(value) => return Ok(value),
                Err(Failure::Transient(source)) => source,
                Err(failure) => return Err(given_up(what, failure)),
            };
            let Some(pause) = self.policy.pause(tries, begun.elapsed(), rand::random()) else {
                return Err(given_up(what, Failure::Transient(source)));
            };
            self.warn(what, &source, tries, pause);
            self.counters.retried_request();
            tokio::time::sleep(pause).await;
        }
    }

    fn warn(&self, what: What<'_>, source: &BoxError, tries: u32, pause: Duration) {
        // One lost connection is everyday life.
        if tries < 3 {
            tracing::debug!(%what, error = %chain(source.as_ref()), tries, ?pause, "object store request failed, will retry");
            return;
        }
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if outage.warned.is_some_and(|at| at.elapsed() < WARNING_PAUSE) {
            outage.unwarned += 1;
            return;
        }
        outage.warned = Some(Instant::now());
        let others = std::mem::take(&mut outage.unwarned);
        drop(outage);
        tracing::warn!(%what, error = %chain(source.as_ref()), tries, ?pause, others, "object store is away, will retry");
    }
}

fn given_up(what: What<'_>, failure: Failure) -> StoreError {
    match (failure, what) {
        (Failure::Transient(source), what) => StoreError::Unavailable {
            what: what.to_string(),
            source,
        },
        (Failure::Refused { remedy, source }, what) => StoreError::Refused {
            what: what.to_string(),
            remedy,
            source,
        },
        (Failure::NotFound, What::Get(key) | What::Put(key) | What::Delete(key)) => {
            StoreError::NotFound { key: key.clone() }
        }
        (Failure::NotFound, what @ What::List(_)) => StoreError::Refused {
            what: what.to_string(),
            remedy: "check the archive's URL".to_owned(),
            source: "the store answered \"not found\" to a listing".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn pauses_double_up_to_the_bound_and_are_drawn_from_zero() {
        let policy = RetryPolicy::default();
        let pauses: Vec<_> = (1..=8)
            .filter_map(|tries| policy.pause(tries, Duration::ZERO, 1.0))
            .map(|pause| pause.as_millis())
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        let pause = |tries, unit| policy.pause(tries, Duration::ZERO, unit);
        assert_eq!(pause(5, 0.0), Some(Duration::ZERO));
        assert_eq!(pause(u32::MAX, 0.5), Some(Duration::from_millis(2_500)));
    }

    /// How long after the end of an outage the request succeeds, when each try costs `silence` before that.
    fn late_after(outage: Duration, silence: Duration, unit: impl Fn() -> f64) -> Option<Duration> {
        let (policy, mut now) = (RetryPolicy::default(), Duration::ZERO);
        for tries in 1.. {
            if now >= outage {
                return Some(now - outage);
            }
            now += silence;
            now += policy.pause(tries, now, unit())?;
        }
        None
    }

    #[test]
    fn an_outage_of_a_minute_is_survived_and_soon_over() {
        let check = |silence: u64, unit: &dyn Fn() -> f64| {
            let (minute, silence) = (Duration::from_secs(60), Duration::from_secs(silence));
            let late = late_after(minute, silence, unit).expect("the trying ended before");
            assert!(
                late <= silence + Duration::from_secs(5),
                "{late:?} after {silence:?}"
            );
        };
        for silence in [1, 5, 15, 20] {
            for _ in 0..200 {
                check(silence, &rand::random::<f64>);
            }
            check(silence, &|| 0.0);
        }
        for _ in 0..200 {
            check(0, &rand::random::<f64>);
        }
        check(0, &|| 1.0);
    }

    /// A segment whose connection is lost after a quarter of an hour gets two more tries, and not more of them the
    /// longer each takes.
    #[test]
    fn a_try_longer_than_all_the_time_is_repeated_twice() {
        let (policy, long) = (RetryPolicy::default(), Duration::from_secs(1_000));
        assert!(policy.pause(1, long, 1.0).is_some());
        assert!(policy.pause(2, long * 2, 1.0).is_some());
        assert_eq!(policy.pause(3, long * 3, 1.0), None);
    }

    #[tokio::test]
    async fn trying_ends_when_time_is_up_and_every_try_is_counted() {
        let retry = Retry::new(RetryPolicy {
            pause_first: Duration::from_millis(4),
            pause_max: Duration::from_millis(20),
            total_max: Duration::from_millis(300),
            ..RetryPolicy::default()
        });
        let tries = AtomicU32::new(0);
        let begun = Instant::now();
        let attempt = || async {
            tries.fetch_add(1, Ordering::Relaxed);
            within(
                Duration::from_millis(10),
                "test",
                std::future::pending::<Result<(), Failure>>(),
            )
            .await
        };
        let ended = retry.run(What::List("x"), attempt).await;
        assert!(matches!(ended, Err(StoreError::Unavailable { .. })));
        let tries = u64::from(tries.into_inner());
        assert!((3..=30).contains(&tries), "{tries}");
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        let usage = retry.counters.usage();
        assert_eq!(
            (usage.read_requests, usage.retried_requests),
            (tries, tries - 1)
        );
    }

    #[tokio::test]
    async fn a_refusal_is_not_repeated() {
        let retry = Retry::new(RetryPolicy::default());
        let ended: Result<(), _> = retry
            .run(What::List("x"), || async {
                Err(Failure::refused("do this", "403"))
            })
            .await;
        assert!(matches!(ended, Err(StoreError::Refused { remedy, .. }) if remedy == "do this"));
        assert_eq!(retry.counters.usage().read_requests, 1);
    }
}
