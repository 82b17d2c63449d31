//! What an operator reads after an opening.

use std::{
    fmt::{Debug, Write as _},
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use super::tell;
use crate::{
    core::bench::{Bench, UNIT, payload},
    device::ram::RamDevice,
    recovery::{Recovery, ScanOptions, scan},
};

/// Keeps each line as `LEVEL field=value ... message`.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn warnings(recovery: &Recovery) -> Vec<String> {
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || tell(recovery));
    let told = lines.0.lock().unwrap_or_else(PoisonError::into_inner);
    let level = Level::WARN.to_string();
    let warned = told.iter().filter(|line| line.starts_with(&level));
    warned.cloned().collect()
}

fn crashed(records: u64) -> Bench {
    let mut bench = Bench::new(128);
    for seq in 0..records {
        bench.append(1, &payload(1, seq, 100)).expect("room");
    }
    bench
}

fn found(device: &RamDevice) -> Recovery {
    let scanned = scan(device, &ScanOptions::default());
    scanned.expect("opens").recovery
}

#[test]
fn an_end_at_which_nothing_was_dropped_is_no_warning() {
    let bench = crashed(3);
    assert_eq!(warnings(&found(&bench.device)), [""; 0]);
    assert_eq!(warnings(&found(&bench.close())), [""; 0]);
}

/// It used to be one line of the level info that said nothing of it.
#[test]
fn what_is_cut_is_a_warning_with_its_place_and_what_to_do() {
    let device = crashed(3).device;
    device.damage(3 * UNIT as u64 + 200, |bytes| bytes[0] ^= 1);
    let told = warnings(&found(&device));
    assert_eq!(told.len(), 1, "{told:?}");
    for part in [
        "lsn=8192",
        "offset=12288",
        "bytes=4096",
        "blocks=1",
        "everlog wal export",
    ] {
        assert!(told[0].contains(part), "{part}: {told:?}");
    }
}

#[test]
fn a_header_copy_that_was_written_again_is_a_warning() {
    let device = crashed(1).device;
    device.damage(40, |bytes| bytes[0] ^= 1);
    let told = warnings(&found(&device));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("copy=A"), "{told:?}");
}

#[test]
fn damage_that_costs_nothing_is_a_warning_too() {
    let mut bench = crashed(3);
    let id = crate::core::bench::stream(1);
    bench.core.sync_trim(0, id, crate::Seq::new(2));
    bench.run();
    bench
        .device
        .damage(2 * UNIT as u64 + 200, |bytes| bytes[0] ^= 1);
    let told = warnings(&found(&bench.device));
    assert!(told[0].contains("seq=1"), "{told:?}");
    assert!(told[1].contains("damaged_records=1"), "{told:?}");
}
