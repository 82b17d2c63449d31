//! `everlog inspect`: what an archive holds, and how far it is behind the cluster.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use everlog_format::{Partition, PartitionKey, TopicSelection};
use everlog_index::{Archive, Freshness, Snapshot, TopicInfo};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use crate::cluster::{self, ClusterView};
use crate::config::ToolConfig;
use crate::open::open_to_read;
use crate::table::{Table, grouped, short_bytes};
use crate::terminal::print;

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
    /// The first offset that the cluster still has; null if it was not asked or has this life of the topic no more.
    live_start: Option<i64>,
    high_watermark: Option<i64>,
    /// Records (more precisely offsets) that the cluster has and the archive has not yet.
    lag: Option<i64>,
}

/// Prints the archive's partitions.
pub(crate) async fn inspect(config: ToolConfig, json: bool) -> Result<()> {
    let archive = open_to_read(&config.archive).await?;
    let mut rows = rows(&archive, config.topics.as_ref()).await?;
    let mut cluster_error = None;
    if let Some(servers) = config.bootstrap_servers {
        let wanted: BTreeSet<(String, i32)> = rows
            .iter()
            .map(|row| (row.topic.clone(), row.partition))
            .collect();
        match cluster::view(&servers, &config.properties, &wanted).await {
            Ok(view) => rows.iter_mut().for_each(|row| row.compare_with(&view)),
            // What the archive holds is worth seeing all the same; the exit status tells.
            Err(err) => cluster_error = Some(err),
        }
    }
    print(&if json {
        serde_json::to_string_pretty(&rows)?
    } else {
        table(&rows, config.topics.as_ref())
    })?;
    cluster_error.map_or(Ok(()), |err| {
        Err(err.context("the archive's lag is unknown"))
    })
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
        live_start: None,
        high_watermark: None,
        lag: None,
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
    /// Only the life of the topic that the cluster has today can be behind it.
    fn compare_with(&mut self, view: &ClusterView) {
        let is_todays = view
            .topic_ids
            .get(&self.topic)
            .is_some_and(|id| id.to_string() == self.topic_id);
        if view.cluster.as_str() != self.cluster || !is_todays {
            return;
        }
        if let Some(watermarks) = view.watermarks.get(&(self.topic.clone(), self.partition)) {
            self.live_start = Some(watermarks.live_start);
            self.high_watermark = Some(watermarks.high_watermark);
            let archived_end = self.end.unwrap_or(watermarks.live_start);
            self.lag = Some(
                watermarks
                    .high_watermark
                    .saturating_sub(archived_end)
                    .max(0),
            );
        }
    }
}

fn table(rows: &[Row], topics: Option<&TopicSelection>) -> String {
    if rows.is_empty() {
        return match topics {
            Some(topics) => format!("no topic of the archive matches {topics}\n"),
            None => "the archive holds no topic yet\n".to_owned(),
        };
    }
    let asked = rows.iter().any(|row| row.lag.is_some());
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
        columns.extend([">live start", ">lag"]);
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
            cells.extend([or_dash(row.live_start), or_dash(row.lag)]);
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
            rows.iter()
                .filter_map(|row| row.lag)
                .sum::<i64>()
                .to_string(),
        ]);
    }
    table.row(total);
    let holes = rows
        .iter()
        .flat_map(|row| row.hole_ranges.iter().map(move |range| (row, range)));
    let holes = holes.map(|(row, [start, end])| {
        format!("hole: {}/{} [{start}, {end})\n", row.topic, row.partition)
    });
    let waiting = rows.iter().filter(|row| row.commit.is_none()).count();
    let waiting = match waiting {
        0 => String::new(),
        count => format!(
            "{count} of {} partitions wait for their first commit\n",
            rows.len()
        ),
    };
    table.render() + &holes.collect::<String>() + &waiting
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use everlog_format::{ClusterId, TopicId};

    use super::*;
    use crate::cluster::Watermarks;

    const TODAY: &str = "4L6g3nShT-eMCtK--X86sw";
    const BEFORE: &str = "AAAAAAAAAAAAAAAAAAAAAQ";

    fn row(topic_id: &str, end: Option<i64>) -> Row {
        Row {
            cluster: "c".to_owned(),
            topic: "orders".to_owned(),
            topic_id: topic_id.to_owned(),
            partition: 0,
            start: end.map(|_| 5),
            end,
            records: 90,
            segments: 2,
            bytes: 1 << 20,
            raw_bytes: 3 << 20,
            holes: 1,
            hole_ranges: vec![[7, 17]],
            commit: end.map(|_| 3),
            max_timestamp_ms: Some(1),
            live_start: None,
            high_watermark: None,
            lag: None,
        }
    }

    fn view(high_watermark: i64) -> ClusterView {
        ClusterView {
            cluster: ClusterId::new("c").expect("a name"),
            topic_ids: BTreeMap::from([("orders".to_owned(), TopicId::new(TODAY).expect("an id"))]),
            watermarks: BTreeMap::from([(
                ("orders".to_owned(), 0),
                Watermarks {
                    live_start: 50,
                    high_watermark,
                },
            )]),
        }
    }

    #[test]
    fn only_todays_life_of_a_topic_has_a_lag() {
        let (mut today, mut before, mut empty) = (
            row(TODAY, Some(100)),
            row(BEFORE, Some(100)),
            row(TODAY, None),
        );
        [&mut today, &mut before, &mut empty]
            .into_iter()
            .for_each(|row| row.compare_with(&view(130)));
        assert_eq!((today.lag, today.live_start), (Some(30), Some(50)));
        assert_eq!(before.lag, None);
        assert_eq!(empty.lag, Some(80), "all that the cluster still has");
        let mut other = row(TODAY, Some(100));
        other.cluster = "other".to_owned();
        other.compare_with(&view(130));
        assert_eq!(other.lag, None);
    }

    /// It used to be left out, and "the archive holds no topic yet" was said of an archiver at work.
    #[test]
    fn a_partition_before_its_first_commit_is_shown() {
        let text = table(&[row(TODAY, Some(100)), row(TODAY, None)], None);
        assert!(
            text.ends_with("\n1 of 2 partitions wait for their first commit\n"),
            "{text}"
        );
        assert_eq!(
            text.lines()
                .filter(|line| line.starts_with("orders"))
                .count(),
            2
        );
        assert!(!table(&[row(TODAY, Some(100))], None).contains("wait"));
    }

    #[test]
    fn the_table_has_sums_and_names_the_holes() {
        let mut one = row(TODAY, Some(100));
        one.compare_with(&view(130));
        let text = table(&[one, row(BEFORE, Some(9))], None);
        assert!(text.contains("hole: orders/0 [7, 17)"), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with("total")
                && line.contains("180")
                && line.ends_with(" 30")),
            "{text}"
        );
    }

    #[test]
    fn scripts_find_the_promised_names() {
        let json = serde_json::to_value([row(TODAY, Some(100))]).expect("it serializes");
        for name in [
            "topic",
            "topic_id",
            "partition",
            "start",
            "end",
            "records",
            "segments",
            "bytes",
            "raw_bytes",
            "holes",
        ] {
            assert!(json[0].get(name).is_some(), "{name}");
        }
        assert_eq!(json[0]["end"], 100);
        assert_eq!(json[0]["holes"], 1);
    }
}
