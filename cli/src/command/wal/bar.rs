//! How far a long read is. On something that is no terminal it draws nothing.

use indicatif::{ProgressBar, ProgressStyle};

pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new(what: &'static str) -> Bar {
        let style = ProgressStyle::with_template(
            "{prefix}  {bar:30} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
        );
        let bar = ProgressBar::new(0).with_prefix(what);
        Bar(match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }

    pub(super) fn set(&self, at: u64, of: u64) {
        self.0.set_length(of);
        self.0.set_position(at);
    }

    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
