//! A block: its header, directory and records. Any bytes, and any fields and entries under right checksums.
#![no_main]

use everlog_fuzz::{Bounded, DEVICE_ALLOCATION_MAX, ID, Source, ring, sealed_block};
use everlog_wal::block::{Block, BlockHeader, ENTRY_BYTES, HEADER_BYTES};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DEVICE_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    let mut source = Source(data);
    let shape = source.byte();
    let mut block = source.0.to_vec();
    if shape & 1 != 0 {
        // A whole block around the fuzzer's directory and payloads.
        let unit = 4096;
        let entries = usize::from(shape >> 1) % 63 + 1;
        let directory_end = HEADER_BYTES + entries * ENTRY_BYTES;
        block.resize(block.len().max(directory_end).next_multiple_of(unit), 0);
        let mut payload_bytes = 0;
        for at in (HEADER_BYTES..directory_end).step_by(ENTRY_BYTES) {
            // Kinds and sizes that can be, mostly.
            block[at + 48] %= 4;
            block[at + 42..at + 44].fill(0);
            if block[at + 48] == 2 {
                block[at + 40..at + 44].fill(0);
            }
            block[at + 39] &= 0x3F;
            let len: [u8; 4] = block[at + 40..at + 44].try_into().expect("four bytes");
            payload_bytes += u64::from(u32::from_le_bytes(len));
        }
        let used = u64::try_from(directory_end).expect("small") + payload_bytes;
        let bytes = used.next_multiple_of(4096);
        if bytes < 64 << 10 {
            block.resize(usize::try_from(bytes).expect("small").max(block.len()), 0);
        }
        let mut raw = [0; HEADER_BYTES];
        raw.copy_from_slice(&block[..HEADER_BYTES]);
        raw[12..16].fill(0);
        raw[40..42].fill(0);
        raw[44..48].fill(0);
        raw[48..56].copy_from_slice(&bytes.to_le_bytes());
        raw[56..60].copy_from_slice(&u32::try_from(entries).expect("small").to_le_bytes());
        raw[88..96].copy_from_slice(&payload_bytes.to_le_bytes());
        let directory = crc32c::crc32c(&block[HEADER_BYTES..directory_end]);
        raw[96..100].copy_from_slice(&directory.to_le_bytes());
        block[..HEADER_BYTES].copy_from_slice(&sealed_block(raw));
    } else if shape & 2 != 0 && block.len() >= HEADER_BYTES {
        let mut raw = [0; HEADER_BYTES];
        raw.copy_from_slice(&block[..HEADER_BYTES]);
        block[..HEADER_BYTES].copy_from_slice(&sealed_block(raw));
    }
    let Ok(header) = BlockHeader::decode(ring(), ID, &block) else {
        return;
    };
    assert!(header.bytes <= ring().bytes());
    assert_eq!(header.checksum(), {
        let mut again = [0; HEADER_BYTES];
        header.encode(&mut again)
    });
    if let Some(opened) = Block::open(header, &block) {
        let payload: usize = opened.records().map(|record| record.payload.len()).sum();
        assert!(payload <= block.len());
        assert_eq!(opened.records().count(), opened.entries.len());
        let _ = opened.padding_is_zero();
    }
});
