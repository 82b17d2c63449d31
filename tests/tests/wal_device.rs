//! The log's devices on real block devices: who may open them, which guard holds, and what the kernel answers at their ends. Needs root
//! and loop devices, and fails without.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use everlog_tests::{Case, LoopDevice, wait_until};
use everlog_wal::AlignedBuf;
use everlog_wal::device::{
    self, Completion, Device, DeviceError, DeviceKind, DeviceOptions, Method, Write,
};
use everlog_wal::guard::{Fencing, GuardError, Unfenced};
use everlog_wal::reservation::ReservationKey;

const DEVICE_BYTES: u64 = 8 << 20;

fn options() -> DeviceOptions {
    DeviceOptions {
        claim_patience: Duration::ZERO,
        ..DeviceOptions::new(ReservationKey::new(1).expect("not 0"))
    }
}

fn completion(device: &dyn Device, offset: u64, len: usize) -> Result<Completion> {
    let mut queue = device.queue(2)?;
    queue.submit(Write {
        token: 0,
        offset,
        buf: AlignedBuf::zeroed(len),
    });
    let mut done = Vec::new();
    while done.is_empty() {
        queue.wait(None, &mut done)?;
    }
    done.pop().context("a completion")
}

#[test]
fn a_block_device_belongs_to_one_process_and_says_what_guards_it() {
    Case::run("wal-device-claim", |case| {
        for sector in [512, 4096] {
            let block = LoopDevice::attach(case, DEVICE_BYTES, sector)?;
            let first = device::open(block.path(), &options())?;
            let geometry = first.geometry();
            ensure!(geometry.bytes == DEVICE_BYTES && geometry.logical_sector == sector);
            ensure!(first.facts().kind == DeviceKind::Whole);
            ensure!(first.facts().disk_sequence.is_some());
            let guard = first.info().guard;
            ensure!(
                guard.contains("NOTHING keeps another host out")
                    && guard.contains("no persistent reservations"),
                "{guard}"
            );
            let second = device::open(block.path(), &options());
            ensure!(
                matches!(second, Err(DeviceError::Busy { .. })),
                "{second:?}"
            );
            // The kernel's claim holds against those who know nothing of us as well.
            let mounted = Command::new("mount")
                .args(["-t", "ext4"])
                .args([block.path(), Path::new("/mnt")])
                .output()?;
            let said = String::from_utf8_lossy(&mounted.stderr).into_owned();
            ensure!(
                !mounted.status.success() && said.contains("already mounted or mount point busy")
                    || said.contains("busy"),
                "mount said: {said}"
            );
            // Looking is allowed.
            device::open_read_only(block.path())?;
            drop(first);
            device::open(block.path(), &options())?;
        }
        Ok(())
    });
}

#[test]
fn fencing_is_refused_with_the_reason_where_it_can_t_be_had() {
    Case::run("wal-device-fencing", |case| {
        let block = LoopDevice::attach(case, DEVICE_BYTES, 512)?;
        let partition = partition_of(&block)?;
        let required = DeviceOptions {
            fencing: Fencing::Required,
            ..options()
        };
        let reason = |path: &Path| match device::open(path, &required) {
            Err(DeviceError::Guard {
                source: GuardError::Unfenced(reason),
                ..
            }) => Ok(reason),
            other => anyhow::bail!("{}: {other:?}", path.display()),
        };
        ensure!(matches!(reason(block.path())?, Unfenced::Unsupported(_)));
        ensure!(reason(&partition)? == Unfenced::Partition);

        // Without fencing a partition is as good as a device, and shuts out an opener of the whole.
        let open = device::open(&partition, &options())?;
        ensure!(open.facts().kind == DeviceKind::Partition);
        ensure!(open.facts().volatile_cache.is_some());
        ensure!(open.geometry().bytes == DEVICE_BYTES / 2);
        let whole = device::open(block.path(), &options());
        ensure!(matches!(whole, Err(DeviceError::Busy { .. })), "{whole:?}");
        Ok(())
    });
}

/// Writes a partition table with one partition over the second half.
fn partition_of(block: &LoopDevice) -> Result<PathBuf> {
    let mut table = [0_u8; 512];
    table[446 + 4] = 0x83;
    let half = u32::try_from(DEVICE_BYTES / 2 / 512)?.to_le_bytes();
    table[446 + 8..446 + 12].copy_from_slice(&half);
    table[446 + 12..446 + 16].copy_from_slice(&half);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = std::fs::File::options().write(true).open(block.path())?;
    file.write_all_at(&table, 0)?;
    file.sync_all()?;
    drop(file);
    let found = Command::new("partx")
        .arg("--add")
        .arg(block.path())
        .output();
    let found = found.context("partx is missing (package util-linux)")?;
    let partition = PathBuf::from(format!("{}p1", block.path().display()));
    wait_until("the partition", Duration::from_secs(10), || {
        Ok(partition.exists())
    })
    .with_context(|| String::from_utf8_lossy(&found.stderr).into_owned())?;
    Ok(partition)
}

#[test]
fn a_write_over_the_end_is_short_and_said_to_be() {
    Case::run("wal-device-end", |case| {
        for sector in [512, 4096] {
            let block = LoopDevice::attach(case, DEVICE_BYTES, sector)?;
            for method in [Method::IoUring, Method::Pwritev2] {
                let device = device::open(
                    block.path(),
                    &DeviceOptions {
                        method,
                        ..options()
                    },
                )?;
                let whole = completion(&device, DEVICE_BYTES - 8192, 8192)?;
                ensure!(whole.result? == 8192);
                let short = completion(&device, DEVICE_BYTES - 4096, 8192)?;
                ensure!(short.result? == 4096, "{method:?}: not short");
                let beyond = completion(&device, DEVICE_BYTES, 4096)?;
                ensure!(beyond.result.is_err(), "{method:?}: written beyond the end");
                let mut buf = AlignedBuf::zeroed(8192);
                let read = device.read_at(DEVICE_BYTES - 4096, buf.as_mut_slice());
                ensure!(read.is_err(), "{method:?}: a short read went unnoticed");
            }
        }
        Ok(())
    });
}
