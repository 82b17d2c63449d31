//! `everlog wal dump`: blocks and records as they lie on the device.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use everlog_wal::block::{Block, BlockKind, EntryKind};
use everlog_wal::export::{FoundBlock, Standing, Survey, SurveyOptions, survey};
use serde_json::{Value, json};

use super::bar::Bar;
use super::names::StreamPrefix;
use super::owner::claim_to_read;
use crate::args::wal::DumpArgs;
use crate::terminal::print;

/// Prints the blocks.
pub(super) fn dump(args: &DumpArgs) -> Result<()> {
    let chosen = args
        .stream
        .as_deref()
        .map(StreamPrefix::parse)
        .transpose()?;
    let _claim = claim_to_read(&args.path)?;
    let device = super::open_to_read(&args.path)?;
    let options = SurveyOptions {
        include_released: args.released,
        ..SurveyOptions::default()
    };
    let bar = Bar::new("looking through the device");
    let survey = survey(&device, &options, &mut |at, of| bar.set(at, of))
        .with_context(|| format!("{}", args.path.display()))?;
    bar.finish();
    let wanted = survey
        .blocks
        .iter()
        .filter(|block| block.lsn.get() >= args.from);
    for found in wanted.take(args.blocks.unwrap_or(usize::MAX)) {
        let mut text = String::new();
        survey.with_block(&device, found, &mut |block| {
            text = shown(&survey, found, block, chosen.as_ref(), args.json);
        })?;
        if !text.is_empty() {
            print(&text)?;
        }
    }
    Ok(())
}

fn shown(
    survey: &Survey,
    found: &FoundBlock,
    block: Option<&Block<'_>>,
    chosen: Option<&StreamPrefix>,
    json: bool,
) -> String {
    let records = records(block, chosen);
    if chosen.is_some() && records.is_empty() {
        return String::new();
    }
    let is_known = block.is_some() || found.kind != BlockKind::Data;
    if json {
        return json!({
            "lsn": found.lsn.get(),
            "offset": found.offset,
            "lap": survey.ring.lap(found.lsn),
            "bytes": found.bytes,
            "epoch": found.epoch,
            "kind": kind(found.kind),
            "standing": standing(found.standing),
            "misplaced": found.is_misplaced,
            "intact": found.is_intact,
            "wall_ms": block.map(|block| block.header.wall_ms),
            "durable": block.map(|block| block.header.durable.get()),
            "chain": block.map(|block| format!("{:08x}", block.header.chain)),
            "records": is_known.then_some(records),
        })
        .to_string();
    }
    let mut text = block_line(found, is_known);
    for record in records {
        text.push_str(&record_line(&record));
    }
    text
}

fn records(block: Option<&Block<'_>>, chosen: Option<&StreamPrefix>) -> Vec<Value> {
    block
        .iter()
        .flat_map(|block| block.records())
        .filter(|record| chosen.is_none_or(|chosen| chosen.matches(&record.entry.stream)))
        .map(|record| {
            let (kind, next) = match record.entry.kind {
                EntryKind::Record => ("record", None),
                EntryKind::Relocated => ("relocated", None),
                EntryKind::State { next } => ("state", Some(next.get())),
            };
            json!({
                "kind": kind,
                "stream": record.entry.stream.to_string(),
                "seq": record.entry.seq.get(),
                "next": next,
                "bytes": record.entry.bytes,
                "intact": record.intact,
                "payload": record.intact.then(|| STANDARD.encode(record.payload)),
            })
        })
        .collect()
}

fn block_line(found: &FoundBlock, is_known: bool) -> String {
    let mut notes = Vec::new();
    if found.standing != Standing::Log {
        notes.push(standing(found.standing));
    }
    if found.is_misplaced {
        notes.push("not in its place");
    }
    if !is_known {
        notes.push("its directory is damaged");
    } else if !found.is_intact {
        notes.push("damaged");
    }
    let mut text = format!(
        "block {} at byte {}, epoch {}, {} bytes, {}",
        found.lsn,
        found.offset,
        found.epoch,
        found.bytes,
        kind(found.kind)
    );
    for note in notes {
        text.push_str(", ");
        text.push_str(note);
    }
    text.push('\n');
    text
}

fn record_line(record: &Value) -> String {
    let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let what = if record["kind"] == "state" {
        format!("trimmed below {}, next {}", record["seq"], record["next"])
    } else {
        format!("{}  {} bytes", record["seq"], record["bytes"])
    };
    let damaged = if record["intact"] == true {
        ""
    } else {
        "  DAMAGED"
    };
    format!(
        "  {:<9} {}  {what}{damaged}\n",
        text("kind"),
        text("stream")
    )
}

fn kind(kind: BlockKind) -> &'static str {
    match kind {
        BlockKind::Data => "data",
        BlockKind::LapPad => "pad to the end of the lap",
        BlockKind::GapPad => "pad over what a dead process may still write",
    }
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Log => "log",
        Standing::BeforeTail => "before the tail",
        Standing::Cut => "cut by a later epoch",
    }
}
