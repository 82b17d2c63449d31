//! Looks behind a place where the walk can't go on: was what is missing there acknowledged?

use std::io;

use crate::{
    Lsn,
    block::BlockHeader,
    geometry::Ring,
    header::Header,
    recovery::{Case, window::Window},
    rules::rules,
};

/// Blocks behind the end of the log that were in flight and never acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Islands {
    pub blocks: u64,
    pub bytes: u64,
}

/// What lies behind a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Nothing says that the place was acknowledged.
    None(Islands),
    /// The place was acknowledged.
    Acknowledged(String),
    /// A block is where it can't be: what it says of the log, and the row of the table.
    Impossible { case: Case, at: Lsn, found: String },
    /// A part of what would have to be looked at can't be read.
    Unreadable { at: Lsn },
}

/// Where a block header belongs, judged at the place where it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Where it was read, in this lap.
    Here,
    /// Where it was read, in an earlier lap.
    Earlier,
    /// Where it was read, in a later lap.
    Later,
    /// Elsewhere.
    Elsewhere,
}

pub(super) fn place(ring: Ring, at: Lsn, block: &BlockHeader) -> Place {
    if ring.physical(block.lsn) != ring.physical(at) {
        Place::Elsewhere
    } else if block.lsn < at {
        Place::Earlier
    } else if block.lsn > at {
        Place::Later
    } else {
        Place::Here
    }
}

/// Says why a block that was read at `at` can't be part of this log as the header describes it.
pub(super) fn impossible(
    ring: Ring,
    header: &Header,
    at: Lsn,
    block: &BlockHeader,
) -> Option<(Case, String)> {
    let described = || format!("a block of LSN {} and epoch {}", block.lsn, block.epoch);
    let here = place(ring, at, block);
    if here == Place::Elsewhere && rules().misdirected {
        return Some((
            Case::G,
            format!("{} lies here, a misdirected write", described()),
        ));
    }
    if !rules().header_rolled_back || here == Place::Elsewhere {
        return None;
    }
    let too_new = block.epoch > header.epoch || here == Place::Later;
    let beyond = here == Place::Here && block.end() > header.limit;
    (too_new || beyond).then(|| {
        let found = format!(
            "{} lies here, but the header says epoch {} and limit {}: it is older than the log",
            described(),
            header.epoch,
            header.limit
        );
        (Case::H, found)
    })
}

/// Looks at each unit of `[from, limit]` for blocks that say something about `x`.
pub(super) fn gather(
    window: &mut Window<'_>,
    ring: Ring,
    header: &Header,
    x: Lsn,
    from: Lsn,
) -> io::Result<Evidence> {
    if rules().bad_middle && rules().idle_mark && header.durable > x {
        return Ok(Evidence::Acknowledged(format!(
            "the header says that everything below {} was acknowledged",
            header.durable
        )));
    }
    let mut islands = Islands::default();
    let mut unreadable = None;
    let mut at = from;
    // One unit more than the limit: there begins what an epoch that the header does not know would have written. If the ring is full
    // that unit is the tail, whose block belongs to an earlier lap.
    while at <= header.limit && at.since(header.tail) <= ring.bytes() {
        let bytes = window.get(at, ring.unit())?;
        let block = BlockHeader::decode(ring, header.id, bytes).ok();
        if window.is_unreadable(at, ring.unit()) && at < header.limit {
            unreadable = unreadable.or(Some(at));
        }
        let mut step = ring.unit();
        if let Some(block) = block {
            if let Some((case, found)) = impossible(ring, header, at, &block) {
                return Ok(Evidence::Impossible { case, at, found });
            }
            if place(ring, at, &block) == Place::Here {
                if rules().bad_middle && block.durable > x {
                    return Ok(Evidence::Acknowledged(format!(
                        "the block of LSN {} says that everything below {} was acknowledged",
                        block.lsn, block.durable
                    )));
                }
                islands.blocks += 1;
                islands.bytes += block.bytes;
                step = block.bytes;
            }
        }
        at = at.plus(step);
    }
    Ok(match unreadable {
        Some(at) => Evidence::Unreadable { at },
        None => Evidence::None(islands),
    })
}
