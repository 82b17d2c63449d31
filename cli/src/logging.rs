//! Log lines: readable on a terminal, JSON elsewhere, always on standard error. What librdkafka and sled log by the crate
//! `log` comes out here too.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use everlog_format::{is_contained, panic_text};
use everlog_index::distrust_disk_caches;
use tracing::{error, warn};
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Starts logging; `default_filter` holds where the operator has set none.
pub(crate) fn start(config: &LogConfig, default_filter: &str) {
    let filter = config.filter.as_deref().unwrap_or(default_filter);
    let filter = EnvFilter::builder()
        .parse(filter)
        .unwrap_or_else(|_| EnvFilter::new(default_filter));
    let on_terminal = std::io::stderr().is_terminal();
    let json = match config.format {
        LogFormat::Auto => !on_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if json {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init()
    } else {
        builder.with_ansi(on_terminal).try_init()
    };
    // Only a second start in one process fails, and then the first one goes on.
    drop(started);
    std::panic::set_hook(Box::new(abort_with_words));
}

/// How the threads are called that sled starts.
const SLED_THREADS: &str = "sled";

/// A panic is a bug of ours and leaves a task dead that others wait for. The process ends, so that whoever supervises it
/// starts it anew; the archive is written so that this loses nothing. Where bytes from outside are read it goes on: they
/// would be read again after each start.
fn abort_with_words(panic: &PanicHookInfo<'_>) {
    let text = panic_text(panic.payload());
    let place = panic
        .location()
        .map(ToString::to_string)
        .unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or_default();
    if is_contained() {
        warn!(
            panic = text,
            place, thread, "what was being read is damaged, or this is a bug in everlog"
        );
        return;
    }
    if thread.starts_with(SLED_THREADS) {
        distrust_disk_caches();
    }
    error!(
        message = "this is a bug in everlog: the process ends here, nothing that was archived is affected",
        panic = text,
        place,
        thread,
        backtrace = %std::backtrace::Backtrace::capture(),
    );
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use everlog_format::contain_panic;

    use super::*;

    /// Without the question in the hook this test program aborts.
    #[test]
    fn a_contained_panic_does_not_end_the_process() {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(abort_with_words));
        let done = contain_panic(|| panic!("damaged"));
        std::panic::set_hook(before);
        let done: Result<(), _> = done;
        assert_eq!(
            done.map_err(|panic| panic.to_string()),
            Err("reading it panicked: damaged".to_owned())
        );
    }
}
