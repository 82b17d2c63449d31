//! Reading records back in the order of their stream, once or following its growth.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    Lsn, Seq, StreamId,
    error::{ReadError, Stopped},
    index::Run,
    log::{Record, Shared, Wal, lock},
    reader::{ReadBlock, read_block},
};

/// How much a cursor reads ahead, in bytes.
const CURSOR_BYTES: usize = 256 << 10;

/// What the index says of a number.
enum Place {
    Here(Run),
    Trimmed(Seq),
    /// Nothing durable has this number yet.
    End,
}

impl Wal {
    /// The durable records of a stream from `from` on, in order, without a gap, until `max_bytes` are reached; at least one if there
    /// is one. Empty at the end of the stream, also if it is not known.
    pub async fn read(
        &self,
        stream: impl Into<StreamId>,
        from: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Record>, ReadError> {
        let stream = stream.into();
        let mut records: Vec<Record> = Vec::new();
        let (mut at, mut bytes) = (from, 0);
        while records.is_empty() || bytes < max_bytes {
            let run = match self.shared().place(stream, at) {
                Place::Here(run) => run,
                Place::End => break,
                // Trimmed while we read: what we have is in order, the next read says so.
                Place::Trimmed(_) if !records.is_empty() => break,
                Place::Trimmed(below) => return Err(ReadError::Trimmed(below)),
            };
            let block = match self.block_of(stream, at, run.lsn).await {
                Ok(Some(block)) => block,
                // It moved; the index knows where to.
                Ok(None) => continue,
                Err(_) if !records.is_empty() => break,
                Err(error) => return Err(error),
            };
            let taken = take(&block, stream, at, run, max_bytes.saturating_sub(bytes));
            if taken.is_empty() {
                if records.is_empty() {
                    let lsn = run.lsn;
                    return Err(ReadError::Damaged {
                        stream,
                        seq: at,
                        lsn,
                    });
                }
                break;
            }
            bytes += taken
                .iter()
                .map(|record| record.payload.len())
                .sum::<usize>();
            at = at.plus(taken.len() as u64);
            records.extend(taken);
        }
        Ok(records)
    }

    /// Follows a stream from `from` on.
    pub fn cursor(&self, stream: impl Into<StreamId>, from: Seq) -> Cursor {
        Cursor {
            wal: self.clone(),
            stream: stream.into(),
            next: from,
            ahead: VecDeque::new(),
        }
    }

    /// The block that holds a record. `None`: the record has moved meanwhile.
    async fn block_of(
        &self,
        stream: StreamId,
        seq: Seq,
        lsn: Lsn,
    ) -> Result<Option<Arc<ReadBlock>>, ReadError> {
        let shared = self.shared();
        if let Some(block) = lock(&shared.cache).get(shared.ring, shared.id, lsn) {
            return Ok(Some(block));
        }
        // What is bad the first time is read once more: a misdirected read is no damage.
        for _ in 0..2 {
            if let Some(Stopped::Closed | Stopped::Fenced) = shared.stopped() {
                return Err(ReadError::Stopped(
                    shared.stopped().unwrap_or(Stopped::Closed),
                ));
            }
            let reader = Arc::clone(shared);
            let read = tokio::task::spawn_blocking(move || {
                read_block(reader.device.as_ref(), reader.ring, reader.id, lsn)
            });
            let read = read
                .await
                .map_err(|error| ReadError::Io(std::io::Error::other(error)))?;
            let block = match read {
                Ok(block) => block,
                // A medium error may be one of this place only: as damaged as a bad checksum.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => None,
                Err(error) => return Err(ReadError::Io(error)),
            };
            let moved = !matches!(shared.place(stream, seq), Place::Here(run) if run.lsn == lsn);
            if moved {
                return Ok(None);
            }
            if let Some(block) = block.filter(|block| is_intact(block, stream, seq)) {
                let block = Arc::new(block);
                lock(&shared.cache).put_read(Arc::clone(&block));
                return Ok(Some(block));
            }
        }
        tracing::error!(%stream, %seq, %lsn, "a record is damaged");
        Err(ReadError::Damaged { stream, seq, lsn })
    }
}

fn is_intact(block: &ReadBlock, stream: StreamId, seq: Seq) -> bool {
    block
        .find(stream, seq)
        .is_some_and(|record| record.payload.is_some())
}

/// The records from `at` on that `run` says lie in `block`, up to the first damaged one.
fn take(block: &ReadBlock, stream: StreamId, at: Seq, run: Run, max_bytes: usize) -> Vec<Record> {
    let mut found: Vec<_> = block
        .records
        .iter()
        .filter(|record| record.stream == stream && at <= record.seq && record.seq < run.end())
        .collect();
    found.sort_by_key(|record| record.seq);
    let mut records: Vec<Record> = Vec::with_capacity(found.len());
    let mut bytes = 0;
    for record in found {
        let due = at.plus(records.len() as u64);
        let Some(payload) = record.payload.clone().filter(|_| record.seq == due) else {
            break;
        };
        bytes += payload.len();
        records.push(Record {
            seq: record.seq,
            lsn: block.lsn,
            payload,
        });
        if bytes >= max_bytes {
            break;
        }
    }
    records
}

impl Shared {
    fn place(&self, stream: StreamId, seq: Seq) -> Place {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        match (index.locate(stream, seq), index.usage_of(stream)) {
            (Some(run), _) => Place::Here(run),
            (None, Some(usage)) if seq < usage.trimmed => Place::Trimmed(usage.trimmed),
            (None, _) => Place::End,
        }
    }

    /// The bell of a stream.
    fn bell(&self, stream: StreamId) -> Arc<Notify> {
        Arc::clone(lock(&self.growth).entry(stream).or_default())
    }

    /// Rings for the streams that have grown. Bells that nobody holds any more go.
    pub(crate) fn ring_bells(&self, grown: &[StreamId]) {
        if grown.is_empty() {
            return;
        }
        let mut growth = lock(&self.growth);
        for stream in grown {
            if let Some(bell) = growth.get(stream) {
                if Arc::strong_count(bell) == 1 {
                    growth.remove(stream);
                } else {
                    bell.notify_waiters();
                }
            }
        }
    }

    pub(crate) fn ring_all_bells(&self) {
        lock(&self.growth)
            .values()
            .for_each(|bell| bell.notify_waiters());
    }
}

/// A place in a stream that moves on with each record.
#[derive(Debug)]
pub struct Cursor {
    wal: Wal,
    stream: StreamId,
    next: Seq,
    ahead: VecDeque<Record>,
}

impl Cursor {
    /// The number of the record that [`Cursor::next`] will give.
    pub fn position(&self) -> Seq {
        self.next
    }

    /// Goes on with another record. The way past a damaged one.
    pub fn seek(&mut self, seq: Seq) {
        self.ahead.clear();
        self.next = seq;
    }

    /// The next record; waits for it at the end of the stream. Dropping the future loses nothing. After [`ReadError::Trimmed`] the cursor stands
    /// at the first record that is left.
    pub async fn next(&mut self) -> Result<Record, ReadError> {
        loop {
            if let Some(record) = self.ahead.pop_front() {
                self.next = record.seq.plus(1);
                return Ok(record);
            }
            let bell = self.wal.shared().bell(self.stream);
            let rung = bell.notified();
            tokio::pin!(rung);
            // Listens before it looks, or what comes in between would be missed.
            rung.as_mut().enable();
            match self.wal.read(self.stream, self.next, CURSOR_BYTES).await {
                Ok(records) if records.is_empty() => {
                    if let Some(stopped) = self.wal.stopped() {
                        return Err(ReadError::Stopped(stopped));
                    }
                    rung.await;
                }
                Ok(records) => self.ahead = records.into(),
                Err(ReadError::Trimmed(below)) => {
                    self.next = below;
                    return Err(ReadError::Trimmed(below));
                }
                Err(error) => return Err(error),
            }
        }
    }
}
