//! Makes a log of a device. What was there before is gone; that nothing was, is for the caller to see to ([`crate::blank`]).

use crate::{
    AlignedBuf, Device, LogId, Lsn,
    device::write_durable,
    error::FormatError,
    geometry::{Ring, Slot},
    header::Header,
};

/// How a log is to be made.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// The name of the log: drawn anew each time, or what the last log left behind could be taken for this one's.
    pub id: LogId,
    /// The largest record, in bytes, up to 1/8 of the ring and 64 MiB. `None`: 1/16 of the ring, at most 64 MiB. Three times as
    /// much is kept free for relocation.
    pub record_bytes_max: Option<u64>,
    /// A label: milliseconds since 1970.
    pub wall_ms: u64,
}

/// Makes an empty log. The old header copies are gone before the first new one is written, so a format that is cut short leaves no
/// half of an old log.
pub fn format(device: &dyn Device, options: &FormatOptions) -> Result<Header, FormatError> {
    let geometry = device.geometry();
    let ring = Ring::of(geometry)?;
    let max = ring.record_bytes_ceiling();
    let record_bytes_max = options
        .record_bytes_max
        .unwrap_or_else(|| ring.record_bytes_default());
    if !(1..=max).contains(&record_bytes_max) {
        return Err(FormatError::RecordBytes {
            asked: record_bytes_max,
            max,
        });
    }
    let header = Header {
        id: options.id,
        generation: 1,
        epoch: 0,
        device: geometry,
        unit: ring.unit(),
        clean: true,
        tail: Lsn::ZERO,
        tail_chain: 0,
        limit: Lsn::ZERO,
        durable: Lsn::ZERO,
        record_bytes_max,
        reservation_key: 0,
        wall_ms: options.wall_ms,
        formatted_ms: options.wall_ms,
        gaps: Vec::new(),
    };
    let unit = usize::try_from(ring.unit()).unwrap_or(0);
    for slot in Slot::BOTH {
        write_durable(device, ring.header(slot), AlignedBuf::zeroed(unit))?;
    }
    for slot in [Slot::B, Slot::A] {
        let offset = ring.header(slot);
        let mut buf = AlignedBuf::zeroed(unit);
        header.encode(slot, offset, buf.as_mut_slice());
        write_durable(device, offset, buf)?;
    }
    Ok(header)
}
