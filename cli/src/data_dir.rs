//! Local disk for one process: named by the operator and locked, or temporary and removed at the end.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use tracing::{debug, info};

/// The directory, for as long as this lives. Nothing in it is needed after a restart.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// The lock goes with the open file, also when the process dies.
    _lock: File,
    /// Removes the directory when it is dropped.
    _temporary: Option<tempfile::TempDir>,
}

const LOCK_FILE: &str = "everlog.lock";

/// How temporary ones are called, and the file that says so: nothing that an operator has named is ever removed.
const TEMPORARY_PREFIX: &str = "everlog-temporary-";
const TEMPORARY_FILE: &str = "temporary";

/// A younger one may not be locked yet by the process that has just made it.
const LEFT_BEHIND_AGE: Duration = Duration::from_secs(60);

impl DataDir {
    /// Creates the directory if need be and locks it.
    pub(crate) fn open(named: Option<&Path>) -> Result<DataDir> {
        let (path, temporary) = match named {
            Some(path) => (path.to_owned(), None),
            None => {
                remove_left_behind(&std::env::temp_dir(), LEFT_BEHIND_AGE);
                let directory = tempfile::Builder::new()
                    .prefix(TEMPORARY_PREFIX)
                    .tempdir()
                    .context(
                        "a temporary data directory could not be made; name one with --data-dir",
                    )?;
                let path = directory.path().to_owned();
                std::fs::write(path.join(TEMPORARY_FILE), b"")
                    .with_context(|| format!("{} cannot be written", path.display()))?;
                info!(data_dir = %path.display(), "no --data-dir was given, using a temporary one");
                (path, Some(directory))
            }
        };
        std::fs::create_dir_all(&path)
            .with_context(|| format!("the data directory {} could not be made", path.display()))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = File::create(&lock_path)
            .with_context(|| format!("{} cannot be written", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(DataDir {
                path,
                _lock: lock,
                _temporary: temporary,
            }),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "the data directory {} is in use by another everlog: give each process its own",
                    path.display()
                )
            }
            Err(TryLockError::Error(err)) => {
                Err(err).with_context(|| format!("{} could not be locked", lock_path.display()))
            }
        }
    }

    /// Open segments.
    pub(crate) fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }

    /// Sealed nodes of the index.
    pub(crate) fn node_cache(&self) -> PathBuf {
        self.path.join("nodes")
    }

    /// The cluster's brokers, as last seen. Made if need be.
    pub(crate) fn proxy(&self) -> Result<PathBuf> {
        let path = self.path.join("proxy");
        std::fs::create_dir_all(&path)
            .with_context(|| format!("{} could not be made", path.display()))?;
        Ok(path)
    }
}

/// Removes the temporary directories of processes that were killed: their spool can be as large as the open segments, and
/// a process that is killed again and again would fill the disk.
fn remove_left_behind(parent: &Path, age_min: Duration) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(TEMPORARY_PREFIX))
            && path.join(TEMPORARY_FILE).is_file();
        if !is_ours || !is_left_behind(&path, age_min) {
            continue;
        }
        match std::fs::remove_dir_all(&path) {
            Ok(()) => {
                info!(path = %path.display(), "removed the temporary data directory of a process that was killed");
            }
            // Another process may have been faster, or it is another user's.
            Err(err) => debug!(
                error = &err as &dyn std::error::Error,
                path = %path.display(),
                "a temporary data directory stays behind"
            ),
        }
    }
}

/// Whether nobody holds its lock, and nobody can be about to take it.
#[expect(
    clippy::disallowed_methods,
    reason = "the file system's times are those of the day"
)]
fn is_left_behind(directory: &Path, age_min: Duration) -> bool {
    let Ok(lock) = File::options().write(true).open(directory.join(LOCK_FILE)) else {
        return false;
    };
    let age = lock
        .metadata()
        .and_then(|data| data.modified())
        .ok()
        .and_then(|made| SystemTime::now().duration_since(made).ok());
    age.is_some_and(|age| age_min <= age) && lock.try_lock().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_processes_left_goes_and_nothing_else() {
        let parent = tempfile::tempdir().expect("a directory");
        let make = |name: &str, files: &[&str]| {
            let path = parent.path().join(name);
            std::fs::create_dir_all(path.join("spool")).expect("made");
            for file in files {
                std::fs::write(path.join(file), b"").expect("written");
            }
            path
        };
        let both = [LOCK_FILE, TEMPORARY_FILE];
        let left = make("everlog-temporary-a", &both);
        let in_use = make("everlog-temporary-b", &both);
        let held = File::open(in_use.join(LOCK_FILE)).expect("there");
        held.try_lock().expect("free");
        let others = [
            make("everlog-temporary-c", &[TEMPORARY_FILE]),
            make("everlog-temporary-d", &[LOCK_FILE]),
            make("everlog-data", &both),
        ];
        remove_left_behind(parent.path(), Duration::from_secs(60));
        assert!(left.exists(), "too young");
        remove_left_behind(parent.path(), Duration::ZERO);
        assert!(!left.exists());
        assert!(in_use.exists());
        assert!(others.iter().all(|path| path.exists()), "{others:?}");
    }

    #[test]
    fn two_processes_never_share_one() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("data");
        let first = DataDir::open(Some(&path)).expect("free");
        let err = DataDir::open(Some(&path)).expect_err("taken").to_string();
        assert!(err.contains("in use by another everlog"), "{err}");
        drop(first);
        DataDir::open(Some(&path)).expect("free again");
    }

    #[test]
    fn a_temporary_one_leaves_nothing_behind() {
        let directory = DataDir::open(None).expect("made");
        let path = directory.path.clone();
        std::fs::create_dir(directory.spool()).expect("writable");
        drop(directory);
        assert!(!path.exists());
    }
}
