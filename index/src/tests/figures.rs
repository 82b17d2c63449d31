//! The figures that the design promises, with the real shape of the tree. Not run by itself:
//! `EVERLOG_FIGURES=1 cargo test --release -p everlog-index figures -- --nocapture`.
#![expect(clippy::print_stdout, reason = "the figures are for whoever asks")]

use async_trait::async_trait;
use everlog_store::faulty::{FaultyStore, OperationKind};
use everlog_store::{Digest, ListPage, StoreError, Usage};

use super::*;
use crate::{Freshness, Lookup, keys};

/// An entry as an archive has it after years: long numbers.
fn entry(number: u64) -> Entry {
    let start = 5_000_000_000 + number * 250_000;
    let mut entry = data(range(start, start + 250_000), &number.to_le_bytes());
    if let EntryKind::Data(data) = &mut entry.kind {
        data.bytes = 140_000_000 + number;
        data.raw_bytes = 260_000_000 + number;
        data.footer_len = 12_345;
    }
    entry
}

#[tokio::test]
async fn sizes_of_commits_when_each_brings_one_segment() {
    // Prints figures and takes its time: only for who asks.
    if std::env::var_os("EVERLOG_FIGURES").is_none() {
        return;
    }
    let store = memory();
    let archive = open_at(Arc::clone(&store), &Hand::default(), None).await;
    let mut writer = archive.writer(&partition(0)).await.unwrap();
    let (mut sum, mut max, mut nodes_sum) = (0, 0, 0);
    let mut written = store.usage().bytes_written;
    for number in 0..100_000_u64 {
        let snapshot = append(&mut writer, vec![entry(number)]).await;
        let key = keys::commit(&partition(0), number);
        let len = store.get(&key).await.unwrap().len() as u64;
        let now = store.usage().bytes_written;
        nodes_sum += now - written - len;
        written = now;
        (sum, max) = (sum + len, len.max(max));
        store.delete(&key).await.unwrap();
        let count = number + 1;
        if [1, 64, 5_000, 100_000].contains(&count) {
            println!(
                "{count} entries: commits average {} B, largest {max} B; nodes {} B an entry; root level {:?}",
                sum / count,
                nodes_sum / count,
                snapshot.commit().root.as_ref().map(|root| root.level),
            );
        }
    }
    assert!(sum / 100_000 < 10_000, "a commit averages under 10 KB");
}

/// Keeps inner nodes and one leaf of 16: all that a few look-ups need, in memory.
#[derive(Debug)]
struct Sparse(MemoryStore);

#[async_trait]
impl Store for Sparse {
    fn url(&self) -> &str {
        "sparse://"
    }
    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.0.get(key).await
    }
    async fn get_range(&self, key: &Key, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        self.0.get_range(key, range).await
    }
    async fn put_if_absent(
        &self,
        key: &Key,
        body: Body,
        digest: Digest,
    ) -> Result<Put, StoreError> {
        let leaf = matches!(&body, Body::Bytes(bytes) if bytes.starts_with(b"{\"entries\""));
        if leaf && 16 <= digest[0] {
            return Ok(Put::Created);
        }
        self.0.put_if_absent(key, body, digest).await
    }
    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError> {
        self.0.list(prefix, recursive, token).await
    }
    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError> {
        self.0.list_first(prefix, limit).await
    }
    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.0.delete(key).await
    }
    fn lists_in_key_order(&self) -> bool {
        true
    }
    fn usage(&self) -> Usage {
        self.0.usage()
    }
}

#[tokio::test]
async fn requests_of_a_cold_look_up_among_four_million() {
    // Prints figures and takes its time: only for who asks.
    if std::env::var_os("EVERLOG_FIGURES").is_none() {
        return;
    }
    let count = 4_000_000_u64;
    let inner: Arc<dyn Store> = Arc::new(Sparse(MemoryStore::new()));
    let archive = open_at(Arc::clone(&inner), &Hand::default(), None).await;
    let mut writer = archive.writer(&partition(0)).await.unwrap();
    for first in (0..count).step_by(40_000) {
        append(&mut writer, (first..first + 40_000).map(entry).collect()).await;
    }
    let snapshot = writer.snapshot().unwrap();
    println!(
        "{} entries, root level {:?}, {} MB written",
        snapshot.entry_count(),
        snapshot.commit().root.as_ref().map(|root| root.level),
        inner.usage().bytes_written / 1_000_000
    );
    let (mut by_offset, mut by_time) = (0, 0);
    for number in (0..count).step_by(49_999) {
        for time in [false, true] {
            let store = Arc::new(FaultyStore::new(Arc::clone(&inner)));
            let tuning = Tuning {
                lag_window_entries: 0,
                ..Tuning::default()
            };
            let cold = Archive::open_with(store.clone(), ArchiveOptions::default(), tuning);
            let cold = cold.await.unwrap();
            let snapshot = cold.snapshot(&partition(0), Freshness::Known).await;
            let snapshot = snapshot.unwrap().unwrap();
            let wanted = entry(number);
            let opened = store.operations();
            let found = if time {
                let EntryKind::Data(data) = &wanted.kind else {
                    unreachable!("all entries are segments")
                };
                let found = snapshot.first_with_timestamp(data.min_timestamp_ms, Offset::ZERO);
                found.await.map(|f| f.map(|f| f.0) == Some(wanted.range))
            } else {
                let found = snapshot.lookup(wanted.range.start()).await;
                found.map(|found| found == Lookup::Covered(wanted.clone()))
            };
            // Most leaves were not kept.
            if let Ok(right) = found {
                assert!(right, "entry {number}");
                let nodes = store.operations().len() - opened.len();
                assert!(nodes <= 3, "{nodes} nodes");
                let seen = if time { &mut by_time } else { &mut by_offset };
                if *seen == 0 {
                    let kinds = |kind| opened.iter().filter(|o| o.kind == kind).count();
                    println!(
                        "{}: {nodes} nodes after {} lists and {} gets to open archive, topic and commit",
                        if time { "by time" } else { "by offset" },
                        kinds(OperationKind::List),
                        kinds(OperationKind::Get),
                    );
                }
                *seen += 1;
            }
        }
    }
    println!("looked up {by_offset} by offset, {by_time} by time");
    assert!(0 < by_offset && 0 < by_time);
}
