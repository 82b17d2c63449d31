//! The take-over against a model of a device with the differences between SCSI and NVMe that were measured.

use std::cell::RefCell;

use super::{
    Command, Holder, Preempt, ReservationError, ReservationKey, Reservations, TakenOver, take_over,
};

/// What one volume remembers, and which host speaks.
#[derive(Default)]
struct Volume {
    // (host, key)
    registrants: Vec<(u32, u64)>,
    // (host, type)
    holder: Option<(u32, u32)>,
    commands: Vec<Command>,
    none: bool,
    mute: bool,
}

struct Host<'a> {
    number: u32,
    volume: &'a RefCell<Volume>,
}

fn conflict<T>(command: Command) -> Result<T, ReservationError> {
    Err(ReservationError::Conflict { command })
}

impl Host<'_> {
    fn key(&self) -> Option<u64> {
        let volume = self.volume.borrow();
        let own = volume
            .registrants
            .iter()
            .find(|(host, _)| *host == self.number);
        own.map(|(_, key)| *key)
    }

    fn may_write(&self) -> bool {
        self.volume
            .borrow()
            .holder
            .is_none_or(|(host, _)| host == self.number)
    }
}

impl Reservations for Host<'_> {
    fn register(&self, key: ReservationKey) -> Result<(), ReservationError> {
        let mut volume = self.volume.borrow_mut();
        if volume.none {
            return Err(ReservationError::Unsupported {
                detail: String::new(),
            });
        }
        volume.commands.push(Command::Register);
        volume.registrants.retain(|(host, _)| *host != self.number);
        volume.registrants.push((self.number, key.get()));
        Ok(())
    }

    fn reserve(&self, key: ReservationKey) -> Result<(), ReservationError> {
        let own = self.key();
        let mut volume = self.volume.borrow_mut();
        volume.commands.push(Command::Reserve);
        match volume.holder {
            Some((host, _)) if host != self.number => conflict(Command::Reserve),
            _ if own != Some(key.get()) => conflict(Command::Reserve),
            _ => {
                volume.holder = Some((self.number, 1));
                Ok(())
            }
        }
    }

    fn preempt(
        &self,
        own: ReservationKey,
        victim: ReservationKey,
        how: Preempt,
    ) -> Result<(), ReservationError> {
        let command = match how {
            Preempt::AndAbort => Command::PreemptAndAbort,
            Preempt::Only => Command::Preempt,
        };
        let registered = self.key();
        let mut volume = self.volume.borrow_mut();
        volume.commands.push(command);
        let victims: Vec<u32> = volume
            .registrants
            .iter()
            .filter(|(_, key)| *key == victim.get())
            .map(|(host, _)| *host)
            .collect();
        if registered != Some(own.get()) || victims.is_empty() {
            return conflict(command);
        }
        volume
            .registrants
            .retain(|(host, _)| !victims.contains(host));
        if volume
            .holder
            .is_some_and(|(host, _)| victims.contains(&host))
        {
            volume.holder = Some((self.number, 1));
        }
        Ok(())
    }

    fn holder(&self) -> Holder {
        let volume = self.volume.borrow();
        match volume.holder {
            _ if volume.mute => Holder::Unknown,
            None => Holder::Nobody,
            Some((holder, kind)) => Holder::Key {
                key: volume
                    .registrants
                    .iter()
                    .find(|(host, _)| *host == holder)
                    .map_or(0, |(_, key)| *key),
                kind,
            },
        }
    }
}

fn key(raw: u64) -> ReservationKey {
    ReservationKey::new(raw).expect("not 0")
}

fn open(
    volume: &RefCell<Volume>,
    number: u32,
    own: u64,
    last_known: Option<u64>,
) -> Result<TakenOver, ReservationError> {
    take_over(
        &Host { number, volume },
        key(own),
        last_known.map(key),
        Preempt::AndAbort,
    )
}

#[test]
fn the_first_owner_reserves_and_the_second_throws_it_out_and_waits_for_its_writes() {
    for mute in [false, true] {
        let volume = RefCell::new(Volume {
            mute,
            ..Volume::default()
        });
        let first = open(&volume, 1, 11, None).expect("free");
        assert_eq!((first.preempted, first.confirmed), (None, !mute));
        let second = open(&volume, 2, 22, Some(11)).expect("taken over");
        assert_eq!(second.preempted, Some(key(11)), "mute: {mute}");
        assert!(volume.borrow().commands.contains(&Command::PreemptAndAbort));
        let host = |number| Host {
            number,
            volume: &volume,
        };
        assert!(!host(1).may_write() && host(2).may_write());
    }
}

#[test]
fn the_same_host_finds_itself_the_holder() {
    for mute in [false, true] {
        let volume = RefCell::new(Volume {
            mute,
            ..Volume::default()
        });
        open(&volume, 1, 11, None).expect("free");
        // Its last opening died before the header had its key: the header still names another.
        let again = open(&volume, 1, 12, Some(9)).expect("its own");
        assert_eq!(again.preempted, None, "mute: {mute}");
        assert!(!volume.borrow().commands.contains(&Command::PreemptAndAbort));
    }
}

#[test]
fn a_holder_that_nobody_can_name_is_not_guessed_at() {
    for last_known in [None, Some(9)] {
        let volume = RefCell::new(Volume {
            mute: true,
            ..Volume::default()
        });
        open(&volume, 1, 11, None).expect("free");
        let outcome = open(&volume, 2, 22, last_known);
        assert!(
            matches!(outcome, Err(ReservationError::HolderUnknown)),
            "{outcome:?}"
        );
    }
}

#[test]
fn the_key_of_a_registrant_that_does_not_hold_is_no_way_in() {
    let volume = RefCell::new(Volume {
        mute: true,
        ..Volume::default()
    });
    open(&volume, 1, 11, None).expect("free");
    // The header is older than the holder: it names host 3, which is registered and fenced.
    Host {
        number: 3,
        volume: &volume,
    }
    .register(key(33))
    .expect("anybody may register");
    let outcome = open(&volume, 2, 22, Some(33));
    assert!(
        matches!(outcome, Err(ReservationError::HolderUnknown)),
        "{outcome:?}"
    );
    assert_eq!(volume.borrow().holder, Some((1, 1)));
}

#[test]
fn other_software_s_reservation_is_left_alone() {
    let volume = RefCell::new(Volume::default());
    open(&volume, 1, 11, None).expect("free");
    volume.borrow_mut().holder = Some((1, 3));
    let outcome = open(&volume, 2, 22, Some(11));
    assert!(
        matches!(outcome, Err(ReservationError::Foreign { key: 11, kind: 3 })),
        "{outcome:?}"
    );
    assert_eq!(volume.borrow().holder, Some((1, 3)));
}

#[test]
fn a_device_without_reservations_says_so() {
    let volume = RefCell::new(Volume {
        none: true,
        ..Volume::default()
    });
    assert!(matches!(
        open(&volume, 1, 11, None),
        Err(ReservationError::Unsupported { .. })
    ));
}
