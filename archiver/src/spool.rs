//! Where records wait for an encoder: in memory, and on local disk when memory runs short.
//!
//! Nothing here survives the process, and nothing has to: Kafka still has the records. Spilled chunks go to unnamed
//! files, finished segments wait for their upload in named ones, which the next start removes.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use everlog_format::RecordRef;
use tempfile::NamedTempFile;

use crate::ArchiverError;
use crate::chunk::{DamagedChunk, PartTooLong, pack, packed_len, unpack};
use crate::memory::{CHUNK_BYTES, Memory, Share};

/// One of zstd's fast levels: what is spilled is read back within seconds to minutes, so time counts for more than size.
const SPILL_LEVEL: i32 = -5;
const SEGMENT_PREFIX: &str = "everlog-segment-";

/// The spool directory.
#[derive(Debug)]
pub(crate) struct SpoolDir {
    path: PathBuf,
}

/// Keeps other archivers out of a spool directory. Apart from [`SpoolDir`], which tasks that were told to end hold a moment longer than
/// the archiver, so that the next one can begin at once.
#[derive(Debug)]
pub(crate) struct SpoolLock {
    // Locked as long as it is open.
    _file: File,
}

impl SpoolDir {
    /// Makes the directory, locks it against other archivers and removes what the last one left.
    pub(crate) fn open(path: &Path) -> Result<(SpoolDir, SpoolLock), ArchiverError> {
        let failed = |source| ArchiverError::Spool {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(path).map_err(failed)?;
        let lock = File::create(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ArchiverError::SpoolInUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(SEGMENT_PREFIX)
            {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        let path = path.to_owned();
        Ok((SpoolDir { path }, SpoolLock { _file: lock }))
    }

    /// A file for a segment; removed when it is dropped.
    pub(crate) fn segment_file(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new()
            .prefix(SEGMENT_PREFIX)
            .suffix(".parquet")
            .tempfile_in(&self.path)
    }

    fn spill_file(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.path)
    }
}

#[derive(Debug)]
enum Chunk {
    Memory {
        data: Vec<u8>,
        share: Share,
    },
    Disk {
        at: u64,
        len: usize,
        packed_len: usize,
    },
}

/// What of one partition was read and not yet handed to an encoder.
#[derive(Debug)]
pub(crate) struct Backlog {
    memory: Arc<Memory>,
    open: Vec<u8>,
    open_share: Share,
    closed: Vec<Chunk>,
    closed_memory_bytes: u64,
    file: Option<File>,
    file_len: u64,
    packed_bytes: u64,
    records: u64,
}

impl Backlog {
    pub(crate) fn new(memory: &Arc<Memory>) -> Backlog {
        Backlog {
            memory: Arc::clone(memory),
            open: Vec::new(),
            open_share: Share::none(&memory.chunks),
            closed: Vec::new(),
            closed_memory_bytes: 0,
            file: None,
            file_len: 0,
            packed_bytes: 0,
            records: 0,
        }
    }

    /// Bytes of all records in it as packed.
    pub(crate) fn packed_bytes(&self) -> u64 {
        self.packed_bytes
    }

    /// What [`Backlog::spill`] would free.
    pub(crate) fn spillable_bytes(&self) -> u64 {
        self.closed_memory_bytes + self.open_share.bytes()
    }

    /// Takes in a record; returns the bytes it takes.
    pub(crate) fn push(&mut self, record: &RecordRef<'_>) -> Result<u64, PartTooLong> {
        let len = packed_len(record);
        if !self.open.is_empty() && CHUNK_BYTES < self.open.len().saturating_add(len) {
            self.close_chunk();
        }
        let capacity = self.open.capacity();
        pack(record, &mut self.open)?;
        if self.open.capacity() != capacity {
            self.open_share.set(as_u64(self.open.capacity()));
        }
        self.packed_bytes += as_u64(len);
        self.records += 1;
        Ok(as_u64(len))
    }

    fn close_chunk(&mut self) {
        if self.open.is_empty() {
            return;
        }
        // A partition that fills a chunk will fill the next: growing it step by step would copy it twice.
        let data = std::mem::replace(&mut self.open, self.memory.chunk());
        let share = std::mem::replace(&mut self.open_share, Share::none(&self.memory.chunks));
        self.open_share.set(as_u64(CHUNK_BYTES));
        self.closed_memory_bytes += as_u64(data.capacity());
        self.closed.push(Chunk::Memory { data, share });
    }

    /// Moves its chunks to disk, the open one too: with hundreds of partitions these alone fill the memory. On an error the
    /// chunks not yet moved stay in memory.
    pub(crate) fn spill(&mut self, dir: &SpoolDir) -> io::Result<()> {
        let data = std::mem::take(&mut self.open);
        let share = std::mem::replace(&mut self.open_share, Share::none(&self.memory.chunks));
        if !data.is_empty() {
            self.closed_memory_bytes += as_u64(data.capacity());
            self.closed.push(Chunk::Memory { data, share });
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(dir.spill_file()?),
        };
        let mut compressor = zstd::bulk::Compressor::new(SPILL_LEVEL)?;
        compressor.include_checksum(true)?;
        for chunk in &mut self.closed {
            let Chunk::Memory { data, .. } = chunk else {
                continue;
            };
            let packed_len = data.len();
            let freed = as_u64(data.capacity());
            let bytes = compressor.compress(data)?;
            file.write_all_at(&bytes, self.file_len)?;
            let moved = Chunk::Disk {
                at: self.file_len,
                len: bytes.len(),
                packed_len,
            };
            if let Chunk::Memory { data, .. } = std::mem::replace(chunk, moved) {
                self.memory.give_back(data);
            }
            self.file_len += as_u64(bytes.len());
            self.closed_memory_bytes = self.closed_memory_bytes.saturating_sub(freed);
        }
        Ok(())
    }

    /// Everything in it, for an encoder; it is empty afterwards.
    pub(crate) fn take(&mut self) -> Burst {
        let next = Backlog::new(&self.memory);
        let taken = std::mem::replace(self, next);
        let mut on_the_way = Share::none(&self.memory.bursts);
        on_the_way.set(taken.closed_memory_bytes + taken.open_share.bytes());
        let mut chunks = taken.closed;
        if !taken.open.is_empty() {
            chunks.push(Chunk::Memory {
                data: taken.open,
                share: taken.open_share,
            });
        }
        Burst {
            memory: taken.memory,
            on_the_way,
            chunks,
            file: taken.file,
            packed_bytes: taken.packed_bytes,
            records: taken.records,
        }
    }
}

/// Records on their way to the encoder.
#[derive(Debug)]
pub(crate) struct Burst {
    memory: Arc<Memory>,
    on_the_way: Share,
    chunks: Vec<Chunk>,
    file: Option<File>,
    packed_bytes: u64,
    records: u64,
}

/// Why a burst can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BurstError<E> {
    #[error("a spooled chunk can't be read back")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Damaged(DamagedChunk),
    #[error(transparent)]
    Each(E),
}

impl<E> From<DamagedChunk> for BurstError<E> {
    fn from(error: DamagedChunk) -> BurstError<E> {
        BurstError::Damaged(error)
    }
}

impl Burst {
    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub(crate) fn packed_bytes(&self) -> u64 {
        self.packed_bytes
    }

    /// Hands every record to `each`, in order, and gives the memory of each chunk back once it is read.
    pub(crate) fn read<E>(
        mut self,
        mut each: impl FnMut(&RecordRef<'_>) -> Result<(), E>,
    ) -> Result<(), BurstError<E>> {
        let mut each = |record: &RecordRef<'_>| each(record).map_err(BurstError::Each);
        for chunk in self.chunks {
            match chunk {
                Chunk::Memory { data, share } => {
                    unpack(&data, &mut each)?;
                    let left = self.on_the_way.bytes().saturating_sub(share.bytes());
                    self.on_the_way.set(left);
                    self.memory.give_back(data);
                }
                Chunk::Disk {
                    at,
                    len,
                    packed_len,
                } => {
                    let file = self.file.as_ref().ok_or(DamagedChunk)?;
                    let mut stored = vec![0; len];
                    file.read_exact_at(&mut stored, at)?;
                    let data = zstd::bulk::decompress(&stored, packed_len)?;
                    if data.len() != packed_len {
                        return Err(DamagedChunk.into());
                    }
                    unpack(&data, &mut each)?;
                }
            }
        }
        Ok(())
    }
}

fn as_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use everlog_format::TimestampType;

    use super::*;
    use crate::config::MemoryPlan;

    fn record(offset: i64, value: &[u8]) -> RecordRef<'_> {
        RecordRef {
            offset,
            timestamp_ms: offset,
            timestamp_type: TimestampType::Create,
            leader_epoch: None,
            key: None,
            value: Some(value),
            headers: &[],
        }
    }

    #[test]
    fn spilled_and_kept_chunks_come_back_in_order_and_memory_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, _lock) = SpoolDir::open(folder.path()).unwrap();
        let memory = Memory::new(&MemoryPlan {
            chunks_bytes: 1 << 20,
            bursts_bytes: 1 << 20,
            writers_bytes: 0,
            spare_bytes: 1 << 20,
        });
        let (gauge, bursts) = (Arc::clone(&memory.chunks), Arc::clone(&memory.bursts));
        let mut backlog = Backlog::new(&memory);
        let large = vec![7; 3 << 20];
        for offset in 0..5_000 {
            let value = if offset == 1_000 {
                &large[..]
            } else {
                &large[..300]
            };
            backlog.push(&record(offset, value)).unwrap();
            if offset == 2_500 {
                assert!(gauge.is_over());
                backlog.spill(&dir).unwrap();
                assert!(!gauge.is_over());
                assert_eq!(backlog.spillable_bytes(), 0);
            }
        }
        assert_eq!(bursts.used(), 0);
        let burst = backlog.take();
        assert_eq!(backlog.packed_bytes(), 0);
        assert!(0 < bursts.used() && bursts.used() <= gauge.used());
        let mut next = 0;
        burst
            .read(|record| {
                assert_eq!(record.offset, next);
                assert_eq!(
                    record.value.map(<[u8]>::len),
                    Some(if next == 1_000 { 3 << 20 } else { 300 })
                );
                next += 1;
                Ok::<_, ()>(())
            })
            .unwrap();
        assert_eq!(next, 5_000);
        drop(backlog);
        assert_eq!((gauge.used(), bursts.used()), (0, 0));
    }

    #[test]
    fn a_directory_belongs_to_one_archiver_and_is_swept_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, lock) = SpoolDir::open(folder.path()).unwrap();
        let (_, left) = dir.segment_file().unwrap().keep().unwrap();
        std::fs::write(folder.path().join("not-ours"), "x").unwrap();
        assert!(matches!(
            SpoolDir::open(folder.path()),
            Err(ArchiverError::SpoolInUse { .. })
        ));
        // `dir` is still held: by a task that has not noticed yet that it was to end.
        drop(lock);
        SpoolDir::open(folder.path()).unwrap();
        assert!(!left.exists());
        assert!(folder.path().join("not-ours").exists());
    }
}
