//! One measured run of the log, in a process of its own; for `tests/bench wal`. Prints a line of JSON.
//!
//! ```text
//! wal-load format PATH                              makes a log
//! wal-load load PATH RECORD_BYTES APPENDERS SECONDS appends in closed loops, drains at once
//! wal-load fill PATH RECORD_BYTES                   appends until the log is full, and dies without closing it
//! wal-load open PATH                                opens it
//! ```

use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use everlog_wal::device::{
    self, Completion, DeviceGeometry, DeviceInfo, DeviceOptions, Write, WriteQueue,
};
use everlog_wal::error::AppendError;
use everlog_wal::format::{FormatOptions, format as format_log};
use everlog_wal::reservation::ReservationKey;
use everlog_wal::{Device, LogId, OpenOptions, Seq, StreamId, Wal};
use serde_json::json;

/// A trim for each so many records of a stream: as a drain would.
const TRIM_EVERY: u64 = 64;
/// Latencies of so many first milliseconds are not counted.
const WARM_UP: Duration = Duration::from_millis(500);
/// Records on their way while a log is filled.
const FILLERS: u64 = 1024;
/// A write of one unit at either end of the device is a header's.
const UNIT: u64 = 4096;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["format", path] => format(Path::new(path)),
        ["load", path, bytes, appenders, seconds] => {
            let load = Load {
                bytes: bytes.parse()?,
                appenders: appenders.parse()?,
                time: Duration::from_secs_f64(seconds.parse()?),
            };
            runtime()?.block_on(load.run(Path::new(path)))
        }
        ["fill", path, bytes] => runtime()?.block_on(fill(Path::new(path), bytes.parse()?)),
        ["open", path] => runtime()?.block_on(open_only(Path::new(path))),
        _ => bail!("see the head of tests/src/bin/wal-load.rs"),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

fn say(line: &serde_json::Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

fn claim(path: &Path) -> Result<device::DirectDevice> {
    let key = ReservationKey::new(1).context("a key")?;
    Ok(device::open(path, &DeviceOptions::new(key))?)
}

fn format(path: &Path) -> Result<()> {
    let options = FormatOptions {
        id: LogId::new(rand::random()),
        record_bytes_max: None,
        wall_ms: wall_ms(),
    };
    let header = format_log(&claim(path)?, &options)?;
    say(&json!({ "log": header.id.to_string() }))
}

/// What is written, as the device sees it.
#[derive(Debug, Default)]
struct Seen {
    blocks: AtomicU64,
    block_bytes: AtomicU64,
    /// Of blocks in flight, itself included, summed over all blocks when they are handed over.
    in_flight_sum: AtomicU64,
    headers: AtomicU64,
    /// Blocks that were handed over as being alone.
    alone: AtomicU64,
    /// How long each block took, in microseconds.
    micros: Mutex<Vec<u32>>,
}

impl Seen {
    fn reset(&self) {
        for count in [
            &self.blocks,
            &self.block_bytes,
            &self.in_flight_sum,
            &self.headers,
            &self.alone,
        ] {
            count.store(0, Ordering::Relaxed);
        }
        lock(&self.micros).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that counts what passes through it.
struct Counting {
    inner: device::DirectDevice,
    seen: Arc<Seen>,
}

impl fmt::Debug for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Device for Counting {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn reservation_key(&self) -> u64 {
        self.inner.reservation_key()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn WriteQueue>> {
        Ok(Box::new(CountingQueue {
            inner: self.inner.queue(depth)?,
            seen: Arc::clone(&self.seen),
            last_unit: self.geometry().bytes / UNIT * UNIT - UNIT,
            started: Vec::new(),
        }))
    }
}

struct CountingQueue {
    inner: Box<dyn WriteQueue>,
    seen: Arc<Seen>,
    last_unit: u64,
    /// Blocks in flight.
    started: Vec<(u64, Instant)>,
}

impl WriteQueue for CountingQueue {
    fn submit(&mut self, write: Write) {
        self.note(&write);
        self.inner.submit(write);
    }

    fn submit_alone(&mut self, write: Write) {
        if self.note(&write) {
            self.seen.alone.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.submit_alone(write);
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        self.inner.wait(timeout, done)?;
        for completion in &done[before..] {
            let at = self
                .started
                .iter()
                .position(|(token, _)| *token == completion.token);
            if let Some(at) = at {
                let (_, started) = self.started.swap_remove(at);
                lock(&self.seen.micros).push(micros(started.elapsed()));
            }
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

impl CountingQueue {
    /// Counts a write that begins now; says whether it is a block.
    fn note(&mut self, write: &Write) -> bool {
        let header = write.offset == 0 || write.offset == self.last_unit;
        if header {
            self.seen.headers.fetch_add(1, Ordering::Relaxed);
        } else {
            self.started.push((write.token, Instant::now()));
            let seen = &self.seen;
            seen.blocks.fetch_add(1, Ordering::Relaxed);
            seen.block_bytes
                .fetch_add(write.buf.len() as u64, Ordering::Relaxed);
            seen.in_flight_sum
                .fetch_add(self.started.len() as u64, Ordering::Relaxed);
        }
        !header
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn stream(number: u64) -> StreamId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    StreamId::new(id)
}

fn payload(bytes: usize) -> Bytes {
    let mut payload = vec![0; bytes];
    payload.iter_mut().for_each(|byte| *byte = rand::random());
    Bytes::from(payload)
}

struct Load {
    bytes: usize,
    appenders: u64,
    time: Duration,
}

impl Load {
    async fn run(self, path: &Path) -> Result<()> {
        let seen = Arc::new(Seen::default());
        let inner = claim(path)?;
        let method = inner.info().method;
        let counting = Counting {
            inner,
            seen: Arc::clone(&seen),
        };
        let (wal, _) = Wal::open(Arc::new(counting), OpenOptions::new(wall_ms)).await?;
        let begin = Instant::now() + WARM_UP;
        let end = begin + self.time;
        let mut tasks = Vec::new();
        for number in 0..self.appenders {
            let (wal, payload) = (wal.clone(), payload(self.bytes));
            tasks.push(tokio::spawn(append_until(wal, number, payload, begin, end)));
        }
        tokio::time::sleep_until(begin.into()).await;
        seen.reset();
        let cpu_before = cpu_seconds()?;
        tokio::time::sleep_until(end.into()).await;
        let cpu = cpu_seconds()? - cpu_before;
        let blocks = seen.blocks.load(Ordering::Relaxed);
        let block_bytes = seen.block_bytes.load(Ordering::Relaxed);
        let in_flight_sum = seen.in_flight_sum.load(Ordering::Relaxed);
        let headers = seen.headers.load(Ordering::Relaxed);
        let alone = seen.alone.load(Ordering::Relaxed);
        let write_micros = std::mem::take(&mut *lock(&seen.micros));
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await??);
        }
        let records = latencies.len();
        wal.close().await?;
        say(&json!({
            "method": method,
            "seconds": self.time.as_secs_f64(),
            "records": records,
            "blocks": blocks,
            "block_bytes": block_bytes,
            "in_flight_sum": in_flight_sum,
            "headers": headers,
            "alone": alone,
            "cpu_seconds": cpu,
            "append_micros": quantiles(latencies),
            "write_micros": quantiles(write_micros),
        }))
    }
}

/// Appends one record after the other; gives how long each took that was appended in time.
async fn append_until(
    wal: Wal,
    number: u64,
    payload: Bytes,
    begin: Instant,
    end: Instant,
) -> Result<Vec<u32>> {
    let stream = stream(number);
    let mut latencies = Vec::new();
    loop {
        let start = Instant::now();
        if start >= end {
            return Ok(latencies);
        }
        let appended = wal.append(stream, payload.clone()).await?;
        let took = start.elapsed();
        if start >= begin && start + took < end {
            latencies.push(micros(took));
        }
        let next = appended.seq.plus(1);
        if next.get() % TRIM_EVERY == 0 {
            wal.trim(stream, next)?;
        }
    }
}

fn quantiles(mut micros: Vec<u32>) -> serde_json::Value {
    micros.sort_unstable();
    let at = |part: usize| {
        let last = micros.len().saturating_sub(1);
        micros.get(last * part / 1000).copied().unwrap_or(0)
    };
    json!({ "p50": at(500), "p99": at(990), "p999": at(999), "max": at(1000) })
}

/// Of this process so far, user and system.
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("a line of stat")?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    let mut next = || ticks.next().context("a field of stat")?.context("ticks");
    // USER_HZ is 100 on every Linux there is.
    Ok((next()? + next()?) / 100.0)
}

async fn fill(path: &Path, bytes: usize) -> Result<()> {
    let device = Arc::new(claim(path)?);
    let (wal, _) = Wal::open(device, OpenOptions::new(wall_ms)).await?;
    let payload = payload(bytes);
    let start = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..FILLERS {
        let (wal, payload) = (wal.clone(), payload.clone());
        tasks.push(tokio::spawn(async move {
            // Many streams, so that none of them is the one that holds everything.
            let stream = stream(number % 64);
            let mut last = Seq::ZERO;
            loop {
                match wal.append(stream, payload.clone()).await {
                    Ok(appended) => last = last.max(appended.seq),
                    Err(AppendError::Full | AppendError::StreamFull) => return Ok(last),
                    Err(err) => return Err(err),
                }
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    let usage = wal.usage();
    say(&json!({
        "seconds": start.elapsed().as_secs_f64(),
        "usage": format!("{usage:?}"),
    }))?;
    // As a crash would.
    std::process::exit(0);
}

async fn open_only(path: &Path) -> Result<()> {
    let device = Arc::new(claim(path)?);
    let start = Instant::now();
    let (_wal, recovery) = Wal::open(device, OpenOptions::new(wall_ms)).await?;
    let seconds = start.elapsed().as_secs_f64();
    say(&json!({
        "seconds": seconds,
        "bytes": recovery.end.at.since(recovery.tail),
        "records": recovery.records,
        "live_records": recovery.live_records,
        "blocks": recovery.blocks,
    }))?;
    // Closing would only make the next one's work less.
    std::process::exit(0);
}
