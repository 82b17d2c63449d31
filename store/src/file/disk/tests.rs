//! An archive whose directory goes away while it is used.

use super::*;
use crate::digest_of;

fn put(disk: &Disk, name: &str) -> Result<Put, StoreError> {
    let bytes = Bytes::from_static(b"x");
    let digest = digest_of(&bytes);
    let key = Key::new(name).expect("a key");
    disk.put(&key, &Body::Bytes(bytes), &digest)
}

fn names(path: &Path) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(path).expect("a directory");
    entries.flatten().map(|entry| entry.file_name()).collect()
}

/// What no operation gets past, and what each says.
#[track_caller]
fn all_say(disk: &Disk, said: &str) {
    let key = Key::new("meta/a").expect("a key");
    let root = disk.root.display().to_string();
    let outcomes = [
        put(disk, "meta/b").err(),
        // Its folder is remembered as one that is there.
        put(disk, "meta/a").err(),
        disk.read(&key, None).err(),
        disk.list("", true, None, 10).err(),
        disk.delete(&key).err(),
    ];
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Some(StoreError::Unavailable { source, .. }) => {
                let told = source.to_string();
                assert!(
                    told.contains(&root) && told.contains(said),
                    "{index}: {told}"
                );
            }
            other => panic!("{index}: {other:?}"),
        }
    }
}

/// Where a file system was unmounted, or a directory moved away and made again, the archiver made the staging folder anew and
/// went on committing: the mount point got an archive without a beginning, and readers heard that all objects were missing.
#[test]
fn nothing_is_written_into_what_stands_in_the_archives_place() {
    for create in [true, false] {
        let parent = tempfile::tempdir().expect("a directory");
        let (root, away) = (parent.path().join("archive"), parent.path().join("away"));
        let writer = Disk::open(root.clone(), true).expect("new");
        assert_eq!(put(&writer, "meta/a").expect("stored"), Put::Created);
        let disk = match create {
            true => writer,
            false => Disk::open(root.clone(), false).expect("there"),
        };

        fs::rename(&root, &away).expect("moved");
        all_say(&disk, "is gone (removed, moved away, or no longer mounted)");
        assert!(!root.exists(), "it was made again");

        // As a mount point is when nothing is mounted.
        fs::create_dir(&root).expect("made");
        all_say(&disk, "no longer mounted");
        assert_eq!(names(&root), [""; 0]);

        fs::remove_dir(&root).expect("empty");
        fs::rename(&away, &root).expect("moved back");
        assert_eq!(put(&disk, "meta/a").expect("there"), Put::Refused);
        assert_eq!(put(&disk, "meta/c/d").expect("stored"), Put::Created);
        assert_eq!(
            disk.list("", true, None, 10).expect("there").objects.len(),
            2
        );
    }
}

/// A proxy that waits for its archive has opened the directory before there was one in it.
#[test]
fn a_reader_that_came_before_the_archive_knows_its_directory_too() {
    let parent = tempfile::tempdir().expect("a directory");
    let (root, away) = (parent.path().join("archive"), parent.path().join("away"));
    fs::create_dir(&root).expect("made");
    let reader = Disk::open(root.clone(), false).expect("there");
    let key = Key::new("meta/a").expect("a key");
    let absent = |key: &Key| matches!(reader.read(key, None), Err(StoreError::NotFound { .. }));
    assert!(absent(&key));
    let writer = Disk::open(root.clone(), true).expect("there");
    assert_eq!(put(&writer, "meta/a").expect("stored"), Put::Created);
    assert!(!absent(&key) && absent(&Key::new("meta/b").expect("a key")));

    fs::rename(&root, &away).expect("moved");
    fs::create_dir(&root).expect("made");
    all_say(&reader, "no longer mounted");
}

/// A copy of an archive for readers needs no staging folder.
#[test]
fn a_directory_that_never_had_the_mark_is_read_without_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path().to_owned(), false).expect("there");
    assert!(
        disk.list("", true, None, 10)
            .expect("there")
            .objects
            .is_empty()
    );
    assert_eq!(names(dir.path()), [""; 0], "who only reads makes nothing");
}
