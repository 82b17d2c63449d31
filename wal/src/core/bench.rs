//! A log on a device in memory, every write done at once. For tests.

use std::{collections::BTreeMap, io};

use bytes::Bytes;

use crate::{
    AlignedBuf, Device, LogId, Lsn, Seq, StreamId,
    core::{Core, CoreConfig, Effect, Output, Stuck},
    device::ram::RamDevice,
    error::{AppendError, Stopped, TrimError},
    format::{FormatOptions, format},
    reader::{read_block, read_stretch},
    recovery::{ScanOptions, scan},
};

pub(crate) const UNIT: usize = 4096;

pub(crate) fn stream(number: u8) -> StreamId {
    StreamId::new([number; 32])
}

pub(crate) fn options() -> FormatOptions {
    FormatOptions {
        id: LogId::new([9; 16]),
        record_bytes_max: None,
        wall_ms: 1,
    }
}

/// A log with its device, and what its callers were told.
pub(crate) struct Bench {
    pub(crate) device: RamDevice,
    pub(crate) core: Core,
    pub(crate) next_ticket: u64,
    pub(crate) appended: BTreeMap<u64, (StreamId, Seq, Lsn)>,
    pub(crate) refused: BTreeMap<u64, AppendError>,
    pub(crate) trimmed: BTreeMap<u64, Result<(), TrimError>>,
    pub(crate) closed: Option<Result<(), Stopped>>,
    pub(crate) opened: bool,
    /// What the log has said to be damaged.
    pub(crate) damaged: Vec<Stuck>,
    /// So many of the next reads go wrong, in this way.
    pub(crate) bad_reads: (u32, BadRead),
    pub(crate) reads: u32,
}

/// How a read goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadRead {
    /// The device answers with this error.
    Errno(i32),
    /// This bit of what was read.
    Flipped { byte: usize },
    /// Zeros in the place of the first so many bytes: a sector that can't be read.
    Lost { bytes: usize },
}

impl Bench {
    pub(crate) fn new(units: usize) -> Bench {
        let device = RamDevice::new((units + 2) * UNIT);
        format(&device, &options()).expect("formats");
        Bench::open(device)
    }

    pub(crate) fn open(device: RamDevice) -> Bench {
        Bench::open_with(device, CoreConfig::default())
    }

    pub(crate) fn open_with(device: RamDevice, config: CoreConfig) -> Bench {
        let scanned = scan(&device, &ScanOptions::default()).expect("a sound log");
        let mut bench = Bench {
            device,
            core: Core::open(scanned, config),
            next_ticket: 0,
            appended: BTreeMap::new(),
            refused: BTreeMap::new(),
            trimmed: BTreeMap::new(),
            closed: None,
            opened: false,
            damaged: Vec::new(),
            bad_reads: (0, BadRead::Errno(libc::EIO)),
            reads: 0,
        };
        bench.run();
        assert!(bench.opened);
        bench
    }

    pub(crate) fn index(&self) -> std::sync::RwLockReadGuard<'_, crate::index::Index> {
        self.core.index_ref()
    }

    pub(crate) fn run(&mut self) {
        while let Some(output) = self.core.poll(7) {
            match output {
                Output::Write(write) => {
                    let mut queue = self.device.queue(1).expect("a queue");
                    queue.submit(write);
                    let mut done = Vec::new();
                    queue.wait(None, &mut done).expect("no faults");
                    done.into_iter()
                        .for_each(|completion| self.core.write_done(completion));
                }
                Output::Read {
                    token,
                    offset,
                    bytes,
                } => {
                    let read = read_stretch(&self.device, offset, bytes);
                    self.reads += 1;
                    let read = read.and_then(|buf| self.spoil(buf));
                    self.core.read_done(token, read);
                }
            }
            self.drain();
        }
        self.drain();
    }

    fn spoil(&mut self, mut buf: AlignedBuf) -> io::Result<AlignedBuf> {
        let (left, how) = &mut self.bad_reads;
        if *left == 0 {
            return Ok(buf);
        }
        *left -= 1;
        match *how {
            BadRead::Errno(errno) => return Err(io::Error::from_raw_os_error(errno)),
            BadRead::Flipped { byte } => buf.as_mut_slice()[byte] ^= 4,
            BadRead::Lost { bytes } => buf.as_mut_slice()[..bytes].fill(0),
        }
        Ok(buf)
    }

    pub(crate) fn drain(&mut self) {
        while let Some(effect) = self.core.next_effect() {
            match effect {
                Effect::Opened => self.opened = true,
                Effect::Appended {
                    ticket,
                    stream,
                    lsn,
                    seq,
                } => {
                    self.appended.insert(ticket, (stream, seq, lsn));
                }
                Effect::Refused { ticket, error } => {
                    self.refused.insert(ticket, error);
                }
                Effect::Trimmed { ticket, result } => {
                    self.trimmed.insert(ticket, result);
                }
                Effect::Closed { result, .. } => self.closed = Some(result),
                Effect::Durable { buf, .. } => self.core.recycle(buf),
                Effect::Damaged(stuck) => self.damaged.push(stuck),
                Effect::Stopped(_) => {}
            }
        }
    }

    pub(crate) fn append(&mut self, id: u8, payload: &[u8]) -> Result<Seq, AppendError> {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.core
            .append(ticket, stream(id), Bytes::copy_from_slice(payload));
        self.run();
        match self.refused.get(&ticket) {
            Some(error) => Err(*error),
            None => Ok(self.appended.get(&ticket).expect("an answer").1),
        }
    }

    pub(crate) fn read(&self, id: u8, seq: u64) -> Option<Bytes> {
        let run = self.index().locate(stream(id), Seq::new(seq))?;
        let block = read_block(&self.device, self.core.ring, self.core.id, run.lsn)
            .expect("no faults")
            .expect("a sound block");
        let record = block.find(stream(id), Seq::new(seq)).expect("in its block");
        record.payload.clone()
    }

    pub(crate) fn crash(self) -> Bench {
        Bench::open(self.device.snapshot())
    }

    pub(crate) fn close(mut self) -> RamDevice {
        self.core.close(u64::MAX);
        self.run();
        assert_eq!(self.closed, Some(Ok(())));
        self.device
    }

    pub(crate) fn live(&self, id: u8) -> std::ops::Range<u64> {
        self.core
            .index_ref()
            .usage_of(stream(id))
            .map_or(0..0, |usage| usage.trimmed.get()..usage.next.get())
    }
}

pub(crate) fn payload(id: u8, seq: u64, bytes: usize) -> Vec<u8> {
    let mut payload = vec![id; bytes];
    payload[..8].copy_from_slice(&seq.to_le_bytes());
    payload
}
