//! Every message that the proxy decodes, in every version: what the walk over its lengths accepts must not make the codec
//! panic or ask for memory that the message does not have.
#![no_main]

use everlog_fuzz::{Bounded, DECODER_ALLOCATION_MAX};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DECODER_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    if let [which, version, body @ ..] = data {
        everlog_proxy::fuzzing::message(*which, i16::from(*version), body);
    }
});
