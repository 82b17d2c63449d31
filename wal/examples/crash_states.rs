//! Crash enumeration without an end: `crash_states [--first SEED] [--states N] [--threads T]`, or one seed again: `crash_states --seed SEED`.
//!
//! Each seed stands for one log: its geometry, its workload, what was in flight at each moment, what landed, which crashes follow. A
//! failure prints its seed; the same seed gives the same states on every machine. `crash_states --trials 1` runs each test of the rules, first with
//! all rules, then without the one it is to notice.

use std::process::ExitCode;

use everlog_wal::{
    crash::{
        explore::{self, Failure, Options, Seen},
        mutations::{self, TRIALS, Verdict},
    },
    rules::Rules,
};

struct Arguments {
    first: u64,
    states: u64,
    threads: usize,
    one: bool,
    trials: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        first: 1,
        states: 100_000_000,
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        one: false,
        trials: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(name) = words.next() {
        let word = words.next().ok_or(format!("{name} needs a number"))?;
        let number: u64 = word
            .parse()
            .map_err(|_bad| format!("{word} is no number"))?;
        match name.as_str() {
            "--first" => parsed.first = number,
            "--seed" => (parsed.first, parsed.one) = (number, true),
            "--trials" => parsed.trials = number > 0,
            "--states" => parsed.states = number,
            "--threads" => parsed.threads = usize::try_from(number).unwrap_or(1),
            _ => {
                return Err(format!(
                    "{name} is not known; --first, --states, --threads, --seed are"
                ));
            }
        }
    }
    Ok(parsed)
}

#[expect(
    clippy::print_stdout,
    reason = "a command that reports to whoever started it"
)]
fn tell(seed: u64, seen: &Seen) {
    println!("seed {seed}: {seen:?}");
}

#[expect(
    clippy::print_stdout,
    reason = "a command that reports to whoever started it"
)]
fn trials() -> ExitCode {
    let mut failed = false;
    for trial in TRIALS {
        let result = trial.run(Rules::ALL);
        println!("{}: {result:?}", trial.name);
        failed |= result.is_err();
    }
    for mutation in mutations::all() {
        let verdict = mutation.verdict();
        println!(
            "without {} ({}): {verdict:?}",
            mutation.rule, mutation.trial.name
        );
        failed |= matches!(verdict, Verdict::Missed);
    }
    ExitCode::from(u8::from(failed))
}

#[expect(
    clippy::print_stdout,
    reason = "a command that reports to whoever started it"
)]
#[expect(
    clippy::print_stderr,
    reason = "a command that reports to whoever started it"
)]
fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(fault) => {
            eprintln!("{fault}");
            return ExitCode::from(2);
        }
    };
    if arguments.trials {
        return trials();
    }
    let result: Result<Seen, Failure> = if arguments.one {
        explore::seed(arguments.first, Options::CI).inspect(|seen| tell(arguments.first, seen))
    } else {
        let (first, states, threads) = (arguments.first, arguments.states, arguments.threads);
        explore::many(first, states, threads, Options::CI, tell)
    };
    match result {
        Ok(seen) => {
            println!("{} crash states", seen.states);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}\nagain: --seed {}", failure.seed);
            ExitCode::FAILURE
        }
    }
}
