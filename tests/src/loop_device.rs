//! A loop device with direct I/O and a chosen sector size, for tests of the log on real block devices.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::Case;

/// A loop device over a file in the test's folder. Detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches a file of `bytes`, all of it allocated. Fails, naming what is missing, on a machine that can't have loop devices: to skip
    /// would be to claim something that nobody looked at.
    pub fn attach(case: &Case, bytes: u64, sector_bytes: u32) -> Result<LoopDevice> {
        if !Path::new("/dev/loop-control").exists() {
            bail!("this machine has no loop devices (no /dev/loop-control; modprobe loop)");
        }
        let file = case.path(&format!("loop-{sector_bytes}"));
        std::fs::write(&file, [])?;
        let allocated = Command::new("fallocate")
            .args(["--length", &bytes.to_string()])
            .arg(&file)
            .status()
            .context("fallocate is missing (package util-linux)")?;
        if !allocated.success() {
            bail!("no room for a file of {bytes} bytes in {}", file.display());
        }
        let output = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on", "--sector-size"])
            .arg(sector_bytes.to_string())
            .arg(&file)
            .output()
            .context("losetup is missing (package mount)")?;
        if !output.status.success() {
            bail!(
                "losetup could not attach a loop device with sectors of {sector_bytes} bytes and direct I/O (root is needed): {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let device = LoopDevice { path };
        // Older versions of losetup warn and go on without.
        let name = device.path.file_name().context("a device")?;
        let queue = Path::new("/sys/block").join(name);
        let direct = std::fs::read_to_string(queue.join("loop/dio"))?;
        let sector = std::fs::read_to_string(queue.join("queue/logical_block_size"))?;
        if direct.trim() != "1" || sector.trim() != sector_bytes.to_string() {
            bail!(
                "the loop device has sectors of {} bytes and direct I/O {}",
                sector.trim(),
                direct.trim()
            );
        }
        Ok(device)
    }

    /// Its path in `/dev`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
    }
}
