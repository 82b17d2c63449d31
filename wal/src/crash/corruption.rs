//! What a device may do to acknowledged bytes behind the log's back, at every sector: the log says so or is whole, never less.
//!
//! There is one window in which no log on a single device can tell: the last acknowledged block, before a later block or the idle
//! mark has said that it was acknowledged. There the report of the recovery must show the cut.

use super::{
    check,
    model::{Model, Snapshot, Violation},
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
    /// What each place held before it was written last: what a lost write would leave.
    pub before: Image,
    /// Header copies, oldest first: both as they were after each update.
    pub headers: Vec<Copies>,
    pub rng: Rng,
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
        let mut blocks = Vec::new();
        let scanned = scan_with(device, &ScanOptions::default(), &mut |header, _| {
            blocks.push((*header, header.written_bytes(4096)));
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
            before,
            headers,
            rng,
        })
    }

    /// Opens `image` and says what became of the damage `what`. `matters`: it lies where something is kept.
    pub fn judge(
        &self,
        image: Image,
        matters: bool,
        tally: &mut Tally,
        what: impl FnOnce() -> String,
    ) -> Result<(), Violation> {
        let device = SimDevice::from_image(self.geometry, image);
        self.judge_device(&device, matters, tally, what)
    }

    pub fn judge_device(
        &self,
        device: &SimDevice,
        matters: bool,
        tally: &mut Tally,
        what: impl FnOnce() -> String,
    ) -> Result<(), Violation> {
        tally.tried += 1;
        match check::recover(device, &self.model, &self.promised) {
            Err(violation) => Err(Violation(format!("{}: silent: {violation}", what()))),
            Ok(Err(_)) => {
                tally.refused += 1;
                Ok(())
            }
            Ok(Ok(recovered)) if says_so(&recovered.scanned.recovery) => {
                tally.reported += 1;
                Ok(())
            }
            Ok(Ok(_)) if matters => Err(Violation(format!("{}: not a word about it", what()))),
            Ok(Ok(_)) => {
                tally.harmless += 1;
                Ok(())
            }
        }
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
    pub fn flip_bits(&mut self, step: usize) -> Result<Tally, Violation> {
        let mut tally = Tally::default();
        let mut rng = self.rng.clone();
        for (start, end, matters) in self.kept() {
            for offset in (start..end).step_by(step) {
                let bit = u32::try_from(rng.below(8)).unwrap_or(0);
                let mut image = self.image.clone();
                image.flip(offset, bit);
                self.judge(image, matters, &mut tally, || {
                    format!("bit {bit} of byte {offset} flipped")
                })?;
            }
        }
        for slot in Slot::BOTH {
            for byte in (0..512).step_by(step) {
                let mut image = self.image.clone();
                image.flip(self.ring.header(slot) + byte, 1);
                self.judge(image, true, &mut tally, || {
                    format!("byte {byte} of copy {slot:?} flipped")
                })?;
            }
        }
        Ok(tally)
    }

    /// Every sector, of 512 and of 4096 bytes, holds what it held before, or zeros, or what belongs to another place.
    pub fn lose_sectors(&mut self) -> Result<Tally, Violation> {
        let mut tally = Tally::default();
        let mut rng = self.rng.clone();
        for sector in [512usize, 4096] {
            let places: Vec<(u64, bool)> = self
                .kept()
                .flat_map(|(start, end, matters)| {
                    let first = start - start % sector as u64;
                    (first..end).step_by(sector).map(move |at| (at, matters))
                })
                .collect();
            for (at, matters) in places {
                let other = 4096 + rng.below((self.ring.bytes()) / sector as u64) * sector as u64;
                let sources = [
                    ("lost", self.before.to_vec(at, sector)),
                    ("zeroed", vec![0; sector]),
                    ("misdirected", self.image.to_vec(other, sector)),
                ];
                let now = self.image.to_vec(at, sector);
                for (how, bytes) in sources {
                    let mut image = self.image.clone();
                    image.write(at, &bytes, Landed::All);
                    // It may hold the same bytes: then nothing has happened.
                    let matters = matters && bytes != now;
                    self.judge(image, matters, &mut tally, || {
                        format!("sector of {sector} at {at} {how}")
                    })?;
                }
            }
        }
        Ok(tally)
    }

    /// Each block written to another block's place, its own place left as it was before: a write that was misdirected.
    pub fn misdirect_blocks(&mut self) -> Result<Tally, Violation> {
        let mut tally = Tally::default();
        let data: Vec<(BlockHeader, u64)> = self
            .blocks
            .iter()
            .copied()
            .filter(|(header, _)| header.kind == BlockKind::Data)
            .collect();
        for (header, bytes) in &data {
            let from = self.ring.physical(header.lsn);
            let len = usize::try_from(*bytes).unwrap_or(0);
            for unit in 0..self.ring.bytes() / 4096 {
                let to = 4096 + unit * 4096;
                if to == from || to + bytes > 4096 + self.ring.bytes() {
                    continue;
                }
                let mut image = self.image.clone();
                let block = image.to_vec(from, len);
                image.write(from, &self.before.to_vec(from, len), Landed::All);
                image.write(to, &block, Landed::All);
                self.judge(image, true, &mut tally, || {
                    format!("block {} misdirected to byte {to}", header.lsn)
                })?;
            }
        }
        Ok(tally)
    }

    /// Each read of the recovery fails, brings a flipped bit or another place's bytes, once: the log opens whole all the same.
    pub fn unsteady_reads(&mut self) -> Result<Tally, Violation> {
        let mut tally = Tally::default();
        let mut rng = self.rng.clone();
        let reads = {
            let device = SimDevice::from_image(self.geometry, self.image.clone());
            self.judge_device(&device, false, &mut Tally::default(), String::new)?;
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
    pub fn unreadable_sectors(&mut self) -> Result<Tally, Violation> {
        let mut tally = Tally::default();
        let places: Vec<(u64, bool)> = self
            .kept()
            .flat_map(|(start, end, matters)| {
                (start..end).step_by(512).map(move |at| (at, matters))
            })
            .collect();
        for (at, matters) in places {
            let at = at - at % 512;
            let device = SimDevice::from_image(self.geometry, self.image.clone());
            device.set_faults(Faults {
                unreadable: std::iter::once(at..at + 512).collect(),
                ..Faults::default()
            });
            self.judge_device(&device, matters, &mut tally, || {
                format!("byte {at} unreadable")
            })?;
        }
        Ok(tally)
    }

    /// Both header copies hold what they held at an earlier moment: a device that loses its newest writes. What was trimmed meanwhile may be
    /// back; what was promised is not missing, or the log is refused.
    pub fn roll_headers_back(&mut self) -> Result<Tally, Violation> {
        let mut tally = Tally::default();
        for (age, (a, b)) in self.headers.iter().rev().enumerate() {
            let mut image = self.image.clone();
            image.write(self.ring.header(Slot::A), a, Landed::All);
            image.write(self.ring.header(Slot::B), b, Landed::All);
            self.judge(image, false, &mut tally, || {
                format!("both header copies {age} updates old")
            })?;
        }
        Ok(tally)
    }

    /// The last block is damaged before anything says that it was acknowledged: refused, or the cut is where it was and says why.
    pub fn window(&mut self) -> Result<Tally, Violation> {
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
