//! The proofs that run with every `cargo test`. The million crash states are a test of their own, `tests/zz_crash_states.rs`.

use std::sync::Mutex;

use super::{
    corruption::Still,
    explore::{self, Options},
    mutations::{self, Mutation, TRIALS, Verdict},
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
    run_on_two_threads(4, |index| {
        let seed = index as u64 + 1;
        let mut log = Still::new(seed, true).expect("sound");
        log.rescue_one_in = 4;
        let flips = log.flip_bits(3);
        log.rescue_one_in = 1;
        let tallies = [
            ("flipped bits", flips),
            ("sectors", log.lose_sectors()),
            ("blocks", log.misdirect_blocks()),
            ("reads", log.unsteady_reads()),
            ("unreadable", log.unreadable_sectors()),
            ("headers", log.roll_headers_back()),
            ("no headers", log.lose_headers()),
        ];
        for (what, tally) in tallies {
            let tally = tally.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
            assert!(tally.tried > 0, "{what}: nothing was tried");
            assert!(
                what == "reads" || tally.rescued > 0,
                "{what}: nothing came out"
            );
        }
    });
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
    let rules: Vec<&Mutation> = verdicts.iter().map(|(mutation, _)| mutation).collect();
    println!("{}", mutations::table(rules));
    let mut missed = Vec::new();
    for (mutation, verdict) in &verdicts {
        match verdict {
            Verdict::Noticed(what) => println!("without {}: {what}", mutation.rule),
            Verdict::Missed => missed.push(mutation.rule),
        }
    }
    assert!(missed.is_empty(), "nobody notices when off: {missed:?}");
}

/// The table in docs/wal.md is the one of the code, line by line.
#[test]
fn the_documentation_has_the_table_of_the_rules() {
    let all = mutations::all();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wal.md");
    let text = std::fs::read_to_string(path).expect("docs/wal.md");
    let table = mutations::table(&all);
    let begin = table.lines().next().expect("a head");
    let documented: Vec<&str> = text
        .lines()
        .skip_while(|line| *line != begin)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert_eq!(
        documented,
        table.lines().collect::<Vec<_>>(),
        "the table should be:\n{table}"
    );
}

/// Each row of the checklist has a rule.
#[test]
fn the_checklist_is_complete() {
    let rows = [
        "torn write",
        "stale lap",
        "bad middle vs end",
        "header",
        "ordering",
        "volatile cache",
        "failed write/flush",
        "short write",
        "ring full",
        "device shrinks/grows/replaced",
        "512 vs 4096",
        "read back",
        "clock",
        "second instance, same host",
        "second instance, other host",
        "double replay",
        "partial batch",
    ];
    let all = mutations::all();
    for row in rows {
        assert!(all.iter().any(|rule| rule.row == row), "{row}");
    }
    for rule in &all {
        assert!(rows.contains(&rule.row), "{}", rule.row);
    }
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
