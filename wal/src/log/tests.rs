//! The handle with its thread, on a device in memory.

use super::*;
use crate::{
    device::{
        Completion, DeviceGeometry, DeviceInfo, Write, WriteQueue,
        ram::{RamDevice, RamFault},
    },
    error::ReadError,
    format::{FormatOptions, format},
};

const UNIT: usize = 4096;

fn options() -> OpenOptions {
    OpenOptions::new(|| 0)
}

fn device(units: usize) -> RamDevice {
    let device = RamDevice::new((units + 2) * UNIT);
    let options = FormatOptions {
        id: LogId::new([3; 16]),
        record_bytes_max: None,
        wall_ms: 0,
    };
    format(&device, &options).expect("formats");
    device
}

async fn open(device: &RamDevice) -> Wal {
    let device: Arc<dyn Device> = Arc::new(device.clone());
    Wal::open(device, options()).await.expect("opens").0
}

fn stream(number: u8) -> StreamId {
    StreamId::new([number; 32])
}

#[tokio::test]
async fn records_from_many_tasks_are_durable_dense_and_read_in_order() {
    let device = device(4096);
    let wal = open(&device).await;
    let tasks: Vec<_> = (0..8u8)
        .map(|id| {
            let wal = wal.clone();
            tokio::spawn(async move {
                for number in 0..200u64 {
                    let payload = Bytes::from(number.to_le_bytes().repeat(20));
                    let appended = wal.append(stream(id), payload).await.expect("room");
                    assert_eq!(appended.seq, Seq::new(number));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    wal.close().await.expect("closes");
    let wal = open(&device).await;
    for id in 0..8 {
        let (mut at, mut numbers) = (Seq::ZERO, Vec::new());
        loop {
            let records = wal.read(stream(id), at, 1000).await.expect("sound");
            let Some(last) = records.last() else { break };
            at = last.seq.plus(1);
            numbers.extend(records.iter().map(|record| {
                let (bytes, _) = record.payload.split_first_chunk().expect("long enough");
                u64::from_le_bytes(*bytes)
            }));
        }
        assert_eq!(numbers, (0..200).collect::<Vec<_>>());
    }
}

/// The thread used to answer while it still held the device, so that now and then the next opening found it in use.
#[tokio::test]
async fn who_has_closed_the_log_has_the_device_for_himself() {
    let log = device(256);
    for _ in 0..200 {
        let device: Arc<dyn Device> = Arc::new(log.clone());
        let (wal, _) = Wal::open(Arc::clone(&device), options())
            .await
            .expect("opens");
        wal.append(stream(1), Bytes::from_static(b"record"))
            .await
            .expect("room");
        wal.close().await.expect("closes");
        assert_eq!(Arc::strong_count(&device), 1);
    }
}

/// A second close used to end the thread before the first had written what was queued.
#[tokio::test]
async fn closing_twice_or_giving_up_on_it_loses_nothing_that_is_queued() {
    let log = device(1024);
    let wal = open(&log).await;
    let appends: Vec<_> = (0..50)
        .map(|_| {
            let wal = wal.clone();
            tokio::spawn(async move { wal.append(stream(1), Bytes::from(vec![7; 9_000])).await })
        })
        .collect();
    // All are queued, and none is durable before the first of them is waited for.
    tokio::task::yield_now().await;
    let (first, second) = tokio::join!(wal.clone().close(), wal.clone().close());
    assert_eq!((first, second), (Ok(()), Ok(())));
    drop(wal);
    for append in appends {
        append.await.expect("no panic").expect("was queued before");
    }
    let device: Arc<dyn Device> = Arc::new(log.clone());
    let (wal, recovery) = Wal::open(device, options()).await.expect("opens");
    assert!(recovery.clean);
    let records = wal.read(stream(1), Seq::ZERO, 1 << 20).await;
    assert_eq!(records.expect("sound").len(), 50);
}

/// Who gives up on opening used to leave a thread behind that held the device for good.
#[tokio::test]
async fn an_opening_that_nobody_waits_for_lets_the_device_go() {
    let log = device(256);
    for _ in 0..50 {
        let device: Arc<dyn Device> = Arc::new(log.clone());
        let opening = Wal::open(Arc::clone(&device), options());
        let _ = tokio::time::timeout(Duration::from_micros(50), opening).await;
        while Arc::strong_count(&device) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A newcomer with a small record used to pass a large one that had waited for room and had not run yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn records_are_numbered_in_the_order_of_their_first_poll_also_when_the_queue_is_full() {
    let log = device(4096);
    let device: Arc<dyn Device> = Arc::new(log);
    let small = OpenOptions {
        queue_bytes_max: 1 << 20,
        ..options()
    };
    let (wal, _) = Wal::open(device, small).await.expect("opens");
    for round in 0..40_u64 {
        let mut tasks = Vec::new();
        for number in 0..64_u64 {
            let wal = wal.clone();
            let bytes = if number % 2 == 0 { 200_000 } else { 8 };
            let payload = Bytes::from(vec![0; bytes]);
            let mut append = Box::pin(async move { wal.append(stream(1), payload).await });
            // Polled once here, so that the order is certain, and then left to the runtime.
            let first = poll_once(&mut append).await;
            tasks.push(tokio::spawn(async move {
                match first {
                    Some(done) => done,
                    None => append.await,
                }
            }));
        }
        for (task, number) in tasks.into_iter().zip(0..) {
            let appended = task.await.expect("no panic").expect("room");
            assert_eq!(appended.seq, Seq::new(round * 64 + number));
        }
        wal.trim(stream(1), Seq::new((round + 1) * 64))
            .expect("known");
    }
}

/// Polls once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn a_cursor_waits_for_records_and_is_told_of_the_end() {
    let device = device(256);
    let wal = open(&device).await;
    let mut cursor = wal.cursor(stream(1), Seq::ZERO);
    let follower = tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            match cursor.next().await {
                Ok(record) => seen.push(record.payload),
                Err(error) => return (seen, error),
            }
        }
    });
    for text in ["one", "two", "three"] {
        let payload = Bytes::from_static(text.as_bytes());
        wal.append(stream(1), payload).await.expect("room");
    }
    while wal.usage().live_records < 3 {
        tokio::task::yield_now().await;
    }
    wal.close().await.expect("closes");
    let (seen, error) = follower.await.expect("no panic");
    assert_eq!(seen, ["one", "two", "three"]);
    assert!(
        matches!(error, ReadError::Stopped(Stopped::Closed)),
        "{error}"
    );
}

#[tokio::test]
async fn a_failed_write_stops_the_log_and_nobody_is_acknowledged_any_more() {
    for fault in [
        RamFault::Errno(libc::EIO),
        RamFault::Short(512),
        RamFault::Errno(libc::EBADE),
    ] {
        let device = device(256);
        let wal = open(&device).await;
        wal.append(stream(1), Bytes::from_static(b"kept"))
            .await
            .expect("room");
        device.fail_from(device.writes(), fault);
        let stopped = match fault {
            RamFault::Errno(libc::EBADE) => Stopped::Fenced,
            RamFault::Errno(errno) => Stopped::Poisoned { errno: Some(errno) },
            RamFault::Short(_) => Stopped::Poisoned { errno: None },
        };
        let append = || wal.append(stream(1), Bytes::from_static(b"lost"));
        assert_eq!(append().await, Err(AppendError::Stopped(stopped)));
        assert_eq!(append().await, Err(AppendError::Stopped(stopped)));
        assert_eq!(wal.stopped(), Some(stopped));
        assert_eq!(wal.close().await, Err(stopped));
        let wal = open(&device.snapshot()).await;
        let records = wal.read(stream(1), Seq::ZERO, 1000).await.expect("sound");
        assert_eq!(records[0].payload, "kept");
    }
}

#[tokio::test]
async fn a_damaged_record_is_named_and_the_next_one_is_read() {
    let device = device(256);
    let wal = open(&device).await;
    let mut places = Vec::new();
    for text in ["first", "second", "third"] {
        let payload = Bytes::from_static(text.as_bytes());
        places.push(wal.append(stream(1), payload).await.expect("room"));
    }
    wal.close().await.expect("closes");
    let wal = open(&device).await;
    let second = places[1].lsn.get() % (256 * UNIT as u64) + UNIT as u64;
    device.damage(second, |bytes| bytes[192] ^= 1);
    let records = wal
        .read(stream(1), Seq::ZERO, 1000)
        .await
        .expect("the first is sound");
    assert_eq!(records.len(), 1);
    let error = wal
        .read(stream(1), Seq::new(1), 1000)
        .await
        .expect_err("damaged");
    assert!(
        matches!(error, ReadError::Damaged { seq, .. } if seq == Seq::new(1)),
        "{error}"
    );
    let records = wal
        .read(stream(1), Seq::new(2), 1000)
        .await
        .expect("the third is sound");
    assert_eq!(records[0].payload, "third");
}

#[tokio::test]
async fn a_trim_lets_waiting_records_through() {
    let device = device(128);
    let wal = open(&device).await;
    let payload = Bytes::from(vec![1; 3000]);
    let mut appended = 0;
    let refused = loop {
        match wal.append(stream(0), payload.clone()).await {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, AppendError::StreamFull);
    assert_eq!(wal.usage().culprit, Some(stream(0)));
    wal.sync_trim(stream(0), Seq::new(appended))
        .await
        .expect("has room");
    wal.append(stream(0), payload).await.expect("room again");
    let error = wal
        .read(stream(0), Seq::ZERO, 1)
        .await
        .expect_err("trimmed");
    assert!(matches!(error, ReadError::Trimmed(below) if below == Seq::new(appended)));
}

/// A device that counts the writes that are alone, and fails those from one on.
#[derive(Debug)]
struct Alone {
    inner: RamDevice,
    fails_from: usize,
    count: Arc<AtomicUsize>,
}

struct AloneQueue {
    inner: Box<dyn WriteQueue>,
    fails_from: usize,
    count: Arc<AtomicUsize>,
    failed: Vec<Completion>,
}

impl Device for Alone {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn reservation_key(&self) -> u64 {
        self.inner.reservation_key()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.inner.sync()
    }

    fn queue(&self, depth: usize) -> std::io::Result<Box<dyn WriteQueue>> {
        Ok(Box::new(AloneQueue {
            inner: self.inner.queue(depth)?,
            fails_from: self.fails_from,
            count: Arc::clone(&self.count),
            failed: Vec::new(),
        }))
    }
}

impl WriteQueue for AloneQueue {
    fn submit(&mut self, write: Write) {
        self.inner.submit(write);
    }

    fn submit_alone(&mut self, write: Write) {
        if self.count.fetch_add(1, Ordering::SeqCst) < self.fails_from {
            return self.inner.submit(write);
        }
        self.failed.push(Completion {
            token: write.token,
            result: Err(std::io::Error::from_raw_os_error(libc::EIO)),
            buf: write.buf,
        });
    }

    fn wait(
        &mut self,
        timeout: Option<Duration>,
        done: &mut Vec<Completion>,
    ) -> std::io::Result<()> {
        if self.failed.is_empty() {
            return self.inner.wait(timeout, done);
        }
        done.append(&mut self.failed);
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

#[tokio::test]
async fn one_who_appends_alone_is_written_alone_and_a_failure_there_stops_the_log() {
    const FAILS_FROM: usize = 20;
    let inner = device(1024);
    let count = Arc::new(AtomicUsize::new(0));
    let alone: Arc<dyn Device> = Arc::new(Alone {
        inner: inner.clone(),
        fails_from: FAILS_FROM,
        count: Arc::clone(&count),
    });
    let (wal, _) = Wal::open(alone, options()).await.expect("opens");
    let mut acknowledged = 0;
    let error = loop {
        match wal
            .append(stream(1), Bytes::from_static(b"on the spot"))
            .await
        {
            Ok(appended) => {
                assert_eq!(appended.seq, Seq::new(acknowledged));
                acknowledged += 1;
                assert!(acknowledged < 1000, "no write was alone");
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(
        error,
        AppendError::Stopped(Stopped::Poisoned { .. })
    ));
    assert_eq!(count.load(Ordering::SeqCst), FAILS_FROM + 1);
    drop(wal);
    // What was acknowledged is there, and nothing else was.
    let wal = open(&inner).await;
    let records = wal
        .read(stream(1), Seq::ZERO, 1 << 20)
        .await
        .expect("sound");
    assert_eq!(records.len() as u64, acknowledged);
}
