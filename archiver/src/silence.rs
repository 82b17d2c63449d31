//! The gauge of a cluster that does not answer, brought up to date while somebody waits.

use std::time::{Duration, Instant};

use prometheus::Gauge;

use crate::clock::now;

const EVERY: Duration = Duration::from_secs(1);

/// Waits for `answer`. `since`: when the cluster last answered, if it is known to be silent; then the seconds since are counted
/// meanwhile.
pub(crate) async fn counted<T>(
    silent_seconds: &Gauge,
    since: Option<Instant>,
    answer: impl Future<Output = T>,
) -> T {
    let Some(since) = since else {
        return answer.await;
    };
    let mut answer = std::pin::pin!(answer);
    loop {
        silent_seconds.set(now().saturating_duration_since(since).as_secs_f64());
        if let Ok(answer) = tokio::time::timeout(EVERY, &mut answer).await {
            return answer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It stood still for as long as a question or a pause took: half a minute, with alarms that look once a minute.
    #[tokio::test]
    async fn a_silence_grows_while_somebody_waits() {
        let silent = Gauge::new("silent", "silent").unwrap();
        let wait = || tokio::time::sleep(Duration::from_millis(2_500));
        counted(&silent, None, wait()).await;
        assert_eq!(silent.get(), 0.0);
        let since = now().checked_sub(Duration::from_secs(10)).unwrap();
        counted(&silent, Some(since), wait()).await;
        assert!(12.0 <= silent.get(), "{}", silent.get());
    }
}
