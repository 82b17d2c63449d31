//! Recovers a log from a simulated device and holds it against the model.

use std::cell::RefCell;

use super::model::{Held, Model, Snapshot, Violation, stream_id, stream_number};
use crate::{
    Lsn, Seq,
    block::{Block, BlockHeader, EntryKind},
    device::sim::SimDevice,
    error::OpenError,
    recovery::{ScanOptions, Scanned, scan_with},
};

/// A log that was recovered and keeps its promises.
#[derive(Debug)]
pub struct Recovered {
    pub scanned: Scanned,
    /// By the number of the stream.
    pub held: Vec<Held>,
}

/// How a device is read here: in small pieces, so that records lie across them.
pub fn scan_options() -> ScanOptions {
    ScanOptions {
        piece_bytes: 64 << 10,
        segment_bytes: None,
        ..ScanOptions::default()
    }
}

/// A record that the walk saw, and the block.
type Seen = Vec<(usize, u64, Lsn)>;

/// Recovers the log. An error of the log itself comes back as such; whether it may refuse is for the caller to say.
pub fn recover(
    device: &SimDevice,
    model: &Model,
    promised: &Snapshot,
) -> Result<Result<Recovered, OpenError>, Violation> {
    let streams = model.streams();
    let seen: RefCell<Seen> = RefCell::new(Vec::new());
    let wrong: RefCell<Option<Violation>> = RefCell::new(None);
    let mut visitor = |header: &BlockHeader, block: Option<&Block<'_>>| {
        let Some(block) = block else { return };
        let looked = look(header, block, model, promised, &mut seen.borrow_mut());
        if let Err(violation) = looked {
            wrong.borrow_mut().get_or_insert(violation);
        }
    };
    let scanned = match scan_with(device, &scan_options(), &mut visitor) {
        Ok(scanned) => scanned,
        Err(error) => return Ok(Err(error)),
    };
    if let Some(violation) = wrong.take() {
        return Err(violation);
    }
    let held = held(&scanned, streams)?;
    Model::check(promised, &held)?;
    located(&scanned, &held, &seen.into_inner())?;
    Ok(Ok(Recovered { scanned, held }))
}

/// Each record of a block that is taken has the bytes that were appended under its number.
fn look(
    header: &BlockHeader,
    block: &Block<'_>,
    model: &Model,
    promised: &Snapshot,
    seen: &mut Seen,
) -> Result<(), Violation> {
    for record in block.records() {
        let Some(stream) = stream_number(record.entry.stream, model.streams()) else {
            return Err(Violation(format!(
                "block {}: a stream that nobody appended to",
                header.lsn
            )));
        };
        if matches!(record.entry.kind, EntryKind::State { .. }) {
            continue;
        }
        let seq = record.entry.seq.get();
        match model.expected(promised, stream, seq) {
            Some(expected) if expected[..] == *record.payload => {}
            // A damaged record is the log's to report; here only what it takes for sound must be right.
            _ if !record.intact => continue,
            Some(_) => {
                return Err(Violation(format!(
                    "stream {stream} record {seq} in block {}: other bytes than appended",
                    header.lsn
                )));
            }
            None => {
                return Err(Violation(format!(
                    "stream {stream} record {seq} in block {}: nobody appended it",
                    header.lsn
                )));
            }
        }
        seen.push((stream, seq, header.lsn));
    }
    Ok(())
}

fn held(scanned: &Scanned, streams: usize) -> Result<Vec<Held>, Violation> {
    for (id, _) in scanned.index.streams() {
        if stream_number(id, streams).is_none() {
            return Err(Violation(format!("stream {id} that nobody appended to")));
        }
    }
    Ok((0..streams)
        .map(|stream| match scanned.index.usage_of(stream_id(stream)) {
            Some(usage) => Held {
                first: usage.trimmed.get(),
                next: usage.next.get(),
            },
            // A stream that is not known holds nothing and starts at 0: wrong if anything was promised.
            None => Held { first: 0, next: 0 },
        })
        .collect())
}

/// The index knows each record at the place where the walk saw it last.
fn located(scanned: &Scanned, held: &[Held], seen: &Seen) -> Result<(), Violation> {
    let end = scanned.end.lsn;
    let mut places: Vec<Vec<Option<Lsn>>> = held
        .iter()
        .map(|held| vec![None; usize::try_from(held.next - held.first).unwrap_or(0)])
        .collect();
    // The walk also shows a block that it then finds to be torn and does not take: it lies at the end.
    for (stream, seq, lsn) in seen.iter().filter(|(_, _, lsn)| *lsn < end) {
        let place = seq
            .checked_sub(held[*stream].first)
            .and_then(|index| places[*stream].get_mut(usize::try_from(index).ok()?));
        if let Some(place) = place {
            *place = Some(*lsn);
        }
    }
    for (stream, (held, places)) in held.iter().zip(&places).enumerate() {
        for (seq, place) in (held.first..held.next).zip(places) {
            let run = scanned.index.locate(stream_id(stream), Seq::new(seq));
            if run.map(|run| run.lsn) != *place || place.is_none() {
                return Err(Violation(format!(
                    "stream {stream} record {seq}: the index says {run:?}, it was seen last at {place:?}"
                )));
            }
        }
    }
    Ok(())
}
