//! `everlog inspect`: what an archive holds, and how far it is behind the cluster.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use everlog_archiver::TopicNow;
use everlog_format::{Partition, PartitionKey, TopicSelection};
use everlog_index::{Archive, Freshness, Snapshot, TopicInfo};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use crate::cluster::{self, ClusterView, Watermarks};
use crate::config::ToolConfig;
use crate::open::open_to_read;
use crate::table::{Table, counted, grouped, short_bytes};
use crate::terminal::{print, print_error};

/// Partitions asked for at a time.
const PARALLEL: usize = 16;

/// More than any topic has. A damaged `topic.json` can claim any number, and each is a row.
const PARTITION_COUNT_MAX: u32 = 100_000;

/// Holes read at a time.
const HOLES_AT_A_TIME: usize = 1_000;

/// One partition. The names are part of everlog's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    cluster: String,
    topic: String,
    topic_id: String,
    partition: i32,
    /// The first offset that the archive speaks for; null while it has none.
    start: Option<i64>,
    /// The archived end.
    end: Option<i64>,
    records: u64,
    segments: u64,
    /// Stored.
    bytes: u64,
    /// Keys, values and headers, uncompressed.
    raw_bytes: u64,
    /// How many ranges were lost before they could be archived.
    holes: u64,
    /// Those ranges, as [start, end).
    hole_ranges: Vec<[i64; 2]>,
    /// The number of the newest commit; null before the first.
    commit: Option<u64>,
    max_timestamp_ms: Option<i64>,
    /// Whether the cluster has this life of the topic now: false once it was deleted, also if another of the same name was made
    /// since. Null if the cluster was not asked, is another one, or did not say.
    live: Option<bool>,
    /// The first offset that the cluster still has; null if it was not asked or has this life of the topic no more.
    live_start: Option<i64>,
    high_watermark: Option<i64>,
    /// Records (more precisely offsets) that the cluster has and the archive has not yet.
    lag: Option<i64>,
    /// Offsets, as [start, end), that the cluster has let go of and no commit covers: lost, unless an archiver that is running
    /// holds them and has not committed them yet. Once an archiver has given them up they are a hole. Null if there are none.
    lost_range: Option<[i64; 2]>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    All,
    /// Something that was asked for is not there, or could not be learnt: standard error says what.
    Part,
}

/// Prints the archive's partitions.
pub(crate) async fn inspect(config: ToolConfig, json: bool) -> Result<Shown> {
    let archive = open_to_read(&config.archive).await?;
    let mut rows = rows(&archive, config.topics.as_ref()).await?;
    let mut troubles = Vec::new();
    let mut view = None;
    if let Some(servers) = &config.bootstrap_servers {
        match compare(&mut rows, servers, &config).await {
            Ok((seen, untold)) => {
                view = Some(seen);
                troubles.extend(untold);
            }
            // What the archive holds is worth seeing all the same; the exit status tells.
            Err(err) => troubles.push(format!(
                "the cluster could not be asked, so lag and lost ranges are not known: {err:#}"
            )),
        }
    }
    if let Some(topics) = &config.topics {
        let names = rows.iter().map(|row| row.topic.as_str());
        let told = topics.unmatched(names).into_iter();
        troubles.extend(told.map(|word| not_there(word, topics, view.as_ref())));
    }
    let text = if json {
        serde_json::to_string_pretty(&rows)?
    } else {
        table(&rows, config.topics.is_some())
    };
    if !text.is_empty() {
        print(&text)?;
    }
    for trouble in &troubles {
        print_error(trouble);
    }
    match troubles.is_empty() {
        true => Ok(Shown::All),
        false => Ok(Shown::Part),
    }
}

/// What is said of a name or regex for which there is nothing to show.
fn not_there(word: &str, topics: &TopicSelection, view: Option<&ClusterView>) -> String {
    if !topics.is_plain_name(word) {
        return format!("no topic of the archive matches {word}");
    }
    match view {
        Some(view) if view.has(word) => {
            format!(
                "the archive does not have the topic {word}; the cluster has it: nobody has archived it yet"
            )
        }
        Some(view) if view.topics.get(word) == Some(&TopicNow::Absent) => {
            format!("neither the archive nor the cluster has a topic {word}")
        }
        _ => format!("the archive has no topic {word}"),
    }
}

/// Holds the rows against the cluster. Tells what the cluster did not say.
async fn compare(
    rows: &mut [Row],
    servers: &str,
    config: &ToolConfig,
) -> Result<(ClusterView, Vec<String>)> {
    let mut topics: BTreeSet<String> = rows.iter().map(|row| row.topic.clone()).collect();
    let named = config.topics.iter().flat_map(TopicSelection::plain_names);
    topics.extend(named.map(|name| name.as_str().to_owned()));
    let asked = cluster::ask(servers, &config.properties, topics).await?;
    for row in rows.iter_mut() {
        row.live = asked.view.is_live(&row.cluster, &row.topic, &row.topic_id);
    }
    let live = rows.iter().filter(|row| row.live == Some(true));
    let partitions = live.map(|row| (row.topic.clone(), row.partition)).collect();
    let ends = asked.ends(partitions).await;
    let mut untold = Vec::new();
    for ((topic, partition), ends) in &ends {
        match ends {
            Ok(ends) => rows
                .iter_mut()
                .filter(|row| {
                    row.live == Some(true) && row.topic == *topic && row.partition == *partition
                })
                .for_each(|row| row.compare_with(*ends)),
            Err(err) => untold.push(format!("{topic}/{partition}: {err:#}")),
        }
    }
    if let Some(first) = untold.first() {
        let count = u64::try_from(untold.len()).unwrap_or(u64::MAX);
        let partitions = counted(count, "partition", "partitions");
        untold = vec![format!(
            "of {partitions} the cluster did not tell what it holds; the first is {first}"
        )];
    }
    let cluster = asked.view.cluster.as_str();
    let is_of_another = !rows.iter().any(|row| row.cluster == cluster);
    if let (Some(row), true) = (rows.first(), is_of_another) {
        untold.push(format!(
            "{servers} is the cluster {cluster}, and what is shown was archived from {}: there is nothing to compare",
            row.cluster
        ));
    }
    Ok((asked.view, untold))
}

async fn rows(archive: &Arc<Archive>, topics: Option<&TopicSelection>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for topic in archive.topics().await? {
        if topics.is_some_and(|topics| !topics.matches(topic.name.as_str(), false)) {
            continue;
        }
        let listed = archive.partitions(&topic.incarnation).await?;
        // A topic is registered when an archiver takes it up, a partition's folder comes with its first commit. Whoever has
        // just started an archiver looks here in between.
        let waiting = (0..topic.partition_count.min(PARTITION_COUNT_MAX))
            .filter_map(|number| Partition::new(i32::try_from(number).ok()?))
            .filter(|partition| !listed.contains(partition));
        rows.extend(waiting.map(|partition| row(&topic, partition, None, Vec::new())));
        let of_topic: Vec<Row> = futures::stream::iter(&listed)
            .map(|partition| read(archive, &topic, *partition))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        rows.extend(of_topic);
    }
    rows.sort_by(|a, b| {
        (&a.topic, &a.topic_id, a.partition).cmp(&(&b.topic, &b.topic_id, b.partition))
    });
    Ok(rows)
}

async fn read(archive: &Arc<Archive>, topic: &TopicInfo, partition: Partition) -> Result<Row> {
    let key = PartitionKey {
        incarnation: topic.incarnation.clone(),
        partition,
    };
    let read = archive.snapshot(&key, Freshness::Now).await;
    let snapshot = read.with_context(|| format!("partition {key}"))?;
    let hole_ranges = match &snapshot {
        Some(snapshot) if snapshot.totals().holes > 0 => hole_ranges(snapshot).await?,
        _ => Vec::new(),
    };
    Ok(row(topic, partition, snapshot.as_deref(), hole_ranges))
}

/// Without a snapshot: the partition waits for its first commit.
fn row(
    topic: &TopicInfo,
    partition: Partition,
    snapshot: Option<&Snapshot>,
    hole_ranges: Vec<[i64; 2]>,
) -> Row {
    let covered = snapshot.and_then(Snapshot::covered);
    let totals = snapshot.map(Snapshot::totals).unwrap_or_default();
    Row {
        cluster: topic.incarnation.cluster.to_string(),
        topic: topic.name.to_string(),
        topic_id: topic.incarnation.topic_id.to_string(),
        partition: partition.get(),
        start: covered.map(|range| range.start().get()),
        end: covered.map(|range| range.end().get()),
        records: totals.records,
        segments: totals.segments,
        bytes: totals.bytes,
        raw_bytes: totals.raw_bytes,
        holes: totals.holes,
        hole_ranges,
        commit: snapshot.map(Snapshot::number),
        max_timestamp_ms: snapshot.and_then(Snapshot::max_timestamp_ms),
        live: None,
        live_start: None,
        high_watermark: None,
        lag: None,
        lost_range: None,
    }
}

async fn hole_ranges(snapshot: &Snapshot) -> Result<Vec<[i64; 2]>> {
    let mut ranges = Vec::new();
    let mut from = snapshot.covered().map(|range| range.start());
    while let Some(start) = from {
        let holes = snapshot.holes(start, HOLES_AT_A_TIME).await?;
        ranges.extend(
            holes
                .iter()
                .map(|hole| [hole.range.start().get(), hole.range.end().get()]),
        );
        from = holes.last().map(|hole| hole.range.end());
    }
    Ok(ranges)
}

impl Row {
    /// Of the life of the topic that the cluster has now: no other can be behind it.
    fn compare_with(&mut self, ends: Watermarks) {
        self.live_start = Some(ends.live_start);
        self.high_watermark = Some(ends.high_watermark);
        // Before the first commit: an archiver begins where the log does.
        let archived_end = self.end.unwrap_or(ends.live_start);
        let still_there = archived_end.max(ends.live_start);
        self.lag = Some(ends.high_watermark.saturating_sub(still_there).max(0));
        self.lost_range =
            (archived_end < ends.live_start).then_some([archived_end, ends.live_start]);
    }

    fn life(&self) -> &'static str {
        match self.live {
            Some(true) => "present",
            Some(false) => "gone",
            None => "?",
        }
    }
}

/// `named`: the operator has named topics, and is told apart of those that are not there.
fn table(rows: &[Row], named: bool) -> String {
    match (rows.is_empty(), named) {
        (true, true) => return String::new(),
        (true, false) => return "the archive holds no topic yet\n".to_owned(),
        (false, _) => {}
    }
    let asked = rows.iter().any(|row| row.live.is_some());
    let mut columns = vec![
        "topic",
        "topic id",
        ">partition",
        ">start",
        ">end",
        ">records",
        ">segments",
        ">stored",
    ];
    columns.extend([">raw", ">holes", ">commit"]);
    if asked {
        columns.extend(["life", ">live start", ">lag"]);
    }
    let mut table = Table::new(&columns);
    let or_dash = |number: Option<i64>| number.map_or("-".to_owned(), |number| number.to_string());
    for row in rows {
        let mut cells = vec![
            row.topic.clone(),
            row.topic_id.clone(),
            row.partition.to_string(),
        ];
        cells.extend([
            or_dash(row.start),
            or_dash(row.end),
            grouped(row.records),
            grouped(row.segments),
        ]);
        cells.extend([
            short_bytes(row.bytes),
            short_bytes(row.raw_bytes),
            row.holes.to_string(),
            row.commit
                .map_or("-".to_owned(), |number| number.to_string()),
        ]);
        if asked {
            cells.extend([
                row.life().to_owned(),
                or_dash(row.live_start),
                or_dash(row.lag),
            ]);
        }
        table.row(cells);
    }
    let sum = |part: fn(&Row) -> u64| rows.iter().map(part).sum::<u64>();
    let mut total = vec![
        "total".to_owned(),
        String::new(),
        rows.len().to_string(),
        String::new(),
        String::new(),
    ];
    total.extend([
        grouped(sum(|row| row.records)),
        grouped(sum(|row| row.segments)),
    ]);
    total.extend([
        short_bytes(sum(|row| row.bytes)),
        short_bytes(sum(|row| row.raw_bytes)),
    ]);
    total.extend([sum(|row| row.holes).to_string(), String::new()]);
    if asked {
        total.extend([
            String::new(),
            String::new(),
            rows.iter()
                .filter_map(|row| row.lag)
                .sum::<i64>()
                .to_string(),
        ]);
    }
    table.row(total);
    table.render() + &notes(rows)
}

/// What is below the table: a line for each hole and each lost range, and what a column does not explain.
fn notes(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        for [start, end] in &row.hole_ranges {
            text.push_str(&format!(
                "hole: {}/{} [{start}, {end})\n",
                row.topic, row.partition
            ));
        }
    }
    for row in rows {
        if let Some([start, end]) = row.lost_range {
            text.push_str(&format!(
                "lost: {}/{} [{start}, {end}): the cluster has let go of it and no commit covers it (unless a running archiver still \
                 holds it)\n",
                row.topic, row.partition
            ));
        }
    }
    let gone = rows.iter().filter(|row| row.live == Some(false));
    let gone: BTreeSet<(&str, &str)> = gone
        .map(|row| (row.topic.as_str(), row.topic_id.as_str()))
        .collect();
    for (topic, topic_id) in gone {
        text.push_str(&format!(
            "gone: {topic} {topic_id} was deleted from the cluster: its records are in the archive only\n"
        ));
    }
    let waiting = rows.iter().filter(|row| row.commit.is_none()).count();
    if waiting > 0 {
        let verb = if waiting == 1 { "waits" } else { "wait" };
        text.push_str(&format!(
            "{waiting} of {} {verb} for the first commit\n",
            counted(rows.len() as u64, "partition", "partitions")
        ));
    }
    text
}
