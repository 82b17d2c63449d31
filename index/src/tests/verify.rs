//! Going through a chain: whatever is changed or taken away is found.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng};

use super::*;
use crate::{IndexError, Named, keys};

/// Two sealed leaves, a root above them, and an open leaf; four commits, one of them a sweep.
async fn chain() -> Arc<dyn Store> {
    let store = memory();
    let hand = Hand::default();
    let archive = open_at(Arc::clone(&store), &hand, None).await;
    let mut writer = archive.writer(&partition(0)).await.unwrap();
    let mut next = 0;
    for count in [3, 100, 30] {
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(upload(store.as_ref(), next, next + 7).await);
            next += 7;
        }
        append(&mut writer, entries).await;
    }
    let orphan = Key::new("data/orphan".to_owned()).unwrap();
    let swept = writer.sweep(&[orphan]).await.unwrap();
    assert!(matches!(swept, Appended::Committed(_)));
    append(&mut writer, vec![empty(next, next + 1)]).await;
    store
}

/// Everything that is found, and everything that is wrong.
async fn go_through(store: &Arc<dyn Store>) -> (BTreeSet<Key>, Vec<IndexError>) {
    let archive = open_at(Arc::clone(store), &Hand::default(), None).await;
    let (mut found, mut wrong) = (BTreeSet::new(), Vec::new());
    let mut verifier = match archive.verifier(&partition(0)).await {
        Ok(verifier) => verifier.unwrap(),
        Err(error) => return (found, vec![error]),
    };
    loop {
        match verifier.next().await {
            Ok(None) => return (found, wrong),
            Ok(Some(Named::Commit { number })) => {
                found.insert(keys::commit(&partition(0), number));
            }
            Ok(Some(Named::Node { key })) => {
                found.insert(key);
            }
            Ok(Some(Named::Segment { key, data, .. })) => match store.get(&key).await {
                Ok(bytes) if Hash::of(&bytes) == data.hash => {
                    found.insert(key);
                }
                Ok(_) => wrong.push(IndexError::Corrupt {
                    what: key.to_string(),
                    why: "its hash".to_owned(),
                }),
                Err(_) => wrong.push(IndexError::Missing {
                    what: key.to_string(),
                }),
            },
            Err(error) => wrong.push(error),
        }
        assert!(wrong.len() < 1_000, "it does not end");
    }
}

async fn all_keys(store: &Arc<dyn Store>, prefix: &str) -> Vec<Key> {
    let (mut keys, mut token) = (Vec::new(), None);
    loop {
        let page = store.list(prefix, true, token).await.unwrap();
        keys.extend(page.objects.into_iter().map(|o| o.0));
        token = page.next;
        if token.is_none() {
            return keys;
        }
    }
}

#[tokio::test]
async fn a_whole_chain_is_whole() {
    let store = chain().await;
    let (found, wrong) = go_through(&store).await;
    assert!(wrong.is_empty(), "{wrong:?}");
    // 133 segments, 5 commits, 2 leaves, and their root. An earlier root would be named by a commit below the sweep.
    let data = all_keys(&store, "data").await;
    assert_eq!(data.len(), 133);
    for key in &data {
        assert!(found.contains(key), "{key}");
    }
    let commits = all_keys(&store, &keys::commit_folder(&partition(0))).await;
    assert_eq!(commits.len(), 5);
    for key in &commits {
        assert!(found.contains(key), "{key}");
    }
}

#[tokio::test]
async fn a_flipped_byte_is_found_wherever_it_is() {
    let store = chain().await;
    let (named, _) = go_through(&store).await;
    let newest = keys::commit(&partition(0), 4);
    let mut rng = rand::rngs::SmallRng::seed_from_u64(11);
    for key in &named {
        // Nothing names the hash of the newest commit: see below.
        if *key == newest {
            continue;
        }
        let whole = store.get(key).await.unwrap();
        for _ in 0..4 {
            let mut bytes = whole.to_vec();
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << rng.random_range(0..8);
            replace(store.as_ref(), key, bytes).await;
            let (_, wrong) = go_through(&store).await;
            let damage = |e: &IndexError| {
                matches!(
                    e,
                    IndexError::Corrupt { .. } | IndexError::Unsupported { .. }
                )
            };
            assert!(wrong.iter().any(damage), "byte {at} of {key}: {wrong:?}");
        }
        replace(store.as_ref(), key, whole).await;
    }
    assert!(go_through(&store).await.1.is_empty());
}

#[tokio::test]
async fn the_newest_commit_is_held_by_its_own_rules() {
    let store = chain().await;
    let newest = keys::commit(&partition(0), 4);
    let whole = store.get(&newest).await.unwrap();
    let text = std::str::from_utf8(&whole).unwrap();
    let changes = [
        (r#""number":"4""#, r#""number":"3""#),
        (r#""partition":0"#, r#""partition":1"#),
        (r#""cluster":"east""#, r#""cluster":"west""#),
        (r#""next_offset":"932""#, r#""next_offset":"933""#),
        (r#""kind":"append""#, r#""kind":"sweep""#),
        (r#""level":1"#, r#""level":2"#),
        (r#""entries":"128""#, r#""entries":"127""#),
    ];
    for (from, to) in changes {
        assert!(text.contains(from), "{from} in {text}");
        replace(store.as_ref(), &newest, text.replace(from, to)).await;
        let (_, wrong) = go_through(&store).await;
        assert!(!wrong.is_empty(), "{from} -> {to}");
    }
}

#[tokio::test]
async fn an_object_that_is_gone_is_missed() {
    let store = chain().await;
    let (named, _) = go_through(&store).await;
    let (oldest, newest) = (
        keys::commit(&partition(0), 0),
        keys::commit(&partition(0), 4),
    );
    for key in &named {
        let bytes = store.get(key).await.unwrap();
        store.delete(key).await.unwrap();
        let (_, wrong) = go_through(&store).await;
        // Without its first commit a chain is a pruned one, without its last a shorter one.
        if *key != oldest && *key != newest {
            assert!(!wrong.is_empty(), "{key}");
        }
        if key.as_str().starts_with("data/") || key.as_str().contains("/node/") {
            let missing = |e: &IndexError| matches!(e, IndexError::Missing { .. });
            assert!(wrong.iter().all(missing), "{key}: {wrong:?}");
        }
        put(store.as_ref(), key, bytes).await;
    }
    assert!(go_through(&store).await.1.is_empty());
}
