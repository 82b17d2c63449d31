//! A few hundred runs of one stream, without a gap between them, as differences.

use crate::{Lsn, Seq, index::Run};

/// A chunk that has reached so many bytes takes no more runs.
const CHUNK_BYTES: usize = 1024;
/// One run takes at most three varints of 10 bytes.
const RUN_BYTES_MAX: usize = 30;

#[derive(Debug)]
pub(super) struct Chunk {
    first: Seq,
    end: Seq,
    /// The differences of LSNs begin here.
    base: Lsn,
    /// The LSN of the last run, so that the next one needs no decoding.
    last: Lsn,
    bytes: Vec<u8>,
}

impl Chunk {
    pub(super) fn new(unit: u64, run: Run) -> Chunk {
        let mut chunk = Chunk {
            first: run.first,
            end: run.first,
            base: run.lsn,
            last: run.lsn,
            bytes: Vec::new(),
        };
        let taken = chunk.push(unit, run);
        debug_assert!(taken, "an empty chunk takes any run");
        chunk
    }

    pub(super) const fn first(&self) -> Seq {
        self.first
    }

    pub(super) const fn end(&self) -> Seq {
        self.end
    }

    /// Takes a run that follows without a gap, unless the chunk is full.
    pub(super) fn push(&mut self, unit: u64, run: Run) -> bool {
        if run.first != self.end || self.bytes.len() + RUN_BYTES_MAX > CHUNK_BYTES {
            return false;
        }
        put_run(&mut self.bytes, unit, self.last, run);
        self.last = run.lsn;
        self.end = run.end();
        true
    }

    pub(super) fn is_small(&self) -> bool {
        self.bytes.len() < CHUNK_BYTES / 4
    }

    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
    }

    pub(super) fn runs(&self, unit: u64) -> Runs<'_> {
        Runs {
            unit,
            next: self.first,
            lsn: self.base,
            bytes: &self.bytes,
        }
    }

    /// Lets go of what is below `below`, which lies inside.
    pub(super) fn cut_front(&mut self, unit: u64, below: Seq, let_go: &mut impl FnMut(Run)) {
        let mut rest = self.runs(unit);
        let mut kept: Vec<u8> = Vec::new();
        while let Some(run) = rest.next() {
            let (gone, kept_part) = run.split(below);
            if let Some(gone) = gone {
                let_go(gone);
            }
            if let Some(part) = kept_part {
                if part == run && run.first == self.first {
                    return;
                }
                put_run(&mut kept, unit, part.lsn, part);
                kept.extend_from_slice(rest.bytes);
                self.first = part.first;
                self.base = part.lsn;
                break;
            }
        }
        self.bytes = kept;
    }

    pub(super) fn heap_bytes(&self) -> usize {
        // What the allocator keeps beside each piece.
        const ALLOCATION: usize = 16;
        self.bytes.capacity() + ALLOCATION
    }
}

/// The runs of a chunk in Seq order.
pub(super) struct Runs<'a> {
    unit: u64,
    next: Seq,
    lsn: Lsn,
    bytes: &'a [u8],
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let count = varint(&mut self.bytes)?;
        let difference = unzigzag(varint(&mut self.bytes)?);
        let bytes = varint(&mut self.bytes)?;
        let units = (self.lsn.get() / self.unit).wrapping_add_signed(difference);
        self.lsn = Lsn::new(units * self.unit);
        let run = Run {
            first: self.next,
            count,
            lsn: self.lsn,
            bytes,
        };
        self.next = run.end();
        Some(run)
    }
}

fn put_run(out: &mut Vec<u8>, unit: u64, before: Lsn, run: Run) {
    put_varint(out, run.count);
    let difference = (run.lsn.get() / unit).wrapping_sub(before.get() / unit);
    put_varint(out, zigzag(difference.cast_signed()));
    put_varint(out, run.bytes);
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7F) as u8);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
