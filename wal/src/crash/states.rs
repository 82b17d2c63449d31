//! Every state in which a crash may have left the device: all moments of a life, and at each the classes of what had landed.

use std::{fmt, sync::Arc};

use super::{
    model::{Snapshot, Violation},
    rng::Rng,
};
use crate::{
    LogId,
    block::BlockHeader,
    device::{
        DeviceGeometry,
        sim::{Event, Image, Landed, landed_classes},
    },
    geometry::{Ring, Slot},
    header::Header,
};

/// One life of a log, from the moment its device was opened: what was asked of the device, and what was promised when.
#[derive(Clone, Debug)]
pub struct Life {
    pub geometry: DeviceGeometry,
    /// The device at the start: what the power leaves, and what is read.
    pub durable: Image,
    pub visible: Image,
    pub events: Vec<Event>,
    /// What was promised from so many events on. The first is at 0, ascending.
    pub marks: Vec<(usize, Snapshot)>,
}

/// A write that was in flight when the crash came.
#[derive(Clone, Debug)]
pub struct InFlightWrite {
    pub offset: u64,
    pub bytes: Arc<[u8]>,
    pub landed: Landed,
}

/// What a crash left.
#[derive(Debug)]
pub struct CrashState<'a> {
    /// After so many events.
    pub point: usize,
    /// A number for it within its point.
    pub class: usize,
    pub image: Image,
    /// The device without anything of what was in flight.
    pub before: &'a Image,
    pub in_flight: &'a [InFlightWrite],
    pub promised: &'a Snapshot,
}

impl fmt::Display for CrashState<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "point {} class {}: ", self.point, self.class)?;
        for write in self.in_flight {
            write!(
                f,
                "[{} bytes at {}: {}] ",
                write.bytes.len(),
                write.offset,
                write.landed
            )?;
        }
        Ok(())
    }
}

/// How finely a life is taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Detail {
    /// Drawn subsets for each write and moment, beside the classes.
    pub drawn: u64,
    /// Only one state in so many is visited; 1 for all.
    pub one_in: u64,
    /// Only the first so many events.
    pub events_max: usize,
}

impl Life {
    /// Visits the states of this life, each once. Ends with the first violation.
    pub fn each_state(
        &self,
        detail: Detail,
        rng: &mut Rng,
        mut visit: impl FnMut(&CrashState<'_>, &mut Rng) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let mut device = Device {
            durable: self.durable.clone(),
            visible: self.visible.clone(),
            in_flight: Vec::new(),
        };
        let mut mark = 0;
        for point in 0..=self.events.len().min(detail.events_max) {
            if point > 0 {
                device.apply(&self.events[point - 1]);
            }
            while let Some((from, _)) = self.marks.get(mark + 1)
                && *from <= point
            {
                mark += 1;
            }
            // What lands is made known at once: in between there is no other moment for a crash.
            let landing = point > 0 && matches!(self.events[point - 1], Event::Landed { .. });
            let told = matches!(self.events.get(point), Some(Event::Done { .. }));
            if landing && told {
                continue;
            }
            let promised = &self.marks[mark].1;
            let mut class = 0;
            device.each_class(self.geometry, detail.drawn, rng, |in_flight, rng| {
                class += 1;
                if detail.one_in > 1 && !rng.one_in(detail.one_in) {
                    return Ok(());
                }
                let mut image = device.durable.clone();
                for write in in_flight {
                    image.write(write.offset, &write.bytes, write.landed);
                }
                let state = CrashState {
                    point,
                    class,
                    image,
                    before: &device.durable,
                    in_flight,
                    promised,
                };
                visit(&state, rng).map_err(|violation| {
                    Violation(format!("{}{state}\n  {violation}", self.story(point)))
                })
            })?;
        }
        Ok(())
    }
}

impl Life {
    /// What went on before a moment, for who has to find out.
    fn story(&self, point: usize) -> String {
        let ring = Ring::of(self.geometry).ok();
        let from = point.saturating_sub(STORY_EVENTS);
        self.events[from..point]
            .iter()
            .zip(from..)
            .map(|(event, number)| format!("  event {number}: {}\n", describe(ring, event)))
            .collect()
    }
}

const STORY_EVENTS: usize = 24;

fn describe(ring: Option<Ring>, event: &Event) -> String {
    match (event, ring) {
        (Event::Submitted { id, offset, bytes }, Some(ring)) => {
            let slot = Slot::BOTH
                .into_iter()
                .find(|slot| ring.header(*slot) == *offset);
            let what = match slot {
                Some(slot) => match Header::decode(slot, *offset, bytes) {
                    Ok(header) => format!(
                        "copy {slot:?} epoch {} generation {} tail {} durable {} limit {} clean {} gaps {:?}",
                        header.epoch,
                        header.generation,
                        header.tail,
                        header.durable,
                        header.limit,
                        header.clean,
                        header.gaps
                    ),
                    Err(fault) => fault.to_string(),
                },
                None => match BlockHeader::decode(ring, log_id(bytes), bytes) {
                    Ok(block) => format!(
                        "{:?} block {} epoch {} bytes {} entries {} durable {}",
                        block.kind,
                        block.lsn,
                        block.epoch,
                        block.bytes,
                        block.entries,
                        block.durable
                    ),
                    Err(fault) => fault.to_string(),
                },
            };
            format!("write {id} at {offset}: {what}")
        }
        (Event::Landed { offset, landed, .. }, _) => format!("landed at {offset}: {landed}"),
        (Event::Done { id }, _) => format!("write {id} done"),
        (Event::Synced, _) => "synced".to_owned(),
        (Event::Submitted { id, offset, .. }, None) => format!("write {id} at {offset}"),
    }
}

/// The name of the log that a block or a header copy says it belongs to.
pub(super) fn log_id(block: &[u8]) -> LogId {
    let raw = block.get(16..).and_then(|rest| rest.first_chunk());
    LogId::new(raw.copied().unwrap_or_default())
}

struct Device {
    durable: Image,
    visible: Image,
    in_flight: Vec<(u64, InFlightWrite)>,
}

impl Device {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Submitted { id, offset, bytes } => {
                let write = InFlightWrite {
                    offset: *offset,
                    bytes: Arc::clone(bytes),
                    landed: Landed::None,
                };
                self.in_flight.push((*id, write));
            }
            Event::Landed {
                offset,
                bytes,
                landed,
            } => {
                self.durable.write(*offset, bytes, *landed);
                self.visible.write(*offset, bytes, *landed);
            }
            Event::Done { id } => self.in_flight.retain(|(pending, _)| pending != id),
            Event::Synced => self.durable = self.visible.clone(),
        }
    }

    /// Each write in turn goes through all its classes, with every choice of none or all for the others; then some where all are drawn.
    fn each_class(
        &self,
        geometry: DeviceGeometry,
        drawn: u64,
        rng: &mut Rng,
        mut visit: impl FnMut(&[InFlightWrite], &mut Rng) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let mut writes: Vec<InFlightWrite> = self
            .in_flight
            .iter()
            .map(|(_, write)| write.clone())
            .collect();
        if writes.is_empty() {
            return visit(&writes, rng);
        }
        let sector = geometry.logical_sector as usize;
        let count = writes.len();
        let whole = 1usize << count.min(8);
        for choice in 0..whole {
            for (index, write) in writes.iter_mut().enumerate() {
                write.landed = all_if(choice >> index & 1 == 1);
            }
            visit(&writes, rng)?;
        }
        for torn in 0..count {
            let seed = rng.draw();
            let classes = landed_classes(writes[torn].bytes.len(), sector, drawn, seed);
            for others in 0..whole / 2 {
                let mut bits = others;
                for (index, write) in writes.iter_mut().enumerate() {
                    if index != torn {
                        write.landed = all_if(bits & 1 == 1);
                        bits >>= 1;
                    }
                }
                // The first two are none and all: they were visited above.
                for class in classes.iter().skip(2) {
                    writes[torn].landed = *class;
                    visit(&writes, rng)?;
                }
            }
        }
        if count > 1 && sector == 512 {
            for _ in 0..drawn * 4 {
                for write in &mut writes {
                    write.landed = Landed::Drawn(rng.draw());
                }
                visit(&writes, rng)?;
            }
        }
        Ok(())
    }
}

fn all_if(all: bool) -> Landed {
    if all { Landed::All } else { Landed::None }
}
