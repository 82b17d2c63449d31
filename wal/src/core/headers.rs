//! Header updates: one at a time, one copy after the other.

use crate::{
    AlignedBuf, Lsn,
    core::{Core, Effect, Phase, space::Purpose},
    device::Write,
    geometry::Slot,
    header::Header,
    index::TailMark,
    rules::rules,
};

/// What the next update is to change.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    /// A block up to here is waiting.
    pub(super) limit: Option<Lsn>,
    /// Everything that the log has to remember about what lies below is above.
    pub(super) tail: Option<TailMark>,
    /// The acknowledged end is to be known.
    pub(super) durable: bool,
    /// Nothing is in flight and nothing will be.
    pub(super) clean: bool,
}

/// An update under way.
#[derive(Debug)]
pub(super) struct Update {
    header: Header,
    /// Copies to be written, in this order.
    left: Vec<Slot>,
    in_flight: Vec<u64>,
    /// One copy is durable, the other is not.
    half: bool,
}

impl Update {
    pub(super) fn new(header: Header, order: [Slot; 2]) -> Update {
        let left = if rules().header_two_copies {
            order.to_vec()
        } else {
            vec![Slot::A]
        };
        Update {
            header,
            left,
            in_flight: Vec::new(),
            half: false,
        }
    }
}

impl Core {
    /// Asks for the limit to be moved so that a block may end at `end`, and for a window beyond it if there is room.
    pub(super) fn want_limit(&mut self, end: Lsn) {
        let beyond = self.head.lsn.plus(self.window);
        let limit = beyond.min(self.end_max(Purpose::Append)).max(end);
        if limit > self.header.limit {
            self.wanted.limit = self.wanted.limit.max(Some(limit));
        }
    }

    /// The mark of the close is on its way.
    pub(super) fn update_closes(&self) -> bool {
        self.update
            .as_ref()
            .is_some_and(|update| update.header.clean)
    }

    /// Moves the limit on before it is reached.
    pub(super) fn extend_early(&mut self) {
        let left = self.header.limit.since(self.head.lsn);
        let busy = self.update.is_some() || self.wanted.limit.is_some();
        if left < self.window / 2 && !busy {
            if self.in_flight.len() >= 2 {
                self.window = (self.window * 2).min(self.window_bytes_max());
            }
            self.want_limit(self.head.lsn);
        }
    }

    pub(super) fn poll_header(&mut self, wall_ms: u64) -> Option<Write> {
        if self.update.is_none() {
            let header = self.next_header(wall_ms)?;
            self.update = Some(Update::new(header, Slot::BOTH));
        }
        let one_by_one = rules().header_one_by_one;
        let update = self.update.as_mut()?;
        if update.left.is_empty() || (one_by_one && !update.in_flight.is_empty()) {
            return None;
        }
        let slot = update.left.remove(0);
        let offset = self.ring.header(slot);
        update.header.wall_ms = if update.half {
            update.header.wall_ms
        } else {
            wall_ms
        };
        self.next_token += 1;
        update.in_flight.push(self.next_token);
        let mut buf = AlignedBuf::zeroed(usize::try_from(self.ring.unit()).unwrap_or(0));
        update.header.encode(slot, offset, buf.as_mut_slice());
        Some(Write {
            token: self.next_token,
            offset,
            buf,
        })
    }

    fn next_header(&mut self, wall_ms: u64) -> Option<Header> {
        if self.phase == Phase::Opening {
            return None;
        }
        let wanted = std::mem::take(&mut self.wanted);
        let old = &self.header;
        let tail = wanted.tail.filter(|tail| tail.lsn > old.tail);
        let limit = wanted.limit.filter(|limit| *limit > old.limit);
        let durable = (wanted.durable || wanted.clean) && self.acked.lsn > old.durable;
        let clean = wanted.clean && !old.clean;
        if tail.is_none() && limit.is_none() && !durable && !clean {
            return None;
        }
        let mut header = Header {
            generation: old.generation + 1,
            clean: wanted.clean,
            durable: self.acked.lsn.max(old.durable),
            limit: limit.unwrap_or(old.limit),
            wall_ms,
            ..old.clone()
        };
        if let Some(tail) = tail {
            header.tail = tail.lsn;
            header.tail_chain = tail.chain;
            header.gaps.retain(|gap| gap.to > tail.lsn);
        }
        if wanted.clean {
            header.limit = self.head.lsn;
        }
        Some(header)
    }

    /// Whether the token was that of a header copy.
    pub(super) fn header_done(&mut self, token: u64) -> bool {
        let Some(update) = self.update.as_mut() else {
            return false;
        };
        let Some(position) = update.in_flight.iter().position(|own| *own == token) else {
            return false;
        };
        update.in_flight.swap_remove(position);
        update.half = true;
        let both = update.left.is_empty() && update.in_flight.is_empty();
        if both {
            if let Some(update) = self.update.take() {
                self.adopt(update.header);
            }
        } else if !rules().reuse_after_both_copies {
            self.header = update.header.clone();
        }
        true
    }

    /// Both copies hold this header: what it gives up may be used, what it allows may be written.
    fn adopt(&mut self, header: Header) {
        self.index_mut().forget_below(header.tail);
        self.header = header;
        self.pressed = false;
        self.relocation.blocked = false;
        match self.phase {
            Phase::Opening if self.gap_pad.is_none() => {
                self.phase = Phase::Running;
                self.effects.push_back(Effect::Opened);
            }
            Phase::Closing { ticket } if self.header.clean => {
                self.phase = Phase::Stopped(crate::error::Stopped::Closed);
                self.effects.push_back(Effect::Closed {
                    ticket,
                    result: Ok(()),
                });
            }
            _ => {}
        }
    }

    /// Once nothing is left to do, the header says so.
    pub(super) fn finish_closing(&mut self) {
        let closing = matches!(self.phase, Phase::Closing { .. });
        if closing && self.gap_pad.is_none() && self.is_quiet() {
            self.wanted.clean = true;
        }
    }
}
