//! Reads one block back, checked, around its neighbours and later laps.

use std::io;

use bytes::Bytes;

use crate::{
    AlignedBuf, Device, LogId, Lsn, Seq, StreamId,
    block::{Block, BlockHeader, EntryKind},
    geometry::Ring,
    recovery::window::read_around,
    rules::rules,
};

/// How much is read before it is known how long a block is, in bytes.
const FIRST_READ_BYTES: u64 = 64 << 10;

/// A record of a block as it was read.
#[derive(Clone, Debug)]
pub struct ReadRecord {
    pub stream: StreamId,
    pub seq: Seq,
    /// `None`: it does not match its checksum.
    pub payload: Option<Bytes>,
}

/// A block as it was read. Its records share its memory.
#[derive(Clone, Debug)]
pub struct ReadBlock {
    pub lsn: Lsn,
    /// Of the whole block.
    pub bytes: u64,
    pub records: Vec<ReadRecord>,
}

impl ReadBlock {
    /// The record with this number. A block may hold it once as it was appended, or as a copy.
    pub fn find(&self, stream: StreamId, seq: Seq) -> Option<&ReadRecord> {
        self.records
            .iter()
            .find(|record| record.stream == stream && record.seq == seq)
    }
}

/// Reads the block at `lsn`. `None`: no sound block with this LSN is there, because it is damaged or because the space has been used again; the
/// index says which.
pub fn read_block(
    device: &dyn Device,
    ring: Ring,
    id: LogId,
    lsn: Lsn,
) -> io::Result<Option<ReadBlock>> {
    let left = ring.left_in_lap(lsn);
    let first = FIRST_READ_BYTES.max(ring.unit()).min(left);
    let mut buf = read(device, ring.physical(lsn), first)?;
    let decode = |bytes: &[u8]| {
        BlockHeader::decode(ring, id, bytes)
            .ok()
            .filter(|header| !rules().verify_reads || header.lsn == lsn)
    };
    let Some(header) = decode(buf.as_slice()) else {
        return Ok(None);
    };
    if header.bytes > first {
        if header.bytes > left {
            return Ok(None);
        }
        buf = read(device, ring.physical(lsn), header.bytes)?;
        if decode(buf.as_slice()) != Some(header) {
            return Ok(None);
        }
    }
    Ok(take_apart(header, &Bytes::from_owner(buf), true))
}

/// The records of a block in memory. `check`: as far as they match their checksums.
pub(crate) fn take_apart(header: BlockHeader, buf: &Bytes, check: bool) -> Option<ReadBlock> {
    let block = Block::open(header, buf)?;
    let check = check && rules().verify_reads;
    let records = block
        .records_if(check)
        .filter(|record| !matches!(record.entry.kind, EntryKind::State { .. }))
        .map(|record| ReadRecord {
            stream: record.entry.stream,
            seq: record.entry.seq,
            payload: record
                .intact
                .then(|| buf.slice(record.at..record.at + record.payload.len())),
        })
        .collect();
    Some(ReadBlock {
        lsn: header.lsn,
        bytes: header.bytes,
        records,
    })
}

/// Reads a stretch of the device. A sector that can't be read is zero, so what lies in it fails its checksum; an error is one of the device as a
/// whole.
pub fn read_stretch(device: &dyn Device, offset: u64, bytes: u64) -> io::Result<AlignedBuf> {
    let mut buf = AlignedBuf::zeroed(in_memory(bytes)?);
    read_around(device, offset, buf.as_mut_slice(), &mut Vec::new())?;
    Ok(buf)
}

fn in_memory(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_too_large| io::Error::from(io::ErrorKind::OutOfMemory))
}

fn read(device: &dyn Device, offset: u64, bytes: u64) -> io::Result<AlignedBuf> {
    let mut buf = AlignedBuf::zeroed(in_memory(bytes)?);
    device.read_at(offset, buf.as_mut_slice())?;
    Ok(buf)
}
