//! Devices made of a fuzzer's bytes. Also used by the crate's own test on hostile bytes.
//!
//! Random bytes never match a checksum, so an image is made of headers and blocks whose fields are the fuzzer's and whose
//! checksums are right, and is damaged afterwards. So every check behind the checksums is reached as well.

use everlog_wal::block::{self, BlockHeader, BlockKind, EntryKind, NewEntry};
use everlog_wal::device::DeviceGeometry;
use everlog_wal::device::ram::RamDevice;
use everlog_wal::geometry::{Ring, Slot};
use everlog_wal::header::{COPY_BYTES, GAPS_MAX, Gap, Header};
use everlog_wal::{AlignedBuf, LogId, Lsn, Seq, StreamId};

/// The size of an image, in bytes: 34 units, the smallest log there is.
pub const DEVICE_BYTES: u64 = 34 * UNIT;
pub const UNIT: u64 = 4096;
/// The log in an image.
pub const ID: LogId = LogId::new(*b"fuzzed everlog!!");

/// The fuzzer's bytes, taken from the front; zeros when there are no more.
#[derive(Debug)]
pub struct Source<'a>(pub &'a [u8]);

impl<'a> Source<'a> {
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let len = N.min(self.0.len());
        taken[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        taken
    }

    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// Up to `max` bytes.
    pub fn bytes(&mut self, max: usize) -> &'a [u8] {
        let len = max.min(self.0.len());
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    /// A position: mostly a small multiple of the unit, now and then anything.
    pub fn lsn(&mut self) -> Lsn {
        match self.byte() {
            255 => Lsn::new(self.u64()),
            254 => Lsn::new(u64::from(self.u16())),
            units => Lsn::new(u64::from(units) * UNIT),
        }
    }
}

/// The ring of an image.
pub fn ring() -> Ring {
    Ring::new(UNIT, DEVICE_BYTES).expect("34 units are enough")
}

fn geometry() -> DeviceGeometry {
    DeviceGeometry {
        bytes: DEVICE_BYTES,
        logical_sector: 512,
        physical_sector: 4096,
    }
}

/// A header whose fields are the fuzzer's.
pub fn header(source: &mut Source<'_>) -> Header {
    let shape = source.byte();
    let tail = source.lsn();
    let durable = tail.plus(u64::from(source.byte()) * UNIT);
    let mut header = Header {
        id: ID,
        generation: u64::from(source.byte()),
        epoch: u64::from(source.byte()),
        device: geometry(),
        unit: UNIT,
        clean: shape & 1 != 0,
        tail,
        tail_chain: 0,
        limit: durable.plus(u64::from(source.byte()) * UNIT),
        durable,
        record_bytes_max: 16 << 10,
        reservation_key: 0,
        wall_ms: 0,
        formatted_ms: 0,
        gaps: Vec::new(),
    };
    if shape & 2 != 0 {
        let count = usize::from(source.byte()) % (GAPS_MAX + 1);
        header.gaps = (0..count)
            .map(|_| Gap {
                from: source.lsn(),
                to: source.lsn(),
                epoch: u64::from(source.byte()),
            })
            .collect();
    }
    if shape & 4 != 0 {
        header.tail_chain = u32::from_le_bytes(source.take());
    }
    if shape & 8 != 0 {
        header.device.bytes = source.u64();
        header.record_bytes_max = source.u64();
        header.unit = u64::from(u32::from_le_bytes(source.take()));
    }
    header
}

/// A device made of the fuzzer's bytes.
pub fn image(source: &mut Source<'_>) -> RamDevice {
    let mut image = Image {
        device: RamDevice::with_geometry(geometry()),
        at: Lsn::ZERO,
        chain: 0,
        epoch: 1,
    };
    let first = header(source);
    (image.at, image.chain, image.epoch) = (first.tail, first.tail_chain, first.epoch);
    image.copy(Slot::A, &first);
    let second = if source.byte() < 128 {
        first
    } else {
        header(source)
    };
    image.copy(Slot::B, &second);
    for _ in 0..48 {
        if source.is_empty() {
            break;
        }
        image.step(source);
    }
    image.device
}

struct Image {
    device: RamDevice,
    at: Lsn,
    chain: u32,
    epoch: u64,
}

impl Image {
    fn write(&self, offset: u64, bytes: &[u8]) {
        let room = usize::try_from(DEVICE_BYTES.saturating_sub(offset)).unwrap_or(0);
        let len = bytes.len().min(room);
        self.device
            .damage(offset, |place| place[..len].copy_from_slice(&bytes[..len]));
    }

    fn copy(&self, slot: Slot, header: &Header) {
        let mut copy = vec![0; COPY_BYTES];
        header.encode(slot, ring().header(slot), &mut copy);
        self.write(ring().header(slot), &copy);
    }

    fn step(&mut self, source: &mut Source<'_>) {
        match source.byte() {
            // Most of them: the next block as a writer would make it, or nearly.
            0..128 => self.block(source),
            128..150 => self.pad(source, BlockKind::LapPad),
            150..170 => self.pad(source, BlockKind::GapPad),
            170..190 => self.at = source.lsn(),
            190..200 => self.epoch = u64::from(source.byte()),
            200..215 => self.chain = u32::from(source.u16()),
            215..235 => {
                let offset = u64::from(source.u16()) * 4;
                let byte = source.byte();
                self.device.damage(offset, |place| {
                    if let Some(first) = place.first_mut() {
                        *first ^= byte;
                    }
                });
            }
            235..250 => {
                let offset = u64::from(source.byte()) * 512;
                let bytes = source.bytes(512);
                self.write(offset, bytes);
            }
            // A block header with anything in it and the right checksum.
            250.. => {
                let mut raw = [0; block::HEADER_BYTES];
                let given = source.bytes(block::HEADER_BYTES);
                raw[..given.len()].copy_from_slice(given);
                self.write(ring().physical(self.at), &sealed_block(raw));
            }
        }
    }

    fn base(&self, source: &mut Source<'_>) -> BlockHeader {
        let to = self.at.plus(UNIT);
        BlockHeader {
            durable: if source.byte() < 200 {
                self.at
            } else {
                source.lsn()
            },
            ..BlockHeader::gap_pad(ID, self.epoch, self.at, to, self.chain)
        }
    }

    fn block(&mut self, source: &mut Source<'_>) {
        let base = self.base(source);
        let count = usize::from(source.byte() % 6) + 1;
        let entries: Vec<NewEntry<Vec<u8>>> = (0..count)
            .map(|_| {
                let shape = source.byte();
                let seq = Seq::new(u64::from(source.byte()));
                let kind = match shape % 8 {
                    0..5 => EntryKind::Record,
                    5 | 6 => EntryKind::Relocated,
                    _ => EntryKind::State {
                        next: seq.plus(u64::from(source.byte())),
                    },
                };
                let bytes = match kind {
                    EntryKind::State { .. } => 0,
                    EntryKind::Record | EntryKind::Relocated => usize::from(source.u16()) % 9000,
                };
                NewEntry {
                    kind,
                    stream: StreamId::new([shape / 64; 32]),
                    seq,
                    payload: vec![shape; bytes],
                }
            })
            .collect();
        let mut buf = AlignedBuf::zeroed(64 << 10);
        let (header, checksum) = block::encode(ring(), base, &entries, &mut buf);
        self.write(ring().physical(self.at), buf.as_slice());
        (self.at, self.chain) = (header.end(), checksum);
    }

    fn pad(&mut self, source: &mut Source<'_>, kind: BlockKind) {
        let base = self.base(source);
        let bytes = match kind {
            BlockKind::LapPad => ring().left_in_lap(self.at),
            BlockKind::Data | BlockKind::GapPad => source.lsn().get().max(UNIT),
        };
        let pad = BlockHeader {
            kind,
            bytes,
            ..base
        };
        let mut unit = AlignedBuf::zeroed(4096);
        self.chain = block::encode_pad(ring(), &pad, &mut unit);
        self.write(ring().physical(self.at), unit.as_slice());
        self.at = pad.end();
    }
}

/// `raw` as a header of our log with the right magic, version, name and checksum.
pub fn sealed_block(mut raw: [u8; block::HEADER_BYTES]) -> [u8; block::HEADER_BYTES] {
    raw[..8].copy_from_slice(&block::MAGIC);
    raw[8..12].copy_from_slice(&block::LAYOUT_VERSION.to_le_bytes());
    raw[16..32].copy_from_slice(ID.as_bytes());
    let checksum = crc32c::crc32c(&raw[..124]);
    raw[124..].copy_from_slice(&checksum.to_le_bytes());
    raw
}
