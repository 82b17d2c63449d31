//! Goes along the chain of blocks from the tail, fills the index, and stops where the table of [`crate::recovery`] says.

use std::{collections::BTreeMap, io};

use crate::{
    Device, Lsn, Seq, StreamId,
    block::{Block, BlockFault, BlockHeader, BlockKind, Entry, EntryKind, checksum_of},
    error::{Corruption, OpenError},
    geometry::Ring,
    header::{Gap, Header},
    index::{Index, Run, TailMark},
    recovery::{
        Case, End, EndReason, ScanOptions, Visitor,
        evidence::{Evidence, Islands, Place, gather, impossible, place},
        window::{Helper, Window},
    },
    rules::rules,
};

/// What the walk found.
pub(super) struct Walked {
    pub(super) index: Index,
    pub(super) states: Vec<(StreamId, Lsn, Seq)>,
    pub(super) padless: Vec<BlockHeader>,
    pub(super) last_gap: Option<(Gap, u32)>,
    pub(super) end: End,
    pub(super) chain: u32,
    pub(super) blocks: u64,
    pub(super) records: u64,
    pub(super) damaged_dead: Vec<(StreamId, Seq)>,
    pub(super) padding_damaged: u64,
    pub(super) read_again: u64,
    pub(super) unreadable: Vec<u64>,
}

pub(super) struct Walk<'w, 'v> {
    ring: Ring,
    header: &'w Header,
    window: Window<'w>,
    visitor: Option<&'w mut Visitor<'v>>,
    cut_unreadable: bool,
    at: Lsn,
    chain: u32,
    epoch: u64,
    index: Index,
    states: BTreeMap<StreamId, (Lsn, Seq)>,
    padless: Vec<BlockHeader>,
    last_gap: Option<(Gap, u32)>,
    /// Damaged records of acknowledged blocks, with their block.
    damaged: Vec<(StreamId, Seq, Lsn)>,
    blocks: u64,
    records: u64,
    padding_damaged: u64,
    read_again: u64,
    /// What is known of the block at the end: see [`End::torn_bytes`].
    torn_bytes: u64,
}

/// What lies at the place of the next block.
enum Found {
    Sound(Taken),
    /// Header and directory are sound, some payloads are not.
    Damaged(Taken, Vec<(StreamId, Seq)>),
    Not(EndReason),
    Impossible(Case, String),
}

/// A block that may be part of the log.
struct Taken {
    header: BlockHeader,
    checksum: u32,
    entries: Vec<Entry>,
    padding_is_zero: bool,
}

/// How the walk goes on.
enum Next {
    On,
    End(End),
}

impl<'w, 'v> Walk<'w, 'v> {
    pub(super) fn new(
        device: &'w dyn Device,
        options: &ScanOptions,
        ring: Ring,
        header: &'w Header,
        visitor: Option<&'w mut Visitor<'v>>,
        helper: Option<Helper>,
    ) -> Walk<'w, 'v> {
        let tail = TailMark {
            lsn: header.tail,
            chain: header.tail_chain,
        };
        let segment_bytes = options.segment_bytes.map_or_else(
            || Index::segment_bytes(ring),
            |bytes| ring.round_up(bytes.max(1)),
        );
        Walk {
            ring,
            header,
            window: Window::new(device, ring, options.piece_bytes, header.limit, helper),
            visitor,
            cut_unreadable: options.cut_unreadable,
            at: tail.lsn,
            chain: tail.chain,
            epoch: 0,
            index: Index::new(ring, segment_bytes, tail),
            states: BTreeMap::new(),
            padless: Vec::new(),
            last_gap: None,
            damaged: Vec::new(),
            blocks: 0,
            records: 0,
            padding_damaged: 0,
            read_again: 0,
            torn_bytes: 0,
        }
    }

    pub(super) fn run(mut self) -> Result<Walked, OpenError> {
        let end = loop {
            if let Next::End(end) = self.step()? {
                break end;
            }
        };
        let damaged_dead = self.lost_or_dead(&end)?;
        if rules().dense
            && let Some(missing) = self.index.missing()
        {
            return Err(self.corrupt(
                Case::I,
                end.at,
                "every block is sound, yet a stream has a gap in its numbers".to_owned(),
                vec![(missing.stream, missing.seq)],
            ));
        }
        Ok(Walked {
            index: self.index,
            states: self
                .states
                .into_iter()
                .map(|(stream, (lsn, trimmed))| (stream, lsn, trimmed))
                .collect(),
            padless: self.padless,
            last_gap: self.last_gap,
            end,
            chain: self.chain,
            blocks: self.blocks,
            records: self.records,
            damaged_dead,
            padding_damaged: self.padding_damaged,
            read_again: self.read_again,
            unreadable: self.window.all_unreadable(),
        })
    }

    fn step(&mut self) -> Result<Next, OpenError> {
        let gap = self.header.gaps.iter().find(|gap| gap.from == self.at);
        if let Some(gap) = gap {
            self.jump(*gap)?;
            return Ok(Next::On);
        }
        let mut found = self.look()?;
        if !matches!(found, Found::Sound(_) | Found::Not(EndReason::Limit)) && rules().read_again {
            self.window.forget();
            found = self.look()?;
            if matches!(found, Found::Sound(_)) {
                self.read_again += 1;
            }
        }
        match found {
            Found::Sound(taken) => {
                self.take(taken)?;
                Ok(Next::On)
            }
            Found::Impossible(case, found) => Err(self.corrupt(case, self.at, found, Vec::new())),
            Found::Damaged(taken, lost) => self.damaged(taken, lost),
            Found::Not(reason) => self.stop(reason).map(Next::End),
        }
    }

    /// Case B.
    fn jump(&mut self, gap: Gap) -> Result<(), OpenError> {
        let pad = BlockHeader::gap_pad(self.header.id, gap.epoch, gap.from, gap.to, self.chain);
        let bytes = self.window.get(self.at, self.ring.unit())?;
        if BlockHeader::decode(self.ring, self.header.id, bytes) != Ok(pad) {
            self.padless.push(pad);
        }
        self.index.begin_block(self.at, self.chain);
        if let Some(visitor) = &mut self.visitor {
            visitor(&pad, None);
        }
        self.last_gap = Some((gap, self.chain));
        self.blocks += 1;
        self.epoch = gap.epoch;
        self.chain = pad.checksum();
        self.at = gap.to;
        Ok(())
    }

    fn look(&mut self) -> io::Result<Found> {
        self.torn_bytes = 0;
        let (ring, header, at) = (self.ring, self.header, self.at);
        // At the limit only what would prove the header too old is of interest, and there is none if the ring is full.
        if at.since(header.tail) >= ring.bytes() {
            return Ok(Found::Not(EndReason::Limit));
        }
        let first = self.window.get(at, ring.unit())?;
        let decoded = BlockHeader::decode(ring, header.id, first);
        let checksum = checksum_of(first);
        let block = match decoded {
            Ok(block) => block,
            Err(_) if at >= header.limit => return Ok(Found::Not(EndReason::Limit)),
            Err(_) if self.window.is_unreadable(at, ring.unit()) => {
                return Ok(Found::Not(EndReason::Unreadable));
            }
            Err(BlockFault::OtherLog(id)) => return Ok(Found::Not(EndReason::OtherLog(id))),
            Err(BlockFault::Checksum | BlockFault::Nonsense) => {
                return Ok(Found::Not(EndReason::HeaderChecksum));
            }
            Err(BlockFault::Foreign | BlockFault::Version(_)) => {
                return Ok(Found::Not(EndReason::Foreign));
            }
        };
        if let Some((case, found)) = impossible(ring, header, at, &block) {
            return Ok(Found::Impossible(case, found));
        }
        if at >= header.limit {
            return Ok(Found::Not(EndReason::Limit));
        }
        if place(ring, at, &block) != Place::Here && rules().stale_lap {
            return Ok(Found::Not(EndReason::Stale(block.lsn)));
        }
        self.torn_bytes = block.bytes;
        let follows = !rules().chain || block.chain == self.chain;
        if !follows || (rules().epoch_order && block.epoch < self.epoch) {
            return Ok(Found::Not(EndReason::Chain));
        }
        self.look_inside(block, checksum)
    }

    fn look_inside(&mut self, header: BlockHeader, checksum: u32) -> io::Result<Found> {
        let at = self.at;
        let bytes = header.written_bytes(self.ring.unit());
        let mut taken = Taken {
            header,
            checksum,
            entries: Vec::new(),
            padding_is_zero: true,
        };
        if header.kind != BlockKind::Data {
            return Ok(Found::Sound(taken));
        }
        // A block that a rule switched off has let wrap ends at the end of the lap.
        let readable = bytes.min(self.ring.left_in_lap(at));
        let read = self.window.get(at, readable)?;
        let Some(block) = Block::open(header, read) else {
            let unreadable = self.window.is_unreadable(at, readable);
            return Ok(Found::Not(if unreadable {
                EndReason::Unreadable
            } else {
                EndReason::Directory
            }));
        };
        let damaged: Vec<(StreamId, Seq)> = block
            .records()
            .filter(|record| !record.intact)
            .map(|record| (record.entry.stream, record.entry.seq))
            .collect();
        taken.padding_is_zero = block.padding_is_zero();
        taken.entries = block.entries;
        Ok(if damaged.is_empty() {
            Found::Sound(taken)
        } else {
            Found::Damaged(taken, damaged)
        })
    }

    /// Case A, and what is left of F.
    fn take(&mut self, taken: Taken) -> Result<(), OpenError> {
        let lsn = self.at;
        self.index.begin_block(lsn, self.chain);
        self.show(&taken)?;
        let mut run: Option<(StreamId, Run)> = None;
        for entry in &taken.entries {
            match entry.kind {
                EntryKind::State { next } => {
                    let newest = self.states.entry(entry.stream).or_insert((lsn, entry.seq));
                    *newest = (lsn, newest.1.max(entry.seq));
                    self.index.set_state(entry.stream, entry.seq, next);
                }
                EntryKind::Record => {
                    self.in_order(entry, run)?;
                    self.add(&mut run, lsn, entry);
                }
                EntryKind::Relocated if rules().dedupe => self.add(&mut run, lsn, entry),
                EntryKind::Relocated => {
                    let next = self.index.usage_of(entry.stream).map(|usage| usage.next);
                    let seq = next.unwrap_or(entry.seq);
                    self.add(&mut run, lsn, &Entry { seq, ..*entry });
                }
            }
        }
        if let Some((stream, run)) = run {
            self.index.place(stream, run);
        }
        self.blocks += 1;
        self.padding_damaged += u64::from(!taken.padding_is_zero);
        self.epoch = taken.header.epoch;
        self.chain = taken.checksum;
        self.at = self.at.plus(taken.header.bytes);
        Ok(())
    }

    fn show(&mut self, taken: &Taken) -> io::Result<()> {
        let Some(visitor) = &mut self.visitor else {
            return Ok(());
        };
        if taken.header.kind != BlockKind::Data {
            visitor(&taken.header, None);
            return Ok(());
        }
        let readable = taken.header.bytes.min(self.ring.left_in_lap(self.at));
        let bytes = self.window.get(self.at, readable)?;
        let block = Block::open(taken.header, bytes);
        visitor(&taken.header, block.as_ref());
        Ok(())
    }

    fn add(&mut self, run: &mut Option<(StreamId, Run)>, lsn: Lsn, entry: &Entry) {
        self.records += 1;
        let bytes = Index::record_bytes(entry.bytes);
        if let Some((stream, run)) = run
            && *stream == entry.stream
            && run.end() == entry.seq
        {
            run.count += 1;
            run.bytes += bytes;
            return;
        }
        let new = Run {
            first: entry.seq,
            count: 1,
            lsn,
            bytes,
        };
        if let Some((stream, full)) = run.replace((entry.stream, new)) {
            self.index.place(stream, full);
        }
    }

    /// Case J: numbers are given out once. A number that is left out is case I, unless a trim explains it.
    fn in_order(&self, entry: &Entry, run: Option<(StreamId, Run)>) -> Result<(), OpenError> {
        let in_run = run.and_then(|(stream, run)| (stream == entry.stream).then(|| run.end()));
        let next = in_run.or_else(|| self.index.usage_of(entry.stream).map(|usage| usage.next));
        match next {
            Some(next) if entry.seq < next && rules().once => Err(self.corrupt(
                Case::J,
                self.at,
                format!(
                    "record {} of stream {} comes after record {next} was due",
                    entry.seq, entry.stream
                ),
                Vec::new(),
            )),
            _ => Ok(()),
        }
    }

    /// Case F, if the block was acknowledged; else it is the end.
    fn damaged(&mut self, taken: Taken, lost: Vec<(StreamId, Seq)>) -> Result<Next, OpenError> {
        let behind = self.at.plus(taken.header.bytes);
        match gather(&mut self.window, self.ring, self.header, self.at, behind)? {
            Evidence::Acknowledged(_) => {
                let lsn = self.at;
                self.damaged
                    .extend(lost.into_iter().map(|(stream, seq)| (stream, seq, lsn)));
                self.take(taken)?;
                Ok(Next::On)
            }
            evidence => {
                let unreadable = self.window.is_unreadable(self.at, taken.header.bytes);
                let reason = if unreadable {
                    EndReason::Unreadable
                } else {
                    EndReason::Payload
                };
                self.decide(reason, evidence).map(Next::End)
            }
        }
    }

    fn stop(&mut self, reason: EndReason) -> Result<End, OpenError> {
        let behind = match reason {
            EndReason::Limit => self.at,
            _ => self.at.plus(self.ring.unit()),
        };
        let mut evidence = gather(&mut self.window, self.ring, self.header, self.at, behind)?;
        if !matches!(evidence, Evidence::None(_)) && rules().read_again {
            self.window.forget();
            evidence = gather(&mut self.window, self.ring, self.header, self.at, behind)?;
        }
        self.decide(reason, evidence)
    }

    /// Cases C, D, E, G, H and K.
    fn decide(&self, reason: EndReason, evidence: Evidence) -> Result<End, OpenError> {
        let end = |islands: Islands| End {
            case: if islands.blocks == 0 {
                Case::C
            } else {
                Case::D
            },
            at: self.at,
            offset: self.ring.physical(self.at),
            reason,
            torn_bytes: match reason {
                // Nothing of this log and lap begins here.
                EndReason::Limit
                | EndReason::Foreign
                | EndReason::OtherLog(_)
                | EndReason::Stale(_) => 0,
                EndReason::HeaderChecksum
                | EndReason::Directory
                | EndReason::Payload
                | EndReason::Chain
                | EndReason::Unreadable => self.torn_bytes.max(self.ring.unit()),
            },
            islands,
            is_cut_unread: false,
        };
        let refuse = |at: Lsn| OpenError::Unreadable {
            at,
            offset: self.ring.physical(at),
        };
        match evidence {
            Evidence::Acknowledged(why) => {
                let found = format!("{reason}, but {why}");
                Err(self.corrupt(Case::E, self.at, found, Vec::new()))
            }
            Evidence::Impossible { case, at, found } => {
                Err(self.corrupt(case, at, found, Vec::new()))
            }
            Evidence::Unreadable { at } if !self.cut_unreadable => Err(refuse(at)),
            Evidence::None(_) if reason == EndReason::Unreadable && !self.cut_unreadable => {
                Err(refuse(self.at))
            }
            Evidence::None(islands) => Ok(end(islands)),
            Evidence::Unreadable { .. } => Ok(End {
                is_cut_unread: true,
                ..end(Islands::default())
            }),
        }
    }

    /// The damaged records that nobody misses; an error if a live one is among them.
    fn lost_or_dead(&self, end: &End) -> Result<Vec<(StreamId, Seq)>, OpenError> {
        let (lost, dead): (Vec<_>, Vec<_>) =
            self.damaged
                .iter()
                .copied()
                .partition(|(stream, seq, lsn)| {
                    self.index
                        .locate(*stream, *seq)
                        .is_some_and(|run| run.lsn == *lsn)
                });
        let names = |list: Vec<(StreamId, Seq, Lsn)>| {
            list.into_iter()
                .map(|(stream, seq, _)| (stream, seq))
                .collect::<Vec<_>>()
        };
        match lost.first() {
            Some((_, _, lsn)) => Err(self.corrupt(
                Case::F,
                *lsn,
                format!(
                    "payloads of an acknowledged block are damaged; the log goes on to LSN {}",
                    end.at
                ),
                names(lost.clone()),
            )),
            None => Ok(names(dead)),
        }
    }

    fn corrupt(&self, case: Case, at: Lsn, found: String, lost: Vec<(StreamId, Seq)>) -> OpenError {
        OpenError::Corrupt(Box::new(Corruption {
            case,
            at,
            offset: self.ring.physical(at),
            found,
            lost,
        }))
    }
}
