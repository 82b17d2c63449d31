//! A good segment with some bytes changed, under right checksums: pages, levels, lengths, statistics.
#![no_main]

use everlog_format::Segment;
use everlog_fuzz::{Bounded, DECODER_ALLOCATION_MAX, footer_of, good_segment, read_all, reseal};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DECODER_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    let good = good_segment();
    let mut bytes = good.bytes.clone();
    let groups_end = bytes.len() - good.footer_len;
    for edit in data.chunks_exact(3).take(40) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        if let Some(byte) = bytes[..groups_end].get_mut(at) {
            *byte = edit[2];
        }
    }
    reseal(&mut bytes);
    if let Ok(segment) = Segment::parse(&footer_of(&bytes), bytes.len() as u64) {
        read_all(segment, &bytes);
    }
});
