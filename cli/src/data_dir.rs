//! Local disk for one process: named by the operator and locked, or temporary and removed at the end.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tracing::info;

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

impl DataDir {
    /// Creates the directory if need be and locks it.
    pub(crate) fn open(named: Option<&Path>) -> Result<DataDir> {
        let (path, temporary) = match named {
            Some(path) => (path.to_owned(), None),
            None => {
                let directory = tempfile::Builder::new().prefix("everlog-").tempdir();
                let directory = directory.context(
                    "a temporary data directory could not be made; name one with --data-dir",
                )?;
                let path = directory.path().to_owned();
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

#[cfg(test)]
mod tests {
    use super::*;

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
