//! What an error says, down to its cause.

use std::error::Error;

/// An error and its causes, parted by colons: messages print only the top, and what matters is at the bottom. A cause that the error tells
/// itself is not told twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{told}")]
    struct Told {
        told: &'static str,
        source: Option<Box<Told>>,
    }

    fn told(lines: &[&'static str]) -> Told {
        Told {
            told: lines[0],
            source: (1 < lines.len()).then(|| Box::new(told(&lines[1..]))),
        }
    }

    #[test]
    fn each_cause_is_told_once() {
        let plain = told(&["the upload failed", "no answer", "connection refused"]);
        assert_eq!(
            chain(&plain),
            "the upload failed: no answer: connection refused"
        );
        let telling = told(&[
            "cannot be used: no answer: connection refused",
            "no answer",
            "connection refused",
        ]);
        assert_eq!(
            chain(&telling),
            "cannot be used: no answer: connection refused"
        );
    }
}
