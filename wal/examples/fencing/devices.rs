//! The fence itself, below the log: who can write, and what is still on its way when a take-over has returned.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use everlog_wal::AlignedBuf;
use everlog_wal::device::{
    self, Device, DeviceError, DeviceOptions, DirectDevice, Method, Write, WriteQueue,
    write_durable,
};
use everlog_wal::guard::{Fencing, Guard, GuardError, is_fenced};
use everlog_wal::reservation::{
    Holder, KernelReservations, Preempt, ReservationKey, Reservations, TakenOver,
};

use crate::{Case, Outcome, Volume, ensure};

pub(crate) const NVME: &[Case] = &[
    (
        "preempt_alone_lets_a_write_in_flight_land_later",
        preempt_alone_lets_a_write_in_flight_land_later,
    ),
    (
        "a_take_over_waits_for_a_write_in_flight",
        a_take_over_waits_for_a_write_in_flight,
    ),
    (
        "the_device_and_the_kernel_name_the_same_holder",
        the_device_and_the_kernel_name_the_same_holder,
    ),
    (
        "a_fenced_owner_that_registers_again_can_t_write",
        a_fenced_owner_that_registers_again_can_t_write,
    ),
    (
        "the_same_host_opens_again_and_again",
        the_same_host_opens_again_and_again,
    ),
];

pub(crate) const SCSI: &[Case] = &[
    (
        "preempt_fences_an_owner_with_nothing_in_flight",
        preempt_fences_an_owner_with_nothing_in_flight,
    ),
    (
        "the_device_and_the_kernel_name_the_same_holder",
        the_device_and_the_kernel_name_the_same_holder,
    ),
    (
        "a_fenced_owner_that_registers_again_can_t_write",
        a_fenced_owner_that_registers_again_can_t_write,
    ),
    (
        "the_same_host_opens_again_and_again",
        the_same_host_opens_again_and_again,
    ),
];

pub(crate) const SCSI_HANG: &[Case] = &[(
    "a_take_over_that_hangs_ends_at_its_deadline",
    a_take_over_that_hangs_ends_at_its_deadline,
)];

const LEN: usize = 4096;

/// Opens one side. SCSI's target hangs in "abort".
pub(crate) fn open(
    path: &Path,
    method: Method,
    preempt: Preempt,
) -> Result<DirectDevice, DeviceError> {
    let options = DeviceOptions {
        method,
        fencing: Fencing::Required,
        preempt,
        ..DeviceOptions::new(fresh_key())
    };
    device::open(path, &options)
}

/// A key that no opening before had.
fn fresh_key() -> ReservationKey {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0xe7e7_0000_0000_0001);
    ReservationKey::new(NEXT.fetch_add(1, Ordering::Relaxed)).expect("not 0")
}

/// What works on this volume: its name tells the transport.
pub(crate) fn usable(path: &Path) -> Preempt {
    if path.to_string_lossy().contains("nvme") {
        Preempt::AndAbort
    } else {
        Preempt::Only
    }
}

fn filled(byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(LEN);
    buf.as_mut_slice().fill(byte);
    buf
}

fn read(device: &DirectDevice, offset: u64) -> io::Result<u8> {
    let mut buf = AlignedBuf::zeroed(LEN);
    device.read_at(offset, buf.as_mut_slice())?;
    Ok(buf.as_slice()[0])
}

fn finish(queue: &mut dyn WriteQueue) -> io::Result<io::Result<usize>> {
    let mut done = Vec::new();
    while done.is_empty() {
        queue.wait(None, &mut done)?;
    }
    Ok(done.remove(0).result)
}

fn taken(device: &DirectDevice) -> Result<TakenOver, String> {
    match device.guard() {
        Some(Guard::Reserved(taken)) => Ok(*taken),
        other => Err(format!("not reserved: {other:?}")),
    }
}

/// An owner with a write that the device holds up, and then another owner.
struct TakeOver {
    old: DirectDevice,
    new: DirectDevice,
    /// What the new owner reads as soon as it may.
    seen: u8,
    /// How the old owner's write ended.
    outcome: io::Result<usize>,
    took: Duration,
    /// What the new owner reads after that.
    later: u8,
}

fn with_a_write_in_flight(
    volume: &Volume,
    preempt: Preempt,
) -> Result<TakeOver, Box<dyn std::error::Error>> {
    let old = open(&volume.first, Method::IoUring, usable(&volume.first))?;
    write_durable(&old, 0, filled(1))?;
    let mut queue = old.queue(2)?;
    queue.submit(Write {
        token: 0,
        offset: 0,
        buf: filled(2),
    });
    // So that it has left this machine. Should it not have, the control below fails.
    thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    let new = open(&volume.second, Method::Pwritev2, preempt)?;
    let took = begun.elapsed();
    let seen = read(&new, 0)?;
    let outcome = finish(queue.as_mut())?;
    let later = read(&new, 0)?;
    drop(queue);
    Ok(TakeOver {
        old,
        new,
        seen,
        outcome,
        took,
        later,
    })
}

/// The control: shows that the machine really holds a write up, and why PREEMPT alone is no fence for a log.
fn preempt_alone_lets_a_write_in_flight_land_later(volume: &Volume) -> Outcome {
    let it = with_a_write_in_flight(volume, Preempt::Only)?;
    ensure(it.seen == 1 && it.outcome.is_ok() && it.later == 2, || {
        format!(
            "read {} after {:?}, then {}; the write ended with {:?}",
            it.seen, it.took, it.later, it.outcome
        )
    })
}

fn a_take_over_waits_for_a_write_in_flight(volume: &Volume) -> Outcome {
    let it = with_a_write_in_flight(volume, Preempt::AndAbort)?;
    let said = || {
        format!(
            "read {} after {:?}, then {}; the write ended with {:?}",
            it.seen, it.took, it.later, it.outcome
        )
    };
    ensure(it.seen == it.later, said)?;
    ensure(it.outcome.is_err() || it.seen == 2, said)?;
    fenced(&it.old)?;
    write_durable(&it.new, 0, filled(3))?;
    Ok(())
}

/// A write of an owner that has been thrown out fails, and says why.
fn fenced(old: &DirectDevice) -> Outcome {
    let refused = write_durable(old, 0, filled(9));
    ensure(refused.as_ref().is_err_and(is_fenced), || {
        format!("the old owner's write ended with {refused:?}")
    })
}

fn preempt_fences_an_owner_with_nothing_in_flight(volume: &Volume) -> Outcome {
    let old = open(&volume.first, Method::IoUring, Preempt::Only)?;
    write_durable(&old, 0, filled(1))?;
    let new = open(&volume.second, Method::IoUring, Preempt::Only)?;
    let (before, after) = (taken(&old)?, taken(&new)?);
    ensure(after.preempted == Some(before.key), || {
        format!("{after:?} after {before:?}")
    })?;
    fenced(&old)?;
    ensure(read(&new, 0)? == 1, || "the device has changed".to_owned())?;
    write_durable(&new, 0, filled(2))?;
    fenced(&old)?;
    // Only a write can tell: this succeeds on SCSI and fails on NVMe, and neither proves anything.
    let _ = old.sync();
    Ok(())
}

fn the_device_and_the_kernel_name_the_same_holder(volume: &Volume) -> Outcome {
    let holder = open(&volume.second, Method::IoUring, usable(&volume.second))?;
    let key = taken(&holder)?.key.get();
    let wanted = Holder::Key { key, kind: 1 };
    // The device is claimed, so this asks through the other host's name of it.
    let asking = KernelReservations::new(std::fs::File::open(&volume.first)?);
    let found = (asking.holder(), asking.ask_device());
    ensure(found == (wanted, wanted), || format!("{found:?}"))
}

/// With another type of reservation it could: why there is only type 1 here.
fn a_fenced_owner_that_registers_again_can_t_write(volume: &Volume) -> Outcome {
    let old = open(&volume.first, Method::IoUring, usable(&volume.first))?;
    let new = open(&volume.second, Method::IoUring, usable(&volume.second))?;
    fenced(&old)?;
    let again = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&volume.first)?;
    KernelReservations::new(again).register(fresh_key())?;
    fenced(&old)?;
    write_durable(&new, 0, filled(4))?;
    Ok(())
}

fn the_same_host_opens_again_and_again(volume: &Volume) -> Outcome {
    for round in 0..3 {
        let owner = open(&volume.first, Method::IoUring, usable(&volume.first))?;
        let found = taken(&owner)?;
        ensure(
            found.confirmed && (found.preempted.is_none() || round == 0),
            || format!("round {round}: {found:?}"),
        )?;
        write_durable(&owner, 0, filled(5))?;
    }
    Ok(())
}

/// Leaves a thread in the kernel for good, so it is the last thing done in its machine.
fn a_take_over_that_hangs_ends_at_its_deadline(volume: &Volume) -> Outcome {
    let old = open(&volume.first, Method::IoUring, Preempt::Only)?;
    let options = DeviceOptions {
        fencing: Fencing::Required,
        fence_deadline: Duration::from_secs(8),
        ..DeviceOptions::new(fresh_key())
    };
    let begun = Instant::now();
    let outcome = device::open(&volume.second, &options);
    drop(old);
    ensure(
        matches!(
            outcome,
            Err(DeviceError::Guard {
                source: GuardError::Hung { .. },
                ..
            })
        ) && begun.elapsed() < Duration::from_secs(30),
        || {
            format!(
                "after {:?}: {outcome:?} (should the kernel have been mended, this test goes and the others may abort)",
                begun.elapsed()
            )
        },
    )
}
