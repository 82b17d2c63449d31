//! Moving live records away from the tail, so that a stuck stream does not pin the ring: reads blocks at the tail, and what of them is live
//! goes into a block at the head, a batch at a time.
//!
//! What is bad when it is read is read again at once. What two reads in a row do not bring is *stuck*: it keeps the tail until it is trimmed or can
//! be read after all. It is tried again after a while, each time after twice as long, counted in what happens to the log and not by a clock.
//! What lies around it is moved all the same.

use std::{io, ops::Range};

use bytes::Bytes;

use crate::{
    AlignedBuf, Lsn, Seq, StreamId,
    block::{Block, BlockHeader, BlockKind, EntryKind},
    core::{Core, Effect, Output, Phase},
    rules::rules,
};

/// Polls of the state machine until what is stuck is tried again: at first, and at most.
const PATIENCE_AT_FIRST: u32 = 64;
const PATIENCE_MAX: u32 = 1 << 16;

/// A live record on its way.
#[derive(Clone, Debug)]
pub(super) struct Moved {
    pub(super) stream: StreamId,
    pub(super) seq: Seq,
    pub(super) from: Lsn,
    pub(super) payload: Bytes,
}

/// Live records of one block that can't be read, so they can't be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The block.
    pub lsn: Lsn,
    pub stream: StreamId,
    /// The first of them.
    pub first: Seq,
    /// The number behind the last of them.
    pub end: Seq,
}

/// A read of the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    at: Lsn,
    bytes: u64,
    /// The second time, since the first was bad.
    again: bool,
}

impl Stretch {
    fn lsns(&self) -> Range<Lsn> {
        self.at..self.at.plus(self.bytes)
    }
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    Reading {
        token: u64,
        stretch: Stretch,
    },
    /// Waits for a block of its own.
    Ready(Vec<Moved>),
    /// The block is in flight.
    Landing,
}

#[derive(Debug, Default)]
pub(super) struct Relocation {
    step: Step,
    /// Everything below has been gone through.
    next: Lsn,
    /// The bytes that the block at `next` takes, where it is known to take more than was read.
    next_bytes: Option<u64>,
    /// Was bad, is to be read again.
    again: Option<Stretch>,
    /// In the order of the log.
    stuck: Vec<Stuck>,
    /// Polls until it is tried again, and how many it will be after that.
    wait: u32,
    patience: u32,
    /// Reads that were bad and good when repeated.
    pub(super) read_again: u64,
    /// The batch found no room; it waits for the tail.
    pub(super) blocked: bool,
    /// Bytes moved since a record or a trim was taken. Where blocks can't be packed tighter, moving them once more gains nothing: without a
    /// bound an idle log would write for ever, and a record that waits for room would never be refused.
    pub(super) moved: u64,
}

impl Relocation {
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.step, Step::Reading { .. } | Step::Landing)
    }

    pub(super) fn ready(&self) -> Option<&[Moved]> {
        match &self.step {
            Step::Ready(batch) if !batch.is_empty() => Some(batch),
            _ => None,
        }
    }

    pub(super) fn take(&mut self) -> Vec<Moved> {
        match std::mem::replace(&mut self.step, Step::Landing) {
            Step::Ready(batch) => batch,
            _ => Vec::new(),
        }
    }

    pub(super) fn landed(&mut self) {
        self.step = Step::Idle;
    }

    /// Nothing is stuck, or it is time to try again.
    fn is_free(&self) -> bool {
        self.stuck.is_empty() || self.wait == 0
    }

    /// Takes what the last read could not bring, and gives what of it is news.
    fn stuck_on(&mut self, stuck: Vec<Stuck>) -> Vec<Stuck> {
        let before = std::mem::replace(&mut self.stuck, stuck);
        if self.stuck.is_empty() {
            self.patience = 0;
            return Vec::new();
        }
        self.patience = (self.patience * 2).clamp(PATIENCE_AT_FIRST, PATIENCE_MAX);
        self.wait = self.patience;
        let is_news = |stuck: &&Stuck| !before.contains(stuck);
        self.stuck.iter().filter(is_news).copied().collect()
    }
}

/// What was found in what was read at the tail.
struct Sifted {
    moved: Vec<Range<usize>>,
    records: Vec<(StreamId, Seq, Lsn)>,
    /// Everything below has been gone through.
    next: Lsn,
    /// The bytes of the block at `next`, if that is why it ends there.
    next_bytes: Option<u64>,
    /// Live records that do not match their checksums.
    damaged: Vec<(StreamId, Seq, Lsn)>,
    /// Where neither header nor directory says what lies there.
    unknown: Vec<Range<Lsn>>,
}

impl Core {
    /// Whether moving records frees space: the log is nearly used up, and not by live ones.
    pub(super) fn relocation_helps(&self) -> bool {
        let (span, usable) = (self.span(), self.usable());
        let live = self.index_ref().live_bytes();
        let pinned = span > usable / 4 * 3 && live < usable / 2;
        // With more live it costs more than it frees, but less than turning everybody away.
        let last_resort = span > usable / 16 * 15 && span.saturating_sub(live) >= usable / 8;
        let gains = self.relocation.moved < usable;
        (pinned || last_resort)
            && gains
            && self.relocation.is_free()
            && self.relocation_from() < self.acked.lsn
    }

    fn relocation_from(&self) -> Lsn {
        self.tail_candidate().lsn.max(self.relocation.next)
    }

    /// What is live and can't be read.
    pub(super) fn stuck(&self) -> Vec<Stuck> {
        if self.relocation.stuck.is_empty() {
            return Vec::new();
        }
        let index = self.index_ref();
        let is_live = |stuck: &&Stuck| {
            let last = Seq::new(stuck.end.get().saturating_sub(1));
            let run = index.locate(stuck.stream, last);
            run.is_some_and(|run| run.lsn == stuck.lsn)
        };
        self.relocation
            .stuck
            .iter()
            .filter(is_live)
            .copied()
            .collect()
    }

    /// Lets go of what is stuck and not missed any more, and counts the time until the rest is tried again.
    fn wait_for_stuck(&mut self) {
        if self.relocation.stuck.is_empty() {
            return;
        }
        self.relocation.stuck = self.stuck();
        self.relocation.wait = self.relocation.wait.saturating_sub(1);
        if let Some(first) = self.relocation.stuck.first()
            && self.relocation.wait == 0
            && matches!(self.relocation.step, Step::Idle)
        {
            self.relocation.next = self.relocation.next.min(first.lsn);
            self.relocation.next_bytes = None;
        }
    }

    pub(super) fn poll_relocation(&mut self) -> Option<Output> {
        // While the log is closed or opened nothing is moved.
        if self.phase != Phase::Running {
            return None;
        }
        self.wait_for_stuck();
        if !matches!(self.relocation.step, Step::Idle) || !self.relocation_helps() {
            return None;
        }
        let mut at = self.relocation_from();
        if at > self.relocation.next {
            self.relocation.next_bytes = None;
        }
        while let Some(gap) = self.header.gaps.iter().find(|gap| gap.from == at) {
            at = gap.to;
        }
        if at >= self.acked.lsn {
            return None;
        }
        let asked = self
            .relocation
            .next_bytes
            .take()
            .unwrap_or(self.config.block_bytes_max);
        let bytes = asked
            .min(self.ring.left_in_lap(at))
            .min(self.acked.lsn.since(at));
        let again = self.relocation.again.take().filter(|again| again.at == at);
        let stretch = again.unwrap_or(Stretch {
            at,
            bytes,
            again: false,
        });
        let token = self.token();
        self.relocation.step = Step::Reading { token, stretch };
        Some(Output::Read {
            token,
            offset: self.ring.physical(at),
            bytes: stretch.bytes,
        })
    }

    pub(super) fn relocation_read(&mut self, token: u64, result: io::Result<AlignedBuf>) {
        let Step::Reading {
            token: own,
            stretch,
        } = self.relocation.step
        else {
            return;
        };
        if own != token {
            return;
        }
        self.relocation.step = Step::Idle;
        let whole = |buf: &AlignedBuf| buf.len() as u64 == stretch.bytes;
        let buf = result.ok().filter(whole);
        let sifted = match &buf {
            Some(buf) => sift(self, stretch.at, buf.as_slice()),
            None => Sifted::nothing_of(stretch.lsns()),
        };
        let stuck = self.missed(&sifted);
        if !stuck.is_empty() && !stretch.again && rules().read_again {
            // Read as far as the first time, and not beyond.
            self.relocation.next = stretch.at;
            self.relocation.again = Some(Stretch {
                again: true,
                ..stretch
            });
            return;
        }
        self.relocation.read_again += u64::from(stretch.again && stuck.is_empty());
        self.relocation.next = sifted.next;
        self.relocation.next_bytes = sifted.next_bytes;
        if let Some(buf) = buf {
            let batch = moved(sifted, &Bytes::from_owner(buf));
            if !batch.is_empty() {
                self.relocation.step = Step::Ready(batch);
            }
        }
        let news = self.relocation.stuck_on(stuck);
        self.effects.extend(news.into_iter().map(Effect::Damaged));
    }

    /// The live records that were not brought, in the order of the log. What was trimmed while it was read may have been written over: nobody
    /// misses it.
    fn missed(&self, sifted: &Sifted) -> Vec<Stuck> {
        let index = self.index_ref();
        let mut stuck: Vec<Stuck> = Vec::new();
        for unknown in &sifted.unknown {
            let live = index.live_in(unknown);
            stuck.extend(live.into_iter().map(|(stream, run)| Stuck {
                lsn: run.lsn,
                stream,
                first: run.first,
                end: run.end(),
            }));
        }
        for (stream, seq, lsn) in sifted.damaged.iter().copied() {
            match stuck.last_mut() {
                Some(last) if (last.stream, last.lsn, last.end) == (stream, lsn, seq) => {
                    last.end = seq.plus(1);
                }
                _ => stuck.push(Stuck {
                    lsn,
                    stream,
                    first: seq,
                    end: seq.plus(1),
                }),
            }
        }
        stuck.sort_by_key(|stuck| (stuck.lsn, stuck.stream, stuck.first));
        stuck
    }
}

/// The records that were found, with their bytes.
fn moved(sifted: Sifted, buf: &Bytes) -> Vec<Moved> {
    let places = sifted.moved.into_iter();
    let records = sifted.records.into_iter().zip(places);
    records
        .map(|((stream, seq, from), place)| Moved {
            stream,
            seq,
            from,
            payload: buf.slice(place),
        })
        .collect()
}

impl Sifted {
    fn from(at: Lsn) -> Sifted {
        Sifted {
            moved: Vec::new(),
            records: Vec::new(),
            next: at,
            next_bytes: None,
            damaged: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// The device has not answered.
    fn nothing_of(lsns: Range<Lsn>) -> Sifted {
        Sifted {
            unknown: vec![lsns.clone()],
            ..Sifted::from(lsns.end)
        }
    }

    /// Goes through the records of a block that begins `start` bytes behind the begin of what was read.
    fn take(&mut self, core: &Core, block: &Block<'_>, start: usize) {
        let (lsn, index) = (block.header.lsn, core.index_ref());
        let live = |stream, seq| index.locate(stream, seq).is_some_and(|run| run.lsn == lsn);
        for record in block.records() {
            let (stream, seq) = (record.entry.stream, record.entry.seq);
            let is_record = !matches!(record.entry.kind, EntryKind::State { .. });
            if !is_record || !live(stream, seq) {
                continue;
            }
            if !record.intact {
                self.damaged.push((stream, seq, lsn));
                continue;
            }
            let place = start + record.at..start + record.at + record.payload.len();
            self.moved.push(place);
            self.records.push((stream, seq, lsn));
        }
    }
}

/// Goes through the blocks that lie whole in `bytes`, read at `at`, for live records. Where no block begins it looks on for the next one: within
/// a block no unit looks like one.
fn sift(core: &Core, at: Lsn, bytes: &[u8]) -> Sifted {
    let mut sifted = Sifted::from(at);
    let end = at.plus(bytes.len() as u64);
    while sifted.next < end {
        let lsn = sifted.next;
        // The header names the gap. Its pad may never have been written, or a late write of a dead process lies over it.
        if let Some(gap) = core.header.gaps.iter().find(|gap| gap.from == lsn) {
            sifted.next = gap.to;
            continue;
        }
        let start = usize::try_from(lsn.since(at)).unwrap_or(usize::MAX);
        let rest = bytes.get(start..).unwrap_or(&[]);
        let header = BlockHeader::decode(core.ring, core.id, rest).ok();
        let Some(header) = header.filter(|header| header.lsn == lsn) else {
            sifted.next = lsn.plus(core.ring.unit());
            match sifted.unknown.last_mut() {
                Some(last) if last.end == lsn => last.end = sifted.next,
                _ => sifted.unknown.push(lsn..sifted.next),
            }
            continue;
        };
        if header.kind == BlockKind::Data {
            if header.end() > end {
                // The next read begins here, and takes all of it.
                sifted.next_bytes = Some(header.bytes);
                return sifted;
            }
            match Block::open(header, rest) {
                Some(block) => sifted.take(core, &block, start),
                None => sifted.unknown.push(lsn..header.end()),
            }
        }
        sifted.next = header.end();
    }
    sifted
}
