//! What is read of a Produce request before it passes, however the bytes arrive.
#![no_main]

use everlog_fuzz::{Bounded, DECODER_ALLOCATION_MAX};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DECODER_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    if let [version, frame @ ..] = data {
        everlog_proxy::fuzzing::produce(i16::from(version % 14), frame);
    }
});
