//! `everlog verify`: reads everything that an archive's commits name, hashes it, decodes it, and holds it against what
//! the index says of it.
//!
//! Nothing is kept from one object to the next and nothing is cached, so the whole costs as much memory as a few row
//! groups, whatever the size of the archive.

mod segment;
mod tally;

use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use everlog_format::{Offset, OffsetRange, PartitionKey};
use everlog_index::{
    Archive, DataEntry, Entry, EntryKind, Freshness, IndexError, Lookup, Snapshot, Totals,
};
use everlog_store::StoreError;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::ToolConfig;
use crate::open::open_to_read;
use crate::table::{grouped, short_bytes};
use crate::terminal::print;

/// Segments read at a time. Each holds one row group and what is decoded of it.
const PARALLEL: usize = 4;

/// Entries read at a time.
const ENTRIES_AT_A_TIME: usize = 512;

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Something is not as the commits say.
    Damage { what: String, why: String },
    /// It could not be looked at, so nothing is known of it.
    Unchecked { what: String, why: String },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Damage { what, why } => write!(f, "damage: {what}: {why}"),
            Finding::Unchecked { what, why } => write!(f, "not checked: {what}: {why}"),
        }
    }
}

/// The whole chain of an error's causes on one line.
fn all_causes(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(": ");
        text.push_str(&err.to_string());
        cause = err.source();
    }
    text
}

/// A store's error: only "not there" says something about the archive.
fn store_finding(what: String, err: &StoreError) -> Finding {
    match err {
        StoreError::NotFound { .. } => Finding::Damage {
            what,
            why: "it is not there".to_owned(),
        },
        StoreError::Unavailable { .. } | StoreError::Refused { .. } => Finding::Unchecked {
            what,
            why: all_causes(err),
        },
    }
}

fn index_finding(what: String, err: &IndexError) -> Finding {
    match err {
        IndexError::Store(err) => store_finding(what, err),
        IndexError::Corrupt { .. } | IndexError::Missing { .. } => Finding::Damage {
            what,
            why: all_causes(err),
        },
        IndexError::Unsupported { .. } | IndexError::NoArchive { .. } => Finding::Unchecked {
            what,
            why: all_causes(err),
        },
    }
}

/// What was read, and what was found.
#[derive(Debug, Default)]
struct Report {
    partitions: u64,
    commits: u64,
    read: Totals,
    /// Segments that were replaced while we read.
    replaced: u64,
    findings: Vec<Finding>,
}

/// How it ended, as the exit status tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Sound,
    Damaged,
    /// Nothing was found, but not everything could be looked at.
    Unknown,
}

/// Checks all partitions that `config` names.
pub(crate) async fn verify(config: ToolConfig) -> Result<Verdict> {
    let archive = open_to_read(&config.archive).await?;
    let mut snapshots = Vec::new();
    let mut report = Report::default();
    for topic in archive
        .topics()
        .await
        .context("the topics could not be listed")?
    {
        if config
            .topics
            .as_ref()
            .is_some_and(|topics| !topics.matches(topic.name.as_str(), false))
        {
            continue;
        }
        for partition in archive
            .partitions(&topic.incarnation)
            .await
            .context("the partitions could not be listed")?
        {
            let key = PartitionKey {
                incarnation: topic.incarnation.clone(),
                partition,
            };
            let what = format!("{}/{partition}", topic.name);
            match archive.snapshot(&key, Freshness::Now).await {
                Ok(Some(snapshot)) => snapshots.push((what, snapshot)),
                Ok(None) => {}
                Err(err) => report.findings.push(index_finding(what, &err)),
            }
        }
    }
    let bar = progress_bar(
        snapshots
            .iter()
            .map(|(_, snapshot)| snapshot.totals().bytes)
            .sum(),
    );
    for (what, snapshot) in snapshots {
        bar.set_message(what.clone());
        let before = report.findings.len();
        partition(&archive, &what, &snapshot, &bar, &mut report).await;
        for finding in report.findings.get(before..).unwrap_or_default() {
            bar.suspend(|| print(&finding.to_string()))?;
        }
    }
    bar.finish_and_clear();
    Ok(conclude(&report)?)
}

fn progress_bar(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:30} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left  {wide_msg}",
    );
    let bar = ProgressBar::new(bytes);
    // On something that is no terminal it draws nothing.
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn conclude(report: &Report) -> std::io::Result<Verdict> {
    let damage_count = report
        .findings
        .iter()
        .filter(|finding| matches!(finding, Finding::Damage { .. }))
        .count();
    let unchecked_count = report.findings.len() - damage_count;
    let Totals {
        segments,
        records,
        bytes,
        holes,
        ..
    } = report.read;
    print(&format!(
        "read {} partitions, {} commits, {} segments, {} records, {}; {} holes; {} replaced while reading",
        grouped(report.partitions),
        grouped(report.commits),
        grouped(segments),
        grouped(records),
        short_bytes(bytes),
        grouped(holes),
        grouped(report.replaced),
    ))?;
    let (verdict, text) = match (damage_count, unchecked_count) {
        (0, 0) => (
            Verdict::Sound,
            "everything is as the commits say".to_owned(),
        ),
        (0, unchecked) => (
            Verdict::Unknown,
            format!("{unchecked} checks could not be made"),
        ),
        (damage, 0) => (Verdict::Damaged, format!("{damage} damages found")),
        (damage, unchecked) => (
            Verdict::Damaged,
            format!("{damage} damages found, {unchecked} checks could not be made"),
        ),
    };
    print(&text)?;
    Ok(verdict)
}

async fn partition(
    archive: &Arc<Archive>,
    what: &str,
    snapshot: &Arc<Snapshot>,
    bar: &ProgressBar,
    report: &mut Report,
) {
    report.partitions += 1;
    match Ok::<Vec<()>, IndexError>(Vec::new()) /*COMMITS archive.commits(snapshot.key()).await*/ {
        Ok(commits) => report.commits += commits.len() as u64,
        Err(err) => report.findings.push(index_finding(format!("{what}: the chain of commits"), &err)),
    }
    let Some(covered) = snapshot.covered() else {
        return;
    };
    let mut read = Totals::default();
    let mut from = covered.start();
    while from < covered.end() {
        let entries = match snapshot.entries(from, ENTRIES_AT_A_TIME).await {
            Ok(entries) => entries,
            Err(err) => {
                report.findings.push(index_finding(
                    format!("{what}: the tree from offset {from}"),
                    &err,
                ));
                return;
            }
        };
        match end_of_run(&entries, from) {
            Ok(end) => from = end,
            Err(why) => {
                report.findings.push(Finding::Damage {
                    what: format!("{what}: the tree from offset {from}"),
                    why,
                });
                return;
            }
        }
        add_up(&entries, &mut read);
        segments(archive, what, snapshot, entries, bar, report).await;
    }
    if from != covered.end() || read != snapshot.totals() {
        let why = format!(
            "the commit says {:?} up to {}, the tree has {read:?} up to {from}",
            snapshot.totals(),
            covered.end()
        );
        report.findings.push(Finding::Damage {
            what: format!("{what}: the sums of commit {}", snapshot.number()),
            why,
        });
    }
    report.read.segments += read.segments;
    report.read.records += read.records;
    report.read.bytes += read.bytes;
    report.read.raw_bytes += read.raw_bytes;
    report.read.holes += read.holes;
}

/// The end of the last entry, if each starts where the one before ends.
fn end_of_run(entries: &[Entry], from: Offset) -> Result<Offset, String> {
    if entries.is_empty() {
        return Err("it ends before the commit's end".to_owned());
    }
    entries
        .iter()
        .try_fold(from, |expected, Entry { range, .. }| {
            if range.start() == expected {
                Ok(range.end())
            } else {
                Err(format!("an entry {range} where {expected} comes next"))
            }
        })
}

fn add_up(entries: &[Entry], totals: &mut Totals) {
    for entry in entries {
        match &entry.kind {
            EntryKind::Data(data) => {
                totals.segments += 1;
                totals.records += data.records;
                totals.bytes += data.bytes;
                totals.raw_bytes += data.raw_bytes;
            }
            EntryKind::Hole(_) => totals.holes += 1,
            EntryKind::Empty | EntryKind::Expired => {}
        }
    }
}

async fn segments(
    archive: &Arc<Archive>,
    what: &str,
    snapshot: &Arc<Snapshot>,
    entries: Vec<Entry>,
    bar: &ProgressBar,
    report: &mut Report,
) {
    let data = entries.into_iter().filter_map(|entry| match entry.kind {
        EntryKind::Data(data) => Some((entry.range, data)),
        EntryKind::Empty | EntryKind::Hole(_) | EntryKind::Expired => None,
    });
    let checks = futures::stream::iter(data).map(|(range, data)| async move {
        let found = segment::check(archive.store(), snapshot, range, &data, bar).await;
        match found {
            Some(finding) if is_replaced(archive, snapshot, range, &data).await => Err(finding),
            other => Ok(other),
        }
    });
    let mut checks = checks.buffer_unordered(PARALLEL);
    while let Some(checked) = checks.next().await {
        match checked {
            Ok(None) => {}
            Ok(Some(finding)) => report.findings.push(in_partition(what, finding)),
            Err(_) => report.replaced += 1,
        }
    }
}

fn in_partition(partition: &str, finding: Finding) -> Finding {
    match finding {
        Finding::Damage { what, why } => Finding::Damage {
            what: format!("{partition}: {what}"),
            why,
        },
        Finding::Unchecked { what, why } => Finding::Unchecked {
            what: format!("{partition}: {what}"),
            why,
        },
    }
}

/// Whether a newer commit names this segment no more: maintenance may have rewritten and removed it while we read.
async fn is_replaced(
    archive: &Arc<Archive>,
    seen: &Snapshot,
    range: OffsetRange,
    data: &DataEntry,
) -> bool {
    let Ok(Some(newest)) = archive.snapshot(seen.key(), Freshness::Now).await else {
        return false;
    };
    match newest.lookup(range.start()).await {
        Ok(Lookup::Covered(Entry {
            kind: EntryKind::Data(now),
            ..
        })) => now.hash != data.hash,
        Ok(Lookup::Covered(Entry {
            kind: EntryKind::Expired,
            ..
        })) => true,
        Ok(_) | Err(_) => false,
    }
}
