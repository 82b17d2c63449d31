//! Moving the tail: state entries first, then the header.

use crate::{
    Lsn, Seq, StreamId,
    block::data_bytes,
    core::{Core, Phase, space::Purpose},
    index::TailMark,
    rules::rules,
};

/// State entries on their way above a tail that is to move.
#[derive(Debug)]
pub(super) struct Carry {
    target: TailMark,
    /// To be written.
    pub(super) left: Vec<StreamId>,
    /// Written and not yet acknowledged.
    pub(super) in_flight: usize,
}

impl Core {
    /// The lowest position with a live record; the acknowledged end if there is none.
    pub(super) fn tail_candidate(&self) -> TailMark {
        let live = if rules().tail_keeps_live {
            self.index_ref().tail()
        } else {
            None
        };
        live.unwrap_or(self.acked)
    }

    /// Begins to move the tail if that is worth it, and goes on with a move that is under way.
    pub(super) fn advance_tail(&mut self) {
        if self.phase != Phase::Running && !matches!(self.phase, Phase::Closing { .. }) {
            return;
        }
        if let Some(carry) = &self.carry {
            if carry.left.is_empty() && carry.in_flight == 0 {
                self.wanted.tail = Some(carry.target);
                self.carry = None;
            }
            return;
        }
        if self.update.is_some() || self.wanted.tail.is_some() || self.in_flight_pads() {
            return;
        }
        let target = self.tail_candidate();
        if target.lsn <= self.header.tail || !self.tail_is_wanted(target.lsn) {
            return;
        }
        if let Some(left) = self.worthwhile(target.lsn) {
            self.carry = Some(Carry {
                target,
                left,
                in_flight: 0,
            });
            // Nothing to carry: the header may move at once.
            self.advance_tail();
        }
    }

    /// The pad over the gap of this opening is not acknowledged yet: the tail stays where it is.
    fn in_flight_pads(&self) -> bool {
        self.gap_pad.is_some()
    }

    /// Space is needed soon, or much of it can be had.
    fn tail_is_wanted(&self, target: Lsn) -> bool {
        let usable = self.usable();
        let gain = target.since(self.header.tail);
        let left = self.end_max(Purpose::Append).since(self.head.lsn);
        self.pressed
            || gain >= (usable / 8).max(self.ring.unit())
            || left < (usable / 4).max(self.window)
    }

    /// The streams to be carried, or `None` if that takes more than half of what the move frees: the room for state entries has to come
    /// back with each move.
    pub(super) fn worthwhile(&self, target: Lsn) -> Option<Vec<StreamId>> {
        let streams = self.stale(target);
        let gain = target.since(self.header.tail);
        let cost = if streams.is_empty() {
            0
        } else {
            self.state_bytes(streams.len())
        };
        (gain > 0 && gain >= 2 * cost && self.states_fit(streams.len())).then_some(streams)
    }

    /// Whether there is room for these state entries at all. Each crash in a tail move costs what it had allowed for its entries; after very many
    /// there may be none left, and then nobody is to wait for it.
    fn states_fit(&self, streams: usize) -> bool {
        if streams == 0 {
            return true;
        }
        let count = u32::try_from(streams).unwrap_or(u32::MAX);
        let one_block = self.ring.round_up(data_bytes(count, 0).unwrap_or(u64::MAX));
        let bytes = if one_block <= self.config.block_bytes_max {
            one_block
        } else {
            self.state_bytes(streams)
        };
        let left = self.ring.left_in_lap(self.head.lsn);
        let skipped = if bytes > left { left } else { 0 };
        self.head.lsn.plus(skipped + bytes) <= self.end_max(Purpose::State)
    }

    /// The streams with a trim that no state entry at or above `target` says.
    fn stale(&self, target: Lsn) -> Vec<StreamId> {
        if !rules().state_carried {
            return Vec::new();
        }
        let index = self.index_ref();
        let written_down = |id: &StreamId, trimmed: Seq| {
            self.streams
                .get(id)
                .and_then(|state| state.written)
                .is_some_and(|(lsn, written)| lsn >= target && written >= trimmed)
        };
        let mut stale: Vec<StreamId> = index
            .streams()
            .filter(|(id, usage)| usage.trimmed > Seq::ZERO && !written_down(id, usage.trimmed))
            .map(|(id, _)| id)
            .collect();
        stale.sort_unstable();
        stale
    }

    /// Whether space is about to come free: then a record that does not fit waits instead of being refused.
    pub(super) fn space_is_coming(&self) -> bool {
        let target = self.tail_candidate().lsn;
        self.carry.is_some()
            || self.wanted.tail.is_some()
            || self.update.is_some()
            || self.worthwhile(target).is_some()
            || (self.phase == Phase::Running && !self.relocation.blocked && self.relocation_helps())
            || self
                .in_flight
                .iter()
                .any(|block| !block.relocated.is_empty())
    }
}
