//! The fence as the log uses it: what the old owner has acknowledged, the new one has recovered; and the old one hears that it is over.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use everlog_wal::device::{Device, Method};
use everlog_wal::error::{AppendError, OpenError, Stopped};
use everlog_wal::format::{FormatOptions, format};
use everlog_wal::reservation::Preempt;
use everlog_wal::{LogId, OpenOptions, Seq, StreamId, Wal};
use tokio::task::JoinSet;

use crate::devices::{open, usable};
use crate::{Case, Outcome, Volume, ensure};

pub(crate) const NVME: &[Case] = &[
    (
        "after_preempt_alone_the_old_owner_acknowledges_what_nobody_recovers",
        after_preempt_alone_the_old_owner_acknowledges_what_nobody_recovers,
    ),
    (
        "what_the_old_owner_has_acknowledged_the_new_one_has_recovered",
        what_the_old_owner_has_acknowledged_the_new_one_has_recovered,
    ),
];

pub(crate) const SCSI: &[Case] = &[(
    "an_owner_that_is_fenced_stops_and_does_not_come_back_by_itself",
    an_owner_that_is_fenced_stops_and_does_not_come_back_by_itself,
)];

const STREAM: StreamId = StreamId::new([7; 32]);
/// Enough that several blocks are in flight.
const APPENDERS: u64 = 6;
const PATIENCE: Duration = Duration::from_secs(120);

type Failure = Box<dyn std::error::Error>;
/// Records by their number.
type Records = BTreeMap<u64, Bytes>;

/// The clock is a label only.
fn no_clock() -> u64 {
    0
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

fn make(volume: &Volume, id: u8) -> Outcome {
    let device = open(&volume.first, Method::Best, usable(&volume.first))?;
    let options = FormatOptions {
        id: LogId::new([id; 16]),
        record_bytes_max: None,
        wall_ms: 0,
    };
    format(&device, &options)?;
    Ok(())
}

/// An owner: its log, and its device for another opening.
struct Owner {
    wal: Wal,
    device: Arc<dyn Device>,
}

async fn own(path: &Path, method: Method, preempt: Preempt) -> Result<Owner, Failure> {
    let path = path.to_owned();
    let device = tokio::task::spawn_blocking(move || open(&path, method, preempt)).await??;
    let options = OpenOptions::new(no_clock);
    let device: Arc<dyn Device> = Arc::new(device);
    let (wal, _) = Wal::open(Arc::clone(&device), options).await?;
    Ok(Owner { wal, device })
}

async fn all(wal: &Wal) -> Result<Records, Failure> {
    let mut records = Records::new();
    let mut at = Seq::ZERO;
    loop {
        let read = wal.read(STREAM, at, 1 << 20).await?;
        let Some(last) = read.last() else {
            return Ok(records);
        };
        at = last.seq.plus(1);
        records.extend(
            read.into_iter()
                .map(|record| (record.seq.get(), record.payload)),
        );
    }
}

/// Appends until it is told that it is over.
async fn append(
    wal: Wal,
    name: String,
    acknowledged: Arc<Mutex<Records>>,
) -> Result<(), AppendError> {
    for count in 0_u64.. {
        let payload = Bytes::from(format!("{name} {count}"));
        let appended = wal.append(STREAM, payload.clone()).await?;
        let mut acknowledged = acknowledged.lock().expect("nobody panics with it");
        acknowledged.insert(appended.seq.get(), payload);
    }
    Ok(())
}

/// What came of a take-over in the middle of the old owner's work.
struct TakeOver {
    /// In all its life, before and after.
    acknowledged: Records,
    recovered: Records,
    /// How its appenders ended.
    ends: Vec<Result<(), AppendError>>,
    old: Owner,
    new: Owner,
}

/// Lets `old` work, and opens the log at the other host while writes of it are held up.
async fn take_over(
    old: Owner,
    name: &str,
    to: &Path,
    method: Method,
    preempt: Preempt,
) -> Result<TakeOver, Failure> {
    let acknowledged = Arc::new(Mutex::new(Records::new()));
    let mut appenders = JoinSet::new();
    for number in 0..APPENDERS {
        let name = format!("{name}{number}");
        appenders.spawn(append(old.wal.clone(), name, Arc::clone(&acknowledged)));
    }
    let begun = Instant::now();
    while acknowledged.lock().expect("nobody panics with it").len() < 12 {
        if begun.elapsed() > PATIENCE {
            return Err("the old owner got nothing done".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The next ones are on their way by then.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let new = own(to, method, preempt).await?;
    let recovered = all(&new.wal).await?;
    let ends = tokio::time::timeout(PATIENCE, appenders.join_all()).await?;
    let acknowledged = acknowledged.lock().expect("nobody panics with it").clone();
    Ok(TakeOver {
        acknowledged,
        recovered,
        ends,
        old,
        new,
    })
}

impl TakeOver {
    /// Acknowledged, and not there, or something else there.
    fn lost(&self) -> Vec<u64> {
        self.acknowledged
            .iter()
            .filter(|(seq, payload)| self.recovered.get(seq) != Some(payload))
            .map(|(seq, _)| *seq)
            .collect()
    }

    fn all_fenced(&self) -> bool {
        self.ends
            .iter()
            .all(|end| *end == Err(AppendError::Stopped(Stopped::Fenced)))
    }
}

/// The control: with the wrong fence the very same check finds the loss.
fn after_preempt_alone_the_old_owner_acknowledges_what_nobody_recovers(volume: &Volume) -> Outcome {
    make(volume, 1)?;
    runtime()?.block_on(async {
        let old = own(&volume.first, Method::IoUring, Preempt::AndAbort).await?;
        let it = take_over(old, "old", &volume.second, Method::IoUring, Preempt::Only).await?;
        ensure(!it.lost().is_empty(), || {
            format!(
                "nothing was lost of {} records: this machine holds no write up",
                it.acknowledged.len()
            )
        })
    })
}

fn what_the_old_owner_has_acknowledged_the_new_one_has_recovered(volume: &Volume) -> Outcome {
    make(volume, 2)?;
    runtime()?.block_on(async {
        let mut owner = own(&volume.first, Method::IoUring, Preempt::AndAbort).await?;
        // There and back again, with both ways of writing.
        let rounds = [
            (&volume.second, Method::Pwritev2),
            (&volume.first, Method::IoUring),
            (&volume.second, Method::IoUring),
        ];
        for (round, (to, method)) in rounds.into_iter().enumerate() {
            let name = format!("round{round}/");
            let it = take_over(owner, &name, to, method, Preempt::AndAbort).await?;
            let lost = it.lost();
            ensure(lost.is_empty(), || {
                format!("round {round}: acknowledged and not recovered: {lost:?}")
            })?;
            ensure(it.all_fenced(), || {
                format!("round {round}: the appenders ended with {:?}", it.ends)
            })?;
            // What it has recovered stays.
            let again = all(&it.new.wal).await?;
            ensure(again == it.recovered, || "the log has changed".to_owned())?;
            drop(it.old);
            owner = it.new;
        }
        owner.wal.close().await?;
        Ok(())
    })
}

fn an_owner_that_is_fenced_stops_and_does_not_come_back_by_itself(volume: &Volume) -> Outcome {
    make(volume, 3)?;
    runtime()?.block_on(async {
        let old = own(&volume.first, Method::IoUring, Preempt::Only).await?;
        let mut acknowledged = Records::new();
        for count in 0..50 {
            let payload = Bytes::from(format!("record {count}"));
            let appended = old.wal.append(STREAM, payload.clone()).await?;
            acknowledged.insert(appended.seq.get(), payload);
        }
        // Nothing may be in flight here, the idle mark neither.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let new = own(&volume.second, Method::IoUring, Preempt::Only).await?;
        let recovered = all(&new.wal).await?;
        ensure(recovered == acknowledged, || {
            format!("{} recovered of {}", recovered.len(), acknowledged.len())
        })?;
        new.wal.append(STREAM, Bytes::from_static(b"new")).await?;
        for _ in 0..2 {
            let refused = old.wal.append(STREAM, Bytes::from_static(b"late")).await;
            ensure(
                refused == Err(AppendError::Stopped(Stopped::Fenced)),
                || format!("the old owner's append ended with {refused:?}"),
            )?;
        }
        // On the handle it has: only a new opening of the device, which somebody has to want, takes it back.
        drop(old.wal);
        let again = Wal::open(old.device, OpenOptions::new(no_clock)).await;
        ensure(matches!(again, Err(OpenError::Fenced)), || {
            format!("it opened its log again: {again:?}")
        })?;
        let seq = new.wal.append(STREAM, Bytes::from_static(b"more")).await?;
        ensure(seq.seq == Seq::new(51), || format!("{seq:?}"))?;
        new.wal.close().await?;
        Ok(())
    })
}
