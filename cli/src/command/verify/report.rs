//! What was read, what was found, and what that amounts to.

use std::fmt;

use everlog_index::{IndexError, Totals};
use everlog_store::{StoreError, chain};

use crate::table::{counted, grouped, short_bytes};

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Something is not as the commits say.
    Damage { what: String, why: String },
    /// It could not be looked at, so nothing is known of it.
    Unchecked { what: String, why: String },
    /// The same, because the store did not answer: it may not for what comes next, either.
    Unanswered { what: String, why: String },
}

impl Finding {
    /// The same, with the partition's name before it.
    pub(super) fn of(self, partition: &str) -> Finding {
        match self {
            Finding::Damage { what, why } => Finding::Damage {
                what: format!("{partition}: {what}"),
                why,
            },
            Finding::Unchecked { what, why } => Finding::Unchecked {
                what: format!("{partition}: {what}"),
                why,
            },
            Finding::Unanswered { what, why } => Finding::Unanswered {
                what: format!("{partition}: {what}"),
                why,
            },
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Damage { what, why } => write!(f, "damage: {what}: {why}"),
            Finding::Unchecked { what, why } | Finding::Unanswered { what, why } => {
                write!(f, "not checked: {what}: {why}")
            }
        }
    }
}

/// A store's error: only "not there" says something about the archive.
pub(super) fn store_finding(what: String, err: &StoreError) -> Finding {
    match err {
        StoreError::NotFound { .. } => Finding::Damage {
            what,
            why: "it is not there".to_owned(),
        },
        StoreError::Refused { .. } => Finding::Unchecked {
            what,
            why: chain(err),
        },
        StoreError::Unavailable { .. } => Finding::Unanswered {
            what,
            why: chain(err),
        },
    }
}

pub(super) fn index_finding(what: String, err: &IndexError) -> Finding {
    match err {
        IndexError::Store(err) => store_finding(what, err),
        IndexError::Corrupt { .. } | IndexError::Missing { .. } => Finding::Damage {
            what,
            why: chain(err),
        },
        IndexError::Unsupported { .. } | IndexError::NoArchive { .. } => Finding::Unchecked {
            what,
            why: chain(err),
        },
    }
}

/// What a person can do about damage. Nothing here mends: what was damaged is not in this archive any more.
const REMEDY: &str = "\
What to do: put each object that is named above back as it was, under the same name: from an earlier version in the bucket (if it
keeps versions), a replica or a backup; then verify again. Until then clients that come to those records get an error, and nothing
is skipped. Do not delete anything that is named: a damaged segment can still hold row groups that are whole.";

/// How it ended, as the exit status tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Sound,
    Damaged,
    /// Nothing was found, but not everything could be looked at.
    Unknown,
}

/// What was read, and what was found.
pub(super) struct Report {
    pub(super) partitions: u64,
    pub(super) commits: u64,
    pub(super) nodes: u64,
    pub(super) read: Totals,
    /// Segments that were replaced while we read.
    pub(super) replaced: u64,
    /// The store was away for so long that the rest was not looked at.
    pub(super) gave_up: bool,
    findings: Vec<Finding>,
    /// Told of each finding at once: the whole can take days.
    tell: Box<dyn FnMut(&Finding) + Send>,
}

impl Report {
    pub(super) fn new(tell: impl FnMut(&Finding) + Send + 'static) -> Report {
        Report {
            partitions: 0,
            commits: 0,
            nodes: 0,
            read: Totals::default(),
            replaced: 0,
            gave_up: false,
            findings: Vec::new(),
            tell: Box::new(tell),
        }
    }

    pub(super) fn add(&mut self, finding: Finding) {
        (self.tell)(&finding);
        self.findings.push(finding);
    }

    pub(super) fn finding_count(&self) -> usize {
        self.findings.len()
    }

    pub(super) fn verdict(&self) -> Verdict {
        match (self.damage_count(), self.findings.len()) {
            (0, 0) if !self.gave_up => Verdict::Sound,
            (0, _) => Verdict::Unknown,
            (_, _) => Verdict::Damaged,
        }
    }

    fn damage_count(&self) -> usize {
        let is_damage = |finding: &&Finding| matches!(finding, Finding::Damage { .. });
        self.findings.iter().filter(is_damage).count()
    }

    /// The last lines that the command prints.
    pub(super) fn conclusion(&self) -> String {
        let read = format!(
            "read {}, {}, {}, {}, {}, {}; {}; {} replaced while reading\n",
            counted(self.partitions, "partition", "partitions"),
            counted(self.commits, "commit", "commits"),
            counted(self.nodes, "node", "nodes"),
            counted(self.read.segments, "segment", "segments"),
            counted(self.read.records, "record", "records"),
            short_bytes(self.read.bytes),
            counted(self.read.holes, "hole", "holes"),
            grouped(self.replaced),
        );
        let counted = |count: usize, one, many| counted(count as u64, one, many);
        let damages = self.damage_count();
        let unchecked = self.findings.len() - damages;
        let found_damages = counted(damages, "damage found", "damages found");
        let not_made = counted(
            unchecked,
            "check could not be made",
            "checks could not be made",
        );
        let mut found = match (damages, unchecked) {
            (0, 0) => "everything is as the commits say".to_owned(),
            (0, _) => not_made,
            (_, 0) => found_damages,
            (_, _) => format!("{found_damages}, {not_made}"),
        };
        if self.gave_up {
            found.push_str("; the store stayed away, so the rest was not looked at");
        }
        if damages > 0 {
            found.push('\n');
            found.push_str(REMEDY);
        }
        read + &found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A denied prefix, an object of a newer version: what lies behind can still be looked at.
    #[test]
    fn only_a_store_that_does_not_answer_is_a_reason_to_give_up() {
        let what = || "get a".to_owned();
        let away = StoreError::Unavailable {
            what: what(),
            source: "timed out".into(),
        };
        let refused = StoreError::Refused {
            what: what(),
            remedy: "grant it".to_owned(),
            source: "403".into(),
        };
        let unanswered = |err: &StoreError| {
            let finding = store_finding(what(), err).of("orders-0");
            matches!(finding, Finding::Unanswered { what, .. } if what == "orders-0: get a")
        };
        assert!(unanswered(&away));
        assert!(!unanswered(&refused));
    }
}
