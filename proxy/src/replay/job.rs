//! The work on row groups: one download each, decoded run by run by one job each, whoever and however many wait.
//!
//! A job is a task of its own. It goes on when those who asked have left (a fetch has a deadline, and the client asks
//! again), and ends when nothing is wanted any more. A failure is told to all who wait and leaves nothing behind.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use everlog_format::{
    Offset, OffsetRange, RowGroupReader, SegmentError, contain_panic, encode_batches,
};
use tokio::sync::oneshot;

use super::ReplayError;
use super::budget::{Need, Permit, Share};
use super::cache::Cache;
use super::group::{Decoder, Encoded, Following, Group, GroupRef, Step, Stored, touch};

/// Raw bytes of a run at most, unless its first record alone is larger: what is set aside for one before it is decoded.
const RUN_RAW_BYTES: usize = 1 << 20;

/// Batches are at most this long, header included, so that whole ones fill what a client asks for (1 MiB by default)
/// nearly to the brim.
pub(super) const BATCH_MAX_BYTES: usize = 128 << 10;

/// Bytes of a batch beside the records' own, for each record, at most; headers apart.
const RECORD_OVERHEAD_BYTES: u64 = 16;

/// Set aside for a decoder before there is one: pages of up to 256 KiB of each column and the decompressors' state. Then
/// it is asked.
const DECODER_BYTES: u64 = 3 << 20;

impl Cache {
    /// The run of batches that covers `at`, decoded now if it has to be.
    pub(super) async fn run_at(
        self: &Arc<Self>,
        group: &GroupRef,
        at: Offset,
    ) -> Result<Arc<Encoded>, ReplayError> {
        let at = at.max(group.info().first_offset);
        let waiting = {
            let mut held = self.held();
            let now = self.now();
            let state = held
                .groups
                .entry(group.id())
                .or_insert_with(|| Group::new(group.clone(), now));
            state.used = now;
            if let Some(run) = state.find(at) {
                touch(&run.used, now);
                self.metrics.cache_hits.inc();
                return Ok(Arc::clone(run));
            }
            let (reply, waiting) = oneshot::channel();
            state.want(at, Some(reply), 0);
            self.start_job(state);
            waiting
        };
        self.metrics.cache_misses.inc();
        waiting
            .await
            .unwrap_or_else(|gone| Err(ReplayError::interrupted(group.name(), gone)))
    }

    /// The row group's bytes as stored.
    pub(super) async fn stored(
        self: &Arc<Self>,
        group: &GroupRef,
    ) -> Result<Arc<Stored>, ReplayError> {
        let waiting = {
            let mut held = self.held();
            let now = self.now();
            let state = held
                .groups
                .entry(group.id())
                .or_insert_with(|| Group::new(group.clone(), now));
            state.used = now;
            if let Some(stored) = &state.stored {
                return Ok(Arc::clone(stored));
            }
            let (reply, waiting) = oneshot::channel();
            state.want_stored(reply);
            self.start_job(state);
            waiting
        };
        waiting
            .await
            .unwrap_or_else(|gone| Err(ReplayError::interrupted(group.name(), gone)))
    }

    /// Sees to it that `count` runs from `at` on get decoded, as far as there is room. Waits for nothing.
    pub(super) fn decode_ahead(self: &Arc<Self>, group: &GroupRef, at: Offset, count: usize) {
        let at = at.max(group.info().first_offset);
        let mut held = self.held();
        let now = self.now();
        let state = held
            .groups
            .entry(group.id())
            .or_insert_with(|| Group::new(group.clone(), now));
        match state.missing_ahead(at, count) {
            Some((at, missing)) => {
                state.want(at, None, missing - 1);
                self.start_job(state);
            }
            None => held.forget_vacant(group.id()),
        }
    }

    /// What is known of what follows `group`; whoever gets [`Following::Unknown`] has to find out.
    pub(super) fn following(&self, group: &GroupRef) -> Following {
        let mut held = self.held();
        match held.groups.get_mut(&group.id()) {
            Some(state) => match state.following {
                Following::Unknown => std::mem::replace(&mut state.following, Following::Asked),
                Following::Asked | Following::Known(_) | Following::Nothing => {
                    state.following.clone()
                }
            },
            None => Following::Nothing,
        }
    }

    pub(super) fn set_following(&self, group: &GroupRef, following: Following) {
        if let Some(state) = self.held().groups.get_mut(&group.id()) {
            state.following = following;
        }
    }

    fn start_job(self: &Arc<Self>, state: &mut Group) {
        if !state.is_running {
            state.is_running = true;
            tokio::spawn(Arc::clone(self).work(state.at.clone()));
        }
    }

    /// The job of one row group.
    async fn work(self: Arc<Self>, group: GroupRef) {
        let mut unfinished = Unfinished {
            cache: &self,
            group: &group,
            is_over: false,
        };
        loop {
            let step = {
                let mut held = self.held();
                let step = match held.groups.get_mut(&group.id()) {
                    Some(state) => state.step(),
                    None => Step::Stop,
                };
                if matches!(step, Step::Stop) {
                    held.forget_vacant(group.id());
                    // Its row group may have become something to give up.
                    self.budget.look_again();
                }
                step
            };
            let done = match step {
                Step::Stop => {
                    unfinished.is_over = true;
                    return;
                }
                Step::Load(need) => self.load(&group, need).await,
                Step::Decode {
                    stored,
                    decoder,
                    at,
                    need,
                } => self.decode(&group, stored, decoder, at, need).await,
            };
            if let Err(error) = done {
                self.metrics.failed(&error);
                self.with_group(&group, |state| state.fail(&error));
            }
        }
    }

    fn with_group(&self, group: &GroupRef, change: impl FnOnce(&mut Group)) {
        // The entry of a running job is never forgotten.
        if let Some(state) = self.held().groups.get_mut(&group.id()) {
            change(state);
        }
    }

    async fn load(&self, group: &GroupRef, need: Need) -> Result<(), ReplayError> {
        let range = group.info().bytes.clone();
        let len = range.end - range.start;
        let Some(permit) = self.room(Share::Stored, len + DECODER_BYTES, need).await else {
            self.with_group(group, Group::abandon_ahead);
            return Ok(());
        };
        let bytes = self
            .archive
            .store()
            .get_range(&group.footer.key, range)
            .await?;
        self.metrics.object_reads.inc();
        self.metrics.object_bytes.inc_by(len);
        let stored = Arc::new(Stored {
            bytes,
            permit: Mutex::new(permit),
        });
        self.with_group(group, |state| state.loaded(stored));
        Ok(())
    }

    async fn decode(
        &self,
        group: &GroupRef,
        stored: Arc<Stored>,
        decoder: Option<Box<Decoder>>,
        at: Offset,
        need: Need,
    ) -> Result<(), ReplayError> {
        if decoder.is_none() && !self.has_decoder_room(&stored, need) {
            self.with_group(group, |state| match need {
                // Loading waits for room for both, and holds nothing meanwhile.
                Need::Demand => state.drop_stored(),
                Need::Ahead => state.abandon_ahead(),
            });
            return Ok(());
        }
        let Some(room) = self.room(Share::Batches, expected_bytes(group), need).await else {
            self.with_group(group, |state| {
                state.put_back(decoder);
                state.abandon_ahead();
            });
            return Ok(());
        };
        let interrupted = |error: Box<dyn std::error::Error + Send + Sync>| {
            ReplayError::interrupted(group.name(), error)
        };
        let turn = Arc::clone(&self.decoders)
            .acquire_owned()
            .await
            .map_err(|closed| interrupted(closed.into()))?;
        let work = DecodeWork {
            group: group.clone(),
            stored: Arc::clone(&stored),
            decoder,
            at,
            room,
            now: self.now(),
        };
        // Milliseconds of arithmetic: on the runtime's own threads it would hold up every connection.
        let decoded = tokio::task::spawn_blocking(move || {
            let name = work.group.name();
            let decoded = contain_panic(|| work.run())
                .unwrap_or_else(|panic| Err(ReplayError::corrupt(name, panic)));
            drop(turn);
            decoded
        });
        let (decoder, run) = decoded.await.map_err(|panic| interrupted(panic.into()))??;
        self.metrics.decoded_bytes.inc_by(run.data.len() as u64);
        let decoder_bytes = decoder.reader.memory_bytes();
        self.with_group(group, |state| {
            state.decoded(decoder, run);
            let open = if state.is_exhausted() {
                0
            } else {
                decoder_bytes
            };
            stored.permit().resize(stored.bytes.len() as u64 + open);
        });
        Ok(())
    }

    /// Sees to it that there is room for a decoder of `stored`: with one that has come to the end, its room went as well.
    fn has_decoder_room(&self, stored: &Stored, need: Need) -> bool {
        let wanted = stored.bytes.len() as u64 + DECODER_BYTES;
        let held = stored.permit().bytes();
        if held >= wanted {
            return true;
        }
        let Some(more) = self.try_room(Share::Stored, wanted - held, need) else {
            return false;
        };
        stored.permit().absorb(more);
        true
    }
}

/// What to set aside for the next run of a row group before it is decoded.
fn expected_bytes(group: &GroupRef) -> u64 {
    let info = group.info();
    let raw_bytes = info.raw_bytes.min(RUN_RAW_BYTES as u64);
    let records = (info.records * raw_bytes)
        .checked_div(info.raw_bytes)
        .unwrap_or(info.records);
    // A sixteenth for headers, and for records that are smaller than the group's average.
    raw_bytes + raw_bytes / 16 + records * RECORD_OVERHEAD_BYTES + BATCH_MAX_BYTES as u64 / 8
}

/// Decodes one run, away from the runtime's threads.
struct DecodeWork {
    group: GroupRef,
    stored: Arc<Stored>,
    decoder: Option<Box<Decoder>>,
    at: Offset,
    room: Permit,
    now: u64,
}

impl DecodeWork {
    fn run(mut self) -> Result<(Box<Decoder>, Arc<Encoded>), ReplayError> {
        let failed = |error| damaged(&self.group, error);
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => {
                let bytes = self.stored.bytes.clone();
                let reader =
                    RowGroupReader::new(&self.group.footer.segment, self.group.index, bytes)
                        .map_err(failed)?;
                Box::new(Decoder {
                    reader,
                    at: self.group.info().first_offset,
                })
            }
        };
        if decoder.at != self.at {
            decoder.reader.seek(self.at).map_err(failed)?;
        }
        let short = |why: &str| ReplayError::corrupt(self.group.name(), why);
        let slice = decoder
            .reader
            .next_slice(RUN_RAW_BYTES)
            .map_err(failed)?
            .ok_or_else(|| short("it ends early"))?;
        let mut data = Vec::new();
        let batches = encode_batches(&slice, BATCH_MAX_BYTES, &mut data);
        let covers = batches
            .last()
            .and_then(|last| last.last_offset.next())
            .and_then(|end| OffsetRange::new(self.at, end))
            .ok_or_else(|| short("its offsets go backwards"))?;
        self.room.resize(data.capacity() as u64);
        decoder.at = covers.end();
        let run = Encoded {
            covers,
            batches,
            data,
            served: AtomicBool::new(false),
            used: AtomicU64::new(self.now),
            permit: self.room,
        };
        Ok((decoder, Arc::new(run)))
    }
}

fn damaged(group: &GroupRef, error: SegmentError) -> ReplayError {
    segment_error(group.name(), error)
}

/// What a reader's failure means for one who asks.
pub(super) fn segment_error(what: String, error: SegmentError) -> ReplayError {
    match error {
        SegmentError::Version(_) => ReplayError::Unsupported { what },
        // The others are a writer's.
        SegmentError::Corrupt(why) => ReplayError::Corrupt { what, why },
        SegmentError::Io(_)
        | SegmentError::OutOfOrder { .. }
        | SegmentError::Unfit { .. }
        | SegmentError::Empty
        | SegmentError::Encode(_) => ReplayError::corrupt(what, error),
    }
}

/// Tells those who wait if the job ends in any other way than by [`Step::Stop`].
struct Unfinished<'a> {
    cache: &'a Cache,
    group: &'a GroupRef,
    is_over: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.cache.with_group(self.group, |state| {
                state.fail(&ReplayError::interrupted(
                    self.group.name(),
                    "its job was stopped",
                ));
                state.drop_stored();
                state.is_running = false;
            });
        }
    }
}
