//! What the log has promised: a model in memory, and the check of a recovered log against it.
//!
//! After a crash each stream must hold exactly its acknowledged records, in order and with their bytes, from some position that had been
//! asked to be trimmed (or none below what `sync_trim` had resolved) up to at least the last acknowledged one. Beyond that only
//! records in flight may follow, and over all streams these are a prefix of what was in flight.

use std::fmt;

use bytes::Bytes;

use super::rng::Rng;
use crate::StreamId;

/// How far one stream is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// The Seq after the last acknowledged record.
    pub acknowledged: u64,
    /// Records below may be gone: somebody asked to trim them.
    pub trimmed: u64,
    /// Records below must be gone: `sync_trim` has resolved.
    pub sync_trimmed: u64,
}

/// A record that has been appended and not acknowledged.
#[derive(Clone, Debug)]
pub struct InFlight {
    pub ticket: u64,
    pub stream: usize,
    pub payload: Bytes,
}

/// What is promised at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub promises: Vec<Promise>,
    /// In the order of their appends.
    pub in_flight: Vec<InFlight>,
}

/// Which records of one stream a recovered log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub first: u64,
    pub next: u64,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The model of one log over all its crashes.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The payloads of the acknowledged records of each stream, by Seq.
    records: Vec<Vec<Bytes>>,
    now: Snapshot,
    next_ticket: u64,
}

/// The name of the stream with this number.
pub fn stream_id(stream: usize) -> StreamId {
    let mut id = [0x5a; 32];
    id[..8].copy_from_slice(&(stream as u64).to_le_bytes());
    StreamId::new(id)
}

/// The number behind a name of [`stream_id`].
pub fn stream_number(id: StreamId, streams: usize) -> Option<usize> {
    let raw = id.as_bytes().first_chunk::<8>()?;
    let number = usize::try_from(u64::from_le_bytes(*raw)).ok()?;
    (number < streams && stream_id(number) == id).then_some(number)
}

impl Model {
    pub fn new(streams: usize) -> Model {
        Model {
            records: vec![Vec::new(); streams],
            now: Snapshot {
                promises: vec![Promise::default(); streams],
                in_flight: Vec::new(),
            },
            next_ticket: 1,
        }
    }

    pub fn streams(&self) -> usize {
        self.records.len()
    }

    pub fn snapshot(&self) -> Snapshot {
        self.now.clone()
    }

    pub fn promise(&self, stream: usize) -> Promise {
        self.now.promises[stream]
    }

    /// The Seq that the next record of the stream will get if nothing is refused.
    pub fn next_seq(&self, stream: usize) -> u64 {
        let waiting = self
            .now
            .in_flight
            .iter()
            .filter(|record| record.stream == stream)
            .count();
        self.now.promises[stream].acknowledged + waiting as u64
    }

    /// The records that nobody asked to trim, in all streams.
    pub fn live(&self) -> u64 {
        self.now
            .promises
            .iter()
            .map(|promise| promise.acknowledged.saturating_sub(promise.trimmed))
            .sum()
    }

    /// A new record of `len` bytes that looks like no other. Its ticket and payload.
    pub fn append(&mut self, stream: usize, len: usize, rng: &mut Rng) -> (u64, Bytes) {
        let ticket = self.ticket();
        let mut payload = Vec::with_capacity(len + 8);
        let salt = rng.draw();
        let mut word = salt ^ ticket;
        while payload.len() < len {
            payload.extend_from_slice(&word.to_le_bytes());
            // A weak generator is enough: what counts is that no two sectors of two records are alike.
            word = word
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(salt | 1);
        }
        payload.truncate(len);
        let payload = Bytes::from(payload);
        self.now.in_flight.push(InFlight {
            ticket,
            stream,
            payload: payload.clone(),
        });
        (ticket, payload)
    }

    pub fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// The record was not taken.
    pub fn refused(&mut self, ticket: u64) {
        self.now.in_flight.retain(|record| record.ticket != ticket);
    }

    /// The log says that the record is durable and has this Seq.
    pub fn acknowledged(&mut self, ticket: u64, seq: u64) -> Result<(), Violation> {
        let at = self
            .now
            .in_flight
            .iter()
            .position(|record| record.ticket == ticket)
            .ok_or_else(|| Violation(format!("ticket {ticket} acknowledged twice")))?;
        if at != 0 {
            return Err(Violation(format!(
                "ticket {ticket} acknowledged before an earlier one"
            )));
        }
        let record = self.now.in_flight.remove(at);
        let promise = &mut self.now.promises[record.stream];
        if promise.acknowledged != seq {
            return Err(Violation(format!(
                "stream {}: acknowledged as {seq}, expected {}",
                record.stream, promise.acknowledged
            )));
        }
        promise.acknowledged += 1;
        let records = &mut self.records[record.stream];
        // What an earlier life had in flight under this number and lost is forgotten.
        records.truncate(usize::try_from(seq).unwrap_or(usize::MAX));
        records.push(record.payload);
        Ok(())
    }

    pub fn trim(&mut self, stream: usize, below: u64) {
        let promise = &mut self.now.promises[stream];
        promise.trimmed = promise.trimmed.max(below);
    }

    pub fn sync_trimmed(&mut self, stream: usize, below: u64) {
        let promise = &mut self.now.promises[stream];
        promise.sync_trimmed = promise.sync_trimmed.max(below);
    }

    /// The model at an earlier moment of this life: what came later is forgotten.
    pub fn back_at(&self, snapshot: &Snapshot) -> Model {
        Model {
            records: self.records.clone(),
            now: snapshot.clone(),
            next_ticket: self.next_ticket,
        }
    }

    /// What is known once a log has been recovered as `held`: the records that were in flight and came back count as acknowledged.
    pub fn adopt(&mut self, held: &[Held]) {
        for (stream, held) in held.iter().enumerate() {
            while self.now.promises[stream].acknowledged < held.next {
                let at = self
                    .now
                    .in_flight
                    .iter()
                    .position(|record| record.stream == stream)
                    .expect("the check found it among those in flight");
                let record = self.now.in_flight.remove(at);
                let seq = self.now.promises[stream].acknowledged;
                let records = &mut self.records[stream];
                records.truncate(usize::try_from(seq).unwrap_or(usize::MAX));
                records.push(record.payload);
                self.now.promises[stream].acknowledged += 1;
            }
        }
    }

    /// The log is open: what it was found to hold is what there is. Nothing that an earlier owner had in flight can turn up any more, no
    /// record and no trim.
    pub fn opened(&mut self, held: &[Held]) {
        self.now.in_flight.clear();
        for (promise, held) in self.now.promises.iter_mut().zip(held) {
            promise.trimmed = held.first;
        }
    }

    /// The bytes that the record has, if at `snapshot` it was acknowledged or in flight.
    pub fn expected<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        stream: usize,
        seq: u64,
    ) -> Option<&'a Bytes> {
        let acknowledged = snapshot.promises.get(stream)?.acknowledged;
        if seq < acknowledged {
            return self.records[stream].get(usize::try_from(seq).ok()?);
        }
        snapshot
            .in_flight
            .iter()
            .filter(|record| record.stream == stream)
            .nth(usize::try_from(seq - acknowledged).ok()?)
            .map(|record| &record.payload)
    }

    /// Whether a log that holds `held` keeps what was promised at `snapshot`.
    pub fn check(snapshot: &Snapshot, held: &[Held]) -> Result<(), Violation> {
        let mut extra: Vec<u64> = Vec::with_capacity(held.len());
        for (stream, (held, promise)) in held.iter().zip(&snapshot.promises).enumerate() {
            check_bounds(stream, *held, *promise)?;
            extra.push(held.next - promise.acknowledged);
        }
        // What came back beyond the acknowledged records: the oldest in flight, without a gap.
        let total: u64 = extra.iter().sum();
        for record in snapshot
            .in_flight
            .iter()
            .take(usize::try_from(total).unwrap_or(usize::MAX))
        {
            let stream = record.stream;
            if extra[stream] == 0 {
                return Err(Violation(format!(
                    "a record in flight came back before stream {stream}'s, appended earlier"
                )));
            }
            extra[stream] -= 1;
        }
        match extra.iter().position(|left| *left != 0) {
            None => Ok(()),
            Some(stream) => Err(Violation(format!(
                "stream {stream} holds records that nobody appended"
            ))),
        }
    }
}

fn check_bounds(stream: usize, held: Held, promise: Promise) -> Result<(), Violation> {
    let fault = if held.next < promise.acknowledged {
        "acknowledged records are gone, or numbers are given twice"
    } else if held.first > held.next {
        "nonsense"
    } else if held.first > promise.trimmed {
        "records vanished that nobody trimmed"
    } else if held.first < promise.sync_trimmed {
        "records came back after sync_trim"
    } else {
        return Ok(());
    };
    Err(Violation(format!(
        "stream {stream}: {fault}: holds {held:?}, promised {promise:?}"
    )))
}
