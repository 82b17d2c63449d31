//! Opening, topics and partitions, over the store in memory and the one of files.

use everlog_store::faulty::FaultyStore;
use everlog_store::{FileStore, StoreError};

use super::*;
use crate::{Freshness, IndexError, keys};

async fn both() -> (tempfile::TempDir, [Arc<dyn Store>; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let files = FileStore::open(dir.path(), true).await.unwrap();
    (dir, [memory(), Arc::new(files)])
}

async fn open(store: &Arc<dyn Store>, create: bool) -> Result<Arc<Archive>, IndexError> {
    let options = ArchiveOptions {
        node_cache_dir: None,
        create,
    };
    Archive::open(Arc::clone(store), options).await
}

#[tokio::test]
async fn an_empty_place_is_no_archive_until_one_is_made() {
    let (_dir, stores) = both().await;
    for store in stores {
        match open(&store, false).await {
            Err(IndexError::NoArchive { url }) => assert_eq!(url, store.url()),
            other => panic!("{other:?}"),
        }
        open(&store, true).await.unwrap();
        open(&store, true).await.unwrap();
        open(&store, false).await.unwrap();
        let bytes = store.get(&keys::format_file()).await.unwrap();
        assert_eq!(
            bytes.as_ref(),
            br#"{"format":"everlog","reader_features":[],"version":1,"writer_features":[]}"#
        );
    }
}

#[tokio::test]
async fn ten_that_make_it_at_once_all_open_it() {
    let (_dir, stores) = both().await;
    for store in stores {
        let opens = (0..10).map(|_| open(&store, true));
        for opened in futures::future::join_all(opens).await {
            opened.unwrap();
        }
    }
}

#[tokio::test]
async fn what_a_newer_everlog_wrote_asks_for_an_upgrade() {
    let newer = [
        r#"{"format":"everlog","reader_features":["columns2"],"version":1,"writer_features":[]}"#,
        r#"{"format":"everlog","reader_features":[],"version":2,"writer_features":[]}"#,
        r#"{"version":3}"#,
    ];
    for bytes in newer {
        let store = memory();
        put(store.as_ref(), &keys::format_file(), bytes).await;
        let error = open(&store, true).await.unwrap_err();
        assert!(matches!(error, IndexError::Unsupported { .. }), "{error:?}");
    }
    for bytes in [
        "",
        "{}",
        r#"{"format":"other","reader_features":[],"version":1,"writer_features":[]}"#,
    ] {
        let store = memory();
        put(store.as_ref(), &keys::format_file(), bytes).await;
        let error = open(&store, true).await.unwrap_err();
        assert!(matches!(error, IndexError::Corrupt { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_feature_for_writers_leaves_it_readable() {
    let store = memory();
    let hand = Hand::default();
    let archive = open_at(Arc::clone(&store), &hand, None).await;
    let mut writer = archive.writer(&partition(0)).await.unwrap();
    append(&mut writer, vec![empty(0, 10)]).await;
    let bytes =
        r#"{"format":"everlog","reader_features":[],"version":1,"writer_features":["redaction"]}"#;
    replace(store.as_ref(), &keys::format_file(), bytes).await;
    let archive = open(&store, false).await.unwrap();
    let read = archive.snapshot(&partition(0), Freshness::Now).await;
    assert_eq!(read.unwrap().unwrap().number(), 0);
    let refused = [
        archive.writer(&partition(0)).await.map(|_| ()),
        archive.register_topic(&topic()).await,
    ];
    for refused in refused {
        match refused {
            Err(IndexError::Unsupported { features, .. }) => assert_eq!(features, ["redaction"]),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_commit_may_ask_its_writers_for_something_too() {
    let store = memory();
    let hand = Hand::default();
    let archive = open_at(Arc::clone(&store), &hand, None).await;
    let mut writer = archive.writer(&partition(0)).await.unwrap();
    append(&mut writer, vec![empty(0, 10)]).await;
    let key = keys::commit(&partition(0), 0);
    let bytes = store.get(&key).await.unwrap();
    let asks = std::str::from_utf8(&bytes).unwrap().replace(
        r#""writer_features":[]"#,
        r#""writer_features":["redaction"]"#,
    );
    replace(store.as_ref(), &key, asks).await;
    let archive = open_at(store, &hand, None).await;
    let mut writer = archive.writer(&partition(0)).await.unwrap();
    assert_eq!(writer.next_offset().unwrap().get(), 10, "it can be read");
    let refused = writer.append(vec![empty(10, 20)]).await;
    assert!(
        matches!(
            refused,
            Err(crate::WriterError::Index(IndexError::Unsupported { .. }))
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn topics_and_partitions_are_found_again() {
    let (_dir, stores) = both().await;
    let again = topic_named("orders", "AAAAAAAAAAAAAAAAAAAAAQ");
    let other = topic_named("clicks.v1", "AAAAAAAAAAAAAAAAAAAAAg");
    for store in stores {
        let archive = open(&store, true).await.unwrap();
        assert_eq!(archive.topics().await.unwrap(), []);
        assert_eq!(archive.topic(&topic().incarnation).await.unwrap(), None);
        for info in [&topic(), &again, &other] {
            archive.register_topic(info).await.unwrap();
        }
        // What was seen first stays.
        let mut later = topic();
        later.partition_count = 99;
        archive.register_topic(&later).await.unwrap();
        let elsewhere = open(&store, false).await.unwrap();
        elsewhere.register_topic(&later).await.unwrap();
        for archive in [&archive, &elsewhere] {
            let known = archive.topic(&topic().incarnation).await.unwrap();
            assert_eq!(known, Some(topic()));
        }
        // What is not ours is passed over.
        for foreign in ["meta/east/notes/a.txt", "meta/readme.txt", "meta/not a/x"] {
            if let Ok(key) = Key::new(foreign.to_owned()) {
                put(store.as_ref(), &key, "x").await;
            }
        }
        let mut topics = elsewhere.topics().await.unwrap();
        topics.sort_by_key(|t| t.incarnation.topic_id.to_string());
        assert_eq!(topics, [topic(), again.clone(), other.clone()]);

        assert_eq!(archive.partitions(&topic().incarnation).await.unwrap(), []);
        for raw in [10, 2, 0] {
            let mut writer = archive.writer(&partition(raw)).await.unwrap();
            append(&mut writer, vec![empty(5, 6)]).await;
        }
        let partitions = elsewhere.partitions(&topic().incarnation).await.unwrap();
        let raw: Vec<i32> = partitions.iter().map(|p| p.get()).collect();
        assert_eq!(raw, [0, 2, 10]);
        assert_eq!(elsewhere.partitions(&other.incarnation).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_writer_wants_its_topic_registered() {
    let store = memory();
    let archive = open(&store, true).await.unwrap();
    let error = archive.writer(&partition(0)).await.unwrap_err();
    assert!(matches!(error, IndexError::Missing { .. }), "{error:?}");
    let none = archive.snapshot(&partition(0), Freshness::Now).await;
    assert!(none.unwrap().is_none());
}

#[tokio::test]
async fn an_unknown_topic_is_asked_for_once_in_ten_seconds() {
    let store = Arc::new(FaultyStore::new(memory()));
    let hand = Hand::default();
    let archive = open_at(store.clone(), &hand, None).await;
    let unknown = topic_named("later", "AAAAAAAAAAAAAAAAAAAAAw");
    let before = store.operations().len();
    for _ in 0..10 {
        hand.forward(Duration::from_secs(1));
        assert_eq!(archive.topic(&unknown.incarnation).await.unwrap(), None);
    }
    assert_eq!(store.operations().len() - before, 1);
    open_at(Arc::clone(store.inner()), &hand, None)
        .await
        .register_topic(&unknown)
        .await
        .unwrap();
    hand.forward(Duration::from_secs(2));
    let found = archive.topic(&unknown.incarnation).await.unwrap();
    assert_eq!(found, Some(unknown));
}

#[tokio::test]
async fn who_wants_it_fresh_is_not_told_from_memory_that_a_topic_is_unknown() {
    let store = memory();
    let hand = Hand::default();
    let readers = [
        open(&store, true).await.unwrap(),
        open(&store, true).await.unwrap(),
    ];
    for reader in &readers {
        let none = reader.snapshot(&partition(0), Freshness::Known).await;
        assert!(none.unwrap().is_none());
    }
    let archive = open_at(Arc::clone(&store), &hand, None).await;
    let mut writer = archive.writer(&partition(0)).await.unwrap();
    append(&mut writer, vec![empty(0, 10)]).await;
    let known = readers[0].snapshot(&partition(0), Freshness::Known).await;
    assert!(known.unwrap().is_none(), "it is remembered");
    assert_eq!(readers[0].topics().await.unwrap(), [topic()]);
    let now = readers[1].snapshot(&partition(0), Freshness::Now).await;
    assert_eq!(now.unwrap().unwrap().number(), 0);
}

#[tokio::test]
async fn a_topic_file_of_another_topic_is_refused() {
    let store = memory();
    let archive = open(&store, true).await.unwrap();
    archive.register_topic(&topic()).await.unwrap();
    let bytes = store.get(&keys::topic_file(&topic().incarnation)).await;
    let other = topic_named("clicks", "AAAAAAAAAAAAAAAAAAAAAg").incarnation;
    put(store.as_ref(), &keys::topic_file(&other), bytes.unwrap()).await;
    let error = archive.topic(&other).await.unwrap_err();
    assert!(matches!(error, IndexError::Corrupt { .. }), "{error:?}");
}

#[tokio::test]
async fn a_store_that_is_away_is_not_an_empty_one() {
    let store = Arc::new(FaultyStore::new(memory()));
    store.on_operation(|_| everlog_store::faulty::Fault::Unavailable);
    let store: Arc<dyn Store> = store;
    let error = open(&store, true).await.unwrap_err();
    assert!(
        matches!(error, IndexError::Store(StoreError::Unavailable { .. })),
        "{error:?}"
    );
}
