//! Moving live records away from the tail, so that a stuck stream does not pin the ring: reads blocks at the tail, and what of them is live
//! goes into a block at the head, a batch at a time.

use std::{io, ops::Range};

use bytes::Bytes;

use crate::{
    AlignedBuf, Lsn, Seq, StreamId,
    block::{Block, BlockHeader, BlockKind, EntryKind},
    core::{Core, Effect, Output, Phase},
};

/// A live record on its way.
#[derive(Clone, Debug)]
pub(super) struct Moved {
    pub(super) stream: StreamId,
    pub(super) seq: Seq,
    pub(super) from: Lsn,
    pub(super) payload: Bytes,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    Reading {
        token: u64,
        at: Lsn,
        bytes: u64,
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
    stuck: Option<Lsn>,
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

    pub(super) fn stuck_at(&self) -> Option<Lsn> {
        self.stuck
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
    /// Here lies something live that can't be read.
    stuck: Option<Lsn>,
}

impl Core {
    /// Whether moving records frees space: the log is nearly used up, and not by live ones.
    pub(super) fn relocation_helps(&self) -> bool {
        let (span, usable) = (self.span(), self.usable());
        let live = self.index_ref().live_bytes();
        let pinned = span > usable / 4 * 3 && live < usable / 2;
        // With more live it costs more than it frees, but less than turning everybody away.
        let last_resort = span > usable / 16 * 15 && span.saturating_sub(live) >= usable / 8;
        let tail = self.tail_candidate().lsn;
        let free_to_move = self.relocation.stuck.is_none_or(|stuck| tail > stuck);
        let gains = self.relocation.moved < usable;
        (pinned || last_resort) && gains && free_to_move && self.relocation_from() < self.acked.lsn
    }

    fn relocation_from(&self) -> Lsn {
        self.tail_candidate().lsn.max(self.relocation.next)
    }

    pub(super) fn poll_relocation(&mut self) -> Option<Output> {
        // While the log is closed or opened nothing is moved.
        if self.phase != Phase::Running || !matches!(self.relocation.step, Step::Idle) {
            return None;
        }
        if !self.relocation_helps() {
            return None;
        }
        let tail = self.tail_candidate().lsn;
        if self.relocation.stuck.is_some_and(|stuck| tail > stuck) {
            self.relocation.stuck = None;
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
        let token = self.token();
        self.relocation.step = Step::Reading { token, at, bytes };
        Some(Output::Read {
            token,
            offset: self.ring.physical(at),
            bytes,
        })
    }

    pub(super) fn relocation_read(&mut self, token: u64, result: io::Result<AlignedBuf>) {
        let Step::Reading {
            token: own,
            at,
            bytes,
        } = self.relocation.step
        else {
            return;
        };
        if own != token {
            return;
        }
        let whole = |buf: &AlignedBuf| buf.len() as u64 == bytes;
        let Some(buf) = result.ok().filter(whole) else {
            self.relocation.step = Step::Idle;
            self.relocation_is_stuck(at);
            return;
        };
        let sifted = sift(self, at, buf.as_slice());
        let buf = Bytes::from_owner(buf);
        let batch: Vec<Moved> = sifted
            .records
            .into_iter()
            .zip(sifted.moved)
            .map(|((stream, seq, from), place)| Moved {
                stream,
                seq,
                from,
                payload: buf.slice(place),
            })
            .collect();
        self.relocation.next = sifted.next;
        self.relocation.next_bytes = sifted.next_bytes;
        self.relocation.step = if batch.is_empty() {
            Step::Idle
        } else {
            Step::Ready(batch)
        };
        if let Some(lsn) = sifted.stuck {
            self.relocation_is_stuck(lsn);
        }
    }

    fn relocation_is_stuck(&mut self, lsn: Lsn) {
        // What was trimmed while it was read may have been written over: nobody misses it.
        let missed = self.tail_candidate().lsn <= lsn;
        if missed && self.relocation.stuck != Some(lsn) {
            self.relocation.stuck = Some(lsn);
            self.effects.push_back(Effect::Damaged { lsn });
        }
    }
}

/// Goes through the blocks that lie whole in `bytes`, read at `at`, for live records.
fn sift(core: &Core, at: Lsn, bytes: &[u8]) -> Sifted {
    let mut sifted = Sifted {
        moved: Vec::new(),
        records: Vec::new(),
        next: at,
        next_bytes: None,
        stuck: None,
    };
    let (ring, id, index) = (core.ring, core.id, core.index_ref());
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
        let header = BlockHeader::decode(ring, id, rest).ok();
        let Some(header) = header.filter(|header| header.lsn == lsn) else {
            sifted.stuck = Some(lsn);
            return sifted;
        };
        if header.kind == BlockKind::Data {
            if header.end() > end {
                // The next read begins here, and takes all of it.
                sifted.next_bytes = Some(header.bytes);
                return sifted;
            }
            let Some(block) = Block::open(header, rest) else {
                sifted.stuck = Some(lsn);
                return sifted;
            };
            let live = |stream, seq| index.locate(stream, seq).is_some_and(|run| run.lsn == lsn);
            for record in block.records() {
                let (stream, seq) = (record.entry.stream, record.entry.seq);
                let is_record = !matches!(record.entry.kind, EntryKind::State { .. });
                if !is_record || !live(stream, seq) {
                    continue;
                }
                if !record.intact {
                    sifted.stuck = Some(lsn);
                    continue;
                }
                let place = start + record.at..start + record.at + record.payload.len();
                sifted.moved.push(place);
                sifted.records.push((stream, seq, lsn));
            }
        }
        sifted.next = header.end();
        if sifted.stuck.is_some() {
            return sifted;
        }
    }
    sifted
}
