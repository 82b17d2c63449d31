//! Devices that fail or lie while the log is in use: an error or a short write on every single operation, writes that are lost,
//! misdirected or changed although the device says that they are durable, another size, another log's bytes.

use super::{
    check,
    corruption::Still,
    model::{Model, Violation},
    rng::Rng,
    session::{NoSession, Plan, Session, State, formatted, used},
};
use crate::{
    LogId,
    device::{
        DeviceGeometry,
        sim::{Faults, Landed, SimDevice, WriteFault},
    },
    error::{DeviceChange, OpenError},
    format::{FormatOptions, format},
    recovery::{ScanOptions, scan},
};

const GEOMETRY: DeviceGeometry = DeviceGeometry {
    bytes: 44 * 4096,
    logical_sector: 512,
    physical_sector: 512,
};

fn plan(rng: &mut Rng) -> Plan {
    Plan {
        bytes: 60 * 4096,
        reopen_one_in: 0,
        lying: true,
        depth: 3,
        ..Plan::three_laps(GEOMETRY, 4000, rng)
    }
}

/// One life on a device whose write `number` goes wrong, then a power cut, then the recovery.
fn one_bad_write(seed: u64, number: u64, fault: WriteFault) -> Result<Outcome, Violation> {
    let mut rng = Rng::new(seed);
    let plan = plan(&mut rng);
    let device = SimDevice::from_image(GEOMETRY, formatted(GEOMETRY, 4000, seed)?);
    device.set_faults(Faults {
        writes: [(number, fault)].into(),
        ..Faults::default()
    });
    let mut session = used(&plan, &device, Model::new(plan.streams), &mut rng)?;
    session.settle_and_mark()?;
    let (stopped, reported) = (session.state == State::Stopped, session.reported);
    let (device, model, _) = session.left();
    if device.operations().0 <= number {
        return Ok(Outcome::NotReached);
    }
    let after = SimDevice::from_image(GEOMETRY, device.durable());
    let promised = model.snapshot();
    let recovered = check::recover(&after, &model, &promised)?;
    Ok(match recovered {
        _ if stopped => Outcome::Stopped {
            refused: recovered.is_err(),
        },
        Ok(_) => Outcome::Whole { reported },
        Err(_) => Outcome::Refused,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    NotReached,
    Stopped { refused: bool },
    Whole { reported: bool },
    Refused,
}

/// An error on every write, with nothing, a part or all of it landed all the same: the log stops, and the recovery finds everything that
/// was acknowledged.
pub fn errors_on_every_write(seed: u64) -> Result<u64, Violation> {
    let mut tried = 0;
    for number in 0.. {
        let landed = [Landed::None, Landed::First(1), Landed::All, Landed::Last(1)]
            [usize::try_from(number % 4).unwrap_or(0)];
        let fault = WriteFault::Errno {
            errno: libc::EIO,
            landed,
        };
        match one_bad_write(seed, number, fault)? {
            Outcome::NotReached => break,
            Outcome::Stopped { refused: false } => tried += 1,
            other => return Err(Violation(format!("EIO on write {number}: {other:?}"))),
        }
    }
    Ok(tried)
}

/// The same with short writes.
pub fn short_writes(seed: u64) -> Result<u64, Violation> {
    let mut tried = 0;
    for number in 0.. {
        let sectors = usize::try_from(number % 8).unwrap_or(0);
        match one_bad_write(seed, number, WriteFault::Short { sectors })? {
            Outcome::NotReached => break,
            Outcome::Stopped { refused: false } => tried += 1,
            other => return Err(Violation(format!("short write {number}: {other:?}"))),
        }
    }
    Ok(tried)
}

/// A fenced write on any place: the log stops and says who stopped it.
pub fn fenced_writes(seed: u64) -> Result<u64, Violation> {
    let mut tried = 0;
    for number in (0..60).step_by(7) {
        let mut rng = Rng::new(seed);
        let plan = plan(&mut rng);
        let device = SimDevice::from_image(GEOMETRY, formatted(GEOMETRY, 4000, seed)?);
        let fault = WriteFault::Errno {
            errno: libc::EBADE,
            landed: Landed::None,
        };
        device.set_faults(Faults {
            writes: [(number, fault)].into(),
            ..Faults::default()
        });
        let mut session = used(&plan, &device, Model::new(plan.streams), &mut rng)?;
        session.settle()?;
        if !session.fenced {
            return Err(Violation(format!(
                "EBADE on write {number}: not said to be fenced"
            )));
        }
        tried += 1;
    }
    Ok(tried)
}

/// Writes that the device calls durable and loses, puts elsewhere or changes: whatever was acknowledged is there, or the log says so.
pub fn lies_on_every_write(seed: u64) -> Result<u64, Violation> {
    let mut rng = Rng::new(seed ^ 0x11e5);
    let mut tried = 0;
    for number in 0.. {
        let to = 4096 + rng.below(42) * 4096;
        let lies = [
            WriteFault::Lost,
            WriteFault::Misdirected { to },
            WriteFault::Flipped {
                bit: rng.index(4096 * 8),
            },
        ];
        for lie in lies {
            match one_bad_write(seed, number, lie) {
                Ok(Outcome::NotReached) => return Ok(tried),
                Ok(_) => tried += 1,
                Err(violation) => {
                    return Err(Violation(format!("write {number} {lie:?}: {violation}")));
                }
            }
        }
    }
    Ok(tried)
}

/// A device of another size or with other sectors, and one where the header lies about it.
pub fn changed_devices(seed: u64) -> Result<u64, Violation> {
    let still = Still::new(seed, true)?;
    let wrong = |what: &str, got: String| Violation(format!("{what}: {got}"));
    let open = |geometry: DeviceGeometry| {
        let image = still.image.resized(geometry.bytes);
        scan(
            &SimDevice::from_image(geometry, image),
            &ScanOptions::default(),
        )
    };
    let smaller = DeviceGeometry {
        bytes: GEOMETRY.bytes - 4 * 4096,
        ..GEOMETRY
    };
    match open(smaller) {
        Err(OpenError::DeviceChanged(DeviceChange::Smaller { .. })) => {}
        other => return Err(wrong("a smaller device", format!("{other:?}"))),
    }
    let larger = DeviceGeometry {
        bytes: GEOMETRY.bytes + 8 * 4096,
        ..GEOMETRY
    };
    match open(larger) {
        Ok(scanned) if scanned.recovery.grown_by == 8 * 4096 => {}
        other => return Err(wrong("a larger device", format!("{other:?}"))),
    }
    let coarser = DeviceGeometry {
        physical_sector: 16384,
        ..GEOMETRY
    };
    match open(coarser) {
        Err(OpenError::DeviceChanged(DeviceChange::Sector { .. })) => Ok(3),
        other => Err(wrong("a device with larger sectors", format!("{other:?}"))),
    }
}

/// A device that is formatted again: nothing of the old log comes back, whatever it left in the ring.
pub fn formatted_again(seed: u64) -> Result<u64, Violation> {
    let still = Still::new(seed, true)?;
    let device = SimDevice::from_image(still.geometry, still.image.clone());
    let options = FormatOptions {
        id: LogId::new([9; 16]),
        record_bytes_max: Some(4000),
        wall_ms: 1,
    };
    format(&device, &options).map_err(|error| Violation(error.to_string()))?;
    let mut rng = Rng::new(seed);
    let plan = still.plan;
    let session = used(&plan, &device, Model::new(plan.streams), &mut rng)?;
    let (device, model, _) = session.left();
    let promised = model.snapshot();
    let after = SimDevice::from_image(still.geometry, device.durable());
    match check::recover(&after, &model, &promised)? {
        Ok(_) => Ok(1),
        Err(error) => Err(Violation(format!("refused: {error}"))),
    }
}

/// A log that nobody drains takes records until it is full, without overwriting any; then it is drained, and takes records again. With crashes
/// in between, which cost room.
pub fn full_and_drained(seed: u64, crashes: u64) -> Result<u64, Violation> {
    let mut rng = Rng::new(seed);
    let plan = Plan {
        lying: false,
        ..plan(&mut rng)
    };
    let mut device = SimDevice::from_image(GEOMETRY, formatted(GEOMETRY, 4000, seed)?);
    let mut model = Model::new(plan.streams);
    for crash in 0..=crashes {
        let mut session = match Session::open(&device, &plan, model, &mut rng) {
            Ok(session) => session,
            Err(no) => return Err(Violation::from(no)),
        };
        session.settle()?;
        let mut refused = 0;
        for _ in 0..400 {
            let stream = rng.index(plan.streams);
            let len = 1 + rng.index(4000);
            let before = session.model.snapshot().in_flight.len();
            session.append(stream, len, &mut rng)?;
            // Sometimes several are in flight when the power goes.
            if !rng.one_in(3) {
                session.settle()?;
            }
            if session.model.snapshot().in_flight.len() <= before {
                refused += 1;
            }
            if crash < crashes && refused > 20 + rng.below(20) {
                break;
            }
        }
        if crash < crashes {
            let (old, left, _) = session.left();
            device = SimDevice::from_image(GEOMETRY, old.durable());
            model = left;
            continue;
        }
        session.settle()?;
        for stream in 0..plan.streams {
            let end = session.model.promise(stream).acknowledged;
            if end > 0 {
                session.trim(stream, end)?;
            }
        }
        session.settle()?;
        for stream in 0..plan.streams {
            let before = session.model.promise(stream).acknowledged;
            session.append(stream, 3000, &mut rng)?;
            session.settle()?;
            if session.model.promise(stream).acknowledged != before + 1 {
                return Err(Violation(format!(
                    "everything is trimmed, and stream {stream} still finds no room: {:?}",
                    session.core().usage()
                )));
            }
        }
        let (old, model, _) = session.left();
        let promised = model.snapshot();
        let after = SimDevice::from_image(GEOMETRY, old.durable());
        check::recover(&after, &model, &promised)?
            .map_err(|error| Violation(format!("refused: {error}")))?;
        return Ok(crashes);
    }
    Ok(crashes)
}

/// What a device says to the very first request is heard.
pub fn sync_fails(seed: u64) -> Result<u64, Violation> {
    let device = SimDevice::from_image(GEOMETRY, formatted(GEOMETRY, 4000, seed)?);
    device.set_faults(Faults {
        syncs: [(0, libc::EIO)].into(),
        ..Faults::default()
    });
    let mut rng = Rng::new(seed);
    let plan = plan(&mut rng);
    match Session::open(&device, &plan, Model::new(plan.streams), &mut rng) {
        Err(NoSession::Refused(OpenError::Io(_))) => Ok(1),
        other => Err(Violation(format!("opened after a failed sync: {other:?}"))),
    }
}
