//! The blocking half of `file://`: every function here may wait for the disk.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::body::{other_bytes, too_short, unreadable, wrong_length};
use crate::listing::{Pager, Step};
use crate::{Body, Digest, Key, ListPage, Put, StoreError};

/// Where files are written before they get their name. `~` is in no [`Key`], so this folder can't be one's and is never
/// listed.
pub(crate) const STAGING: &str = ".staging~";

/// Nobody writes one object for so long.
const STAGED_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

const COPY_BUFFER_BYTES: usize = 256 * 1024;

/// Directories known to be durable are remembered up to this number, some 100 bytes each.
const KNOWN_DIRECTORIES_MAX: usize = 65_536;

/// A directory tree of objects.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    /// The staging folder has been seen, so it is what the archive's directory is known by: where a file system is no longer
    /// mounted, its mount point is still there, and empty.
    marked: AtomicBool,
    /// Directories whose own entry in their parent this process has synced. Never removed by anybody: `delete`
    /// leaves empty directories, which listings do not show.
    durable: Mutex<HashSet<PathBuf>>,
}

impl Disk {
    pub(crate) fn open(root: PathBuf, create: bool) -> io::Result<Disk> {
        let staging = root.join(STAGING);
        if create {
            create_durably(&staging)?;
        } else if !fs::metadata(&root)?.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        let disk = Disk {
            root,
            marked: AtomicBool::new(staging.is_dir()),
            durable: Mutex::default(),
        };
        if create {
            disk.sweep(&staging);
        }
        Ok(disk)
    }

    /// Removes what crashes left. Failing at it harms nothing.
    fn sweep(&self, staging: &Path) {
        let Ok(entries) = fs::read_dir(staging) else {
            return;
        };
        for entry in entries.flatten() {
            let written = entry.metadata().and_then(|meta| meta.modified());
            let age = written.ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > STAGED_AGE_MAX)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::debug!(%error, path = %entry.path().display(), "cannot remove a staged file of an earlier crash");
            }
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    pub(crate) fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let failed = |error| self.failed(&format!("get of {key}"), error);
        let absent = || self.absent(key);
        let mut file = match File::open(self.path(key)) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Err(absent()),
            Err(error) => return Err(failed(error)),
        };
        let meta = file.metadata().map_err(failed)?;
        if meta.is_dir() {
            return Err(absent());
        }
        let range = range.unwrap_or(0..meta.len());
        if range.end > meta.len() || range.start > range.end {
            return Err(too_short(key, &range, Some(meta.len())));
        }
        let len = usize::try_from(range.end - range.start)
            .map_err(|error| failed(io::Error::other(error)))?;
        // `with_capacity` and `read_to_end`: not a byte is written twice.
        let mut bytes = Vec::with_capacity(len);
        file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
        file.take(range.end - range.start)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() == len {
            Ok(Bytes::from(bytes))
        } else {
            Err(too_short(key, &range, Some(meta.len())))
        }
    }

    pub(crate) fn put(&self, key: &Key, body: &Body, digest: &Digest) -> Result<Put, StoreError> {
        let failed = |error| self.failed(&format!("put of {key}"), error);
        let path = self.path(key);
        // Only saves the work: the link below decides.
        if path.symlink_metadata().is_ok() {
            return Ok(Put::Refused);
        }
        self.root_is_there().map_err(failed)?;
        let staged = Staged::create(&self.root.join(STAGING)).map_err(failed)?;
        let written = write_body(staged.file(), key, body).map_err(|error| match error {
            WriteFailure::Source(error) => error,
            WriteFailure::Disk(error) => failed(error),
        })?;
        if written != *digest {
            return Err(other_bytes(key));
        }
        // Before the link: a crash after it must not leave the name with bytes that never reached the disk.
        staged.file().sync_all().map_err(failed)?;
        let parent = path.parent().unwrap_or(&self.root);
        self.create_parents(parent).map_err(failed)?;
        match fs::hard_link(staged.path(), &path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(Put::Refused),
            Err(error) => {
                // Somebody may have removed a directory that is remembered here: the next try looks again.
                self.durable
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clear();
                return Err(failed(error));
            }
        }
        sync_directory(parent).map_err(failed)?;
        Ok(Put::Created)
    }

    pub(crate) fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let failed = |error| self.failed(&format!("deletion of {key}"), error);
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => sync_directory(path.parent().unwrap_or(&self.root)).map_err(failed),
            Err(error) if is_absent(&error) => self.root_is_there().map_err(failed),
            Err(error) => Err(failed(error)),
        }
    }

    pub(crate) fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        let failed = |error| self.failed(&format!("listing of {prefix:?}"), error);
        // An empty answer says "nothing is there", which only a root that exists can say.
        self.root_is_there().map_err(failed)?;
        let mut pager = Pager::new(prefix, recursive, token, limit);
        let mut walk = Walk {
            start: pager.start(),
            pager: &mut pager,
        };
        walk.directory(&self.root.join(prefix), &crate::listing::with_slash(prefix))
            .map_err(failed)?;
        // It may have gone away meanwhile, and what was not found then says nothing.
        self.root_is_there().map_err(failed)?;
        Ok(pager.finish())
    }

    /// Creates `directory` below the root and makes it durable, each missing part in turn.
    fn create_parents(&self, directory: &Path) -> io::Result<()> {
        let known = |path: &Path| {
            self.durable
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(path)
        };
        if directory == self.root || known(directory) {
            return Ok(());
        }
        if let Some(parent) = directory.parent() {
            self.create_parents(parent)?;
            match fs::create_dir(directory) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            // Also if it was there: who made it may have crashed before the sync.
            sync_directory(parent)?;
        }
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if durable.len() >= KNOWN_DIRECTORIES_MAX {
            durable.clear();
        }
        durable.insert(directory.to_owned());
        Ok(())
    }

    /// Fails if the archive's directory is gone, or what stands in its place is another one: nothing may be taken for absent
    /// then, and nothing may be written. What is put into the mount point of a file system that is not mounted would be an
    /// archive without a beginning.
    fn root_is_there(&self) -> io::Result<()> {
        let gone = |how| {
            let root = self.root.clone();
            io::Error::new(ErrorKind::NotFound, Gone { root, how })
        };
        let is_dir = |path: &Path| match fs::metadata(path) {
            Ok(meta) => Ok(meta.is_dir()),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(error),
        };
        if is_dir(&self.root.join(STAGING))? {
            // A reader may have been opened before the archive was made.
            self.marked.store(true, Ordering::Relaxed);
            Ok(())
        } else if !is_dir(&self.root)? {
            Err(gone(How::Root))
        } else if self.marked.load(Ordering::Relaxed) {
            Err(gone(How::Mark))
        } else {
            Ok(())
        }
    }

    fn absent(&self, key: &Key) -> StoreError {
        match self.root_is_there() {
            Ok(()) => StoreError::NotFound { key: key.clone() },
            Err(error) => self.failed(&format!("get of {key}"), error),
        }
    }

    fn failed(&self, what: &str, error: io::Error) -> StoreError {
        let root = self.root.display();
        let remedy = match error.kind() {
            ErrorKind::PermissionDenied => format!("let this user read and write below {root}"),
            ErrorKind::ReadOnlyFilesystem => format!("mount the file system of {root} for writing"),
            ErrorKind::CrossesDevices => {
                format!("mount nothing below {root}: it has to be one file system")
            }
            ErrorKind::Unsupported => format!("use a file system with hard links for {root}"),
            // Full disks, missing mounts and I/O errors can pass. That the directory is gone explains all others.
            _ => {
                let error = self.root_is_there().err().unwrap_or(error);
                let source = match error.get_ref().is_some_and(|inner| inner.is::<Gone>()) {
                    true => error.into(),
                    false => format!("{root}: {error}").into(),
                };
                return StoreError::Unavailable {
                    what: what.to_owned(),
                    source,
                };
            }
        };
        StoreError::Refused {
            what: what.to_owned(),
            remedy,
            source: error.into(),
        }
    }
}

/// What was opened as the archive's directory is not there any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "the archive's directory {} {how}: nothing is read or written before it is back",
    .root.display()
)]
struct Gone {
    root: PathBuf,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// There is no such directory.
    Root,
    /// There is one without the staging folder.
    Mark,
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            How::Root => f.write_str("is gone (removed, moved away, or no longer mounted)"),
            How::Mark => write!(
                f,
                "is not the one that it was: there is no {STAGING} in it, as if it were emptied, replaced, or no longer mounted \
                 (if it is the archive all the same, make that folder)"
            ),
        }
    }
}

/// No file has this name: the name itself or a folder in it is missing, or a part of it is a file.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory
    )
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Like `create_dir_all`, and syncs the parent of each directory made.
fn create_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_durably(parent)?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => sync_directory(parent)?,
        }
    }
    Ok(())
}

/// A file without a name yet. Dropping it removes it, also after it got a name: that is another link.
struct Staged {
    path: PathBuf,
    file: File,
}

impl Staged {
    /// `staging` has to be there: to make it anew might be to make an archive in a mount point.
    fn create(staging: &Path) -> io::Result<Staged> {
        let path = staging.join(format!("{:032x}", rand::random::<u128>()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok(Staged { path, file })
    }

    fn file(&self) -> &File {
        &self.file
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove a staged file, it is swept a day later");
        }
    }
}

enum WriteFailure {
    /// The body can't be read or is not what it should be.
    Source(StoreError),
    Disk(io::Error),
}

/// Writes all of the body and gives the digest of what was written.
fn write_body(mut out: &File, key: &Key, body: &Body) -> Result<Digest, WriteFailure> {
    let mut hasher = Sha256::new();
    match body {
        Body::Bytes(bytes) => {
            hasher.update(bytes);
            out.write_all(bytes).map_err(WriteFailure::Disk)?;
        }
        Body::File { path, len } => {
            let source = |error| WriteFailure::Source(unreadable(key, error));
            let mut file = File::open(path).map_err(source)?;
            let mut buffer = vec![0; COPY_BUFFER_BYTES];
            let mut copied = 0_u64;
            loop {
                let read = match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(source(error)),
                };
                let chunk = buffer.get(..read).unwrap_or_default();
                hasher.update(chunk);
                out.write_all(chunk).map_err(WriteFailure::Disk)?;
                copied += chunk.len() as u64;
            }
            if copied != *len {
                return Err(WriteFailure::Source(wrong_length(key, *len)));
            }
        }
    }
    Ok(hasher.finalize().into())
}

/// A walk in the order of keys, which is not that of the names in a directory: `a/1` comes after `a.1`.
struct Walk<'a> {
    pager: &'a mut Pager,
    start: String,
}

impl Walk<'_> {
    /// `name` is the directory's path below the root, with a slash at its end unless it is the root. False ends the walk.
    fn directory(&mut self, path: &Path, name: &str) -> io::Result<bool> {
        let mut entries = Vec::new();
        let read = match fs::read_dir(path) {
            Ok(read) => read,
            Err(error) if is_absent(&error) => return Ok(true),
            Err(error) => return Err(error),
        };
        for entry in read {
            let entry = entry?;
            // Names that are no key's (the staging folder above all) are not ours.
            let Ok(part) = entry.file_name().into_string() else {
                continue;
            };
            if Key::new(part.as_str()).is_err() {
                continue;
            }
            let is_directory = entry.file_type()?.is_dir();
            let whole = if is_directory {
                format!("{name}{part}/")
            } else {
                format!("{name}{part}")
            };
            // Left out early: all that lies before the page.
            if whole < self.start && !self.start.starts_with(&whole) {
                continue;
            }
            entries.push((whole, entry.path(), is_directory));
        }
        entries.sort_unstable();
        for (whole, path, is_directory) in entries {
            let goes_on = if is_directory {
                self.directory(&path, &whole)?
            } else {
                self.file(&path, &whole)?
            };
            if !goes_on {
                return Ok(false);
            }
            // A folder that is listed by its name alone has moved the start behind it.
            if self.start.as_str() > whole.as_str() && !self.start.starts_with(name) {
                return Ok(true);
            }
        }
        Ok(true)
    }

    fn file(&mut self, path: &Path, whole: &str) -> io::Result<bool> {
        if whole < self.start.as_str() {
            return Ok(true);
        }
        let size = match fs::metadata(path) {
            Ok(meta) if meta.is_file() => meta.len(),
            Ok(_) => return Ok(true),
            // Deleted since the directory was read.
            Err(error) if is_absent(&error) => return Ok(true),
            Err(error) => return Err(error),
        };
        match self.pager.offer(whole, size) {
            Step::Next => Ok(true),
            Step::JumpTo(next) => {
                self.start = next;
                Ok(true)
            }
            Step::Done => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests;
