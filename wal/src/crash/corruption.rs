//! What a device may do to acknowledged bytes behind the log's back, at every sector: the log says so or is whole, never less.
//!
//! There is one window in which no log on a single device can tell: the last acknowledged block, before a later block or the idle
//! mark has said that it was acknowledged. There the report of the recovery must show the cut.

use std::ops::Range;

use super::{
    check,
    model::{Model, Snapshot, Violation},
    rescue::{Known, Lying, lying},
    rng::Rng,
    session::{Plan, Session, formatted, used},
};
use crate::{
    Lsn,
    block::{BlockHeader, BlockKind},
    device::{
        DeviceGeometry,
        sim::{Event, Faults, Image, Landed, ReadFault, SimDevice},
    },
    error::OpenError,
    geometry::{Ring, Slot},
    recovery::{HeaderCase, Recovery, ScanOptions, scan, scan_with},
};

/// A log at rest, and everything that is known about it.
#[derive(Debug)]
pub struct Still {
    pub geometry: DeviceGeometry,
    pub plan: Plan,
    pub image: Image,
    pub model: Model,
    pub promised: Snapshot,
    pub ring: Ring,
    pub tail: Lsn,
    pub end: Lsn,
    /// The blocks from the tail to the end, the bytes that were written of each.
    pub blocks: Vec<(BlockHeader, u64)>,
    /// Their records.
    pub lying: Vec<Lying>,
    /// Behind every so many damages the log is exported.
    pub rescue_one_in: u64,
    /// What each place held before it was written last: what a lost write would leave.
    pub before: Image,
    /// Header copies, oldest first: both as they were after each update.
    pub headers: Vec<Copies>,
    pub rng: Rng,
}

/// Damage to be done to a log.
struct Damage<'a> {
    /// It lies where something is kept.
    matters: bool,
    what: String,
    change: Box<dyn FnOnce(&mut Image) + 'a>,
}

impl<'a> Damage<'a> {
    fn new(matters: bool, what: String, change: impl FnOnce(&mut Image) + 'a) -> Damage<'a> {
        Damage {
            matters,
            what,
            change: Box::new(change),
        }
    }
}

/// What became of damage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub tried: u64,
    pub refused: u64,
    /// Opened, nothing promised is missing, and the damage is in the report.
    pub reported: u64,
    /// Opened, nothing promised is missing, and the damage lies where nothing is kept.
    pub harmless: u64,
    /// Records that came out of exports behind it.
    pub rescued: u64,
}

impl Still {
    /// A log of more than a lap with a stuck stream in it. `marked`: at rest long enough for the idle mark.
    pub fn new(seed: u64, marked: bool) -> Result<Still, Violation> {
        let mut rng = Rng::new(seed);
        let geometry = DeviceGeometry {
            bytes: 44 * 4096,
            logical_sector: 512,
            physical_sector: 512,
        };
        let plan = Plan {
            bytes: 44 * 4096 + rng.below(20) * 4096,
            reopen_one_in: 0,
            ..Plan::three_laps(geometry, 4000, &mut rng)
        };
        let device = SimDevice::from_image(geometry, formatted(geometry, 4000, seed)?);
        let mut session = used(&plan, &device, Model::new(plan.streams), &mut rng)?;
        // The last block is a small one with records, whatever came before.
        session.settle()?;
        for _ in 0..3 {
            session.append(rng.index(plan.streams), 300, &mut rng)?;
        }
        session.settle()?;
        if marked {
            session.settle_and_mark()?;
        }
        let (device, model, events) = session.left();
        Still::of(geometry, plan, &device, model, &events, rng)
    }

    /// A young log with few records in it and room for many.
    pub fn young(seed: u64) -> Result<Still, Violation> {
        let mut rng = Rng::new(seed);
        let geometry = DeviceGeometry {
            bytes: 44 * 4096,
            logical_sector: 512,
            physical_sector: 512,
        };
        let plan = Plan {
            block_bytes_max: 4096,
            ..Plan::three_laps(geometry, 4000, &mut rng)
        };
        let device = SimDevice::from_image(geometry, formatted(geometry, 4000, seed)?);
        let model = Model::new(plan.streams);
        let mut session = Session::open(&device, &plan, model, &mut rng)?;
        session.settle()?;
        for stream in 0..plan.streams {
            session.append(stream, 700, &mut rng)?;
            session.settle()?;
        }
        session.settle_and_mark()?;
        let (device, model, events) = session.left();
        Still::of(geometry, plan, &device, model, &events, rng)
    }

    fn of(
        geometry: DeviceGeometry,
        plan: Plan,
        device: &SimDevice,
        model: Model,
        events: &[Event],
        rng: Rng,
    ) -> Result<Still, Violation> {
        let image = device.durable();
        let (mut blocks, mut records) = (Vec::new(), Vec::new());
        let ring = Ring::of(geometry).map_err(|error| Violation(error.to_string()))?;
        let scanned = scan_with(device, &ScanOptions::default(), &mut |header, block| {
            blocks.push((*header, header.written_bytes(4096)));
            records.extend(
                block
                    .map(|block| lying(ring, header, block))
                    .unwrap_or_default(),
            );
        })
        .map_err(|error| Violation(format!("a sound log is refused: {error}")))?;
        let (before, headers) = history(geometry, scanned.ring, events);
        Ok(Still {
            geometry,
            plan,
            promised: model.snapshot(),
            model,
            image,
            ring: scanned.ring,
            tail: scanned.header.tail,
            end: scanned.end.lsn,
            blocks,
            lying: records,
            rescue_one_in: 1,
            before,
            headers,
            rng,
        })
    }

    /// Does each damage to the log in turn, opens it and says what became of it.
    fn try_all<'a>(
        &'a self,
        damages: impl Iterator<Item = Damage<'a>>,
    ) -> Result<Tally, Violation> {
        let mut tally = Tally::default();
        for damage in damages {
            let mut image = self.image.clone();
            (damage.change)(&mut image);
            let device = SimDevice::from_image(self.geometry, image);
            self.judge(&device, &[], damage.matters, &mut tally, || damage.what)?;
        }
        Ok(tally)
    }

    /// Opens `device`, says what became of the damage `what`, and exports it. `matters`: it lies where something is kept.
    fn judge(
        &self,
        device: &SimDevice,
        unreadable: &[Range<u64>],
        matters: bool,
        tally: &mut Tally,
        what: impl FnOnce() -> String,
    ) -> Result<(), Violation> {
        tally.tried += 1;
        let known = Known {
            image: &self.image,
            lying: &self.lying,
            model: &self.model,
            promised: &self.promised,
        };
        let fault = match check::recover(device, &self.model, &self.promised) {
            Err(violation) => format!("silent: {violation}"),
            Ok(Ok(recovered)) if matters && !says_so(&recovered.scanned.recovery) => {
                "not a word about it".to_owned()
            }
            Ok(outcome) => {
                match outcome {
                    Err(_) => tally.refused += 1,
                    Ok(recovered) if says_so(&recovered.scanned.recovery) => tally.reported += 1,
                    Ok(_) => tally.harmless += 1,
                }
                if !tally.tried.is_multiple_of(self.rescue_one_in) {
                    return Ok(());
                }
                match known.rescue(device, unreadable) {
                    Ok(records) => {
                        tally.rescued += records;
                        return Ok(());
                    }
                    Err(violation) => violation.0,
                }
            }
        };
        Err(Violation(format!("{}: {fault}", what())))
    }

    /// The ring's bytes of the log, as (offset on the device, whether something is kept there).
    fn kept(&self) -> impl Iterator<Item = (u64, u64, bool)> + '_ {
        self.blocks.iter().flat_map(|(header, written)| {
            let start = self.ring.physical(header.lsn);
            // Of a pad only the header counts. The pad over a gap isn't needed at all: the header copies name the gap.
            let used = match header.kind {
                BlockKind::Data => *written,
                BlockKind::LapPad => 128,
                BlockKind::GapPad => 0,
            };
            let unused = (start + used, start + written, false);
            [(start, start + used, true), unused]
        })
    }

    /// One bit in every `step`th byte of the log and of both header copies.
    pub fn flip_bits(&self, step: usize) -> Result<Tally, Violation> {
        let mut rng = self.rng.clone();
        let of_log = self.kept().flat_map(|(start, end, matters)| {
            (start..end).step_by(step).map(move |at| (at, matters))
        });
        let of_copies = Slot::BOTH.into_iter().flat_map(|slot| {
            let start = self.ring.header(slot);
            (start..start + 512).step_by(step).map(|at| (at, true))
        });
        self.try_all(of_log.chain(of_copies).map(|(offset, matters)| {
            let bit = u32::try_from(rng.below(8)).unwrap_or(0);
            let what = format!("bit {bit} of byte {offset} flipped");
            Damage::new(matters, what, move |image| image.flip(offset, bit))
        }))
    }

    /// The sectors of the log, with whether something is kept there.
    fn sectors(&self, sector: usize) -> impl Iterator<Item = (u64, bool)> + '_ {
        self.kept().flat_map(move |(start, end, matters)| {
            let first = start - start % sector as u64;
            (first..end).step_by(sector).map(move |at| (at, matters))
        })
    }

    /// Every sector, of 512 and of 4096 bytes, holds what it held before, or zeros, or what belongs to another place.
    pub fn lose_sectors(&self) -> Result<Tally, Violation> {
        let mut rng = self.rng.clone();
        let places = [512, 4096].into_iter().flat_map(|sector| {
            self.sectors(sector)
                .map(move |(at, matters)| (sector, at, matters))
        });
        self.try_all(places.flat_map(|(sector, at, matters)| {
            let other = 4096 + rng.below(self.ring.bytes() / sector as u64) * sector as u64;
            let sources = [
                ("lost", self.before.to_vec(at, sector)),
                ("zeroed", vec![0; sector]),
                ("misdirected", self.image.to_vec(other, sector)),
            ];
            let now = self.image.to_vec(at, sector);
            sources.map(|(how, bytes)| {
                // It may hold the same bytes: then nothing has happened.
                let matters = matters && bytes != now;
                let what = format!("sector of {sector} at {at} {how}");
                Damage::new(matters, what, move |image| {
                    image.write(at, &bytes, Landed::All);
                })
            })
        }))
    }

    /// Each block written to another block's place, its own place left as it was before: a write that was misdirected.
    pub fn misdirect_blocks(&self) -> Result<Tally, Violation> {
        let data = self.blocks.iter().copied();
        let data = data.filter(|(header, _)| header.kind == BlockKind::Data);
        let ring_end = 4096 + self.ring.bytes();
        let moves = data.flat_map(|(header, bytes)| {
            let from = self.ring.physical(header.lsn);
            let places = (4096..ring_end).step_by(4096);
            places
                .filter(move |to| *to != from && to + bytes <= ring_end)
                .map(move |to| (header.lsn, from, to, bytes))
        });
        self.try_all(moves.map(|(lsn, from, to, bytes)| {
            let len = usize::try_from(bytes).unwrap_or(0);
            let what = format!("block {lsn} misdirected to byte {to}");
            Damage::new(true, what, move |image| {
                let block = image.to_vec(from, len);
                image.write(from, &self.before.to_vec(from, len), Landed::All);
                image.write(to, &block, Landed::All);
            })
        }))
    }

    /// Each read of the recovery fails, brings a flipped bit or another place's bytes, once: the log opens whole all the same.
    pub fn unsteady_reads(&self) -> Result<Tally, Violation> {
        let mut tally = Tally::default();
        let mut rng = self.rng.clone();
        let reads = {
            let device = SimDevice::from_image(self.geometry, self.image.clone());
            self.judge(&device, &[], false, &mut Tally::default(), String::new)?;
            device.operations().1
        };
        for read in 0..reads {
            for _ in 0..40 {
                let fault = if rng.one_in(2) {
                    ReadFault::Flipped {
                        bit: rng.index(1 << 19),
                    }
                } else {
                    ReadFault::Misdirected {
                        from: rng.below(self.ring.bytes() / 4096) * 4096,
                    }
                };
                let device = SimDevice::from_image(self.geometry, self.image.clone());
                device.set_faults(Faults {
                    reads: [(read, fault)].into(),
                    ..Faults::default()
                });
                tally.tried += 1;
                match check::recover(&device, &self.model, &self.promised)? {
                    Ok(_) => tally.reported += 1,
                    Err(error) => {
                        return Err(Violation(format!(
                            "read {read} bad once ({fault:?}), and the log is given up: {error}"
                        )));
                    }
                }
            }
        }
        Ok(tally)
    }

    /// Each sector of the log can't be read: never an end of the log.
    pub fn unreadable_sectors(&self) -> Result<Tally, Violation> {
        let mut tally = Tally::default();
        for (at, matters) in self.sectors(512) {
            let device = SimDevice::from_image(self.geometry, self.image.clone());
            let bad = at..at + 512;
            let unreadable = std::slice::from_ref(&bad);
            device.set_faults(Faults {
                unreadable: unreadable.to_vec(),
                ..Faults::default()
            });
            self.judge(&device, unreadable, matters, &mut tally, || {
                format!("byte {at} unreadable")
            })?;
        }
        Ok(tally)
    }

    /// Both header copies hold what they held at an earlier moment: a device that loses its newest writes. What was trimmed meanwhile may be
    /// back; what was promised is not missing, or the log is refused.
    pub fn roll_headers_back(&self) -> Result<Tally, Violation> {
        let copies = self.headers.iter().rev().enumerate();
        self.try_all(copies.map(|(age, (a, b))| {
            let what = format!("both header copies {age} updates old");
            Damage::new(false, what, move |image| {
                image.write(self.ring.header(Slot::A), a, Landed::All);
                image.write(self.ring.header(Slot::B), b, Landed::All);
            })
        }))
    }

    /// Both header copies are gone, and each block in turn with them: the log is refused, and the rest comes out.
    pub fn lose_headers(&self) -> Result<Tally, Violation> {
        let places = self.blocks.iter().map(|(header, _)| header.lsn);
        let lost = std::iter::once(None).chain(places.map(Some));
        let tally = self.try_all(lost.map(|lsn| {
            let what = format!("both header copies and block {lsn:?} zeroed");
            Damage::new(true, what, move |image| {
                let copies = Slot::BOTH.map(|slot| self.ring.header(slot));
                let block = lsn.map(|lsn| self.ring.physical(lsn));
                for at in copies.into_iter().chain(block) {
                    image.write(at, &[0; 4096], Landed::All);
                }
            })
        }))?;
        if tally.refused == tally.tried {
            Ok(tally)
        } else {
            Err(Violation(format!("opened without a header: {tally:?}")))
        }
    }

    /// The last block is damaged before anything says that it was acknowledged: refused, or the cut is where it was and says why.
    pub fn window(&self) -> Result<Tally, Violation> {
        let mut tally = Tally::default();
        let (last, bytes) = *self
            .blocks
            .last()
            .ok_or_else(|| Violation("an empty log".to_owned()))?;
        let start = self.ring.physical(last.lsn);
        for at in (start..start + bytes).step_by(512) {
            let mut image = self.image.clone();
            let bytes = self.before.to_vec(at, 512);
            if bytes == self.image.to_vec(at, 512) {
                continue;
            }
            image.write(at, &bytes, Landed::All);
            tally.tried += 1;
            let device = SimDevice::from_image(self.geometry, image);
            match scan(&device, &check::scan_options()) {
                Err(_) => tally.refused += 1,
                Ok(scanned) if scanned.end.lsn == last.lsn => tally.reported += 1,
                Ok(scanned) if says_so(&scanned.recovery) => tally.reported += 1,
                Ok(scanned) => {
                    return Err(Violation(format!(
                        "sector {at} of the last block lost, and the end is {:?}",
                        scanned.recovery.end
                    )));
                }
            }
        }
        Ok(tally)
    }
}

/// Whether the report mentions damage.
fn says_so(recovery: &Recovery) -> bool {
    !recovery.damaged_dead.is_empty()
        || recovery.padding_damaged > 0
        || recovery.read_again > 0
        || !recovery.unreadable.is_empty()
        || matches!(recovery.header_case, HeaderCase::OneDamaged { .. })
}

/// Both header copies, A first.
pub type Copies = (Vec<u8>, Vec<u8>);

/// What each place held before its last write, and the pairs of header copies.
fn history(geometry: DeviceGeometry, ring: Ring, events: &[Event]) -> (Image, Vec<Copies>) {
    let mut before = Image::zeroed(geometry.bytes);
    let mut now = Image::zeroed(geometry.bytes);
    let mut headers = Vec::new();
    for event in events {
        let Event::Landed {
            offset,
            bytes,
            landed,
        } = event
        else {
            continue;
        };
        let old = now.to_vec(*offset, bytes.len());
        before.write(*offset, &old, Landed::All);
        now.write(*offset, bytes, *landed);
        if *offset == ring.header(Slot::B) {
            let copy = |slot| now.to_vec(ring.header(slot), 4096);
            headers.push((copy(Slot::A), copy(Slot::B)));
        }
    }
    (before, headers)
}

/// An error that names damage, and not only that the device does not answer.
pub fn is_report(error: &OpenError) -> bool {
    !matches!(error, OpenError::Io(_))
}

/// A session on a still log, for what happens to it later.
pub fn resume(still: &Still, rng: &mut Rng) -> Result<Session, Violation> {
    let device = SimDevice::from_image(still.geometry, still.image.clone());
    let mut session = Session::open(&device, &still.plan, still.model.clone(), rng)?;
    session.settle()?;
    Ok(session)
}
