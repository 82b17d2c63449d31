//! Nodes on the local disk: nothing that happens to the folder may change what is read.

use std::path::Path;

use everlog_store::faulty::FaultyStore;

use super::*;
use crate::Freshness;
use crate::disk_cache::{DiskCache, FOLDER, mark_broken, marker_of};
use crate::node::{Node, NodeBody, Shape};
use crate::node_cache::NodeCache;

async fn filled(dir: &Path) -> Vec<(Hash, Bytes)> {
    let cache = DiskCache::open(dir).await.unwrap();
    let mut nodes = Vec::new();
    for number in 0..200_u32 {
        let bytes = Bytes::from(format!("node {number} ").repeat(100));
        let hash = Hash::of(&bytes);
        cache.put(hash, bytes.clone()).await;
        nodes.push((hash, bytes));
    }
    drop(cache);
    released(dir).await;
    nodes
}

/// sled gives its lock back when its threads are done, a little later than the last handle.
async fn released(dir: &Path) {
    for _ in 0..200 {
        if DiskCache::open(dir).await.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn open_when_free(dir: &Path) -> Option<DiskCache> {
    for _ in 0..200 {
        if let Some(cache) = DiskCache::open(dir).await {
            return Some(cache);
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    None
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[tokio::test]
async fn nodes_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = filled(dir.path()).await;
    let cache = open_when_free(dir.path()).await.unwrap();
    for (hash, bytes) in nodes {
        assert_eq!(cache.get(hash).await, Some(bytes));
    }
}

/// The marker is what is left of a process that ended by a panic ([`crate::distrust_disk_caches`]; here it would reach the caches
/// of all tests of this process).
#[tokio::test]
async fn a_cache_that_is_distrusted_starts_empty() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = filled(dir.path()).await;
    let marker = marker_of(&dir.path().join(FOLDER));
    mark_broken(&marker);
    let cache = open_when_free(dir.path()).await.unwrap();
    assert_eq!(cache.get(nodes[0].0).await, None);
    assert!(!marker.exists());
}

/// Whatever is done to its files, the cache opens again, works, and gives no other bytes than were put.
async fn survives(damage: impl Fn(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let nodes = filled(dir.path()).await;
    for file in files(dir.path()) {
        damage(&file);
    }
    let cache = open_when_free(dir.path()).await.expect("an empty cache");
    for (hash, bytes) in &nodes {
        let found = cache.get(*hash).await;
        assert!(found.is_none() || found.as_ref() == Some(bytes), "{hash}");
    }
    drop(cache);
    // A cache that broke while it was read is emptied by the next start.
    let cache = open_when_free(dir.path()).await.expect("an empty cache");
    let (hash, bytes) = nodes[0].clone();
    cache.put(hash, bytes.clone()).await;
    assert_eq!(cache.get(hash).await, Some(bytes));
}

#[tokio::test]
async fn a_folder_of_garbage_is_emptied() {
    survives(|file| std::fs::write(file, [0xa5; 70_000]).unwrap()).await;
}

#[tokio::test]
async fn a_folder_of_zeros_is_emptied() {
    survives(|file| {
        let len = usize::try_from(std::fs::metadata(file).unwrap().len()).unwrap();
        std::fs::write(file, vec![0; len]).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_folder_of_empty_files_is_emptied() {
    survives(|file| std::fs::write(file, []).unwrap()).await;
}

#[tokio::test]
async fn files_cut_in_the_middle_are_survived() {
    survives(|file| {
        let bytes = std::fs::read(file).unwrap();
        std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_byte_flipped_in_every_kilobyte_is_survived() {
    survives(|file| {
        let mut bytes = std::fs::read(file).unwrap();
        bytes.iter_mut().step_by(1_000).for_each(|b| *b ^= 0x10);
        std::fs::write(file, bytes).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_had_is_done_without() {
    let dir = tempfile::tempdir().unwrap();
    let held = DiskCache::open(dir.path()).await.unwrap();
    let before = files(dir.path()).len();
    assert!(DiskCache::open(dir.path()).await.is_none(), "it is held");
    assert_eq!(files(dir.path()).len(), before, "and it is left alone");
    // An archive opens and reads all the same.
    let store = memory();
    let hand = Hand::default();
    let archive = open_at(store, &hand, Some(dir.path().to_owned())).await;
    let mut writer = archive.writer(&partition(0)).await.unwrap();
    append(&mut writer, (0..70).map(|n| empty(n, n + 1)).collect()).await;
    let snapshot = archive.snapshot(&partition(0), Freshness::Now).await;
    let entries = snapshot.unwrap().unwrap();
    assert_eq!(entries.entries(Offset::ZERO, 100).await.unwrap().len(), 70);
    drop(held);
    // Something else in its place.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("nodes-1"), b"a file").unwrap();
    assert!(DiskCache::open(dir.path()).await.is_none());
    assert_eq!(
        std::fs::read(dir.path().join("nodes-1")).unwrap(),
        b"a file"
    );
}

#[tokio::test]
async fn wrong_bytes_under_a_hash_are_read_anew_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FaultyStore::new(memory()));
    let hand = Hand::default();
    let archive = open_at(store.clone(), &hand, None).await;
    let mut writer = archive.writer(&partition(0)).await.unwrap();
    let entries: Vec<Entry> = (0..64).map(|n| empty(n, n + 1)).collect();
    let snapshot = append(&mut writer, entries).await;
    let leaf = snapshot.commit().root.clone().unwrap();
    let disk = DiskCache::open(dir.path()).await.unwrap();
    // A whole node, but another one.
    let salt = everlog_format::Salt::new([0; 16]);
    let body = NodeBody::Leaf(vec![empty(0, 64)]);
    let wrong = Node::seal(0, body, salt, Shape::VERSION_1).unwrap().bytes;
    disk.put(leaf.hash, wrong).await;
    let open = || {
        let store: Arc<dyn Store> = store.clone();
        NodeCache::new(store, Shape::VERSION_1, Some(disk.clone()))
    };
    let before = store.operations().len();
    let node = open().load(&partition(0), &leaf).await.unwrap();
    assert_eq!(node.summary, leaf.summary);
    assert_eq!(store.operations().len() - before, 1, "from the store");
    assert_eq!(Hash::of(&disk.get(leaf.hash).await.unwrap()), leaf.hash);
    open().load(&partition(0), &leaf).await.unwrap();
    assert_eq!(store.operations().len() - before, 1, "now from the disk");
}

#[tokio::test]
async fn the_folder_stays_within_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let max_bytes = 1 << 20;
    let cache = DiskCache::open_bounded(dir.path(), max_bytes)
        .await
        .unwrap();
    let mut nodes = Vec::new();
    for number in 0..1_000_u32 {
        // Bytes that do not compress.
        let mut bytes = vec![0; 20_000];
        rand::rng().fill_bytes(&mut bytes);
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        let bytes = Bytes::from(bytes);
        let hash = Hash::of(&bytes);
        cache.put(hash, bytes).await;
        assert!(cache.get(hash).await.is_some(), "the last one is there");
        nodes.push(hash);
    }
    let mut there = 0;
    for hash in nodes {
        there += u64::from(cache.get(hash).await.is_some());
    }
    assert!((1..=max_bytes / 20_000).contains(&there), "{there} nodes");
    drop(cache);
    // sled gives space back late; the next start does it if there is too much.
    let mut reopened = None;
    for _ in 0..200 {
        reopened = DiskCache::open_bounded(dir.path(), max_bytes).await;
        if reopened.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(reopened.is_some());
    let on_disk: u64 = files(dir.path())
        .iter()
        .map(|f| f.metadata().unwrap().len())
        .sum();
    assert!(on_disk <= 4 * max_bytes, "{on_disk} bytes on disk");
}
