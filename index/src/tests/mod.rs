//! What the model does not look at: the files of an archive, what is shared between callers, the local disk, going
//! through a chain, bytes that somebody has changed. Figures are in `figures`, which runs only when asked to.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod archive;
mod disk;
mod figures;
mod hostile;
mod look;
mod slept;
mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use everlog_format::{
    ClusterId, Day, Hash, Incarnation, Offset, OffsetRange, Partition, PartitionKey, TopicId,
    TopicName,
};
use everlog_store::{Body, Key, MemoryStore, Put, Store, digest_of};
use rand::RngCore;

use crate::{
    Appended, Archive, ArchiveOptions, Clock, DataEntry, Entry, EntryKind, EpochStart, Random,
    Snapshot, TopicInfo, Tuning, Writer, segment_key,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn topic() -> TopicInfo {
    topic_named("orders", "4L6g3nShT-eMCtK--X86sw")
}

fn topic_named(name: &str, id: &str) -> TopicInfo {
    TopicInfo {
        incarnation: Incarnation {
            cluster: ClusterId::new("east").unwrap(),
            topic_id: TopicId::new(id).unwrap(),
        },
        name: TopicName::new(name).unwrap(),
        partition_count: 3,
        configs: BTreeMap::from([("retention.ms".to_owned(), "86400000".to_owned())]),
    }
}

fn partition(raw: i32) -> PartitionKey {
    PartitionKey {
        incarnation: topic().incarnation,
        partition: Partition::new(raw).unwrap(),
    }
}

fn range(start: u64, end: u64) -> OffsetRange {
    let offset = |raw: u64| Offset::new(i64::try_from(raw).unwrap()).unwrap();
    OffsetRange::new(offset(start), offset(end)).unwrap()
}

fn empty(start: u64, end: u64) -> Entry {
    Entry {
        range: range(start, end),
        kind: EntryKind::Empty,
    }
}

/// An entry for a segment of the bytes `body`, as large as real ones are in JSON.
fn data(range: OffsetRange, body: &[u8]) -> Entry {
    let start = range.start().get();
    Entry {
        range,
        kind: EntryKind::Data(DataEntry {
            hash: Hash::of(body),
            records: range.offset_count(),
            bytes: body.len() as u64,
            raw_bytes: 10 * body.len() as u64,
            min_timestamp_ms: 1_700_000_000_000 + start,
            max_timestamp_ms: 1_700_000_000_000 + range.end().get() - 1,
            epochs: vec![EpochStart {
                epoch: 7,
                start: range.start(),
            }],
            day: Day::UNKNOWN,
            time_disorder: false,
            redacted: false,
            footer_len: 12,
            supersedes: Vec::new(),
        }),
    }
}

async fn put(store: &dyn Store, key: &Key, bytes: impl Into<Bytes>) {
    let bytes = bytes.into();
    let digest = digest_of(&bytes);
    let put = store.put_if_absent(key, Body::Bytes(bytes), digest).await;
    assert_eq!(put.unwrap(), Put::Created, "{key}");
}

/// Other bytes under a name, which nothing in everlog does.
async fn replace(store: &dyn Store, key: &Key, bytes: impl Into<Bytes>) {
    store.delete(key).await.unwrap();
    put(store, key, bytes).await;
}

/// Puts a small segment and gives its entry.
async fn upload(store: &dyn Store, start: u64, end: u64) -> Entry {
    let body = format!("the segment [{start}, {end})");
    let entry = data(range(start, end), body.as_bytes());
    if let EntryKind::Data(data) = &entry.kind {
        let at = partition(0);
        let key = segment_key(&topic(), at.partition, entry.range, data.day, data.hash);
        put(store, &key, body).await;
    }
    entry
}

/// A clock that goes when it is told to.
#[derive(Clone, Default)]
struct Hand(Arc<Mutex<Duration>>);

impl Hand {
    fn forward(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }

    fn clock(&self) -> Clock {
        let time = self.clone();
        Clock::from_fn(move || *time.0.lock().unwrap())
    }
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

async fn open_at(store: Arc<dyn Store>, hand: &Hand, dir: Option<PathBuf>) -> Arc<Archive> {
    let options = ArchiveOptions {
        node_cache_dir: dir,
        create: true,
    };
    let tuning = Tuning {
        clock: hand.clock(),
        random: Random::from_fn(|| {
            let mut bytes = [0; 16];
            rand::rng().fill_bytes(&mut bytes);
            bytes
        }),
        ..Tuning::default()
    };
    let archive = Archive::open_with(store, options, tuning).await.unwrap();
    archive.register_topic(&topic()).await.unwrap();
    archive
}

async fn append(writer: &mut Writer, entries: Vec<Entry>) -> Arc<Snapshot> {
    match writer.append(entries).await.unwrap() {
        Appended::Committed(snapshot) => snapshot,
        Appended::Lost { .. } => panic!("nobody else writes here"),
    }
}
