//! One block: what one write to the ring holds, a group of records or a pad.
//!
//! A block is a header of 128 bytes, a directory of 64 bytes for each entry, a skew of zeros, the payloads back to back, and zeros up to
//! a multiple of the unit. All fields are little endian. Recovery looks for blocks at each unit, so within a block no unit may begin with the
//! magic, even if a payload is a copy of this very log: the skew moves the payloads until none does.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `EVLOGBLK` |
//! | 8..12 | layout version, 1 |
//! | 12..16 | kind: 0 data, 1 pad to the end of the lap, 2 pad over a gap |
//! | 16..32 | log id |
//! | 32..40 | epoch |
//! | 40..48 | LSN of this block |
//! | 48..56 | bytes of this block; a pad is longer than what is written of it |
//! | 56..60 | entries |
//! | 60..64 | chain: checksum of the block before |
//! | 64..72 | durable: everything below was acknowledged when this block was submitted |
//! | 72..80 | tail at that time, a label |
//! | 80..88 | wall clock in ms since 1970, a label |
//! | 88..96 | bytes of all payloads |
//! | 96..100 | CRC32C of the directory |
//! | 100..104 | skew, 0 to 63 bytes; room for 63 is always there |
//! | 104..124 | zero |
//! | 124..128 | checksum of this block: CRC32C of bytes 0..124 |
//!
//! The checksum covers the directory through its own, and each payload through the directory. So no byte is hashed twice, a header alone can be
//! trusted, and each record of a damaged block can be told intact or not.
//!
//! A data block has at most 128 MiB ([`crate::geometry::BLOCK_BYTES_CEILING`]).
//!
//! | bytes of an entry | field |
//! |---|---|
//! | 0 | kind: 0 record, 1 relocated record, 2 state |
//! | 1..8 | zero |
//! | 8..40 | stream |
//! | 40..48 | Seq; of a state: everything below is trimmed |
//! | 48..52 | bytes of the payload |
//! | 52..56 | CRC32C of (log id, epoch, LSN, number of the entry as u32, payload) |
//! | 56..64 | of a state: the next Seq of the stream |

use crate::{
    AlignedBuf, LogId, Lsn, Seq, StreamId,
    bytes_at::{put, take, u32_at, u64_at},
    geometry::{BLOCK_BYTES_CEILING, Ring},
    rules::rules,
};

pub const MAGIC: [u8; 8] = *b"EVLOGBLK";
pub const LAYOUT_VERSION: u32 = 1;
/// The bytes of a block's header.
pub const HEADER_BYTES: usize = 128;
/// The bytes of one entry of the directory.
pub const ENTRY_BYTES: usize = 64;

/// The largest skew, in bytes. Blocks are made large enough for it, so that their size does not depend on what payloads hold. A payload can be made
/// so that no skew helps, only not by accident: it takes the magic at eight phases. Then it stays where it is, and to be taken for a block
/// it would have to carry the id of this log and sound checksums too.
pub const SKEW_MAX: u32 = 63;

const CHECKSUM_AT: usize = 124;

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Records and states.
    Data,
    /// Nothing, up to the end of the lap: the next block would not have fit.
    LapPad,
    /// Nothing, up to where a new epoch begins.
    GapPad,
}

impl BlockKind {
    const fn number(self) -> u32 {
        match self {
            BlockKind::Data => 0,
            BlockKind::LapPad => 1,
            BlockKind::GapPad => 2,
        }
    }
}

/// The header of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    pub kind: BlockKind,
    pub id: LogId,
    pub epoch: u64,
    pub lsn: Lsn,
    /// Of the whole block, a multiple of the unit.
    pub bytes: u64,
    pub entries: u32,
    /// Checksum of the block before.
    pub chain: u32,
    pub durable: Lsn,
    pub tail: Lsn,
    pub wall_ms: u64,
    pub payload_bytes: u64,
    pub directory_checksum: u32,
    /// Zeros between directory and payloads, in bytes.
    pub skew: u32,
}

/// Why bytes are no block header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockFault {
    /// Nothing of ours.
    #[error("no block begins here")]
    Foreign,
    /// Of another log that lay on this device.
    #[error("a block of log {0} begins here")]
    OtherLog(LogId),
    #[error("layout version {0} is not known")]
    Version(u32),
    #[error("checksum of the block header does not match")]
    Checksum,
    /// The checksum matches and the fields contradict each other: written by a fault of ours.
    #[error("fields of the block header contradict each other")]
    Nonsense,
}

/// What an entry of the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A record where it was appended.
    Record,
    /// A copy of a record, made to free the tail.
    Relocated,
    /// How far its stream is trimmed and numbered.
    State {
        /// The Seq of the next record of the stream.
        next: Seq,
    },
}

/// One entry of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: EntryKind,
    pub stream: StreamId,
    /// Of a state: everything below is trimmed.
    pub seq: Seq,
    /// Bytes of the payload.
    pub bytes: u32,
    pub checksum: u32,
}

impl BlockHeader {
    /// The first position behind the block.
    pub const fn end(&self) -> Lsn {
        self.lsn.plus(self.bytes)
    }

    /// The bytes of the directory.
    pub fn directory_bytes(&self) -> usize {
        usize::try_from(self.entries).unwrap_or(usize::MAX / ENTRY_BYTES) * ENTRY_BYTES
    }

    /// The bytes that are written of the block: all of a data block, one unit of a pad.
    pub const fn written_bytes(&self, unit: u64) -> u64 {
        match self.kind {
            BlockKind::Data => self.bytes,
            BlockKind::LapPad | BlockKind::GapPad => unit,
        }
    }

    /// The pad that covers a gap. Made of nothing but what the header copies say and the chain, so recovery knows its checksum without
    /// reading it.
    pub fn gap_pad(id: LogId, epoch: u64, from: Lsn, to: Lsn, chain: u32) -> BlockHeader {
        BlockHeader {
            kind: BlockKind::GapPad,
            id,
            epoch,
            lsn: from,
            bytes: to.since(from),
            entries: 0,
            chain,
            durable: from,
            tail: Lsn::ZERO,
            wall_ms: 0,
            payload_bytes: 0,
            directory_checksum: 0,
            skew: 0,
        }
    }

    /// The checksum of the block: what the next one carries as its chain.
    pub fn checksum(&self) -> u32 {
        let mut bytes = [0; HEADER_BYTES];
        self.encode(&mut bytes)
    }

    /// Writes the header into the first [`HEADER_BYTES`] of `out` and returns its checksum.
    ///
    /// # Panics
    ///
    /// If `out` is shorter.
    pub fn encode(&self, out: &mut [u8]) -> u32 {
        out[..HEADER_BYTES].fill(0);
        put(out, 0, &MAGIC);
        put(out, 8, &LAYOUT_VERSION.to_le_bytes());
        put(out, 12, &self.kind.number().to_le_bytes());
        put(out, 16, self.id.as_bytes());
        put(out, 32, &self.epoch.to_le_bytes());
        put(out, 40, &self.lsn.get().to_le_bytes());
        put(out, 48, &self.bytes.to_le_bytes());
        put(out, 56, &self.entries.to_le_bytes());
        put(out, 60, &self.chain.to_le_bytes());
        put(out, 64, &self.durable.get().to_le_bytes());
        put(out, 72, &self.tail.get().to_le_bytes());
        put(out, 80, &self.wall_ms.to_le_bytes());
        put(out, 88, &self.payload_bytes.to_le_bytes());
        put(out, 96, &self.directory_checksum.to_le_bytes());
        put(out, 100, &self.skew.to_le_bytes());
        let checksum = crc32c::crc32c(&out[..CHECKSUM_AT]);
        put(out, CHECKSUM_AT, &checksum.to_le_bytes());
        checksum
    }

    /// Reads a header from the first bytes of a unit. That it belongs to this place is for the caller to check.
    pub fn decode(ring: Ring, id: LogId, bytes: &[u8]) -> Result<BlockHeader, BlockFault> {
        if take::<8>(bytes, 0) != MAGIC || bytes.len() < HEADER_BYTES {
            return Err(BlockFault::Foreign);
        }
        if rules().torn_write && crc32c::crc32c(&bytes[..CHECKSUM_AT]) != checksum_of(bytes) {
            return Err(BlockFault::Checksum);
        }
        let other = LogId::new(take(bytes, 16));
        if rules().identity && other != id {
            return Err(BlockFault::OtherLog(other));
        }
        let version = u32_at(bytes, 8);
        if version != LAYOUT_VERSION {
            return Err(BlockFault::Version(version));
        }
        let kind = match u32_at(bytes, 12) {
            0 => BlockKind::Data,
            1 => BlockKind::LapPad,
            2 => BlockKind::GapPad,
            _ => return Err(BlockFault::Nonsense),
        };
        let header = BlockHeader {
            kind,
            id: other,
            epoch: u64_at(bytes, 32),
            lsn: Lsn::new(u64_at(bytes, 40)),
            bytes: u64_at(bytes, 48),
            entries: u32_at(bytes, 56),
            chain: u32_at(bytes, 60),
            durable: Lsn::new(u64_at(bytes, 64)),
            tail: Lsn::new(u64_at(bytes, 72)),
            wall_ms: u64_at(bytes, 80),
            payload_bytes: u64_at(bytes, 88),
            directory_checksum: u32_at(bytes, 96),
            skew: u32_at(bytes, 100),
        };
        if header.is_sound(ring) {
            Ok(header)
        } else {
            Err(BlockFault::Nonsense)
        }
    }

    fn is_sound(&self, ring: Ring) -> bool {
        let placed = ring.is_aligned(self.lsn.get())
            && ring.is_aligned(self.bytes)
            && (ring.unit()..=ring.bytes()).contains(&self.bytes)
            && self.lsn.get() < u64::MAX / 2;
        // Only a gap may go on beyond the end of the lap: nothing is written there.
        let fits = self.kind == BlockKind::GapPad || self.bytes <= ring.left_in_lap(self.lsn);
        placed
            && fits
            && match self.kind {
                BlockKind::Data => {
                    self.entries > 0
                        && self.bytes <= BLOCK_BYTES_CEILING
                        && self.skew <= SKEW_MAX
                        && data_bytes(self.entries, self.payload_bytes)
                            .is_some_and(|bytes| ring.round_up(bytes) == self.bytes)
                }
                BlockKind::LapPad | BlockKind::GapPad => {
                    self.entries == 0 && self.payload_bytes == 0 && self.skew == 0
                }
            }
    }
}

/// The checksum that a header carries.
pub fn checksum_of(header: &[u8]) -> u32 {
    u32_at(header, CHECKSUM_AT)
}

/// The bytes of a data block before they are rounded up to whole units, with room for the largest skew.
pub fn data_bytes(entries: u32, payload_bytes: u64) -> Option<u64> {
    (HEADER_BYTES as u64 + SKEW_MAX as u64)
        .checked_add(u64::from(entries) * ENTRY_BYTES as u64)?
        .checked_add(payload_bytes)
}

impl Entry {
    fn encode(&self, out: &mut [u8]) {
        out[..ENTRY_BYTES].fill(0);
        put(out, 8, self.stream.as_bytes());
        put(out, 40, &self.seq.get().to_le_bytes());
        put(out, 48, &self.bytes.to_le_bytes());
        put(out, 52, &self.checksum.to_le_bytes());
        let (kind, next) = match self.kind {
            EntryKind::Record => (0, 0),
            EntryKind::Relocated => (1, 0),
            EntryKind::State { next } => (2, next.get()),
        };
        put(out, 0, &[kind]);
        put(out, 56, &u64::to_le_bytes(next));
    }

    fn decode(bytes: &[u8]) -> Option<Entry> {
        let kind = match take::<1>(bytes, 0)[0] {
            0 => EntryKind::Record,
            1 => EntryKind::Relocated,
            2 => EntryKind::State {
                next: Seq::new(u64_at(bytes, 56)),
            },
            _ => return None,
        };
        let entry = Entry {
            kind,
            stream: StreamId::new(take(bytes, 8)),
            seq: Seq::new(u64_at(bytes, 40)),
            bytes: u32_at(bytes, 48),
            checksum: u32_at(bytes, 52),
        };
        let sound = match entry.kind {
            EntryKind::State { next } => entry.bytes == 0 && entry.seq <= next,
            EntryKind::Record | EntryKind::Relocated => true,
        };
        (sound && entry.seq.get() < u64::MAX / 2).then_some(entry)
    }
}

/// What the checksums of a block's records begin with.
#[derive(Clone, Copy, Debug)]
pub struct RecordSeed(u32);

impl RecordSeed {
    pub fn new(id: LogId, epoch: u64, lsn: Lsn) -> RecordSeed {
        let seed = crc32c::crc32c(id.as_bytes());
        let seed = crc32c::crc32c_append(seed, &epoch.to_le_bytes());
        RecordSeed(crc32c::crc32c_append(seed, &lsn.get().to_le_bytes()))
    }

    /// The checksum of the payload of the entry with this number.
    pub fn checksum(self, entry: u32, payload: &[u8]) -> u32 {
        let covered = if rules().whole_record {
            payload
        } else {
            &payload[..payload.len().min(512)]
        };
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &entry.to_le_bytes()), covered)
    }
}

/// Reads the directory that follows a header. `None`: it does not match the header.
pub fn directory(header: &BlockHeader, block: &[u8]) -> Option<Vec<Entry>> {
    let end = HEADER_BYTES.checked_add(header.directory_bytes())?;
    let bytes = block.get(HEADER_BYTES..end)?;
    if rules().torn_write && crc32c::crc32c(bytes) != header.directory_checksum {
        return None;
    }
    let entries: Vec<Entry> = bytes
        .chunks_exact(ENTRY_BYTES)
        .map(Entry::decode)
        .collect::<Option<_>>()?;
    let payload_bytes: u64 = entries.iter().map(|entry| u64::from(entry.bytes)).sum();
    (payload_bytes == header.payload_bytes).then_some(entries)
}

/// A data block in memory whose header and directory have been checked.
#[derive(Debug)]
pub struct Block<'a> {
    pub header: BlockHeader,
    pub entries: Vec<Entry>,
    seed: RecordSeed,
    bytes: &'a [u8],
}

/// One record of a block.
#[derive(Clone, Copy, Debug)]
pub struct BlockRecord<'a> {
    pub entry: &'a Entry,
    /// Where the payload begins in the block.
    pub at: usize,
    pub payload: &'a [u8],
    /// The payload matches its checksum.
    pub intact: bool,
}

impl<'a> Block<'a> {
    /// `None`: the directory does not match, or `bytes` is shorter than the block.
    pub fn open(header: BlockHeader, bytes: &'a [u8]) -> Option<Block<'a>> {
        let entries = directory(&header, bytes)?;
        let bytes = bytes.get(..usize::try_from(header.bytes).ok()?)?;
        Some(Block {
            seed: RecordSeed::new(header.id, header.epoch, header.lsn),
            header,
            entries,
            bytes,
        })
    }

    fn payloads_at(&self) -> usize {
        let skew = usize::try_from(self.header.skew).unwrap_or(usize::MAX / 4);
        HEADER_BYTES + self.header.directory_bytes() + skew
    }

    /// The entries with their payloads, each checked as it is taken.
    pub fn records(&self) -> impl Iterator<Item = BlockRecord<'_>> {
        self.records_if(rules().torn_write)
    }

    /// The same, without looking at the checksums unless `check`.
    pub(crate) fn records_if(&self, check: bool) -> impl Iterator<Item = BlockRecord<'_>> {
        let start = self.payloads_at();
        self.entries
            .iter()
            .zip(0u32..)
            .scan(start, move |next, (entry, number)| {
                let at = *next;
                *next = at.checked_add(usize::try_from(entry.bytes).ok()?)?;
                let payload = self.bytes.get(at..*next)?;
                Some(BlockRecord {
                    entry,
                    at,
                    payload,
                    intact: !check || self.seed.checksum(number, payload) == entry.checksum,
                })
            })
    }

    /// Whether the bytes before the first and behind the last payload are zero, as they were written.
    pub fn padding_is_zero(&self) -> bool {
        let start = self.payloads_at();
        let end = usize::try_from(self.header.payload_bytes)
            .ok()
            .and_then(|bytes| start.checked_add(bytes))
            .unwrap_or(usize::MAX);
        let skew = HEADER_BYTES + self.header.directory_bytes()..start;
        [self.bytes.get(skew), self.bytes.get(end..)]
            .iter()
            .all(|padding| padding.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0)))
    }
}

/// An entry to be written, with its payload.
#[derive(Clone, Debug)]
pub struct NewEntry<P> {
    pub kind: EntryKind,
    pub stream: StreamId,
    pub seq: Seq,
    pub payload: P,
}

/// Writes a data block into `out`, which is made as long as the block. `header` brings everything but sizes and checksums; it comes back
/// complete, with the block's checksum.
///
/// # Panics
///
/// If `out` has no room for the block, or a payload is 4 GiB or more: the caller has made up the block so that neither is.
pub fn encode<P: AsRef<[u8]>>(
    ring: Ring,
    header: BlockHeader,
    entries: &[NewEntry<P>],
    out: &mut AlignedBuf,
) -> (BlockHeader, u32) {
    let payload_bytes: u64 = entries
        .iter()
        .map(|entry| entry.payload.as_ref().len() as u64)
        .sum();
    let count = u32::try_from(entries.len()).expect("a block has room for fewer entries");
    let used = data_bytes(count, payload_bytes).expect("a block is far smaller than 2^64");
    let bytes = ring.round_up(used);
    out.set_len(usize::try_from(bytes).expect("a block fits in memory"));
    let out = out.as_mut_slice();
    let directory_end = HEADER_BYTES + entries.len() * ENTRY_BYTES;
    let skew = put_payloads(ring, entries, directory_end, out);
    let seed = RecordSeed::new(header.id, header.epoch, header.lsn);
    for ((entry, number), place) in entries
        .iter()
        .zip(0u32..)
        .zip((HEADER_BYTES..).step_by(ENTRY_BYTES))
    {
        let payload = entry.payload.as_ref();
        let written = Entry {
            kind: entry.kind,
            stream: entry.stream,
            seq: entry.seq,
            bytes: u32::try_from(payload.len()).expect("a record is far smaller than 4 GiB"),
            checksum: seed.checksum(number, payload),
        };
        written.encode(&mut out[place..]);
    }
    let header = BlockHeader {
        kind: BlockKind::Data,
        bytes,
        entries: count,
        payload_bytes,
        directory_checksum: crc32c::crc32c(&out[HEADER_BYTES..directory_end]),
        skew: u32::try_from(skew).expect("at most SKEW_MAX"),
        ..header
    };
    let checksum = header.encode(out);
    (header, checksum)
}

/// Puts the payloads behind the directory, with the first skew at which none of them looks like a block, and returns it.
fn put_payloads<P: AsRef<[u8]>>(
    ring: Ring,
    entries: &[NewEntry<P>],
    directory_end: usize,
    out: &mut [u8],
) -> usize {
    let unit = usize::try_from(ring.unit()).expect("a unit fits in memory");
    let first_unit = directory_end.next_multiple_of(unit);
    let put_at = |skew: usize, out: &mut [u8]| {
        out[directory_end..directory_end + skew].fill(0);
        let mut at = directory_end + skew;
        for entry in entries {
            let payload = entry.payload.as_ref();
            put(out, at, payload);
            at += payload.len();
        }
        out[at..].fill(0);
    };
    for skew in 0..=SKEW_MAX as usize {
        put_at(skew, out);
        let looks_like_a_block = (first_unit..out.len())
            .step_by(unit)
            .any(|at| take::<8>(out, at) == MAGIC);
        if !looks_like_a_block {
            return skew;
        }
    }
    put_at(0, out);
    0
}

/// Writes a pad into `out`, which is made one unit long, and returns its checksum.
///
/// # Panics
///
/// If `out` has no room for one unit.
pub fn encode_pad(ring: Ring, header: &BlockHeader, out: &mut AlignedBuf) -> u32 {
    out.set_len(usize::try_from(ring.unit()).expect("a unit fits in memory"));
    out.as_mut_slice().fill(0);
    header.encode(out.as_mut_slice())
}

#[cfg(test)]
mod tests;
