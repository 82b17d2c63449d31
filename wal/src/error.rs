//! What can go wrong, split by what the caller does next.

use std::{fmt, io};

use crate::{Lsn, Seq, StreamId, geometry::GeometryError, header::CopyFault, recovery::Case};

/// Why a device was not formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Take another device, or give the file another size.
    #[error("this device can't hold a log")]
    Geometry(#[from] GeometryError),
    /// Ask for something possible.
    #[error("records of {asked} bytes are not possible here, at most {max}")]
    RecordBytes { asked: u64, max: u64 },
    /// The device failed; what it holds now is undefined. Look at the device.
    #[error("device failed")]
    Io(#[from] io::Error),
}

/// Why a log was not opened. Nothing was changed on the device, except under [`OpenError::Fenced`] and [`OpenError::Write`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device does not answer: look at it, then open again.
    #[error("device failed")]
    Io(#[from] io::Error),
    /// No log here: format it, if this is the right device.
    #[error(
        "no log on this device ({a}; {b} in the second copy). If there was one and the device has another size since, \
         give it its old size again"
    )]
    NotALog { a: CopyFault, b: CopyFault },
    /// Both header copies are damaged: `everlog wal export` what is intact, then format.
    #[error(
        "both header copies are damaged ({a}; {b} in the second copy); `everlog wal export` saves what is intact. \
         If the device has another size than when it was formatted, give it that size again first"
    )]
    HeadersLost { a: CopyFault, b: CopyFault },
    /// Written by another version of everlog: use that one.
    #[error("layout version {0} is not known")]
    Version(u32),
    /// Not the device that was formatted, or it was changed: put back the right one.
    #[error("device has changed: {0}")]
    DeviceChanged(DeviceChange),
    /// Acknowledged bytes are damaged or missing: `everlog wal export` what is intact, then format.
    #[error(
        "log is damaged: {0}; keep the device as it is, `everlog wal export` saves what is intact"
    )]
    Corrupt(Box<Corruption>),
    /// A sector at or behind the end of the log can't be read, so nobody knows whether what is there was acknowledged: try again, look at the
    /// device; `everlog wal export` what is intact. Opening with the cut allowed gives up what the sector held.
    #[error(
        "byte {offset} of the device can't be read, where LSN {at} is due: try again; \
         `everlog wal export` saves what is intact"
    )]
    Unreadable { at: Lsn, offset: u64 },
    /// Another owner holds the device: stop.
    #[error("another owner has taken the device over")]
    Fenced,
    /// The header of the new epoch could not be written: look at the device, then open again.
    #[error("opening could not be written")]
    Write(#[source] io::Error),
}

/// What is different about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChange {
    /// In bytes.
    Smaller { formatted: u64, found: u64 },
    /// The sectors, in bytes, that a write needs to be aligned to are larger than the unit of the log.
    Sector { unit: u64, found: u32 },
}

impl fmt::Display for DeviceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChange::Smaller { formatted, found } => {
                write!(f, "formatted with {formatted} bytes, now it has {found}")
            }
            DeviceChange::Sector { unit, found } => write!(
                f,
                "its sectors have {found} bytes, the log was formatted with a unit of {unit}"
            ),
        }
    }
}

/// What is wrong with a log, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The row of the table in [`crate::recovery`].
    pub case: Case,
    /// The position that should be sound and is not.
    pub at: Lsn,
    /// The same position on the device, in bytes.
    pub offset: u64,
    /// What was found there, and what says that it had been acknowledged.
    pub found: String,
    /// The records known to be lost. Empty if the directory is lost as well.
    pub lost: Vec<(StreamId, Seq)>,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "case {} at LSN {} (byte {} of the device): {}",
            self.case, self.at, self.offset, self.found
        )?;
        for (stream, seq) in self.lost.iter().take(8) {
            write!(f, "; record {seq} of stream {stream} is lost")?;
        }
        if self.lost.len() > 8 {
            write!(f, "; and {} more", self.lost.len() - 8)?;
        }
        Ok(())
    }
}

/// Why a log no longer takes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// It was closed: open it again.
    #[error("log is closed")]
    Closed,
    /// A write or flush failed or was short. What is durable of the writes in flight is not known, so nobody was acknowledged:
    /// open the log again, which finds out.
    #[error("a write failed (errno {errno:?}), the log has to be opened again")]
    Poisoned {
        /// `None`: the write was short.
        errno: Option<i32>,
    },
    /// Another owner has taken the device over: stop, never open again by itself.
    #[error("another owner has taken the device over")]
    Fenced,
}

/// Why a record was not appended. After [`AppendError::Stopped`] it may turn up all the same when the log is opened again; otherwise
/// it won't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// This stream holds most of what fills the log: drain and trim it, others still get through.
    #[error("stream holds too much of the log")]
    StreamFull,
    /// The log is full: drain and trim, [`crate::Wal::usage`] says whom.
    #[error("log is full")]
    Full,
    /// The log holds as many streams as it can: their names take room for ever.
    #[error("the log has {streams} streams already")]
    TooManyStreams { streams: usize },
    /// Never fits: the log was formatted for smaller records.
    #[error("record of {bytes} bytes, this log takes up to {max}")]
    TooLarge { bytes: u64, max: u64 },
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a trim was not made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrimError {
    /// Nothing was ever appended to this stream.
    #[error("stream is not known")]
    UnknownStream,
    /// Records that are not durable yet can't be trimmed.
    #[error("the stream ends at {next}")]
    BeyondEnd { next: Seq },
    /// The log is so full that there is no room for the mark. The trim holds until a crash; try again when others have trimmed.
    #[error("log is full, the trim is not durable")]
    Full,
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why records could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Everything below is trimmed: go on from there.
    #[error("records below {0} are trimmed")]
    Trimmed(Seq),
    /// This record is lost: raise the alarm. Reading from the next number goes on.
    #[error("record {seq} of stream {stream} at LSN {lsn} is damaged")]
    Damaged {
        stream: StreamId,
        seq: Seq,
        lsn: Lsn,
    },
    /// The device does not answer: try again, look at it.
    #[error("device failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}
