//! How far each kind of block may go: what is kept free for whom.
//!
//! ```text
//! tail                          head                                        tail + ring
//! |  the log                     |  records  | sync_trim | relocation | state |
//! ```
//!
//! Records leave room for the marks of `sync_trim`, these for relocation, that for the state entries without which the tail can't move. Each tail
//! move frees at least twice what its state entries took, so the last room always comes back.

use crate::{
    Lsn, StreamId,
    block::{ENTRY_BYTES, data_bytes},
    core::{Core, Stuck},
    rules::rules,
};

/// A crash costs no more than this at first, in bytes; under load the window grows.
const WINDOW_BYTES_AT_FIRST: u64 = 8 << 20;

/// What a block is written for, from the one that has to leave most room to the one that may use all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    Append,
    SyncTrim,
    Relocation,
    State,
}

/// What an operator wants to know of a running log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The ring, in bytes.
    pub ring_bytes: u64,
    /// What of it records may fill; the rest is kept for relocation and marks.
    pub usable_bytes: u64,
    /// From the tail to the last block, in bytes.
    pub span_bytes: u64,
    /// Live records with their entries, in bytes.
    pub live_bytes: u64,
    pub live_records: u64,
    pub streams: usize,
    /// The stream with the most live bytes, once the log is so full that somebody has to be refused.
    pub culprit: Option<StreamId>,
    /// Live records that keep the tail and can't be read, so they can't be moved out of its way, in the order of the log. They are tried again.
    pub stuck: Vec<Stuck>,
    /// What was bad when it was read to be moved, and good when it was read again.
    pub read_again: u64,
    /// How often the ring has been gone round.
    pub laps: u64,
    pub durable: Lsn,
}

impl Core {
    /// The largest block that may have to be moved, in bytes.
    fn largest_block(&self) -> u64 {
        let record = data_bytes(1, self.header.record_bytes_max).unwrap_or(u64::MAX);
        self.ring.round_up(record).max(self.config.block_bytes_max)
    }

    /// What state entries for so many streams take, in bytes.
    pub(super) fn state_bytes(&self, streams: usize) -> u64 {
        let entries = streams as u64 * ENTRY_BYTES as u64;
        let blocks = entries / self.config.block_bytes_max + 1;
        let overhead = data_bytes(0, 0).unwrap_or(0) + self.ring.unit();
        self.ring.round_up(entries + blocks * overhead)
    }

    fn state_room(&self) -> u64 {
        // Each crash in a tail move costs once what its entries take.
        let crashes = self.ring.round_down(self.ring.bytes() / 128);
        2 * self.state_bytes(self.streams.len()) + crashes.max(4 * self.ring.unit())
    }

    fn sync_room(&self) -> u64 {
        self.ring
            .round_up(self.ring.bytes() / 64)
            .max(4 * self.ring.unit())
    }

    /// What is kept free of blocks with this purpose, in bytes.
    fn reserve(&self, purpose: Purpose) -> u64 {
        if !rules().reserve {
            return 0;
        }
        let state = self.state_room();
        let relocation = 3 * self.largest_block();
        match purpose {
            Purpose::State => 0,
            Purpose::Relocation => state,
            Purpose::SyncTrim => state + relocation,
            Purpose::Append => state + relocation + self.sync_room(),
        }
    }

    /// A block with this purpose may end here at most, by the tail that is durable.
    pub(super) fn end_max(&self, purpose: Purpose) -> Lsn {
        let free = if rules().no_overwrite {
            self.ring.bytes()
        } else {
            self.ring.bytes() * 2
        };
        let tail = self.header.tail;
        tail.plus(free.saturating_sub(self.reserve(purpose)))
    }

    /// What records may fill, in bytes.
    pub(super) fn usable(&self) -> u64 {
        self.ring
            .bytes()
            .saturating_sub(self.reserve(Purpose::Append))
    }

    /// From the lowest live record to the head, in bytes.
    pub(super) fn span(&self) -> u64 {
        self.head.lsn.since(self.tail_candidate().lsn)
    }

    /// Most of what records may fill is used, and not by dead ones.
    pub(super) fn culprit(&self) -> Option<StreamId> {
        let index = self.index_ref();
        let usable = self.usable();
        let tail = index.tail().map_or(self.acked.lsn, |tail| tail.lsn);
        let span = self.head.lsn.since(tail);
        let crowded = span > usable / 4 * 3 && index.live_bytes() >= usable / 2;
        if !crowded {
            return None;
        }
        index
            .streams()
            .max_by_key(|(id, usage)| (usage.live_bytes, *id))
            .map(|(id, _)| id)
    }

    /// The streams that the log has room for: their state entries are written once a lap for ever.
    pub(super) fn streams_max(&self) -> usize {
        let streams = self.ring.bytes() / 16 / ENTRY_BYTES as u64;
        usize::try_from(streams).unwrap_or(usize::MAX)
    }

    /// How full the log is, and because of whom.
    pub fn usage(&self) -> Usage {
        let culprit = self.culprit();
        let index = self.index_ref();
        Usage {
            ring_bytes: self.ring.bytes(),
            usable_bytes: self.usable(),
            span_bytes: self.head.lsn.since(self.header.tail),
            live_bytes: index.live_bytes(),
            live_records: index.live_records(),
            streams: index.stream_count(),
            culprit,
            stuck: self.stuck(),
            read_again: self.relocation.read_again,
            laps: self.ring.lap(self.head.lsn),
            durable: self.acked.lsn,
        }
    }

    pub(super) fn window_bytes_min(&self) -> u64 {
        let ring = self.ring.bytes();
        let default = (ring / 64)
            .min(WINDOW_BYTES_AT_FIRST)
            .max(2 * self.config.block_bytes_max);
        let asked = self.config.window_bytes_min.unwrap_or(default);
        self.ring.round_up(asked).min(self.window_bytes_max())
    }

    pub(super) fn window_bytes_max(&self) -> u64 {
        let ring = self.ring.bytes();
        let default = (ring / 8)
            .min(64 << 20)
            .max(2 * self.config.block_bytes_max);
        let asked = self.config.window_bytes_max.unwrap_or(default);
        self.ring.round_up(asked).clamp(self.ring.unit(), ring / 2)
    }
}
