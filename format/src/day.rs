//! The label `dt` of a segment: a UTC day. It helps SQL engines to prune and decides nothing.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveDate};

/// A UTC day in the years 1970 to 9999, `2026-11-21` in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(NaiveDate);

/// Text that is no day in the wanted form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a day written as YYYY-MM-DD between 1970 and 9999")]
pub struct InvalidDay(String);

const EPOCH: NaiveDate = match NaiveDate::from_ymd_opt(1970, 1, 1) {
    Some(day) => day,
    None => unreachable!(),
};

impl Day {
    /// 1970-01-01: the label where nothing better is known.
    pub const UNKNOWN: Day = Day(EPOCH);

    /// The label of a segment whose first record has this timestamp: its UTC day if that lies in the years 2000 to
    /// 9999, else the label of the entry before, else 1970-01-01.
    pub fn of_segment(first_timestamp_ms: i64, entry_before: Option<Day>) -> Day {
        DateTime::from_timestamp_millis(first_timestamp_ms)
            .map(|time| time.date_naive())
            .filter(|day| (2000..=9999).contains(&day.year()))
            .map(Day)
            .or(entry_before)
            .unwrap_or(Day::UNKNOWN)
    }

    /// Days since 1970-01-01, as Parquet's DATE wants it.
    pub fn days_since_epoch(self) -> i32 {
        i32::try_from((self.0 - EPOCH).num_days())
            .expect("the years up to 9999 have fewer days than an i32 counts")
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04}-{:02}-{:02}",
            self.0.year(),
            self.0.month(),
            self.0.day()
        )
    }
}

impl FromStr for Day {
    type Err = InvalidDay;

    fn from_str(text: &str) -> Result<Day, InvalidDay> {
        NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .ok()
            .filter(|day| (1970..=9999).contains(&day.year()))
            .map(Day)
            .filter(|day| day.to_string() == text)
            .ok_or_else(|| InvalidDay(text.chars().take(40).collect()))
    }
}

impl serde::Serialize for Day {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Day {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Day, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_comes_from_the_record_then_from_the_entry_before() {
        let before = "2026-11-20".parse().ok();
        assert_eq!(
            Day::of_segment(1_700_000_000_000, before).to_string(),
            "2023-11-14"
        );
        assert_eq!(Day::of_segment(0, before).to_string(), "2026-11-20");
        assert_eq!(Day::of_segment(i64::MAX, None).to_string(), "1970-01-01");
        assert_eq!(Day::of_segment(-1, None), Day::UNKNOWN);
    }

    #[test]
    fn days_count_from_1970_and_read_back_as_written() {
        let day: Day = "2000-03-01".parse().expect("a day");
        assert_eq!(day.days_since_epoch(), 11_017);
        assert_eq!(day.to_string().parse(), Ok(day));
        assert!("2000-3-1".parse::<Day>().is_err());
        assert!("0001-01-01".parse::<Day>().is_err());
    }
}
