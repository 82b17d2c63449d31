//! `everlog wal`: the tools for a log on a device. Only `format` writes. `info` claims nothing and may be asked at any time; the
//! others need the device to hold still and keep writers out while they read.

mod bar;
mod check;
mod dump;
mod export;
mod format;
mod info;
mod names;
mod owner;
mod when;

use std::path::Path;

use anyhow::Result;
use everlog_wal::device::{DirectDevice, open_read_only};

use crate::args::wal::WalCommand;

/// How it ended. The exit statuses are 0 and 1; what could not be done is an error, and 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Sound,
    /// Something acknowledged is damaged or missing.
    Damaged,
}

/// Runs one of the tools.
pub(crate) fn run(command: &WalCommand) -> Result<Outcome> {
    match command {
        WalCommand::Format(args) => format::format(args).map(|()| Outcome::Sound),
        WalCommand::Info(args) => info::info(args),
        WalCommand::Dump(args) => dump::dump(args).map(|()| Outcome::Sound),
        WalCommand::Export(args) => export::export(args),
        WalCommand::Check(args) => check::check(args),
    }
}

fn open_to_read(path: &Path) -> Result<DirectDevice> {
    Ok(open_read_only(path)?)
}
