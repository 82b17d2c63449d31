//! Footers: any bytes behind which the right length stands, and the footer of a good segment with some bytes changed.
#![no_main]

use bytes::Bytes;
use everlog_format::Segment;
use everlog_fuzz::{Bounded, DECODER_ALLOCATION_MAX, footer_of, good_segment, read_all};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DECODER_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    let Some((shape, data)) = data.split_first() else {
        return;
    };
    if shape & 1 == 0 {
        let mut tail = data.to_vec();
        tail.extend(u32::try_from(data.len()).expect("small").to_le_bytes());
        tail.extend(b"PAR1");
        let _ = Segment::parse(&Bytes::from(tail), 1 << 20);
        return;
    }
    let good = good_segment();
    let mut bytes = good.bytes.clone();
    let start = bytes.len() - good.footer_len;
    for edit in data.chunks_exact(3).take(40) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        if let Some(byte) = bytes[start..].get_mut(at) {
            *byte = edit[2];
        }
    }
    if let Ok(segment) = Segment::parse(&footer_of(&bytes), bytes.len() as u64) {
        read_all(segment, &bytes);
    }
});
