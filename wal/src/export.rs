//! Rescue: what is intact on the device of a damaged log, whatever its headers say. Reads only.
//!
//! [`survey`] goes over every unit of the ring and notes each block whose header is sound, wherever it lies; [`Survey::records`]
//! then gives their records in the order of the log, each checked by itself. Neither follows the chain nor stops at damage, so
//! what comes out is everything that is intact, and it is for the reader to say what is missing: the streams' numbers
//! are dense. What recovery would have cut (blocks that were in flight and may never have been acknowledged) comes out too.
//!
//! The headers are asked only where the log begins and how large the device was. Without one, the newest block says the first
//! (its `tail`), and the device itself the second.

mod seqs;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

pub use seqs::SeqSet;

use crate::block::{self, Block, BlockHeader, BlockKind, EntryKind};
use crate::bytes_at::take;
use crate::device::DeviceGeometry;
use crate::geometry::{GeometryError, Ring};
use crate::header::{Gap, Header};
use crate::recovery::window::{Window, read_around};
use crate::recovery::{Headers, read_headers};
use crate::{AlignedBuf, Device, LogId, Lsn, Seq, StreamId};

/// How much is read at a time, in bytes.
const WINDOW_BYTES: u64 = 4 << 20;

/// How often progress is told, in bytes.
const PROGRESS_EVERY: u64 = 64 << 20;

/// What to look for.
#[derive(Clone, Debug, Default)]
pub struct SurveyOptions {
    /// Of which log. `None`: the one that the headers name, or else the one with the most blocks.
    pub id: Option<LogId>,
    /// The size of the device when it was formatted, in bytes; needed only where both headers are gone and the device is of
    /// another size today.
    pub formatted_bytes: Option<u64>,
    /// Also what the log had already let go of: blocks from before its tail, and records that were trimmed.
    pub include_released: bool,
}

/// Why there was nothing to look through.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// Not the device of a log.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Neither a header nor a single block. Look at another device; on the right one nothing can be rescued.
    #[error("no everlog log was found on this device")]
    NoLog,
    /// The device as a whole does not answer; sectors that can't be read are no error. Look at the device, then try again.
    #[error("device failed")]
    Io(#[from] io::Error),
}

/// Whether a block is a part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is, or nothing says otherwise.
    Log,
    /// Left over from before the tail: its records were trimmed or relocated.
    BeforeTail,
    /// Of an epoch that had ended before this place: written in flight by a process that died, and cut by the next one, which may
    /// have given the numbers of its records to others.
    Cut,
}

/// A block with a sound header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundBlock {
    pub lsn: Lsn,
    /// Where on the device it was found, in bytes.
    pub offset: u64,
    pub bytes: u64,
    pub epoch: u64,
    pub kind: BlockKind,
    pub standing: Standing,
    /// It lies where its LSN does not belong.
    pub is_misplaced: bool,
    /// Its directory and all its records match their checksums.
    pub is_intact: bool,
    /// It says how far streams are trimmed and numbered.
    has_states: bool,
}

/// What is on the device.
#[derive(Clone, Debug)]
pub struct Survey {
    pub id: LogId,
    pub ring: Ring,
    /// Both header copies.
    pub headers: Headers,
    /// Where the log begins. Blocks before are left over from earlier laps.
    pub tail: Lsn,
    /// In the order of the log; without those that are no part of it unless they were asked for.
    pub blocks: Vec<FoundBlock>,
    /// How far each stream is trimmed and numbered, as far as blocks say it.
    pub states: BTreeMap<StreamId, StreamState>,
    /// Bytes of the device that could not be read, narrowed to sectors, in order.
    pub unreadable: Vec<Range<u64>>,
    include_released: bool,
}

/// What state entries say of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// All records below are trimmed.
    pub trimmed_below: Seq,
    /// No record has had this number or a larger one by then.
    pub next: Seq,
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub struct FoundRecord<'a> {
    pub stream: StreamId,
    pub seq: Seq,
    /// Of its block.
    pub lsn: Lsn,
    pub epoch: u64,
    /// A copy that was made to free the tail.
    pub is_relocated: bool,
    /// What is left of a damaged one, if it is not intact.
    pub payload: &'a [u8],
    /// The payload matches its checksum.
    pub is_intact: bool,
    /// Another record with this number came out before it. Only one of them can have been acknowledged; as a rule it is the one of
    /// the later epoch.
    pub is_conflict: bool,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Records handed out as intact, each once.
    pub records: u64,
    /// Their payloads, in bytes.
    pub bytes: u64,
    /// What was handed out of each stream.
    pub streams: BTreeMap<StreamId, SeqSet>,
    /// Records known by their block's directory, of which no intact copy was found.
    pub damaged: Vec<(StreamId, Seq, Lsn)>,
    /// Blocks whose directory is damaged, so that nothing is known of their records.
    pub unknown_blocks: Vec<Lsn>,
    /// Records that came out as [`FoundRecord::is_conflict`], not counted in `records`.
    pub conflicts: u64,
}

/// Looks through the whole ring. `progress` is called with the bytes read so far and in all.
pub fn survey(
    device: &dyn Device,
    options: &SurveyOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Survey, SurveyError> {
    let headers = read_headers(device)?;
    let header = newest(&headers);
    let ring = match header.and_then(Header::ring) {
        Some(ring) => ring,
        None => of_device(device, options.formatted_bytes)?,
    };
    let mut scan = Scan {
        device,
        ring,
        wanted: options.id.or_else(|| header.map(|header| header.id)),
        by_log: BTreeMap::new(),
        unreadable: Vec::new(),
    };
    scan.run(progress)?;
    let unreadable = ranges(scan.unreadable, device.geometry());
    let known = options.id.or_else(|| header.map(|header| header.id));
    let most = || {
        let logs = scan.by_log.iter();
        logs.max_by_key(|(_, log)| log.blocks.len())
            .map(|(id, _)| *id)
    };
    let id = known.or_else(most).ok_or(SurveyError::NoLog)?;
    let log = scan.by_log.remove(&id).unwrap_or_default();
    let header = header.filter(|header| header.id == id);
    let tail = header.map_or(log.newest_tail, |header| header.tail);
    let mut blocks = log.blocks;
    let gaps = header.map_or(&[][..], |header| header.gaps.as_slice());
    let epochs = epoch_starts(&blocks, gaps);
    for block in &mut blocks {
        block.standing = if block.lsn < tail {
            Standing::BeforeTail
        } else if is_cut(block, &epochs) {
            Standing::Cut
        } else {
            Standing::Log
        };
    }
    let states = states_of(device, ring, id, &blocks)?;
    if !options.include_released {
        blocks.retain(|block| block.standing == Standing::Log);
    }
    blocks.sort_by_key(|block| (block.lsn, block.epoch, block.is_misplaced));
    Ok(Survey {
        id,
        ring,
        headers,
        tail,
        blocks,
        states,
        unreadable,
        include_released: options.include_released,
    })
}

/// What the blocks of the log say of its streams. What was cut was never acknowledged. Only now it is known which blocks count, so they are
/// read once more: all entries of a large log would not fit in memory.
fn states_of(
    device: &dyn Device,
    ring: Ring,
    id: LogId,
    blocks: &[FoundBlock],
) -> io::Result<BTreeMap<StreamId, StreamState>> {
    let mut states: BTreeMap<StreamId, StreamState> = BTreeMap::new();
    let end = readable_end(device, ring);
    let mut window = Window::new(device, ring, WINDOW_BYTES, last_unit(ring, end), None);
    let told = blocks
        .iter()
        .filter(|block| block.has_states && block.standing == Standing::Log);
    for found in told {
        // Places of the ring are those of its first lap, as in the scan.
        let at = found.offset.saturating_sub(ring.unit());
        let len = found.bytes.min(end.saturating_sub(at));
        let bytes = window.get(Lsn::new(at), len)?;
        let entries = BlockHeader::decode(ring, id, bytes)
            .ok()
            .and_then(|header| block::directory(&header, bytes));
        for entry in entries.into_iter().flatten() {
            if let EntryKind::State { next } = entry.kind {
                let known = states.entry(entry.stream).or_default();
                known.trimmed_below = known.trimmed_below.max(entry.seq);
                known.next = known.next.max(next);
            }
        }
    }
    Ok(states)
}

/// The bytes of the ring that the device has: one that has shrunk is read as far as it goes.
fn readable_end(device: &dyn Device, ring: Ring) -> u64 {
    let readable = device.geometry().bytes.saturating_sub(ring.unit());
    ring.round_down(readable.min(ring.bytes()))
}

fn last_unit(ring: Ring, end: u64) -> Lsn {
    Lsn::new(end.saturating_sub(ring.unit()))
}

/// Where each epoch begins: at its first block that is left, or where a header says.
fn epoch_starts(blocks: &[FoundBlock], gaps: &[Gap]) -> BTreeMap<u64, Lsn> {
    let of_blocks = blocks.iter().map(|block| (block.epoch, block.lsn));
    let of_gaps = gaps.iter().map(|gap| (gap.epoch, gap.from));
    let mut starts = BTreeMap::new();
    for (epoch, lsn) in of_blocks.chain(of_gaps) {
        let start = starts.entry(epoch).or_insert(lsn);
        *start = lsn.min(*start);
    }
    starts
}

/// Whether a later epoch begins at or before this block.
fn is_cut(block: &FoundBlock, epochs: &BTreeMap<u64, Lsn>) -> bool {
    let mut later = epochs.range(block.epoch.saturating_add(1)..);
    later.any(|(_, start)| *start <= block.lsn)
}

/// The sound copy that counts; of two that contradict each other, any.
fn newest(headers: &Headers) -> Option<&Header> {
    let sound = headers.a.as_ref().ok().into_iter().chain(&headers.b);
    sound.max_by_key(|header| header.age())
}

fn of_device(device: &dyn Device, formatted_bytes: Option<u64>) -> Result<Ring, GeometryError> {
    let geometry = device.geometry();
    Ring::of(DeviceGeometry {
        bytes: formatted_bytes.unwrap_or(geometry.bytes),
        ..geometry
    })
}

/// Offsets of sectors as ranges.
fn ranges(mut sectors: Vec<u64>, geometry: DeviceGeometry) -> Vec<Range<u64>> {
    let sector = u64::from(geometry.logical_sector.max(512));
    sectors.sort_unstable();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for start in sectors {
        match ranges.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(start + sector),
            _ => ranges.push(start..start + sector),
        }
    }
    ranges
}

/// What was found of one log.
#[derive(Default)]
struct LogScan {
    blocks: Vec<FoundBlock>,
    newest: Lsn,
    /// The tail as the newest block knew it.
    newest_tail: Lsn,
}

struct Scan<'a> {
    device: &'a dyn Device,
    ring: Ring,
    wanted: Option<LogId>,
    by_log: BTreeMap<LogId, LogScan>,
    /// Offsets of sectors.
    unreadable: Vec<u64>,
}

impl Scan<'_> {
    fn run(&mut self, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let unit = self.ring.unit();
        // Places of the ring are gone through as the positions of its first lap.
        let end = readable_end(self.device, self.ring);
        let limit = last_unit(self.ring, end);
        let mut window = Window::new(self.device, self.ring, WINDOW_BYTES, limit, None);
        let (mut at, mut told) = (0, 0);
        while at < end {
            if at >= told {
                progress(at, end);
                told = at + PROGRESS_EVERY;
            }
            let bytes = window.get(Lsn::new(at), unit)?;
            // Bytes without our magic are most of what a rescue looks at.
            let header = if take::<8>(bytes, 0) == block::MAGIC {
                let id = self.wanted.unwrap_or(LogId::new(take(bytes, 16)));
                BlockHeader::decode(self.ring, id, bytes).ok()
            } else {
                None
            };
            at += match header {
                Some(header) => self.block(&mut window, at, end - at, header)?,
                None => unit,
            };
        }
        progress(end, end);
        self.unreadable = window.all_unreadable();
        Ok(())
    }

    /// Notes a block and gives how far on the next one can begin: behind it if all of it is intact, since nothing can have
    /// overwritten a part of it then. Else in the next unit.
    fn block(
        &mut self,
        window: &mut Window<'_>,
        at: u64,
        readable: u64,
        header: BlockHeader,
    ) -> io::Result<u64> {
        let unit = self.ring.unit();
        let offset = self.ring.physical(Lsn::new(at));
        let log = self.by_log.entry(header.id).or_default();
        let mut found = FoundBlock {
            lsn: header.lsn,
            offset,
            bytes: header.bytes,
            epoch: header.epoch,
            kind: header.kind,
            standing: Standing::Log,
            is_misplaced: self.ring.physical(header.lsn) != offset,
            is_intact: true,
            has_states: false,
        };
        if header.lsn >= log.newest {
            (log.newest, log.newest_tail) = (header.lsn, header.tail);
        }
        if header.kind != BlockKind::Data {
            log.blocks.push(found);
            return Ok(unit);
        }
        // What is longer than what is left of the ring is not there as a whole.
        let len = header.bytes.min(readable);
        let opened = Block::open(header, window.get(Lsn::new(at), len)?);
        found.is_intact = opened.as_ref().is_some_and(|block| {
            block.padding_is_zero() && block.records().all(|record| record.intact)
        });
        let mut entries = opened.iter().flat_map(|block| &block.entries);
        found.has_states = entries.any(|entry| matches!(entry.kind, EntryKind::State { .. }));
        log.blocks.push(found);
        Ok(if found.is_intact { header.bytes } else { unit })
    }
}

impl Survey {
    /// Hands every record of the blocks from `from` on to `sink`, in the order of the log; intact ones once, also where the
    /// log holds a second copy, damaged ones as often as they are met. An error of `sink` ends it.
    ///
    /// `totals` goes on from what an earlier call put in it, so an interrupted rescue can be taken up again.
    pub fn records(
        &self,
        device: &dyn Device,
        from: Lsn,
        totals: &mut Totals,
        sink: &mut dyn FnMut(FoundRecord<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let data = self
            .blocks
            .iter()
            .filter(|block| block.kind == BlockKind::Data && block.lsn >= from);
        for found in data {
            self.records_of(device, found, totals, sink)?;
        }
        let streams = &totals.streams;
        let came_out_later = |stream: &StreamId, seq: Seq| {
            streams.get(stream).is_some_and(|seqs| seqs.contains(seq))
        };
        totals
            .damaged
            .retain(|(stream, seq, _)| !came_out_later(stream, *seq));
        Ok(())
    }

    /// Reads a block and shows it; `None` if its directory is damaged, or if it is a pad.
    pub fn with_block(
        &self,
        device: &dyn Device,
        found: &FoundBlock,
        show: &mut dyn FnMut(Option<&Block<'_>>),
    ) -> io::Result<()> {
        let bytes = read_block(device, found)?;
        let header = BlockHeader::decode(self.ring, self.id, bytes.as_slice()).ok();
        let header = header.filter(|header| header.kind == BlockKind::Data);
        let block = header.and_then(|header| Block::open(header, bytes.as_slice()));
        show(block.as_ref());
        Ok(())
    }

    fn records_of(
        &self,
        device: &dyn Device,
        found: &FoundBlock,
        totals: &mut Totals,
        sink: &mut dyn FnMut(FoundRecord<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let bytes = read_block(device, found)?;
        let opened = BlockHeader::decode(self.ring, self.id, bytes.as_slice())
            .ok()
            .and_then(|header| Block::open(header, bytes.as_slice()));
        let Some(block) = opened else {
            totals.unknown_blocks.push(found.lsn);
            return Ok(());
        };
        for record in block.records() {
            let entry = record.entry;
            let is_relocated = match entry.kind {
                EntryKind::Record => false,
                EntryKind::Relocated => true,
                EntryKind::State { .. } => continue,
            };
            if !self.include_released && self.is_trimmed(&entry.stream, entry.seq) {
                continue;
            }
            let mut is_conflict = false;
            if record.intact {
                let seqs = totals.streams.entry(entry.stream).or_default();
                if seqs.insert(entry.seq) {
                    totals.records += 1;
                    totals.bytes += u64::from(entry.bytes);
                } else if is_relocated {
                    continue;
                } else {
                    is_conflict = true;
                    totals.conflicts += 1;
                }
            } else {
                totals.damaged.push((entry.stream, entry.seq, found.lsn));
            }
            sink(FoundRecord {
                stream: entry.stream,
                seq: entry.seq,
                lsn: found.lsn,
                epoch: found.epoch,
                is_relocated,
                payload: record.payload,
                is_intact: record.intact,
                is_conflict,
            })?;
        }
        Ok(())
    }

    fn is_trimmed(&self, stream: &StreamId, seq: Seq) -> bool {
        let state = self.states.get(stream);
        state.is_some_and(|state| seq < state.trimmed_below)
    }

    /// The numbers of a stream of which no intact record came out: between the first that did and the last that is known to have
    /// been given.
    pub fn missing(&self, stream: &StreamId, totals: &Totals) -> Vec<Range<Seq>> {
        let next = self
            .states
            .get(stream)
            .map_or(Seq::ZERO, |state| state.next);
        let seqs = totals.streams.get(stream);
        let mut missing = seqs.map(SeqSet::gaps).unwrap_or_default();
        let damaged = totals.damaged.iter().filter(|(of, _, _)| of == stream);
        let last_damaged = damaged.clone().map(|(_, seq, _)| seq.plus(1)).max();
        let end = next.max(last_damaged.unwrap_or_default());
        let first_damaged = damaged.map(|(_, seq, _)| *seq).min();
        match seqs.and_then(|seqs| seqs.runs().last()) {
            Some(last) if last.end < end => missing.push(last.end..end),
            Some(_) => {}
            None => missing.extend(first_damaged.map(|first| first..end)),
        }
        // What is known to have been there before the first that came out.
        let first = seqs.and_then(|seqs| seqs.runs().next());
        if let (Some(first), Some(damaged)) = (first, first_damaged)
            && damaged < first.start
        {
            missing.insert(0, damaged..first.start);
        }
        missing
    }
}

/// The bytes of a block. What can't be read is zero, and fails its checksum.
fn read_block(device: &dyn Device, found: &FoundBlock) -> io::Result<AlignedBuf> {
    let readable = device.geometry().bytes.saturating_sub(found.offset);
    let len = match found.kind {
        BlockKind::Data => found.bytes.min(readable),
        BlockKind::LapPad | BlockKind::GapPad => 0,
    };
    let mut bytes = AlignedBuf::zeroed(usize::try_from(len).unwrap_or(0));
    let unreadable = &mut Vec::new();
    read_around(device, found.offset, bytes.as_mut_slice(), unreadable)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
