//! `everlog wal format`: an empty log, on a device with nothing on it that may not go.

use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use everlog_wal::blank::{Find, PrepareError, look, prepare};
use everlog_wal::device::{self, Device as _, DeviceOptions, create_file, open_read_only};
use everlog_wal::format::FormatOptions;
use everlog_wal::guard::Fencing;
use everlog_wal::reservation::ReservationKey;
use everlog_wal::{LogId, format as wal_format};
use serde_json::json;
use tracing::warn;

use super::bar::Bar;
use super::when::now_ms;
use crate::args::wal::FormatArgs;
use crate::table::short_bytes;
use crate::terminal::print;

/// What a file's size is a multiple of, in bytes.
const FILE_UNIT: u64 = 4096;

/// Makes the log.
pub(super) fn format(args: &FormatArgs) -> Result<()> {
    let made = make_file(args)?;
    // Looked at before it is claimed: to claim a volume may mean to throw another host out, which is for the log's own device only.
    let before = open_read_only(&args.path)?;
    refuse_unless_named(&args.path, look(&before), &args.overwrite)?;
    drop(before);
    let key = std::iter::repeat_with(rand::random::<u64>).find_map(ReservationKey::new);
    let mut options = DeviceOptions::new(key.context("no random number")?);
    if args.no_fencing {
        options.fencing = Fencing::Off;
    }
    let claimed = device::open(&args.path, &options)?;
    let gone = match prepare(&claimed, &args.overwrite) {
        Err(PrepareError::Occupied(finds)) => return Err(occupied(&args.path, &finds)),
        outcome => outcome?,
    };
    let id = LogId::new(rand::random());
    let options = FormatOptions {
        id,
        record_bytes_max: args.record_max,
        wall_ms: now_ms(),
    };
    let header = wal_format::format(&claimed, &options)
        .with_context(|| format!("{} was not formatted", args.path.display()))?;
    // From here on it is a log.
    made.keep();
    let ring = header.ring().context("the new log has no ring")?;
    let info = claimed.info();
    let names: Vec<String> = gone.iter().map(|find| find.thing.name()).collect();
    if args.json {
        print(&serde_json::to_string_pretty(&json!({
            "device": info.name,
            "log": header.id.to_string(),
            "ring_bytes": ring.bytes(),
            "unit_bytes": ring.unit(),
            "record_bytes_max": header.record_bytes_max,
            "guard": info.guard,
            "overwritten": names,
        }))?)?;
        return Ok(());
    }
    let mut text = format!(
        "{}: formatted as log {}, a ring of {} for records up to {}\nguard: {}\n",
        info.name,
        header.id,
        short_bytes(ring.bytes()),
        short_bytes(header.record_bytes_max),
        info.guard
    );
    if !names.is_empty() {
        text.push_str(&format!("overwritten: {}\n", names.join(", ")));
    }
    print(&text)?;
    Ok(())
}

/// A file that was made here and is no log yet: removed again if it does not become one, or the next try would be told that
/// it is there already.
struct Made<'a> {
    /// `None` for what was there before.
    path: Option<&'a Path>,
}

impl Made<'_> {
    fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path
            && let Err(err) = std::fs::remove_file(path)
        {
            let path = path.display();
            warn!(%path, error = &err as &dyn std::error::Error, "the file that was made could not be removed again");
        }
    }
}

/// Makes the file if a size was given.
fn make_file(args: &FormatArgs) -> Result<Made<'_>> {
    let is_there = args.path.try_exists();
    let is_there = is_there.with_context(|| format!("{}", args.path.display()))?;
    let shown = args.path.display();
    match (is_there, args.size) {
        (true, None) => Ok(Made { path: None }),
        (true, Some(_)) => bail!("{shown} is there already: --size is for a file to be made"),
        (false, None) => {
            bail!(
                "{shown} is not there: name a block device, or say by --size how large a file to make"
            )
        }
        (false, Some(size)) => {
            ensure!(
                size.is_multiple_of(FILE_UNIT) && size > 0,
                "--size has to be a multiple of {FILE_UNIT} bytes"
            );
            if !std::io::stderr().is_terminal() {
                print(&format!("writing {} of zeros", short_bytes(size)))?;
            }
            let bar = Bar::new("writing zeros");
            create_file(&args.path, size, &mut |written| bar.set(written, size))
                .with_context(|| format!("{shown} could not be made"))?;
            bar.finish();
            let path = Some(args.path.as_path());
            Ok(Made { path })
        }
    }
}

fn refuse_unless_named(path: &Path, finds: Vec<Find>, may_go: &[String]) -> Result<()> {
    let stays = |find: &Find| !may_go.contains(&find.thing.name());
    let left: Vec<Find> = finds.into_iter().filter(stays).collect();
    if left.is_empty() {
        Ok(())
    } else {
        Err(occupied(path, &left))
    }
}

fn occupied(path: &Path, finds: &[Find]) -> anyhow::Error {
    let mut text = format!(
        "{} is not empty, and nothing was changed on it. Found:\n",
        path.display()
    );
    for find in finds {
        text.push_str(&format!("  {find}\n"));
    }
    let flags: Vec<String> = finds
        .iter()
        .map(|find| format!("--overwrite {}", find.thing.name()))
        .collect();
    text.push_str(&format!(
        "If this is the right device and all of that may go, add: {}",
        flags.join(" ")
    ));
    anyhow::anyhow!(text)
}
