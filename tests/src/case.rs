//! One test: its folder, its logs, and waiting for a state.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// True when the full numbers of the issue are asked for (`tests/soak`), false for the short forms of CI.
pub fn soak() -> bool {
    std::env::var("EVERLOG_SOAK").is_ok_and(|value| !value.is_empty() && value != "0")
}

/// Looks every 100 ms until `state` is true. An error of `state` ends the waiting.
pub fn wait_until(
    what: &str,
    patience: Duration,
    mut state: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        if state()? {
            return Ok(());
        }
        if start.elapsed() > patience {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A running test.
#[derive(Debug)]
pub struct Case {
    name: String,
    folder: PathBuf,
    start: Instant,
}

impl Case {
    /// Runs `body` with a folder of its own. It is removed after a success and kept, with all logs, after a failure
    /// (or always, with `EVERLOG_TEST_KEEP=1`).
    #[expect(
        clippy::print_stderr,
        reason = "the test harness shows it where a test fails"
    )]
    pub fn run(name: &str, body: impl FnOnce(&Case) -> Result<()>) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let root = match std::env::var_os("EVERLOG_TEST_DIR") {
            Some(folder) => PathBuf::from(folder),
            None => std::env::temp_dir().join("everlog-tests"),
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = root.join(format!("{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        let case = Case {
            name: name.to_owned(),
            folder: folder.clone(),
            start: Instant::now(),
        };
        let outcome = body(&case);
        case.note("end");
        let keep = std::env::var("EVERLOG_TEST_KEEP").is_ok_and(|value| value == "1");
        match outcome {
            Ok(()) if keep => eprintln!("kept: {}", folder.display()),
            Ok(()) => {
                let _ = std::fs::remove_dir_all(&folder);
            }
            Err(error) => panic!("{name}: {error:#}\nlogs: {}", folder.display()),
        }
    }

    /// What the test is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The test's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Tells how far the test is.
    #[expect(
        clippy::print_stderr,
        reason = "the test harness shows it where a test fails"
    )]
    pub fn note(&self, text: &str) {
        eprintln!(
            "[{} {:7.1} s] {text}",
            self.name,
            self.start.elapsed().as_secs_f64()
        );
    }
}
