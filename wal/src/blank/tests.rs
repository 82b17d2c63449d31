//! Each format is found by its magic bytes alone, at each of its places, and an empty device has nothing.

use std::io;

use super::signature::SIGNATURES;
use super::*;
use crate::Lsn;
use crate::device::ram::RamDevice;
use crate::device::{DeviceGeometry, DeviceInfo, WriteQueue};

const MIB: u64 = 1 << 20;

/// A sparse device in memory, of which some bytes are not zero.
#[derive(Debug, Default)]
struct Sparse {
    bytes: u64,
    written: Vec<(u64, Vec<u8>)>,
    is_broken: bool,
}

impl Device for Sparse {
    fn geometry(&self) -> DeviceGeometry {
        DeviceGeometry {
            bytes: self.bytes,
            logical_sector: 512,
            physical_sector: 4096,
        }
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "sparse".to_owned(),
            method: "memory",
            guard: String::new(),
        }
    }

    fn reservation_key(&self) -> u64 {
        0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset + u64::try_from(buf.len()).expect("fits");
        assert!(offset.is_multiple_of(64 << 10), "{offset}");
        assert!(end.is_multiple_of(512) && end <= self.bytes, "{end}");
        if self.is_broken {
            return Err(io::ErrorKind::Other.into());
        }
        for (at, bytes) in &self.written {
            for (position, byte) in (*at..).zip(bytes) {
                if (offset..end).contains(&position) {
                    buf[usize::try_from(position - offset).expect("fits")] = *byte;
                }
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn queue(&self, _depth: usize) -> io::Result<Box<dyn WriteQueue>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

fn with(bytes: u64, at: u64, what: &[u8]) -> Vec<String> {
    let device = Sparse {
        bytes,
        written: vec![(at, what.to_vec())],
        ..Sparse::default()
    };
    look(&device).iter().map(|find| find.thing.name()).collect()
}

#[test]
fn an_empty_device_has_nothing() {
    for bytes in [0, 512, 4096, 3 * MIB + 512, 200 * MIB, 1 << 40] {
        let device = Sparse {
            bytes,
            ..Sparse::default()
        };
        assert_eq!(look(&device), [], "{bytes}");
    }
}

#[test]
fn every_format_is_found_at_each_of_its_places() {
    // No multiple of any power of two, so that places counted from the end differ.
    let bytes = (300 << 30) + 3 * MIB + 5 * 4096;
    let mut checked = 0;
    for signature in SIGNATURES {
        for offset in signature.offsets(bytes) {
            assert_eq!(
                with(bytes, offset, signature.magic()),
                [signature.name],
                "{} at {offset}",
                signature.what
            );
            checked += 1;
        }
    }
    assert!(checked > 80, "{checked}");
}

fn header(bytes: u64) -> Header {
    Header {
        id: LogId::new(*b"0123456789abcdef"),
        generation: 1,
        epoch: 1,
        device: DeviceGeometry {
            bytes,
            logical_sector: 512,
            physical_sector: 4096,
        },
        unit: 4096,
        clean: true,
        tail: Lsn::ZERO,
        tail_chain: 0,
        limit: Lsn::ZERO,
        durable: Lsn::ZERO,
        record_bytes_max: 1 << 20,
        reservation_key: 0,
        wall_ms: 0,
        formatted_ms: 0,
        gaps: Vec::new(),
    }
}

#[test]
fn a_log_is_known_by_either_copy_of_its_header() {
    let bytes = 64 * MIB + 512;
    let header = header(bytes);
    let ring = header.ring().expect("a ring");
    let copy = |slot| {
        let mut copy = vec![0; COPY_BYTES];
        header.encode(slot, ring.header(slot), &mut copy);
        copy
    };
    let own = format!("everlog:{}", header.id);
    let (a, b) = (copy(Slot::A), copy(Slot::B));
    let b_at = ring.header(Slot::B);
    assert_eq!(with(bytes, 0, &a), std::slice::from_ref(&own));
    assert_eq!(with(bytes, b_at, &b), std::slice::from_ref(&own));
    let mut torn = a.clone();
    torn[40] ^= 1;
    assert_eq!(with(bytes, 0, &torn), ["everlog:damaged"]);
    let device = Sparse {
        bytes,
        written: vec![(0, torn), (b_at, b)],
        ..Sparse::default()
    };
    let names: Vec<String> = look(&device).iter().map(|f| f.thing.name()).collect();
    assert_eq!(names, [own], "one copy that is sound names both");
}

#[test]
fn what_has_no_name_is_data_wherever_it_lies() {
    let bytes = 10 << 30;
    for place in places(bytes) {
        for at in [place.start, place.end - 1] {
            assert_eq!(with(bytes, at, &[1]), ["data"], "{at}");
        }
    }
}

#[test]
fn a_boot_sector_is_named_only_where_it_is_alone() {
    let mut device = Sparse {
        bytes: 64 * MIB,
        written: vec![(510, vec![0x55, 0xaa])],
        ..Sparse::default()
    };
    assert_eq!(look(&device)[0].thing.name(), "mbr");
    device.written.push((512, b"EFI PART".to_vec()));
    let finds = look(&device);
    assert_eq!(finds.len(), 1);
    assert_eq!(finds[0].thing.name(), "gpt");
    assert_eq!(
        finds[0].to_string(),
        "a GPT partition table (`gpt`) at byte 512"
    );
}

#[test]
fn things_that_lie_on_each_other_are_each_named() {
    let mut device = Sparse {
        bytes: 640 * MIB,
        written: vec![(1024 + 56, vec![0x53, 0xef])],
        ..Sparse::default()
    };
    device.written.push(((64 << 10) + 64, b"_BHRfS_M".to_vec()));
    let names: Vec<String> = look(&device).iter().map(|f| f.thing.name()).collect();
    assert_eq!(names, ["ext", "btrfs"]);
}

#[test]
fn a_place_that_cannot_be_read_is_not_empty() {
    let device = Sparse {
        bytes: 64 * MIB,
        is_broken: true,
        ..Sparse::default()
    };
    let finds = look(&device);
    assert_eq!(finds.len(), 1);
    assert_eq!(finds[0].thing, Thing::Unreadable);
}

#[test]
fn only_what_is_named_goes_and_then_nothing_of_it_is_left() {
    let device = RamDevice::new(12 << 20);
    assert_eq!(prepare(&device, &[]).expect("empty"), []);
    assert_eq!(device.writes(), 0, "an empty device is left as it is");
    device.damage(0, |bytes| {
        bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
        bytes[(64 << 10) + 64..][..8].copy_from_slice(b"_BHRfS_M");
        bytes[(12 << 20) - 512..][..8].copy_from_slice(b"EFI PART");
    });
    let all: Vec<String> = ["ext", "btrfs", "gpt"].map(str::to_owned).into();
    for missing in 0..all.len() {
        let mut named = all.clone();
        let kept = named.remove(missing);
        let refused = prepare(&device, &named).expect_err("one was not named");
        assert!(
            refused.to_string().contains(&format!("`{kept}`")),
            "{refused}"
        );
    }
    assert_eq!(device.writes(), 0, "a refusal changes nothing");
    assert_eq!(prepare(&device, &all).expect("all were named").len(), 3);
    assert_eq!(look(&device), []);
}

#[test]
fn places_cover_both_ends_in_order_and_no_byte_twice() {
    for bytes in [512, 4096, 5 * MIB, 9 * MIB + 512, 1 << 30, (1 << 40) + 512] {
        let places = places(bytes);
        let first = places.first().expect("a place");
        assert_eq!(first.start, 0);
        assert!(first.end >= EDGE_LEN.min(bytes));
        let last = places.last().expect("a place");
        assert_eq!(last.end, bytes);
        assert!(last.start <= bytes.saturating_sub(EDGE_LEN));
        for pair in places.windows(2) {
            assert!(pair[0].end < pair[1].start, "{pair:?}");
        }
        let read: u64 = places.iter().map(|place| place.end - place.start).sum();
        assert!(read <= 32 * MIB, "{read}");
    }
}
