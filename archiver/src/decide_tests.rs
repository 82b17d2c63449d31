//! Each case is data: see the functions `check_*`.

use super::*;

fn at(raw: i64) -> Offset {
    Offset::new(raw).unwrap()
}

fn known(offset: i64, epoch: i32) -> Known {
    Known {
        offset: at(offset),
        epoch,
    }
}

fn check_start(next: Option<i64>, last: Option<Known>, live: (i64, i64), wanted: Start) {
    let view = StartView {
        next: next.map(at),
        last_record: last,
        live_start: at(live.0),
        high_watermark: at(live.1),
    };
    assert_eq!(start(&view), wanted, "{view:?}");
}

#[test]
fn a_partition_begins_where_the_archive_ends() {
    let fetch = |last_record, covered| Start::Fetch {
        last_record,
        covered_from: at(covered),
    };
    // The first entry starts where the cluster's log starts on that day.
    check_start(None, None, (40, 90), fetch(None, 40));
    // At the last record, which shows whether this is still the log that was archived.
    let last = Some(known(56, 3));
    check_start(Some(60), last, (40, 90), fetch(last, 60));
    check_start(Some(60), last, (56, 60), fetch(last, 60));
    // The last record is no longer in the cluster.
    check_start(Some(60), last, (57, 90), fetch(None, 60));
    check_start(Some(60), last, (60, 90), fetch(None, 60));
    check_start(Some(60), None, (40, 90), fetch(None, 60));
}

#[test]
fn a_log_is_the_archived_one_only_with_its_last_record_in_it() {
    let meets = |offset, epoch, compacted| known(56, 3).meets(offset, epoch, compacted).is_ok();
    assert!(meets(56, Some(3), false));
    // Truncated and written anew: another epoch, or none, or no record there at all.
    assert!(!meets(56, Some(4), false) && !meets(56, None, false) && !meets(57, Some(3), false));
    assert!(!meets(55, Some(3), false));
    // Cleaning removes records but never brings others to their offsets.
    assert!(meets(57, Some(3), true) && meets(57, Some(4), true));
    assert!(!meets(57, Some(2), true) && !meets(56, Some(4), true) && !meets(55, Some(3), true));
    let misses = |end, compacted| known(56, 3).misses(end, compacted).is_ok();
    assert!(misses(60, true) && !misses(60, false) && !misses(56, true));
    let told = known(56, 3).meets(56, Some(4), false).unwrap_err();
    assert!(told.to_string().contains("56 of leader epoch 3"), "{told}");
    assert!(told.to_string().contains("truncated"), "{told}");
}

#[test]
fn what_the_cluster_has_let_go_is_a_hole_and_what_it_never_had_is_a_truncation() {
    let lost = OffsetRange::new(at(60), at(75)).unwrap();
    check_start(Some(60), Some(known(59, 3)), (75, 90), Start::Hole(lost));
    check_start(
        Some(60),
        Some(known(59, 3)),
        (40, 59),
        Start::BeyondEnd {
            next: at(60),
            high_watermark: at(59),
        },
    );
}

#[test]
fn the_covered_end_is_the_larger_of_record_and_end_of_partition_in_queue_order() {
    let mut progress = Progress::new(at(10));
    assert_eq!(progress.range(), None);
    progress.record(12).unwrap();
    assert_eq!((progress.start(), progress.end()), (at(10), at(13)));
    progress.end_of_partition(20);
    progress.end_of_partition(15);
    assert_eq!(progress.end(), at(20));
    // What an end-of-partition event has declared empty can't hold a record, nor can what was delivered.
    assert_eq!(
        progress.record(19),
        Err(Backwards {
            found: 19,
            end: at(20)
        })
    );
    progress.record(20).unwrap();
    assert_eq!(
        progress.record(20),
        Err(Backwards {
            found: 20,
            end: at(21)
        })
    );
    progress.cut();
    assert_eq!(progress.range(), None);
    // Past the last offset that has a next one nothing can be covered.
    assert!(progress.record(i64::MAX).is_err());
    assert!(progress.record(-1).is_err());
}

fn open() -> OpenSegment {
    OpenSegment {
        range: OffsetRange::new(at(100), at(200)),
        bytes: 1_000,
        age: Duration::from_secs(5),
        oldest_record_age: Some(Duration::from_secs(5)),
        archived_end: at(100),
        retention: None,
        live_start: Some(at(0)),
    }
}

fn check_cut(change: impl FnOnce(&mut OpenSegment), wanted: Option<Cut>) {
    let mut segment = open();
    change(&mut segment);
    let limits = Limits {
        max_bytes: 1 << 20,
        max_age: Duration::from_secs(600),
    };
    assert_eq!(cut_now(&segment, &limits), wanted, "{segment:?}");
}

#[test]
fn a_segment_is_cut_by_size_age_and_the_nearness_of_retention() {
    check_cut(|_| {}, None);
    check_cut(|open| open.bytes = 1 << 20, Some(Cut::Size));
    check_cut(|open| open.age = Duration::from_secs(600), Some(Cut::Age));
    check_cut(
        |open| open.retention = Some(Duration::from_secs(19)),
        Some(Cut::Retention),
    );
    check_cut(|open| open.retention = Some(Duration::from_secs(20)), None);
    // Old records, read in a backfill: not a segment at each look.
    check_cut(
        |open| {
            open.retention = Some(Duration::from_secs(604_800));
            open.oldest_record_age = Some(Duration::from_secs(600_000));
        },
        None,
    );
    check_cut(
        |open| {
            open.retention = Some(Duration::from_secs(604_800));
            open.oldest_record_age = Some(Duration::from_secs(600_000));
            open.age = Duration::from_secs(30);
        },
        Some(Cut::Retention),
    );
    // The live start has passed half of what is not committed.
    check_cut(|open| open.live_start = Some(at(149)), None);
    check_cut(|open| open.live_start = Some(at(150)), Some(Cut::Retention));
    // With nothing covered there is nothing to cut, whatever else holds.
    check_cut(
        |open| {
            open.range = None;
            open.age = Duration::from_secs(6_000);
        },
        None,
    );
}

fn check_silence(secs: u64, behind: bool, told_in_vain: Option<u32>, wanted: Option<Stall>) {
    let silence = Silence {
        lasted: Duration::from_secs(secs),
        behind,
        answered: told_in_vain.is_none(),
        told_in_vain: told_in_vain.unwrap_or(0),
    };
    assert_eq!(stall(silence), wanted, "{silence:?}");
}

#[test]
fn a_silent_fetcher_is_woken_sooner_if_the_cluster_has_more() {
    check_silence(59, true, None, None);
    check_silence(60, true, None, Some(Stall::Behind));
    check_silence(299, false, None, None);
    check_silence(300, false, None, Some(Stall::Quiet));
}

/// Once, on a topic that was made anew, it brought neither records nor the partition's end for as long as somebody looked.
#[test]
fn a_fetcher_that_never_began_is_woken_soon_and_then_less_often() {
    for (behind, stall) in [(false, Stall::Quiet), (true, Stall::Behind)] {
        check_silence(14, behind, Some(0), None);
        check_silence(15, behind, Some(0), Some(stall));
        check_silence(29, behind, Some(1), None);
        check_silence(30, behind, Some(1), Some(stall));
        check_silence(59, behind, Some(2), None);
        check_silence(60, behind, Some(2), Some(stall));
    }
    check_silence(60, true, Some(9), Some(Stall::Behind));
    check_silence(239, false, Some(4), None);
    check_silence(299, false, Some(u32::MAX), None);
    check_silence(300, false, Some(u32::MAX), Some(Stall::Quiet));
}

#[test]
fn a_change_of_day_cuts_only_what_is_worth_it() {
    let (monday, tuesday) = (
        day_number(1_700_000_000_000),
        day_number(1_700_000_000_000 + DAY_MS),
    );
    assert!(day_cut(monday, tuesday, DAY_CUT_MIN_BYTES));
    assert!(!day_cut(monday, tuesday, DAY_CUT_MIN_BYTES - 1));
    assert!(!day_cut(monday, monday, u64::MAX));
    // Timestamps that give no label change nothing.
    for strange in [-1, 0, i64::MIN, i64::MAX] {
        assert!(!day_cut(monday, day_number(strange), u64::MAX), "{strange}");
    }
}

#[test]
fn many_partitions_collect_whole_row_groups_and_few_keep_theirs_open() {
    let memory = MemoryPlan {
        chunks_bytes: 96 << 20,
        bursts_bytes: 32 << 20,
        writers_bytes: 96 << 20,
        spare_bytes: 0,
    };
    assert_eq!(
        burst_plan(4, &memory, 256 << 20),
        BurstPlan {
            bytes: 4 << 20,
            ends_row_group: false
        }
    );
    assert_eq!(
        burst_plan(100, &memory, 256 << 20),
        BurstPlan {
            bytes: 24 << 20,
            ends_row_group: true
        }
    );
    assert_eq!(burst_plan(1, &memory, 64 << 10).bytes, 64 << 10);
}

#[test]
fn pauses_grow_to_their_limit_and_logs_grow_rare() {
    let mut backoff = Backoff::new(Duration::from_secs(8));
    let pauses: Vec<_> = (0..7).map(|_| backoff.failed(1.0)).collect();
    let millis: Vec<_> = pauses.iter().map(|(pause, _)| pause.as_millis()).collect();
    assert_eq!(millis, [500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
    let logged: Vec<_> = pauses.iter().map(|(_, log)| *log).collect();
    assert_eq!(logged, [true, true, false, true, false, false, false]);
}
