//! What a log must hold, judged from what its writer said before it was killed.
//!
//! The writer's lines, one fact each, in the order in which it knew them:
//!
//! | line | fact |
//! |---|---|
//! | `H stream first next` | found on opening: the records `first..next` |
//! | `V stream seq run appender counter lsn` | found on opening: this record (`BAD` for the last four: its bytes are wrong) |
//! | `E` | all of it has been read; from here on it writes |
//! | `S stream appender counter` | is about to append this |
//! | `A stream seq appender counter lsn` | was acknowledged |
//! | `T stream below` | is about to trim; may come back after a crash |
//! | `D stream below` | was trimmed for good |
//! | `X text` | something went wrong that must not |

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context, Result, bail, ensure};

/// Who wrote a record: run, appender, and the appender's count.
pub(crate) type Name = (u64, u64, u64);

/// What is known of one stream.
#[derive(Default)]
struct Stream {
    /// By seq, with the LSN last heard of: acknowledged, or found on opening, which is a promise as well.
    held: BTreeMap<u64, (Name, u64)>,
    /// All that was ever submitted.
    submitted: HashSet<Name>,
    /// What has a seq already, also if trimmed since.
    numbered: HashSet<Name>,
    /// No record from here on may be missing.
    trim_asked: u64,
    /// No record below may come back.
    trim_durable: u64,
    /// All seqs below have been given away.
    next: u64,
    /// While a log is opened: what it claims to hold, and how far that has been shown.
    claimed: Option<(u64, u64)>,
    shown: BTreeSet<u64>,
}

/// Everything that is known, and what was counted.
#[derive(Default)]
pub(crate) struct Oracle {
    streams: BTreeMap<u64, Stream>,
    run: u64,
    writing: bool,
    pub(crate) acknowledged: u64,
    /// Records found further on than they were before.
    pub(crate) relocated: u64,
    /// Records that nobody was told of and that were there all the same.
    pub(crate) unacknowledged_found: u64,
    pub(crate) lsn: u64,
}

impl Oracle {
    /// A new process opens the log.
    pub(crate) fn begin(&mut self, run: u64) {
        self.run = run;
        self.writing = false;
        for stream in self.streams.values_mut() {
            stream.claimed = None;
            stream.shown.clear();
        }
    }

    /// Whether the writer has read everything that it found.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing
    }

    /// Takes one line. An error is a broken promise.
    pub(crate) fn line(&mut self, line: &str) -> Result<()> {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        if what == "X" {
            bail!("the writer says: {rest}");
        }
        let context = || format!("run {}: `{line}`", self.run);
        let facts = Facts::read(what, rest).with_context(context)?;
        let run = self.run;
        match facts {
            Facts::Other => Ok(()),
            Facts::AllShown => {
                self.writing = true;
                self.judge_opening()
            }
            Facts::Bad { stream, seq } => {
                bail!("run {run}: record {seq} of stream {stream} has wrong bytes")
            }
            Facts::Of(stream, fact) => {
                if let Fact::Acknowledged { lsn, .. } = fact {
                    self.acknowledged += 1;
                    self.lsn = self.lsn.max(lsn);
                }
                let found = self.streams.entry(stream).or_default().take(run, fact);
                match found.with_context(context)? {
                    Found::Nothing => {}
                    Found::Unacknowledged => self.unacknowledged_found += 1,
                    Found::Moved => self.relocated += 1,
                }
                Ok(())
            }
        }
    }

    /// All that was found has been shown: is anything missing?
    fn judge_opening(&mut self) -> Result<()> {
        let run = self.run;
        for (number, stream) in &mut self.streams {
            stream
                .judge_opening()
                .with_context(|| format!("run {run}, stream {number}"))?;
        }
        Ok(())
    }
}

enum Facts {
    Other,
    AllShown,
    Bad { stream: u64, seq: u64 },
    Of(u64, Fact),
}

enum Fact {
    Claim {
        first: u64,
        next: u64,
    },
    Shown {
        seq: u64,
        name: Name,
        lsn: u64,
    },
    Submitted {
        name: (u64, u64),
    },
    Acknowledged {
        seq: u64,
        name: (u64, u64),
        lsn: u64,
    },
    TrimAsked(u64),
    TrimDurable(u64),
}

/// What a line brought to light.
enum Found {
    Nothing,
    /// A record that was in flight when its process died, and nobody was told of.
    Unacknowledged,
    /// A record that has been relocated.
    Moved,
}

impl Facts {
    fn read(what: &str, rest: &str) -> Result<Facts> {
        let words: Vec<&str> = rest.split(' ').collect();
        if what == "V" && words.last() == Some(&"BAD") {
            return Ok(Facts::Bad {
                stream: words[0].parse()?,
                seq: words[1].parse()?,
            });
        }
        if !matches!(what, "H" | "V" | "S" | "A" | "T" | "D" | "E") {
            return Ok(Facts::Other);
        }
        let words = words.iter().filter(|word| !word.is_empty());
        let n = words
            .map(|word| word.parse())
            .collect::<Result<Vec<u64>, _>>()?;
        let (stream, fact) = match (what, n.as_slice()) {
            ("E", []) => return Ok(Facts::AllShown),
            ("H", [stream, first, next]) => (
                *stream,
                Fact::Claim {
                    first: *first,
                    next: *next,
                },
            ),
            ("V", [stream, seq, run, appender, counter, lsn]) => (
                *stream,
                Fact::Shown {
                    seq: *seq,
                    name: (*run, *appender, *counter),
                    lsn: *lsn,
                },
            ),
            ("S", [stream, appender, counter]) => (
                *stream,
                Fact::Submitted {
                    name: (*appender, *counter),
                },
            ),
            ("A", [stream, seq, appender, counter, lsn]) => (
                *stream,
                Fact::Acknowledged {
                    seq: *seq,
                    name: (*appender, *counter),
                    lsn: *lsn,
                },
            ),
            ("T", [stream, below]) => (*stream, Fact::TrimAsked(*below)),
            ("D", [stream, below]) => (*stream, Fact::TrimDurable(*below)),
            _ => bail!("not a line of the writer's"),
        };
        Ok(Facts::Of(stream, fact))
    }
}

impl Stream {
    fn take(&mut self, run: u64, fact: Fact) -> Result<Found> {
        match fact {
            Fact::Claim { first, next } => {
                ensure!(
                    next >= self.next,
                    "the numbers start again: next is {next}, {} were given away",
                    self.next
                );
                self.claimed = Some((first, next));
            }
            Fact::Shown { seq, name, lsn } => return self.show(seq, name, lsn),
            Fact::Submitted { name } => {
                ensure!(
                    self.submitted.insert((run, name.0, name.1)),
                    "the writer submits twice"
                );
            }
            Fact::Acknowledged { seq, name, lsn } => {
                let name = (run, name.0, name.1);
                ensure!(self.submitted.contains(&name), "never submitted");
                ensure!(
                    self.numbered.insert(name),
                    "this record has a number already"
                );
                let claimed = self.claimed.map_or(0, |(_, next)| next);
                ensure!(
                    seq >= claimed,
                    "{seq} was given away before this opening (next was {claimed})"
                );
                if let Some(other) = self.held.insert(seq, (name, lsn)) {
                    bail!("{seq} was given to {other:?} already");
                }
                self.next = self.next.max(seq + 1);
            }
            Fact::TrimAsked(below) => self.trim_asked = self.trim_asked.max(below),
            Fact::TrimDurable(below) => {
                self.trim_durable = self.trim_durable.max(below);
                // What is gone for good is not needed any more, but as numbers.
                self.held = self.held.split_off(&self.trim_durable);
            }
        }
        Ok(Found::Nothing)
    }

    fn show(&mut self, seq: u64, name: Name, lsn: u64) -> Result<Found> {
        let (first, next) = self.claimed.context("shown before it was claimed")?;
        ensure!(first <= seq && seq < next, "outside of {first}..{next}");
        ensure!(self.shown.insert(seq), "shown twice");
        ensure!(
            seq >= self.trim_durable,
            "it was trimmed for good below {}",
            self.trim_durable
        );
        match self.held.insert(seq, (name, lsn)) {
            Some((known, before)) => {
                ensure!(known == name, "{known:?} had this number");
                ensure!(before <= lsn, "it has moved back from LSN {before}");
                Ok(if before < lsn {
                    Found::Moved
                } else {
                    Found::Nothing
                })
            }
            // It was in flight when the process died, and nobody was told. From now on it is there.
            None => {
                ensure!(self.submitted.contains(&name), "never submitted");
                ensure!(
                    self.numbered.insert(name),
                    "this record has another number already"
                );
                Ok(Found::Unacknowledged)
            }
        }
    }

    fn judge_opening(&mut self) -> Result<()> {
        // The log names all its streams for ever, also one of which nothing is left: its numbers go on.
        ensure!(
            self.claimed.is_some() || self.next == 0,
            "the stream has vanished, {} numbers of it were given away",
            self.next
        );
        let (first, next) = self.claimed.unwrap_or((self.next, self.next));
        ensure!(
            self.shown.len() as u64 == next - first,
            "{} records of {first}..{next} were shown",
            self.shown.len()
        );
        if let Some((seq, (name, lsn))) = self
            .held
            .range(self.trim_asked..)
            .find(|(seq, _)| !self.shown.contains(seq))
        {
            bail!(
                "acknowledged record {seq} {name:?} of LSN {lsn} is missing; {first}..{next} are there"
            );
        }
        // An appender waits for each record before the next: its records are in order, none left out.
        let mut last: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for (seq, ((run, appender, counter), _)) in self.held.range(first..next) {
            if let Some(before) = last.insert((*run, *appender), *counter) {
                ensure!(
                    *counter == before + 1,
                    "record {seq}: {counter} of appender {appender} of run {run} follows on {before}"
                );
            }
        }
        self.next = self.next.max(next);
        // What the lazy trim has given up is gone now.
        self.held = self.held.split_off(&first);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&[&str]]) -> Result<()> {
        let mut oracle = Oracle::default();
        for (run, lines) in (1..).zip(lines) {
            oracle.begin(run);
            lines.iter().try_for_each(|line| oracle.line(line))?;
        }
        Ok(())
    }

    const FIRST: &[&str] = &["E", "S 1 0 0", "A 1 0 0 0 4096", "T 1 1", "D 1 1"];

    #[test]
    fn a_stream_that_was_drained_and_goes_on_is_right() {
        let second: &[&str] = &["H 1 1 1", "E", "S 1 0 0", "A 1 1 0 0 8192"];
        told(&[FIRST, second]).expect("all promises were kept");
    }

    /// It used to pass: nothing of it was live, and its numbers started again.
    #[test]
    fn a_stream_that_vanished_whole_is_missed() {
        let error = told(&[FIRST, &["E", "S 1 0 0", "A 1 0 0 0 8192"]]).expect_err("vanished");
        assert!(format!("{error:#}").contains("has vanished"), "{error:#}");
    }

    #[test]
    fn a_stream_of_which_nobody_was_told_may_be_absent() {
        told(&[&["E", "S 1 0 0"], &["E"]]).expect("nothing was acknowledged");
    }
}
