//! Writing to standard output. A reader who has gone away (`everlog inspect | head`) ends the process without a word.

use std::io::{ErrorKind, Write};

/// Prints `text` and a newline unless it ends in one.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    match out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(newline.as_bytes()))
        .and_then(|()| out.flush())
    {
        Err(err) if err.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        result => result,
    }
}

/// Prints an error where people look for errors, whatever the log filter says.
pub(crate) fn print_error(text: &str) {
    // If even this fails there is nobody left to tell.
    let _nobody_to_tell = writeln!(std::io::stderr().lock(), "error: {text}");
}
