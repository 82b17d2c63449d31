//! The handle of an open log: what callers hold. The work is done by the log's own thread ([`crate::writer`]).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    Device, LogId, Lsn, Seq, StreamId,
    cache::Cache,
    core::{CoreConfig, Usage},
    error::{AppendError, OpenError, Stopped, TrimError},
    geometry::Ring,
    index::{Index, StreamUsage},
    recovery::{Recovery, ScanOptions},
    writer,
};

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub scan: ScanOptions,
    pub core: CoreConfig,
    /// Appends wait while so many bytes of records are on their way, 1 MiB to 4 GiB.
    pub queue_bytes_max: usize,
    /// Blocks kept in memory for readers, in bytes.
    pub cache_bytes: usize,
    /// The acknowledged end is written into the header when nothing was appended for so long. Until then the loss of the last block can't be
    /// told from a write that was cut off.
    pub idle_mark_after: Duration,
    /// The wall clock in ms since 1970: for labels.
    pub wall_clock: fn() -> u64,
}

impl OpenOptions {
    pub fn new(wall_clock: fn() -> u64) -> OpenOptions {
        OpenOptions {
            scan: ScanOptions::default(),
            core: CoreConfig::default(),
            queue_bytes_max: 64 << 20,
            cache_bytes: 32 << 20,
            idle_mark_after: Duration::from_millis(5),
            wall_clock,
        }
    }
}

/// Where a record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The block it lies in for now: relocation may move it.
    pub lsn: Lsn,
    /// Its number in its stream, for good.
    pub seq: Seq,
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub seq: Seq,
    pub lsn: Lsn,
    pub payload: Bytes,
}

/// What the thread is asked to do.
pub(crate) enum Command {
    Append {
        stream: StreamId,
        payload: Bytes,
        waiter: AppendWaiter,
    },
    SyncTrim {
        stream: StreamId,
        below: Seq,
        answer: oneshot::Sender<Result<(), TrimError>>,
    },
    /// Something was trimmed and records wait for room.
    Trimmed,
    /// Without an answer: the last handle is gone.
    Close {
        answer: Option<oneshot::Sender<Result<(), Stopped>>>,
    },
}

pub(crate) struct AppendWaiter {
    pub(crate) answer: oneshot::Sender<Result<Appended, AppendError>>,
    /// The room in the queue that the record takes.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// What handle and thread share.
pub(crate) struct Shared {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) ring: Ring,
    pub(crate) id: LogId,
    pub(crate) record_bytes_max: u64,
    pub(crate) index: Arc<RwLock<Index>>,
    pub(crate) cache: Mutex<Cache>,
    pub(crate) usage: Mutex<Usage>,
    pub(crate) stopped: Mutex<Option<Stopped>>,
    pub(crate) inbox: Mutex<Vec<Command>>,
    /// How many commands are in the inbox, to be looked at without its lock. A hint.
    pub(crate) mail: AtomicUsize,
    /// The thread waits, or is about to.
    pub(crate) sleeping: AtomicBool,
    /// Something was trimmed since the thread last looked.
    pub(crate) trimmed: AtomicBool,
    /// Records wait for room in the log.
    pub(crate) starved: AtomicBool,
    pub(crate) waker: Waker,
    /// Who waits for a stream to grow.
    pub(crate) growth: Mutex<HashMap<StreamId, Arc<Notify>>>,
    /// Whose turn it is to queue a record, first come, first served.
    turn: tokio::sync::Mutex<()>,
    queue: Arc<Semaphore>,
    queue_bytes_max: u32,
}

/// An open log. Clones are the same log. When the last one is dropped, the log closes by itself; [`Wal::close`] says when that is done.
#[derive(Clone)]
pub struct Wal {
    handle: Arc<Handle>,
}

pub(crate) struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn new(shared: &Arc<Shared>) -> Handle {
        Handle {
            shared: Arc::clone(shared),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.send(Command::Close { answer: None });
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal")
            .field("id", &self.handle.shared.id)
            .finish_non_exhaustive()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        device: Arc<dyn Device>,
        core: &crate::core::Core,
        options: &OpenOptions,
        waker: Waker,
    ) -> Shared {
        let max = u32::MAX as usize;
        let queue_bytes = options.queue_bytes_max.clamp(1 << 20, max);
        let header = core.header();
        Shared {
            device,
            ring: core.ring(),
            id: header.id,
            record_bytes_max: header.record_bytes_max,
            index: core.index(),
            cache: Mutex::new(Cache::new(options.cache_bytes)),
            usage: Mutex::new(core.usage()),
            stopped: Mutex::new(None),
            inbox: Mutex::new(Vec::new()),
            mail: AtomicUsize::new(0),
            sleeping: AtomicBool::new(false),
            trimmed: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            waker,
            growth: Mutex::new(HashMap::new()),
            turn: tokio::sync::Mutex::new(()),
            queue: Arc::new(Semaphore::new(queue_bytes)),
            queue_bytes_max: u32::try_from(queue_bytes).unwrap_or(u32::MAX),
        }
    }

    /// Hands a command to the thread. Once that has stopped, the command is dropped, and so are those who wait for its answer told.
    pub(crate) fn send(&self, command: Command) {
        {
            let mut inbox = lock(&self.inbox);
            if lock(&self.stopped).is_some() {
                return;
            }
            inbox.push(command);
            self.mail.store(inbox.len(), Ordering::Release);
        }
        if self.sleeping.swap(false, Ordering::SeqCst) {
            self.waker.wake_by_ref();
        }
    }

    pub(crate) fn stopped(&self) -> Option<Stopped> {
        *lock(&self.stopped)
    }

    /// Why an answer never came.
    fn gone(&self) -> Stopped {
        self.stopped().unwrap_or(Stopped::Closed)
    }
}

impl Wal {
    /// Opens the log on a device: reads it, begins a new epoch, starts its thread. The device must be this process's alone, which its guard sees to.
    pub async fn open(
        device: Arc<dyn Device>,
        options: OpenOptions,
    ) -> Result<(Wal, Recovery), OpenError> {
        let (answer, opened) = oneshot::channel();
        writer::start(device, options, answer).map_err(OpenError::Io)?;
        let gone = || std::io::Error::other("the log's thread has died");
        let (handle, recovery) = opened.await.map_err(|_dropped| OpenError::Io(gone()))??;
        let handle = Arc::new(handle);
        Ok((Wal { handle }, recovery))
    }

    /// Appends a record; resolves when it is durable. Waits while the queue is full. Records of one stream are numbered in the order in which these
    /// futures are first polled.
    ///
    /// Dropping the future does not take the record back once it is queued.
    pub async fn append(
        &self,
        stream: impl Into<StreamId>,
        payload: Bytes,
    ) -> Result<Appended, AppendError> {
        let (stream, shared) = (stream.into(), self.shared());
        let (bytes, max) = (payload.len() as u64, shared.record_bytes_max);
        if bytes > max {
            return Err(AppendError::TooLarge { bytes, max });
        }
        let permits = u32::try_from(bytes)
            .unwrap_or(u32::MAX)
            .clamp(1, shared.queue_bytes_max);
        // Held until the record is in the inbox: a semaphore alone lets a newcomer with what is left of the permits pass one who was given his
        // and has not run yet, and two records of one stream would change places.
        let turn = shared.turn.lock().await;
        let permit = Arc::clone(&shared.queue)
            .acquire_many_owned(permits)
            .await
            .map_err(|_closed| AppendError::Stopped(shared.gone()))?;
        let (answer, appended) = oneshot::channel();
        let waiter = AppendWaiter { answer, permit };
        shared.send(Command::Append {
            stream,
            payload,
            waiter,
        });
        drop(turn);
        appended
            .await
            .unwrap_or_else(|_dropped| Err(AppendError::Stopped(shared.gone())))
    }

    /// Lets the records of a stream below `below` go. Holds at once. After a crash some may come back, never the other way round. Returns
    /// the trim that holds now, which may be further on.
    pub fn trim(&self, stream: impl Into<StreamId>, below: Seq) -> Result<Seq, TrimError> {
        let shared = self.shared();
        let trimmed = shared
            .index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .try_trim(stream.into(), below)?;
        shared.trimmed.store(true, Ordering::SeqCst);
        if shared.starved.load(Ordering::SeqCst) {
            shared.send(Command::Trimmed);
        }
        Ok(trimmed)
    }

    /// [`Wal::trim`] that resolves when it holds after a crash too.
    pub async fn sync_trim(
        &self,
        stream: impl Into<StreamId>,
        below: Seq,
    ) -> Result<(), TrimError> {
        let shared = self.shared();
        let (answer, trimmed) = oneshot::channel();
        shared.send(Command::SyncTrim {
            stream: stream.into(),
            below,
            answer,
        });
        trimmed
            .await
            .unwrap_or_else(|_dropped| Err(TrimError::Stopped(shared.gone())))
    }

    /// All streams, in the order of their names.
    pub fn streams(&self) -> Vec<(StreamId, StreamUsage)> {
        let index = self.shared().index.read();
        let mut streams: Vec<_> = index
            .unwrap_or_else(PoisonError::into_inner)
            .streams()
            .collect();
        streams.sort_unstable_by_key(|(id, _)| *id);
        streams
    }

    /// How full the log is and because of whom, as of its last block.
    pub fn usage(&self) -> Usage {
        lock(&self.shared().usage).clone()
    }

    /// Why the log takes nothing any more, if so.
    pub fn stopped(&self) -> Option<Stopped> {
        self.shared().stopped()
    }

    pub fn id(&self) -> LogId {
        self.shared().id
    }

    /// Writes what is queued and marks the log as closed. An error says that it had stopped before; then the next opening finds out what is there.
    /// When this returns the log's thread has let go of the device; other clones of the handle still hold it.
    pub async fn close(self) -> Result<(), Stopped> {
        let shared = self.shared();
        let (answer, closed) = oneshot::channel();
        shared.send(Command::Close {
            answer: Some(answer),
        });
        closed.await.unwrap_or_else(|_dropped| Err(shared.gone()))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

#[cfg(test)]
mod tests;
