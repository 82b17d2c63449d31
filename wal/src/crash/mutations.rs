//! Each rule switched off in turn, and the test that notices. A rule whose absence nobody notices is either untested or no rule.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    corruption::Still,
    crafted,
    explore::{self, Options},
    faults,
    model::Violation,
    owners,
};
use crate::rules::{self, Rules};

/// One test, as a function that runs under whatever rules hold.
#[derive(Clone, Copy)]
pub struct Trial {
    pub name: &'static str,
    run: fn() -> Result<(), Violation>,
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A rule of the failure checklist, how it is switched off, and which test is to notice.
#[derive(Debug)]
pub struct Mutation {
    /// The field of [`Rules`].
    pub rule: &'static str,
    /// The row of the failure checklist it belongs to.
    pub row: &'static str,
    pub without: Rules,
    pub trial: Trial,
}

/// What a trial said about a rule that is off.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Noticed: the first line of what was wrong.
    Noticed(String),
    Missed,
}

impl Trial {
    /// Runs the trial under `rules`. A panic is a failure like any other.
    pub fn run(&self, rules: Rules) -> Result<(), String> {
        let outcome = catch_unwind(AssertUnwindSafe(|| rules::with(rules, self.run)));
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(violation)) => Err(violation.0),
            Err(panic) => Err(format!(
                "panic: {}",
                panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("of another kind")
            )),
        }
    }
}

impl Mutation {
    pub fn verdict(&self) -> Verdict {
        match self.trial.run(self.without) {
            Ok(()) => Verdict::Missed,
            Err(what) => {
                let last = what.lines().last().unwrap_or_default().trim();
                Verdict::Noticed(last.chars().take(110).collect())
            }
        }
    }
}

/// Crashes at every moment, with everything that may come with them, over some seeds.
fn crashes() -> Result<(), Violation> {
    for seed in 1..=SAMPLE_SEEDS {
        let options = Options {
            rules: rules::rules(),
            ..Options::SAMPLE
        };
        explore::seed(seed, options)
            .map_err(|failure| Violation(format!("seed {seed}: {}", failure.violation)))?;
    }
    Ok(())
}

const SAMPLE_SEEDS: u64 = 12;

fn still(act: fn(&Still) -> Result<(), Violation>) -> Result<(), Violation> {
    for seed in 1..=3 {
        // The log is made by the rules that hold: some are broken while it is written.
        act(&Still::new(seed, true)?)?;
    }
    Ok(())
}

macro_rules! trials {
    ($($constant:ident = $name:literal: $run:expr;)*) => {
        $(const $constant: Trial = Trial { name: $name, run: $run };)*
        /// All trials; each passes while all rules hold.
        pub const TRIALS: &[Trial] = &[$($constant),*];
    };
}

trials! {
    CRASHES = "crashes_at_every_write": crashes;
    FLIPS = "a_flipped_bit_is_reported": || still(|log| log.flip_bits(29).map(|_| ()));
    SECTORS = "a_lost_or_misdirected_sector_is_reported": || still(|log| log.lose_sectors().map(|_| ()));
    BLOCKS = "a_misdirected_block_is_reported": || still(|log| log.misdirect_blocks().map(|_| ()));
    READS = "a_bad_read_is_repeated": || still(|log| log.unsteady_reads().map(|_| ()));
    HEADERS = "headers_rolled_back_are_noticed": || still(|log| log.roll_headers_back().map(|_| ()));
    EIO = "an_error_on_every_write": || faults::errors_on_every_write(3).map(|_| ());
    SHORT = "a_short_write_on_every_write": || faults::short_writes(3).map(|_| ());
    FENCED = "a_fenced_write_stops_the_log": || faults::fenced_writes(3).map(|_| ());
    LIES = "a_write_that_the_device_lies_about": || faults::lies_on_every_write(3).map(|_| ());
    DEVICES = "another_device_is_refused": || faults::changed_devices(3).map(|_| ());
    FORMATTED = "a_device_that_is_formatted_again": || (1..=4).try_for_each(|seed| faults::formatted_again(seed).map(|_| ()));
    FULL = "a_full_log_takes_records_again": || (1..=12).try_for_each(|seed| faults::full_and_drained(seed, seed % 4).map(|_| ()));
    SPLICED = "a_block_of_another_history_is_refused": || (1..=3).try_for_each(crafted::spliced);
    OLD_EPOCH = "a_block_of_a_dead_epoch_is_not_taken": || (1..=3).try_for_each(crafted::earlier_epoch);
    SKIPPED = "a_number_that_is_missing_is_refused": || (1..=3).try_for_each(crafted::skipped_number);
    STALE = "the_report_says_that_a_lap_is_old": || (1..=3).try_for_each(crafted::stale_lap);
    READ_BACK = "a_record_is_checked_when_it_is_read": || (1..=3).try_for_each(crafted::read_back);
    ONE_SOUND = "the_only_sound_copy_is_not_written": || (1..=3).try_for_each(crafted::only_sound_copy);
    MISPLACED = "the_last_block_misdirected_is_refused": || (1..=3).try_for_each(crafted::misdirected_last);
    SECTOR_SIZES = "a_write_is_made_of_whole_physical_sectors": || (1..=3).try_for_each(owners::every_sector);
    SAME_HOST = "a_second_process_is_turned_away": || owners::same_host(1);
    OTHER_HOST = "what_the_old_owner_acknowledges_the_new_one_has": || (1..=6).try_for_each(owners::another_host);
    TWICE = "a_number_that_comes_twice_is_refused": || (1..=3).try_for_each(crafted::repeated_number);
    WINDOW = "a_cut_in_the_last_block_is_in_the_report": || (1..=6).try_for_each(|seed| Still::new(seed, false)?.window().map(|_| ()));
}

macro_rules! mutations {
    ($($rule:ident, $row:literal, $trial:ident;)*) => {
        /// All rules with their tests.
        pub fn all() -> Vec<Mutation> {
            vec![$(Mutation {
                rule: stringify!($rule),
                row: $row,
                without: Rules { $rule: false, ..Rules::ALL },
                trial: $trial,
            }),*]
        }
    };
}

mutations! {
    torn_write, "torn write", CRASHES;
    stale_lap, "stale lap", STALE;
    chain, "stale lap", SPLICED;
    epoch_order, "stale lap", OLD_EPOCH;
    epoch_gap, "stale lap", CRASHES;
    identity, "stale lap", FORMATTED;
    bad_middle, "bad middle vs end", SECTORS;
    idle_mark, "bad middle vs end", SECTORS;
    dense, "bad middle vs end", SKIPPED;
    misdirected, "bad middle vs end", MISPLACED;
    header_two_copies, "header", CRASHES;
    header_one_by_one, "header", CRASHES;
    header_spares_newest, "header", ONE_SOUND;
    header_generation, "header", CRASHES;
    header_checksum, "header", FLIPS;
    header_rolled_back, "header", HEADERS;
    ack_in_order, "ordering", CRASHES;
    tail_keeps_live, "ordering", CRASHES;
    relocate_before_tail, "ordering", CRASHES;
    state_carried, "ordering", CRASHES;
    sync_trim_durable, "ordering", CRASHES;
    dedupe, "ordering", CRASHES;
    ack_after_durable, "volatile cache", CRASHES;
    sync_before_read, "volatile cache", CRASHES;
    poison, "failed write/flush", EIO;
    fenced, "failed write/flush", FENCED;
    short_write, "short write", SHORT;
    no_overwrite, "ring full", CRASHES;
    reserve, "ring full", FULL;
    window_persisted, "ring full", CRASHES;
    reuse_after_both_copies, "ring full", CRASHES;
    no_wrap, "ring full", CRASHES;
    device_identity, "device shrinks/grows/replaced", DEVICES;
    verify_reads, "read back", READ_BACK;
    read_again, "read back", READS;
    no_clock, "clock", CRASHES;
    physical_sector, "512 vs 4096", SECTOR_SIZES;
    exclusive, "second instance, same host", SAME_HOST;
    preempt, "second instance, other host", OTHER_HOST;
    preempt_aborts, "second instance, other host", OTHER_HOST;
    whole_record, "partial batch", CRASHES;
    once, "double replay", TWICE;
}

/// The names of all rules, from the type itself: a rule that is added without a test is found.
pub fn rule_names() -> Vec<String> {
    let text = format!("{:?}", Rules::ALL);
    text.split(['{', ','])
        .filter_map(|part| part.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .collect()
}

/// The table for the documentation: rule, row of the checklist, test.
pub fn table<'a>(rules: impl IntoIterator<Item = &'a Mutation>) -> String {
    let mut lines = vec![
        "| rule | checklist | test |".to_owned(),
        "|---|---|---|".to_owned(),
    ];
    for mutation in rules {
        lines.push(format!(
            "| `{}` | {} | `{}` |",
            mutation.rule, mutation.row, mutation.trial.name
        ));
    }
    lines.join("\n") + "\n"
}
