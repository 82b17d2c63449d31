//! A librdkafka consumer that drops what it reads: the yardstick of the benchmark.
//!
//! `bare-consumer BOOTSTRAP TOPIC RECORDS [PARTITION OFFSET]` reads from the beginning (or from one place) until it has that many
//! records and prints one line of JSON.

use std::io::Write as _;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let word = |index: usize| {
        words
            .get(index)
            .context("BOOTSTRAP TOPIC RECORDS [PARTITION OFFSET]")
    };
    let place = match (words.get(3), words.get(4)) {
        (Some(partition), Some(offset)) => Some((partition.parse()?, offset.parse()?)),
        _ => None,
    };
    let line = everlog_tests::drain(word(0)?, word(1)?, word(2)?.parse()?, place)?;
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
