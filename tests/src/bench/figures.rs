//! Figures of several rounds: min, median, max.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// Values by name, one per round.
#[derive(Debug, Default)]
pub(super) struct Figures {
    values: BTreeMap<String, Vec<f64>>,
}

impl Figures {
    pub(super) fn add(&mut self, name: &str, value: f64) {
        self.values.entry(name.to_owned()).or_default().push(value);
    }

    /// The medians of all figures whose names begin like this.
    pub(super) fn medians_of(&self, beginning: &str) -> Vec<f64> {
        let alike = self.values.iter();
        alike
            .filter(|(name, _)| name.starts_with(beginning))
            .map(|(_, values)| median(values))
            .collect()
    }

    /// A table, or one object of medians.
    pub(super) fn print(&self, json: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            let mut object = Map::new();
            for (name, values) in &self.values {
                // The largest memory of all runs is the one that has to fit.
                let value = if name == "peak_rss_mib" {
                    largest(values)
                } else {
                    median(values)
                };
                let rounded = (value * 1000.0).round() / 1000.0;
                object.insert(
                    name.clone(),
                    serde_json::Number::from_f64(rounded)
                        .context("a figure")?
                        .into(),
                );
            }
            writeln!(out, "{}", Value::Object(object))?;
            return Ok(());
        }
        writeln!(
            out,
            "{:<44} {:>10} {:>10} {:>10}",
            "figure", "min", "median", "max"
        )?;
        for (name, values) in &self.values {
            let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
            writeln!(
                out,
                "{name:<44} {smallest:>10.3} {:>10.3} {:>10.3}",
                median(values),
                largest(values)
            )?;
        }
        Ok(())
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// Of an even count, the mean of the middle two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (count, middle) if count % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        (_, middle) => sorted[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn a_median_lies_in_the_middle() {
        assert_eq!(
            [
                median(&[3.0, 1.0, 2.0]),
                median(&[4.0, 1.0]),
                median(&[7.0])
            ],
            [2.0, 2.5, 7.0]
        );
    }
}
