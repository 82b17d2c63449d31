//! Log lines: readable on a terminal, JSON elsewhere, always on standard error. What librdkafka and sled log by the crate
//! `log` comes out here too.

mod json;

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
    let filter = filter_of(filter).unwrap_or_else(|| EnvFilter::new(default_filter));
    let on_terminal = std::io::stderr().is_terminal();
    let is_json = match config.format {
        LogFormat::Auto => !on_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if is_json {
        builder.event_format(json::JsonLines).try_init()
    } else {
        builder.with_ansi(on_terminal).try_init()
    };
    // Only a second start in one process fails, and then the first one goes on.
    drop(started);
    std::panic::set_hook(Box::new(abort_with_words));
}

/// Of the AWS SDK: where it looks for credentials. What comes of it is an error that the store tells; these tell it anew for each
/// request, as structs.
const HUSHED: [&str; 5] = [
    "aws_config::imds::region=off",
    "aws_config::meta=off",
    "aws_config::profile=off",
    "aws_config::sts=off",
    "aws_config::web_identity_token=off",
];

/// What `text` says, and no more of [`HUSHED`] than it asks for by name.
fn filter_of(text: &str) -> Option<EnvFilter> {
    let filter = EnvFilter::builder().parse(text).ok()?;
    if text.contains("aws_config") {
        return Some(filter);
    }
    let hushed = HUSHED.iter().filter_map(|directive| directive.parse().ok());
    Some(hushed.fold(filter, EnvFilter::add_directive))
}

/// A panic is a bug of ours and leaves a task dead that others wait for. The process ends, so that whoever supervises it
/// starts it anew; the archive is written so that this loses nothing. It may have been a thread of sled's, which reads its files in
/// the background, so the next start begins with empty caches: whose it was is not guessed from a thread's name. Where bytes from
/// outside are read it goes on: they would be read again after each start.
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
    distrust_disk_caches();
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

    /// Without credentials each request to S3 was a line of a thousand characters, and then ours.
    #[test]
    fn the_sdk_tells_nothing_of_its_search_unless_it_is_asked() {
        let hushed = filter_of("info").expect("a filter").to_string();
        for directive in HUSHED {
            assert!(hushed.contains(directive), "{directive}: {hushed}");
        }
        let asked = filter_of("info,aws_config=debug").expect("a filter");
        assert!(!asked.to_string().contains("=off"), "{asked}");
    }

    /// For the child process: the directory of its cache.
    const CACHE_DIR: &str = "EVERLOG_TEST_CACHE_DIR";

    /// Of sled's two kinds of threads one was not known by its name ("log flusher"). A panic there ended the process at each start,
    /// since each met the same damage.
    #[test]
    fn a_panic_that_ends_the_process_leaves_a_cache_that_starts_empty() {
        let name = "a_panic_that_ends_the_process_leaves_a_cache_that_starts_empty";
        if let Some(dir) = std::env::var_os(CACHE_DIR) {
            return panic_beside_a_cache(dir.into());
        }
        let dir = tempfile::tempdir().expect("a directory");
        let test = std::env::current_exe().expect("this program");
        let ended = std::process::Command::new(test)
            .args([&format!("logging::tests::{name}"), "--exact"])
            .env(CACHE_DIR, dir.path())
            .output()
            .expect("it runs");
        let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        assert_eq!(signal, Some(6), "it aborts: {ended:?}");
        assert!(dir.path().join("nodes-1").exists(), "it had a cache");
        assert!(dir.path().join("nodes-1.broken").exists());
    }

    fn panic_beside_a_cache(dir: std::path::PathBuf) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let options = everlog_index::ArchiveOptions {
            node_cache_dir: Some(dir),
            create: true,
        };
        let store = std::sync::Arc::new(everlog_store::MemoryStore::new());
        let opened = runtime.block_on(everlog_index::Archive::open(store, options));
        let _archive = opened.expect("an archive");
        std::panic::set_hook(Box::new(abort_with_words));
        let thread = std::thread::Builder::new().name("log flusher".to_owned());
        let panicking = thread.spawn(|| panic!("as sled does")).expect("a thread");
        let _: Result<(), _> = panicking.join();
    }
}
