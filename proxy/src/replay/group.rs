//! One row group on its way from stored bytes to record batches: what of it is there, who waits for what, and what
//! its job has to do next. Decides only; `job` carries it out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use everlog_format::{
    EncodedBatch, Hash, Offset, OffsetRange, RowGroupInfo, RowGroupReader, Segment,
};
use everlog_store::Key;
use tokio::sync::oneshot;

use super::ReplayError;
use super::budget::{Budget, Need, Permit};

/// A parsed footer and the name of its object.
#[derive(Debug)]
pub(super) struct Footer {
    pub(super) key: Key,
    pub(super) hash: Hash,
    pub(super) segment: Arc<Segment>,
    /// When it was last asked for, on the cache's clock.
    pub(super) used: AtomicU64,
    /// Released with the last holder.
    pub(super) _permit: Permit,
}

/// One row group of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct GroupId {
    segment: Hash,
    index: usize,
}

/// A row group and where to get it. `index` is below the footer's number of row groups.
#[derive(Clone, Debug)]
pub(super) struct GroupRef {
    pub(super) footer: Arc<Footer>,
    pub(super) index: usize,
}

impl GroupRef {
    pub(super) fn id(&self) -> GroupId {
        GroupId {
            segment: self.footer.hash,
            index: self.index,
        }
    }

    pub(super) fn info(&self) -> &RowGroupInfo {
        &self.footer.segment.row_groups()[self.index]
    }

    /// The next row group of the same segment.
    pub(super) fn next(&self) -> Option<GroupRef> {
        let index = self.index + 1;
        (index < self.footer.segment.row_groups().len()).then(|| GroupRef {
            footer: Arc::clone(&self.footer),
            index,
        })
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        format!("row group {} of {}", self.index, self.footer.key)
    }
}

/// The bytes of a row group as stored.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) bytes: Bytes,
    /// Covers the bytes, and the decoder while there may be one.
    pub(super) permit: Mutex<Permit>,
}

impl Stored {
    pub(super) fn permit(&self) -> MutexGuard<'_, Permit> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decodes a row group from `at` on.
#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) reader: RowGroupReader,
    /// What comes next is the first record at or above this.
    pub(super) at: Offset,
}

/// A run of whole batches in one buffer: about 1 MiB of records.
#[derive(Debug)]
pub(super) struct Encoded {
    /// The offsets that the run speaks for: no record between its start and the first batch is missing.
    pub(super) covers: OffsetRange,
    /// One behind the other in `data`, and never none.
    pub(super) batches: Vec<EncodedBatch>,
    pub(super) data: Vec<u8>,
    /// Whether a reader has got to its end: then it may go before those that nobody has had yet.
    pub(super) served: AtomicBool,
    /// When it was last taken, on the cache's clock.
    pub(super) used: AtomicU64,
    pub(super) permit: Permit,
}

impl Encoded {
    /// The first batch that holds `at` or lies behind it. There is one, as the run covers `at` and ends with a record.
    pub(super) fn batch_at(&self, at: Offset) -> usize {
        self.batches.partition_point(|batch| batch.last_offset < at)
    }

    /// Where `batches` lie in the buffer.
    pub(super) fn bytes_of(&self, batches: Range<usize>) -> Range<usize> {
        match self.batches.get(batches) {
            Some([first, .., last]) => first.bytes.start..last.bytes.end,
            Some([only]) => only.bytes.clone(),
            Some([]) | None => 0..0,
        }
    }
}

/// Lends a run's bytes to a response. They are counted, and never given up, until the response has dropped them.
pub(super) struct Lent {
    run: Option<Arc<Encoded>>,
    budget: Arc<Budget>,
}

impl Lent {
    pub(super) fn new(run: Arc<Encoded>, budget: &Arc<Budget>) -> Lent {
        Lent {
            run: Some(run),
            budget: Arc::clone(budget),
        }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.run.as_ref().map_or(&[], |run| &run.data)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // First let go, then tell: one who looks before finds it in use.
        self.run = None;
        self.budget.look_again();
    }
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, ReplayError>>;

/// Somebody wants the run that covers `at`.
#[derive(Debug)]
struct Want {
    at: Offset,
    /// Who waits. Empty for read-ahead. One who has gone away still counts: he will ask again.
    replies: Vec<Reply<Arc<Encoded>>>,
    /// How many runs to decode behind this one.
    ahead: usize,
}

/// What lies behind a row group, for read-ahead.
#[derive(Clone, Debug, Default)]
pub(super) enum Following {
    /// Not looked for yet.
    #[default]
    Unknown,
    /// Somebody is looking.
    Asked,
    Known(GroupRef),
    /// Nothing more to read ahead for now.
    Nothing,
}

/// The state of one row group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) at: GroupRef,
    pub(super) stored: Option<Arc<Stored>>,
    decoder: Option<Box<Decoder>>,
    /// By the start of what they cover. They may overlap after a seek.
    runs: BTreeMap<Offset, Arc<Encoded>>,
    wants: Vec<Want>,
    /// Who waits for the stored bytes alone.
    loads: Vec<Reply<Arc<Stored>>>,
    /// Whether a job works on it. Only the job changes `stored` and `decoder` then.
    pub(super) is_running: bool,
    /// Whether the decoder has come to the last record: then the stored bytes have done their part.
    is_exhausted: bool,
    pub(super) following: Following,
    /// When somebody last asked for something in it, on the cache's clock.
    pub(super) used: u64,
}

/// What a row group's job does next.
#[derive(Debug)]
pub(super) enum Step {
    /// Nobody wants anything: the job ends.
    Stop,
    /// Get the stored bytes.
    Load(Need),
    /// Decode the run that starts at `at`.
    Decode {
        stored: Arc<Stored>,
        decoder: Option<Box<Decoder>>,
        at: Offset,
        need: Need,
    },
}

impl Group {
    pub(super) fn new(at: GroupRef, used: u64) -> Group {
        Group {
            at,
            stored: None,
            decoder: None,
            runs: BTreeMap::new(),
            wants: Vec::new(),
            loads: Vec::new(),
            is_running: false,
            is_exhausted: false,
            following: Following::Unknown,
            used,
        }
    }

    /// The run that covers `at`, if it is there.
    pub(super) fn find(&self, at: Offset) -> Option<&Arc<Encoded>> {
        self.runs
            .range(..=at)
            .next_back()
            .map(|(_, run)| run)
            .filter(|run| run.covers.contains(at))
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = (&Offset, &Arc<Encoded>)> {
        self.runs.iter()
    }

    pub(super) fn remove_run(&mut self, start: Offset) {
        self.runs.remove(&start);
    }

    /// Notes that the run at `at` is wanted, and `ahead` runs behind it.
    pub(super) fn want(&mut self, at: Offset, reply: Option<Reply<Arc<Encoded>>>, ahead: usize) {
        match self.wants.iter_mut().find(|want| want.at == at) {
            Some(want) => {
                want.replies.extend(reply);
                want.ahead = want.ahead.max(ahead);
            }
            None => self.wants.push(Want {
                at,
                replies: reply.into_iter().collect(),
                ahead,
            }),
        }
    }

    pub(super) fn want_stored(&mut self, reply: Reply<Arc<Stored>>) {
        self.loads.push(reply);
    }

    /// The first position at or behind `at` that is not decoded, and how many of `ahead` runs are missing from there;
    /// `None` if enough is there or the row group ends before.
    pub(super) fn missing_ahead(
        &self,
        mut at: Offset,
        mut ahead: usize,
    ) -> Option<(Offset, usize)> {
        while ahead > 0 && at <= self.at.info().last_offset {
            match self.find(at) {
                Some(run) => {
                    at = run.covers.end();
                    ahead -= 1;
                }
                None => return Some((at, ahead)),
            }
        }
        None
    }

    /// Decides what the job does next. With [`Step::Stop`] the job is over.
    pub(super) fn step(&mut self) -> Step {
        self.answer();
        let is_waited_for =
            !self.loads.is_empty() || self.wants.iter().any(|want| !want.replies.is_empty());
        let need = if is_waited_for {
            Need::Demand
        } else {
            Need::Ahead
        };
        let Some(stored) = self.stored.clone() else {
            if self.wants.is_empty() && self.loads.is_empty() {
                self.is_running = false;
                return Step::Stop;
            }
            return Step::Load(need);
        };
        for reply in self.loads.drain(..) {
            // A waiter that is gone has lost interest.
            let _ = reply.send(Ok(Arc::clone(&stored)));
        }
        let Some(at) = self.next_wanted() else {
            self.is_running = false;
            return Step::Stop;
        };
        Step::Decode {
            stored,
            decoder: self.decoder.take(),
            at,
            need,
        }
    }

    /// Those who wait come before read-ahead, and going on comes before going back.
    fn next_wanted(&self) -> Option<Offset> {
        let decoder_at = self.decoder.as_ref().map(|decoder| decoder.at);
        self.wants
            .iter()
            .min_by_key(|want| {
                (
                    want.replies.is_empty(),
                    decoder_at.is_some_and(|at| want.at < at),
                    want.at,
                )
            })
            .map(|want| want.at)
    }

    /// Hands out what is there, and moves read-ahead on behind it.
    fn answer(&mut self) {
        let mut open = Vec::with_capacity(self.wants.len());
        let mut onwards = Vec::new();
        for want in std::mem::take(&mut self.wants) {
            let Some(run) = self.find(want.at) else {
                open.push(want);
                continue;
            };
            for reply in want.replies {
                let _ = reply.send(Ok(Arc::clone(run)));
            }
            onwards.extend(self.missing_ahead(run.covers.end(), want.ahead));
        }
        self.wants = open;
        for (at, ahead) in onwards {
            self.want(at, None, ahead - 1);
        }
    }

    pub(super) fn loaded(&mut self, stored: Arc<Stored>) {
        self.stored = Some(stored);
        self.is_exhausted = false;
    }

    /// Takes over what the job has decoded.
    pub(super) fn decoded(&mut self, decoder: Box<Decoder>, run: Arc<Encoded>) {
        self.is_exhausted = run.covers.end() > self.at.info().last_offset;
        self.decoder = (!self.is_exhausted).then_some(decoder);
        self.runs.insert(run.covers.start(), run);
    }

    /// Puts a decoder back that was not used after all.
    pub(super) fn put_back(&mut self, decoder: Option<Box<Decoder>>) {
        self.decoder = decoder;
    }

    /// Gives up what nobody waits for: there is no room for it.
    pub(super) fn abandon_ahead(&mut self) {
        self.wants.retain_mut(|want| {
            want.ahead = 0;
            !want.replies.is_empty()
        });
    }

    /// Tells everybody who waits. Nothing of the failure stays: the next one to ask starts afresh.
    pub(super) fn fail(&mut self, error: &ReplayError) {
        if matches!(error, ReplayError::Corrupt { .. }) {
            // Perhaps it was only damaged on its way here.
            self.stored = None;
        }
        self.decoder = None;
        for reply in self.wants.drain(..).flat_map(|want| want.replies) {
            let _ = reply.send(Err(error.clone()));
        }
        for reply in self.loads.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// Whether the stored bytes may go without anybody noticing for long: nobody works on them or waits.
    pub(super) fn is_stored_free(&self) -> bool {
        !self.is_running
            && self
                .stored
                .as_ref()
                .is_some_and(|stored| Arc::strong_count(stored) == 1)
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.is_exhausted
    }

    pub(super) fn drop_stored(&mut self) {
        self.decoder = None;
        self.stored = None;
    }

    /// Whether there is nothing left to keep it for.
    pub(super) fn is_vacant(&self) -> bool {
        !self.is_running && self.stored.is_none() && self.runs.is_empty()
    }
}

/// Marks `used` as now.
pub(super) fn touch(used: &AtomicU64, now: u64) {
    used.store(now, Ordering::Relaxed);
}
