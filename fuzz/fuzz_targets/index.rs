//! Commits and nodes. What decodes, encodes to what means the same.
#![no_main]

use everlog_fuzz::{Bounded, DECODER_ALLOCATION_MAX};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DECODER_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    if let Some((shape, data)) = data.split_first() {
        match shape & 1 {
            0 => everlog_index::fuzzing::commit(u64::from(shape >> 1), data),
            _ => everlog_index::fuzzing::node(data),
        }
    }
});
