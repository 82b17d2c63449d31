//! A million crash states, as a test of its own that comes last: its last line says how many there were.
//!
//! One seed again: `cargo run --release -p everlog-wal --example crash_states -- --seed SEED`.

use std::{process::ExitCode, time::Instant};

use everlog_wal::crash::explore::{self, Options, Seen};

/// The fewest states that a run of the tests goes through.
const STATES_MIN: u64 = 1_000_000;
/// The seeds of every run begin here: a change of the code is what is to be tried, not luck.
const FIRST_SEED: u64 = 1;
const THREADS: usize = 2;

#[expect(clippy::print_stdout, reason = "what this test is to say")]
fn tell(seed: u64, seen: &Seen) {
    println!(
        "seed {seed}: {} states, {} lives, {} went on, {} after a second crash, {} with a header copy lost or rolled back, {} late writes",
        seen.states,
        seen.lives,
        seen.went_on,
        seen.second_crashes,
        seen.header_faults,
        seen.late_writes
    );
}

#[expect(clippy::print_stdout, reason = "what this test is to say")]
#[expect(
    clippy::disallowed_methods,
    reason = "the time a test takes is no part of what it checks"
)]
fn main() -> ExitCode {
    let begun = Instant::now();
    match explore::many(FIRST_SEED, STATES_MIN, THREADS, Options::CI, tell) {
        Ok(seen) => {
            println!(
                "{} lives, {} s, from seed {FIRST_SEED} on",
                seen.lives,
                begun.elapsed().as_secs()
            );
            println!("{} crash states", seen.states);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!(
                "{failure}\nagain: cargo run --release -p everlog-wal --example crash_states -- --seed {}",
                failure.seed
            );
            ExitCode::FAILURE
        }
    }
}
