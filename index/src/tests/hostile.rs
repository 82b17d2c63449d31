//! Bytes that somebody has changed: an error or something valid, never a panic, never more memory than the bytes are
//! worth. Lists grow while they are parsed and an object has 4 MiB at most, so no number in it makes anybody allocate.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::canonical::OBJECT_MAX_BYTES;
use crate::commit::Commit;
use crate::node::{Node, Shape};
use crate::node_cache::NodeCache;
use crate::topics::{open_format, read_topic};
use crate::{HoleReason, IndexError, keys};

/// Flips, cuts, doubles and moves; now and then puts a number where one was.
fn mutate(whole: &[u8], rng: &mut SmallRng) -> Vec<u8> {
    const NUMBERS: [&str; 7] = [
        "0",
        "-1",
        "255",
        "4294967296",
        "9223372036854775807",
        "18446744073709551615",
        "1e309",
    ];
    let mut bytes = whole.to_vec();
    for _ in 0..rng.random_range(1..4) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..8) {
            0..=2 => bytes[at] ^= 1 << rng.random_range(0..8),
            3 => bytes.truncate(at),
            4 => {
                let end = (at + rng.random_range(1..400)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = rng.random_range(0..=bytes.len());
                bytes.splice(to..to, part);
            }
            5 => {
                let end = (at + rng.random_range(1..100)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let digit = |i: &usize| bytes[*i].is_ascii_digit();
                if let Some(start) = (at..bytes.len()).find(digit) {
                    let end = (start..bytes.len())
                        .find(|i| !digit(i))
                        .unwrap_or(bytes.len());
                    let number = NUMBERS[rng.random_range(0..NUMBERS.len())];
                    bytes.splice(start..end, number.bytes());
                }
            }
        }
    }
    bytes
}

fn refusal(error: &IndexError) -> bool {
    matches!(
        error,
        IndexError::Corrupt { .. } | IndexError::Unsupported { .. }
    )
}

/// Runs `read` over many mutations; gives how many it took for valid.
fn check<T>(whole: &[u8], seed: u64, read: impl Fn(&[u8]) -> Result<T, IndexError>) -> u32 {
    assert!(read(whole).is_ok(), "the original");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut valid = 0;
    for _ in 0..20_000 {
        let bytes = mutate(whole, &mut rng);
        match read(&bytes) {
            Ok(_) => valid += 1,
            Err(error) => assert!(refusal(&error), "{error:?}"),
        }
    }
    assert!(valid < 15_000, "{valid} of 20,000 were taken for valid");
    valid
}

fn entries() -> Vec<Entry> {
    let mut entries: Vec<Entry> = (0..9)
        .map(|n| data(range(10 * n, 10 * n + 10), b"some bytes of a segment"))
        .collect();
    entries.push(empty(90, 95));
    entries.push(Entry {
        range: range(95, 97),
        kind: EntryKind::Hole(HoleReason::Retention),
    });
    entries.push(Entry {
        range: range(97, 99),
        kind: EntryKind::Expired,
    });
    entries
}

/// A commit over a tree of three levels, and all nodes below it.
async fn deep() -> (Bytes, Vec<Bytes>) {
    let store = memory();
    let shape = Shape::VERSION_1;
    let nodes = NodeCache::new(Arc::clone(&store), shape, None);
    let entries: Vec<Entry> = (0..64 * 257 + 5)
        .map(|n| data(range(10 * n, 10 * n + 10), b"some bytes of a segment"))
        .collect();
    let mut salt = || everlog_format::Salt::new([3; 16]);
    let at = partition(0);
    let grown = crate::tree::grow(&nodes, &at, None, &entries, shape, &mut salt)
        .await
        .unwrap();
    let draft = crate::commit::Draft {
        number: 4,
        writer: everlog_format::Salt::new([9; 16]),
        kind: crate::CommitKind::Append,
        previous: Some(Hash::of(b"the one before")),
        root: grown.root,
        open: grown.open,
        sweep: Vec::new(),
    };
    let commit = Commit::new(draft, shape).unwrap();
    let nodes = grown.nodes.into_iter().map(|n| n.bytes).collect();
    (Bytes::from(commit.encode(&at)), nodes)
}

#[test]
fn changed_leaves() {
    let salt = everlog_format::Salt::new([1; 16]);
    let body = crate::node::NodeBody::Leaf(entries());
    let leaf = Node::seal(0, body, salt, Shape::VERSION_1).unwrap();
    let read = |bytes: &[u8]| {
        let node = Node::decode(Hash::of(bytes), bytes, Shape::VERSION_1)?;
        let _ = node.check_against(&leaf.child);
        assert!(node.memory_bytes() < 1 << 20);
        Ok(node)
    };
    check(&leaf.bytes, 1, read);
    let another = Node::decode(Hash::of(b""), &leaf.bytes, Shape::VERSION_1).unwrap_err();
    assert!(refusal(&another), "its name is its hash");
}

#[tokio::test]
async fn changed_inner_nodes_and_commits() {
    let (commit, nodes) = deep().await;
    let root = nodes.last().unwrap();
    let read = |bytes: &[u8]| Node::decode(Hash::of(bytes), bytes, Shape::VERSION_1);
    check(root, 2, read);
    let at = partition(0);
    let (before, _) = Commit::decode(&at, 4, &commit, Shape::VERSION_1).unwrap();
    let read = |bytes: &[u8]| {
        let (commit, _) = Commit::decode(&at, 4, bytes, Shape::VERSION_1)?;
        // What is taken for valid can be written again, and compared with a neighbour.
        let again = commit.encode(&at);
        assert!(Commit::decode(&at, 4, &again, Shape::VERSION_1).is_ok());
        let _ = commit.check_outgrows(&before);
        Ok(commit)
    };
    check(&commit, 3, read);
}

#[tokio::test]
async fn changed_files_of_the_archive() {
    let store = memory();
    let archive = open_at(Arc::clone(&store), &Hand::default(), None).await;
    drop(archive);
    let (format, topic_file) = (keys::format_file(), keys::topic_file(&topic().incarnation));
    let mut rng = SmallRng::seed_from_u64(4);
    for key in [format, topic_file] {
        let whole = store.get(&key).await.unwrap();
        let mut refused = 0;
        for _ in 0..5_000 {
            replace(store.as_ref(), &key, mutate(&whole, &mut rng)).await;
            let read = if key.as_str() == "everlog.json" {
                open_format(store.as_ref(), true).await.map(|_| ())
            } else {
                read_topic(store.as_ref(), &topic().incarnation)
                    .await
                    .map(|_| ())
            };
            if let Err(error) = read {
                assert!(refusal(&error), "{error:?}");
                refused += 1;
            }
        }
        assert!(2_000 < refused, "{refused} of 5,000 of {key}");
    }
}

#[test]
fn bombs_are_refused() {
    let at = partition(0);
    let read = |bytes: &[u8]| Commit::decode(&at, 0, bytes, Shape::VERSION_1);
    let deep = |inner: &str, len: usize| {
        let head = r#"{"version":1,"reader_features":[],"#;
        format!("{head}{inner}{}", "[".repeat(len)).into_bytes()
    };
    let bombs = [
        vec![b' '; OBJECT_MAX_BYTES + 1],
        vec![b'['; OBJECT_MAX_BYTES],
        deep(r#""unknown":"#, OBJECT_MAX_BYTES - 100),
        deep(r#""open":"#, OBJECT_MAX_BYTES - 100),
        deep(r#""root":"#, OBJECT_MAX_BYTES - 100),
        format!(
            r#"{{"version":1,"reader_features":[],"sweep":[{}""]}}"#,
            r#""","#.repeat(1_000_000)
        )
        .into_bytes(),
    ];
    for bomb in bombs {
        let error = read(&bomb).unwrap_err();
        assert!(refusal(&error), "{error:?}");
        let error = Node::decode(Hash::of(&bomb), &bomb, Shape::VERSION_1).unwrap_err();
        assert!(refusal(&error), "{error:?}");
    }
    // More than a leaf may hold.
    let many = format!(
        r#"{{"entries":[{}{{"end":"1","kind":"empty","start":"0"}}],"level":0,"reader_features":[],"salt":"00000000000000000000000000000000","version":1}}"#,
        r#"{"end":"1","kind":"empty","start":"0"},"#.repeat(100_000)
    );
    let error = Node::decode(Hash::of(many.as_bytes()), many.as_bytes(), Shape::VERSION_1);
    assert!(refusal(&error.unwrap_err()));
}
