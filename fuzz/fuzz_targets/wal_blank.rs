//! What is on a device before it is formatted: bytes at the places where something may be known by them.
#![no_main]

use everlog_fuzz::{Bounded, DEVICE_ALLOCATION_MAX, Source};
use everlog_wal::blank::look;
use everlog_wal::device::ram::RamDevice;
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DEVICE_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    let mut source = Source(data);
    let bytes = usize::from(source.u16()) * 512 % (160 << 10);
    let device = RamDevice::new(bytes);
    let mut is_empty = true;
    while !source.is_empty() {
        let from_end = source.byte() & 1 != 0;
        let at = u64::from(source.u16()) * 8;
        let at = if from_end {
            u64::try_from(bytes).expect("small").saturating_sub(at)
        } else {
            at
        };
        let given = source.bytes(16);
        device.damage(at, |place| {
            let len = given.len().min(place.len());
            place[..len].copy_from_slice(&given[..len]);
            is_empty &= given[..len].iter().all(|byte| *byte == 0);
        });
    }
    // An image this small is looked at whole.
    let finds = look(&device);
    assert!(is_empty || finds.len() < 60);
    if is_empty {
        assert!(finds.is_empty());
    }
});
