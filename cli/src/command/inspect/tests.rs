//! What is said of rows, without an archive or a cluster.

use std::collections::BTreeMap;

use everlog_format::{ClusterId, TopicId};

use super::*;

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
        live: None,
        live_start: None,
        high_watermark: None,
        lag: None,
        lost_range: None,
    }
}

fn compared(mut row: Row, live_start: i64, high_watermark: i64) -> Row {
    row.live = Some(true);
    row.compare_with(Watermarks {
        live_start,
        high_watermark,
    });
    row
}

fn view() -> ClusterView {
    ClusterView {
        cluster: ClusterId::new("c").expect("a name"),
        topics: BTreeMap::from([
            (
                "orders".to_owned(),
                TopicNow::Is(TopicId::new(TODAY).expect("an id")),
            ),
            ("deleted".to_owned(), TopicNow::Absent),
            ("hidden".to_owned(), TopicNow::Untold),
        ]),
    }
}

#[test]
fn only_todays_life_of_a_topic_is_live() {
    let is_live = |cluster, topic, id| view().is_live(cluster, topic, id);
    assert_eq!(is_live("c", "orders", TODAY), Some(true));
    assert_eq!(is_live("c", "orders", BEFORE), Some(false));
    assert_eq!(is_live("c", "deleted", TODAY), Some(false));
    // Gone is said only of what is known to be gone.
    assert_eq!(is_live("c", "hidden", TODAY), None);
    assert_eq!(is_live("other", "orders", BEFORE), None);
}

#[test]
fn the_lag_is_what_the_cluster_still_has() {
    let today = compared(row(TODAY, Some(100)), 50, 130);
    assert_eq!((today.lag, today.live_start), (Some(30), Some(50)));
    assert_eq!(today.lost_range, None);
    let empty = compared(row(TODAY, None), 50, 130);
    assert_eq!(empty.lag, Some(80), "all that the cluster still has");
    assert_eq!(empty.lost_range, None, "an archiver begins at 50");
}

/// It showed as lag, as if it could still be archived, until an archiver had made a hole of it.
#[test]
fn what_is_lost_shows_before_it_is_a_hole() {
    let row = compared(row(TODAY, Some(100)), 117, 130);
    assert_eq!((row.lost_range, row.lag), (Some([100, 117]), Some(13)));
    let text = table(&[row], false);
    assert!(text.contains("\nlost: orders/0 [100, 117): "), "{text}");
}

#[test]
fn the_lives_of_a_topic_are_told_apart() {
    let mut before = row(BEFORE, Some(9));
    assert!(!table(std::slice::from_ref(&before), false).contains("life"));
    before.live = Some(false);
    let text = table(&[before, compared(row(TODAY, Some(100)), 50, 130)], false);
    let lines_with = |word: &str| text.lines().filter(|line| line.contains(word)).count();
    assert_eq!(lines_with(" present "), 1, "{text}");
    assert_eq!(lines_with(" gone "), 1, "{text}");
    assert!(
        text.contains(&format!("gone: orders {BEFORE} was deleted")),
        "{text}"
    );
}

#[test]
fn a_name_that_is_nowhere_is_told() {
    let topics = ["orders", "deleted", "hidden", "x.*"];
    let topics = TopicSelection::parse(&topics).expect("names");
    let view = view();
    let told = |word| not_there(word, &topics, Some(&view));
    assert!(told("orders").contains("nobody has archived it yet"));
    assert_eq!(
        told("deleted"),
        "neither the archive nor the cluster has a topic deleted"
    );
    assert_eq!(told("hidden"), "the archive has no topic hidden");
    assert_eq!(told("x.*"), "no topic of the archive matches x.*");
    assert_eq!(
        not_there("deleted", &topics, None),
        "the archive has no topic deleted"
    );
}

/// It used to be left out, and "the archive holds no topic yet" was said of an archiver at work.
#[test]
fn a_partition_before_its_first_commit_is_shown() {
    let text = table(&[row(TODAY, Some(100)), row(TODAY, None)], false);
    assert!(
        text.ends_with("\n1 of 2 partitions waits for the first commit\n"),
        "{text}"
    );
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("orders"))
            .count(),
        2
    );
    assert!(!table(&[row(TODAY, Some(100))], false).contains("wait"));
}

#[test]
fn the_table_has_sums_and_names_the_holes() {
    let one = compared(row(TODAY, Some(100)), 50, 130);
    let text = table(&[one, row(BEFORE, Some(9))], false);
    assert!(text.contains("hole: orders/0 [7, 17)"), "{text}");
    assert!(
        text.lines()
            .any(|line| line.starts_with("total") && line.contains("180") && line.ends_with(" 30")),
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
        "live",
        "lost_range",
    ] {
        assert!(json[0].get(name).is_some(), "{name}");
    }
    assert_eq!(json[0]["end"], 100);
    assert_eq!(json[0]["holes"], 1);
}
