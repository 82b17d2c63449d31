//! The part of `tests/fencing` that runs inside the virtual machine: `fencing MODE FIRST SECOND`, where FIRST and SECOND are the same volume as
//! two hosts see it. Ends with "N passed, N failed" and as many failures as its exit status.
//!
//! | mode | volume | what is shown |
//! |---|---|---|
//! | `nvme` | Linux' NVMe target, each write held up for a while | a take-over waits for the old owner's writes in flight |
//! | `scsi` | Linux' SCSI target (LIO) | a take-over by PREEMPT alone, nothing in flight |
//! | `scsi-hang` | the same | PREEMPT AND ABORT never returns there: the deadline ends the wait |
#![expect(clippy::disallowed_methods, reason = "devices answer in real time")]
#![expect(clippy::print_stdout, reason = "its output is its result")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod devices;
mod logs;

/// What went wrong, in words.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The volume under two names.
#[derive(Clone, Debug)]
struct Volume {
    first: PathBuf,
    second: PathBuf,
}

/// A claim and how it is tried.
type Case = (&'static str, fn(&Volume) -> Outcome);

fn cases(mode: &str) -> Vec<Case> {
    match mode {
        "nvme" => [devices::NVME, logs::NVME].concat(),
        "scsi" => [devices::SCSI, logs::SCSI].concat(),
        "scsi-hang" => devices::SCSI_HANG.to_vec(),
        _ => Vec::new(),
    }
}

/// Fails with a message unless `holds`.
fn ensure(holds: bool, message: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(message().into()) }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, mode, first, second] = arguments.as_slice() else {
        println!("fencing MODE FIRST SECOND");
        return ExitCode::from(2);
    };
    let volume = Volume {
        first: PathBuf::from(first),
        second: PathBuf::from(second),
    };
    let (mut passed, mut failed) = (0_u8, 0_u8);
    for (name, run) in cases(mode) {
        let begun = std::time::Instant::now();
        match run(&volume) {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({:.1?})", begun.elapsed());
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED: {}", chain(error.as_ref()));
            }
        }
    }
    if passed + failed == 0 {
        failed = 1;
    }
    println!("{mode}: {passed} passed, {failed} failed");
    // A thread that hangs in the kernel keeps this process from ending: whoever waits reads the status here.
    let told = std::fs::write(Path::new("/tmp/status"), failed.to_string());
    ExitCode::from(if told.is_ok() { failed } else { 3 })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
