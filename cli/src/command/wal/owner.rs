//! Who has a log open, found out without taking any claim or lock oneself; and a claim for readers that need quiet.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// A process that holds a lock on the log.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Owner {
    /// `None`: of another PID namespace.
    pub(crate) pid: Option<u32>,
    /// Its name, as far as it may be read.
    pub(crate) command: Option<String>,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.pid, &self.command) {
            (Some(pid), Some(command)) => write!(f, "process {pid} ({command})"),
            (Some(pid), None) => write!(f, "process {pid}"),
            (None, _) => f.write_str("a process of another container"),
        }
    }
}

/// Who holds the lock that a writer takes. Looks at the kernel's list of locks and disturbs nobody.
pub(crate) fn owner(path: &Path) -> Result<Option<Owner>> {
    let of = std::fs::metadata(path).with_context(|| format!("{}", path.display()))?;
    let locks = std::fs::read_to_string("/proc/locks").context("/proc/locks can't be read")?;
    let held = locks.lines().filter_map(Lock::parse);
    let mut ours = held
        .filter(|lock| lock.inode == of.ino() && (lock.device == of.dev() || lock.is_open_as(&of)));
    Ok(ours.next().map(|lock| Owner {
        pid: lock.pid,
        command: lock.pid.and_then(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some(name.trim_end().to_owned())
        }),
    }))
}

/// A line of `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF`.
#[derive(Debug, PartialEq, Eq)]
struct Lock {
    pid: Option<u32>,
    device: u64,
    inode: u64,
}

impl Lock {
    /// An exclusive `flock`; `None` for all other lines, also of those who only wait for one.
    fn parse(line: &str) -> Option<Lock> {
        let mut words = line.split_whitespace().skip(1);
        if words.next()? != "FLOCK" || words.next()? != "ADVISORY" || words.next()? != "WRITE" {
            return None;
        }
        let pid: i64 = words.next()?.parse().ok()?;
        let mut place = words.next()?.split(':');
        let major = u32::from_str_radix(place.next()?, 16).ok()?;
        let minor = u32::from_str_radix(place.next()?, 16).ok()?;
        Some(Lock {
            pid: u32::try_from(pid).ok().filter(|pid| *pid > 0),
            device: libc::makedev(major, minor),
            inode: place.next()?.parse().ok()?,
        })
    }

    /// Some file systems (btrfs) show another device in the list than to those who ask for a file's.
    fn is_open_as(&self, of: &std::fs::Metadata) -> bool {
        let Some(pid) = self.pid else {
            return false;
        };
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
        open.into_iter().flatten().flatten().any(|entry| {
            std::fs::metadata(entry.path())
                .is_ok_and(|file| (file.dev(), file.ino()) == (of.dev(), of.ino()))
        })
    }
}

/// Keeps writers out while it lives. Several readers may hold one at a time.
#[derive(Debug)]
pub(crate) struct ReadClaim {
    _file: File,
}

/// Claims a log for reading in peace, or tells who has it.
pub(crate) fn claim_to_read(path: &Path) -> Result<ReadClaim> {
    let kind = std::fs::metadata(path).with_context(|| format!("{}", path.display()))?;
    let exclusive = if kind.file_type().is_block_device() {
        libc::O_EXCL
    } else {
        0
    };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(exclusive)
        .open(path);
    let busy = || {
        let by = match owner(path) {
            Ok(Some(owner)) => owner.to_string(),
            _ => "another process, or mounted".to_owned(),
        };
        format!(
            "{} is in use by {by}; stop it first, or look with `everlog wal info`, which may be asked at any time",
            path.display()
        )
    };
    let file = match opened {
        Err(err) if err.kind() == ErrorKind::ResourceBusy => bail!(busy()),
        opened => opened.with_context(|| format!("{} can't be opened", path.display()))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(ReadClaim { _file: file }),
        Err(std::fs::TryLockError::WouldBlock) => bail!(busy()),
        Err(std::fs::TryLockError::Error(err)) => {
            Err(err).with_context(|| format!("{} can't be locked", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exclusive_locks_that_are_held_count() {
        let lock = Lock::parse("1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF");
        let device = libc::makedev(0xfd, 1);
        assert_eq!(
            lock,
            Some(Lock {
                pid: Some(1234),
                device,
                inode: 5678
            })
        );
        let other = Lock::parse("1: FLOCK  ADVISORY  WRITE -1 fd:01:5678 0 EOF");
        assert_eq!(other.and_then(|lock| lock.pid), None);
        for line in [
            "1: POSIX  ADVISORY  WRITE 1234 fd:01:5678 0 EOF",
            "2: FLOCK  ADVISORY  READ 1234 fd:01:5678 0 EOF",
            "1: -> FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF",
            "",
            "1: FLOCK ADVISORY WRITE x fd:01 0 EOF",
        ] {
            assert_eq!(Lock::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_owner_of_a_lock_is_found_and_readers_are_kept_out() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(owner(file.path()).expect("locks"), None);
        let claim = claim_to_read(file.path()).expect("free");
        let second = claim_to_read(file.path()).expect("readers do not exclude each other");
        assert_eq!(owner(file.path()).expect("locks"), None, "a reader is none");
        drop((claim, second));
        let writer = File::open(file.path()).expect("opens");
        writer.try_lock().expect("free");
        let found = owner(file.path()).expect("locks").expect("one");
        assert_eq!(found.pid, Some(std::process::id()));
        let refused = claim_to_read(file.path()).expect_err("in use").to_string();
        assert!(refused.contains("in use by process"), "{refused}");
    }
}
