//! How a log that was found goes on: the header of the new epoch, and the gap before it.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    StreamId,
    block::{self, BlockHeader},
    core::{Core, StreamState},
    device::Write,
    header::{GAPS_MAX, Gap, Header},
    recovery::Scanned,
    rules::rules,
};

/// What is known of the streams that were found.
pub(super) fn stream_states(scanned: &Scanned) -> BTreeMap<StreamId, StreamState> {
    let mut streams: BTreeMap<StreamId, StreamState> = scanned
        .index
        .streams()
        .map(|(id, usage)| {
            let state = StreamState {
                assigned: usage.next,
                written: None,
            };
            (id, state)
        })
        .collect();
    for (id, lsn, trimmed) in &scanned.states {
        streams.entry(*id).or_default().written = Some((*lsn, *trimmed));
    }
    streams
}

/// How a new epoch begins.
pub(super) struct Opening {
    pub(super) header: Header,
    /// Over the gap, if there is one.
    pub(super) pad: Option<BlockHeader>,
    /// Pads over older gaps that are missing: an opening died before it wrote its own, or a late write of a dead process lies over it.
    pub(super) mends: VecDeque<BlockHeader>,
}

/// The header of the new epoch. It begins at the old limit and allows no block yet, so an opening that writes none costs nothing.
pub(super) fn opening(scanned: &Scanned) -> Opening {
    let old = &scanned.header;
    let epoch = old.epoch + 1;
    let (end, start) = (scanned.end, old.limit);
    let mut gaps: Vec<Gap> = old
        .gaps
        .iter()
        .copied()
        .filter(|gap| gap.to > old.tail)
        .collect();
    let mut pad = None;
    if start > end.lsn && rules().epoch_gap {
        // A gap right behind another is one with it.
        let (from, chain) = match (gaps.last(), scanned.last_gap) {
            (Some(last), Some((seen, chain))) if last.to == end.lsn && *last == seen => {
                gaps.pop();
                (seen.from, chain)
            }
            _ => (end.lsn, end.chain),
        };
        if gaps.len() == GAPS_MAX {
            // The walk relies on its pad from now on, so it has to be there. Each opening writes those that are missing.
            let has_pad = |gap: &Gap| scanned.padless.iter().all(|pad| pad.lsn != gap.from);
            let forgotten = gaps.iter().position(has_pad).unwrap_or(0);
            gaps.remove(forgotten);
        }
        gaps.push(Gap {
            from,
            to: start,
            epoch,
        });
        pad = Some(BlockHeader::gap_pad(old.id, epoch, from, start, chain));
    }
    let header = Header {
        generation: old.generation + 1,
        epoch,
        clean: false,
        limit: start,
        // What the caller is shown after opening may never be cut off later, acknowledged or not.
        durable: if rules().epoch_gap { start } else { end.lsn },
        reservation_key: scanned.reservation_key,
        gaps,
        ..old.clone()
    };
    // What is at the place of the new pad is written by that.
    let is_older = |old: &&BlockHeader| pad.is_none_or(|pad| pad.lsn != old.lsn);
    let mends = scanned.padless.iter().filter(is_older).copied().collect();
    Opening { header, pad, mends }
}

impl Core {
    /// The next pad of an old gap that is missing. Only when both header copies name the gap: a copy that is older would take the pad for proof that
    /// it is too old.
    pub(super) fn poll_mend(&mut self) -> Option<Write> {
        if self.mend_in_flight.is_some() || self.update.is_some() {
            return None;
        }
        let pad = self.mends.pop_front()?;
        let mut buf = self.buffer(self.ring.unit());
        block::encode_pad(self.ring, &pad, &mut buf);
        let token = self.token();
        self.mend_in_flight = Some(token);
        Some(Write {
            token,
            offset: self.ring.physical(pad.lsn),
            buf,
        })
    }

    /// Old pads are being written: everything else waits.
    pub(super) fn is_mending(&self) -> bool {
        self.mend_in_flight.is_some()
    }

    /// Whether the token was that of an old pad.
    pub(super) fn mend_done(&mut self, token: u64) -> bool {
        let own = self.mend_in_flight == Some(token);
        if own {
            self.mend_in_flight = None;
        }
        own
    }
}
