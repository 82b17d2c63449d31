//! `everlog verify`: reads everything that an archive's commits name (every commit, every node of the trees, every
//! segment), hashes it, decodes it, and holds it against what the index says of it.
//!
//! Nothing is kept from one object to the next and nothing is cached, so the whole costs as much memory as a few row
//! groups and the names of what was seen, whatever the size of the archive.

mod report;
mod segment;
mod tally;
#[cfg(test)]
mod tests;
mod walk;

use anyhow::Result;
use everlog_index::IndexError;
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use report::Verdict;
use report::{Report, index_finding};

use crate::config::ToolConfig;
use crate::open::{ReadError, open_to_read};
use crate::terminal::print;

/// Checks all partitions that `config` names.
pub(crate) async fn verify(config: ToolConfig) -> Result<Verdict> {
    let bar = progress_bar();
    let shown = bar.clone();
    let mut report = Report::new(move |finding| {
        // Should standard output be gone, the conclusion fails the same way and says so.
        let _told_at_the_end = shown.suspend(|| print(&finding.to_string()));
    });
    match open_to_read(&config.archive).await {
        Ok(archive) => walk::check(&archive, config.topics.as_ref(), &bar, &mut report).await,
        // Bytes that are there and wrong are damage like any other.
        Err(ReadError::Archive(err @ IndexError::Corrupt { .. })) => {
            report.add(index_finding("the archive as a whole".to_owned(), &err));
        }
        Err(err) => return Err(err.into()),
    }
    bar.finish_and_clear();
    print(&report.conclusion())?;
    Ok(report.verdict())
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:30} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left  {wide_msg}",
    );
    let bar = ProgressBar::new(0);
    // On something that is no terminal it draws nothing.
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
