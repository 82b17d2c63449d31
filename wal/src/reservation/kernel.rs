//! Reservations through the kernel's `IOC_PR_*` calls, on a whole block device.
//!
//! Two things here are as measured and not as documented. In `IOC_PR_PREEMPT` the field `old_key` is the *caller's own* key and
//! `new_key` the *victim's*. And a command that the device refused returns a *positive* number, the device's status, so a test for
//! `< 0` would take a conflict for success.
#![expect(
    unsafe_code,
    reason = "the ioctls have no safe wrapper; each call's argument is a struct of the kernel's layout"
)]

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use super::{
    Command, Holder, Preempt, ReservationError, ReservationKey, Reservations, WRITE_EXCLUSIVE,
    report,
};

/// The device's answer "reservation conflict": SCSI status 0x18, also in the kernel's own numbers and, before 6.5, with bits of the
/// transport above it; NVMe's own 0x83 where the kernel passes it on unchanged.
const CONFLICT: [u32; 2] = [0x18, 0x83];
/// CHECK CONDITION: among others the unit attention by which a SCSI host first hears that it was preempted.
const CHECK_CONDITION: u32 = 0x02;
/// `PR_FL_IGNORE_KEY`: register whatever the key was.
const IGNORE_KEY: u32 = 1;

#[repr(C)]
struct Registration {
    old_key: u64,
    new_key: u64,
    flags: u32,
    pad: u32,
}

#[repr(C)]
struct Reservation {
    key: u64,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct Preemption {
    // The caller's own.
    old_key: u64,
    // The victim's.
    new_key: u64,
    kind: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ReadReservation {
    key: u64,
    generation: u32,
    kind: u32,
}

const _: () = assert!(size_of::<Registration>() == 24);
const _: () = assert!(size_of::<Reservation>() == 16);
const _: () = assert!(size_of::<Preemption>() == 24);
const _: () = assert!(size_of::<ReadReservation>() == 16);

const REGISTER: Opcode = opcode::write::<Registration>(b'p', 200);
const RESERVE: Opcode = opcode::write::<Reservation>(b'p', 201);
const PREEMPT: Opcode = opcode::write::<Preemption>(b'p', 203);
const PREEMPT_ABORT: Opcode = opcode::write::<Preemption>(b'p', 204);
const READ_RESERVATION: Opcode = opcode::read::<ReadReservation>(b'p', 207);

/// One ioctl that passes a struct and whose *return value* matters: 0, or the device's status.
struct Call<'a, T> {
    opcode: Opcode,
    argument: &'a mut T,
}

// SAFETY: `as_ptr` points to a `T` that is borrowed for as long as the call runs. That `T` is the kernel's struct for the opcode is
// what `call` asks of its callers. The kernel may write into it, which `IS_MUTATING` says.
unsafe impl<T> Ioctl for Call<'_, T> {
    type Output = u32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.argument).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        // Negative ones have become an `Errno` before this is called.
        Ok(out.unsigned_abs())
    }
}

/// Gives the device's status; 0 is success.
///
/// # Safety
///
/// `T` must be what the kernel expects with `opcode`, and every pointer in it valid for what the kernel does with it.
pub(super) unsafe fn call<T>(
    file: &File,
    opcode: Opcode,
    argument: &mut T,
) -> rustix::io::Result<u32> {
    // SAFETY: the caller's promise.
    unsafe { rustix::ioctl::ioctl(file.as_fd(), Call { opcode, argument }) }
}

/// The reservations of one open block device.
#[derive(Debug)]
pub struct KernelReservations {
    file: File,
}

impl KernelReservations {
    /// `file` is a whole block device, open for writing: newer kernels ask for that and for no further rights.
    pub fn new(file: File) -> KernelReservations {
        KernelReservations { file }
    }

    /// Runs a command, and once more if the first answer was CHECK CONDITION: a host that has been preempted is told so by failing
    /// its next command, whatever that is, and the command itself has not run then. For these commands alone, never for a write
    /// of data.
    fn command<T>(
        &self,
        command: Command,
        opcode: Opcode,
        mut argument: T,
    ) -> Result<(), ReservationError> {
        let mut once = || {
            // SAFETY: each caller below passes the struct that belongs to its opcode (which was computed from the struct), and none
            // of these holds a pointer.
            unsafe { call(&self.file, opcode, &mut argument) }
        };
        let mut outcome = once();
        if outcome == Ok(CHECK_CONDITION) {
            outcome = once();
        }
        judge(command, outcome)
    }

    /// Who holds it, asked in the device's own language, as on kernels that have no call for it.
    pub fn ask_device(&self) -> Holder {
        report::holder(&self.file)
    }

    fn register_over(&self, old_key: u64, key: ReservationKey) -> Result<(), ReservationError> {
        self.command(
            Command::Register,
            REGISTER,
            Registration {
                old_key,
                new_key: key.get(),
                flags: IGNORE_KEY,
                pad: 0,
            },
        )
    }
}

/// What a command's outcome means.
fn judge(command: Command, outcome: Result<u32, Errno>) -> Result<(), ReservationError> {
    let unsupported = |detail: &str| {
        Err(ReservationError::Unsupported {
            detail: detail.to_owned(),
        })
    };
    match outcome {
        Ok(0) => Ok(()),
        Ok(status) if CONFLICT.contains(&(status & 0xff)) => {
            Err(ReservationError::Conflict { command })
        }
        // The first command of all, refused twice: a disk that does not know it (seen with emulated disks).
        Ok(CHECK_CONDITION) if command == Command::Register => unsupported("it refuses REGISTER"),
        Ok(status) => Err(ReservationError::Status { command, status }),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
            unsupported("its driver has no such call")
        }
        // An NVMe controller without the feature. It can't be about our arguments: they are the same for every device.
        Err(Errno::INVAL) if command == Command::Register => unsupported("REGISTER is invalid"),
        Err(Errno::PERM | Errno::ACCESS) => Err(ReservationError::NotPermitted { command }),
        Err(Errno::BADE) => Err(ReservationError::Conflict { command }),
        Err(error) => Err(ReservationError::Io {
            command,
            source: error.into(),
        }),
    }
}

impl Reservations for KernelReservations {
    fn register(&self, key: ReservationKey) -> Result<(), ReservationError> {
        match self.register_over(0, key) {
            // NVMe heeds "ignore" only where a key is replaced, and the kernel asks for that only if the old key is not 0.
            Err(ReservationError::Conflict { .. }) => self.register_over(key.get(), key),
            outcome => outcome,
        }
    }

    fn reserve(&self, key: ReservationKey) -> Result<(), ReservationError> {
        self.command(
            Command::Reserve,
            RESERVE,
            Reservation {
                key: key.get(),
                kind: WRITE_EXCLUSIVE,
                flags: 0,
            },
        )
    }

    fn preempt(
        &self,
        own: ReservationKey,
        victim: ReservationKey,
        how: Preempt,
    ) -> Result<(), ReservationError> {
        let (command, opcode) = match how {
            Preempt::AndAbort => (Command::PreemptAndAbort, PREEMPT_ABORT),
            Preempt::Only => (Command::Preempt, PREEMPT),
        };
        self.command(
            command,
            opcode,
            Preemption {
                old_key: own.get(),
                new_key: victim.get(),
                kind: WRITE_EXCLUSIVE,
                flags: 0,
            },
        )
    }

    fn holder(&self) -> Holder {
        let mut found = ReadReservation::default();
        // SAFETY: the struct that belongs to the opcode; it holds no pointer.
        let outcome = unsafe { call(&self.file, READ_RESERVATION, &mut found) };
        match outcome {
            Ok(0) if found.kind == 0 => Holder::Nobody,
            Ok(0) => Holder::Key {
                key: found.key,
                kind: found.kind,
            },
            // Most kernels in use don't have the call yet; the device can still be asked in its own language.
            _ => self.ask_device(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_positive_answer_is_no_success() {
        // As seen: 6.1 with SCSI, 7.2 with both, and NVMe's own number with the bit "do not retry".
        for status in [0x118, 0x18, 0x83, 0x4083] {
            let outcome = judge(Command::Reserve, Ok(status));
            assert!(
                matches!(outcome, Err(ReservationError::Conflict { .. })),
                "{status:#x}: {outcome:?}"
            );
        }
        let other = judge(Command::Reserve, Ok(2));
        assert!(matches!(
            other,
            Err(ReservationError::Status { status: 2, .. })
        ));
    }

    #[test]
    fn a_device_without_reservations_is_told_from_a_refusal() {
        let unsupported = [
            Err(Errno::OPNOTSUPP),
            Err(Errno::NOTTY),
            Err(Errno::INVAL),
            Ok(CHECK_CONDITION),
        ];
        for answer in unsupported {
            let outcome = judge(Command::Register, answer);
            assert!(
                matches!(outcome, Err(ReservationError::Unsupported { .. })),
                "{answer:?}"
            );
        }
        assert!(matches!(
            judge(Command::Register, Err(Errno::PERM)),
            Err(ReservationError::NotPermitted { .. })
        ));
        // Once REGISTER has worked, nothing may count as "has none" any more.
        assert!(matches!(
            judge(Command::PreemptAndAbort, Err(Errno::INVAL)),
            Err(ReservationError::Io { .. })
        ));
    }
}
