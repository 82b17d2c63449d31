//! The state machine on a device in memory.

use super::{
    bench::{BadRead, Bench, UNIT, payload, stream},
    *,
};
use crate::{
    Device as _,
    device::ram::RamDevice,
    geometry::Slot,
    recovery::{Case, ScanOptions, scan},
};

#[test]
fn what_was_appended_is_read_back_before_and_after_a_crash_and_a_close() {
    let mut bench = Bench::new(256);
    for seq in 0..5u64 {
        for id in 0..3 {
            assert_eq!(bench.append(id, &payload(id, seq, 1000)), Ok(Seq::new(seq)));
        }
    }
    let check = |bench: &Bench| {
        for id in 0..3 {
            assert_eq!(bench.live(id), 0..5);
            for seq in 0..5 {
                let read = bench.read(id, seq).expect("live");
                assert_eq!(read, payload(id, seq, 1000));
            }
        }
    };
    check(&bench);
    let bench = bench.crash();
    check(&bench);
    assert_eq!(bench.core.header().gaps.len(), 1);
    let bench = Bench::open(bench.close());
    check(&bench);
    assert_eq!(bench.core.header().epoch, 3);
}

#[test]
fn three_laps_of_records_that_are_drained_and_crashes_in_between() {
    let mut bench = Bench::new(128);
    let mut next = [0u64; 4];
    for round in 0..600u64 {
        let id = u8::try_from(round % 4).expect("small");
        let slot = usize::from(id);
        let bytes = 1000 + usize::try_from(round % 7).expect("small") * 900;
        let seq = bench.append(id, &payload(id, next[slot], bytes));
        assert_eq!(seq, Ok(Seq::new(next[slot])), "round {round}");
        next[slot] += 1;
        let below = next[slot].saturating_sub(3);
        bench
            .core
            .trim(stream(id), Seq::new(below))
            .expect("durable");
        if round % 37 == 36 {
            bench = bench.crash();
        }
        for (id, next) in (0u8..).zip(next) {
            let live = bench.live(id);
            assert_eq!(live.end, next, "round {round}");
            assert!(live.start <= next.saturating_sub(3).max(live.start));
            for seq in live {
                let read = bench.read(id, seq).expect("live");
                assert_eq!(read[..8], seq.to_le_bytes());
            }
        }
    }
    assert!(bench.core.usage().laps >= 3, "{:?}", bench.core.usage());
}

#[test]
fn a_stuck_stream_is_moved_and_does_not_pin_the_ring() {
    let mut bench = Bench::new(256);
    for seq in 0..4 {
        bench.append(0, &payload(0, seq, 3000)).expect("room");
    }
    for seq in 0..2000u64 {
        let done = bench.append(1, &payload(1, seq, 3000));
        assert_eq!(done, Ok(Seq::new(seq)));
        bench
            .core
            .trim(stream(1), Seq::new(seq + 1))
            .expect("durable");
        if seq % 301 == 300 {
            bench = bench.crash();
            assert_eq!(bench.live(0), 0..4);
            let below = Seq::new(seq + 1);
            bench.core.trim(stream(1), below).expect("durable");
        }
    }
    assert!(bench.core.usage().laps >= 5);
    for seq in 0..4 {
        assert_eq!(bench.read(0, seq).expect("live"), payload(0, seq, 3000));
    }
}

#[test]
fn a_full_log_refuses_the_culprit_first_and_then_all_and_recovers_by_trims() {
    let mut bench = Bench::new(256);
    let mut refusals = Vec::new();
    for seq in 0..1000 {
        if let Err(error) = bench.append(0, &payload(0, seq, 3000)) {
            refusals.push(error);
            break;
        }
    }
    assert_eq!(refusals, [AppendError::StreamFull]);
    assert_eq!(bench.core.usage().culprit, Some(stream(0)));
    let mut others = 0;
    let last = loop {
        match bench.append(1, &payload(1, others, 3000)) {
            Ok(_) => others += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(last, AppendError::Full);
    assert!(others > 0);
    let mut bench = bench.crash();
    assert_eq!(bench.append(1, b"more"), Err(AppendError::Full));
    // A mark finds room even now.
    bench.core.sync_trim(1, stream(1), Seq::new(1));
    bench.run();
    assert_eq!(bench.trimmed.get(&1), Some(&Ok(())));
    let all = Seq::new(bench.live(0).end);
    bench.core.trim(stream(0), all).expect("durable");
    assert!(bench.append(0, b"again").is_ok());
    let bench = bench.crash();
    assert_eq!(bench.live(0), all.get()..all.get() + 1);
    assert_eq!(bench.live(1), 1..others);
}

#[test]
fn numbers_go_on_after_everything_was_trimmed_and_overwritten() {
    let mut bench = Bench::new(128);
    for seq in 0..3 {
        bench.append(0, &payload(0, seq, 100)).expect("room");
    }
    bench.core.trim(stream(0), Seq::new(3)).expect("durable");
    for seq in 0..1000 {
        bench.append(1, &payload(1, seq, 3000)).expect("room");
        let below = Seq::new(seq + 1);
        bench.core.trim(stream(1), below).expect("durable");
    }
    let mut bench = bench.crash();
    assert_eq!(bench.append(0, b"the fourth record"), Ok(Seq::new(3)));
}

#[test]
fn a_synced_trim_holds_after_a_crash() {
    let mut bench = Bench::new(128);
    for seq in 0..10 {
        bench.append(0, &payload(0, seq, 100)).expect("room");
    }
    bench.core.sync_trim(5, stream(0), Seq::new(7));
    bench.run();
    assert_eq!(bench.trimmed.get(&5), Some(&Ok(())));
    let mut bench = bench.crash();
    assert_eq!(bench.live(0), 7..10);
    bench.core.sync_trim(6, stream(0), Seq::new(11));
    bench.core.sync_trim(7, stream(8), Seq::new(1));
    bench.run();
    let next = Seq::new(10);
    assert_eq!(
        bench.trimmed.get(&6),
        Some(&Err(TrimError::BeyondEnd { next }))
    );
    assert_eq!(bench.trimmed.get(&7), Some(&Err(TrimError::UnknownStream)));
}

#[test]
fn openings_that_write_nothing_use_no_room() {
    let mut bench = Bench::new(128);
    bench.append(0, b"a record").expect("room");
    let mut bench = bench.crash();
    let head = bench.core.head();
    for _ in 0..100 {
        bench = bench.crash();
        assert_eq!(bench.core.head(), head);
        assert_eq!(bench.core.header().gaps.len(), 1);
    }
    assert_eq!(bench.live(0), 0..1);
}

#[test]
fn more_crashes_than_a_header_has_room_for_gaps() {
    let mut bench = Bench::new(4096);
    for seq in 0..40 {
        bench.append(0, &payload(0, seq, 100)).expect("room");
        bench = bench.crash();
        assert_eq!(bench.live(0), 0..seq + 1);
    }
}

/// It was for the caller to hand it from the device to the log, and one of them forgot.
#[test]
fn the_key_of_the_device_s_reservation_is_in_the_header() {
    let device = Bench::new(128).close();
    let mut scanned = scan(&device, &ScanOptions::default()).expect("a sound log");
    scanned.reservation_key = 77;
    let core = Core::open(scanned, CoreConfig::default());
    let mut bench = Bench {
        core,
        ..Bench::open(device)
    };
    bench.opened = false;
    bench.run();
    assert!(bench.opened);
    assert_eq!(bench.core.header().reservation_key, 77);
}

/// Opens the log and dies when the header of the new epoch is in both copies, before anything else is written.
fn die_before_the_pad(device: &RamDevice) {
    let scanned = scan(device, &ScanOptions::default()).expect("a sound log");
    let mut core = Core::open(scanned, CoreConfig::default());
    let copies = Slot::BOTH.map(|slot| core.ring().header(slot));
    let mut written = 0;
    while written < 2 {
        let Some(Output::Write(write)) = core.poll(7) else {
            panic!("no header")
        };
        written += u32::from(copies.contains(&write.offset));
        let mut queue = device.queue(1).expect("a queue");
        queue.submit(write);
        let mut done = Vec::new();
        queue.wait(None, &mut done).expect("no faults");
        done.into_iter().for_each(|done| core.write_done(done));
    }
}

/// A header names 15 gaps. The 16th made it forget one, with or without its pad; if that had never been written, the log was refused from then on:
/// acknowledged records seemed to be missing.
#[test]
fn many_openings_that_die_before_they_have_written_their_pad() {
    // Each gap is small, so that many of them lie above the tail.
    let config = CoreConfig {
        block_bytes_max: UNIT as u64,
        window_bytes_min: Some(2 * UNIT as u64),
        window_bytes_max: Some(2 * UNIT as u64),
        ..CoreConfig::default()
    };
    let mut bench = Bench::open_with(Bench::new(4096).device.snapshot(), config.clone());
    let mut gaps = 0;
    for seq in 0..40 {
        bench.append(0, &payload(0, seq, 100)).expect("room");
        let device = bench.device.snapshot();
        die_before_the_pad(&device);
        bench = Bench::open_with(device, config.clone());
        assert_eq!(bench.live(0), 0..seq + 1);
        gaps = bench.core.header().gaps.len();
    }
    assert_eq!(gaps, crate::header::GAPS_MAX);
}

/// Each crash in a move of the tail costs the room that its state entries were allowed. When none is left the log used to wait for it for ever.
#[test]
fn after_very_many_crashes_in_a_tail_move_nobody_waits_for_it() {
    let mut bench = Bench::new(128);
    for seq in 0..1000 {
        if bench.append(0, &payload(0, seq, 3000)).is_err() {
            break;
        }
    }
    let all = Seq::new(bench.live(0).end);
    let mut device = bench.device;
    for _ in 0..100 {
        let scanned = scan(&device, &ScanOptions::default()).expect("a sound log");
        let mut core = Core::open(scanned, CoreConfig::default());
        let ring = core.ring();
        let copies = Slot::BOTH.map(|slot| ring.header(slot));
        let mut opened = false;
        while let Some(output) = core.poll(7) {
            let Output::Write(write) = output else { break };
            // The block of state entries is on its way when the power goes.
            if opened && !copies.contains(&write.offset) {
                break;
            }
            let mut queue = device.queue(1).expect("a queue");
            queue.submit(write);
            let mut done = Vec::new();
            queue.wait(None, &mut done).expect("no faults");
            done.into_iter().for_each(|done| core.write_done(done));
            while let Some(effect) = core.next_effect() {
                if matches!(effect, Effect::Opened) {
                    opened = true;
                    core.trim(stream(0), all).expect("durable");
                    core.append(0, stream(1), Bytes::from(vec![1; 3000]));
                }
            }
        }
        device = device.snapshot();
    }
    let mut bench = Bench::open(device);
    bench.core.trim(stream(0), all).expect("durable");
    // An answer, whatever it is.
    let answer = bench.append(1, &payload(1, 0, 3000));
    assert!(
        matches!(answer, Ok(_) | Err(AppendError::Full)),
        "{answer:?}"
    );
}

#[test]
fn the_last_block_is_missed_once_the_log_fell_idle() {
    let mut bench = Bench::new(128);
    bench.append(0, &payload(0, 0, 100)).expect("room");
    let run = bench.core.index_ref().locate(stream(0), Seq::ZERO);
    let offset = bench.core.ring.physical(run.expect("live").lsn);
    let lost = bench.device.snapshot();
    lost.damage(offset, |bytes| bytes[..UNIT].fill(0));
    let end = scan(&lost, &ScanOptions::default())
        .expect("looks unwritten")
        .recovery
        .end;
    assert_eq!(end.case, Case::C);
    bench.core.idle();
    bench.run();
    let lost = bench.device.snapshot();
    lost.damage(offset, |bytes| bytes[..UNIT].fill(0));
    let error = scan(&lost, &ScanOptions::default()).expect_err("acknowledged");
    assert!(
        matches!(&error, crate::error::OpenError::Corrupt(found) if found.case == Case::E),
        "{error}"
    );
}

/// Three records of a stream that is not drained, each in a block of its own, at the tail of a log of 256 units.
fn pinned() -> Bench {
    let mut bench = Bench::new(256);
    for seq in 0..3 {
        bench.append(0, &payload(0, seq, 3000)).expect("room");
    }
    bench
}

/// Goes round the ring some times with a stream that is drained, from record `next` on.
fn go_round(bench: &mut Bench, next: &mut u64) -> Result<(), AppendError> {
    for _ in 0..2000 {
        bench.append(1, &payload(1, *next, 3000))?;
        *next += 1;
        let below = Seq::new(*next);
        bench.core.trim(stream(1), below).expect("durable");
    }
    Ok(())
}

#[test]
fn a_damaged_record_at_the_tail_is_named_and_keeps_its_place_until_it_is_trimmed() {
    let mut bench = pinned();
    let run = bench.index().locate(stream(0), Seq::new(1)).expect("live");
    let offset = bench.core.ring.physical(run.lsn);
    bench.device.damage(offset, |bytes| bytes[1000] ^= 1);
    let mut next = 0;
    assert_eq!(go_round(&mut bench, &mut next), Err(AppendError::Full));
    let stuck = Stuck {
        lsn: run.lsn,
        stream: stream(0),
        first: Seq::new(1),
        end: Seq::new(2),
    };
    assert_eq!(bench.core.usage().stuck, [stuck]);
    assert_eq!(bench.damaged, [stuck], "said once");
    // The records around it were moved.
    for seq in [0, 2] {
        let found = bench.index().locate(stream(0), Seq::new(seq));
        assert!(found.expect("live").lsn > Lsn::new(3 * UNIT as u64));
        assert_eq!(bench.read(0, seq).expect("live"), payload(0, seq, 3000));
    }
    assert_eq!(bench.read(0, 1), None, "damaged");
    bench.core.trim(stream(0), Seq::new(2)).expect("durable");
    assert_eq!(bench.core.usage().stuck, []);
    assert_eq!(go_round(&mut bench, &mut next), Ok(()));
    assert_eq!(bench.read(0, 2).expect("live"), payload(0, 2, 3000));
}

/// One bad read of the tail used to pin the ring for good: whatever was wrong with it, nothing was moved any more until the tail was trimmed.
#[test]
fn a_read_that_is_bad_once_pins_nothing() {
    for how in [
        BadRead::Errno(libc::EIO),
        BadRead::Errno(libc::ETIMEDOUT),
        BadRead::Flipped { byte: 5 },
        BadRead::Flipped { byte: 150 },
        BadRead::Flipped { byte: 1000 },
        BadRead::Lost { bytes: 512 },
    ] {
        let mut bench = pinned();
        bench.bad_reads = (1, how);
        assert_eq!(go_round(&mut bench, &mut 0), Ok(()), "{how:?}");
        assert_eq!(bench.bad_reads.0, 0);
        assert_eq!(bench.core.usage().read_again, 1, "{how:?}");
        assert_eq!((bench.core.usage().stuck, bench.damaged), (vec![], vec![]));
    }
}

/// A device that does not answer for a while: the records at the tail are named, and moved when it does.
#[test]
fn what_is_stuck_is_tried_again_and_later_and_later() {
    for how in [
        BadRead::Errno(libc::EIO),
        BadRead::Flipped { byte: 150 },
        BadRead::Lost { bytes: UNIT },
    ] {
        let mut bench = pinned();
        bench.bad_reads = (u32::MAX, how);
        let mut next = 0;
        assert_eq!(go_round(&mut bench, &mut next), Err(AppendError::Full));
        let stuck = bench.core.usage().stuck;
        assert_eq!(
            (stuck[0].stream, stuck[0].first),
            (stream(0), Seq::ZERO),
            "{how:?}"
        );
        let told = bench.damaged.len();
        // Each refused record counts as time. Twice as many of them are far from twice as many reads.
        let reads = |bench: &mut Bench, times: u64| {
            let before = bench.reads;
            for _ in 0..times {
                assert_eq!(bench.append(1, b"more"), Err(AppendError::Full));
            }
            bench.reads - before
        };
        let (first, second) = (reads(&mut bench, 500), reads(&mut bench, 500));
        assert!(first >= 2 && second <= first, "{first} and {second} reads");
        assert_eq!(bench.damaged.len(), told, "said once");
        bench.bad_reads.0 = 0;
        let mut refused = 0;
        while bench.append(1, b"more").is_err() {
            refused += 1;
            assert!(refused < 10_000, "{:?}", bench.core.usage());
        }
        assert_eq!(bench.core.usage().stuck, []);
        bench
            .core
            .trim(stream(1), Seq::new(next + 1))
            .expect("durable");
        next += 1;
        assert_eq!(go_round(&mut bench, &mut next), Ok(()), "{how:?}");
        for seq in 0..3 {
            assert_eq!(bench.read(0, seq).expect("live"), payload(0, seq, 3000));
        }
    }
}

/// A block whose header is gone used to hide all blocks behind it as well.
#[test]
fn what_lies_around_a_lost_block_is_moved() {
    let mut bench = pinned();
    let run = bench.index().locate(stream(0), Seq::new(1)).expect("live");
    let offset = bench.core.ring.physical(run.lsn);
    bench.device.damage(offset, |bytes| bytes[..512].fill(0));
    assert_eq!(go_round(&mut bench, &mut 0), Err(AppendError::Full));
    let stuck = bench.core.usage().stuck;
    assert_eq!(stuck.len(), 1);
    assert_eq!((stuck[0].first, stuck[0].end), (Seq::new(1), Seq::new(2)));
    for seq in [0, 2] {
        let found = bench.index().locate(stream(0), Seq::new(seq));
        assert!(found.expect("live").lsn > run.lsn.plus(UNIT as u64));
    }
}

#[test]
fn the_names_of_streams_never_fill_the_log() {
    let mut bench = Bench::new(128);
    let max = bench.core.streams_max();
    let mut refused = None;
    for number in 0..2 * max {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let id = StreamId::new(name);
        let ticket = number as u64;
        bench.core.append(ticket, id, Bytes::from_static(b"x"));
        bench.run();
        if let Some(error) = bench.refused.get(&ticket) {
            refused = Some((number, *error));
            break;
        }
        bench.core.trim(id, Seq::new(1)).expect("durable");
    }
    let Some((streams, error)) = refused else {
        panic!("{max} streams at most, yet nobody was refused")
    };
    let said = matches!(
        error,
        AppendError::TooManyStreams { .. } | AppendError::Full
    );
    assert!(said && streams <= max, "{streams} streams: {error}");
    // All of them can still be carried round the ring.
    let mut bench = bench.crash();
    let known = bench.core.usage().streams;
    assert_eq!(known, streams);
    let mut name = [0; 32];
    name[0] = 1;
    for seq in 1..500 {
        let ticket = 10_000 + seq;
        let id = StreamId::new(name);
        bench.core.append(ticket, id, Bytes::from(vec![1; 2000]));
        bench.run();
        assert!(
            bench.appended.contains_key(&ticket),
            "{:?}",
            bench.refused.get(&ticket)
        );
        bench.core.trim(id, Seq::new(seq + 1)).expect("durable");
    }
}
