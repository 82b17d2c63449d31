//! Both ways of writing against a real file, and who may open it.
#![expect(clippy::disallowed_methods, reason = "devices answer in real time")]

use std::path::PathBuf;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use super::{DeviceError, DeviceKind, DeviceOptions, DirectDevice, Method, open, open_read_only};
use crate::aligned::AlignedBuf;
use crate::device::{Completion, Device, Write, WriteQueue, create_file, write_durable};
use crate::guard::{Fencing, Guard, GuardError};
use crate::reservation::ReservationKey;

const MIB: u64 = 1 << 20;
const METHODS: [Method; 2] = [Method::IoUring, Method::Pwritev2];

fn options(method: Method) -> DeviceOptions {
    DeviceOptions {
        method,
        claim_patience: Duration::ZERO,
        ..DeviceOptions::new(ReservationKey::new(1).expect("not 0"))
    }
}

/// A file of 4 MiB in a folder that goes away with it.
fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    let mut heard = 0;
    create_file(&path, 4 * MIB, &mut |written| heard = written).expect("a file");
    assert_eq!(heard, 4 * MIB);
    (folder, path)
}

fn filled(len: usize, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    buf.as_mut_slice().fill(byte);
    buf
}

fn read(device: &DirectDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = AlignedBuf::zeroed(len);
    device.read_at(offset, buf.as_mut_slice()).expect("read");
    buf.as_slice().to_vec()
}

fn collect(queue: &mut dyn WriteQueue, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    while done.len() < count {
        queue.wait(None, &mut done).expect("a sound queue");
    }
    done
}

#[test]
fn what_was_written_is_read_back_with_many_in_flight() {
    for method in METHODS {
        for depth in [1, 2, 8] {
            let (_folder, path) = file();
            let device = open(&path, &options(method)).expect("open");
            let mut queue = device.queue(depth).expect("a queue");
            let mut round = 0_u8;
            while round < 40 {
                for slot in 0..depth {
                    queue.submit(Write {
                        token: slot as u64,
                        offset: slot as u64 * 65_536,
                        buf: filled(65_536, round + u8::try_from(slot).expect("few")),
                    });
                }
                let mut tokens: Vec<u64> = collect(queue.as_mut(), depth)
                    .iter()
                    .map(|completion| {
                        assert_eq!(*completion.result.as_ref().expect("written"), 65_536);
                        completion.token
                    })
                    .collect();
                tokens.sort_unstable();
                assert_eq!(tokens, (0..depth as u64).collect::<Vec<_>>());
                round += 10;
            }
            for slot in 0..depth {
                let byte = 30 + u8::try_from(slot).expect("few");
                assert!(
                    read(&device, slot as u64 * 65_536, 65_536)
                        .iter()
                        .all(|found| *found == byte),
                    "{method:?} {depth}"
                );
            }
        }
    }
}

#[test]
fn a_wait_ends_by_a_wake_or_by_its_time() {
    for method in METHODS {
        for depth in [1, 4] {
            let (_folder, path) = file();
            let device = open(&path, &options(method)).expect("open");
            let mut queue = device.queue(depth).expect("a queue");
            let mut done = Vec::new();
            let begun = Instant::now();
            queue
                .wait(Some(Duration::ZERO), &mut done)
                .expect("no wait");
            queue
                .wait(Some(Duration::from_millis(30)), &mut done)
                .expect("a short wait");
            assert!(begun.elapsed() >= Duration::from_millis(30));
            // A wake between two waits, or three: one wait ends by it, and only one.
            let waker: Waker = queue.waker();
            for _ in 0..3 {
                waker.wake_by_ref();
            }
            queue.wait(None, &mut done).expect("woken before");
            let begun = Instant::now();
            queue
                .wait(Some(Duration::from_millis(30)), &mut done)
                .expect("not woken");
            assert!(begun.elapsed() >= Duration::from_millis(30), "{method:?}");
            for _ in 0..100 {
                let waker = queue.waker();
                thread::spawn(move || waker.wake());
                queue.wait(None, &mut done).expect("woken");
            }
            assert!(done.is_empty());
        }
    }
}

#[test]
fn a_queue_that_is_dropped_leaves_nothing_on_its_way() {
    for method in METHODS {
        let (_folder, path) = file();
        let device = open(&path, &options(method)).expect("open");
        for byte in 0..20 {
            let mut queue = device.queue(4).expect("a queue");
            for slot in 0..4 {
                queue.submit(Write {
                    token: slot,
                    offset: slot * MIB,
                    buf: filled(1 << 20, byte),
                });
            }
            drop(queue);
            for slot in 0..4 {
                let found = read(&device, slot * MIB, 1 << 20);
                assert!(
                    found.iter().all(|found| *found == byte),
                    "{method:?} {byte} {slot}"
                );
            }
        }
    }
}

#[test]
fn a_write_that_the_kernel_refuses_is_a_failed_completion() {
    for method in METHODS {
        for depth in [1, 4] {
            let (_folder, path) = file();
            let device = open(&path, &options(method)).expect("open");
            let mut queue = device.queue(depth).expect("a queue");
            queue.submit(Write {
                token: 9,
                // Direct I/O takes no such offset.
                offset: 100,
                buf: filled(4096, 1),
            });
            let done = collect(queue.as_mut(), 1);
            assert_eq!(done[0].token, 9);
            let error = done[0].result.as_ref().expect_err("refused");
            assert_eq!(error.raw_os_error(), Some(22), "{method:?} {depth}");
        }
    }
}

#[test]
fn a_write_that_is_alone_is_told_like_any_other() {
    for method in METHODS {
        for depth in [1, 4] {
            let (_folder, path) = file();
            let device = open(&path, &options(method)).expect("open");
            let mut queue = device.queue(depth).expect("a queue");
            let at = |token: u64, offset: u64| Write {
                token,
                offset,
                buf: filled(4096, 7),
            };
            queue.submit_alone(at(1, 8192));
            let done = collect(queue.as_mut(), 1);
            assert_eq!((done.len(), done[0].token), (1, 1));
            assert_eq!(*done[0].result.as_ref().expect("written"), 4096);
            assert_eq!(read(&device, 8192, 4096), [7; 4096]);
            // Told once; then the others go on as ever.
            let mut none = Vec::new();
            let now = Some(Duration::ZERO);
            queue.wait(now, &mut none).expect("a sound queue");
            assert!(none.is_empty());
            queue.submit(at(2, 0));
            assert_eq!(collect(queue.as_mut(), 1)[0].token, 2);
            queue.submit_alone(at(3, 100));
            let done = collect(queue.as_mut(), 1);
            let error = done[0].result.as_ref().expect_err("refused");
            assert_eq!(error.raw_os_error(), Some(22), "{method:?} {depth}");
        }
    }
}

#[test]
fn a_second_opener_is_refused_and_a_reader_is_not() {
    let (_folder, path) = file();
    let first = open(&path, &options(Method::Best)).expect("open");
    assert_eq!(first.guard(), Some(&Guard::FileLock));
    assert_eq!(first.reservation_key(), 0);
    assert_eq!(first.facts().kind, DeviceKind::File);
    assert!(!first.facts().sparse);
    let second = open(&path, &options(Method::Best));
    assert!(
        matches!(second, Err(DeviceError::Busy { .. })),
        "{second:?}"
    );

    write_durable(&first, 4096, filled(4096, 7)).expect("written");
    let reader = open_read_only(&path).expect("looking is allowed");
    assert_eq!(read(&reader, 4096, 4096), vec![7; 4096]);
    let refused = write_durable(&reader, 4096, filled(4096, 8));
    assert!(refused.is_err());

    drop(first);
    open(&path, &options(Method::Best)).expect("free again");
}

#[test]
fn a_claim_that_is_about_to_be_given_back_is_waited_for() {
    let (_folder, path) = file();
    let first = open(&path, &options(Method::Best)).expect("open");
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        drop(first);
    });
    let patient = DeviceOptions {
        claim_patience: Duration::from_secs(10),
        ..options(Method::Best)
    };
    open(&path, &patient).expect("waited");
}

#[test]
fn fencing_can_t_be_had_on_a_file() {
    let (_folder, path) = file();
    let required = DeviceOptions {
        fencing: Fencing::Required,
        ..options(Method::Best)
    };
    let refused = open(&path, &required);
    assert!(
        matches!(
            refused,
            Err(DeviceError::Guard {
                source: GuardError::Unfenced(_),
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn a_file_is_made_once_and_an_unfinished_one_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    std::fs::write(folder.path().join("log.partial"), b"left behind").expect("written");
    create_file(&path, MIB + 4096, &mut |_| {}).expect("made");
    assert_eq!(std::fs::metadata(&path).expect("there").len(), MIB + 4096);
    assert!(!folder.path().join("log.partial").exists());
    let again = create_file(&path, MIB, &mut |_| {});
    assert!(matches!(again, Err(DeviceError::Open { .. })), "{again:?}");
    assert!(!folder.path().join("log.partial").exists());
    let odd = create_file(&folder.path().join("odd"), MIB + 100, &mut |_| {});
    assert!(matches!(odd, Err(DeviceError::Geometry { .. })), "{odd:?}");
    assert_eq!(std::fs::metadata(&path).expect("there").len(), MIB + 4096);
}

#[test]
fn a_folder_is_no_device() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = open(folder.path(), &options(Method::Best));
    assert!(
        matches!(refused, Err(DeviceError::Kind { .. })),
        "{refused:?}"
    );
}
