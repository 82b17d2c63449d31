//! Recovery of an arbitrary image. It gives the same when asked again, and what it calls a part of the log comes out of a rescue
//! as well.
#![no_main]

use everlog_fuzz::{Bounded, DEVICE_ALLOCATION_MAX, Source, image};
use everlog_wal::Lsn;
use everlog_wal::export::{SurveyOptions, Totals, survey};
use everlog_wal::recovery::{ScanOptions, scan};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DEVICE_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    let mut source = Source(data);
    let options = ScanOptions {
        piece_bytes: if source.byte() & 1 == 0 {
            4096
        } else {
            1 << 20
        },
        cut_unreadable: source.byte() & 1 != 0,
        ..ScanOptions::default()
    };
    let device = image(&mut source);
    let Ok(scanned) = scan(&device, &options) else {
        return;
    };
    let recovery = &scanned.recovery;
    assert!(recovery.tail <= recovery.end.at);
    assert!(recovery.end.at <= scanned.header.limit);
    assert!(recovery.live_records <= recovery.records);
    let again = scan(&device, &options).expect("it was a log a moment ago");
    assert_eq!(again.recovery.end, recovery.end);
    assert_eq!(again.end, scanned.end);
    // With what was let go of: blocks behind the end may have trimmed what recovery still calls live.
    let all = SurveyOptions {
        include_released: true,
        ..SurveyOptions::default()
    };
    let survey = survey(&device, &all, &mut |_, _| {}).expect("a log");
    let mut totals = Totals::default();
    survey
        .records(&device, Lsn::ZERO, &mut totals, &mut |_| Ok(()))
        .expect("memory can be read");
    assert!(totals.records >= recovery.live_records);
});
