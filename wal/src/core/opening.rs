//! How a log that was found goes on: the header of the new epoch, and the gap before it.

use std::collections::BTreeMap;

use crate::{
    StreamId,
    block::BlockHeader,
    core::StreamState,
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
}

/// The header of the new epoch. It begins at the old limit and allows no block yet, so an opening that writes none costs nothing.
pub(super) fn opening(scanned: &Scanned, reservation_key: u64) -> Opening {
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
            // The walk relies on its pad from now on, so it has to be there.
            let forgotten = gaps
                .iter()
                .position(|gap| !scanned.padless.contains(gap))
                .unwrap_or(0);
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
        reservation_key,
        gaps,
        ..old.clone()
    };
    Opening { header, pad }
}
