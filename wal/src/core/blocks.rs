//! Makes up the next block: who gets into it, and how far it may go.

use bytes::Bytes;

use crate::{
    AlignedBuf, Lsn, Seq, StreamId,
    block::{self, BlockHeader, BlockKind, ENTRY_BYTES, EntryKind, NewEntry, data_bytes},
    core::{
        Core, Effect, Phase,
        acks::{InFlight, Placed, Relocated},
        space::Purpose,
    },
    device::Write,
    error::{AppendError, TrimError},
    index::TailMark,
    rules::rules,
};

/// Trims that are written along where a block has room to spare anyway.
const SPARE_STATES_MAX: usize = 16;

/// What is queued is spread over the writes that may still begin, but not in pieces below this, in bytes: several writes of this
/// size are done sooner than one of all, and the first begins while the others are made up. With smaller ones it is the other way round.
const SPREAD_BYTES_MIN: u64 = 128 << 10;

/// A block that is being made up.
#[derive(Default)]
struct Draft {
    entries: Vec<NewEntry<Bytes>>,
    payload_bytes: u64,
    records: Vec<Placed>,
    states: Vec<(StreamId, Seq)>,
    syncs: Vec<u64>,
    relocated: Vec<Relocated>,
    carried: usize,
}

/// Whether one more entry gets into the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Yes,
    /// The block is full; the entry is for the next one.
    NextBlock,
    /// The rest of the lap is too short for it.
    NextLap,
    /// The header has to allow more first.
    Limit(Lsn),
    /// There is no room in the log, up to this position.
    Room(Lsn),
}

impl Core {
    /// The pad over the gap, once both header copies name the gap.
    pub(super) fn poll_gap_pad(&mut self) -> Option<Write> {
        if self.update.is_some() || !self.in_flight.is_empty() {
            return None;
        }
        let pad = self.gap_pad?;
        let chain_before = pad.chain;
        Some(self.submit_pad(pad, chain_before))
    }

    pub(super) fn poll_block(&mut self, wall_ms: u64) -> Option<Write> {
        let runs = self.phase == Phase::Running || matches!(self.phase, Phase::Closing { .. });
        if !runs || self.gap_pad.is_some() || self.in_flight.len() >= self.config.depth {
            return None;
        }
        // Nothing is written behind the mark of the close.
        if self.update_closes() {
            return None;
        }
        let mut draft = Draft::default();
        let mut blocked = None;
        for purpose in [
            Purpose::State,
            Purpose::SyncTrim,
            Purpose::Relocation,
            Purpose::Append,
        ] {
            let fit = match purpose {
                Purpose::State => self.draft_carried(&mut draft),
                Purpose::SyncTrim => self.draft_syncs(&mut draft),
                Purpose::Relocation => self.draft_relocated(&mut draft),
                Purpose::Append => self.draft_records(&mut draft),
            };
            if fit != Fit::Yes {
                blocked = Some(fit);
                break;
            }
        }
        if !draft.entries.is_empty() {
            return Some(self.submit_data(draft, wall_ms));
        }
        match blocked {
            Some(Fit::NextLap) => Some(self.submit_lap_pad(wall_ms)),
            Some(Fit::Limit(end)) => {
                self.want_limit(end);
                None
            }
            _ => None,
        }
    }

    /// Whether an entry with `bytes` of payload gets in, if the block may end at the end of `purpose`.
    fn fit(&self, draft: &Draft, bytes: u64, purpose: Purpose) -> Fit {
        let count = u32::try_from(draft.entries.len() + 1).unwrap_or(u32::MAX);
        let used = data_bytes(count, draft.payload_bytes + bytes).unwrap_or(u64::MAX);
        let len = self.ring.round_up(used);
        let first = draft.entries.is_empty();
        if !first && len > self.config.block_bytes_max {
            return Fit::NextBlock;
        }
        let left = self.ring.left_in_lap(self.head.lsn);
        let wraps = rules().no_wrap && len > left;
        if wraps && !first {
            return Fit::NextBlock;
        }
        let end = self.head.lsn.plus(if wraps { left + len } else { len });
        if end > self.end_max(purpose) {
            return if first {
                Fit::Room(end)
            } else {
                Fit::NextBlock
            };
        }
        if rules().window_persisted && end > self.header.limit {
            return if first {
                Fit::Limit(end)
            } else {
                Fit::NextBlock
            };
        }
        if wraps { Fit::NextLap } else { Fit::Yes }
    }

    fn draft_state(&mut self, draft: &mut Draft, stream: StreamId) {
        let trimmed = self
            .index_ref()
            .usage_of(stream)
            .map_or(Seq::ZERO, |usage| usage.trimmed);
        // What earlier blocks hold, and what this block has taken so far comes only behind its states.
        let next = self
            .streams
            .get(&stream)
            .map_or(trimmed, |state| state.assigned);
        draft.states.push((stream, trimmed));
        draft.entries.push(NewEntry {
            kind: EntryKind::State { next },
            stream,
            seq: trimmed,
            payload: Bytes::new(),
        });
    }

    fn draft_carried(&mut self, draft: &mut Draft) -> Fit {
        while let Some(stream) = self.carry.as_ref().and_then(|carry| carry.left.last()) {
            let stream = *stream;
            let fit = self.fit(draft, 0, Purpose::State);
            if matches!(fit, Fit::Room(_)) && self.in_flight.is_empty() {
                // The tail does not move this time: waiting for it would be waiting for ever.
                self.carry = None;
                return Fit::Yes;
            }
            if fit != Fit::Yes {
                return fit;
            }
            self.draft_state(draft, stream);
            draft.carried += 1;
            if let Some(carry) = &mut self.carry {
                carry.left.pop();
                carry.in_flight += 1;
            }
        }
        Fit::Yes
    }

    fn draft_syncs(&mut self, draft: &mut Draft) -> Fit {
        while let Some(sync) = self.syncs.front() {
            let (ticket, stream, below) = (sync.ticket, sync.stream, sync.below);
            let said = draft
                .states
                .iter()
                .any(|(own, trimmed)| *own == stream && *trimmed >= below);
            if !said {
                match self.fit(draft, 0, Purpose::SyncTrim) {
                    Fit::Yes => self.draft_state(draft, stream),
                    Fit::Room(_) => {
                        self.pressed = true;
                        if self.space_is_coming() {
                            // Records may be smaller than what is missing, relocation may go further: they are not held up.
                            return Fit::Yes;
                        }
                        self.syncs.pop_front();
                        let result = Err(TrimError::Full);
                        self.effects.push_back(Effect::Trimmed { ticket, result });
                        continue;
                    }
                    fit => return fit,
                }
            }
            draft.syncs.push(ticket);
            self.syncs.pop_front();
        }
        Fit::Yes
    }

    /// Relocated records go all at once or not at all: they come from blocks that took at least as much room.
    fn draft_relocated(&mut self, draft: &mut Draft) -> Fit {
        // A batch that waited for room when the log was closed stays where it is: a block behind the mark of the close would make the
        // next opening take the header for an old one.
        if self.phase != Phase::Running {
            return Fit::Yes;
        }
        let Some(batch) = self.relocation.ready() else {
            return Fit::Yes;
        };
        if !draft.entries.is_empty() {
            return Fit::NextBlock;
        }
        let records = batch.len() as u64;
        let bytes: u64 = batch.iter().map(|record| record.payload.len() as u64).sum();
        let entries = bytes + (records - 1) * ENTRY_BYTES as u64;
        match self.fit(draft, entries, Purpose::Relocation) {
            Fit::Yes => {}
            Fit::Room(_) => {
                // The tail moves first, over what has been moved so far; or trims have to come.
                self.pressed = true;
                self.relocation.blocked = true;
                return Fit::Yes;
            }
            fit => return fit,
        }
        for record in self.relocation.take() {
            self.relocation.moved += record.payload.len() as u64 + ENTRY_BYTES as u64;
            draft.payload_bytes += record.payload.len() as u64;
            draft.relocated.push(Relocated {
                stream: record.stream,
                seq: record.seq,
                bytes: record.payload.len() as u64 + ENTRY_BYTES as u64,
                from: record.from,
            });
            draft.entries.push(NewEntry {
                kind: EntryKind::Relocated,
                stream: record.stream,
                seq: record.seq,
                payload: record.payload,
            });
        }
        // On its own: records may not use the room that relocation may.
        Fit::NextBlock
    }

    fn draft_records(&mut self, draft: &mut Draft) -> Fit {
        let culprit = self.culprit();
        let share = self.share();
        while let Some(pending) = self.queue.front() {
            let bytes = pending.payload.len() as u64;
            if let Some(error) = self.turned_away(pending.stream, culprit) {
                self.refuse_front(error);
                continue;
            }
            if !draft.records.is_empty() && draft.payload_bytes + bytes > share {
                return Fit::NextBlock;
            }
            match self.fit(draft, bytes, Purpose::Append) {
                Fit::Yes => {}
                Fit::Room(_) => {
                    self.pressed = true;
                    if self.space_is_coming() || !self.in_flight.is_empty() {
                        return Fit::NextBlock;
                    }
                    self.refuse_front(AppendError::Full);
                    continue;
                }
                fit => return fit,
            }
            let Some(pending) = self.queue.pop_front() else {
                break;
            };
            self.queued_bytes -= bytes;
            self.relocation.moved = 0;
            let state = self.streams.entry(pending.stream).or_default();
            let seq = state.assigned;
            state.assigned = seq.plus(1);
            draft.payload_bytes += bytes;
            draft.records.push(Placed {
                ticket: pending.ticket,
                stream: pending.stream,
                seq,
                bytes: bytes + ENTRY_BYTES as u64,
            });
            draft.entries.push(NewEntry {
                kind: EntryKind::Record,
                stream: pending.stream,
                seq,
                payload: pending.payload,
            });
        }
        Fit::Yes
    }

    /// How many bytes of records the next block is to take.
    fn share(&self) -> u64 {
        let free = self.config.depth.saturating_sub(self.in_flight.len());
        self.queued_bytes
            .div_ceil(free.max(1) as u64)
            .max(SPREAD_BYTES_MIN)
    }

    /// Why a record of this stream gets no room, however small it is.
    fn turned_away(&self, stream: StreamId, culprit: Option<StreamId>) -> Option<AppendError> {
        if culprit == Some(stream) && rules().reserve {
            return Some(AppendError::StreamFull);
        }
        let streams = self.streams.len();
        let one_too_many = streams >= self.streams_max() && !self.streams.contains_key(&stream);
        one_too_many.then_some(AppendError::TooManyStreams { streams })
    }

    fn refuse_front(&mut self, error: AppendError) {
        if let Some(pending) = self.queue.pop_front() {
            self.queued_bytes -= pending.payload.len() as u64;
            let ticket = pending.ticket;
            self.effects.push_back(Effect::Refused { ticket, error });
        }
    }

    /// Fills what the last unit has left with trims that nobody has written yet.
    fn draft_spare_states(&mut self, draft: &mut Draft) {
        let size = |entries: usize| {
            let count = u32::try_from(entries).unwrap_or(u32::MAX);
            let used = data_bytes(count, draft.payload_bytes).unwrap_or(u64::MAX);
            self.ring.round_up(used)
        };
        let bytes = size(draft.entries.len());
        let free = (1..=SPARE_STATES_MAX)
            .take_while(|more| size(draft.entries.len() + more) == bytes)
            .count();
        let mut states = Vec::new();
        for _ in 0..free {
            let Some(stream) = self.index_mut().take_dirty() else {
                break;
            };
            if draft.states.iter().all(|(own, _)| *own != stream) {
                states.push(stream);
            }
        }
        // Behind the records of this block, so that the next number is the one behind them.
        for stream in states {
            self.draft_state(draft, stream);
        }
    }

    fn submit_data(&mut self, mut draft: Draft, wall_ms: u64) -> Write {
        self.draft_spare_states(&mut draft);
        let count = u32::try_from(draft.entries.len()).unwrap_or(u32::MAX);
        let used = data_bytes(count, draft.payload_bytes).unwrap_or(u64::MAX);
        let mut buf = self.buffer(self.ring.round_up(used));
        let header = self.block_header(BlockKind::Data, wall_ms);
        let (header, checksum) = block::encode(self.ring, header, &draft.entries, &mut buf);
        let mut block = InFlight::new(self.token(), &header, self.head.chain);
        block.records = draft.records;
        block.states = draft.states;
        block.syncs = draft.syncs;
        block.relocated = draft.relocated;
        block.carried = draft.carried;
        let offset = self.ring.physical(header.lsn);
        self.head = TailMark {
            lsn: header.end(),
            chain: checksum,
        };
        self.extend_early();
        self.send(block, offset, buf)
    }

    fn block_header(&self, kind: BlockKind, wall_ms: u64) -> BlockHeader {
        BlockHeader {
            kind,
            epoch: self.header.epoch,
            chain: self.head.chain,
            durable: self.acked.lsn,
            tail: self.header.tail,
            wall_ms,
            ..BlockHeader::gap_pad(self.id, 0, self.head.lsn, self.head.lsn, 0)
        }
    }

    fn submit_lap_pad(&mut self, wall_ms: u64) -> Write {
        let pad = BlockHeader {
            bytes: self.ring.left_in_lap(self.head.lsn),
            ..self.block_header(BlockKind::LapPad, wall_ms)
        };
        let chain_before = self.head.chain;
        self.head = TailMark {
            lsn: pad.end(),
            chain: pad.checksum(),
        };
        self.submit_pad(pad, chain_before)
    }

    fn submit_pad(&mut self, pad: BlockHeader, chain_before: u32) -> Write {
        let mut buf: AlignedBuf = self.buffer(self.ring.unit());
        block::encode_pad(self.ring, &pad, &mut buf);
        let block = InFlight::new(self.token(), &pad, chain_before);
        let offset = self.ring.physical(pad.lsn);
        self.send(block, offset, buf)
    }

    fn send(&mut self, block: InFlight, offset: u64, buf: AlignedBuf) -> Write {
        let token = block.token;
        self.in_flight.push_back(block);
        if !rules().relocate_before_tail {
            self.relocate_now();
        }
        if !rules().ack_after_durable {
            self.tell_last();
        }
        Write { token, offset, buf }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        Output,
        bench::{Bench, UNIT, payload, stream},
    };

    /// How many bytes each write takes when so many records are there at once.
    fn writes(records: u64, bytes: usize) -> Vec<usize> {
        let mut bench = Bench::new(4096);
        // Brings the window.
        bench.append(1, &payload(1, 0, 8)).expect("room");
        for seq in 0..records {
            let payload = Bytes::from(payload(1, seq, bytes));
            bench.core.append(100 + seq, stream(1), payload);
        }
        let mut writes = Vec::new();
        while let Some(Output::Write(write)) = bench.core.poll(7) {
            writes.push(write.buf.len());
        }
        // Without those of the header.
        writes.retain(|bytes| *bytes > UNIT);
        writes
    }

    #[test]
    fn what_is_queued_is_spread_over_the_free_writes_if_it_is_much() {
        // With header and directory one unit more than the records.
        assert_eq!(writes(8, 64 << 10), [132 << 10; 4]);
        assert_eq!(writes(64, 1 << 10), [72 << 10]);
        assert_eq!(writes(3, 64 << 10), [132 << 10, 68 << 10]);
        assert_eq!(writes(1, 900 << 10), [904 << 10]);
        assert_eq!(writes(2, 900 << 10), [904 << 10; 2]);
    }
}
