//! `everlog wal export`: what is intact on a damaged log, as lines of JSON.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use everlog_wal::export::{FoundRecord, Survey, SurveyOptions, Totals, survey};
use everlog_wal::{Device, Lsn, Seq, StreamId};
use serde::{Deserialize, Serialize};

use super::Outcome;
use super::bar::Bar;
use super::names::{parse_log, parse_stream};
use super::owner::claim_to_read;
use crate::args::wal::ExportArgs;
use crate::table::{Table, counted, grouped, short_bytes};
use crate::terminal::print;

/// The version of the file's format, in its first line.
const FORMAT: u32 = 1;

/// Between two syncs of the file, in bytes: what an interruption can cost.
const SYNC_EVERY: u64 = 256 << 20;

/// The first line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    everlog_wal_export: u32,
    log: String,
    device: String,
    /// Where the log begins, as an LSN.
    tail: u64,
    /// Whether trimmed records and left-over blocks are in it as well.
    released: bool,
}

/// A line for a record.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    stream: String,
    seq: u64,
    lsn: u64,
    epoch: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    relocated: bool,
    /// Another record with this number stands before this line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    conflict: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    damaged: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

/// The last line.
#[derive(Debug, Serialize)]
struct Last {
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct Summary {
    records: u64,
    payload_bytes: u64,
    streams: BTreeMap<String, StreamSummary>,
    /// Records of which only the number is known: stream, number, LSN.
    damaged: Vec<(String, u64, u64)>,
    /// LSNs of blocks of which nothing is known any more but that they were there.
    unknown_blocks: Vec<u64>,
    /// Records that have a number which another one has as well.
    conflicts: u64,
    /// Ranges of the device that could not be read.
    unreadable: Vec<[u64; 2]>,
}

#[derive(Debug, Serialize)]
struct StreamSummary {
    records: u64,
    first: u64,
    /// The number after the last.
    end: u64,
    /// Ranges of numbers of which nothing came out.
    missing: Vec<[u64; 2]>,
}

/// Writes the file.
pub(super) fn export(args: &ExportArgs) -> Result<Outcome> {
    ensure_elsewhere(&args.path, &args.to)?;
    let _claim = claim_to_read(&args.path)?;
    let device = super::open_to_read(&args.path)?;
    let options = SurveyOptions {
        id: args.log.as_deref().map(parse_log).transpose()?,
        formatted_bytes: args.formatted_size,
        include_released: args.released,
    };
    let bar = Bar::new("looking through the device");
    let survey = survey(&device, &options, &mut |at, of| bar.set(at, of))
        .with_context(|| format!("{}", args.path.display()))?;
    bar.finish();
    let head = Head {
        everlog_wal_export: FORMAT,
        log: survey.id.to_string(),
        device: device.info().name,
        tail: survey.tail.get(),
        released: args.released,
    };
    let mut file = if args.resume {
        Output::resume(&args.to, &head)?
    } else {
        Output::create(&args.to, &head)?
    };
    let bar = Bar::new("writing");
    let total: u64 = survey.blocks.iter().map(|block| block.bytes).sum();
    let end = survey.blocks.last().map_or(Lsn::ZERO, |block| block.lsn);
    let from = file.from;
    let mut totals = std::mem::take(&mut file.totals);
    let mut sink = |record: FoundRecord<'_>| {
        let left = end.since(record.lsn);
        bar.set(total.saturating_sub(left), total);
        file.line(&line(&record))
    };
    survey
        .records(&device, from, &mut totals, &mut sink)
        .with_context(|| format!("{}: go on with --resume", args.to.display()))?;
    bar.finish();
    let summary = summary(&survey, &totals);
    let is_whole = is_whole(&summary);
    let text = told(&summary, &args.to);
    file.finish(&Last { summary })
        .with_context(|| format!("{}", args.to.display()))?;
    print(&text)?;
    Ok(if is_whole {
        Outcome::Sound
    } else {
        Outcome::Damaged
    })
}

/// Nobody is to rescue a log onto itself.
fn ensure_elsewhere(device: &Path, to: &Path) -> Result<()> {
    let Ok(target) = std::fs::metadata(to) else {
        return Ok(());
    };
    let source = std::fs::metadata(device).with_context(|| format!("{}", device.display()))?;
    let is_same = (target.dev(), target.ino()) == (source.dev(), source.ino());
    ensure!(
        !is_same && target.file_type().is_file() && !target.file_type().is_block_device(),
        "{} is no file to export into",
        to.display()
    );
    Ok(())
}

fn line(record: &FoundRecord<'_>) -> Line {
    Line {
        stream: record.stream.to_string(),
        seq: record.seq.get(),
        lsn: record.lsn.get(),
        epoch: record.epoch,
        relocated: record.is_relocated,
        conflict: record.is_conflict,
        damaged: !record.is_intact,
        payload: record.is_intact.then(|| STANDARD.encode(record.payload)),
    }
}

/// The file, and what is in it already.
struct Output {
    out: BufWriter<File>,
    /// Records of blocks before are written.
    from: Lsn,
    totals: Totals,
    unsynced: u64,
}

impl Output {
    fn create(path: &Path, head: &Head) -> Result<Output> {
        let opened = OpenOptions::new().write(true).create_new(true).open(path);
        let file = match opened {
            Err(err) if err.kind() == ErrorKind::AlreadyExists => bail!(
                "{} is there already: name another file, or go on with an interrupted export by --resume",
                path.display()
            ),
            opened => opened.with_context(|| format!("{} can't be made", path.display()))?,
        };
        let mut output = Output {
            out: BufWriter::new(file),
            from: Lsn::ZERO,
            totals: Totals::default(),
            unsynced: 0,
        };
        output.line(head)?;
        Ok(output)
    }

    /// Reads what is there up to its last whole block, and drops the rest.
    fn resume(path: &Path, head: &Head) -> Result<Output> {
        let named = || format!("{}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .with_context(named)?;
        let mut lines = Lines::new(BufReader::new(&file));
        let first: Option<Head> = lines.next().transpose()?.map(|(_, head)| head);
        ensure!(
            first.as_ref() == Some(head),
            "{} was not begun by the same export: log, device, tail and --released must be the same",
            path.display()
        );
        // The last block may have been cut short, so it is written again.
        let mut blocks = Replayed::default();
        let mut end = lines.end;
        loop {
            let Some((start, line)) = lines.next::<Line>().transpose()? else {
                break;
            };
            if blocks.begins_block(&line) {
                end = start;
            }
            blocks.add(line)?;
        }
        let (from, totals) = blocks.before_last();
        file.set_len(end)?;
        let mut file = file;
        file.seek(SeekFrom::Start(end))?;
        Ok(Output {
            out: BufWriter::new(file),
            from,
            totals,
            unsynced: 0,
        })
    }

    fn line<T: Serialize>(&mut self, line: &T) -> std::io::Result<()> {
        let text = serde_json::to_vec(line)?;
        self.out.write_all(&text)?;
        self.out.write_all(b"\n")?;
        self.unsynced += u64::try_from(text.len()).unwrap_or(0);
        if self.unsynced >= SYNC_EVERY {
            self.out.flush()?;
            self.out.get_ref().sync_data()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    fn finish(mut self, last: &Last) -> std::io::Result<()> {
        self.line(last)?;
        self.out.flush()?;
        self.out.get_ref().sync_all()
    }
}

/// The lines of a file, as far as they are whole, with where each begins.
struct Lines<R> {
    from: R,
    /// Where the line after the last whole one begins.
    end: u64,
    text: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn new(from: R) -> Lines<R> {
        Lines {
            from,
            end: 0,
            text: Vec::new(),
        }
    }

    /// `None` at the end, at a line that was cut short, and at the summary.
    fn next<T: for<'a> Deserialize<'a>>(&mut self) -> Option<Result<(u64, T)>> {
        self.text.clear();
        if let Err(err) = self.from.read_until(b'\n', &mut self.text) {
            return Some(Err(err.into()));
        }
        if self.text.last() != Some(&b'\n') {
            return None;
        }
        let parsed = serde_json::from_slice(&self.text).ok()?;
        let start = self.end;
        self.end += u64::try_from(self.text.len()).unwrap_or(0);
        Some(Ok((start, parsed)))
    }
}

/// What an earlier export has written: all blocks but the last one, and that one apart.
#[derive(Default)]
struct Replayed {
    totals: Totals,
    last: Option<Lsn>,
    of_last: Vec<Line>,
}

impl Replayed {
    fn begins_block(&self, line: &Line) -> bool {
        self.last != Some(Lsn::new(line.lsn))
    }

    fn add(&mut self, line: Line) -> Result<()> {
        if self.begins_block(&line) {
            for line in std::mem::take(&mut self.of_last) {
                count(&mut self.totals, &line)?;
            }
            self.last = Some(Lsn::new(line.lsn));
        }
        self.of_last.push(line);
        Ok(())
    }

    fn before_last(self) -> (Lsn, Totals) {
        (self.last.unwrap_or(Lsn::ZERO), self.totals)
    }
}

fn count(totals: &mut Totals, line: &Line) -> Result<()> {
    let (stream, seq) = (parse_stream(&line.stream)?, Seq::new(line.seq));
    if line.damaged {
        totals.damaged.push((stream, seq, Lsn::new(line.lsn)));
    } else if line.conflict {
        totals.conflicts += 1;
    } else {
        totals.streams.entry(stream).or_default().insert(seq);
        totals.records += 1;
        let bytes = line.payload.as_deref().map_or(0, payload_bytes);
        totals.bytes += bytes;
    }
    Ok(())
}

/// The length of what base64 stands for.
fn payload_bytes(base64: &str) -> u64 {
    let padding = base64
        .bytes()
        .rev()
        .take_while(|byte| *byte == b'=')
        .count();
    u64::try_from(base64.len() / 4 * 3 - padding).unwrap_or(0)
}

fn summary(survey: &Survey, totals: &Totals) -> Summary {
    let pairs = |ranges: Vec<Range<Seq>>| {
        let pair = |range: Range<Seq>| [range.start.get(), range.end.get()];
        ranges.into_iter().map(pair).collect()
    };
    let known = totals.damaged.iter().map(|(stream, _, _)| stream);
    let known = known
        .chain(totals.streams.keys())
        .chain(survey.states.keys());
    let streams: std::collections::BTreeSet<StreamId> = known.copied().collect();
    let of = |stream: &StreamId| {
        let runs: Vec<Range<Seq>> = totals
            .streams
            .get(stream)
            .map(|seqs| seqs.runs().collect())
            .unwrap_or_default();
        StreamSummary {
            records: runs.iter().map(|run| run.end.since(run.start)).sum(),
            first: runs.first().map_or(0, |run| run.start.get()),
            end: runs.last().map_or(0, |run| run.end.get()),
            missing: pairs(survey.missing(stream, totals)),
        }
    };
    Summary {
        records: totals.records,
        payload_bytes: totals.bytes,
        streams: streams
            .iter()
            .map(|stream| (stream.to_string(), of(stream)))
            .collect(),
        damaged: totals
            .damaged
            .iter()
            .map(|(stream, seq, lsn)| (stream.to_string(), seq.get(), lsn.get()))
            .collect(),
        unknown_blocks: totals.unknown_blocks.iter().map(|lsn| lsn.get()).collect(),
        conflicts: totals.conflicts,
        unreadable: survey
            .unreadable
            .iter()
            .map(|range| [range.start, range.end])
            .collect(),
    }
}

fn is_whole(summary: &Summary) -> bool {
    let no_gap = |stream: &StreamSummary| stream.missing.is_empty();
    summary.damaged.is_empty()
        && summary.unknown_blocks.is_empty()
        && summary.conflicts == 0
        && summary.unreadable.is_empty()
        && summary.streams.values().all(no_gap)
}

fn told(summary: &Summary, to: &Path) -> String {
    let mut table = Table::new(&["stream", ">first", ">end", ">records", ">missing"]);
    for (name, stream) in &summary.streams {
        let missing: u64 = stream.missing.iter().map(|[from, to]| to - from).sum();
        table.row(vec![
            name.clone(),
            stream.first.to_string(),
            stream.end.to_string(),
            grouped(stream.records),
            grouped(missing),
        ]);
    }
    let mut text = table.render();
    let mut trouble = |count: usize, one: &str, many: &str| {
        if count > 0 {
            text.push_str(&counted(count as u64, one, many));
            text.push('\n');
        }
    };
    trouble(
        summary.damaged.len(),
        "record is damaged",
        "records are damaged",
    );
    trouble(
        summary.unknown_blocks.len(),
        "block has lost its directory; how many records it held is not known",
        "blocks have lost their directory; how many records they held is not known",
    );
    let conflicts = usize::try_from(summary.conflicts).unwrap_or(usize::MAX);
    trouble(
        conflicts,
        "record has a number that another one has as well",
        "records have a number that another one has as well",
    );
    trouble(
        summary.unreadable.len(),
        "place of the device could not be read",
        "places of the device could not be read",
    );
    text + &format!(
        "{}, {} of payload, in {}\n",
        counted(summary.records, "record", "records"),
        short_bytes(summary.payload_bytes),
        to.display()
    )
}
