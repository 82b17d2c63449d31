//! Each fault of the simulated device does what its name says: a simulation that is kinder than a disk proves nothing.

use super::*;

const BYTES: u64 = 16 * 4096;

fn device() -> SimDevice {
    SimDevice::new(DeviceGeometry {
        bytes: BYTES,
        logical_sector: 512,
        physical_sector: 4096,
    })
}

fn write(token: u64, offset: u64, fill: u8) -> Write {
    let mut buf = AlignedBuf::zeroed(4096);
    buf.as_mut_slice().fill(fill);
    Write { token, offset, buf }
}

fn bytes(device: &SimDevice, offset: u64) -> Vec<u8> {
    let mut buf = vec![0; 4096];
    device.read_at(offset, &mut buf).expect("readable");
    buf
}

#[test]
fn nothing_is_there_before_it_completes_and_completions_come_in_any_order() {
    let device = device();
    device.submit(write(1, 0, 1));
    device.submit(write(2, 4096, 2));
    assert_eq!(bytes(&device, 4096), vec![0; 4096]);
    let second = device.complete(1).expect("in flight");
    assert_eq!(second.token, 2);
    assert_eq!(bytes(&device, 0), vec![0; 4096]);
    assert_eq!(bytes(&device, 4096), vec![2; 4096]);
    assert_eq!(device.complete(1).expect("in flight").token, 1);
    assert!(device.complete(0).is_none());
    assert_eq!(device.take_events().len(), 6);
}

#[test]
fn what_a_killed_process_left_in_the_cache_needs_a_sync() {
    let geometry = device().geometry();
    let old = Image::zeroed(BYTES);
    let mut new = old.clone();
    new.write(0, &[7; 4096], Landed::First(3));
    let device = SimDevice::after_kill(geometry, old.clone(), new.clone());
    assert_eq!(bytes(&device, 0)[..1536], [7; 1536]);
    assert_eq!(bytes(&device, 0)[1536..], [0; 2560]);
    assert_eq!(device.durable(), old);
    device.sync().expect("no fault");
    assert_eq!(device.durable(), new);
}

#[test]
fn each_fault_of_a_write_shows_as_said() {
    let check = |fault: WriteFault, said: Result<usize, i32>, at_0: Vec<u8>, at_8192: u8| {
        let device = device();
        device.set_faults(Faults {
            writes: [(0, fault)].into(),
            ..Faults::default()
        });
        device.submit(write(1, 0, 9));
        let result = device.complete(0).expect("in flight").result;
        let result = result.map_err(|err| err.raw_os_error().expect("an errno"));
        assert_eq!((result, bytes(&device, 0)), (said, at_0), "{fault:?}");
        assert_eq!(bytes(&device, 8192)[0], at_8192, "{fault:?}");
    };
    let first = |sectors: usize| [vec![9; sectors * 512], vec![0; 4096 - sectors * 512]].concat();
    let errno = libc::EIO;
    let landed = Landed::First(2);
    check(WriteFault::Errno { errno, landed }, Err(errno), first(2), 0);
    check(WriteFault::Short { sectors: 3 }, Ok(1536), first(3), 0);
    check(WriteFault::Lost, Ok(4096), first(0), 0);
    check(WriteFault::Misdirected { to: 8192 }, Ok(4096), first(0), 9);
    let mut flipped = first(8);
    flipped[1] ^= 2;
    check(WriteFault::Flipped { bit: 9 }, Ok(4096), flipped, 0);
}

#[test]
fn each_fault_of_a_read_shows_once_and_unreadable_sectors_until_they_are_written() {
    let device = device();
    device.submit(write(1, 4096, 5));
    device.complete(0).expect("in flight");
    device.set_faults(Faults {
        reads: [
            (0, ReadFault::Errno { errno: libc::EIO }),
            (1, ReadFault::Flipped { bit: 0 }),
            (2, ReadFault::Misdirected { from: 0 }),
        ]
        .into(),
        syncs: [(0, libc::EIO)].into(),
        unreadable: std::iter::once(8192..8704).collect(),
        ..Faults::default()
    });
    let mut buf = vec![0; 512];
    assert!(device.read_at(4096, &mut buf).is_err());
    device.read_at(4096, &mut buf).expect("readable");
    assert_eq!(buf[..2], [4, 5]);
    device.read_at(4096, &mut buf).expect("readable");
    assert_eq!(buf[..2], [0, 0]);
    device.read_at(4096, &mut buf).expect("readable");
    assert_eq!(buf[..2], [5, 5]);
    assert!(device.read_at(8192, &mut buf).is_err());
    device.read_at(8704, &mut buf).expect("readable");
    device.submit(write(2, 8192, 1));
    device.complete(0).expect("in flight");
    device.read_at(8192, &mut buf).expect("written again");
    assert!(device.sync().is_err());
    device.sync().expect("one fault");
}

#[test]
fn the_end_of_the_device_is_a_short_write_and_then_no_space() {
    let device = device();
    let mut buf = AlignedBuf::zeroed(8192);
    buf.as_mut_slice().fill(1);
    device.submit(Write {
        token: 0,
        offset: BYTES - 4096,
        buf,
    });
    let completion = device.complete(0).expect("in flight");
    assert_eq!(completion.result.expect("short"), 4096);
    device.submit(write(1, BYTES, 1));
    assert!(device.complete(0).expect("in flight").result.is_err());
}

#[test]
fn a_late_write_lands_after_its_process_is_gone() {
    let device = device();
    device.push_late(LateWrite {
        offset: 4096,
        bytes: Arc::from(vec![3; 4096]),
        landed: Landed::All,
        after_operations: 3,
    });
    assert_eq!(bytes(&device, 4096)[0], 0);
    assert_eq!(bytes(&device, 4096)[0], 0);
    assert_eq!(bytes(&device, 4096)[0], 3);
}

#[test]
fn the_classes_tear_at_every_sector() {
    let classes = landed_classes(4096, 512, 4, 1);
    for sectors in 1..8 {
        assert!(classes.contains(&Landed::First(sectors)));
        assert!(classes.contains(&Landed::Last(sectors)));
    }
    assert!((1..7).all(|sector| classes.contains(&Landed::AllBut(sector))));
    assert_eq!(
        landed_classes(8192, 4096, 4, 1),
        [Landed::None, Landed::All, Landed::First(8), Landed::Last(8)]
    );
}
