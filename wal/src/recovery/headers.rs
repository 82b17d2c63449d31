//! Reads both header copies and decides which counts.

use std::io;

use crate::{
    AlignedBuf, Device,
    error::{Corruption, OpenError},
    geometry::{Ring, Slot, UNIT_MIN},
    header::{COPY_BYTES, CopyFault, Header},
    recovery::{Case, window::read_around},
    rules::rules,
};

/// The rows of the table of headers in [`crate::recovery`] that lead to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderCase {
    /// a: both copies say the same.
    Same,
    /// b: the other copy is damaged.
    OneDamaged { damaged: Slot, fault: CopyFault },
    /// c: the other copy is older.
    OneOlder { older: Slot },
}

/// A copy as it was read.
pub type CopyRead = Result<Header, CopyFault>;

/// Both copies as they were read.
#[derive(Clone, Debug)]
pub struct Headers {
    pub a: CopyRead,
    pub b: CopyRead,
}

/// Reads both header copies. The second lies behind the ring, which the first one describes; if the first is lost, it is looked
/// for where the size of the device says.
pub fn read_headers(device: &dyn Device) -> io::Result<Headers> {
    let a = read_copy(device, Slot::A, 0)?;
    let ring = a
        .as_ref()
        .ok()
        .and_then(Header::ring)
        .or_else(|| Ring::of(device.geometry()).ok());
    let b = match ring {
        Some(ring) => read_copy(device, Slot::B, ring.header(Slot::B))?,
        None => Err(CopyFault::Foreign),
    };
    Ok(Headers { a, b })
}

/// Reads one copy; if it is bad, once more before that is believed.
fn read_copy(device: &dyn Device, slot: Slot, offset: u64) -> io::Result<CopyRead> {
    let first = read_copy_once(device, slot, offset)?;
    if first.is_ok() || !rules().read_again {
        return Ok(first);
    }
    read_copy_once(device, slot, offset)
}

fn read_copy_once(device: &dyn Device, slot: Slot, offset: u64) -> io::Result<CopyRead> {
    let sector = u64::from(device.geometry().logical_sector).max(COPY_BYTES as u64);
    let bytes = sector.max(UNIT_MIN);
    if offset.saturating_add(bytes) > device.geometry().bytes {
        return Ok(Err(CopyFault::Foreign));
    }
    let len =
        usize::try_from(bytes).map_err(|_too_large| io::Error::from(io::ErrorKind::OutOfMemory))?;
    let mut buf = AlignedBuf::zeroed(len);
    let mut unreadable = Vec::new();
    read_around(device, offset, buf.as_mut_slice(), &mut unreadable)?;
    if unreadable.contains(&offset) {
        return Ok(Err(CopyFault::Unreadable));
    }
    Ok(Header::decode(slot, offset, buf.as_slice()))
}

impl Headers {
    /// The copy that counts.
    pub fn choose(self) -> Result<(Slot, HeaderCase, Header), OpenError> {
        match (self.a, self.b) {
            (Ok(a), Ok(b)) => choose_newer(a, b),
            (Ok(a), Err(fault)) => Ok((Slot::A, one_damaged(Slot::B, fault)?, a)),
            (Err(fault), Ok(b)) => Ok((Slot::B, one_damaged(Slot::A, fault)?, b)),
            (Err(CopyFault::Foreign), Err(CopyFault::Foreign)) => Err(OpenError::NotALog {
                a: CopyFault::Foreign,
                b: CopyFault::Foreign,
            }),
            (Err(CopyFault::Version(version)), Err(_))
            | (Err(_), Err(CopyFault::Version(version))) => Err(OpenError::Version(version)),
            (Err(a), Err(b)) => Err(OpenError::HeadersLost { a, b }),
        }
    }
}

/// A copy of another layout beside a sound one of ours is not damage: a newer everlog has been here.
fn one_damaged(damaged: Slot, fault: CopyFault) -> Result<HeaderCase, OpenError> {
    match fault {
        CopyFault::Version(version) => Err(OpenError::Version(version)),
        CopyFault::Foreign
        | CopyFault::Checksum
        | CopyFault::Misplaced { .. }
        | CopyFault::Nonsense
        | CopyFault::Unreadable => Ok(HeaderCase::OneDamaged { damaged, fault }),
    }
}

fn choose_newer(a: Header, b: Header) -> Result<(Slot, HeaderCase, Header), OpenError> {
    let two_logs = a.id != b.id;
    let conflict = a.age() == b.age() && a != b;
    if two_logs || conflict {
        let found = if two_logs {
            format!("the header copies belong to the logs {} and {}", a.id, b.id)
        } else {
            "two different header copies have the same age: two writers".to_owned()
        };
        return Err(OpenError::Corrupt(Box::new(Corruption {
            case: Case::Headers,
            at: a.tail,
            offset: 0,
            found,
            lost: Vec::new(),
        })));
    }
    let a_is_newer = if !rules().no_clock {
        a.wall_ms >= b.wall_ms
    } else if !rules().header_generation {
        true
    } else {
        a.age() >= b.age()
    };
    let case = |older| {
        if a.age() == b.age() {
            HeaderCase::Same
        } else {
            HeaderCase::OneOlder { older }
        }
    };
    Ok(if a_is_newer {
        (Slot::A, case(Slot::B), a)
    } else {
        (Slot::B, case(Slot::A), b)
    })
}
