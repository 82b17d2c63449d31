//! Where things lie: header copy A, the ring, header copy B.
//!
//! ```text
//! 0        unit                               unit + ring_bytes
//! | copy A | ring: lsn at unit + lsn % ring_bytes | copy B | (less than one unit unused)
//! ```
//!
//! The unit is the larger of 4096 bytes and the device's physical sector. A block is a whole number of units and never wraps.

use crate::{Lsn, device::DeviceGeometry, rules::rules};

/// No smaller unit is used, in bytes.
pub const UNIT_MIN: u64 = 4096;
/// No larger physical sector is taken, in bytes: header copies have to stay small.
pub const UNIT_MAX: u64 = 1 << 20;
/// The smallest ring, in units: below it the room for relocation would be all there is.
pub const RING_UNITS_MIN: u64 = 32;
/// No record is larger than this, in bytes, whatever the size of the ring.
pub const RECORD_BYTES_CEILING: u64 = 64 << 20;
/// No block is larger than this, in bytes, whatever the size of the ring: what says to be is none. So nothing that lies on a device can ask for
/// more memory. A record of the largest size makes a block of little more than half of this.
pub const BLOCK_BYTES_CEILING: u64 = 2 * RECORD_BYTES_CEILING;

// The largest record fits, with what a block holds beside it, in units of any size.
const _: () = assert!(RECORD_BYTES_CEILING + 2 * UNIT_MAX <= BLOCK_BYTES_CEILING);

/// Which header copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// At the start of the device.
    A,
    /// Behind the ring.
    B,
}

impl Slot {
    pub const BOTH: [Slot; 2] = [Slot::A, Slot::B];

    #[must_use]
    pub const fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }

    pub(crate) const fn number(self) -> u32 {
        match self {
            Slot::A => 0,
            Slot::B => 1,
        }
    }
}

/// Why a device can't hold a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    #[error(
        "{bytes} bytes are too few for a log: with a unit of {unit} bytes it takes at least {min}"
    )]
    TooSmall { bytes: u64, unit: u64, min: u64 },
    #[error(
        "a physical sector of {physical} bytes is not supported: powers of two up to {UNIT_MAX} are"
    )]
    Sector { physical: u32 },
}

/// The ring of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    // Invariants: unit is a power of two from UNIT_MIN to UNIT_MAX; bytes is a multiple of it, at least RING_UNITS_MIN units.
    unit: u64,
    bytes: u64,
}

impl Ring {
    pub fn of(geometry: DeviceGeometry) -> Result<Ring, GeometryError> {
        let physical = if rules().physical_sector {
            geometry.physical_sector.max(geometry.logical_sector)
        } else {
            geometry.logical_sector
        };
        let unit = u64::from(physical).max(UNIT_MIN);
        if !unit.is_power_of_two() || unit > UNIT_MAX {
            return Err(GeometryError::Sector { physical });
        }
        Ring::new(unit, geometry.bytes).ok_or(GeometryError::TooSmall {
            bytes: geometry.bytes,
            unit,
            min: (RING_UNITS_MIN + 2) * unit,
        })
    }

    /// The ring on a device of `device_bytes`, or `None` if that is no possible ring.
    pub fn new(unit: u64, device_bytes: u64) -> Option<Ring> {
        let sound = unit.is_power_of_two() && (UNIT_MIN..=UNIT_MAX).contains(&unit);
        let units = if sound { device_bytes / unit } else { 0 };
        (units >= RING_UNITS_MIN + 2).then(|| Ring {
            unit,
            bytes: (units - 2) * unit,
        })
    }

    /// The size that every block and LSN is a multiple of, in bytes.
    pub const fn unit(self) -> u64 {
        self.unit
    }

    /// The bytes of the ring.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Where a header copy lies on the device.
    pub const fn header(self, slot: Slot) -> u64 {
        match slot {
            Slot::A => 0,
            Slot::B => self.unit + self.bytes,
        }
    }

    /// Where an LSN lies on the device.
    pub const fn physical(self, lsn: Lsn) -> u64 {
        self.unit + lsn.get() % self.bytes
    }

    /// How often the ring had been gone round at this position.
    pub const fn lap(self, lsn: Lsn) -> u64 {
        lsn.get() / self.bytes
    }

    /// The bytes from here to the end of the lap, never 0.
    pub const fn left_in_lap(self, lsn: Lsn) -> u64 {
        self.bytes - lsn.get() % self.bytes
    }

    pub const fn is_aligned(self, bytes: u64) -> bool {
        bytes.is_multiple_of(self.unit)
    }

    /// `bytes` rounded up to whole units.
    pub const fn round_up(self, bytes: u64) -> u64 {
        match bytes.checked_next_multiple_of(self.unit) {
            Some(rounded) => rounded,
            None => u64::MAX - (self.unit - 1),
        }
    }

    /// `bytes` rounded down to whole units.
    pub const fn round_down(self, bytes: u64) -> u64 {
        bytes - bytes % self.unit
    }

    /// The largest record that a ring of this size is formatted for unless asked otherwise, in bytes.
    pub fn record_bytes_default(self) -> u64 {
        (self.bytes / 16).min(RECORD_BYTES_CEILING)
    }

    /// The largest record that a ring of this size can be formatted for, in bytes.
    pub fn record_bytes_ceiling(self) -> u64 {
        (self.bytes / 8).min(RECORD_BYTES_CEILING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(bytes: u64, logical_sector: u32, physical_sector: u32) -> DeviceGeometry {
        DeviceGeometry {
            bytes,
            logical_sector,
            physical_sector,
        }
    }

    #[test]
    fn the_unit_is_the_physical_sector_but_never_below_4096() {
        for (logical, physical, unit) in [(512, 512, 4096), (4096, 4096, 4096), (512, 16384, 16384)]
        {
            let ring = Ring::of(geometry(10 << 20, logical, physical)).expect("large enough");
            assert_eq!(ring.unit(), unit);
        }
    }

    #[test]
    fn copies_and_ring_do_not_touch() {
        let ring = Ring::of(geometry((1 << 20) + 1000, 512, 512)).expect("large enough");
        let (start, end) = (
            ring.physical(Lsn::ZERO),
            ring.physical(Lsn::ZERO) + ring.bytes(),
        );
        assert_eq!(start, ring.header(Slot::A) + ring.unit());
        assert_eq!(end, ring.header(Slot::B));
        assert!(ring.header(Slot::B) + ring.unit() <= (1 << 20) + 1000);
        assert_eq!(ring.physical(Lsn::new(ring.bytes())), start);
        assert_eq!(ring.left_in_lap(Lsn::new(ring.bytes())), ring.bytes());
    }

    #[test]
    fn what_can_not_hold_a_log_is_refused() {
        assert!(matches!(
            Ring::of(geometry(33 * 4096, 512, 512)),
            Err(GeometryError::TooSmall { .. })
        ));
        assert!(matches!(
            Ring::of(geometry(1 << 30, 512, 3 << 20)),
            Err(GeometryError::Sector { .. })
        ));
    }
}
