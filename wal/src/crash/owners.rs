//! Two who want the same log: another process of the host, and another host, with writes of the old owner still in flight when the new one
//! looks. And devices whose sectors are larger than those of others.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, time::Duration};

use super::{
    check,
    model::{Model, Violation, stream_id},
    rng::Rng,
    session::{Plan, Session, formatted, used},
};
use crate::{
    device::{
        self, DeviceError, DeviceGeometry, DeviceOptions,
        sim::{Event, Faults, Landed, SimDevice, WriteFault},
    },
    reservation::{Holder, Preempt, ReservationError, ReservationKey, Reservations, take_over},
};

const GEOMETRY: DeviceGeometry = DeviceGeometry {
    bytes: 44 * 4096,
    logical_sector: 512,
    physical_sector: 512,
};
const OLD: u64 = 11;
const NEW: u64 = 22;

/// A volume that two hosts see. The old owner holds it and has writes in flight.
struct Volume {
    device: SimDevice,
    old: RefCell<Session>,
    holder: RefCell<u64>,
}

impl Volume {
    /// From now on what the old owner writes is refused; what it has written before is not.
    fn fence(&self, to: ReservationKey) {
        *self.holder.borrow_mut() = to.get();
        let fault = WriteFault::Errno {
            errno: libc::EBADE,
            landed: Landed::None,
        };
        let next = self.device.operations().0;
        let writes: BTreeMap<u64, WriteFault> =
            (next..next + 1000).map(|write| (write, fault)).collect();
        self.device.set_faults(Faults {
            writes,
            ..Faults::default()
        });
    }
}

/// The new owner's side of it.
impl Reservations for Volume {
    fn register(&self, _key: ReservationKey) -> Result<(), ReservationError> {
        Ok(())
    }

    fn reserve(&self, _key: ReservationKey) -> Result<(), ReservationError> {
        let command = crate::reservation::Command::Reserve;
        Err(ReservationError::Conflict { command })
    }

    fn preempt(
        &self,
        own: ReservationKey,
        _victim: ReservationKey,
        how: Preempt,
    ) -> Result<(), ReservationError> {
        self.fence(own);
        if how == Preempt::AndAbort {
            // Returns when nothing of the old owner is in flight any more.
            let settled = self.old.borrow_mut().settle();
            settled.map_err(|violation| ReservationError::Io {
                command: crate::reservation::Command::PreemptAndAbort,
                source: std::io::Error::other(violation.0),
            })?;
        }
        Ok(())
    }

    fn holder(&self) -> Holder {
        Holder::Key {
            key: *self.holder.borrow(),
            kind: 1,
        }
    }
}

fn key(raw: u64) -> Result<ReservationKey, Violation> {
    ReservationKey::new(raw).ok_or_else(|| Violation("a key of 0".to_owned()))
}

/// Another host takes the log over while a write of the old owner is in flight: what the old owner acknowledges, then or later, the new one has
/// recovered.
pub fn another_host(seed: u64) -> Result<(), Violation> {
    let mut rng = Rng::new(seed);
    let plan = Plan::three_laps(GEOMETRY, 4000, &mut rng);
    let device = SimDevice::from_image(GEOMETRY, formatted(GEOMETRY, 4000, seed)?);
    let mut old = Session::open(&device, &plan, Model::new(plan.streams), &mut rng)?;
    old.settle()?;
    old.append(0, 700, &mut rng)?;
    old.settle_and_mark()?;
    // In flight when the other one comes.
    old.append(0, 900, &mut rng)?;
    let volume = Volume {
        device: device.clone(),
        old: RefCell::new(old),
        holder: RefCell::new(OLD),
    };
    take_over(&volume, key(NEW)?, Some(key(OLD)?), Preempt::AndAbort)
        .map_err(|error| Violation(format!("take-over: {error}")))?;
    let (model, promised) = {
        let old = volume.old.borrow();
        (old.model.clone(), old.model.snapshot())
    };
    let recovered = check::recover(&device, &model, &promised)?
        .map_err(|error| Violation(format!("refused: {error}")))?;
    // The old owner does not know yet and goes on.
    let mut old = volume.old.into_inner();
    old.settle()?;
    old.append(0, 500, &mut rng)?;
    old.settle()?;
    let acknowledged = old.model.promise(0).acknowledged;
    let taken = recovered.scanned.index.usage_of(stream_id(0));
    let taken = taken.map_or(0, |usage| usage.next.get());
    if acknowledged > taken {
        return Err(Violation(format!(
            "the old owner has acknowledged {acknowledged} records, the new one has recovered {taken}"
        )));
    }
    if old.fenced {
        Ok(())
    } else {
        Err(Violation("the old owner was not stopped".to_owned()))
    }
}

/// A file of this process that goes away with it.
struct TempFile(PathBuf);

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Another process of the same host wants the log while it is open: it is told that it is in use.
pub fn same_host(seed: u64) -> Result<(), Violation> {
    let failed = |error: &dyn std::fmt::Display| Violation(format!("no file: {error}"));
    let thread = std::thread::current().id();
    let name = format!("everlog-wal-{}-{thread:?}-{seed}", std::process::id());
    let file = TempFile(std::env::temp_dir().join(name));
    device::create_file(&file.0, 1 << 20, &mut |_| {}).map_err(|error| failed(&error))?;
    let options = DeviceOptions {
        claim_patience: Duration::ZERO,
        ..DeviceOptions::new(key(OLD)?)
    };
    let _first = device::open(&file.0, &options).map_err(|error| failed(&error))?;
    match device::open(&file.0, &options) {
        Err(DeviceError::Busy { .. }) => Ok(()),
        other => Err(Violation(format!(
            "opened a second time while it is in use: {other:?}"
        ))),
    }
}

/// On a device with any sectors each write is made of whole physical ones, so none of them is half old and half new but by a torn write.
pub fn every_sector(seed: u64) -> Result<(), Violation> {
    for (logical_sector, physical_sector) in [
        (512, 512),
        (512, 4096),
        (4096, 4096),
        (512, 16384),
        (4096, 8192),
    ] {
        let sector = u64::from(physical_sector).max(4096);
        let geometry = DeviceGeometry {
            bytes: 60 * sector,
            logical_sector,
            physical_sector,
        };
        let mut rng = Rng::new(seed);
        let plan = Plan {
            reopen_one_in: 0,
            ..Plan::three_laps(geometry, 4000, &mut rng)
        };
        let device = SimDevice::from_image(geometry, formatted(geometry, 4000, seed)?);
        let session = used(&plan, &device, Model::new(plan.streams), &mut rng)?;
        let (_, _, events) = session.left();
        let mut writes = 0;
        for event in events {
            let Event::Submitted { offset, bytes, .. } = event else {
                continue;
            };
            writes += 1;
            let len = bytes.len() as u64;
            if !offset.is_multiple_of(sector) || !len.is_multiple_of(sector) {
                return Err(Violation(format!(
                    "a write of {len} bytes at {offset} on sectors of {physical_sector}"
                )));
            }
        }
        if writes < 50 {
            return Err(Violation(format!("only {writes} writes")));
        }
    }
    Ok(())
}
