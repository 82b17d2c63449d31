//! One test for each row of the two tables, named by its letter.

use super::*;
use crate::{
    AlignedBuf,
    block::{self, EntryKind, NewEntry},
    core::{
        CoreConfig,
        bench::{Bench, UNIT, options, payload, stream},
    },
    device::{DeviceGeometry, ram::RamDevice},
    header::CopyFault,
};

const UNITS: usize = 128;

/// A log of `records` records, each in a block of its own, that lost its process.
fn log(records: u64) -> Bench {
    let mut bench = Bench::new(UNITS);
    for seq in 0..records {
        bench.append(1, &payload(1, seq, 100)).expect("room");
    }
    bench
}

fn found(device: &RamDevice) -> Scanned {
    scan(device, &ScanOptions::default()).expect("sound")
}

fn refused(device: &RamDevice) -> crate::error::Corruption {
    match scan(device, &ScanOptions::default()) {
        Err(OpenError::Corrupt(corruption)) => *corruption,
        other => panic!("not refused: {other:?}"),
    }
}

fn at(number: u64) -> u64 {
    UNIT as u64 + number * UNIT as u64
}

fn zero(device: &RamDevice, offset: u64) {
    device.damage(offset, |bytes| bytes[..UNIT].fill(0));
}

fn flip(device: &RamDevice, offset: u64) {
    device.damage(offset, |bytes| bytes[0] ^= 1);
}

fn copy(device: &RamDevice, from: u64, to: u64) {
    let mut unit = vec![0; UNIT];
    device.read_at(from, &mut unit).expect("in the device");
    device.damage(to, |bytes| bytes[..UNIT].copy_from_slice(&unit));
}

fn header_b() -> u64 {
    ((UNITS + 1) * UNIT) as u64
}

/// Writes a header into both copies, or one.
fn put_header(device: &RamDevice, header: &Header, slots: &[Slot]) {
    let ring = header.ring().expect("a ring");
    for slot in slots {
        let offset = ring.header(*slot);
        let mut unit = vec![0; UNIT];
        header.encode(*slot, offset, &mut unit);
        device.damage(offset, |bytes| bytes[..UNIT].copy_from_slice(&unit));
    }
}

/// Writes a block with one entry where it belongs.
fn put_block(device: &RamDevice, header: &BlockHeader, kind: EntryKind, seq: u64) {
    let ring = Ring::of(device.geometry()).expect("a ring");
    let entry = NewEntry {
        kind,
        stream: stream(1),
        seq: Seq::new(seq),
        payload: b"put here by a test".to_vec(),
    };
    let mut buf = AlignedBuf::zeroed(UNIT);
    let _ = block::encode(ring, *header, &[entry], &mut buf);
    device.damage(ring.physical(header.lsn), |bytes| {
        bytes[..UNIT].copy_from_slice(buf.as_slice());
    });
}

/// The header of a block that would be taken next.
fn next_block(scanned: &Scanned) -> BlockHeader {
    let end = scanned.end;
    BlockHeader {
        kind: crate::block::BlockKind::Data,
        epoch: scanned.header.epoch,
        durable: Lsn::ZERO,
        ..BlockHeader::gap_pad(scanned.header.id, 0, end.lsn, end.lsn, end.chain)
    }
}

#[test]
fn a_same_headers() {
    let scanned = found(&log(1).device);
    assert_eq!(scanned.recovery.header_case, HeaderCase::Same);
}

#[test]
fn b_one_header_damaged() {
    for (damaged, offset) in [(Slot::A, 0), (Slot::B, header_b())] {
        let device = log(3).device;
        flip(&device, offset + 40);
        let scanned = found(&device);
        let fault = CopyFault::Checksum;
        assert_eq!(
            scanned.recovery.header_case,
            HeaderCase::OneDamaged { damaged, fault }
        );
        assert_eq!(scanned.slot, damaged.other());
        assert_eq!(scanned.recovery.live_records, 3);
        // The opening writes the damaged copy first, so a crash in it leaves the sound one.
        let opened = Bench::open(device);
        assert_eq!(found(&opened.device).recovery.header_case, HeaderCase::Same);
    }
}

#[test]
fn c_one_header_older() {
    let bench = log(3);
    let newer = Header {
        generation: 1000,
        ..bench.core.header().clone()
    };
    for slot in Slot::BOTH {
        let device = bench.device.snapshot();
        put_header(&device, &newer, &[slot]);
        let scanned = found(&device);
        let older = slot.other();
        assert_eq!(scanned.recovery.header_case, HeaderCase::OneOlder { older });
        assert_eq!((scanned.slot, scanned.header.generation), (slot, 1000));
    }
}

#[test]
fn c_a_late_header_of_the_last_epoch_is_older_whatever_its_generation() {
    let bench = log(3).crash();
    let late = Header {
        generation: 1000,
        epoch: bench.core.header().epoch - 1,
        ..bench.core.header().clone()
    };
    let late = Header {
        gaps: Vec::new(),
        ..late
    };
    put_header(&bench.device, &late, &[Slot::A]);
    let scanned = found(&bench.device);
    assert_eq!(
        (scanned.slot, &scanned.header),
        (Slot::B, bench.core.header())
    );
}

#[test]
fn d_both_headers_damaged() {
    let device = log(1).device;
    flip(&device, 40);
    flip(&device, header_b() + 40);
    let error = scan(&device, &ScanOptions::default()).expect_err("no header");
    assert!(matches!(error, OpenError::HeadersLost { .. }), "{error}");
    let error = scan(&RamDevice::new(1 << 20), &ScanOptions::default()).expect_err("no log");
    assert!(matches!(error, OpenError::NotALog { .. }), "{error}");
}

#[test]
fn e_two_headers_that_contradict_each_other() {
    let bench = log(1);
    let other = Header {
        reservation_key: 5,
        ..bench.core.header().clone()
    };
    put_header(&bench.device, &other, &[Slot::B]);
    let corruption = refused(&bench.device);
    assert_eq!(corruption.case, Case::Headers);
    // It used to say H, for which the remedy is another one.
    assert!(
        corruption.to_string().starts_with("case e at"),
        "{corruption}"
    );
    let other = Header {
        id: LogId::new([1; 16]),
        generation: 77,
        ..bench.core.header().clone()
    };
    put_header(&bench.device, &other, &[Slot::B]);
    assert_eq!(refused(&bench.device).case, Case::Headers);
}

#[test]
fn a_changed_device_is_refused_and_a_grown_one_is_not() {
    let bench = log(2);
    let geometry = bench.device.geometry();
    let resized = |bytes: u64, physical_sector| {
        let device = RamDevice::with_geometry(DeviceGeometry {
            bytes,
            physical_sector,
            ..geometry
        });
        let len = usize::try_from(bytes.min(geometry.bytes)).expect("fits");
        let mut all = vec![0; len];
        bench.device.read_at(0, &mut all).expect("in the device");
        device.damage(0, |bytes| bytes[..len].copy_from_slice(&all));
        scan(&device, &ScanOptions::default())
    };
    let grown = resized(geometry.bytes + 10 * 4096, 4096).expect("larger is fine");
    assert_eq!(grown.recovery.grown_by, 10 * 4096);
    for error in [
        resized(geometry.bytes - 4096, 4096).expect_err("smaller"),
        resized(geometry.bytes, 8192).expect_err("larger sectors"),
    ] {
        assert!(matches!(error, OpenError::DeviceChanged(_)), "{error}");
    }
}

#[test]
fn case_a_blocks_are_taken_up_to_the_end() {
    let scanned = found(&log(5).device);
    assert_eq!(scanned.recovery.live_records, 5);
    assert_eq!(scanned.recovery.end.case, Case::C);
}

#[test]
fn case_b_a_gap_is_jumped_whatever_lies_in_it() {
    let mut bench = log(2);
    let before = found(&bench.device);
    bench = bench.crash();
    let gap = bench.core.header().gaps[0];
    assert_eq!(gap.from, before.end.lsn);
    bench.append(1, b"in the new epoch").expect("room");
    // A late write of the dead process: a block that would have been taken.
    put_block(&bench.device, &next_block(&before), EntryKind::Record, 2);
    let scanned = found(&bench.device);
    assert_eq!(scanned.recovery.live_records, 3);
    let [pad] = scanned.padless.as_slice() else {
        panic!("{:?}", scanned.padless)
    };
    assert_eq!(
        (pad.lsn, pad.end(), pad.epoch),
        (gap.from, gap.to, gap.epoch)
    );
    zero(&bench.device, at(2));
    assert_eq!(found(&bench.device).recovery.live_records, 3);
}

#[test]
fn case_c_the_last_block_of_another_lap_or_none_is_the_end() {
    let device = log(3).device;
    let end = found(&device).recovery.end;
    assert_eq!((end.case, end.reason), (Case::C, EndReason::Foreign));
    assert_eq!(end.at, Lsn::new(3 * UNIT as u64));
    flip(&device, at(2) + 50);
    let end = found(&device).recovery.end;
    assert_eq!((end.case, end.reason), (Case::C, EndReason::HeaderChecksum));
}

#[test]
fn case_d_blocks_that_were_in_flight_are_dropped_and_counted() {
    let device = log(3).device;
    let scanned = found(&device);
    let island = BlockHeader {
        lsn: scanned.end.lsn.plus(UNIT as u64),
        durable: scanned.end.lsn,
        chain: 99,
        ..next_block(&scanned)
    };
    put_block(&device, &island, EntryKind::Record, 4);
    let scanned = found(&device);
    assert_eq!(scanned.recovery.end.case, Case::D);
    assert_eq!(scanned.recovery.end.islands.blocks, 1);
    assert_eq!(scanned.recovery.live_records, 3);
}

#[test]
fn case_e_a_lost_block_that_was_acknowledged_is_reported() {
    // By a block behind it.
    for number in 0..2 {
        let device = log(3).device;
        zero(&device, at(number));
        let corruption = refused(&device);
        assert_eq!((corruption.case, corruption.offset), (Case::E, at(number)));
    }
    // By the header.
    let mut bench = log(3);
    bench.core.idle();
    bench.run();
    flip(&bench.device, at(2) + 60);
    assert_eq!(refused(&bench.device).case, Case::E);
}

#[test]
fn case_f_a_damaged_payload_is_named_unless_nobody_misses_it() {
    let device = log(3).device;
    flip(&device, at(1) + 200);
    let corruption = refused(&device);
    assert_eq!(corruption.case, Case::F);
    assert_eq!(corruption.lost, [(stream(1), Seq::new(1))]);
    let mut bench = log(3);
    bench.core.sync_trim(0, stream(1), Seq::new(2));
    bench.run();
    flip(&bench.device, at(1) + 200);
    let scanned = found(&bench.device);
    assert_eq!(scanned.recovery.damaged_dead, [(stream(1), Seq::new(1))]);
    assert_eq!(scanned.recovery.live_records, 1);
}

#[test]
fn case_g_a_misdirected_block_is_reported() {
    for number in [1, 3, 4] {
        let device = log(3).device;
        copy(&device, at(0), at(number));
        let corruption = refused(&device);
        assert_eq!(corruption.case, Case::G, "{corruption}");
    }
}

#[test]
fn case_h_a_header_older_than_the_log_is_reported() {
    let mut bench = log(1);
    let old = bench.core.header().clone();
    // On to where the old header allows no block.
    for seq in 1..60 {
        bench.append(1, &payload(1, seq, 3000)).expect("room");
        bench.core.trim(stream(1), Seq::new(seq)).expect("durable");
    }
    assert!(bench.core.head() > old.limit);
    put_header(&bench.device, &old, &Slot::BOTH);
    assert_eq!(refused(&bench.device).case, Case::H);
    // Of an epoch before the last one: whatever it says of the limit.
    let bench = log(1);
    let old = bench.core.header().clone();
    let mut bench = bench.crash();
    bench.append(1, b"in the new epoch").expect("room");
    put_header(&bench.device, &old, &Slot::BOTH);
    assert_eq!(refused(&bench.device).case, Case::H);
}

#[test]
fn case_i_a_gap_in_the_numbers_is_reported() {
    let device = log(3).device;
    put_block(&device, &next_block(&found(&device)), EntryKind::Record, 4);
    let corruption = refused(&device);
    assert_eq!(corruption.case, Case::I);
    assert_eq!(corruption.lost, [(stream(1), Seq::new(3))]);
}

#[test]
fn case_j_a_number_given_out_twice_is_reported() {
    let device = log(3).device;
    put_block(&device, &next_block(&found(&device)), EntryKind::Record, 2);
    assert_eq!(refused(&device).case, Case::J);
    let device = log(3).device;
    put_block(
        &device,
        &next_block(&found(&device)),
        EntryKind::Relocated,
        2,
    );
    assert_eq!(found(&device).recovery.live_records, 3);
}

#[test]
fn a_window_of_one_block_opens_closes_and_opens() {
    let config = CoreConfig {
        block_bytes_max: UNIT as u64,
        window_bytes_min: Some(UNIT as u64),
        window_bytes_max: Some(UNIT as u64),
        depth: 1,
    };
    let device = RamDevice::new((UNITS + 2) * UNIT);
    crate::format::format(&device, &options()).expect("formats");
    let mut bench = Bench::open_with(device, config.clone());
    for seq in 0..500 {
        bench.append(1, &payload(1, seq, 100)).expect("room");
        bench.core.trim(stream(1), Seq::new(seq)).expect("durable");
    }
    let bench = Bench::open_with(bench.close(), config);
    let live = bench.live(1);
    assert_eq!(live.end, 500);
    assert!(live.start <= 499);
}

/// A large device of zeros but for some units, which counts how much is asked for at a time.
#[derive(Debug)]
struct Vast {
    bytes: u64,
    units: Vec<(u64, Vec<u8>)>,
    largest_read: std::sync::atomic::AtomicUsize,
}

impl Device for Vast {
    fn geometry(&self) -> DeviceGeometry {
        DeviceGeometry {
            bytes: self.bytes,
            logical_sector: 512,
            physical_sector: 4096,
        }
    }

    fn info(&self) -> crate::device::DeviceInfo {
        RamDevice::new(UNIT).info()
    }

    fn reservation_key(&self) -> u64 {
        5
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let ordering = std::sync::atomic::Ordering::Relaxed;
        self.largest_read.fetch_max(buf.len(), ordering);
        buf.fill(0);
        for (at, unit) in &self.units {
            if let Some(start) = at.checked_sub(offset) {
                let start = usize::try_from(start).expect("fits");
                if let Some(place) = buf.get_mut(start..start + UNIT) {
                    place.copy_from_slice(unit);
                }
            }
        }
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn queue(&self, _depth: usize) -> std::io::Result<Box<dyn crate::device::WriteQueue>> {
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// A header of a block that says it is half of the ring used to make recovery, `export` and a reader take as much memory.
#[test]
fn no_block_header_asks_for_more_memory_than_a_block_may_have() {
    let bytes: u64 = 2 << 30;
    let ring = Ring::new(UNIT as u64, bytes).expect("a ring");
    let block_bytes = ring.round_down(ring.bytes() / 4);
    let mut header = log(1).core.header().clone();
    header.device.bytes = bytes;
    header.limit = Lsn::new(block_bytes);
    let mut units = Vec::new();
    for slot in Slot::BOTH {
        let mut unit = vec![0; UNIT];
        header.encode(slot, ring.header(slot), &mut unit);
        units.push((ring.header(slot), unit));
    }
    let block = BlockHeader {
        kind: crate::block::BlockKind::Data,
        bytes: block_bytes,
        entries: 1,
        payload_bytes: block_bytes - 191 - 64,
        ..BlockHeader::gap_pad(header.id, header.epoch, Lsn::ZERO, Lsn::ZERO, 0)
    };
    let mut unit = vec![0; UNIT];
    block.encode(&mut unit);
    units.push((UNIT as u64, unit));
    let device = Vast {
        bytes,
        units,
        largest_read: 0.into(),
    };
    let end = scan(&device, &ScanOptions::default()).expect("a torn block");
    assert_eq!(end.recovery.end.reason, EndReason::HeaderChecksum);
    // What the device is reserved with comes from the device.
    assert_eq!(end.reservation_key, 5);
    let lsn = Lsn::ZERO;
    assert!(matches!(
        crate::reader::read_block(&device, ring, header.id, lsn),
        Ok(None)
    ));
    let largest = device.largest_read.into_inner() as u64;
    assert!(largest <= crate::geometry::BLOCK_BYTES_CEILING, "{largest}");
}

#[test]
fn reading_ahead_finds_the_same_log_also_around_a_bad_sector() {
    // Blocks of many sizes, over the end of a lap, some larger than what is read at a time.
    let mut bench = Bench::new(UNITS);
    for seq in 0..300u64 {
        let bytes = 100 + usize::try_from(seq % 9).expect("small") * 3500;
        bench.append(1, &payload(1, seq, bytes)).expect("room");
        let below = Seq::new(seq.saturating_sub(10));
        bench.core.trim(stream(1), below).expect("durable");
    }
    let read = |piece_units: u64| {
        let options = ScanOptions {
            piece_bytes: piece_units * UNIT as u64,
            ..ScanOptions::default()
        };
        let mut seen = Vec::new();
        let scanned = scan_with(&bench.device, &options, &mut |header, block| {
            let intact = block.is_none_or(|block| block.records().all(|record| record.intact));
            seen.push((header.lsn, header.bytes, intact));
        });
        (scanned.expect("sound").recovery.end, seen)
    };
    // All at once and without a thread; the others with one.
    let plain = read(UNITS as u64);
    assert!(plain.1.len() > 10);
    for piece in [1, 2, 3, 5, 16] {
        assert_eq!(read(piece), plain, "pieces of {piece} units");
    }
}
