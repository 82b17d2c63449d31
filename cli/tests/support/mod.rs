//! The built binary, run.

use std::path::Path;
use std::process::{Command, Output};

/// What came of it.
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs `everlog` in `dir` with nothing of this process's environment that could interfere.
pub(crate) fn everlog(dir: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everlog"));
    command
        .current_dir(dir)
        .args(arguments)
        .env_clear()
        .env("COLUMNS", "100");
    command.envs(variables.iter().copied());
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    Ran {
        status: status.code().unwrap_or(-1),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}
