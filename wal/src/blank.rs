//! What is on a device before it is formatted: partition tables, file systems, volume managers, another log of ours, or
//! just bytes that somebody wrote.
//!
//! It reads the places where such things keep their names, the first and the last [`EDGE_LEN`] bytes and a sample in
//! between, and decides nothing: `format` refuses whatever is found here unless its caller has named it. A place that
//! can't be read counts as a find, since it can't be called empty.

mod signature;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use signature::SIGNATURES;

use crate::device::write_durable;
use crate::geometry::{Ring, Slot, UNIT_MAX, UNIT_MIN};
use crate::header::{COPY_BYTES, CopyFault, Header};
use crate::{AlignedBuf, Device, LogId};

/// How many bytes at either end are read whole. LUKS keeps its second header up to 4 MiB from the start, ZFS and the RAID
/// formats keep theirs within the last MiB.
pub const EDGE_LEN: u64 = (4 << 20) + (64 << 10);

/// Places besides the edges that are read whole: copies of superblocks, by which a file system is found when its first
/// one is gone. Those of btrfs, and of ext with blocks of 1 and of 4 KiB.
const COPIES: [u64; 4] = [8193 << 10, 64 << 20, 32768 << 12, 256 << 30];

/// How much is read at each of [`COPIES`] and of the samples. Also what places start at a multiple of, so that any device
/// can read them directly.
const PLACE_LEN: u64 = 64 << 10;

/// How many more places, evenly spread, must read as zeros.
const SAMPLE_COUNT: u64 = 64;

/// How much is held in memory at a time. No magic bytes that we look for lie across a multiple of it.
const PIECE_LEN: u64 = EDGE_LEN;
const _: () = assert!(PIECE_LEN.is_multiple_of(PLACE_LEN));

/// Something that was there before us.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// A format that we know by its magic bytes.
    Known {
        /// The word by which an operator names it: `ext`, `gpt`, ...
        name: &'static str,
        /// What it is, for people.
        what: &'static str,
    },
    /// A log of ours.
    Log {
        /// Which; `None` if its header is damaged.
        id: Option<LogId>,
    },
    /// Bytes other than zero that we have no name for.
    Data,
    /// A place that could not be read.
    Unreadable,
}

impl Thing {
    /// The word by which an operator says that it may be overwritten.
    pub fn name(&self) -> String {
        match self {
            Thing::Known { name, .. } => (*name).to_owned(),
            Thing::Log { id: Some(id) } => format!("everlog:{id}"),
            Thing::Log { id: None } => "everlog:damaged".to_owned(),
            Thing::Data => "data".to_owned(),
            Thing::Unreadable => "unreadable".to_owned(),
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thing::Known { what, .. } => f.write_str(what),
            Thing::Log { id: Some(id) } => write!(f, "the everlog log {id}"),
            Thing::Log { id: None } => f.write_str("an everlog log with a damaged header"),
            Thing::Data => f.write_str("bytes other than zero"),
            Thing::Unreadable => f.write_str("a place that could not be read"),
        }
    }
}

/// A [`Thing`] and where it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Find {
    pub thing: Thing,
    /// Bytes from the start of the device.
    pub offset: u64,
}

impl fmt::Display for Find {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (`{}`) at byte {}",
            self.thing,
            self.thing.name(),
            self.offset
        )
    }
}

/// Where a device of `bytes` bytes is looked at, in order, without overlaps; all but the last range start and end at
/// multiples of 64 KiB, and none reaches beyond `bytes`. What `format` finds here and may overwrite it fills with zeros,
/// so that no boot-time scanner takes the log for what was there before.
pub fn places(bytes: u64) -> Vec<Range<u64>> {
    let floor = |at: u64| at - at % PLACE_LEN;
    let mut wanted = Vec::new();
    wanted.push(0..EDGE_LEN);
    wanted.extend(COPIES.map(|at| floor(at)..floor(at) + PLACE_LEN));
    let step = bytes / (SAMPLE_COUNT + 1);
    wanted.extend((1..=SAMPLE_COUNT).map(|number| {
        let at = floor(step * number);
        at..at + PLACE_LEN
    }));
    wanted.push(floor(bytes.saturating_sub(EDGE_LEN))..bytes);
    wanted.sort_by_key(|range| range.start);
    let mut places: Vec<Range<u64>> = Vec::new();
    for range in wanted {
        let range = range.start.min(bytes)..range.end.min(bytes);
        match places.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ if range.is_empty() => {}
            _ => places.push(range),
        }
    }
    places
}

/// Looks at a device.
///
/// Gives each thing once, at its lowest offset. Bytes without a name are told only if nothing has one: they then belong to
/// what was named.
pub fn look(device: &dyn Device) -> Vec<Find> {
    let geometry = device.geometry();
    let sector = u64::from(geometry.logical_sector.max(1));
    let bytes = geometry.bytes - geometry.bytes % sector;
    let mut look = Look {
        bytes,
        seen: BTreeSet::new(),
        finds: Vec::new(),
        first_data: None,
    };
    for place in places(bytes) {
        let mut at = place.start;
        // Small devices are one large place.
        while at < place.end {
            // The first piece holds a whole edge: magic bytes are looked for within one piece.
            let end = place.end.min(at + PIECE_LEN);
            let mut piece = AlignedBuf::zeroed(usize::try_from(end - at).unwrap_or(0));
            match device.read_at(at, piece.as_mut_slice()) {
                Ok(()) => look.piece(at, piece.as_slice()),
                Err(_) => look.find(Thing::Unreadable, at),
            }
            at = end;
        }
    }
    look.finish()
}

/// Why a device was not prepared for a log.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Nothing was changed. Ask the operator, and call again with the names of what may go.
    #[error("the device is not empty: {}", list(.0))]
    Occupied(Vec<Find>),
    /// What was there is gone in part; the device is not formatted.
    #[error("the device could not be cleared at byte {offset}")]
    Clear { offset: u64, source: std::io::Error },
}

/// Makes a device ready for `format`: looks at it, refuses unless `may_go` names each thing that is there ([`Thing::name`]), and
/// fills the places where such things live with zeros, durably. Without that, what stands beyond the header would still be
/// taken for a file system or a RAID member by whoever looks at the device next.
///
/// On an empty device nothing is written. Gives what is gone now.
pub fn prepare(device: &dyn Device, may_go: &[String]) -> Result<Vec<Find>, PrepareError> {
    let finds = look(device);
    let stays = |find: &&Find| !may_go.contains(&find.thing.name());
    let left: Vec<Find> = finds.iter().filter(stays).cloned().collect();
    if !left.is_empty() {
        return Err(PrepareError::Occupied(left));
    }
    if finds.is_empty() {
        return Ok(finds);
    }
    let geometry = device.geometry();
    let sector = u64::from(geometry.logical_sector.max(1));
    for place in places(geometry.bytes - geometry.bytes % sector) {
        let mut at = place.start;
        while at < place.end {
            let end = place.end.min(at + PIECE_LEN);
            let zeros = AlignedBuf::zeroed(usize::try_from(end - at).unwrap_or(0));
            write_durable(device, at, zeros)
                .map_err(|source| PrepareError::Clear { offset: at, source })?;
            at = end;
        }
    }
    Ok(finds)
}

fn list(finds: &[Find]) -> String {
    let texts: Vec<String> = finds.iter().map(Find::to_string).collect();
    texts.join(", ")
}

struct Look {
    bytes: u64,
    seen: BTreeSet<String>,
    finds: Vec<Find>,
    first_data: Option<u64>,
}

impl Look {
    fn find(&mut self, thing: Thing, offset: u64) {
        if self.seen.insert(thing.name()) {
            self.finds.push(Find { thing, offset });
        }
    }

    fn piece(&mut self, start: u64, piece: &[u8]) {
        let Some(first) = piece.iter().position(|byte| *byte != 0) else {
            return;
        };
        if self.first_data.is_none() {
            self.first_data = Some(start + u64::try_from(first).unwrap_or(u64::MAX));
        }
        let device = Piece {
            start,
            bytes: piece,
            device_bytes: self.bytes,
        };
        for signature in SIGNATURES {
            if let Some(offset) = signature.find(&device) {
                let (name, what) = (signature.name, signature.what);
                self.find(Thing::Known { name, what }, offset);
            }
        }
        for (offset, id) in logs(&device) {
            self.find(Thing::Log { id }, offset);
        }
    }

    fn finish(mut self) -> Vec<Find> {
        // One copy that is sound says whose the other one is.
        if self
            .finds
            .iter()
            .any(|find| matches!(find.thing, Thing::Log { id: Some(_) }))
        {
            self.finds
                .retain(|find| find.thing != Thing::Log { id: None });
        }
        // A boot sector belongs to most of what lies on a whole disk, and is named only where it is alone.
        let boot = |find: &Find| find.thing.name() == "mbr";
        if self.finds.iter().any(|find| !boot(find)) {
            self.finds.retain(|find| !boot(find));
        }
        if let (true, Some(offset)) = (self.finds.is_empty(), self.first_data) {
            self.finds.push(Find {
                thing: Thing::Data,
                offset,
            });
        }
        self.finds
    }
}

/// Some bytes of a device, and where they were.
#[derive(Clone, Copy, Debug)]
struct Piece<'a> {
    start: u64,
    bytes: &'a [u8],
    device_bytes: u64,
}

impl Piece<'_> {
    /// The `len` bytes at `offset` of the device, if they are in this piece.
    fn at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..from.checked_add(len)?)
    }
}

/// The header copies of ours in `piece`: where, and whose if they are sound.
fn logs(piece: &Piece<'_>) -> Vec<(u64, Option<LogId>)> {
    let units = std::iter::successors(Some(UNIT_MIN), |unit| Some(unit * 2));
    let rings = units
        .take_while(|unit| *unit <= UNIT_MAX)
        .filter_map(|unit| Ring::new(unit, piece.device_bytes));
    let ends = rings.map(|ring| (Slot::B, ring.header(Slot::B)));
    std::iter::once((Slot::A, 0))
        .chain(ends)
        .filter_map(|(slot, offset)| {
            let copy = piece.at(offset, COPY_BYTES)?;
            match Header::decode(slot, offset, copy) {
                Ok(header) => Some((offset, Some(header.id))),
                Err(CopyFault::Foreign) => None,
                // Of another version, from another place, or damaged: still somebody's log.
                Err(_) => Some((offset, None)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
