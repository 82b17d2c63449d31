//! `everlog wal check`: reads and checks every byte of the log, exactly as opening it would, and changes nothing.

use anyhow::{Context as _, Result};
use everlog_wal::error::OpenError;
use everlog_wal::header::CopyFault;
use everlog_wal::recovery::{Case, HeaderCase, Recovery, ScanOptions, inspect};
use serde::Serialize;

use super::Outcome;
use super::owner::claim_to_read;
use crate::args::wal::CheckArgs;
use crate::table::{counted, short_bytes};
use crate::terminal::print;

/// The names are part of everlog's interface.
#[derive(Debug, Default, Serialize)]
struct Checked {
    /// Nothing acknowledged is missing, as far as the log can tell.
    sound: bool,
    log: Option<String>,
    blocks: u64,
    records: u64,
    live_records: u64,
    live_bytes: u64,
    streams: usize,
    /// The row of the recovery table by which the log ends, or is refused.
    case: Option<String>,
    tail: Option<u64>,
    end: Option<u64>,
    /// Blocks that were in flight when the last owner died; never acknowledged.
    dropped_blocks: u64,
    /// What is damaged.
    damage: Vec<String>,
    /// What is worth knowing and no damage.
    notes: Vec<String>,
}

/// Checks it.
pub(super) fn check(args: &CheckArgs) -> Result<Outcome> {
    let _claim = claim_to_read(&args.path)?;
    let device = super::open_to_read(&args.path)?;
    // Nothing is written, so nothing is made durable either: the next owner does that before it decides.
    let checked = match inspect(&device, &ScanOptions::default(), &mut |_, _| {}) {
        Ok(found) => of(&found.recovery),
        Err(err) => match refused(&err) {
            Some(checked) => checked,
            None => return Err(err).with_context(|| format!("{}", args.path.display())),
        },
    };
    print(&if args.json {
        serde_json::to_string_pretty(&checked)?
    } else {
        told(&checked)
    })?;
    Ok(if checked.sound {
        Outcome::Sound
    } else {
        Outcome::Damaged
    })
}

fn of(recovery: &Recovery) -> Checked {
    let mut checked = Checked {
        log: Some(recovery.id.to_string()),
        blocks: recovery.blocks,
        records: recovery.records,
        live_records: recovery.live_records,
        live_bytes: recovery.live_bytes,
        streams: recovery.streams,
        case: Some(recovery.end.case.to_string()),
        tail: Some(recovery.tail.get()),
        end: Some(recovery.end.at.get()),
        dropped_blocks: recovery.end.islands.blocks,
        ..Checked::default()
    };
    if let HeaderCase::OneDamaged { damaged, fault } = recovery.header_case {
        let said = format!(
            "header copy {damaged:?}: {fault}; the other one is sound and the next opening writes it again"
        );
        match fault {
            // No crash does that.
            CopyFault::Misplaced { .. } | CopyFault::Unreadable => checked.damage.push(said),
            CopyFault::Foreign
            | CopyFault::Checksum
            | CopyFault::Version(_)
            | CopyFault::Nonsense => checked.notes.push(format!(
                "{said}. A crash while it was written leaves that; if there was none, look at the device"
            )),
        }
    }
    if recovery.padding_damaged > 0 {
        checked.damage.push(format!(
            "{} blocks have bits flipped where no record lies",
            recovery.padding_damaged
        ));
    }
    for (stream, seq) in &recovery.damaged_dead {
        checked.damage.push(format!(
            "record {seq} of stream {stream}, which had been trimmed or moved: nothing is lost with it"
        ));
    }
    for offset in &recovery.unreadable {
        checked
            .damage
            .push(format!("the sector at byte {offset} can't be read"));
    }
    let end = &recovery.end;
    match end.case {
        Case::C if recovery.clean => {}
        Case::C | Case::D => checked.notes.push(format!(
            "the log was not closed; it ends at LSN {}, byte {} of the device ({}). {} there that was in flight is dropped when it is opened: \
             nothing says that it was acknowledged",
            end.at,
            end.offset,
            end.reason,
            short_bytes(end.torn_bytes + end.islands.bytes)
        )),
        _ => checked
            .notes
            .push(format!("the log ends at LSN {} ({})", end.at, end.reason)),
    }
    if recovery.read_again > 0 {
        checked.notes.push(format!(
            "{} pieces were bad when read first and sound when read again: look at the device",
            recovery.read_again
        ));
    }
    if recovery.grown_by > 0 {
        checked.notes.push(format!(
            "the device has {} more than when it was formatted",
            short_bytes(recovery.grown_by)
        ));
    }
    checked.sound = checked.damage.is_empty();
    checked
}

/// What is damage and not a failure to look.
fn refused(err: &OpenError) -> Option<Checked> {
    let (case, at) = match err {
        OpenError::Corrupt(corruption) => {
            (Some(corruption.case.to_string()), Some(corruption.at.get()))
        }
        OpenError::HeadersLost { .. } | OpenError::DeviceChanged(_) => (None, None),
        // Nothing says that what is there had been acknowledged, and nothing says that it had not.
        OpenError::Unreadable { .. } => (Some("K".to_owned()), None),
        OpenError::Io(_)
        | OpenError::NotALog { .. }
        | OpenError::Version(_)
        | OpenError::Fenced
        | OpenError::Write(_) => return None,
    };
    Some(Checked {
        case,
        end: at,
        damage: vec![err.to_string()],
        ..Checked::default()
    })
}

fn told(checked: &Checked) -> String {
    let mut text = String::new();
    for damage in &checked.damage {
        text.push_str(&format!("damage: {damage}\n"));
    }
    for note in &checked.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    if checked.log.is_some() {
        text.push_str(&format!(
            "{}, {}; not drained yet: {} ({}) of {}\n",
            counted(checked.blocks, "block", "blocks"),
            counted(checked.records, "record", "records"),
            counted(checked.live_records, "record", "records"),
            short_bytes(checked.live_bytes),
            counted(checked.streams as u64, "stream", "streams"),
        ));
    }
    text.push_str(match (checked.sound, checked.log.is_some()) {
        (true, _) => "sound\n",
        (false, true) => "DAMAGED, and it will still open\n",
        (false, false) => {
            "DAMAGED: it will not open. `everlog wal export` saves what is intact; docs/wal.md says what to do then\n"
        }
    });
    text
}
