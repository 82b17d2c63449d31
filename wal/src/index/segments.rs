//! How much is live in each stretch of the ring, and where the first block of each stretch begins: what decides how far the tail may go.

use std::collections::VecDeque;

use crate::Lsn;

/// A position where a block begins, with what the chain needs to go on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailMark {
    pub lsn: Lsn,
    /// The checksum of the block before.
    pub chain: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    first: Option<(Lsn, u32)>,
    live_records: u64,
    live_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Segments {
    bytes: u64,
    /// The number of the first segment in `list`.
    base: u64,
    list: VecDeque<Segment>,
    live_records: u64,
    live_bytes: u64,
}

impl Segments {
    pub(super) fn new(bytes: u64, tail: TailMark) -> Segments {
        Segments {
            bytes,
            base: tail.lsn.get() / bytes,
            list: VecDeque::new(),
            live_records: 0,
            live_bytes: 0,
        }
    }

    fn at(&mut self, lsn: Lsn) -> Option<&mut Segment> {
        let number = lsn.get() / self.bytes;
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        if index >= self.list.len() {
            self.list.resize(index + 1, Segment::default());
        }
        self.list.get_mut(index)
    }

    pub(super) fn begin_block(&mut self, lsn: Lsn, chain: u32) {
        if let Some(segment) = self.at(lsn)
            && segment.first.is_none()
        {
            segment.first = Some((lsn, chain));
        }
    }

    pub(super) fn add(&mut self, lsn: Lsn, records: u64, bytes: u64) {
        if let Some(segment) = self.at(lsn) {
            segment.live_records += records;
            segment.live_bytes += bytes;
            self.live_records += records;
            self.live_bytes += bytes;
        }
    }

    pub(super) fn remove(&mut self, lsn: Lsn, records: u64, bytes: u64) {
        if let Some(segment) = self.at(lsn) {
            segment.live_records = segment.live_records.saturating_sub(records);
            segment.live_bytes = segment.live_bytes.saturating_sub(bytes);
            self.live_records = self.live_records.saturating_sub(records);
            self.live_bytes = self.live_bytes.saturating_sub(bytes);
        }
    }

    pub(super) fn tail(&self) -> Option<TailMark> {
        self.list
            .iter()
            .find(|segment| segment.live_records > 0)
            .and_then(|segment| segment.first)
            .map(|(lsn, chain)| TailMark { lsn, chain })
    }

    pub(super) fn forget_below(&mut self, tail: Lsn) {
        while let Some(first) = self.list.front() {
            if (self.base + 1) * self.bytes > tail.get() || first.live_records > 0 {
                return;
            }
            self.list.pop_front();
            self.base += 1;
        }
    }

    pub(super) const fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(super) const fn live_records(&self) -> u64 {
        self.live_records
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.list.capacity() * size_of::<Segment>()
    }
}
