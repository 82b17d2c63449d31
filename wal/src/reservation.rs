//! Persistent reservations: how one of several hosts that see the same volume keeps the others from writing to it.
//!
//! A host *registers* a key, then *reserves* the volume with type 1 (write exclusive): from then on only the holder can write,
//! and anybody can read. The next owner *preempts*: it names the holder's key, becomes the holder, and writes of the old one
//! fail with `EBADE`. Type 1 and no other: with the "registrants only" types an old owner that registers again could write again.
//!
//! [`take_over`] is the sequence; [`Reservations`] is what it needs from a device, so that it can be tried against the
//! differences that SCSI and NVMe have been seen to have. [`KernelReservations`] speaks `IOC_PR_*`. What this module does not do:
//! choose when to fence (that is `guard`), ever do it a second time by itself after `EBADE`, or release on close. A released
//! volume would let the delayed write of an owner that was fenced long ago through.

use std::fmt;
use std::num::NonZeroU64;

use crate::rules::rules;

mod kernel;
mod report;

#[cfg(test)]
mod tests;

pub use kernel::KernelReservations;

/// The name under which an owner holds a volume. Drawn at random for each opening, so that no two openings share one: preempting
/// a key that is also one's own would remove both.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReservationKey(NonZeroU64);

impl ReservationKey {
    /// `None` for 0, which means "no key" to every device.
    pub fn new(raw: u64) -> Option<ReservationKey> {
        NonZeroU64::new(raw).map(ReservationKey)
    }

    /// The 64 bits that travel to the device.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl fmt::Debug for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReservationKey({self})")
    }
}

/// Who holds a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// One registrant, with this key and type (1 = write exclusive).
    Key {
        /// Its key; 0 where all registrants hold it together.
        key: u64,
        /// The device's number for the kind of reservation.
        kind: u32,
    },
    /// Neither the kernel nor the device can say.
    Unknown,
}

/// The commands, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Sets this host's key.
    Register,
    /// Becomes the holder where there is none.
    Reserve,
    /// Becomes the holder in the place of another.
    Preempt,
    /// Like [`Command::Preempt`], and waits until no write of the other is in flight.
    PreemptAndAbort,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::Register => "REGISTER",
            Command::Reserve => "RESERVE",
            Command::Preempt => "PREEMPT",
            Command::PreemptAndAbort => "PREEMPT AND ABORT",
        })
    }
}

/// Why a volume could not be reserved, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    /// The device, or the driver, knows no reservations: another guard has to hold, or none does.
    #[error("the device has no persistent reservations ({detail})")]
    Unsupported {
        /// What it answered.
        detail: String,
    },
    /// Somebody else took it in the same moment. Only one can win: the loser stops, and a person or a supervisor decides.
    #[error("another host changed the reservation at the same time ({command} conflicts)")]
    Conflict {
        /// What was refused.
        command: Command,
    },
    /// It is held, and nothing says by whom: an administrator has to look (`sg_persist`, `nvme resv-report`).
    #[error(
        "the volume is reserved by a key that neither the kernel nor the log's header knows; \
         look with sg_persist or nvme resv-report"
    )]
    HolderUnknown,
    /// It is held in a way that is not ours; other software uses the volume.
    #[error("the volume is reserved with type {kind} and key {key:#x}, not by a log")]
    Foreign {
        /// The key found.
        key: u64,
        /// The type found.
        kind: u32,
    },
    /// The kernel wants more rights (`CAP_SYS_ADMIN` before 6.6).
    #[error("{command} is not permitted to this process")]
    NotPermitted {
        /// What was refused.
        command: Command,
    },
    /// After it all, the device names another holder: it can't be trusted with the fence.
    #[error("the device took the reservation and then named another holder ({found:?})")]
    NotHeld {
        /// What it says.
        found: Holder,
    },
    /// The device answered with a status that this program does not know.
    #[error("{command} ended with device status {status:#x}")]
    Status {
        /// Which command.
        command: Command,
        /// What it said.
        status: u32,
    },
    /// The call itself failed.
    #[error("{command} failed")]
    Io {
        /// Which command.
        command: Command,
        /// Why.
        source: std::io::Error,
    },
}

/// How the old owner is thrown out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preempt {
    /// PREEMPT AND ABORT: returns when nothing that the old owner has sent can land any more. Right everywhere it works.
    #[default]
    AndAbort,
    /// PREEMPT alone, for targets in which the abort never returns (Linux' own SCSI loopback target). A write of the old owner that
    /// was in flight can land after it has returned: right only where its host is known to be down.
    Only,
}

/// What [`take_over`] needs from a device. The implementations say "conflict" and "unsupported" as errors.
pub trait Reservations {
    /// Sets this host's key, whatever it was.
    fn register(&self, key: ReservationKey) -> Result<(), ReservationError>;
    /// Reserves, type 1.
    fn reserve(&self, key: ReservationKey) -> Result<(), ReservationError>;
    /// Throws the holder `victim` out and becomes the holder, type 1.
    fn preempt(
        &self,
        own: ReservationKey,
        victim: ReservationKey,
        how: Preempt,
    ) -> Result<(), ReservationError>;
    /// Who holds it. Not being able to say is an answer.
    fn holder(&self) -> Holder;
}

/// The type that is right for one writer.
pub(crate) const WRITE_EXCLUSIVE: u32 = 1;

/// What a take-over found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenOver {
    /// The key this opening holds the volume with.
    pub key: ReservationKey,
    /// The key that was thrown out; `None` if nobody, or this very host, held it.
    pub preempted: Option<ReservationKey>,
    /// Whether the device itself has confirmed it; older kernels and devices can't be asked.
    pub confirmed: bool,
}

/// Makes this host the holder. After it has returned no other host can write; with [`Preempt::AndAbort`] nothing that another has
/// written before can land either. So only then may the log be scanned.
///
/// `last_known` is the key in the log's header: the holder's, where nobody can be asked. May hang inside the kernel.
pub fn take_over(
    device: &dyn Reservations,
    own: ReservationKey,
    last_known: Option<ReservationKey>,
    how: Preempt,
) -> Result<TakenOver, ReservationError> {
    device.register(own)?;
    let how = if rules().preempt_aborts {
        how
    } else {
        Preempt::Only
    };
    let holder = device.holder();
    if !rules().preempt {
        return Ok(TakenOver {
            key: own,
            preempted: None,
            confirmed: false,
        });
    }
    let preempted = match holder {
        Holder::Nobody => {
            device.reserve(own)?;
            None
        }
        // A log that this host has had open before: registering has renamed its key, and the reservation with it.
        Holder::Key { key, kind } if key == own.get() => {
            if kind != WRITE_EXCLUSIVE {
                return Err(ReservationError::Foreign { key, kind });
            }
            None
        }
        Holder::Key { key, kind } => {
            let victim = ReservationKey::new(key).filter(|_| kind == WRITE_EXCLUSIVE);
            let victim = victim.ok_or(ReservationError::Foreign { key, kind })?;
            device.preempt(own, victim, how)?;
            Some(victim)
        }
        // The holder may be nobody, this host, or the writer of the header, in the order of what is harmless to try: a RESERVE
        // succeeds for the first two and changes nothing for the third.
        Holder::Unknown => match device.reserve(own) {
            Ok(()) => None,
            Err(ReservationError::Conflict { .. }) => {
                let victim = last_known.ok_or(ReservationError::HolderUnknown)?;
                match device.preempt(own, victim, how) {
                    // No registrant has that key: the holder is somebody else.
                    Err(ReservationError::Conflict { .. }) => {
                        return Err(ReservationError::HolderUnknown);
                    }
                    outcome => outcome?,
                }
                // PREEMPT of a registrant that is not the holder removes it and takes nothing. Being able to reserve again is
                // what only the holder is.
                match device.reserve(own) {
                    Err(ReservationError::Conflict { .. }) => {
                        return Err(ReservationError::HolderUnknown);
                    }
                    outcome => outcome?,
                }
                Some(victim)
            }
            Err(error) => return Err(error),
        },
    };
    let confirmed = match device.holder() {
        Holder::Key { key, kind } if key == own.get() && kind == WRITE_EXCLUSIVE => true,
        Holder::Unknown => false,
        found => return Err(ReservationError::NotHeld { found }),
    };
    Ok(TakenOver {
        key: own,
        preempted,
        confirmed,
    })
}
