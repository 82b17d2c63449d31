//! Entries and inner entries as they stand in JSON. Fields are declared in the byte order of their names: that is what
//! makes the bytes canonical.

use everlog_format::{Day, Hash, Offset, OffsetRange};
use serde::{Deserialize, Serialize};

use crate::canonical::Decimal;
use crate::summary::{EpochSpan, Summary, check_entry};
use crate::{DataEntry, Entry, EntryKind, EpochStart, HoleReason, Totals};

/// A leaf entry. Which fields must be there depends on `kind`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WireEntry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<Decimal<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dt: Option<Day>,
    end: Decimal<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    epochs: Vec<(i32, Decimal<i64>)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    flags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    footer: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<Hash>,
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    raw: Option<Decimal<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    records: Option<Decimal<u64>>,
    start: Decimal<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    supersedes: Vec<Hash>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ts: Option<[Decimal<i64>; 2]>,
}

const REDACTED: &str = "redacted";
const TIME_DISORDER: &str = "time_disorder";

impl From<&Entry> for WireEntry {
    fn from(entry: &Entry) -> WireEntry {
        let mut wire = WireEntry {
            bytes: None,
            dt: None,
            end: Decimal(entry.range.end().get()),
            epochs: Vec::new(),
            flags: Vec::new(),
            footer: None,
            hash: None,
            kind: String::new(),
            raw: None,
            reason: None,
            records: None,
            start: Decimal(entry.range.start().get()),
            supersedes: Vec::new(),
            ts: None,
        };
        match &entry.kind {
            EntryKind::Data(data) => {
                "data".clone_into(&mut wire.kind);
                wire.bytes = Some(Decimal(data.bytes));
                wire.dt = Some(data.day);
                wire.epochs = data
                    .epochs
                    .iter()
                    .map(|e| (e.epoch, Decimal(e.start.get())))
                    .collect();
                let flags = [
                    (data.redacted, REDACTED),
                    (data.time_disorder, TIME_DISORDER),
                ];
                wire.flags = flags
                    .iter()
                    .filter(|f| f.0)
                    .map(|f| f.1.to_owned())
                    .collect();
                wire.footer = Some(data.footer_len);
                wire.hash = Some(data.hash);
                wire.raw = Some(Decimal(data.raw_bytes));
                wire.records = Some(Decimal(data.records));
                wire.supersedes.clone_from(&data.supersedes);
                wire.ts = Some([
                    Decimal(data.min_timestamp_ms),
                    Decimal(data.max_timestamp_ms),
                ]);
            }
            EntryKind::Empty => "empty".clone_into(&mut wire.kind),
            EntryKind::Expired => "expired".clone_into(&mut wire.kind),
            EntryKind::Hole(HoleReason::Retention) => {
                "hole".clone_into(&mut wire.kind);
                wire.reason = Some("retention".to_owned());
            }
        }
        wire
    }
}

fn range_of(start: i64, end: i64) -> Result<OffsetRange, String> {
    let offset = |raw| Offset::new(raw).map_err(|e| e.to_string());
    OffsetRange::new(offset(start)?, offset(end)?)
        .ok_or_else(|| format!("[{start}, {end}) holds no offset"))
}

fn epoch_start((epoch, start): (i32, Decimal<i64>)) -> Result<EpochStart, String> {
    let start = Offset::new(start.0).map_err(|e| e.to_string())?;
    Ok(EpochStart { epoch, start })
}

impl TryFrom<WireEntry> for Entry {
    type Error = String;

    fn try_from(wire: WireEntry) -> Result<Entry, String> {
        let range = range_of(wire.start.0, wire.end.0)?;
        let kind = match wire.kind.as_str() {
            "data" => EntryKind::Data(data_of(wire, range)?),
            "empty" => EntryKind::Empty,
            "expired" => EntryKind::Expired,
            "hole" => match wire.reason.as_deref() {
                Some("retention") => EntryKind::Hole(HoleReason::Retention),
                other => return Err(format!("the hole {range} has the reason {other:?}")),
            },
            other => return Err(format!("the entry {range} is of the kind {other:?}")),
        };
        let entry = Entry { range, kind };
        check_entry(&entry)?;
        Ok(entry)
    }
}

fn data_of(wire: WireEntry, range: OffsetRange) -> Result<DataEntry, String> {
    let missing = |field: &str| format!("the data entry {range} has no {field}");
    let [min, max] = wire.ts.ok_or_else(|| missing("ts"))?;
    let flag = |name: &str| wire.flags.iter().any(|f| f == name);
    Ok(DataEntry {
        hash: wire.hash.ok_or_else(|| missing("hash"))?,
        records: wire.records.ok_or_else(|| missing("records"))?.0,
        bytes: wire.bytes.ok_or_else(|| missing("bytes"))?.0,
        raw_bytes: wire.raw.ok_or_else(|| missing("raw"))?.0,
        min_timestamp_ms: min.0,
        max_timestamp_ms: max.0,
        day: wire.dt.ok_or_else(|| missing("dt"))?,
        time_disorder: flag(TIME_DISORDER),
        redacted: flag(REDACTED),
        footer_len: wire.footer.ok_or_else(|| missing("footer"))?,
        epochs: wire
            .epochs
            .into_iter()
            .map(epoch_start)
            .collect::<Result<_, _>>()?,
        supersedes: wire.supersedes,
    })
}

/// What an inner node, or the commit, says of a node below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    /// The node's name.
    pub(crate) hash: Hash,
    /// 0 for a leaf.
    pub(crate) level: u8,
    pub(crate) summary: Summary,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct WireEpochs {
    count: Decimal<u64>,
    first: (i32, Decimal<i64>),
    last: i32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WireChild {
    bytes: Decimal<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dt: Option<Day>,
    end: Decimal<i64>,
    entries: Decimal<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epochs: Option<WireEpochs>,
    hash: Hash,
    holes: Decimal<u64>,
    level: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_ts: Option<Decimal<i64>>,
    raw: Decimal<u64>,
    records: Decimal<u64>,
    segments: Decimal<u64>,
    start: Decimal<i64>,
}

impl From<&Child> for WireChild {
    fn from(child: &Child) -> WireChild {
        let Child {
            hash,
            level,
            summary,
        } = child;
        let totals = &summary.totals;
        WireChild {
            bytes: Decimal(totals.bytes),
            dt: summary.last_day,
            end: Decimal(summary.range.end().get()),
            entries: Decimal(summary.entries),
            epochs: summary.epochs.map(|span| WireEpochs {
                count: Decimal(span.count),
                first: (span.first.epoch, Decimal(span.first.start.get())),
                last: span.last_epoch,
            }),
            hash: *hash,
            holes: Decimal(totals.holes),
            level: *level,
            max_ts: summary.max_timestamp_ms.map(Decimal),
            raw: Decimal(totals.raw_bytes),
            records: Decimal(totals.records),
            segments: Decimal(totals.segments),
            start: Decimal(summary.range.start().get()),
        }
    }
}

impl TryFrom<WireChild> for Child {
    type Error = String;

    fn try_from(wire: WireChild) -> Result<Child, String> {
        let epochs = match wire.epochs {
            None => None,
            Some(span) => Some(EpochSpan {
                first: epoch_start(span.first)?,
                last_epoch: span.last,
                count: span.count.0,
            }),
        };
        // A span without a start would let sums of spans wrap below zero.
        if wire.entries.0 == 0 || epochs.is_some_and(|span| span.count == 0) {
            return Err("an inner entry sums up nothing".to_owned());
        }
        let summary = Summary {
            range: range_of(wire.start.0, wire.end.0)?,
            entries: wire.entries.0,
            totals: Totals {
                segments: wire.segments.0,
                records: wire.records.0,
                bytes: wire.bytes.0,
                raw_bytes: wire.raw.0,
                holes: wire.holes.0,
            },
            max_timestamp_ms: wire.max_ts.map(|ts| ts.0),
            last_day: wire.dt,
            epochs,
        };
        Ok(Child {
            hash: wire.hash,
            level: wire.level,
            summary,
        })
    }
}

/// Reads a list of entries or inner entries.
pub(crate) fn read_all<W, T: TryFrom<W, Error = String>>(wire: Vec<W>) -> Result<Vec<T>, String> {
    wire.into_iter().map(T::try_from).collect()
}

/// The JSON of a list of entries or inner entries.
pub(crate) fn write_all<'a, T, W: From<&'a T>>(values: &'a [T]) -> Vec<W> {
    values.iter().map(W::from).collect()
}
