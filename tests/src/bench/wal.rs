//! The log against `fio` and `dd`: the same writes on the same file and loop device, one after the other, round by round.
//!
//! The log says which writes it made (how large its blocks were on average, how many were in flight when one was handed over, itself
//! included); fio then makes just those: sequential, `O_DIRECT`, `sync=dsync`, by io_uring at that depth. Where the log made most of its writes
//! one at a time and on the spot, fio does that too, by `pvsync2`, and the faster of its two ways counts. So what is compared is
//! what the log makes of the device once the group size is given; throughput counts the bytes of blocks on both sides.
//!
//! `wal_p99_vs_fio` is the time from the call of `append` to its answer in the caller's task, queueing and both changes of threads
//! included, against one write of fio's, which has neither: a record that comes while a write is in flight waits for that one's end
//! and then for its own, where all places of the queue are taken. `wal_write_p99_vs_fio` is what the device took for the log's writes under that
//! load, against the same of fio's; the rest is the log and the runtime.
//!
//! The callers are closed loops: each appends again when it has been answered. So a device that the log keeps as busy as fio does can be had
//! only if the answers and the next appends take no time, or if there are more callers than fit into the writes in flight.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::figures::Figures;
use super::{GIB, MIB, STEP_MAX, as_f64, beside};
use crate::{Case, LoopDevice, Process};

/// The log that is written to, in bytes: some laps in each run.
const LOG_BYTES: u64 = 1 << 30;
const UNIT: f64 = 4096.0;
const RECORDS: [(usize, &str); 2] = [(1 << 10, "1k"), (64 << 10, "64k")];
const APPENDERS: [u32; 3] = [1, 8, 64];
/// How full a log has to be for its recovery to count.
const FULL: f64 = 0.6;

/// How long and how large.
#[derive(Clone, Copy, Debug)]
pub(super) struct WalOptions {
    pub(super) rounds: u32,
    /// Of each run (`EVERLOG_BENCH_WAL_SECONDS`, default 3).
    pub(super) seconds: u64,
    /// Of the log that is recovered (`EVERLOG_BENCH_WAL_GIB`, default 10; 0 leaves that part out).
    pub(super) gibibytes: u64,
}

/// Something to write to.
struct Target {
    name: &'static str,
    path: PathBuf,
}

/// Adds all figures.
pub(super) fn run(case: &Case, options: WalOptions, figures: &mut Figures) -> Result<()> {
    let file = case.path("wal");
    make_file(&file, LOG_BYTES)?;
    let device = LoopDevice::attach(case, LOG_BYTES, 512)?;
    // Blocks that were never written cost a change of the file system's books with each write: on both sides, but that is no
    // figure of a log's.
    zero(device.path())?;
    let targets = [
        Target {
            name: "file",
            path: file,
        },
        Target {
            name: "loop",
            path: device.path().to_owned(),
        },
    ];
    for round in 1..=options.rounds {
        for target in &targets {
            for (bytes, size) in RECORDS {
                for appenders in APPENDERS {
                    case.note(&format!(
                        "round {round}, {} {size} {appenders}",
                        target.name
                    ));
                    let name = format!("{}_{size}_{appenders}", target.name);
                    compare(
                        case,
                        target,
                        bytes,
                        appenders,
                        options.seconds,
                        &name,
                        figures,
                    )?;
                }
            }
        }
    }
    drop(device);
    worst(figures);
    if options.gibibytes > 0 {
        recovery(case, options, figures)?;
    }
    Ok(())
}

/// One run of ours, and fio's with the same writes.
fn compare(
    case: &Case,
    target: &Target,
    bytes: usize,
    appenders: u32,
    seconds: u64,
    name: &str,
    figures: &mut Figures,
) -> Result<()> {
    load(case, &["format", text(&target.path)?])?;
    let ours = load(
        case,
        &[
            "load",
            text(&target.path)?,
            &bytes.to_string(),
            &appenders.to_string(),
            &seconds.to_string(),
        ],
    )?;
    let number = |value: &Value, what: &str| value.as_f64().with_context(|| what.to_owned());
    let blocks = number(&ours["blocks"], "blocks")?;
    ensure!(blocks > 0.0, "{name}: nothing was written");
    let group = (number(&ours["block_bytes"], "bytes")? / blocks / UNIT).round() * UNIT;
    let depth = (number(&ours["in_flight_sum"], "depth")? / blocks).round();
    let ran = number(&ours["seconds"], "seconds")?;
    let rate = number(&ours["block_bytes"], "bytes")? / ran;
    let p99 = number(&ours["append_micros"]["p99"], "p99")?;
    let alone = number(&ours["alone"], "alone")? / blocks;
    let mut fio = run_fio(target, "io_uring", group, depth, seconds)?;
    if alone > 0.5 && target.name == "file" {
        let on_the_spot = run_fio(target, "pvsync2", group, 1.0, seconds)?;
        if on_the_spot.rate > fio.rate {
            fio = on_the_spot;
        }
    }
    let payload = number(&ours["records"], "records")? * as_f64(u64::try_from(bytes)?);
    let cpu = number(&ours["cpu_seconds"], "cpu")? / (payload / GIB);
    figures.add(&format!("wal_throughput_vs_fio_{name}"), rate / fio.rate);
    figures.add(&format!("wal_p99_vs_fio_{name}"), p99 / fio.p99_micros);
    figures.add(&format!("wal_cpu_s_per_gib_{name}"), cpu);
    figures.add(&format!("wal_mib_s_{name}"), payload / ran / MIB);
    figures.add(&format!("wal_group_kib_{name}"), group / 1024.0);
    figures.add(&format!("wal_depth_{name}"), depth);
    figures.add(&format!("wal_p99_us_{name}"), p99);
    let write = number(&ours["write_micros"]["p99"], "p99 of writes")?;
    figures.add(&format!("wal_write_p99_us_{name}"), write);
    figures.add(
        &format!("wal_write_p99_vs_fio_{name}"),
        write / fio.p99_micros,
    );
    figures.add(&format!("wal_alone_{name}"), alone);
    figures.add(&format!("fio_p99_us_{name}"), fio.p99_micros);
    Ok(())
}

/// The figures of the issue: of all cases the worst median.
fn worst(figures: &mut Figures) {
    let of = |figures: &Figures, part: &str| figures.medians_of(part);
    let least = |values: Vec<f64>| values.into_iter().fold(f64::INFINITY, f64::min);
    let most = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
    let throughput = least(of(figures, "wal_throughput_vs_fio_"));
    let p99 = most(of(figures, "wal_p99_vs_fio_"));
    // A GiB of 64 KiB records is what a full pipe looks like; small ones have their own figures.
    let cpu = most(of(figures, "wal_cpu_s_per_gib_file_64k_"));
    figures.add("wal_throughput_vs_fio", throughput);
    figures.add("wal_p99_vs_fio", p99);
    figures.add("wal_cpu_s_per_gib", cpu);
}

/// What fio reached.
struct Fio {
    /// Bytes a second.
    rate: f64,
    p99_micros: f64,
}

fn run_fio(target: &Target, engine: &str, group: f64, depth: f64, seconds: u64) -> Result<Fio> {
    let output = Command::new("fio")
        .args([
            "--name=wal",
            "--rw=write",
            "--direct=1",
            "--sync=dsync",
            "--time_based",
            "--ramp_time=500ms",
            "--lat_percentiles=1",
            "--randrepeat=0",
            "--output-format=json",
        ])
        .arg(format!("--filename={}", target.path.display()))
        .arg(format!("--size={LOG_BYTES}"))
        .arg(format!("--ioengine={engine}"))
        .arg(format!("--bs={group}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--runtime={seconds}"))
        .output()
        .context("fio is missing (package fio)")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "fio: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Warnings may stand before it.
    let start = printed.find('{').context("fio printed no JSON")?;
    let parsed: Value = serde_json::from_str(&printed[start..])?;
    let write = &parsed["jobs"][0]["write"];
    let p99 = write["lat_ns"]["percentile"]["99.000000"].as_f64();
    Ok(Fio {
        rate: write["bw_bytes"].as_f64().context("fio's rate")?,
        p99_micros: p99.context("fio's p99")? / 1000.0,
    })
}

/// A log of 1 KiB records, full, never closed: opened against `dd`.
fn recovery(case: &Case, options: WalOptions, figures: &mut Figures) -> Result<()> {
    let path = case.path("wal-full");
    let bytes = options.gibibytes << 30;
    make_file(&path, bytes)?;
    load(case, &["format", text(&path)?])?;
    let filled = load(case, &["fill", text(&path)?, "1024"])?;
    case.note(&format!("the log is full: {filled}"));
    for round in 1..=options.rounds {
        case.note(&format!("round {round}, recovery"));
        let ours = load(case, &["open", text(&path)?])?;
        let read = ours["bytes"].as_f64().context("bytes")?;
        ensure!(
            read > as_f64(bytes) * FULL,
            "only {read} bytes of {bytes} were in the log"
        );
        let rate = read / ours["seconds"].as_f64().context("seconds")?;
        let start = Instant::now();
        let dd = Command::new("dd")
            .arg(format!("if={}", path.display()))
            .args(["of=/dev/null", "bs=1M", "iflag=direct", "status=none"])
            .status()
            .context("dd")?;
        ensure!(dd.success(), "dd failed");
        let dd_rate = as_f64(bytes) / start.elapsed().as_secs_f64();
        figures.add("wal_recovery_vs_dd", rate / dd_rate);
        figures.add("wal_recovery_mib_s", rate / MIB);
        figures.add("dd_mib_s", dd_rate / MIB);
        let records = ours["live_records"].as_f64().context("records")?;
        figures.add("wal_recovery_records_m", records / 1e6);
    }
    std::fs::remove_file(&path)?;
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

/// Runs `wal-load` and gives its line.
fn load(case: &Case, words: &[&str]) -> Result<Value> {
    let mut command = beside("wal-load")?;
    command.args(words);
    let log = case.path("wal-load.log");
    let mut process = Process::start("wal-load", &command, &log)?;
    process.wait_success(STEP_MAX)?;
    let text = process.log_text();
    let line = text.lines().rev().find(|line| line.starts_with('{'));
    Ok(serde_json::from_str(line.with_context(|| text.clone())?)?)
}

/// A file with all its blocks written.
fn make_file(path: &Path, bytes: u64) -> Result<()> {
    std::fs::File::create(path)?.set_len(bytes)?;
    zero(path)
}

fn zero(path: &Path) -> Result<()> {
    let bytes = Command::new("blockdev")
        .arg("--getsize64")
        .arg(path)
        .output();
    let bytes = bytes.ok().and_then(|output| {
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse::<u64>()
            .ok()
    });
    let bytes = match bytes {
        Some(bytes) => bytes,
        None => std::fs::metadata(path)?.len(),
    };
    let done = Command::new("dd")
        .args([
            "if=/dev/zero",
            "bs=1M",
            "oflag=direct",
            "conv=notrunc,fsync",
            "status=none",
        ])
        .arg(format!("of={}", path.display()))
        .arg(format!("count={}", bytes >> 20))
        .status()
        .context("dd")?;
    ensure!(done.success(), "{} could not be written", path.display());
    Ok(())
}
