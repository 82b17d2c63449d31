//! What a person sees while the demo runs: three bars on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Shared, TAIL_RECORDS};
use crate::table::grouped;
use crate::terminal::print;

/// Ticks between two lines where there is no terminal: 5 s.
const TICKS_PER_LINE: u64 = 50;

/// The bars.
pub(crate) struct Progress {
    shared: Arc<Shared>,
    bars: MultiProgress,
    sent: ProgressBar,
    archived: ProgressBar,
    replayed: ProgressBar,
    bulk_bytes: u64,
    ticks: AtomicU64,
    is_terminal: bool,
}

impl Progress {
    pub(crate) fn new(shared: Arc<Shared>, bulk_bytes: u64) -> Progress {
        let bars = MultiProgress::new();
        let bar = |name: &'static str| {
            let style =
                ProgressStyle::with_template("{prefix:>14} {bar:40} {human_pos:>9} records {msg}");
            let bar = bars.add(ProgressBar::new(1)).with_prefix(name);
            match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        };
        let (sent, archived, replayed) = (bar("sent"), bar("in the archive"), bar("replayed"));
        let is_terminal = std::io::stderr().is_terminal();
        Progress {
            shared,
            bars,
            sent,
            archived,
            replayed,
            bulk_bytes,
            ticks: AtomicU64::new(0),
            is_terminal,
        }
    }

    /// Shows how far things are.
    pub(crate) fn tick(&self) {
        let count = |number: i64| number.unsigned_abs();
        let sent = count(self.shared.sent.delivered_total());
        let (archived, replayed) = (
            count(self.shared.archived_total()),
            count(self.shared.replayed_total()),
        );
        let expected = self.expected_records(sent);
        for (bar, position) in [
            (&self.sent, sent),
            (&self.archived, archived),
            (&self.replayed, replayed),
        ] {
            bar.set_length(expected);
            bar.set_position(position);
        }
        let is_due = self
            .ticks
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(TICKS_PER_LINE);
        if is_due && !self.is_terminal {
            let (sent, archived, replayed) = (grouped(sent), grouped(archived), grouped(replayed));
            self.say(&format!(
                "{sent} records sent, {archived} in the archive, {replayed} replayed"
            ));
        }
    }

    /// How many it will be, going by the mean so far.
    fn expected_records(&self, sent: u64) -> u64 {
        let bytes = self.shared.sent.bytes.load(Ordering::Relaxed);
        let bulk = sent
            .saturating_mul(self.bulk_bytes.max(bytes))
            .checked_div(bytes)
            .unwrap_or(1);
        sent.max(
            bulk + if self.shared.sent.is_done() {
                0
            } else {
                TAIL_RECORDS.unsigned_abs()
            },
        )
    }

    /// A line that stays.
    pub(crate) fn say(&self, text: &str) {
        // Without a reader on standard output the demo still has its exit status.
        let _unseen = self.bars.suspend(|| print(text));
    }

    pub(crate) fn finish(&self) {
        self.tick();
        let _unseen = self.bars.clear();
    }
}
