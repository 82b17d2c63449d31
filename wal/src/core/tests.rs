//! The state machine on a device in memory.

use super::{
    bench::{Bench, UNIT, payload, stream},
    *,
};
use crate::recovery::{Case, ScanOptions, scan};

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

#[test]
fn a_damaged_record_at_the_tail_is_named_and_keeps_its_place_until_it_is_trimmed() {
    let mut bench = Bench::new(256);
    for seq in 0..3 {
        bench.append(0, &payload(0, seq, 3000)).expect("room");
    }
    let run = bench.index().locate(stream(0), Seq::new(1)).expect("live");
    let offset = bench.core.ring.physical(run.lsn);
    bench.device.damage(offset, |bytes| bytes[1000] ^= 1);
    let mut next = 0;
    let mut fill = |bench: &mut Bench| {
        for _ in 0..2000 {
            if let Err(error) = bench.append(1, &payload(1, next, 3000)) {
                return Some(error);
            }
            next += 1;
            let below = Seq::new(next);
            bench.core.trim(stream(1), below).expect("durable");
        }
        None
    };
    assert_eq!(fill(&mut bench), Some(AppendError::Full));
    assert_eq!(bench.core.usage().stuck_at, Some(run.lsn));
    // The records around it were moved or are still there.
    for seq in [0, 2] {
        assert_eq!(bench.read(0, seq).expect("live"), payload(0, seq, 3000));
    }
    assert_eq!(bench.read(0, 1), None, "damaged");
    bench.core.trim(stream(0), Seq::new(2)).expect("durable");
    assert_eq!(fill(&mut bench), None);
    assert_eq!(bench.core.usage().stuck_at, None);
    assert_eq!(bench.read(0, 2).expect("live"), payload(0, 2, 3000));
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
