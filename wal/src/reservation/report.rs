//! Asking a device for its reservation in its own language, for kernels that have no call for it: SCSI's PERSISTENT RESERVE IN and
//! NVMe's Reservation Report, passed through. Whatever goes wrong here means "can't say"; nothing is changed on the device.
#![expect(
    unsafe_code,
    reason = "pass-through ioctls: structs of the kernel's layout with pointers to our buffers"
)]

use std::fs::File;
use std::ptr;

use rustix::ioctl::{Opcode, opcode};

use super::Holder;
use super::kernel::call;

/// Room for the answer: a header and, in NVMe's longer form, 63 registrants.
const ANSWER_LEN: usize = 4096;
const ANSWER_LEN_U32: u32 = 4096;
const _: () = assert!(ANSWER_LEN == ANSWER_LEN_U32 as usize);
/// How long the device may take, in milliseconds.
const TIMEOUT_MS: u32 = 20_000;

/// `struct sg_io_hdr`.
#[repr(C)]
struct ScsiCommand {
    interface_id: i32,
    transfer_direction: i32,
    command_len: u8,
    sense_max: u8,
    scatter_count: u16,
    transfer_len: u32,
    transfer: *mut u8,
    command: *mut u8,
    sense: *mut u8,
    timeout_ms: u32,
    flags: u32,
    pack_id: i32,
    user: *mut u8,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_written: u8,
    host_status: u16,
    driver_status: u16,
    residual: i32,
    duration: u32,
    info: u32,
}

/// `struct nvme_passthru_cmd`.
#[repr(C)]
#[derive(Default)]
struct NvmeCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<ScsiCommand>() == 88 || size_of::<*const u8>() != 8);
const _: () = assert!(size_of::<NvmeCommand>() == 72);

const SG_IO: Opcode = 0x2285;
const NVME_ID: Opcode = opcode::none(b'N', 0x40);
const NVME_IO: Opcode = opcode::read_write::<NvmeCommand>(b'N', 0x43);

/// Who holds the device, as far as it can be asked.
pub(super) fn holder(file: &File) -> Holder {
    nvme(file).or_else(|| scsi(file)).unwrap_or(Holder::Unknown)
}

fn scsi(file: &File) -> Option<Holder> {
    let mut answer = [0_u8; ANSWER_LEN];
    let mut sense = [0_u8; 64];
    // PERSISTENT RESERVE IN, READ RESERVATION; bytes 7 and 8 are the room for the answer, 4096.
    let mut command = [0x5e, 1, 0, 0, 0, 0, 0, 0x10, 0, 0];
    let mut request = ScsiCommand {
        interface_id: i32::from(b'S'),
        transfer_direction: -3, // from the device
        command_len: 10,
        sense_max: 64,
        scatter_count: 0,
        transfer_len: ANSWER_LEN_U32,
        transfer: answer.as_mut_ptr(),
        command: command.as_mut_ptr(),
        sense: sense.as_mut_ptr(),
        timeout_ms: TIMEOUT_MS,
        flags: 0,
        pack_id: 0,
        user: ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_written: 0,
        host_status: 0,
        driver_status: 0,
        residual: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: `sg_io_hdr` as SG_IO wants it; its pointers are to arrays above, of the lengths given, which outlive the call.
    let outcome = unsafe { call(file, SG_IO, &mut request) };
    let answered = outcome == Ok(0) && request.status == 0 && request.host_status == 0;
    answered.then(|| read_scsi(&answer))
}

/// PERSISTENT RESERVE IN's answer: generation and length of what follows; then key (8), obsolete (4), reserved (1), scope and type.
fn read_scsi(answer: &[u8; ANSWER_LEN]) -> Holder {
    let [_, _, _, _, a, b, c, d, rest @ ..] = answer;
    if u32::from_be_bytes([*a, *b, *c, *d]) < 16 {
        return Holder::Nobody;
    }
    let mut key = [0; 8];
    key.copy_from_slice(&rest[..8]);
    Holder::Key {
        key: u64::from_be_bytes(key),
        kind: match rest[13] & 15 {
            // The kernel's numbers: 1 and 2 are SCSI's 1 and 3, and the forms for registrants follow without a gap.
            1 => 1,
            other => u32::from(other).saturating_sub(if other == 3 { 1 } else { 2 }),
        },
    }
}

fn nvme(file: &File) -> Option<Holder> {
    // SAFETY: NVME_IOCTL_ID takes no argument; the pointer to a unit is not followed.
    let namespace = unsafe { call(file, NVME_ID, &mut ()) }.ok()?;
    // Hosts on a fabric have long names and need the long form; those on PCIe may have only the short one.
    [true, false]
        .into_iter()
        .find_map(|long| nvme_report(file, namespace, long))
}

fn nvme_report(file: &File, namespace: u32, long: bool) -> Option<Holder> {
    let mut answer = [0_u8; ANSWER_LEN];
    let mut request = NvmeCommand {
        opcode: 0x0e, // Reservation Report
        namespace,
        address: u64::try_from(answer.as_mut_ptr().expose_provenance()).ok()?,
        data_len: ANSWER_LEN_U32,
        cdw10: ANSWER_LEN_U32 / 4 - 1,
        cdw11: u32::from(long),
        timeout_ms: TIMEOUT_MS,
        ..NvmeCommand::default()
    };
    // SAFETY: `nvme_passthru_cmd` as NVME_IOCTL_IO_CMD wants it; `address` is that of an array of `data_len` bytes which outlives the
    // call.
    let outcome = unsafe { call(file, NVME_IO, &mut request) };
    (outcome == Ok(0)).then(|| read_nvme(&answer, long))
}

/// Reservation Report's answer: generation (4), type (1), number of registrants (2); each registrant says whether it holds.
fn read_nvme(answer: &[u8; ANSWER_LEN], long: bool) -> Holder {
    let kind = answer[4];
    if kind == 0 {
        return Holder::Nobody;
    }
    let registrants = usize::from(u16::from_le_bytes([answer[5], answer[6]]));
    let (start, each, key_at) = if long { (64, 64, 8) } else { (24, 24, 16) };
    let mut entries = answer[start..].chunks_exact(each).take(registrants);
    let Some(entry) = entries.find(|entry| entry[2] & 1 == 1) else {
        return Holder::Unknown;
    };
    let mut key = [0; 8];
    key.copy_from_slice(&entry[key_at..key_at + 8]);
    Holder::Key {
        key: u64::from_le_bytes(key),
        kind: u32::from(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::{ANSWER_LEN, Holder, read_nvme, read_scsi};

    #[test]
    fn a_scsi_answer_names_the_holder_or_nobody() {
        let mut answer = [0; ANSWER_LEN];
        assert_eq!(read_scsi(&answer), Holder::Nobody);
        answer[7] = 16;
        answer[8..16].copy_from_slice(&0x1234_u64.to_be_bytes());
        for (scsi, kind) in [(1, 1), (3, 2), (5, 3), (6, 4), (7, 5), (8, 6)] {
            answer[21] = scsi;
            assert_eq!(read_scsi(&answer), Holder::Key { key: 0x1234, kind });
        }
    }

    #[test]
    fn an_nvme_answer_names_the_holder_among_the_registrants() {
        let mut answer = [0; ANSWER_LEN];
        assert_eq!(read_nvme(&answer, true), Holder::Nobody);
        answer[4] = 1;
        answer[5] = 2;
        answer[64 + 64 + 2] = 1;
        answer[64 + 64 + 8..64 + 64 + 16].copy_from_slice(&77_u64.to_le_bytes());
        assert_eq!(read_nvme(&answer, true), Holder::Key { key: 77, kind: 1 });
        // In the short form the same bytes name no holder.
        assert_eq!(read_nvme(&answer, false), Holder::Unknown);
        answer[24 + 2] = 1;
        answer[24 + 16..24 + 24].copy_from_slice(&78_u64.to_le_bytes());
        assert_eq!(read_nvme(&answer, false), Holder::Key { key: 78, kind: 1 });
    }

    #[test]
    fn a_lying_count_of_registrants_is_no_reason_to_read_on() {
        let mut answer = [0; ANSWER_LEN];
        answer[4..7].copy_from_slice(&[1, 0xff, 0xff]);
        assert_eq!(read_nvme(&answer, true), Holder::Unknown);
        assert_eq!(read_nvme(&answer, false), Holder::Unknown);
    }
}
