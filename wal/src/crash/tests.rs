//! The proofs that run with every `cargo test`. The million crash states are a test of their own, `tests/zz_crash_states.rs`.

use std::sync::Mutex;

use super::{
    corruption::Still,
    explore::{self, Options},
    mutations::{self, TRIALS, Verdict},
};
use crate::rules::Rules;

#[test]
fn a_seed_is_always_the_same_seed() {
    let options = Options {
        states_max: 3000,
        ..Options::SAMPLE
    };
    let (first, second) = (explore::seed(7, options), explore::seed(7, options));
    assert_eq!(first.expect("sound"), second.expect("sound"));
}

#[test]
fn damage_of_every_kind_at_every_sector_is_reported() {
    for seed in 1..=4 {
        let mut log = Still::new(seed, true).expect("sound");
        let tallies = [
            ("flipped bits", log.flip_bits(3)),
            ("sectors", log.lose_sectors()),
            ("blocks", log.misdirect_blocks()),
            ("reads", log.unsteady_reads()),
            ("unreadable", log.unreadable_sectors()),
            ("headers", log.roll_headers_back()),
        ];
        for (what, tally) in tallies {
            let tally = tally.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
            assert!(tally.tried > 0, "{what}: nothing was tried");
        }
    }
}

#[test]
fn with_all_rules_every_trial_passes() {
    run_on_two_threads(TRIALS.len(), |index| {
        let trial = &TRIALS[index];
        if let Err(what) = trial.run(Rules::ALL) {
            panic!("{}: {what}", trial.name);
        }
    });
}

#[test]
#[expect(clippy::print_stdout, reason = "the table that the documentation has")]
fn each_rule_is_missed_when_it_is_off() {
    let all = mutations::all();
    let mut names: Vec<String> = all
        .iter()
        .map(|mutation| mutation.rule.to_owned())
        .collect();
    let mut rules = mutations::rule_names();
    names.sort();
    rules.sort();
    assert_eq!(names, rules, "each rule has one line");
    let verdicts: Vec<Mutex<Option<Verdict>>> = all.iter().map(|_| Mutex::new(None)).collect();
    run_on_two_threads(all.len(), |index| {
        *verdicts[index].lock().expect("one thread") = Some(all[index].verdict());
    });
    let verdicts: Vec<_> = all
        .into_iter()
        .zip(verdicts)
        .map(|(mutation, verdict)| {
            let verdict = verdict.into_inner().expect("one thread").expect("judged");
            (mutation, verdict)
        })
        .collect();
    println!("{}", mutations::table(&verdicts));
    let mut missed = Vec::new();
    for (mutation, verdict) in &verdicts {
        match verdict {
            Verdict::Noticed(what) => println!("without {}: {what}", mutation.rule),
            Verdict::Missed => missed.push(mutation.rule),
        }
    }
    assert!(missed.is_empty(), "nobody notices when off: {missed:?}");
}

/// Runs `act` for each number below `count`, two at a time, and fails if one does.
fn run_on_two_threads(count: usize, act: impl Fn(usize) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    act(index);
                }
            });
        }
    });
}
