//! The name of an object below the archive's root.

use std::fmt;

/// A relative object name: parts joined by `/`, each of 1 to 255 characters out of `A-Z a-z 0-9 . _ - =`, none `.` or
/// `..`; at most 900 bytes in all (S3 allows 1,024 with the archive's own prefix before it).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// Text that is no [`Key`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an object name that every store can hold")]
pub struct InvalidKey(String);

impl Key {
    /// Checks `text`.
    pub fn new(text: impl Into<String>) -> Result<Key, InvalidKey> {
        let text = text.into();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '=');
        let part_ok = |part: &str| {
            !part.is_empty()
                && part.len() <= 255
                && part != "."
                && part != ".."
                && part.chars().all(legal)
        };
        if text.len() <= 900 && text.split('/').all(part_ok) {
            Ok(Key(text))
        } else {
            Err(InvalidKey(text.chars().take(200).collect()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stays_below_its_root() {
        assert!(Key::new("data/dt=2026-11-21/0-1.parquet").is_ok());
        for bad in ["", "/a", "a/", "a//b", "a/../b", "./a", "a b", "ä"] {
            assert!(Key::new(bad).is_err(), "{bad:?}");
        }
    }
}
