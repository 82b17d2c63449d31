//! One header copy: what the log is and between which positions it is to be looked for.
//!
//! Two copies lie at both ends of the device. An update writes one, waits until it is durable, and writes the other with the same
//! content. The newest by (epoch, generation) counts. All fields are little endian; the checksum covers everything before it, also the slot
//! and the offset, so a copy written to or read from the wrong place is none.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `EVLOGHDR` |
//! | 8..12 | layout version, 1 |
//! | 12..16 | slot: 0 = A, 1 = B |
//! | 16..32 | log id |
//! | 32..40 | generation, one more with every update |
//! | 40..48 | epoch, one more with every opening |
//! | 48..56 | size of the device at format |
//! | 56..64 | offset of this copy |
//! | 64..68, 68..72, 72..76 | unit, logical and physical sector at format |
//! | 76..80 | flags: bit 0 = closed cleanly |
//! | 80..88 | tail: the LSN at which recovery begins |
//! | 88..92 | checksum of the block before the tail |
//! | 92..96 | number of gaps |
//! | 96..104 | limit: no block reaches beyond it before a newer header is durable in both copies |
//! | 104..112 | durable: everything below was acknowledged when this was written |
//! | 112..120 | largest record |
//! | 120..128 | reservation key of the owner, 0 = none |
//! | 128..136, 136..144 | wall clock of this update and of the format, ms since 1970; labels, nothing is decided by them |
//! | 144..504 | up to 15 gaps: from, to, epoch (8 bytes each), oldest first |
//! | 504..508 | zero |
//! | 508..512 | CRC32C of bytes 0..508 |

use crate::{
    LogId, Lsn,
    bytes_at::{put, take, u32_at, u64_at},
    device::DeviceGeometry,
    geometry::{Ring, Slot},
    rules::rules,
};

pub const MAGIC: [u8; 8] = *b"EVLOGHDR";
pub const LAYOUT_VERSION: u32 = 1;
/// The bytes of a copy; the rest of its unit is zero. Not more than the smallest sector.
pub const COPY_BYTES: usize = 512;
/// The gaps a header has room for.
pub const GAPS_MAX: usize = 15;

const CHECKSUM_AT: usize = COPY_BYTES - 4;
const GAPS_AT: usize = 144;
const GAP_BYTES: usize = 24;
const FLAG_CLEAN: u32 = 1;

const _: () = assert!(GAPS_AT + GAPS_MAX * GAP_BYTES <= CHECKSUM_AT);

/// A stretch of the log that an opening after a crash left out: a write of the dead process may still land in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The end of the log that was found.
    pub from: Lsn,
    /// Where the new epoch began to write.
    pub to: Lsn,
    /// The epoch that began there.
    pub epoch: u64,
}

/// What both copies say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub id: LogId,
    pub generation: u64,
    pub epoch: u64,
    /// The device when it was formatted.
    pub device: DeviceGeometry,
    pub unit: u64,
    /// Closed cleanly: `limit` and `durable` are the end of the log.
    pub clean: bool,
    pub tail: Lsn,
    /// The chain before the tail: checksum of the block that ended there.
    pub tail_chain: u32,
    pub limit: Lsn,
    pub durable: Lsn,
    /// The largest record, in bytes.
    pub record_bytes_max: u64,
    pub reservation_key: u64,
    /// Labels, in ms since 1970.
    pub wall_ms: u64,
    pub formatted_ms: u64,
    /// Oldest first, at most [`GAPS_MAX`].
    pub gaps: Vec<Gap>,
}

/// Why bytes are no header copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyFault {
    /// Nothing of ours.
    #[error("no everlog header")]
    Foreign,
    /// Torn, rotten, or the checksum of another layout.
    #[error("checksum does not match")]
    Checksum,
    /// Sound, but belongs elsewhere: a misdirected write or read.
    #[error("this copy belongs to slot {slot} at offset {offset}")]
    Misplaced { slot: u32, offset: u64 },
    /// Written by another version of everlog: use that one.
    #[error("layout version {0} is not known")]
    Version(u32),
    /// The checksum matches and the fields contradict each other: written by a fault of ours.
    #[error("fields contradict each other")]
    Nonsense,
    #[error("can't be read")]
    Unreadable,
}

impl Header {
    /// The order in which headers count.
    pub fn age(&self) -> (u64, u64) {
        (self.epoch, self.generation)
    }

    /// The ring this header describes.
    pub fn ring(&self) -> Option<Ring> {
        Ring::new(self.unit, self.device.bytes)
    }

    /// Writes the copy for `slot` at `offset` into the first [`COPY_BYTES`] of `out` and zeros behind them.
    ///
    /// # Panics
    ///
    /// If `out` is shorter than a copy or there are more gaps than fit.
    pub fn encode(&self, slot: Slot, offset: u64, out: &mut [u8]) {
        assert!(self.gaps.len() <= GAPS_MAX, "gaps are dropped before");
        out.fill(0);
        put(out, 0, &MAGIC);
        put(out, 8, &LAYOUT_VERSION.to_le_bytes());
        put(out, 12, &slot.number().to_le_bytes());
        put(out, 16, self.id.as_bytes());
        put(out, 32, &self.generation.to_le_bytes());
        put(out, 40, &self.epoch.to_le_bytes());
        put(out, 48, &self.device.bytes.to_le_bytes());
        put(out, 56, &offset.to_le_bytes());
        let unit = u32::try_from(self.unit).unwrap_or(u32::MAX);
        put(out, 64, &unit.to_le_bytes());
        put(out, 68, &self.device.logical_sector.to_le_bytes());
        put(out, 72, &self.device.physical_sector.to_le_bytes());
        let flags = if self.clean { FLAG_CLEAN } else { 0 };
        put(out, 76, &flags.to_le_bytes());
        put(out, 80, &self.tail.get().to_le_bytes());
        put(out, 88, &self.tail_chain.to_le_bytes());
        let gaps = u32::try_from(self.gaps.len()).unwrap_or(u32::MAX);
        put(out, 92, &gaps.to_le_bytes());
        put(out, 96, &self.limit.get().to_le_bytes());
        put(out, 104, &self.durable.get().to_le_bytes());
        put(out, 112, &self.record_bytes_max.to_le_bytes());
        put(out, 120, &self.reservation_key.to_le_bytes());
        put(out, 128, &self.wall_ms.to_le_bytes());
        put(out, 136, &self.formatted_ms.to_le_bytes());
        for (gap, at) in self.gaps.iter().zip((GAPS_AT..).step_by(GAP_BYTES)) {
            put(out, at, &gap.from.get().to_le_bytes());
            put(out, at + 8, &gap.to.get().to_le_bytes());
            put(out, at + 16, &gap.epoch.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&out[..CHECKSUM_AT]);
        put(out, CHECKSUM_AT, &checksum.to_le_bytes());
    }

    /// Reads the copy that `bytes`, read at `offset`, should hold.
    pub fn decode(slot: Slot, offset: u64, bytes: &[u8]) -> Result<Header, CopyFault> {
        if take::<8>(bytes, 0) != MAGIC {
            return Err(CopyFault::Foreign);
        }
        let copy = bytes.get(..COPY_BYTES).ok_or(CopyFault::Foreign)?;
        let checksum = crc32c::crc32c(&copy[..CHECKSUM_AT]);
        if rules().header_checksum && checksum != u32_at(copy, CHECKSUM_AT) {
            return Err(CopyFault::Checksum);
        }
        let version = u32_at(copy, 8);
        if version != LAYOUT_VERSION {
            return Err(CopyFault::Version(version));
        }
        let (own_slot, own_offset) = (u32_at(copy, 12), u64_at(copy, 56));
        if rules().misdirected && (own_slot, own_offset) != (slot.number(), offset) {
            return Err(CopyFault::Misplaced {
                slot: own_slot,
                offset: own_offset,
            });
        }
        let header = fields(copy).ok_or(CopyFault::Nonsense)?;
        header.check().map(|()| header)
    }

    fn check(&self) -> Result<(), CopyFault> {
        let ring = self.ring().ok_or(CopyFault::Nonsense)?;
        let aligned = [self.tail, self.limit, self.durable]
            .iter()
            .all(|lsn| ring.is_aligned(lsn.get()));
        let ordered = self.tail <= self.durable
            && self.durable <= self.limit
            && self.limit.since(self.tail) <= ring.bytes()
            && self.limit.get() < u64::MAX / 2;
        let gaps_ordered = self.gaps.iter().all(|gap| {
            gap.from < gap.to
                && gap.to <= self.limit
                && gap.epoch <= self.epoch
                && ring.is_aligned(gap.from.get())
                && ring.is_aligned(gap.to.get())
        }) && self
            .gaps
            .windows(2)
            .all(|pair| pair[0].to <= pair[1].from && pair[0].epoch < pair[1].epoch);
        let record = (1..=RECORD_LIMIT).contains(&self.record_bytes_max);
        if aligned && ordered && gaps_ordered && record {
            Ok(())
        } else {
            Err(CopyFault::Nonsense)
        }
    }
}

const RECORD_LIMIT: u64 = crate::geometry::RECORD_BYTES_CEILING;

fn fields(copy: &[u8]) -> Option<Header> {
    let gap_count = usize::try_from(u32_at(copy, 92)).ok()?;
    let gaps = (gap_count <= GAPS_MAX).then(|| {
        (0..gap_count)
            .map(|index| GAPS_AT + index * GAP_BYTES)
            .map(|at| Gap {
                from: Lsn::new(u64_at(copy, at)),
                to: Lsn::new(u64_at(copy, at + 8)),
                epoch: u64_at(copy, at + 16),
            })
            .collect()
    })?;
    Some(Header {
        id: LogId::new(take(copy, 16)),
        generation: u64_at(copy, 32),
        epoch: u64_at(copy, 40),
        device: DeviceGeometry {
            bytes: u64_at(copy, 48),
            logical_sector: u32_at(copy, 68),
            physical_sector: u32_at(copy, 72),
        },
        unit: u64::from(u32_at(copy, 64)),
        clean: u32_at(copy, 76) & FLAG_CLEAN != 0,
        tail: Lsn::new(u64_at(copy, 80)),
        tail_chain: u32_at(copy, 88),
        limit: Lsn::new(u64_at(copy, 96)),
        durable: Lsn::new(u64_at(copy, 104)),
        record_bytes_max: u64_at(copy, 112),
        reservation_key: u64_at(copy, 120),
        wall_ms: u64_at(copy, 128),
        formatted_ms: u64_at(copy, 136),
        gaps,
    })
}
