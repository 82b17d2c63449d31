//! States that no crash leaves and a device all the same may: blocks of another history, of a dead epoch, with numbers left out.

use super::{
    check,
    corruption::{Still, resume},
    model::{Violation, stream_id},
    rng::Rng,
    session::Session,
};
use crate::{
    AlignedBuf, Lsn, Seq,
    block::{self, BlockHeader, BlockKind, EntryKind, NewEntry},
    device::sim::{Event, Landed, SimDevice},
    error::OpenError,
    geometry::Slot,
    reader::read_block,
    recovery::{Case, EndReason, ScanOptions, scan},
};

/// Two histories of one log that part after a snapshot of its device, and a block of one of them in the other: it has the right
/// name, place and epoch, and follows another block.
pub fn spliced(seed: u64) -> Result<(), Violation> {
    let still = Still::young(seed)?;
    let history = |salt: u64| -> Result<_, Violation> {
        let mut rng = Rng::new(seed);
        let mut session = resume(&still, &mut rng)?;
        session.settle()?;
        let mut rng = Rng::new(seed ^ salt);
        for _ in 0..4 {
            session.append(0, 1000, &mut rng)?;
            session.settle()?;
        }
        session.settle_and_mark()?;
        let first = session.core().header().limit;
        let (device, model, _) = session.left();
        Ok((device, model, first))
    };
    let (ours, model, _) = history(1)?;
    let (theirs, _, _) = history(2)?;
    let mut blocks: Vec<BlockHeader> = Vec::new();
    crate::recovery::scan_with(&ours, &ScanOptions::default(), &mut |header, _| {
        blocks.push(*header);
    })
    .map_err(|error| Violation(error.to_string()))?;
    let new: Vec<&BlockHeader> = blocks
        .iter()
        .filter(|header| header.lsn >= still.end && header.kind == BlockKind::Data)
        .collect();
    let Some(block) = new.get(2) else {
        return Err(Violation(format!("too few blocks: {blocks:?}")));
    };
    let at = still.ring.physical(block.lsn);
    let bytes = theirs
        .durable()
        .to_vec(at, usize::try_from(block.bytes).unwrap_or(0));
    ours.damage(|image| image.write(at, &bytes, Landed::All));
    let promised = model.snapshot();
    match check::recover(&ours, &model, &promised)? {
        Err(OpenError::Corrupt(_)) => Ok(()),
        other => Err(Violation(format!(
            "a block of another history was taken: {:?}",
            other.map(|recovered| recovered.scanned.recovery)
        ))),
    }
}

/// The next block of `still`, made by hand, where a limit allows it.
fn with_block(
    still: &Still,
    epoch_back: u64,
    first_seq_ahead: i64,
) -> Result<(SimDevice, Lsn, u64), Violation> {
    // How far the limit goes beyond the end hangs on the window that is drawn.
    let mut last = Err(Violation("never tried".to_owned()));
    for salt in 1..=20 {
        last = with_block_once(still, salt, epoch_back, first_seq_ahead);
        if last.is_ok() {
            break;
        }
    }
    last
}

fn with_block_once(
    still: &Still,
    salt: u64,
    epoch_back: u64,
    first_seq_ahead: i64,
) -> Result<(SimDevice, Lsn, u64), Violation> {
    let mut rng = Rng::new(salt);
    let mut session = resume(still, &mut rng)?;
    // One record, so that the limit allows blocks behind it.
    session.append(0, 100, &mut rng)?;
    session.settle_and_mark()?;
    let next = session.model.promise(0).acknowledged;
    let (device, _, _) = session.left();
    let scanned =
        scan(&device, &ScanOptions::default()).map_err(|error| Violation(error.to_string()))?;
    let (end, header) = (scanned.end, &scanned.header);
    if end.lsn.plus(4096) > header.limit {
        return Err(Violation("no room below the limit".to_owned()));
    }
    let entry = NewEntry {
        kind: EntryKind::Record,
        stream: stream_id(0),
        seq: Seq::new(next.saturating_add_signed(first_seq_ahead)),
        payload: vec![1; 100],
    };
    let mut buf = AlignedBuf::zeroed(4096);
    let pad = BlockHeader::gap_pad(
        header.id,
        header.epoch - epoch_back,
        end.lsn,
        end.lsn,
        end.chain,
    );
    block::encode(scanned.ring, pad, &[entry], &mut buf);
    let at = scanned.ring.physical(end.lsn);
    device.damage(|image| image.write(at, buf.as_slice(), Landed::All));
    Ok((device, end.lsn, next))
}

/// A block of an earlier epoch where the log ends, with the right chain: not a block of this log any more.
pub fn earlier_epoch(seed: u64) -> Result<(), Violation> {
    let still = Still::young(seed)?;
    let (device, end, _) = with_block(&still, 1, 0)?;
    match scan(&device, &ScanOptions::default()) {
        Ok(scanned) if scanned.end.lsn == end => Ok(()),
        other => Err(Violation(format!(
            "a block of a dead epoch was taken: {:?}",
            other.map(|scanned| scanned.recovery)
        ))),
    }
}

/// A block that is sound in itself, but leaves out a number of its stream.
pub fn skipped_number(seed: u64) -> Result<(), Violation> {
    let still = Still::young(seed)?;
    let (device, _, _) = with_block(&still, 0, 1)?;
    match scan(&device, &ScanOptions::default()) {
        Err(OpenError::Corrupt(_)) => Ok(()),
        other => Err(Violation(format!(
            "a number is missing, and nobody minds: {:?}",
            other.map(|scanned| scanned.recovery)
        ))),
    }
}

/// A block that is sound in itself, with a number that its stream has given out before: what a second writer would leave, and what would be
/// replayed twice.
pub fn repeated_number(seed: u64) -> Result<(), Violation> {
    let still = Still::young(seed)?;
    let (device, _, _) = with_block(&still, 0, -1)?;
    match scan(&device, &ScanOptions::default()) {
        Err(OpenError::Corrupt(found)) if found.case == Case::J => Ok(()),
        other => Err(Violation(format!(
            "a number comes twice, and nobody minds: {:?}",
            other.map(|scanned| scanned.recovery)
        ))),
    }
}

/// Where the log ends lies a block of the lap before: the report says so.
pub fn stale_lap(seed: u64) -> Result<(), Violation> {
    for seed in seed * 100..seed * 100 + 100 {
        let still = Still::new(seed, true)?;
        let mut rng = Rng::new(seed);
        let mut session = resume(&still, &mut rng)?;
        session.settle()?;
        session.append(0, 100, &mut rng)?;
        session.settle()?;
        let (device, _, _) = session.left();
        let scanned =
            scan(&device, &ScanOptions::default()).map_err(|error| Violation(error.to_string()))?;
        let end = scanned.end.lsn;
        let at = still.ring.physical(end);
        let mut unit = AlignedBuf::zeroed(4096);
        device.durable().read(at, unit.as_mut_slice());
        let lies = BlockHeader::decode(still.ring, scanned.header.id, unit.as_slice());
        let Some(stale) = lies.ok().filter(|_| end < scanned.header.limit) else {
            continue;
        };
        return match scanned.recovery.end.reason {
            EndReason::Stale(lsn) if lsn == stale.lsn && lsn < end => Ok(()),
            reason => Err(Violation(format!(
                "a block of LSN {} lies at {end}: {reason}",
                stale.lsn
            ))),
        };
    }
    Err(Violation(
        "no log ended before a block of the last lap".to_owned(),
    ))
}

/// One copy is torn, and the next write to a copy is torn too: the sound one must not be the one that is written.
pub fn only_sound_copy(seed: u64) -> Result<(), Violation> {
    let still = Still::new(seed, true)?;
    for torn in Slot::BOTH {
        let mut image = still.image.clone();
        image.write(still.ring.header(torn), &[0; 512], Landed::All);
        let device = SimDevice::from_image(still.geometry, image.clone());
        let mut rng = Rng::new(seed);
        let session = Session::open(&device, &still.plan, still.model.clone(), &mut rng)?;
        let (_, _, events) = session.left();
        let first = events.iter().find_map(|event| match event {
            Event::Submitted { offset, .. } => Some(*offset),
            _ => None,
        });
        let Some(first) = first else {
            return Err(Violation("an opening without a write".to_owned()));
        };
        image.write(first, &[0; 512], Landed::All);
        let device = SimDevice::from_image(still.geometry, image);
        if let Err(error) = check::recover(&device, &still.model, &still.promised)? {
            return Err(Violation(format!(
                "two crashes, one copy torn in each: {error}"
            )));
        }
    }
    Ok(())
}

/// The very last block, not yet marked as acknowledged, lies a little further on: that can be told, so it is refused.
pub fn misdirected_last(seed: u64) -> Result<(), Violation> {
    for seed in seed * 100..seed * 100 + 100 {
        let still = Still::new(seed, false)?;
        let device = SimDevice::from_image(still.geometry, still.image.clone());
        let scanned =
            scan(&device, &ScanOptions::default()).map_err(|error| Violation(error.to_string()))?;
        let Some((last, bytes)) = still.blocks.last().copied() else {
            continue;
        };
        let to = still.ring.physical(still.end);
        let unmarked = scanned.header.durable <= last.lsn;
        if !unmarked || still.end.plus(bytes) > scanned.header.limit || bytes > 4096 {
            continue;
        }
        let from = still.ring.physical(last.lsn);
        let block = still.image.to_vec(from, 4096);
        let mut image = still.image.clone();
        image.write(from, &still.before.to_vec(from, 4096), Landed::All);
        image.write(to, &block, Landed::All);
        let device = SimDevice::from_image(still.geometry, image);
        return match scan(&device, &ScanOptions::default()) {
            Err(OpenError::Corrupt(_)) => Ok(()),
            other => Err(Violation(format!(
                "a block lies one place further on, and nobody minds: {:?}",
                other.map(|scanned| scanned.recovery.end)
            ))),
        };
    }
    Err(Violation("no log with an unmarked last block".to_owned()))
}

/// A payload that changes after the log was opened is not handed out.
pub fn read_back(seed: u64) -> Result<(), Violation> {
    let still = Still::new(seed, true)?;
    let mut rng = Rng::new(seed);
    let mut session = resume(&still, &mut rng)?;
    session.settle()?;
    session.append(1, 3000, &mut rng)?;
    session.settle()?;
    let seq = session.model.promise(1).acknowledged - 1;
    let index = session.core().index();
    let run = index
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .locate(stream_id(1), Seq::new(seq))
        .ok_or_else(|| Violation("a durable record is not in the index".to_owned()))?;
    let id = session.core().header().id;
    let (device, _, _) = session.left();
    let at = still.ring.physical(run.lsn);
    let read = |device: &SimDevice| {
        read_block(device, still.ring, id, run.lsn)
            .ok()
            .flatten()
            .and_then(|block| block.find(stream_id(1), Seq::new(seq)).cloned())
            .and_then(|record| record.payload)
    };
    let Some(sound) = read(&device) else {
        return Err(Violation("a sound record is not read".to_owned()));
    };
    for byte in (0..3200).step_by(37) {
        let image = device.durable();
        let damaged = SimDevice::from_image(still.geometry, image);
        damaged.damage(|image| image.flip(at + byte, 5));
        if read(&damaged).is_some_and(|payload| payload != sound) {
            return Err(Violation(format!(
                "byte {byte} of a block flipped, and handed out"
            )));
        }
    }
    // Another lap's block in its place is as sound as can be, and not the one that was asked for.
    let other = still
        .blocks
        .iter()
        .find(|(header, _)| header.kind == BlockKind::Data && header.lsn != run.lsn);
    if let Some((header, bytes)) = other {
        let damaged = SimDevice::from_image(still.geometry, device.durable());
        let from = still.ring.physical(header.lsn);
        let block = still
            .image
            .to_vec(from, usize::try_from(*bytes).unwrap_or(0));
        damaged.damage(|image| image.write(at, &block, Landed::All));
        if read_block(&damaged, still.ring, id, run.lsn).is_ok_and(|block| block.is_some()) {
            return Err(Violation("another block was read for this one".to_owned()));
        }
    }
    Ok(())
}
