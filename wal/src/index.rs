//! Where the live records lie: for each stream the blocks that hold its numbers, and for each stretch of the ring what is live in it.
//!
//! A *run* is what one block holds of one stream without a gap. Runs are kept in Seq order as differences of a few bytes each, so that
//! 10 GiB of records of 1 KiB take less than 64 MiB even if each record has a block of its own. The bytes of a run that is trimmed or
//! moved in part are shared out by count; the sum stays right.

mod chunk;
mod segments;

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

use chunk::Chunk;
use segments::Segments;
pub use segments::TailMark;

use crate::{Lsn, Seq, StreamId, error::TrimError, geometry::Ring};

/// Records of one stream with consecutive numbers that lie in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: Seq,
    /// At least 1.
    pub count: u64,
    /// The block.
    pub lsn: Lsn,
    /// Bytes of payloads and directory entries.
    pub bytes: u64,
}

impl Run {
    /// The first number behind the run.
    pub const fn end(&self) -> Seq {
        self.first.plus(self.count)
    }

    /// The part before `at` and the part from `at` on.
    fn split(self, at: Seq) -> (Option<Run>, Option<Run>) {
        let count = at.since(self.first).min(self.count);
        let share = u128::from(self.bytes) * u128::from(count) / u128::from(self.count.max(1));
        let bytes = u64::try_from(share).unwrap_or(self.bytes);
        let part = |first, count, bytes| {
            (count > 0).then_some(Run {
                first,
                count,
                bytes,
                ..self
            })
        };
        (
            part(self.first, count, bytes),
            part(
                self.first.plus(count),
                self.count - count,
                self.bytes - bytes,
            ),
        )
    }
}

/// What is known of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamUsage {
    /// Everything below is trimmed.
    pub trimmed: Seq,
    /// The number after the last durable record.
    pub next: Seq,
    /// Bytes of the live records with their directory entries.
    pub live_bytes: u64,
}

#[derive(Debug, Default)]
struct Stream {
    // Seq order; within a chunk without a gap, between chunks only while recovery is under way.
    chunks: VecDeque<Chunk>,
    /// The last run, not yet encoded: the next record often goes into the same block.
    open: Option<Run>,
    trimmed: Seq,
    next: Seq,
    live_bytes: u64,
    /// Listed in [`Index::dirty`].
    dirty: bool,
}

/// The index of one log.
#[derive(Debug)]
pub struct Index {
    streams: HashMap<StreamId, Stream>,
    segments: Segments,
    unit: u64,
    /// Streams trimmed since their last state entry, oldest first, each once.
    dirty: VecDeque<StreamId>,
}

/// A stream whose numbers have a gap: a record is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    pub stream: StreamId,
    /// The first number that is not there.
    pub seq: Seq,
}

impl Index {
    /// An empty index of a log whose tail is at `tail`, before it a block with checksum `chain`. `segment_bytes` is how finely the
    /// tail moves, a multiple of the unit.
    pub fn new(ring: Ring, segment_bytes: u64, tail: TailMark) -> Index {
        Index {
            streams: HashMap::new(),
            segments: Segments::new(segment_bytes, tail),
            unit: ring.unit(),
            dirty: VecDeque::new(),
        }
    }

    /// How finely the tail of a ring moves: about 4096 steps a lap.
    pub fn segment_bytes(ring: Ring) -> u64 {
        ring.round_up((ring.bytes() / 4096).max(1))
    }

    /// What a record of `bytes` counts for: its payload and its entry.
    pub const fn record_bytes(bytes: u32) -> u64 {
        bytes as u64 + crate::block::ENTRY_BYTES as u64
    }

    /// A block begins at `lsn`, behind one with checksum `chain`. Called for each block in LSN order, pads as well.
    pub fn begin_block(&mut self, lsn: Lsn, chain: u32) {
        self.segments.begin_block(lsn, chain);
    }

    /// Takes a durable run: one that follows the last of its stream, or one that moves numbers to another block. What is below the trim
    /// is left out.
    pub fn place(&mut self, id: StreamId, run: Run) {
        let unit = self.unit;
        let stream = self.streams.entry(id).or_default();
        let (_, Some(run)) = run.split(stream.trimmed) else {
            return;
        };
        self.segments.add(run.lsn, run.count, run.bytes);
        stream.live_bytes += run.bytes;
        if run.first >= stream.next {
            stream.push(unit, run);
        } else {
            stream.replace(unit, run, &mut self.segments);
        }
        stream.next = stream.next.max(run.end());
    }

    /// Takes only the part of `run` that still lies in the block `from`: what has been trimmed or moved meanwhile stays as it is.
    pub fn relocate(&mut self, id: StreamId, run: Run, from: Lsn) {
        let mut at = run.first;
        while at < run.end() {
            let Some(old) = self.locate(id, at) else {
                at = at.plus(1);
                continue;
            };
            let end = old.end().min(run.end());
            if old.lsn == from {
                let (_, part) = run.split(at);
                if let Some(part) = part.and_then(|part| part.split(end).0) {
                    self.place(id, part);
                }
            }
            at = end;
        }
    }

    /// Everything below `below` is trimmed, as a state entry says; `next` is the least number the stream goes on with.
    pub fn set_state(&mut self, id: StreamId, below: Seq, next: Seq) {
        self.streams.entry(id).or_default();
        self.trim(id, below);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.next = stream.next.max(next);
        }
    }

    /// Lets everything below `below` go, returns the trim that holds now. `None`: the stream is not known.
    pub fn trim(&mut self, id: StreamId, below: Seq) -> Option<Seq> {
        let stream = self.streams.get_mut(&id)?;
        if below > stream.trimmed {
            stream.cut_front(self.unit, below, &mut self.segments);
            stream.trimmed = below;
            stream.next = stream.next.max(below);
            if !stream.dirty {
                stream.dirty = true;
                self.dirty.push_back(id);
            }
        }
        Some(stream.trimmed)
    }

    /// [`Index::trim`] for a caller: only what is durable can be trimmed, or a later record would be born trimmed.
    pub fn try_trim(&mut self, id: StreamId, below: Seq) -> Result<Seq, TrimError> {
        let next = self
            .streams
            .get(&id)
            .map(|stream| stream.next)
            .ok_or(TrimError::UnknownStream)?;
        if below > next {
            return Err(TrimError::BeyondEnd { next });
        }
        self.trim(id, below).ok_or(TrimError::UnknownStream)
    }

    /// Takes the stream that has waited longest for its trim to be written.
    pub fn take_dirty(&mut self) -> Option<StreamId> {
        let id = self.dirty.pop_front()?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.dirty = false;
        }
        Some(id)
    }

    /// The run that holds `seq`, or `None` if it is trimmed or not durable yet.
    pub fn locate(&self, id: StreamId, seq: Seq) -> Option<Run> {
        let stream = self.streams.get(&id)?;
        if let Some(open) = stream.open
            && open.first <= seq
        {
            return (seq < open.end()).then_some(open);
        }
        let after = stream.chunks.partition_point(|chunk| chunk.first() <= seq);
        let chunk = stream.chunks.get(after.checked_sub(1)?)?;
        chunk.runs(self.unit).find(|run| seq < run.end())
    }

    /// The live runs of the blocks in a stretch of the log, in no order. Goes through the whole index: for when something is damaged.
    pub fn live_in(&self, blocks: &Range<Lsn>) -> Vec<(StreamId, Run)> {
        let unit = self.unit;
        let of = |stream: &Stream| {
            let sealed = stream.chunks.iter().flat_map(|chunk| chunk.runs(unit));
            let runs = sealed.chain(stream.open);
            runs.filter(|run| blocks.contains(&run.lsn))
                .collect::<Vec<_>>()
        };
        let streams = self.streams.iter();
        streams
            .flat_map(|(id, stream)| of(stream).into_iter().map(|run| (*id, run)))
            .collect()
    }

    pub fn usage_of(&self, id: StreamId) -> Option<StreamUsage> {
        self.streams.get(&id).map(Stream::usage)
    }

    /// All streams, in no order.
    pub fn streams(&self) -> impl Iterator<Item = (StreamId, StreamUsage)> + '_ {
        self.streams
            .iter()
            .map(|(id, stream)| (*id, stream.usage()))
    }

    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Bytes of all live records with their directory entries.
    pub fn live_bytes(&self) -> u64 {
        self.segments.live_bytes()
    }

    pub fn live_records(&self) -> u64 {
        self.segments.live_records()
    }

    /// The lowest position that recovery needs: the start of the first segment with a live record, or `None` if nothing is live.
    pub fn tail(&self) -> Option<TailMark> {
        self.segments.tail()
    }

    /// Forgets segments that end at or below `tail`.
    pub fn forget_below(&mut self, tail: Lsn) {
        self.segments.forget_below(tail);
    }

    /// The first gap in the numbers of a stream between its trim and its end, of the least such stream.
    pub fn missing(&self) -> Option<Missing> {
        self.streams
            .iter()
            .filter_map(|(id, stream)| {
                let seq = stream.missing()?;
                Some(Missing { stream: *id, seq })
            })
            .min_by_key(|missing| missing.stream)
    }

    /// The bytes that the index takes in memory.
    pub fn memory_bytes(&self) -> usize {
        let slot = size_of::<(StreamId, Stream)>() + 1;
        let streams: usize = self.streams.values().map(Stream::memory_bytes).sum();
        self.streams.capacity() * slot + streams + self.segments.memory_bytes()
    }
}

impl Stream {
    fn usage(&self) -> StreamUsage {
        StreamUsage {
            trimmed: self.trimmed,
            next: self.next,
            live_bytes: self.live_bytes,
        }
    }

    fn push(&mut self, unit: u64, run: Run) {
        match &mut self.open {
            Some(open) if open.lsn == run.lsn && open.end() == run.first => {
                open.count += run.count;
                open.bytes += run.bytes;
            }
            open => {
                if let Some(full) = open.replace(run) {
                    self.seal(unit, full);
                }
            }
        }
    }

    fn seal(&mut self, unit: u64, run: Run) {
        if let Some(last) = self.chunks.back_mut()
            && last.push(unit, run)
        {
            return;
        }
        if let Some(last) = self.chunks.back_mut() {
            last.shrink();
        }
        self.chunks.push_back(Chunk::new(unit, run));
    }

    /// Puts `run` in the place of whatever holds its numbers.
    fn replace(&mut self, unit: u64, run: Run, segments: &mut Segments) {
        if let Some(open) = self.open.take() {
            self.seal(unit, open);
        }
        let mut from = self
            .chunks
            .partition_point(|chunk| chunk.end() <= run.first);
        let to = self
            .chunks
            .partition_point(|chunk| chunk.first() < run.end());
        // A small neighbour is written again together with the run, or moved numbers would leave one chunk each.
        if from > 0 && self.chunks.get(from - 1).is_some_and(Chunk::is_small) {
            from -= 1;
        }
        let to = to.max(from);
        let mut runs: Vec<Run> = Vec::new();
        let mut placed = false;
        for old in self
            .chunks
            .range(from..to)
            .flat_map(|chunk| chunk.runs(unit))
        {
            let (before, rest) = old.split(run.first);
            let (lost, after) = rest.map_or((None, None), |rest| rest.split(run.end()));
            if let Some(lost) = lost {
                segments.remove(lost.lsn, lost.count, lost.bytes);
                self.live_bytes = self.live_bytes.saturating_sub(lost.bytes);
            }
            runs.extend(before);
            if !placed && (lost.is_some() || after.is_some()) {
                runs.push(run);
                placed = true;
            }
            runs.extend(after);
        }
        if !placed {
            let at = runs.partition_point(|old| old.first < run.first);
            runs.insert(at, run);
        }
        let mut chunks: Vec<Chunk> = Vec::new();
        for run in join(runs) {
            if !chunks.last_mut().is_some_and(|last| last.push(unit, run)) {
                chunks.push(Chunk::new(unit, run));
            }
        }
        chunks.iter_mut().for_each(Chunk::shrink);
        self.put_chunks(from, to, chunks);
    }

    /// Puts `chunks` in the place of those from `from` up to `to`. As a rule they are as many, and nothing else moves: a stream that is stuck may
    /// have tens of thousands, and readers wait meanwhile.
    fn put_chunks(&mut self, from: usize, to: usize, chunks: Vec<Chunk>) {
        let mut left = from;
        for chunk in chunks {
            match self.chunks.get_mut(left).filter(|_| left < to) {
                Some(old) => *old = chunk,
                None => self.chunks.insert(left, chunk),
            }
            left += 1;
        }
        if left < to {
            self.chunks.drain(left..to);
        }
    }

    fn cut_front(&mut self, unit: u64, below: Seq, segments: &mut Segments) {
        let live_bytes = &mut self.live_bytes;
        let mut let_go = |run: Run| {
            segments.remove(run.lsn, run.count, run.bytes);
            *live_bytes = live_bytes.saturating_sub(run.bytes);
        };
        while let Some(chunk) = self.chunks.front_mut() {
            if chunk.end() <= below {
                chunk.runs(unit).for_each(&mut let_go);
                self.chunks.pop_front();
                continue;
            }
            chunk.cut_front(unit, below, &mut let_go);
            break;
        }
        if self.chunks.is_empty() && self.chunks.capacity() > 16 {
            self.chunks = VecDeque::new();
        }
        if let Some(open) = self.open.take() {
            let (gone, kept) = open.split(below);
            gone.into_iter().for_each(&mut let_go);
            self.open = kept;
        }
    }

    fn missing(&self) -> Option<Seq> {
        let mut expected = self.trimmed;
        let pieces = self
            .chunks
            .iter()
            .map(|chunk| (chunk.first(), chunk.end()))
            .chain(self.open.map(|run| (run.first, run.end())));
        for (first, end) in pieces {
            if first != expected {
                return Some(expected);
            }
            expected = end;
        }
        (expected != self.next).then_some(expected)
    }

    fn memory_bytes(&self) -> usize {
        let chunks: usize = self.chunks.iter().map(Chunk::heap_bytes).sum();
        chunks + self.chunks.capacity() * size_of::<Chunk>()
    }
}

/// Joins neighbours that lie in one block.
fn join(runs: Vec<Run>) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.lsn == run.lsn && last.end() == run.first => {
                last.count += run.count;
                last.bytes += run.bytes;
            }
            _ => joined.push(run),
        }
    }
    joined
}

#[cfg(test)]
mod tests;
