//! The numbers and names of the log: position, sequence, stream, log.

use std::fmt;

/// A position in the endless log, in bytes, a multiple of the block unit. It never restarts, so that what an earlier lap left on
/// the device can't be taken for what this lap wrote. At 10 GB a second it lasts for 58 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// The first position of a new log.
    pub const ZERO: Lsn = Lsn(0);

    pub const fn new(raw: u64) -> Lsn {
        Lsn(raw)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position `bytes` further on. Saturates: positions near the end of `u64` come only from damaged bytes, and what
    /// saturates belongs to no place of the ring.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }

    /// The bytes from `earlier` to here, 0 if it is later.
    pub const fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a record within its stream: 0, 1, 2, ... without a gap, for the life of the log. Relocation keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(u64);

impl Seq {
    pub const ZERO: Seq = Seq(0);

    pub const fn new(raw: u64) -> Seq {
        Seq(raw)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    #[must_use]
    pub const fn plus(self, records: u64) -> Seq {
        Seq(self.0.saturating_add(records))
    }

    /// The records from `earlier` up to, not including, this one; 0 if `earlier` is later.
    pub const fn since(self, earlier: Seq) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a stream: 32 bytes whose meaning is the caller's, for example a digest of topic id and partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId([u8; 32]);

impl StreamId {
    pub const fn new(raw: [u8; 32]) -> StreamId {
        StreamId(raw)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for StreamId {
    fn from(raw: [u8; 32]) -> StreamId {
        StreamId(raw)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, &self.0)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, &self.0)
    }
}

/// The name of one formatted log, drawn when it is formatted. Blocks of another log on the same device carry another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId([u8; 16]);

impl LogId {
    pub const fn new(raw: [u8; 16]) -> LogId {
        LogId(raw)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e @ ..] = &self.0;
        hex(f, &[*a, *b, *c, *d])?;
        for part in [&e[..2], &e[2..4], &e[4..6], &e[6..]] {
            f.write_str("-")?;
            hex(f, part)?;
        }
        Ok(())
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_named_like_a_uuid() {
        let id = LogId::new([
            0x12, 0x3e, 0x45, 0x67, 0xe8, 0x9b, 0x12, 0xd3, 0xa4, 0x56, 0x42, 0x66, 0x14, 0x17,
            0x40, 0x00,
        ]);
        assert_eq!(id.to_string(), "123e4567-e89b-12d3-a456-426614174000");
    }
}
