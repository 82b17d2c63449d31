//! Rescue from an arbitrary image: nothing comes out twice, and what comes out as intact is on the device.
#![no_main]

use std::collections::BTreeSet;

use everlog_fuzz::{Bounded, DEVICE_ALLOCATION_MAX, Source, image};
use everlog_wal::Lsn;
use everlog_wal::export::{SurveyOptions, Totals, survey};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DEVICE_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    let mut source = Source(data);
    let options = SurveyOptions {
        id: None,
        formatted_bytes: None,
        include_released: source.byte() & 1 != 0,
    };
    let device = image(&mut source);
    let Ok(survey) = survey(&device, &options, &mut |_, _| {}) else {
        return;
    };
    let mut totals = Totals::default();
    let mut seen = BTreeSet::new();
    survey
        .records(&device, Lsn::ZERO, &mut totals, &mut |record| {
            if record.is_intact && !record.is_conflict {
                assert!(seen.insert((record.stream, record.seq)));
            }
            Ok(())
        })
        .expect("memory can be read");
    for stream in survey.states.keys().chain(totals.streams.keys()) {
        let _ = survey.missing(stream, &totals);
    }
});
