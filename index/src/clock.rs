//! Time since some fixed moment, for the rules that count it. No date is ever taken from it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A clock that never goes back and counts time in which the machine was suspended: a laptop that slept for a month
/// must not believe that it has just read the chain.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// The machine's own.
    pub fn system() -> Clock {
        Clock(Arc::new(since_boot))
    }

    /// A test's own: time since any fixed moment.
    pub fn from_fn(now: impl Fn() -> Duration + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(now))
    }

    /// Time since the clock's fixed moment.
    pub fn now(&self) -> Duration {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// `std::time::Instant` stands still during suspension on Linux, so the clock is asked by its name.
#[expect(unsafe_code, reason = "std has no clock that counts suspension")]
fn since_boot() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    // macOS counts suspension here; elsewhere it is the best there is.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec that outlives the call, and the call writes nothing else.
    let result = unsafe { libc::clock_gettime(CLOCK, &raw mut time) };
    assert_eq!(result, 0, "a kernel since 2.6.39 has this clock");
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_clock_goes_on() {
        let clock = Clock::system();
        let first = clock.now();
        assert!(Duration::ZERO < first && first <= clock.now());
    }
}
