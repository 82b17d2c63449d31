//! Exports a damaged log and holds what comes out against the model: everything that is intact on the device, with its bytes, and nothing else.

use std::{collections::BTreeSet, io, ops::Range};

use super::{
    model::{Model, Snapshot, Violation, stream_number},
    states::log_id,
};
use crate::{
    Lsn, StreamId,
    block::{Block, BlockHeader, ENTRY_BYTES, EntryKind, HEADER_BYTES},
    device::sim::{Image, SimDevice},
    export::{SurveyOptions, Totals, survey},
    geometry::Ring,
};

/// Where a record, or a copy of it, lies in a sound log.
#[derive(Clone, Debug)]
pub struct Lying {
    stream: StreamId,
    seq: u64,
    /// Header and directory of its block, as bytes of the device.
    block: Range<u64>,
    payload: Range<u64>,
}

/// Where the records of a block lie.
pub fn lying(ring: Ring, header: &BlockHeader, block: &Block<'_>) -> Vec<Lying> {
    let start = ring.physical(header.lsn);
    let head = (HEADER_BYTES + block.entries.len() * ENTRY_BYTES) as u64;
    block
        .records()
        .filter(|record| !matches!(record.entry.kind, EntryKind::State { .. }))
        .map(|record| {
            let at = start + record.at as u64;
            Lying {
                stream: record.entry.stream,
                seq: record.entry.seq.get(),
                block: start..start + head,
                payload: at..at + record.payload.len() as u64,
            }
        })
        .collect()
}

/// A sound log, and what is known of it.
#[derive(Debug)]
pub struct Known<'a> {
    pub image: &'a Image,
    pub lying: &'a [Lying],
    pub model: &'a Model,
    pub promised: &'a Snapshot,
}

impl Known<'_> {
    /// Exports `device`, which was `image` before it was damaged and can't be read at `unreadable`. Gives how many records came out.
    pub fn rescue(&self, device: &SimDevice, unreadable: &[Range<u64>]) -> Result<u64, Violation> {
        let failed = |error: &dyn std::fmt::Display| Violation(format!("export: {error}"));
        let streams = self.model.streams();
        let wanted = self.intact(&device.visible(), unreadable);
        // As an operator would, who knows which log it is: with both header copies gone nothing on the device says so for sure.
        let options = SurveyOptions {
            id: Some(log_id(&self.image.to_vec(0, 512))),
            ..SurveyOptions::default()
        };
        let survey = survey(device, &options, &mut |_, _| {}).map_err(|error| failed(&error))?;
        let mut out: BTreeSet<(StreamId, u64)> = BTreeSet::new();
        let mut wrong = None;
        let mut totals = Totals::default();
        survey
            .records(device, Lsn::ZERO, &mut totals, &mut |record| {
                if !record.is_intact {
                    return Ok(());
                }
                let (stream, seq) = (record.stream, record.seq.get());
                let expected = stream_number(stream, streams)
                    .and_then(|number| self.model.expected(self.promised, number, seq));
                if expected.is_none_or(|expected| expected[..] != *record.payload) {
                    wrong.get_or_insert((stream, seq));
                }
                out.insert((stream, seq));
                Ok::<(), io::Error>(())
            })
            .map_err(|error| failed(&error))?;
        if let Some((stream, seq)) = wrong {
            return Err(Violation(format!(
                "export calls record {seq} of stream {stream} intact, and nobody appended that"
            )));
        }
        match wanted.difference(&out).next() {
            None => Ok(totals.records),
            Some((stream, seq)) => Err(Violation(format!(
                "record {seq} of stream {stream} is intact, and export leaves it out: {} of {} came out",
                out.len(),
                wanted.len()
            ))),
        }
    }

    /// The live records of which a copy lies as it lay, with the header and the directory of its block.
    fn intact(&self, damaged: &Image, unreadable: &[Range<u64>]) -> BTreeSet<(StreamId, u64)> {
        let is_live = |lying: &&Lying| {
            let number = stream_number(lying.stream, self.model.streams());
            let promise = number.and_then(|number| self.promised.promises.get(number));
            promise
                .is_some_and(|promise| (promise.trimmed..promise.acknowledged).contains(&lying.seq))
        };
        let is_as_before = |place: &Range<u64>| {
            let len = usize::try_from(place.end - place.start).unwrap_or(0);
            let can_be_read = unreadable
                .iter()
                .all(|bad| bad.end <= place.start || place.end <= bad.start);
            can_be_read && damaged.to_vec(place.start, len) == self.image.to_vec(place.start, len)
        };
        self.lying
            .iter()
            .filter(is_live)
            .filter(|lying| is_as_before(&lying.block) && is_as_before(&lying.payload))
            .map(|lying| (lying.stream, lying.seq))
            .collect()
    }
}
