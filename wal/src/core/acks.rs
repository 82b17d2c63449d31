//! Blocks in flight, and what happens when they are durable: in the order of the log, never before their predecessors.

use crate::{
    AlignedBuf, Lsn, Seq, StreamId,
    block::BlockHeader,
    core::{Core, Effect, Phase},
    index::{Run, TailMark},
    rules::rules,
};

/// A record in a block in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) ticket: u64,
    pub(super) stream: StreamId,
    pub(super) seq: Seq,
    /// With its entry.
    pub(super) bytes: u64,
}

/// A copy in a block in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relocated {
    pub(super) stream: StreamId,
    pub(super) seq: Seq,
    pub(super) bytes: u64,
    /// The block it was copied from.
    pub(super) from: Lsn,
}

/// A block in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) token: u64,
    lsn: Lsn,
    end: TailMark,
    chain_before: u32,
    done: bool,
    /// Its callers have been told.
    pub(super) told: bool,
    buf: Option<AlignedBuf>,
    pub(super) records: Vec<Placed>,
    pub(super) states: Vec<(StreamId, Seq)>,
    pub(super) syncs: Vec<u64>,
    pub(super) relocated: Vec<Relocated>,
    pub(super) carried: usize,
}

impl InFlight {
    pub(super) fn new(token: u64, header: &BlockHeader, chain_before: u32) -> InFlight {
        InFlight {
            token,
            lsn: header.lsn,
            end: TailMark {
                lsn: header.end(),
                chain: header.checksum(),
            },
            chain_before,
            done: false,
            told: false,
            buf: None,
            records: Vec::new(),
            states: Vec::new(),
            syncs: Vec::new(),
            relocated: Vec::new(),
            carried: 0,
        }
    }
}

impl Core {
    pub(super) fn block_done(&mut self, token: u64, buf: AlignedBuf) {
        let Some(position) = self.in_flight.iter().position(|block| block.token == token) else {
            return;
        };
        self.in_flight[position].done = true;
        self.in_flight[position].buf = Some(buf);
        if !rules().ack_in_order {
            self.tell(position);
        }
        while self.in_flight.front().is_some_and(|block| block.done) {
            self.tell(0);
            if let Some(block) = self.in_flight.pop_front() {
                self.acknowledge(block);
            }
        }
    }

    /// Tells the callers of a block that their records are durable.
    fn tell(&mut self, position: usize) {
        let Some(block) = self.in_flight.get_mut(position) else {
            return;
        };
        if std::mem::replace(&mut block.told, true) {
            return;
        }
        let lsn = block.lsn;
        self.effects
            .extend(block.records.iter().map(|record| Effect::Appended {
                ticket: record.ticket,
                stream: record.stream,
                lsn,
                seq: record.seq,
            }));
        self.effects
            .extend(block.syncs.iter().map(|ticket| Effect::Trimmed {
                ticket: *ticket,
                result: Ok(()),
            }));
    }

    /// Only where a rule is switched off.
    pub(super) fn tell_last(&mut self) {
        self.tell(self.in_flight.len().saturating_sub(1));
    }

    fn acknowledge(&mut self, block: InFlight) {
        let lsn = block.lsn;
        self.acked = block.end;
        {
            let mut index = self.index_mut();
            index.begin_block(lsn, block.chain_before);
            for (stream, run) in runs(lsn, &block.records) {
                index.place(stream, run);
            }
            for (stream, run, from) in copies(lsn, &block.relocated) {
                index.relocate(stream, run, from);
            }
        }
        for (stream, trimmed) in &block.states {
            self.streams.entry(*stream).or_default().written = Some((lsn, *trimmed));
        }
        if let Some(carry) = &mut self.carry {
            carry.in_flight = carry.in_flight.saturating_sub(block.carried);
        }
        if !block.relocated.is_empty() {
            self.relocation.landed();
        }
        if self.gap_pad.is_some_and(|pad| pad.lsn == lsn) {
            self.gap_pad = None;
            if self.phase == Phase::Opening {
                self.phase = Phase::Running;
                self.effects.push_back(Effect::Opened);
            }
        }
        if let Some(buf) = block.buf {
            self.effects.push_back(Effect::Durable { lsn, buf });
        }
    }

    /// Only where a rule is switched off: the copies count before they are durable.
    pub(super) fn relocate_now(&mut self) {
        let Some(block) = self.in_flight.back() else {
            return;
        };
        let mut index = self.index_mut();
        index.begin_block(block.lsn, block.chain_before);
        for (stream, run, from) in copies(block.lsn, &block.relocated) {
            index.relocate(stream, run, from);
        }
    }
}

/// The records of a block as runs.
fn runs(lsn: Lsn, records: &[Placed]) -> Vec<(StreamId, Run)> {
    let mut runs: Vec<(StreamId, Run)> = Vec::new();
    for record in records {
        match runs.last_mut() {
            Some((stream, run)) if *stream == record.stream && run.end() == record.seq => {
                run.count += 1;
                run.bytes += record.bytes;
            }
            _ => runs.push((
                record.stream,
                Run {
                    first: record.seq,
                    count: 1,
                    lsn,
                    bytes: record.bytes,
                },
            )),
        }
    }
    runs
}

/// The copies of a block as runs, each with the block it came from.
fn copies(lsn: Lsn, copies: &[Relocated]) -> Vec<(StreamId, Run, Lsn)> {
    let mut runs: Vec<(StreamId, Run, Lsn)> = Vec::new();
    for copy in copies {
        match runs.last_mut() {
            Some((stream, run, from))
                if *stream == copy.stream && run.end() == copy.seq && *from == copy.from =>
            {
                run.count += 1;
                run.bytes += copy.bytes;
            }
            _ => runs.push((
                copy.stream,
                Run {
                    first: copy.seq,
                    count: 1,
                    lsn,
                    bytes: copy.bytes,
                },
                copy.from,
            )),
        }
    }
    runs
}
