//! `everlog wal info`: whose log it is, how full it is, and what each stream still has in it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use everlog_wal::block::{Block, BlockHeader};
use everlog_wal::device::{DeviceKind, DirectDevice};
use everlog_wal::error::OpenError;
use everlog_wal::header::Header;
use everlog_wal::recovery::{HeaderCase, Inspected, ScanOptions, inspect, read_headers};
use everlog_wal::{Device as _, Lsn};
use serde::Serialize;

use super::Outcome;
use super::owner::{Owner, owner};
use super::when::{ago, short};
use crate::args::wal::InfoArgs;
use crate::table::{Table, counted, grouped, short_bytes};
use crate::terminal::print;

/// A log that is in use can go on between the reading of its header and of its blocks.
const TRIES: u32 = 4;

/// The names are part of everlog's interface.
#[derive(Debug, Serialize)]
struct Info {
    device: String,
    log: String,
    in_use_by: Option<Owner>,
    /// What keeps a second writer away, or would.
    guard: String,
    /// Closed as it should be; a log in use never is.
    clean: bool,
    device_bytes: u64,
    ring_bytes: u64,
    unit_bytes: u64,
    record_bytes_max: u64,
    formatted_ms: u64,
    epoch: u64,
    /// Updates of the header.
    generation: u64,
    /// The LSN from which on the log is kept.
    tail: u64,
    /// The LSN behind the last block; null if the log is too damaged to tell.
    end: Option<u64>,
    /// How often the ring has been gone round.
    laps: u64,
    /// From tail to end.
    used_bytes: Option<u64>,
    live_records: Option<u64>,
    live_bytes: Option<u64>,
    /// Since the block that holds the oldest live record was written; null if there is none.
    oldest_age_ms: Option<u64>,
    streams: Vec<StreamInfo>,
    /// What is wrong, and what it means.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct StreamInfo {
    stream: String,
    trimmed_below: u64,
    next: u64,
    records: u64,
    bytes: u64,
    oldest_age_ms: Option<u64>,
}

/// Prints it.
pub(super) fn info(args: &InfoArgs) -> Result<Outcome> {
    let device = super::open_to_read(&args.path)?;
    let owner = owner(&args.path)?;
    let named = || format!("{}", args.path.display());
    let (_, case, header) = read_headers(&device)
        .with_context(named)?
        .choose()
        .with_context(named)?;
    let mut info = of_header(&device, &header, owner);
    note_copies(&mut info, &case);
    let outcome = match look(&device, info.in_use_by.is_some()) {
        Ok((scanned, ages)) => {
            info.add(&scanned, &ages);
            Outcome::Sound
        }
        // A log that is being written can't be told from a damaged one by somebody who looks on.
        Err(err) if info.in_use_by.is_some() => {
            info.problems.push(format!(
                "the backlog could not be read while the log moves on ({err}); its owner's metrics have it"
            ));
            Outcome::Sound
        }
        Err(
            err @ (OpenError::Corrupt(_)
            | OpenError::DeviceChanged(_)
            | OpenError::Unreadable { .. }),
        ) => {
            info.problems.push(err.to_string());
            info.problems.push(
                "the log will not open: see docs/wal.md; `everlog wal export` saves what is intact"
                    .to_owned(),
            );
            Outcome::Damaged
        }
        Err(err) => return Err(err).with_context(named),
    };
    print(&if args.json {
        serde_json::to_string_pretty(&info)?
    } else {
        told(&info)
    })?;
    Ok(outcome)
}

/// When the blocks were written, in the order of the log.
type Ages = Vec<(Lsn, u64)>;

fn look(device: &DirectDevice, in_use: bool) -> Result<(Inspected, Ages), OpenError> {
    let options = ScanOptions::default();
    let mut tries = if in_use { TRIES } else { 1 };
    loop {
        let mut ages = Ages::new();
        let mut visitor = |header: &BlockHeader, _: Option<&Block<'_>>| {
            ages.push((header.lsn, header.wall_ms));
        };
        tries -= 1;
        match inspect(device, &options, &mut visitor) {
            Err(_) if tries > 0 => {}
            outcome => return outcome.map(|scanned| (scanned, ages)),
        }
    }
}

fn of_header(device: &DirectDevice, header: &Header, in_use_by: Option<Owner>) -> Info {
    let ring_bytes = header.ring().map_or(0, |ring| ring.bytes());
    let key = header.reservation_key;
    let guard = match (device.facts().kind, key) {
        (DeviceKind::File, _) => "a lock on the file, for this host only".to_owned(),
        (DeviceKind::Partition, _) => {
            "exclusive open, for this host only: a partition can't be reserved".to_owned()
        }
        (DeviceKind::Whole, 0) => {
            "exclusive open, for this host only: the last owner made no reservation".to_owned()
        }
        (DeviceKind::Whole, key) => format!(
            "exclusive open, and a reservation against other hosts; the last owner's key is {key:#018x}"
        ),
    };
    Info {
        device: device.info().name,
        log: header.id.to_string(),
        in_use_by,
        guard,
        clean: header.clean,
        device_bytes: device.geometry().bytes,
        ring_bytes,
        unit_bytes: header.unit,
        record_bytes_max: header.record_bytes_max,
        formatted_ms: header.formatted_ms,
        epoch: header.epoch,
        generation: header.generation,
        tail: header.tail.get(),
        end: None,
        laps: header.durable.get() / ring_bytes.max(1),
        used_bytes: None,
        live_records: None,
        live_bytes: None,
        oldest_age_ms: None,
        streams: Vec::new(),
        problems: Vec::new(),
    }
}

fn note_copies(info: &mut Info, case: &HeaderCase) {
    match case {
        // Between two writes of an update this is as it should be.
        HeaderCase::Same | HeaderCase::OneOlder { .. } => {}
        HeaderCase::OneDamaged { damaged, fault } => info.problems.push(format!(
            "header copy {damaged:?} is damaged ({fault}); the next opening mends it"
        )),
    }
}

impl Info {
    fn add(&mut self, scanned: &Inspected, ages: &Ages) {
        let recovery = &scanned.recovery;
        self.tail = recovery.tail.get();
        self.end = Some(recovery.end.at.get());
        self.laps = scanned.ring.lap(recovery.end.at);
        self.used_bytes = Some(recovery.end.at.since(recovery.tail));
        self.live_records = Some(recovery.live_records);
        self.live_bytes = Some(recovery.live_bytes);
        for (stream, usage) in scanned.index.streams() {
            let oldest = scanned.index.locate(stream, usage.trimmed);
            let written = oldest.and_then(|run| {
                let at = ages.binary_search_by_key(&run.lsn, |(lsn, _)| *lsn).ok()?;
                Some(ages[at].1)
            });
            self.streams.push(StreamInfo {
                stream: stream.to_string(),
                trimmed_below: usage.trimmed.get(),
                next: usage.next.get(),
                records: usage.next.since(usage.trimmed),
                bytes: usage.live_bytes,
                oldest_age_ms: written.and_then(ago).map(as_ms),
            });
        }
        // Who holds the most comes first.
        self.streams
            .sort_by(|a, b| (b.bytes, &a.stream).cmp(&(a.bytes, &b.stream)));
        self.oldest_age_ms = self
            .streams
            .iter()
            .filter_map(|stream| stream.oldest_age_ms)
            .max();
        if recovery.grown_by > 0 {
            self.problems.push(format!(
                "the device has {} more than when it was formatted; they are not used",
                short_bytes(recovery.grown_by)
            ));
        }
    }
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn told(info: &Info) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<12} {value}\n"));
    line("log", info.log.clone());
    line(
        "device",
        format!("{}, {}", info.device, short_bytes(info.device_bytes)),
    );
    let state = match (&info.in_use_by, info.clean) {
        (Some(owner), _) => format!("in use by {owner}; the figures are those of a moment ago"),
        (None, true) => "closed".to_owned(),
        (None, false) => "not closed: its last owner died or was killed".to_owned(),
    };
    line("state", state);
    line("guard", info.guard.clone());
    let formatted = ago(info.formatted_ms).map_or("-".to_owned(), |past| short(past) + " ago");
    line("formatted", formatted);
    line(
        "ring",
        format!(
            "{}, gone round {} times, epoch {}, records up to {}",
            short_bytes(info.ring_bytes),
            info.laps,
            info.epoch,
            short_bytes(info.record_bytes_max)
        ),
    );
    if let (Some(used), Some(records), Some(live)) =
        (info.used_bytes, info.live_records, info.live_bytes)
    {
        let percent = used.saturating_mul(100) / info.ring_bytes.max(1);
        line("used", format!("{} ({percent} %)", short_bytes(used)));
        let oldest = info.oldest_age_ms.map_or(String::new(), |ms| {
            format!(", the oldest from {} ago", short(Duration::from_millis(ms)))
        });
        line(
            "backlog",
            format!(
                "{}, {}{oldest}",
                counted(records, "record", "records"),
                short_bytes(live)
            ),
        );
    }
    for problem in &info.problems {
        line("PROBLEM", problem.clone());
    }
    if !info.streams.is_empty() {
        text.push('\n');
        text.push_str(&streams(&info.streams));
    }
    text
}

fn streams(streams: &[StreamInfo]) -> String {
    let mut table = Table::new(&[
        "stream", ">trimmed", ">next", ">records", ">bytes", ">oldest",
    ]);
    for stream in streams {
        let age = stream.oldest_age_ms.map(Duration::from_millis);
        table.row(vec![
            stream.stream.clone(),
            stream.trimmed_below.to_string(),
            stream.next.to_string(),
            grouped(stream.records),
            short_bytes(stream.bytes),
            age.map_or("-".to_owned(), short),
        ]);
    }
    table.render()
}
