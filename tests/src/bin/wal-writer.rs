//! The process that `tests/tests/wal_kill` kills: writes to a log under load and says what it knows, a line for each fact, each line a write of
//! its own, so that what it has said is known also when it is dead.
//!
//! ```text
//! wal-writer create FILE BYTES
//! wal-writer format DEVICE
//! wal-writer run NUMBER DEVICE io_uring|pwritev2 stuck|loose
//! ```
//!
//! Stream 0 is drained only if it is `loose`; all others always. The lines are explained in `tests/tests/wal_kill/oracle.rs`.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use everlog_wal::device::{self, DeviceOptions, Method};
use everlog_wal::error::{AppendError, ReadError, TrimError};
use everlog_wal::format::{FormatOptions, format as format_log};
use everlog_wal::reservation::ReservationKey;
use everlog_wal::{LogId, OpenOptions, Seq, StreamId, Wal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

const STREAMS: u64 = 6;
const APPENDERS: u64 = 4;
const HEADER_LEN: usize = 32;
/// How much the stuck stream may hold: less than half of the ring, or it is refused instead of relocated.
const STUCK_BYTES_MAX: u64 = 8 << 20;
const READ_BYTES: usize = 1 << 20;

/// One fact, one write.
fn say(line: &str) {
    let mut line = line.to_owned();
    line.push('\n');
    if std::io::stdout().write_all(line.as_bytes()).is_err() {
        // Nobody would know what is done from here on.
        std::process::exit(1);
    }
}

fn stream_id(number: u64) -> StreamId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    StreamId::new(id)
}

fn stream_number(id: &StreamId) -> Result<u64> {
    let (number, rest) = id.as_bytes().split_at(8);
    ensure!(rest.iter().all(|byte| *byte == 0), "a foreign stream {id}");
    Ok(u64::from_le_bytes(number.try_into()?))
}

/// Who wrote a record, and which of its.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Name {
    stream: u64,
    run: u64,
    appender: u64,
    counter: u64,
}

impl Name {
    /// The record of this name: the name, then bytes that follow from it.
    fn record(self) -> Bytes {
        let mut state = self.run ^ self.stream << 16 ^ self.appender << 24 ^ self.counter << 32;
        let mut next = || {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        let shape = next();
        // Mostly small ones; some larger than a page, some of nothing but the name.
        let len = match shape % 16 {
            0 => 0,
            1 => shape >> 32 & 0xffff,
            2..=4 => shape >> 32 & 0x3fff,
            _ => shape >> 32 & 0x7ff,
        };
        let mut bytes = Vec::with_capacity(HEADER_LEN + usize::try_from(len).unwrap_or(0) + 8);
        for field in [self.stream, self.run, self.appender, self.counter] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for _ in 0..len.div_ceil(8) {
            bytes.extend_from_slice(&next().to_le_bytes());
        }
        Bytes::from(bytes)
    }

    /// The name in a record, if all of it is as it was written.
    fn of(record: &[u8]) -> Option<Name> {
        let field = |index: usize| {
            let bytes = record.get(index * 8..index * 8 + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let name = Name {
            stream: field(0)?,
            run: field(1)?,
            appender: field(2)?,
            counter: field(3)?,
        };
        (name.record() == record).then_some(name)
    }
}

fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["create", file, bytes] => {
            device::create_file(Path::new(file), bytes.parse()?, &mut |_| {})?;
            Ok(())
        }
        ["format", path] => format(Path::new(path)),
        ["run", number, path, method, stuck] => {
            let method = match *method {
                "io_uring" => Method::IoUring,
                "pwritev2" => Method::Pwritev2,
                other => bail!("no such method: {other}"),
            };
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(run(
                number.parse()?,
                Path::new(path),
                method,
                *stuck == "stuck",
            ))
        }
        _ => bail!("see the top of wal-writer.rs"),
    }
}

fn options(method: Method) -> Result<DeviceOptions> {
    let key = ReservationKey::new(1).context("not 0")?;
    Ok(DeviceOptions {
        method,
        // A killed process gives its claim back when its last write has ended.
        claim_patience: Duration::from_secs(30),
        ..DeviceOptions::new(key)
    })
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

fn format(path: &Path) -> Result<()> {
    let device = device::open(path, &options(Method::Best)?)?;
    let options = FormatOptions {
        id: LogId::new(rand::random()),
        record_bytes_max: Some(128 << 10),
        wall_ms: now_ms(),
    };
    format_log(&device, &options)?;
    Ok(())
}

async fn run(run: u64, path: &Path, method: Method, stuck: bool) -> Result<()> {
    let device = device::open(path, &options(method)?)?;
    let options = OpenOptions::new(now_ms);
    let (wal, recovery) = Wal::open(Arc::new(device), options).await?;
    say(&format!("# {recovery:?}"));
    show(&wal).await?;
    say("E");
    let mut tasks = tokio::task::JoinSet::new();
    for stream in 0..STREAMS {
        for appender in 0..APPENDERS {
            let name = Name {
                stream,
                run,
                appender,
                counter: 0,
            };
            tasks.spawn(append(wal.clone(), name));
        }
        if stream > 0 || !stuck {
            tasks.spawn(drain(wal.clone(), stream));
        }
    }
    let mut end = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = end.recv() => {}
        ended = tasks.join_next() => {
            say(&format!("X a task has ended: {ended:?}"));
            bail!("a task has ended: {ended:?}");
        }
    }
    tasks.shutdown().await;
    wal.close().await?;
    Ok(())
}

/// Says what the log holds, record by record.
async fn show(wal: &Wal) -> Result<()> {
    for (id, usage) in wal.streams() {
        let stream = stream_number(&id)?;
        say(&format!("H {stream} {} {}", usage.trimmed, usage.next));
        let mut at = usage.trimmed;
        while at < usage.next {
            let records = wal.read(id, at, READ_BYTES).await?;
            ensure!(!records.is_empty(), "nothing at {at} of stream {stream}");
            for record in records {
                ensure!(record.seq == at, "read {} for {at}", record.seq);
                let (seq, lsn) = (record.seq, record.lsn);
                match Name::of(&record.payload).filter(|name| name.stream == stream) {
                    Some(name) => say(&format!(
                        "V {stream} {seq} {} {} {} {lsn}",
                        name.run, name.appender, name.counter
                    )),
                    None => say(&format!("V {stream} {seq} BAD")),
                }
                at = at.plus(1);
            }
        }
    }
    Ok(())
}

/// Appends one record after the other, each only when the one before is durable.
async fn append(wal: Wal, mut name: Name) -> Result<()> {
    loop {
        if name.stream == 0 {
            sleep(Duration::from_millis(5)).await;
            while live_bytes(&wal, 0) > STUCK_BYTES_MAX {
                sleep(Duration::from_millis(50)).await;
            }
        }
        let (stream, appender, counter) = (name.stream, name.appender, name.counter);
        say(&format!("S {stream} {appender} {counter}"));
        let appended = loop {
            match wal.append(stream_id(stream), name.record()).await {
                Ok(appended) => break appended,
                // Refused is not appended: the same record again.
                Err(AppendError::Full | AppendError::StreamFull) => {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(error) => {
                    say(&format!("X append: {error}"));
                    return Err(error.into());
                }
            }
        };
        let (seq, lsn) = (appended.seq, appended.lsn);
        say(&format!("A {stream} {seq} {appender} {counter} {lsn}"));
        name.counter += 1;
    }
}

fn live_bytes(wal: &Wal, stream: u64) -> u64 {
    let id = stream_id(stream);
    let found = wal.streams().into_iter().find(|(other, _)| *other == id);
    found.map_or(0, |(_, usage)| usage.live_bytes)
}

/// Reads a stream in order, looks at each record, and trims behind itself, every so often for good.
async fn drain(wal: Wal, stream: u64) -> Result<()> {
    let id = stream_id(stream);
    let (mut at, mut round) = (Seq::ZERO, 0_u64);
    loop {
        let records = match wal.read(id, at, READ_BYTES).await {
            Ok(records) => records,
            Err(ReadError::Trimmed(below)) => {
                at = below;
                continue;
            }
            Err(error) => {
                say(&format!("X read {stream} {at}: {error}"));
                return Err(error.into());
            }
        };
        let Some(last) = records.last() else {
            sleep(Duration::from_millis(1)).await;
            continue;
        };
        let below = last.seq.plus(1);
        for record in &records {
            let name = Name::of(&record.payload);
            if record.seq != at || name.is_none_or(|name| name.stream != stream) {
                say(&format!(
                    "X read {stream} {}: not what was written",
                    record.seq
                ));
            }
            at = at.plus(1);
        }
        round += 1;
        say(&format!("T {stream} {below}"));
        if round.is_multiple_of(16) {
            match wal.sync_trim(id, below).await {
                Ok(()) => say(&format!("D {stream} {below}")),
                Err(TrimError::Full) => sleep(Duration::from_millis(5)).await,
                Err(error) => {
                    say(&format!("X trim: {error}"));
                    return Err(error.into());
                }
            }
        } else {
            wal.trim(id, below)?;
        }
    }
}
