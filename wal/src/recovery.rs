//! What a device holds when it is opened: reads the header copies, walks the chain of blocks from the tail, and decides where the log
//! ends. Reads only.
//!
//! # Headers
//!
//! | case | copy A | copy B | decision |
//! |------|--------|--------|----------|
//! | a | sound | the same | taken |
//! | b | sound | damaged or torn | the sound one, either way round |
//! | c | sound | sound, other age | the newer by (epoch, generation): an update was under way |
//! | d | damaged | damaged | refused: export what is intact. Nothing of ours in both: no log here |
//! | e | sound | sound, same age, other content, or another log | refused: two writers, or a format that was cut short |
//!
//! # Blocks
//!
//! The walk is at LSN *x* and knows the checksum of the block before. What it judges bad it has read twice.
//!
//! | case | at x | elsewhere | decision |
//! |------|------|-----------|----------|
//! | A | sound block with this LSN, chain and epoch, within the limit | - | taken; on at its end |
//! | B | whatever lies there | a gap of the header begins at x | on at the end of the gap: late writes of a dead process may land in it |
//! | C | no sound block, or x is the limit | nothing of this log in (x, limit] | end of the log |
//! | D | no sound block | blocks in (x, limit), none of which says that x was acknowledged | end of the log; they were in flight, dropped and reported |
//! | E | no sound block | header or a block says that x was acknowledged | refused: an acknowledged block is lost |
//! | F | header and directory sound, payloads damaged | as E | on at its end; refused at the end of the walk if a damaged record is live, else reported |
//! | G | - | a sound block of this log at x or in (x, limit] that belongs elsewhere | refused: misdirected write |
//! | H | - | at x or in (x, limit] a block beyond the limit or of a later epoch | refused: the header is older than the log |
//! | I | all blocks taken | a stream has a gap in its numbers above its trim | refused: a record is missing |
//! | J | sound block | a record has a number its stream had before | refused: doubled |
//! | K | can't be read (medium error) at x or in (x, limit] | as C or D | refused: the device may yet be able to read it; cut there only if told to |
//!
//! What C and D cut was never acknowledged, with one exception that no log on one device can close: if one of the last acknowledged blocks (as many
//! as are in flight together) is damaged before a later block or the idle mark (some milliseconds later) says that it had been acknowledged, it
//! looks like a write that was cut off, and so do those behind it. Each cut is reported with what was found.

mod evidence;
mod headers;
pub(crate) mod told;
mod walk;
pub(crate) mod window;

use std::{fmt, thread};

pub use evidence::Islands;
pub use headers::{CopyRead, HeaderCase, Headers, read_headers};

use crate::{
    Device, LogId, Lsn, Seq, StreamId,
    block::{Block, BlockHeader},
    error::{DeviceChange, OpenError},
    geometry::{Ring, Slot},
    guard::is_fenced,
    header::{Gap, Header},
    index::{Index, TailMark},
    rules::rules,
};

/// The rows of the tables by which a log ends or is refused: those of blocks, and the one of headers that is damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Case {
    /// Row e of the headers: two sound copies that contradict each other.
    Headers,
    A,
    B,
    C,
    D,
    E,
    F,
    G,
    H,
    I,
    J,
    K,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Case::Headers => f.write_str("e"),
            letter => write!(f, "{letter:?}"),
        }
    }
}

/// How a device is read.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// How much is read at a time, in bytes, 1 unit to 64 MiB.
    pub piece_bytes: u64,
    /// Cut the log where it can't be read, if nothing says that what is there had been acknowledged (case K).
    pub cut_unreadable: bool,
    /// How finely the tail moves, in bytes, a multiple of the unit. `None`: about 4096 steps a lap.
    pub segment_bytes: Option<u64>,
}

impl Default for ScanOptions {
    fn default() -> ScanOptions {
        ScanOptions {
            piece_bytes: 4 << 20,
            cut_unreadable: false,
            segment_bytes: None,
        }
    }
}

/// Why the walk ended where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The header allows no block here.
    Limit,
    /// No block begins here.
    Foreign,
    /// A block of another log, from before the device was formatted.
    OtherLog(LogId),
    /// A block of an earlier lap.
    Stale(Lsn),
    /// A block header whose checksum does not match.
    HeaderChecksum,
    /// A block whose directory does not match.
    Directory,
    /// A block with a payload that does not match.
    Payload,
    /// A block of this LSN that follows another block than the one found before it, or of an earlier epoch.
    Chain,
    /// The sector can't be read.
    Unreadable,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndReason::Limit => f.write_str("the limit of the header is reached"),
            EndReason::Foreign => f.write_str("no block begins here"),
            EndReason::OtherLog(id) => write!(f, "a block of log {id} begins here"),
            EndReason::Stale(lsn) => write!(f, "a block of an earlier lap, LSN {lsn}"),
            EndReason::HeaderChecksum => f.write_str("a block header is damaged"),
            EndReason::Directory => f.write_str("the directory of a block is damaged"),
            EndReason::Payload => f.write_str("a payload is damaged"),
            EndReason::Chain => f.write_str("a block that does not follow the one before it"),
            EndReason::Unreadable => f.write_str("a sector can't be read"),
        }
    }
}

/// Where and why the log was found to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub case: Case,
    pub at: Lsn,
    /// The same position on the device, in bytes.
    pub offset: u64,
    pub reason: EndReason,
    /// The bytes of a block that begins at the end and was not taken, as far as its header can be believed; one unit if only that something
    /// begins there is known, 0 if nothing does.
    pub torn_bytes: u64,
    /// Blocks behind the end that were in flight when the last owner died.
    pub islands: Islands,
    /// Behind the end lies something that can't be read, and [`ScanOptions::cut_unreadable`] was asked for.
    pub is_cut_unread: bool,
}

/// What was found; for the operator and the tests.
#[derive(Clone, Debug)]
pub struct Recovery {
    pub id: LogId,
    /// The epoch of the last owner.
    pub epoch: u64,
    pub header_case: HeaderCase,
    /// The last owner closed the log.
    pub clean: bool,
    pub tail: Lsn,
    pub end: End,
    /// Blocks taken, pads among them.
    pub blocks: u64,
    /// Records taken, before what is trimmed or moved is left out.
    pub records: u64,
    pub live_records: u64,
    pub live_bytes: u64,
    pub streams: usize,
    /// Damaged records that had been trimmed or moved, so nothing is lost with them.
    pub damaged_dead: Vec<(StreamId, Seq)>,
    /// Blocks whose padding is not zero: bits have flipped where they did no harm.
    pub padding_damaged: u64,
    /// What was bad when read first and sound when read again.
    pub read_again: u64,
    /// Offsets of sectors that could not be read, in bytes.
    pub unreadable: Vec<u64>,
    /// The device has so many bytes more than it was formatted with; they are not used.
    pub grown_by: u64,
}

/// A log as it was found, ready for [`crate::core::Core`].
#[derive(Debug)]
pub struct Scanned {
    pub ring: Ring,
    pub header: Header,
    /// The copy the header was taken from: the other one is written first.
    pub slot: Slot,
    /// The end of the log.
    pub end: TailMark,
    pub index: Index,
    /// The newest state of each stream whose state the log still mentions: where, and the trim it says.
    pub states: Vec<(StreamId, Lsn, Seq)>,
    /// The pads of gaps that are not on the device as they should be: a gap may be forgotten only when its pad is there.
    pub padless: Vec<BlockHeader>,
    /// The last gap that was jumped, with the checksum of the block before it.
    pub last_gap: Option<(Gap, u32)>,
    pub recovery: Recovery,
    /// The reservation that the device is held with, for the header of the new epoch; 0 = none.
    pub(crate) reservation_key: u64,
}

/// A log as it was found by somebody who only looks on. It can't be opened from here: what was read may yet be taken away by a power cut.
#[derive(Debug)]
pub struct Inspected {
    pub ring: Ring,
    pub header: Header,
    pub index: Index,
    pub recovery: Recovery,
}

/// What [`scan_with`] shows of each block it takes.
pub type Visitor<'v> = dyn FnMut(&BlockHeader, Option<&Block<'_>>) + 'v;

/// Reads a log that is to be opened: makes durable what earlier processes wrote, then decides on it.
pub fn scan(device: &dyn Device, options: &ScanOptions) -> Result<Scanned, OpenError> {
    make_durable(device)?;
    scan_inner(device, options, None)
}

/// Reads a log and changes nothing, not even what a power cut would leave of it. Shows each block like [`scan_with`].
pub fn inspect(
    device: &dyn Device,
    options: &ScanOptions,
    visitor: &mut Visitor<'_>,
) -> Result<Inspected, OpenError> {
    let scanned = scan_inner(device, options, Some(visitor))?;
    Ok(Inspected {
        ring: scanned.ring,
        header: scanned.header,
        index: scanned.index,
        recovery: scanned.recovery,
    })
}

/// Reads a log and shows each block that is taken, in LSN order, pads without content. Also those before a damage that makes it an error.
pub fn scan_with(
    device: &dyn Device,
    options: &ScanOptions,
    visitor: &mut Visitor<'_>,
) -> Result<Scanned, OpenError> {
    make_durable(device)?;
    scan_inner(device, options, Some(visitor))
}

/// Nothing is to be decided on bytes that a crashed process wrote and that a power cut could still take away.
fn make_durable(device: &dyn Device) -> Result<(), OpenError> {
    if !rules().sync_before_read {
        return Ok(());
    }
    device.sync().map_err(|error| {
        if is_fenced(&error) {
            OpenError::Fenced
        } else {
            OpenError::Io(error)
        }
    })
}

fn scan_inner(
    device: &dyn Device,
    options: &ScanOptions,
    visitor: Option<&mut Visitor<'_>>,
) -> Result<Scanned, OpenError> {
    let (slot, header_case, header) = read_headers(device)?.choose()?;
    let ring = header.ring().ok_or(OpenError::HeadersLost {
        a: crate::header::CopyFault::Nonsense,
        b: crate::header::CopyFault::Nonsense,
    })?;
    let grown_by = same_device(device, &header, ring)?;
    let walked = thread::scope(|scope| {
        // A small ring is read at once, and without a thread its tests are the same each time.
        let large = ring.bytes() / 8 >= options.piece_bytes;
        let helper = large.then(|| window::Helper::start(scope, device));
        walk::Walk::new(device, options, ring, &header, visitor, helper).run()
    })?;
    let recovery = Recovery {
        id: header.id,
        epoch: header.epoch,
        header_case,
        clean: header.clean,
        tail: header.tail,
        end: walked.end,
        blocks: walked.blocks,
        records: walked.records,
        live_records: walked.index.live_records(),
        live_bytes: walked.index.live_bytes(),
        streams: walked.index.stream_count(),
        damaged_dead: walked.damaged_dead,
        padding_damaged: walked.padding_damaged,
        read_again: walked.read_again,
        unreadable: walked.unreadable,
        grown_by,
    };
    Ok(Scanned {
        ring,
        header,
        slot,
        end: TailMark {
            lsn: recovery.end.at,
            chain: walked.chain,
        },
        index: walked.index,
        states: walked.states,
        padless: walked.padless,
        last_gap: walked.last_gap,
        recovery,
        reservation_key: device.reservation_key(),
    })
}

/// How much larger the device is than it was formatted with.
fn same_device(device: &dyn Device, header: &Header, ring: Ring) -> Result<u64, OpenError> {
    let geometry = device.geometry();
    let found = geometry.physical_sector.max(geometry.logical_sector);
    if rules().device_identity && u64::from(found) > ring.unit() {
        return Err(OpenError::DeviceChanged(DeviceChange::Sector {
            unit: ring.unit(),
            found,
        }));
    }
    match geometry.bytes.checked_sub(header.device.bytes) {
        None if rules().device_identity => Err(OpenError::DeviceChanged(DeviceChange::Smaller {
            formatted: header.device.bytes,
            found: geometry.bytes,
        })),
        grown => Ok(grown.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests;
