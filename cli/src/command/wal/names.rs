//! Names of logs and streams, as people write them.

use anyhow::{Context as _, Result, ensure};
use everlog_wal::{LogId, StreamId};

/// 32 hex digits; hyphens as in a UUID are welcome.
pub(super) fn parse_log(text: &str) -> Result<LogId> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let bytes = parse_hex(&digits)?;
    let raw: [u8; 16] = bytes
        .try_into()
        .ok()
        .with_context(|| format!("{text:?} is no name of a log: it has 32 hex digits"))?;
    Ok(LogId::new(raw))
}

/// All 64 hex digits.
pub(super) fn parse_stream(text: &str) -> Result<StreamId> {
    let raw: [u8; 32] = parse_hex(text)?
        .try_into()
        .ok()
        .with_context(|| format!("{text:?} is no name of a stream: it has 64 hex digits"))?;
    Ok(StreamId::new(raw))
}

fn parse_hex(digits: &str) -> Result<Vec<u8>> {
    ensure!(
        digits.len().is_multiple_of(2) && digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{digits:?} is not made of pairs of hex digits"
    );
    (0..digits.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(&digits[at..at + 2], 16)?))
        .collect()
}

/// The first digits of a stream's name, to choose by.
#[derive(Debug)]
pub(super) struct StreamPrefix(String);

impl StreamPrefix {
    pub(super) fn parse(text: &str) -> Result<StreamPrefix> {
        let digits = text.trim_end_matches('.').to_ascii_lowercase();
        ensure!(
            !digits.is_empty()
                && digits.len() <= 64
                && digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{text:?} is no name of a stream: write its 64 hex digits, or the first of them"
        );
        Ok(StreamPrefix(digits))
    }

    pub(super) fn matches(&self, stream: &StreamId) -> bool {
        stream.to_string().starts_with(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        let log = LogId::new([0xab; 16]);
        assert_eq!(parse_log(&log.to_string()).expect("a name"), log);
        let stream = StreamId::new([0x1f; 32]);
        assert_eq!(parse_stream(&stream.to_string()).expect("a name"), stream);
        let prefix = StreamPrefix::parse("1F1f..").expect("a prefix");
        assert!(prefix.matches(&stream));
        assert!(!prefix.matches(&StreamId::new([0x10; 32])));
        for bad in ["", "xy", "äö", "1f1", &"1f".repeat(33)] {
            assert!(parse_log(bad).is_err(), "{bad:?}");
            assert!(parse_stream(bad).is_err(), "{bad:?}");
        }
    }
}
