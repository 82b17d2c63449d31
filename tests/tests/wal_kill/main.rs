//! The log on real devices: its process is killed with SIGKILL again and again under load, and what it holds afterwards is judged against what
//! the process had said before. Nothing acknowledged is missing, nothing is there twice, each stream keeps its order; also while one stream is
//! stuck and its records are relocated. Needs root and loop devices, and fails without.

mod oracle;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use everlog_tests::{Case, LoopDevice, Process, soak};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use oracle::Oracle;

/// Small, so that the ring is gone round many times.
const DEVICE_BYTES: u64 = 48 << 20;
/// How long an opening, or an orderly end, may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_killed_writer_on_512_byte_sectors_loses_and_doubles_nothing() {
    Case::run("wal-kill-512", |case| {
        let device = LoopDevice::attach(case, DEVICE_BYTES, 512)?;
        kill_again_and_again(case, device.path())
    });
}

#[test]
fn a_killed_writer_on_4096_byte_sectors_loses_and_doubles_nothing() {
    Case::run("wal-kill-4096", |case| {
        let device = LoopDevice::attach(case, DEVICE_BYTES, 4096)?;
        kill_again_and_again(case, device.path())
    });
}

#[test]
fn a_killed_writer_on_a_file_loses_and_doubles_nothing() {
    Case::run("wal-kill-file", |case| {
        let file = case.path("log");
        let status = writer(&["create", &path(&file)?, &DEVICE_BYTES.to_string()]).status()?;
        ensure!(status.success(), "the file could not be made");
        kill_again_and_again(case, &file)
    });
}

fn path(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

fn writer(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wal-writer"));
    command.args(arguments);
    command
}

fn kill_again_and_again(case: &Case, device: &Path) -> Result<()> {
    let kills = if soak() { 300 } else { 20 };
    let seed: u64 = match std::env::var("EVERLOG_SEED") {
        Ok(seed) => seed.parse().context("EVERLOG_SEED")?,
        Err(_) => rand::random(),
    };
    case.note(&format!("seed {seed}"));
    let mut rng = StdRng::seed_from_u64(seed);
    let device = path(device)?;
    ensure!(
        writer(&["format", &device]).status()?.success(),
        "cannot format {device}"
    );
    let mut oracle = Oracle::default();
    for run in 0..kills {
        let method = ["io_uring", "pwritev2"][usize::from(rng.random_bool(0.3))];
        // Now and then the stuck stream comes loose, so that there is something to get stuck again.
        let stuck = if run % 5 == 4 { "loose" } else { "stuck" };
        // From right after the opening to several laps later; now and then before the opening is over.
        let life = Duration::from_millis(rng.random_range(1..1_500));
        let early = rng.random_bool(0.15);
        one_life(
            case,
            &mut oracle,
            run,
            &[&device, method, stuck],
            |child, log| {
                if !early {
                    log.follow(child, Oracle::is_writing)?;
                }
                std::thread::sleep(life);
                child.check_alive()?;
                child.kill()
            },
        )?;
    }
    // The last one ends in order, and what it leaves is what it was told.
    for run in kills..kills + 2 {
        one_life(
            case,
            &mut oracle,
            run,
            &[&device, "io_uring", "loose"],
            |child, log| {
                log.follow(child, Oracle::is_writing)?;
                std::thread::sleep(Duration::from_millis(500));
                child.signal("TERM")?;
                child.wait_success(PATIENCE)
            },
        )?;
    }
    case.note(&format!(
        "{kills} kills, {} records acknowledged, {} found that nobody was told of, {} relocated, {:.1} laps",
        oracle.acknowledged,
        oracle.unacknowledged_found,
        oracle.relocated,
        oracle.lsn as f64 / DEVICE_BYTES as f64
    ));
    ensure!(oracle.relocated > 0, "nothing was relocated");
    ensure!(oracle.lsn > 3 * DEVICE_BYTES, "the ring was not gone round");
    Ok(())
}

/// Starts a writer, lets `end` end it, and takes all that it has said.
fn one_life(
    case: &Case,
    oracle: &mut Oracle,
    run: u64,
    arguments: &[&str],
    end: impl FnOnce(&mut Process, &mut Log<'_>) -> Result<()>,
) -> Result<()> {
    oracle.begin(run);
    let said = case.path(&format!("run-{run}"));
    let number = run.to_string();
    let mut command = writer(&["run", &number]);
    command.args(arguments);
    let mut child = Process::start("wal-writer", &command, &said)?;
    let mut log = Log {
        file: File::open(&said)?,
        rest: String::new(),
        oracle,
    };
    end(&mut child, &mut log).with_context(|| format!("run {run}"))?;
    log.take()?;
    // Kept only where something is wrong with it.
    std::fs::remove_file(&said)?;
    Ok(())
}

/// What the writer has said, as far as it has been taken.
struct Log<'a> {
    file: File,
    rest: String,
    oracle: &'a mut Oracle,
}

impl Log<'_> {
    fn take(&mut self) -> Result<()> {
        self.file.read_to_string(&mut self.rest)?;
        // A line is whole when it has its end.
        let end = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let rest = self.rest.split_off(end);
        for line in std::mem::replace(&mut self.rest, rest).lines() {
            self.oracle.line(line)?;
        }
        Ok(())
    }

    /// Takes lines until something is known.
    fn follow(&mut self, child: &mut Process, known: impl Fn(&Oracle) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let ended = child.ended()?;
            self.take()?;
            if known(self.oracle) {
                return Ok(());
            }
            if ended.is_some() {
                return child.check_alive();
            }
            if begun.elapsed() > PATIENCE {
                bail!("the writer has not opened its log within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
