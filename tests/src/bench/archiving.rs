//! When an archiver began and ended its work, by its own log.
//!
//! The bare consumer's clock starts once its partitions are assigned, so the archiver's does too: at its first line that
//! says "archiving", when the first partition is given to the fetcher. It ends with the last commit. What comes before
//! (the process, the store's probe, the group) is a figure of its own.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// What the log of one run tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Archiving {
    /// From the first partition's assignment to the last commit.
    pub(super) work: Duration,
    /// From the first partition's assignment to the end of the log.
    pub(super) to_end: Duration,
}

impl Archiving {
    /// Reads a log of one JSON object a line.
    pub(super) fn of(log: &str) -> Result<Archiving> {
        let lines: Vec<(Duration, Value)> = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter_map(|line: Value| Some((time_of_day(line["timestamp"].as_str()?)?, line)))
            .collect();
        let says = |wanted: &'static str| {
            lines
                .iter()
                .filter(move |(_, line)| line["message"] == wanted)
                .map(|(time, _)| *time)
        };
        let begin = says("archiving")
            .next()
            .context("no partition was assigned")?;
        let commit = says("committed")
            .next_back()
            .context("nothing was committed")?;
        let end = lines.last().map_or(commit, |(time, _)| *time);
        Ok(Archiving {
            work: since(begin, commit),
            to_end: since(begin, end),
        })
    }
}

/// A run can cross midnight, but takes no day.
fn since(begin: Duration, end: Duration) -> Duration {
    const DAY: Duration = Duration::from_secs(86_400);
    end.checked_sub(begin)
        .unwrap_or_else(|| (end + DAY).saturating_sub(begin))
}

/// Of `2026-11-21T15:33:57.127201Z`.
fn time_of_day(timestamp: &str) -> Option<Duration> {
    let (_, time) = timestamp.trim_end_matches('Z').split_once('T')?;
    let mut parts = time.split(':');
    let hours: f64 = parts.next()?.parse().ok()?;
    let minutes: f64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Duration::try_from_secs_f64(hours * 3600.0 + minutes * 60.0 + seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_from_the_first_assignment_to_the_last_commit() {
        let line = |time: &str, message: &str| {
            format!("{{\"timestamp\":\"2026-11-21T{time}Z\",\"message\":\"{message}\"}}\n")
        };
        let log = [
            line("23:59:57.5", "the archive is open"),
            line("23:59:58.0", "archiving"),
            line("23:59:58.5", "archiving"),
            "no JSON\n".to_owned(),
            line("23:59:59.0", "committed"),
            line("00:00:00.5", "committed"),
            line("00:00:01.0", "stopped"),
        ]
        .concat();
        let found = Archiving::of(&log).expect("a figure in each");
        assert_eq!(found.work, Duration::from_millis(2_500));
        assert_eq!(found.to_end, Duration::from_secs(3));
        assert!(Archiving::of("").is_err());
    }
}
