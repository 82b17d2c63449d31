//! An archive of one partition, built entry by entry, and readers that check what they get.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use everlog_format::{
    ClusterId, Day, Header, Incarnation, Offset, OffsetRange, Partition, PartitionKey, Record,
    Salt, SegmentIdentity, SegmentOptions, SegmentWriter, TimestampType, TopicId, TopicName,
    decode_batches,
};
use everlog_index::{
    Appended, Archive, ArchiveOptions, DataEntry, Entry, EntryKind, Freshness, HoleReason,
    Snapshot, TopicInfo, Writer, segment_key,
};
use everlog_proxy::replay::{Replay, ReplayError, Slice};
use everlog_store::faulty::{FaultyStore, OperationKind};
use everlog_store::{Body, MemoryStore, Put, Store};
use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn at(raw: i64) -> Offset {
    Offset::new(raw).unwrap()
}

pub(crate) fn range(range: Range<i64>) -> OffsetRange {
    OffsetRange::new(at(range.start), at(range.end)).unwrap()
}

/// Small row groups, so that a small segment has many.
pub(crate) fn small_groups() -> SegmentOptions {
    SegmentOptions {
        row_group_encoded_max_bytes: 1 << 20,
        row_group_raw_max_bytes: 3 << 20,
        ..SegmentOptions::default()
    }
}

/// A record of about `len` bytes, half of which compress.
pub(crate) fn record(offset: i64, len: usize) -> Record {
    let mut rng = StdRng::seed_from_u64(offset.unsigned_abs());
    let mut value = vec![b'x'; len];
    rng.fill_bytes(&mut value[len / 2..]);
    Record {
        offset,
        timestamp_ms: 1_700_000_000_000 + offset,
        timestamp_type: TimestampType::Create,
        leader_epoch: Some(i32::try_from(offset / 5_000).unwrap()),
        key: (offset % 3 != 0).then(|| offset.to_be_bytes().to_vec()),
        value: (offset % 17 != 0).then_some(value),
        headers: (0..offset % 3)
            .map(|n| Header {
                key: vec![b'h', 0xff],
                value: (n == 0).then(|| b"v".to_vec()),
            })
            .collect(),
    }
}

pub(crate) fn records(offsets: Range<i64>, len: usize) -> Vec<Record> {
    offsets.map(|offset| record(offset, len)).collect()
}

/// The archive of one partition.
pub(crate) struct Bed {
    pub(crate) store: Arc<FaultyStore>,
    pub(crate) archive: Arc<Archive>,
    pub(crate) topic: TopicInfo,
    pub(crate) key: PartitionKey,
    pub(crate) options: SegmentOptions,
    writer: Writer,
    rng: StdRng,
}

impl Bed {
    pub(crate) async fn new() -> Bed {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        Bed::on(store, 0).await
    }

    /// Another partition of the same topic in the same store.
    pub(crate) async fn on(store: Arc<FaultyStore>, partition: i32) -> Bed {
        let options = ArchiveOptions {
            create: true,
            ..ArchiveOptions::default()
        };
        let archive = Archive::open(Arc::clone(&store) as Arc<dyn Store>, options)
            .await
            .unwrap();
        Bed::in_archive(store, archive, partition).await
    }

    pub(crate) async fn in_archive(
        store: Arc<FaultyStore>,
        archive: Arc<Archive>,
        partition: i32,
    ) -> Bed {
        let incarnation = Incarnation {
            cluster: ClusterId::new("test-cluster").unwrap(),
            topic_id: TopicId::new("4L6g3nShT-eMCtK--X86sw").unwrap(),
        };
        let topic = TopicInfo {
            incarnation: incarnation.clone(),
            name: TopicName::new("orders").unwrap(),
            partition_count: 100,
            configs: BTreeMap::new(),
        };
        archive.register_topic(&topic).await.unwrap();
        let key = PartitionKey {
            incarnation,
            partition: Partition::new(partition).unwrap(),
        };
        let writer = archive.writer(&key).await.unwrap();
        let rng = StdRng::seed_from_u64(partition.unsigned_abs().into());
        Bed {
            store,
            archive,
            topic,
            key,
            options: small_groups(),
            writer,
            rng,
        }
    }

    /// Uploads a segment without committing it.
    pub(crate) async fn upload(&mut self, covers: OffsetRange, records: &[Record]) -> Entry {
        let identity = SegmentIdentity {
            incarnation: self.key.incarnation.clone(),
            topic: self.topic.name.clone(),
            partition: self.key.partition,
        };
        let salt = Salt::new(self.rng.random());
        let day: Day = "2023-11-14".parse().unwrap();
        let mut writer = SegmentWriter::new(
            Vec::new(),
            identity,
            covers.start(),
            day,
            salt,
            self.options,
        )
        .unwrap();
        for record in records {
            let mut headers = Vec::new();
            writer.push(&record.as_ref(&mut headers)).unwrap();
        }
        let (summary, bytes) = writer.finish(covers.end()).unwrap();
        let key = segment_key(&self.topic, self.key.partition, covers, day, summary.hash);
        let put = self
            .store
            .put_if_absent(&key, Body::Bytes(bytes.into()), *summary.hash.as_bytes())
            .await
            .unwrap();
        assert_eq!(put, Put::Created);
        Entry {
            range: covers,
            kind: EntryKind::Data(DataEntry::of(&summary)),
        }
    }

    pub(crate) async fn commit(&mut self, entry: Entry) {
        let appended = self.writer.append(vec![entry]).await.unwrap();
        assert!(matches!(appended, Appended::Committed(_)));
    }

    pub(crate) async fn segment(&mut self, covers: Range<i64>, records: &[Record]) {
        let entry = self.upload(range(covers), records).await;
        self.commit(entry).await;
    }

    pub(crate) async fn empty(&mut self, covers: Range<i64>) {
        self.commit(Entry {
            range: range(covers),
            kind: EntryKind::Empty,
        })
        .await;
    }

    pub(crate) async fn hole(&mut self, covers: Range<i64>) {
        self.commit(Entry {
            range: range(covers),
            kind: EntryKind::Hole(HoleReason::Retention),
        })
        .await;
    }

    pub(crate) async fn snapshot(&self) -> Arc<Snapshot> {
        self.archive
            .snapshot(&self.key, Freshness::Known)
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) fn replay(&self, memory_bytes: u64) -> Arc<Replay> {
        Replay::new(Arc::clone(&self.archive), memory_bytes, &Registry::new())
    }

    /// Ranged reads so far.
    pub(crate) fn reads(&self) -> usize {
        self.store
            .operations()
            .iter()
            .filter(|operation| operation.kind == OperationKind::GetRange)
            .count()
    }
}

/// The records of a slice, all of them, and the offset that a client goes on with.
pub(crate) fn decode(slice: &Slice) -> (Vec<Record>, Option<i64>) {
    let bytes = slice.records.concat();
    assert_eq!(bytes.len(), slice.bytes);
    let mut records = Vec::new();
    let mut next = None;
    for batch in decode_batches(&bytes) {
        let batch = batch.unwrap();
        assert!(
            next.is_none_or(|next| next <= batch.base_offset),
            "batches overlap"
        );
        next = Some(batch.last_offset + 1);
        records.extend(batch.records);
    }
    (records, next)
}

/// Reads on until nothing more comes, as a client does: each time from where the last batch ended.
pub(crate) async fn read_all(
    replay: &Arc<Replay>,
    snapshot: &Arc<Snapshot>,
    from: i64,
    max_bytes: usize,
) -> Result<(Vec<Record>, i64), ReplayError> {
    let end = snapshot.covered().unwrap().end().get();
    let mut next = from;
    let mut all = Vec::new();
    while next < end {
        let slice = replay.read(snapshot, at(next), max_bytes).await?;
        let (records, behind) = decode(&slice);
        let Some(behind) = behind else { break };
        assert_eq!(behind, slice.next.get());
        assert!(behind > next, "no progress at {next}");
        all.extend(records.into_iter().filter(|record| record.offset >= next));
        next = behind;
        if slice.at_hole.is_some() {
            break;
        }
    }
    Ok((all, next))
}
