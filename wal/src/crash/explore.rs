//! Crashes a log at every moment of a life, recovers it, uses it further, and crashes it again, in its recovery too.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    check,
    model::{Model, Violation},
    rng::Rng,
    session::{NoSession, Plan, formatted, live, used},
    states::{CrashState, Detail, Life},
};
use crate::{
    device::{
        DeviceGeometry,
        sim::{Landed, LateWrite, SimDevice},
    },
    geometry::Slot,
    rules::{self, Rules},
};

/// What is tried, beside the crash itself.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub rules: Rules,
    /// Once in so many states the recovered log is used further and taken apart again; 0 for never.
    pub onward_one_in: u64,
    /// Once in so many states the recovered log is opened, used for some steps and recovered from another crash, which is not taken apart; 0 for
    /// never.
    pub go_on_one_in: u64,
    /// As `onward_one_in`, for the lives of lives.
    pub onward_later_one_in: u64,
    /// Once in so many states one header copy is lost or rolled back before the recovery; 0 for never.
    pub header_one_in: u64,
    /// One state in so many of the first life is visited.
    pub one_in: u64,
    /// No more states than these for each seed.
    pub states_max: u64,
}

impl Options {
    /// What continuous integration runs.
    pub const CI: Options = Options {
        rules: Rules::ALL,
        onward_one_in: 400,
        go_on_one_in: 12,
        onward_later_one_in: 2000,
        header_one_in: 5,
        one_in: 1,
        states_max: u64::MAX,
    };

    /// A small sample of everything, for a rule that is switched off.
    pub const SAMPLE: Options = Options {
        rules: Rules::ALL,
        onward_one_in: 40,
        go_on_one_in: 40,
        onward_later_one_in: 400,
        header_one_in: 3,
        one_in: 6,
        states_max: 40_000,
    };
}

/// What an exploration has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Devices recovered and checked.
    pub states: u64,
    /// Lives: logs that were opened and used.
    pub lives: u64,
    /// States in which a log was opened after a crash in its opening or later.
    pub second_crashes: u64,
    /// States that went on without being taken apart again.
    pub went_on: u64,
    /// States with one header copy lost or rolled back.
    pub header_faults: u64,
    /// Lives in which a write of a dead owner landed late.
    pub late_writes: u64,
    /// Recoveries that dropped blocks in flight.
    pub islands: u64,
    /// Refusals where a dead owner's header copy had landed late.
    pub refused_after_late_header: u64,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.states += other.states;
        self.lives += other.lives;
        self.second_crashes += other.second_crashes;
        self.went_on += other.went_on;
        self.header_faults += other.header_faults;
        self.late_writes += other.late_writes;
        self.islands += other.islands;
        self.refused_after_late_header += other.refused_after_late_header;
    }
}

/// A promise that was broken, and how to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub violation: Violation,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.violation)
    }
}

/// The kind of log that a seed stands for.
fn geometry(rng: &mut Rng) -> DeviceGeometry {
    let (logical_sector, physical_sector) =
        [(512, 512), (512, 4096), (512, 512), (4096, 4096)][rng.index(4)];
    DeviceGeometry {
        bytes: (42 + rng.below(20)) * 4096,
        logical_sector,
        physical_sector,
    }
}

/// Explores what follows from one seed.
pub fn seed(seed: u64, options: Options) -> Result<Seen, Failure> {
    let fail = |violation| Failure { seed, violation };
    rules::with(options.rules, || {
        let mut rng = Rng::new(seed);
        let geometry = geometry(&mut rng);
        let record_max = [2000, 4000, 7000][rng.index(3)];
        let plan = Plan::three_laps(geometry, record_max, &mut rng);
        let image = formatted(geometry, record_max, seed).map_err(fail)?;
        let model = Model::new(plan.streams);
        let mut explorer = Explorer {
            options,
            seen: Seen::default(),
            plan,
            late_header: false,
        };
        let (life, model) = live(
            &plan,
            SimDevice::from_image(geometry, image),
            model,
            &mut rng,
        )
        .map_err(|no| fail(no.into()))?;
        explorer.seen.lives += 1;
        explorer.explore(&life, &model, 0, &mut rng).map_err(fail)?;
        Ok(explorer.seen)
    })
}

struct Explorer {
    options: Options,
    seen: Seen,
    plan: Plan,
    /// A header copy that a dead owner had in flight landed late in this line of lives, over the newest one. The other copy is sound,
    /// so nothing may be lost; but it bears no second fault, and the log may refuse to open.
    late_header: bool,
}

impl Explorer {
    fn explore(
        &mut self,
        life: &Life,
        model: &Model,
        depth: u32,
        rng: &mut Rng,
    ) -> Result<(), Violation> {
        let detail = Detail {
            drawn: 4,
            one_in: if depth == 0 {
                self.options.one_in
            } else {
                1 + u64::from(depth)
            },
            events_max: if depth == 0 { usize::MAX } else { 60 },
        };
        life.each_state(detail, rng, |state, rng| {
            if self.seen.states >= self.options.states_max {
                return Ok(());
            }
            self.visit(life, model, state, depth, rng)
        })
    }

    fn visit(
        &mut self,
        life: &Life,
        model: &Model,
        state: &CrashState<'_>,
        depth: u32,
        rng: &mut Rng,
    ) -> Result<(), Violation> {
        if self.late_header
            && state
                .in_flight
                .iter()
                .any(|write| self.in_header(write.offset))
        {
            return Ok(());
        }
        self.seen.states += 1;
        self.seen.second_crashes += u64::from(depth > 0);
        let device = SimDevice::from_image(life.geometry, state.image.clone());
        self.recovered(&device, model, state)?;
        if !self.late_header && rng.one_in(self.options.header_one_in) {
            self.header_fault(life, model, state, rng)?;
        }
        if rng.one_in(self.options.go_on_one_in) {
            self.go_on(life, model, state, rng)?;
        }
        let one_in = if depth == 0 {
            self.options.onward_one_in
        } else {
            self.options.onward_later_one_in
        };
        if depth < 4 && rng.one_in(one_in) {
            self.onward(life, model, state, depth, rng)?;
        }
        Ok(())
    }

    fn in_header(&self, offset: u64) -> bool {
        !(4096..self.plan.geometry.bytes - 4096).contains(&offset)
    }

    fn recovered(
        &mut self,
        device: &SimDevice,
        model: &Model,
        state: &CrashState<'_>,
    ) -> Result<(), Violation> {
        match check::recover(device, model, state.promised)? {
            Ok(recovered) => {
                self.seen.islands += recovered.scanned.recovery.end.islands.blocks.min(1);
                Ok(())
            }
            Err(_) if self.late_header => {
                self.seen.refused_after_late_header += 1;
                Ok(())
            }
            Err(error) => Err(Violation(format!("refused after a mere crash: {error}"))),
        }
    }

    /// The log is opened, appended to, trimmed and perhaps closed and opened again; then the power goes once more.
    fn go_on(
        &mut self,
        life: &Life,
        model: &Model,
        state: &CrashState<'_>,
        rng: &mut Rng,
    ) -> Result<(), Violation> {
        let device = SimDevice::from_image(life.geometry, state.image.clone());
        let plan = Plan::a_few_steps(&self.plan, rng);
        let session = match used(&plan, &device, model.back_at(state.promised), rng) {
            Err(NoSession::Refused(_)) if self.late_header => {
                self.seen.refused_after_late_header += 1;
                return Ok(());
            }
            session => session?,
        };
        let (device, model, _) = session.left();
        let after = SimDevice::from_image(life.geometry, device.durable());
        let promised = model.snapshot();
        self.seen.states += 1;
        self.seen.went_on += 1;
        let recovered = check::recover(&after, &model, &promised);
        let violation = match recovered {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(violation) => violation.0,
        };
        Err(Violation(format!("went on, and then: {violation}")))
    }

    /// The log is used further; then that life is taken apart as well.
    fn onward(
        &mut self,
        life: &Life,
        model: &Model,
        state: &CrashState<'_>,
        depth: u32,
        rng: &mut Rng,
    ) -> Result<(), Violation> {
        let model = model.back_at(state.promised);
        let (device, late_header) = match rng.below(3) {
            0 => (
                SimDevice::from_image(life.geometry, state.image.clone()),
                false,
            ),
            // Killed, not without power: what had landed is readable and not yet durable.
            1 => {
                let (durable, visible) = (state.before.clone(), state.image.clone());
                (
                    SimDevice::after_kill(life.geometry, durable, visible),
                    false,
                )
            }
            // Killed, and some of what was in flight lands only later.
            _ => self.with_late_writes(life, state, rng),
        };
        let plan = Plan::onward(&self.plan, rng);
        let before = self.late_header;
        self.late_header |= late_header;
        let lived = live(&plan, device, model, rng).map_err(|no| match no {
            NoSession::Refused(_) if self.late_header => None,
            no => Some(no.into()),
        });
        let explored = match lived {
            Ok((next, model)) => {
                self.seen.lives += 1;
                self.explore(&next, &model, depth + 1, rng)
            }
            Err(None) => {
                self.seen.refused_after_late_header += 1;
                Ok(())
            }
            Err(Some(violation)) => Err(violation),
        };
        self.late_header = before;
        explored
    }

    fn with_late_writes(
        &mut self,
        life: &Life,
        state: &CrashState<'_>,
        rng: &mut Rng,
    ) -> (SimDevice, bool) {
        let mut image = state.before.clone();
        let mut late = Vec::new();
        for write in state.in_flight {
            if rng.one_in(2) {
                late.push(LateWrite {
                    offset: write.offset,
                    bytes: write.bytes.clone(),
                    landed: if rng.one_in(3) {
                        Landed::Drawn(rng.draw())
                    } else {
                        Landed::All
                    },
                    // An opening takes some ten operations; later the log is in use again.
                    after_operations: 1 + rng.below(30),
                });
            } else {
                image.write(write.offset, &write.bytes, write.landed);
            }
        }
        self.seen.late_writes += u64::from(!late.is_empty());
        let header = late.iter().any(|write| self.in_header(write.offset));
        let device = SimDevice::from_image(life.geometry, image);
        late.into_iter().for_each(|write| device.push_late(write));
        (device, header)
    }

    /// One header copy is damaged or holds what it held some time before: that must cost nothing.
    fn header_fault(
        &mut self,
        life: &Life,
        model: &Model,
        state: &CrashState<'_>,
        rng: &mut Rng,
    ) -> Result<(), Violation> {
        let slot = Slot::BOTH[rng.index(2)];
        let ring =
            crate::geometry::Ring::of(life.geometry).map_err(|e| Violation(e.to_string()))?;
        let offset = ring.header(slot);
        let other = ring.header(slot.other());
        // Two copies bear one fault: not this one and a write that tears the other.
        if state.in_flight.iter().any(|write| write.offset == other) {
            return Ok(());
        }
        let mut image = state.image.clone();
        let old = (rng.one_in(2))
            .then(|| older_copy(life, state, offset, rng))
            .flatten();
        match &old {
            Some(bytes) => image.write(offset, bytes, Landed::All),
            None => image.flip(offset + rng.below(512), 3),
        }
        self.seen.states += 1;
        self.seen.header_faults += 1;
        let device = SimDevice::from_image(life.geometry, image);
        self.recovered(&device, model, state).map_err(|violation| {
            let how = if old.is_some() {
                "rolled back"
            } else {
                "damaged"
            };
            Violation(format!("header copy {slot:?} {how}: {violation}"))
        })
    }
}

/// What the copy at `offset` held at an earlier moment of this life.
fn older_copy(life: &Life, state: &CrashState<'_>, offset: u64, rng: &mut Rng) -> Option<Vec<u8>> {
    let held: Vec<&[u8]> = life.events[..state.point]
        .iter()
        .filter_map(|event| match event {
            crate::device::sim::Event::Landed {
                offset: at, bytes, ..
            } if *at == offset => Some(&bytes[..]),
            _ => None,
        })
        .collect();
    let len = held.len().checked_sub(1)?;
    (len > 0).then(|| held[len - 1 - rng.index(len.min(3))].to_vec())
}

/// Explores seeds from `first` on, in `threads` threads, until so many states have been seen. Each finished seed is shown to `tell`.
pub fn many(
    first: u64,
    states: u64,
    threads: usize,
    options: Options,
    tell: impl Fn(u64, &Seen) + Sync,
) -> Result<Seen, Failure> {
    let next = AtomicU64::new(first);
    let failed = AtomicBool::new(false);
    let total = Mutex::new((Seen::default(), None));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let enough = {
                        let total = total.lock().unwrap_or_else(PoisonError::into_inner);
                        total.0.states >= states
                    };
                    if enough || failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let result = seed(number, options);
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(seen) => {
                            total.0.add(seen);
                            tell(number, &seen);
                        }
                        Err(failure) => {
                            failed.store(true, Ordering::Relaxed);
                            total.1.get_or_insert(failure);
                        }
                    }
                }
            });
        }
    });
    let (seen, failure) = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map_or(Ok(seen), Err)
}
