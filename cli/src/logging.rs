//! Log lines: readable on a terminal, JSON elsewhere, always on standard error. What librdkafka and sled log by the crate
//! `log` comes out here too.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing::error;
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

/// A panic is a bug of ours and leaves a task dead that others wait for. The process ends, so that whoever supervises it
/// starts it anew; the archive is written so that this loses nothing.
fn abort_with_words(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let place = panic
        .location()
        .map(ToString::to_string)
        .unwrap_or_default();
    let thread = std::thread::current();
    error!(
        message = "this is a bug in everlog: the process ends here, nothing that was archived is affected",
        panic = message.unwrap_or("(no text)"),
        place,
        thread = thread.name().unwrap_or_default(),
        backtrace = %std::backtrace::Backtrace::capture(),
    );
    std::process::abort();
}
