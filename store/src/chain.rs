//! What an error says, down to its cause.

use std::error::Error;

/// An error and its causes, parted by colons: messages print only the top, and what matters is at the bottom. A cause that the error tells
/// itself is not told twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
