//! A small archive in a directory, damaged in every way that a disk or a person can damage one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use everlog_format::{
    ClusterId, Day, Incarnation, Offset, OffsetRange, Partition, PartitionKey, RecordRef, Salt,
    SegmentIdentity, SegmentOptions, SegmentWriter, TimestampType, TopicId, TopicName,
    TopicSelection,
};
use everlog_index::{
    Appended, Archive, ArchiveOptions, DataEntry, Entry, EntryKind, EpochStart, HoleReason,
    TopicInfo, Writer, segment_key,
};
use everlog_store::faulty::{Fault, FaultyStore, OperationKind};
use everlog_store::{Body, Put, Store, StoreOptions};
use indicatif::ProgressBar;

use super::report::{Report, Verdict};
use super::walk;

/// More than a leaf holds, so that there are nodes.
const SEGMENTS: i64 = 70;
const RECORDS_EACH: i64 = 3;

fn offset(raw: i64) -> Offset {
    Offset::new(raw).expect("not negative")
}

fn range(start: i64, end: i64) -> OffsetRange {
    OffsetRange::new(offset(start), offset(end)).expect("not empty")
}

fn topic() -> TopicInfo {
    TopicInfo {
        incarnation: Incarnation {
            cluster: ClusterId::new("4L6g3nShT-eMCtK--X86sw").expect("a name"),
            topic_id: TopicId::new("AAAAAAAAAAAAAAAAAAAAAQ").expect("an id"),
        },
        name: TopicName::new("orders").expect("a name"),
        partition_count: 1,
        configs: Default::default(),
    }
}

fn partition() -> Partition {
    Partition::new(0).expect("not negative")
}

async fn store(dir: &Path) -> Arc<dyn Store> {
    let url = format!("file://{}", dir.display());
    everlog_store::open(&url, StoreOptions::default())
        .await
        .expect("a directory")
}

/// A segment of offsets `[start, start + RECORDS_EACH)`, uploaded.
async fn segment(store: &dyn Store, start: i64) -> Entry {
    let identity = SegmentIdentity {
        incarnation: topic().incarnation,
        topic: topic().name,
        partition: partition(),
    };
    let salt = Salt::new(u128::from(start.unsigned_abs()).to_be_bytes());
    let (day, options) = (Day::UNKNOWN, SegmentOptions::default());
    let out = Vec::new();
    let mut writer =
        SegmentWriter::new(out, identity, offset(start), day, salt, options).expect("it begins");
    for offset in start..start + RECORDS_EACH {
        let record = RecordRef {
            offset,
            timestamp_ms: 1_000 + offset,
            timestamp_type: TimestampType::Create,
            leader_epoch: Some(2),
            key: Some(b"key"),
            value: Some(b"value"),
            headers: &[],
        };
        writer.push(&record).expect("in order");
    }
    let (summary, bytes) = writer
        .finish(offset(start + RECORDS_EACH))
        .expect("it ends");
    let data = DataEntry {
        hash: summary.hash,
        records: summary.records,
        bytes: summary.bytes,
        raw_bytes: summary.raw_bytes,
        min_timestamp_ms: summary.min_timestamp_ms,
        max_timestamp_ms: summary.max_timestamp_ms,
        epochs: vec![EpochStart {
            epoch: 2,
            start: offset(start),
        }],
        day,
        time_disorder: summary.time_disorder,
        redacted: false,
        footer_len: summary.footer_len,
        supersedes: Vec::new(),
    };
    let key = segment_key(&topic(), partition(), summary.range, day, summary.hash);
    let bytes = Bytes::from(bytes);
    let digest = everlog_store::digest_of(&bytes);
    let put = store.put_if_absent(&key, Body::Bytes(bytes), digest).await;
    assert_eq!(put.expect("it is put"), Put::Created);
    Entry {
        range: summary.range,
        kind: EntryKind::Data(data),
    }
}

/// `SEGMENTS` commits of a segment each, and one of a hole.
async fn make(dir: &Path) {
    let options = ArchiveOptions {
        create: true,
        node_cache_dir: None,
    };
    let archive = Archive::open(store(dir).await, options).await.expect("new");
    archive.register_topic(&topic()).await.expect("registered");
    let key = PartitionKey {
        incarnation: topic().incarnation,
        partition: partition(),
    };
    let mut writer = archive.writer(&key).await.expect("a writer");
    for number in 0..SEGMENTS {
        let entry = segment(archive.store().as_ref(), number * RECORDS_EACH).await;
        append(&mut writer, entry).await;
    }
    let end = SEGMENTS * RECORDS_EACH;
    let hole = Entry {
        range: range(end, end + 5),
        kind: EntryKind::Hole(HoleReason::Retention),
    };
    append(&mut writer, hole).await;
}

async fn append(writer: &mut Writer, entry: Entry) {
    let appended = writer.append(vec![entry]).await.expect("committed");
    assert!(
        matches!(appended, Appended::Committed(_)),
        "nobody else writes"
    );
}

async fn check(store: Arc<dyn Store>) -> (Report, Vec<String>) {
    check_topics(store, None).await
}

async fn check_topics(
    store: Arc<dyn Store>,
    topics: Option<&TopicSelection>,
) -> (Report, Vec<String>) {
    let archive = Archive::open(store, ArchiveOptions::default())
        .await
        .expect("an archive");
    let lines = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&lines);
    let mut report = Report::new(move |finding| {
        told.lock().expect("no panic").push(finding.to_string());
    });
    walk::check(&archive, topics, &ProgressBar::hidden(), &mut report).await;
    let lines = lines.lock().expect("no panic").clone();
    (report, lines)
}

/// All files below `dir` whose path holds `part`, in order.
fn files(dir: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.to_string_lossy().contains(part) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn change_a_byte(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("a file");
    bytes[at] ^= 1;
    // Objects are read-only files: a new one takes the place of the old.
    std::fs::remove_file(path).expect("removed");
    std::fs::write(path, bytes).expect("written");
}

fn append_a_byte(path: &Path) {
    let mut bytes = std::fs::read(path).expect("a file");
    bytes.push(0);
    std::fs::remove_file(path).expect("removed");
    std::fs::write(path, bytes).expect("written");
}

fn cut_a_byte(path: &Path) {
    let mut bytes = std::fs::read(path).expect("a file");
    bytes.pop();
    std::fs::remove_file(path).expect("removed");
    std::fs::write(path, bytes).expect("written");
}

/// It used to read nothing and to say that everything is as the commits say.
#[tokio::test]
async fn topics_that_the_archive_does_not_have_are_not_sound() {
    let dir = tempfile::tempdir().expect("a directory");
    make(dir.path()).await;
    let of = |name: &str| TopicSelection::parse(&[name]).expect("a name");
    let (report, lines) = check_topics(store(dir.path()).await, Some(&of("oders"))).await;
    assert_eq!(report.verdict(), Verdict::Unknown);
    assert_eq!(
        lines,
        ["not checked: topics oders: the archive has none that matches"]
    );
    // Beside one that is there it used to go unseen.
    let both = TopicSelection::parse(&["orders,oders", "pay.*"]).expect("names");
    let (report, lines) = check_topics(store(dir.path()).await, Some(&both)).await;
    assert_eq!(report.verdict(), Verdict::Unknown);
    assert_eq!(
        lines,
        [
            "not checked: topics oders: the archive has none that matches",
            "not checked: topics pay.*: the archive has none that matches"
        ]
    );
    let (report, _) = check_topics(store(dir.path()).await, Some(&of("orders"))).await;
    assert_eq!(report.verdict(), Verdict::Sound);
}

#[tokio::test]
async fn a_sound_archive_is_read_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    make(dir.path()).await;
    let (report, lines) = check(store(dir.path()).await).await;
    assert_eq!((report.verdict(), lines), (Verdict::Sound, Vec::new()));
    assert_eq!(
        (report.partitions, report.commits, report.nodes),
        (1, 71, 1)
    );
    let read = report.read;
    assert_eq!((read.segments, read.records, read.holes), (70, 210, 1));
    assert!(
        report
            .conclusion()
            .ends_with("everything is as the commits say")
    );
}

#[tokio::test]
async fn no_damage_stays_unseen() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage, &str); 13] = [
        (
            "a commit in the middle has another byte",
            |dir| change_a_byte(&files(dir, "/commit/")[30], 60),
            "commit",
        ),
        // Numbers count downwards in names, so the first is the newest.
        (
            "the newest commit has another byte",
            |dir| change_a_byte(&files(dir, "/commit/")[0], 60),
            "commit",
        ),
        (
            "a commit in the middle is gone",
            |dir| remove(&files(dir, "/commit/")[30]),
            "is missing",
        ),
        (
            "a node has another byte",
            |dir| change_a_byte(&files(dir, "/node/")[0], 60),
            "node",
        ),
        (
            "a node is gone",
            |dir| remove(&files(dir, "/node/")[0]),
            "is not there",
        ),
        (
            "a segment has another byte",
            |dir| change_a_byte(&files(dir, ".parquet")[7], 10),
            // Both hashes: the one found alone told nobody what to look for in a backup.
            ", and the index says ",
        ),
        (
            "a segment's footer has another byte",
            |dir| change_last_byte(&files(dir, ".parquet")[7]),
            "parquet",
        ),
        (
            "a segment is gone",
            |dir| remove(&files(dir, ".parquet")[7]),
            "it is not there",
        ),
        (
            "the newest segment is gone",
            |dir| remove(files(dir, ".parquet").last().expect("one")),
            "it is not there",
        ),
        (
            "a segment is too long",
            |dir| append_a_byte(&files(dir, ".parquet")[7]),
            "it goes on after",
        ),
        (
            "a segment is too short",
            |dir| cut_a_byte(&files(dir, ".parquet")[7]),
            "bytes, and the index says",
        ),
        (
            "a segment is empty",
            |dir| {
                let path = &files(dir, ".parquet")[7];
                remove(path);
                std::fs::write(path, b"").expect("written")
            },
            "it has 0 bytes",
        ),
        (
            "the topic's file is gone",
            |dir| remove(&files(dir, "topic.json")[0]),
            "topic.json",
        ),
    ];
    let sound = tempfile::tempdir().expect("a directory");
    make(sound.path()).await;
    for (name, damage, told) in damages {
        let dir = tempfile::tempdir().expect("a directory");
        copy(sound.path(), dir.path());
        damage(dir.path());
        let (report, lines) = check(store(dir.path()).await).await;
        assert_eq!(report.verdict(), Verdict::Damaged, "{name}: {lines:?}");
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("damage: ") && line.contains(told)),
            "{name}: {lines:?}"
        );
        let conclusion = report.conclusion();
        assert!(
            conclusion.contains("What to do: put each object"),
            "{conclusion}"
        );
    }
}

fn remove(path: &Path) {
    std::fs::remove_file(path).expect("removed");
}

fn change_last_byte(path: &Path) {
    let len = std::fs::metadata(path).expect("a file").len();
    change_a_byte(path, usize::try_from(len).expect("it is small") - 1);
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            std::fs::create_dir(&to).expect("made");
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).expect("copied");
        }
    }
}

#[tokio::test]
async fn a_store_that_fails_midway_is_no_damage_and_ends_the_check() {
    let dir = tempfile::tempdir().expect("a directory");
    make(dir.path()).await;
    let faulty = Arc::new(FaultyStore::new(store(dir.path()).await));
    let mut reads = 0;
    faulty.on_operation(move |_| {
        reads += 1;
        if reads <= 100 {
            Fault::None
        } else {
            Fault::Unavailable
        }
    });
    let (report, lines) = check(Arc::clone(&faulty) as Arc<dyn Store>).await;
    assert_eq!(report.verdict(), Verdict::Unknown, "{lines:?}");
    assert!(report.gave_up);
    assert!(
        lines.iter().all(|line| line.starts_with("not checked: ")),
        "{lines:?}"
    );
    assert!(report.conclusion().contains("the rest was not looked at"));
    // It does not go on asking for every one of the archive's objects.
    let asked = faulty.operations().len();
    assert!(asked < 130, "{asked} requests");
}

#[tokio::test]
async fn one_object_that_cannot_be_read_leaves_the_verdict_open() {
    let dir = tempfile::tempdir().expect("a directory");
    make(dir.path()).await;
    let faulty = FaultyStore::new(store(dir.path()).await);
    faulty.next(OperationKind::GetRange, ".parquet", Fault::Denied);
    let (report, lines) = check(Arc::new(faulty)).await;
    assert_eq!(report.verdict(), Verdict::Unknown, "{lines:?}");
    assert_eq!((report.gave_up, lines.len()), (false, 1));
    assert_eq!(report.commits, 71);
}
