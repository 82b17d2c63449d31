//! What keeps a second writer away from a log, and how it is put up when the log is opened.
//!
//! On one host: the kernel's exclusive claim on a block device (`O_EXCL`, which also stops `mkfs` and `mount`), a lock (`flock`) on a file.
//! Between hosts: a persistent reservation, where a whole device has them. Where it has none, opening the log says so, and the platform has to
//! see to it that a volume is attached to one host at a time.
//!
//! The reservation is taken before anything on the device is believed, on a thread of its own: throwing the old owner out waits for
//! its writes in flight, inside the kernel, and there are targets in which that never ends.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use crate::reservation::{
    KernelReservations, Preempt, ReservationError, ReservationKey, TakenOver, take_over,
};

/// When the wait for the old owner's writes is mentioned in the log.
const NOTICE_AFTER: Duration = Duration::from_secs(5);

/// Whether other hosts are to be fenced off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fencing {
    /// Where the device can; where it has no reservations, the log is opened without and says so.
    #[default]
    WherePossible,
    /// Or the log is not opened. Right for volumes that are attached to two hosts.
    Required,
    /// Not at all: something else makes sure that no other host writes.
    Off,
}

/// Why there is no reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfenced {
    /// A file: reservations are a matter of whole devices.
    File,
    /// A partition: a reservation would hold for its neighbours as well, and the kernel refuses it.
    Partition,
    /// The device or its driver has none.
    Unsupported(String),
    /// The operator has said so.
    SwitchedOff,
}

impl fmt::Display for Unfenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfenced::File => f.write_str("a file can't be reserved"),
            Unfenced::Partition => {
                f.write_str("a partition can't be reserved, only the whole device")
            }
            Unfenced::Unsupported(detail) => {
                write!(f, "the device has no persistent reservations: {detail}")
            }
            Unfenced::SwitchedOff => f.write_str("fencing is switched off"),
        }
    }
}

/// What keeps a second writer away from an open log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Another process on this host: the exclusive claim. Another host: a reservation, which this opening holds.
    Reserved(TakenOver),
    /// Another process on this host: the exclusive claim. Another host: nothing of ours.
    ExclusiveOpen(Unfenced),
    /// Another process on this host: the lock. Another host: nothing of ours.
    FileLock,
}

impl Guard {
    /// What belongs into the log's header: the next owner may have nobody else to ask for it. `None` without a reservation.
    pub fn reservation_key(&self) -> Option<ReservationKey> {
        match self {
            Guard::Reserved(taken) => Some(taken.key),
            Guard::ExclusiveOpen(_) | Guard::FileLock => None,
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Guard::Reserved(taken) => {
                write!(
                    f,
                    "exclusive open on this host; other hosts are fenced by a write-exclusive reservation with key {}",
                    taken.key
                )?;
                if let Some(previous) = taken.preempted {
                    write!(f, ", taken over from {previous}")?;
                }
                if !taken.confirmed {
                    f.write_str(" (neither kernel nor device can be asked to confirm it)")?;
                }
                Ok(())
            }
            Guard::ExclusiveOpen(reason) => write!(
                f,
                "exclusive open on this host; NOTHING keeps another host out ({reason}): the volume must be attached to one host at a time"
            ),
            Guard::FileLock => f.write_str(
                "a lock on the file, on this host; NOTHING keeps another host out: the file system must be local to it",
            ),
        }
    }
}

/// Why a log is not opened for lack of a guard, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Fencing was asked for and can't be had here: another volume, or [`Fencing::Off`] and another way to be sure.
    #[error("fencing is required, and {0}")]
    Unfenced(Unfenced),
    /// The last owner fenced this log and this opening can't. Somebody else may hold it; [`Fencing::Off`] opens it nevertheless.
    #[error("the log was fenced by its last owner, and now {0}")]
    NoLongerFenced(Unfenced),
    /// The kernel has not come back. Its thread stays in there and holds the device until it does, or until this host restarts.
    #[error(
        "the take-over of the reservation has not ended within {} s: the device still has writes of the old owner in flight, \
         or its target can't abort them (Linux' SCSI loopback target hangs for ever). The calling thread can't be interrupted: \
         this process may not end either. Where the old owner's host is known to be down, preempt without abort",
        after.as_secs()
    )]
    Hung {
        /// How long was waited.
        after: Duration,
    },
    /// The device did not give us the reservation.
    #[error(transparent)]
    Reservation(#[from] ReservationError),
    /// No thread could be started, or no handle had.
    #[error("the take-over could not be started")]
    Start(#[source] io::Error),
}

/// How the guard between hosts is put up.
#[derive(Clone, Copy, Debug)]
pub struct FenceOptions {
    /// Whether at all.
    pub fencing: Fencing,
    /// How the old owner is thrown out.
    pub preempt: Preempt,
    /// How long that may take.
    pub deadline: Duration,
    /// The key of this opening, drawn at random.
    pub key: ReservationKey,
}

/// Takes the reservation of a whole block device. When this has returned [`Guard::Reserved`], nothing that another owner has sent can
/// land any more (with [`Preempt::AndAbort`]), and the device may be read.
///
/// `last_known` is the key in the newest header of the log on it, if there is one.
pub(crate) fn fence(
    file: &File,
    options: &FenceOptions,
    last_known: Option<ReservationKey>,
) -> Result<Guard, GuardError> {
    let device = KernelReservations::new(file.try_clone().map_err(GuardError::Start)?);
    let (own, how) = (options.key, options.preempt);
    let outcome = within(options.deadline, move || {
        take_over(&device, own, last_known, how)
    })?;
    match outcome {
        Ok(taken) => {
            info!(key = %taken.key, preempted = ?taken.preempted, confirmed = taken.confirmed, "the volume is reserved");
            Ok(Guard::Reserved(taken))
        }
        Err(ReservationError::Unsupported { detail }) => {
            unfenced(Unfenced::Unsupported(detail), options.fencing, last_known)
        }
        Err(error) => Err(error.into()),
    }
}

/// Decides whether a device may be opened without a reservation.
pub(crate) fn unfenced(
    reason: Unfenced,
    fencing: Fencing,
    last_known: Option<ReservationKey>,
) -> Result<Guard, GuardError> {
    match fencing {
        Fencing::Required => Err(GuardError::Unfenced(reason)),
        // As when a volume type without reservations replaced one that has them, or a driver was changed: nobody should find that out
        // from a log with two writers.
        Fencing::WherePossible if last_known.is_some() => Err(GuardError::NoLongerFenced(reason)),
        Fencing::WherePossible | Fencing::Off if reason == Unfenced::File => Ok(Guard::FileLock),
        Fencing::WherePossible | Fencing::Off => Ok(Guard::ExclusiveOpen(reason)),
    }
}

/// Runs `act` on a thread of its own and gives up waiting for it after `deadline`.
fn within<T: Send + 'static>(
    deadline: Duration,
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GuardError> {
    let (answer, outcome) = channel();
    thread::Builder::new()
        .name("wal-fence".to_owned())
        .spawn(move || {
            // Nobody listens any more after the deadline.
            let _ = answer.send(act());
        })
        .map_err(GuardError::Start)?;
    let notice = NOTICE_AFTER.min(deadline);
    let gone = || GuardError::Start(io::Error::other("the take-over's thread died"));
    match outcome.recv_timeout(notice) {
        Ok(outcome) => return Ok(outcome),
        Err(RecvTimeoutError::Disconnected) => return Err(gone()),
        Err(RecvTimeoutError::Timeout) => {}
    }
    warn!(
        waited = ?notice, ?deadline,
        "the device has not yet given up the old owner's writes, waiting on"
    );
    match outcome.recv_timeout(deadline - notice) {
        Ok(outcome) => Ok(outcome),
        Err(RecvTimeoutError::Disconnected) => Err(gone()),
        Err(RecvTimeoutError::Timeout) => Err(GuardError::Hung { after: deadline }),
    }
}

/// Whether a write failed because another owner holds the device now: stop, acknowledge nothing more, and don't come back by
/// itself. Only a write can tell: after being fenced, `fsync` has been seen to succeed.
pub fn is_fenced(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::BADE.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ReservationKey {
        ReservationKey::new(7).expect("not 0")
    }

    #[test]
    fn a_take_over_that_hangs_is_given_up_at_the_deadline() {
        let (_never, forever) = channel::<()>();
        let outcome = within(Duration::from_millis(20), move || forever.recv());
        assert!(matches!(outcome, Err(GuardError::Hung { .. })));
    }

    #[test]
    fn a_log_that_was_fenced_is_not_opened_without() {
        let reason = Unfenced::Unsupported("its driver has no such call".to_owned());
        let open = |fencing, last_known| unfenced(reason.clone(), fencing, last_known).map(|_| ());
        assert!(matches!(
            open(Fencing::Required, None),
            Err(GuardError::Unfenced(_))
        ));
        assert!(matches!(
            open(Fencing::WherePossible, Some(key())),
            Err(GuardError::NoLongerFenced(_))
        ));
        assert!(open(Fencing::WherePossible, None).is_ok());
        assert!(open(Fencing::Off, Some(key())).is_ok());
    }

    #[test]
    fn the_guard_says_in_words_what_it_does_not_do() {
        let said = Guard::ExclusiveOpen(Unfenced::Partition).to_string();
        assert!(said.contains("NOTHING keeps another host out"), "{said}");
        assert!(said.contains("partition"), "{said}");
        let taken = TakenOver {
            key: key(),
            preempted: None,
            confirmed: true,
        };
        assert_eq!(Guard::Reserved(taken).reservation_key(), Some(key()));
    }
}
