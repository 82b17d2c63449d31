//! A header copy: any bytes, and any fields under a right checksum. What decodes, encodes to the same fields.
#![no_main]

use everlog_fuzz::{Bounded, DEVICE_ALLOCATION_MAX, Source};
use everlog_wal::geometry::Slot;
use everlog_wal::header::{COPY_BYTES, Header, LAYOUT_VERSION, MAGIC};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DEVICE_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    let mut source = Source(data);
    let shape = source.byte();
    let slot = if shape & 1 == 0 { Slot::A } else { Slot::B };
    let offset = if shape & 2 == 0 { 0 } else { source.u64() };
    let mut copy = source.0.to_vec();
    if shape & 4 != 0 {
        copy.resize(COPY_BYTES, 0);
        copy[..8].copy_from_slice(&MAGIC);
        copy[8..12].copy_from_slice(&LAYOUT_VERSION.to_le_bytes());
        copy[12..16].copy_from_slice(&u32::from(shape & 1).to_le_bytes());
        copy[56..64].copy_from_slice(&offset.to_le_bytes());
        let checksum = crc32c::crc32c(&copy[..COPY_BYTES - 4]);
        copy[COPY_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
    }
    if let Ok(header) = Header::decode(slot, offset, &copy) {
        let mut again = vec![0; COPY_BYTES];
        header.encode(slot, offset, &mut again);
        assert_eq!(Header::decode(slot, offset, &again), Ok(header));
    }
});
