//! Tells whoever reads the log of the program what an opening found: what was cut at the end, what is damaged, and what to do. An opening that
//! is refused says so in its error.

use tracing::{info, warn};

use crate::recovery::{Case, EndReason, HeaderCase, Recovery};

/// No more than so many places of one kind are named one by one.
const NAMED_MAX: usize = 16;

/// Told once, when the log is open.
pub(crate) fn tell(recovery: &Recovery) {
    let end = &recovery.end;
    info!(
        id = %recovery.id,
        epoch = recovery.epoch + 1,
        streams = recovery.streams,
        live_records = recovery.live_records,
        live_bytes = recovery.live_bytes,
        tail = recovery.tail.get(),
        end = end.at.get(),
        clean = recovery.clean,
        header = ?recovery.header_case,
        "log is open"
    );
    tell_end(recovery);
    tell_damage(recovery);
}

/// What lay at and behind the end and was dropped.
fn tell_end(recovery: &Recovery) {
    let end = &recovery.end;
    let dropped_bytes = end.torn_bytes + end.islands.bytes;
    let is_unreadable = end.reason == EndReason::Unreadable;
    if is_unreadable || end.is_cut_unread {
        warn!(
            lsn = end.at.get(),
            offset = end.offset,
            bytes = dropped_bytes,
            reason = %end.reason,
            "log was cut where the device can't be read, as it was told to: a record that had been acknowledged may have been there"
        );
    } else if dropped_bytes > 0 {
        warn!(
            case = %end.case,
            lsn = end.at.get(),
            offset = end.offset,
            bytes = dropped_bytes,
            blocks = end.islands.blocks + u64::from(end.torn_bytes > 0),
            reason = %end.reason,
            "dropped what was being written when the last owner died: nothing says that it was acknowledged. If there was no crash the device \
             has lost it: stop everlog, `everlog wal export --released` saves it while it is not written over"
        );
    } else if !recovery.clean && end.case == Case::C {
        info!(
            lsn = end.at.get(),
            offset = end.offset,
            reason = %end.reason,
            "the last owner did not close the log; nothing was dropped at its end"
        );
    }
}

fn tell_damage(recovery: &Recovery) {
    if let HeaderCase::OneDamaged { damaged, fault } = recovery.header_case {
        warn!(
            copy = ?damaged,
            %fault,
            "a header copy was damaged and has been written again from the other one: a crash leaves that, and so does a device that fails"
        );
    }
    for (stream, seq) in recovery.damaged_dead.iter().take(NAMED_MAX) {
        warn!(
            %stream,
            seq = seq.get(),
            "a record is damaged that had been trimmed or moved; nothing is lost with it. Look at the device"
        );
    }
    for offset in recovery.unreadable.iter().take(NAMED_MAX) {
        warn!(
            offset,
            "a sector of the device can't be read; nothing that is missed lies there. Look at the device"
        );
    }
    let counts = [
        recovery.damaged_dead.len() as u64,
        recovery.unreadable.len() as u64,
        recovery.padding_damaged,
        recovery.read_again,
    ];
    if counts.iter().any(|count| *count > 0) {
        let [
            damaged_records,
            unreadable_sectors,
            padding_damaged,
            read_again,
        ] = counts;
        warn!(
            damaged_records,
            unreadable_sectors,
            padding_damaged,
            read_again,
            "the device has changed bytes or failed to bring them; no record that is waited for is lost. `everlog wal check` tells more"
        );
    }
    if recovery.grown_by > 0 {
        info!(
            bytes = recovery.grown_by,
            "the device is larger than when it was formatted; the rest is not used"
        );
    }
}

#[cfg(test)]
mod tests;
