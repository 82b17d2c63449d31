//! All decisions of a running log, as a plain state machine: appends, trims and completions go in, writes and effects come out. It has no
//! clock, no randomness and no I/O, so the simulated device drives the very code that runs on a real one.
//!
//! The order of things that safety rests on:
//!
//! 1. A block is written only below the limit that both header copies hold, and the limit never reaches the tail that both hold, one lap
//!    on. So what the header calls part of the log is never overwritten, whichever copy is read after a crash.
//! 2. A block is acknowledged when it and all before it are durable.
//! 3. A relocated record leaves its old place only when its copy is acknowledged, and the tail moves only over places that nothing is
//!    left in. Before it moves, each trimmed stream has a state entry above the new tail, so neither its trim nor its numbering is forgotten.
//! 4. A header update writes one copy, waits, writes the other; only then its limit and tail are used.
//! 5. A new epoch begins at the old limit, beyond everything that the dead process may still have in flight.

mod acks;
mod blocks;
mod carry;
mod headers;
mod opening;
mod relocation;
mod space;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;

use crate::{
    AlignedBuf, LogId, Lsn, Seq, StreamId,
    block::BlockHeader,
    device::{Completion, Write},
    error::{AppendError, Stopped, TrimError},
    geometry::{RECORD_BYTES_CEILING, Ring},
    header::Header,
    index::{Index, TailMark},
    recovery::Scanned,
    rules::rules,
};
use acks::InFlight;
use carry::Carry;
use headers::{Update, Wanted};
use opening::{opening, stream_states};
use relocation::Relocation;
pub use relocation::Stuck;
pub use space::Usage;

/// How a log is run.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// A block takes records up to so many bytes; a larger record gets a block of its own. 1 unit to 1/16 of the ring, at most 64 MiB.
    pub block_bytes_max: u64,
    /// Data writes in flight, 1 to 64.
    pub depth: usize,
    /// How far beyond the last block the limit is put at first, and at most, in bytes. `None`: by the size of the ring.
    pub window_bytes_min: Option<u64>,
    pub window_bytes_max: Option<u64>,
}

impl Default for CoreConfig {
    fn default() -> CoreConfig {
        CoreConfig {
            block_bytes_max: 1 << 20,
            depth: 4,
            window_bytes_min: None,
            window_bytes_max: None,
        }
    }
}

/// Something to be done on the device.
#[derive(Debug)]
pub enum Output {
    /// Comes back through [`Core::write_done`].
    Write(Write),
    /// Comes back through [`Core::read_done`]. Offset and length are multiples of the unit.
    Read { token: u64, offset: u64, bytes: u64 },
}

/// Something that happened. Those of one caller come in the order of their calls.
#[derive(Debug)]
pub enum Effect {
    /// The log takes records now: the new epoch is durable.
    Opened,
    /// A record is durable.
    Appended {
        ticket: u64,
        stream: StreamId,
        lsn: Lsn,
        seq: Seq,
    },
    /// A record is not part of the log.
    Refused { ticket: u64, error: AppendError },
    /// A trim is durable, or will not be.
    Trimmed {
        ticket: u64,
        result: Result<(), TrimError>,
    },
    /// The log is closed; nothing is in flight.
    Closed {
        ticket: u64,
        result: Result<(), Stopped>,
    },
    /// A block is durable and acknowledged. Its bytes may serve reads; give them back to [`Core::recycle`] when they are not needed.
    Durable { lsn: Lsn, buf: AlignedBuf },
    /// Live records can't be read, so they can't be moved, and the tail stays until they are trimmed or can be read after all. Said once, though
    /// it is tried again and again.
    Damaged(Stuck),
    /// The log has stopped for good.
    Stopped(Stopped),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The header of the new epoch, then the pad over the gap.
    Opening,
    Running,
    Closing {
        ticket: u64,
    },
    Stopped(Stopped),
}

struct Pending {
    ticket: u64,
    stream: StreamId,
    payload: Bytes,
}

struct SyncTrim {
    ticket: u64,
    stream: StreamId,
    below: Seq,
}

/// What is known of a stream beyond the index.
#[derive(Clone, Copy, Debug, Default)]
struct StreamState {
    /// The next number to give out: ahead of the index by what is in flight.
    assigned: Seq,
    /// The newest durable state entry: where it lies, and the trim it says.
    written: Option<(Lsn, Seq)>,
}

/// The state machine of one log.
pub struct Core {
    ring: Ring,
    id: LogId,
    config: CoreConfig,
    phase: Phase,
    /// What both header copies hold.
    header: Header,
    update: Option<Update>,
    wanted: Wanted,
    index: Arc<RwLock<Index>>,
    streams: BTreeMap<StreamId, StreamState>,
    /// Where the next block begins, and the checksum of the one before.
    head: TailMark,
    /// Everything below is acknowledged.
    acked: TailMark,
    window: u64,
    in_flight: VecDeque<InFlight>,
    queue: VecDeque<Pending>,
    queued_bytes: u64,
    syncs: VecDeque<SyncTrim>,
    carry: Option<Carry>,
    relocation: Relocation,
    /// The pad over the gap that opening leaves, to be written once the header is durable.
    gap_pad: Option<BlockHeader>,
    /// Pads of older gaps to be written before any block, and the token of the one in flight.
    mends: VecDeque<BlockHeader>,
    mend_in_flight: Option<u64>,
    next_token: u64,
    effects: VecDeque<Effect>,
    spare: Vec<AlignedBuf>,
    /// Something found no room: the tail is to move as soon as it can.
    pressed: bool,
}

/// Buffers kept for the next blocks.
const SPARE_MAX: usize = 16;

impl Core {
    /// Begins to open the log that was found. It takes calls at once and writes records after [`Effect::Opened`].
    pub fn open(scanned: Scanned, config: CoreConfig) -> Core {
        let ring = scanned.ring;
        // A block is made up to this size, and one entry more may round it up.
        let block_bytes_max = config.block_bytes_max.min(RECORD_BYTES_CEILING);
        let block_bytes_max = ring
            .round_down(block_bytes_max.min(ring.bytes() / 16))
            .max(ring.unit());
        let config = CoreConfig {
            block_bytes_max,
            depth: config.depth.clamp(1, 64),
            ..config
        };
        let streams = stream_states(&scanned);
        let opening = opening(&scanned);
        let head = TailMark {
            lsn: opening.header.limit,
            chain: opening.pad.map_or(scanned.end.chain, |pad| pad.checksum()),
        };
        let start = if rules().epoch_gap { head } else { scanned.end };
        let acked = match opening.pad {
            Some(pad) => TailMark {
                lsn: pad.lsn,
                chain: pad.chain,
            },
            None => scanned.end,
        };
        let order = if rules().header_spares_newest {
            [scanned.slot.other(), scanned.slot]
        } else {
            [scanned.slot, scanned.slot.other()]
        };
        let mut core = Core {
            ring,
            id: scanned.header.id,
            phase: Phase::Opening,
            update: Some(Update::new(opening.header, order)),
            header: scanned.header,
            wanted: Wanted::default(),
            index: Arc::new(RwLock::new(scanned.index)),
            streams,
            head: start,
            acked,
            window: 0,
            in_flight: VecDeque::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            syncs: VecDeque::new(),
            carry: None,
            relocation: Relocation::default(),
            gap_pad: opening.pad,
            mends: opening.mends,
            mend_in_flight: None,
            next_token: 0,
            effects: VecDeque::new(),
            spare: Vec::new(),
            pressed: false,
            config,
        };
        core.window = core.window_bytes_min();
        core
    }

    /// Queues a record. Its effect is [`Effect::Appended`] or [`Effect::Refused`] with the same ticket.
    pub fn append(&mut self, ticket: u64, stream: StreamId, payload: Bytes) {
        let bytes = payload.len() as u64;
        let max = self.header.record_bytes_max;
        let refused = match self.phase {
            Phase::Stopped(stopped) => Some(AppendError::Stopped(stopped)),
            Phase::Closing { .. } => Some(AppendError::Stopped(Stopped::Closed)),
            Phase::Opening | Phase::Running if bytes > max => {
                Some(AppendError::TooLarge { bytes, max })
            }
            Phase::Opening | Phase::Running => None,
        };
        if let Some(error) = refused {
            self.effects.push_back(Effect::Refused { ticket, error });
            return;
        }
        self.queued_bytes += bytes;
        self.queue.push_back(Pending {
            ticket,
            stream,
            payload,
        });
    }

    /// Lets the records of a stream below `below` go. Holds at once, and after a crash as far as a state entry says. Returns the
    /// trim that holds now.
    pub fn trim(&mut self, stream: StreamId, below: Seq) -> Result<Seq, TrimError> {
        let trimmed = self.index_mut().try_trim(stream, below)?;
        self.relocation.moved = 0;
        Ok(trimmed)
    }

    /// Says that something was trimmed behind [`Core::trim`]'s back, in the index.
    pub fn note_trim(&mut self) {
        self.relocation.moved = 0;
    }

    /// Trims and writes that down. The effect is [`Effect::Trimmed`].
    pub fn sync_trim(&mut self, ticket: u64, stream: StreamId, below: Seq) {
        let result = match self.phase {
            Phase::Stopped(stopped) => Err(TrimError::Stopped(stopped)),
            Phase::Closing { .. } => Err(TrimError::Stopped(Stopped::Closed)),
            Phase::Opening | Phase::Running => self.trim(stream, below).map(|_| ()),
        };
        let durable = self
            .streams
            .get(&stream)
            .and_then(|state| state.written)
            .is_some_and(|(_, trimmed)| trimmed >= below);
        if result.is_err() || durable || below == Seq::ZERO || !rules().sync_trim_durable {
            self.effects.push_back(Effect::Trimmed { ticket, result });
            return;
        }
        self.syncs.push_back(SyncTrim {
            ticket,
            stream,
            below,
        });
    }

    /// Nothing was appended for a while: the acknowledged end goes into the header, so that the loss of the last block can be told
    /// from a write that was cut off.
    pub fn idle(&mut self) {
        if self.acked.lsn > self.header.durable {
            self.wanted.durable = true;
        }
    }

    /// Whether [`Core::idle`] would have something to do.
    pub fn wants_idle(&self) -> bool {
        self.phase == Phase::Running && self.acked.lsn > self.header.durable && self.is_quiet()
    }

    /// Writes what is queued, then marks the log as closed. The effect is [`Effect::Closed`].
    pub fn close(&mut self, ticket: u64) {
        match self.phase {
            Phase::Opening | Phase::Running => self.phase = Phase::Closing { ticket },
            Phase::Closing { .. } | Phase::Stopped(_) => {
                let stopped = match self.phase {
                    Phase::Stopped(stopped) => stopped,
                    _ => Stopped::Closed,
                };
                let result = Err(stopped);
                self.effects.push_back(Effect::Closed { ticket, result });
            }
        }
    }

    /// The next thing to do on the device. To be asked after each call that puts something in, until it says `None`. `wall_ms` becomes a label.
    pub fn poll(&mut self, wall_ms: u64) -> Option<Output> {
        loop {
            let before = self.standing();
            let output = self.poll_once(wall_ms);
            // The last record of the queue was refused, or no room was found: the steps before that have something to do now. Nobody
            // may come to ask again.
            if output.is_some() || self.standing() == before {
                return output;
            }
        }
    }

    /// What forming a block can change without writing one.
    fn standing(&self) -> (usize, usize, bool, bool) {
        let (queue, syncs) = (self.queue.len(), self.syncs.len());
        (queue, syncs, self.pressed, self.relocation.blocked)
    }

    fn poll_once(&mut self, wall_ms: u64) -> Option<Output> {
        if matches!(self.phase, Phase::Stopped(_)) {
            return None;
        }
        self.advance_tail();
        self.finish_closing();
        if let Some(write) = self.poll_header(wall_ms) {
            return Some(Output::Write(write));
        }
        if let Some(write) = self.poll_mend() {
            return Some(Output::Write(write));
        }
        if self.is_mending() {
            return None;
        }
        if let Some(write) = self.poll_gap_pad() {
            return Some(Output::Write(write));
        }
        if let Some(read) = self.poll_relocation() {
            return Some(read);
        }
        let write = self.poll_block(wall_ms);
        // Forming a block may have found that the header has to move first.
        match write {
            Some(write) => Some(Output::Write(write)),
            None => self.poll_header(wall_ms).map(Output::Write),
        }
    }

    /// A write has ended.
    pub fn write_done(&mut self, completion: Completion) {
        if matches!(self.phase, Phase::Stopped(_)) {
            return;
        }
        let Completion { token, result, buf } = completion;
        match result {
            Ok(written) if written == buf.len() || !rules().short_write => {}
            Ok(_) => return self.fail(None),
            Err(error) if rules().poison => return self.fail(error.raw_os_error()),
            Err(_) => {}
        }
        if self.mend_done(token) || self.header_done(token) {
            self.recycle(buf);
        } else {
            self.block_done(token, buf);
        }
    }

    /// A read has ended. Its buffer is as long as was asked for, with zeros where single sectors can't be read:
    /// [`crate::reader::read_stretch`] reads so.
    pub fn read_done(&mut self, token: u64, result: io::Result<AlignedBuf>) {
        if !matches!(self.phase, Phase::Stopped(_)) {
            self.relocation_read(token, result);
        }
    }

    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Where the live records lie. Hold the lock only for a moment.
    pub fn index(&self) -> Arc<RwLock<Index>> {
        Arc::clone(&self.index)
    }

    pub fn ring(&self) -> Ring {
        self.ring
    }

    /// What both header copies hold.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Everything below is durable and acknowledged.
    pub fn durable(&self) -> Lsn {
        self.acked.lsn
    }

    /// Where the next block will begin.
    pub fn head(&self) -> Lsn {
        self.head.lsn
    }

    /// Bytes of the records that are queued and not yet part of a block.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// Nothing is queued or in flight.
    pub fn is_quiet(&self) -> bool {
        self.in_flight.is_empty()
            && self.queue.is_empty()
            && self.syncs.is_empty()
            && self.update.is_none()
            && self.carry.is_none()
            && !self.relocation.is_busy()
    }

    /// Takes a buffer back for later blocks.
    pub fn recycle(&mut self, buf: AlignedBuf) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(buf);
        }
    }

    fn buffer(&mut self, bytes: u64) -> AlignedBuf {
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        // Not one far too large: it may go into the cache of a reader, where its whole size counts.
        let fits = |buf: &AlignedBuf| buf.capacity() >= len && buf.capacity() / 4 <= len;
        match self.spare.iter().position(fits) {
            Some(found) => self.spare.swap_remove(found),
            None => {
                if self.spare.len() == SPARE_MAX {
                    self.spare.swap_remove(0);
                }
                AlignedBuf::zeroed(size_class(len))
            }
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn index_ref(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log stops: nobody who waits is acknowledged, nothing is repeated.
    fn fail(&mut self, errno: Option<i32>) {
        let fenced = errno == Some(libc::EBADE) && rules().fenced;
        let stopped = if fenced {
            Stopped::Fenced
        } else {
            Stopped::Poisoned { errno }
        };
        let closing = match self.phase {
            Phase::Closing { ticket } => Some(ticket),
            _ => None,
        };
        self.phase = Phase::Stopped(stopped);
        self.effects.push_back(Effect::Stopped(stopped));
        let refuse = |ticket| Effect::Refused {
            ticket,
            error: AppendError::Stopped(stopped),
        };
        let fail_trim = |ticket| Effect::Trimmed {
            ticket,
            result: Err(TrimError::Stopped(stopped)),
        };
        for block in std::mem::take(&mut self.in_flight) {
            if !block.told {
                let tickets = block.records.iter().map(|record| record.ticket);
                self.effects.extend(tickets.map(refuse));
                self.effects.extend(block.syncs.into_iter().map(fail_trim));
            }
        }
        let queue = std::mem::take(&mut self.queue);
        self.queued_bytes = 0;
        self.effects
            .extend(queue.iter().map(|pending| refuse(pending.ticket)));
        let syncs = std::mem::take(&mut self.syncs);
        self.effects
            .extend(syncs.iter().map(|sync| fail_trim(sync.ticket)));
        if let Some(ticket) = closing {
            let result = Err(stopped);
            self.effects.push_back(Effect::Closed { ticket, result });
        }
    }
}

/// A buffer is made up to a quarter larger than it has to be, so that it fits later blocks as well: fresh memory costs more than its copy.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 8).max(crate::aligned::ALIGN);
    len.next_multiple_of(step)
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("id", &self.id)
            .field("phase", &self.phase)
            .field("header", &self.header)
            .field("head", &self.head)
            .field("acked", &self.acked)
            .field("in_flight", &self.in_flight.len())
            .field("queued", &self.queue.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod bench;
#[cfg(test)]
mod tests;
