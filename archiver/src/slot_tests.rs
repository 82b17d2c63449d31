//! A partition fed by hand: what it takes in, refuses, cuts and hands to its worker.

use everlog_format::{OffsetRange, TimestampType, TopicId};
use prometheus::Registry;

use super::*;
use crate::config::MemoryPlan;
use crate::metrics::Metrics;

const PLAN: BurstPlan = BurstPlan {
    bytes: 1 << 20,
    ends_row_group: false,
};
const LIMITS: Limits = Limits {
    max_bytes: 1 << 30,
    max_age: Duration::from_secs(600),
};

fn at(raw: i64) -> Offset {
    Offset::new(raw).unwrap()
}

/// A slot that is archived up to 60 in a log that ends at 90, and what its worker gets.
fn slot(last_record: Option<Known>, compacted: bool) -> (Slot, mpsc::Receiver<Work>) {
    let (work, queue) = mpsc::channel(16);
    let begin = Begin {
        topic_id: TopicId::from_uuid(uuid::Uuid::from_u128(7)).unwrap(),
        last_record,
        covered_from: at(60),
        high_watermark: at(90),
    };
    let memory = Memory::new(&MemoryPlan::of(96 << 20));
    let now = crate::clock::now();
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let slot = Slot {
        ticket: Ticket {
            topic: Arc::from("orders"),
            partition: 3,
            assignment: 1,
            session: 1,
        },
        work,
        metrics: Arc::new(metrics.partition("orders", 3)),
        reading: Some(Reading::new(&begin, compacted, &memory, now)),
        lag: Lag::default(),
        proof: Some(Proof::new(begin.topic_id, begin.covered_from)),
        last_commit: now,
        has_cut: false,
        is_settling: false,
        left: CancellationToken::new(),
        worker: CancellationToken::new().drop_guard(),
    };
    (slot, queue)
}

fn deliver(slot: &mut Slot, offset: i64, epoch: i32) -> Result<(), SlotError> {
    let record = RecordRef {
        offset,
        timestamp_ms: 1_700_000_000_000,
        timestamp_type: TimestampType::Create,
        leader_epoch: Some(epoch),
        key: None,
        value: Some(b"value"),
        headers: &[],
    };
    slot.record(&record, 1, PLAN, &LIMITS, crate::clock::now())
}

fn covered(slot: &Slot) -> Option<OffsetRange> {
    slot.reading.as_ref().unwrap().progress.range()
}

#[test]
fn the_last_archived_record_comes_first_and_is_not_archived_again() {
    let last = Known {
        offset: at(57),
        epoch: 3,
    };
    let (mut slot, _queue) = slot(Some(last), false);
    assert_eq!(slot.reading.as_ref().unwrap().fetch_from(), at(57));
    deliver(&mut slot, 57, 3).unwrap();
    assert_eq!(covered(&slot), None);
    assert_eq!(slot.reading.as_ref().unwrap().fetch_from(), at(60));
    // Between it and the covered end no record can be.
    assert!(matches!(
        deliver(&mut slot, 58, 3),
        Err(SlotError::Backwards(_))
    ));
    deliver(&mut slot, 61, 4).unwrap();
    assert_eq!(covered(&slot), OffsetRange::new(at(60), at(62)));
}

#[test]
fn a_log_that_was_truncated_and_has_grown_again_is_not_archived() {
    let last = Known {
        offset: at(57),
        epoch: 3,
    };
    let truncated = |done| matches!(done, Err(SlotError::Truncated(_)));
    for (offset, epoch) in [(57, 4), (60, 3), (58, 4)] {
        let (mut slot, _queue) = slot(Some(last), false);
        assert!(truncated(deliver(&mut slot, offset, epoch)), "{offset}");
        assert_eq!(covered(&slot), None);
    }
    let (mut empty, _queue) = slot(Some(last), false);
    assert!(truncated(empty.end_of_partition(90, crate::clock::now())));
    assert_eq!(covered(&empty), None);
    // Where cleaning is to be reckoned with, the record may be gone.
    let (mut cleaned, _queue) = slot(Some(last), true);
    deliver(&mut cleaned, 61, 3).unwrap();
    assert_eq!(covered(&cleaned), OffsetRange::new(at(60), at(62)));
}

#[test]
fn only_what_came_before_the_question_is_proven_by_its_answer() {
    let (mut slot, mut queue) = slot(None, false);
    deliver(&mut slot, 60, 3).unwrap();
    deliver(&mut slot, 64, 3).unwrap();
    slot.mark();
    deliver(&mut slot, 70, 3).unwrap();
    slot.proof.as_ref().unwrap().prove();
    slot.cut(Cut::Trouble, false).unwrap();
    assert!(matches!(queue.try_recv(), Ok(Work::Burst { .. })));
    let Ok(Work::Cut(cut)) = queue.try_recv() else {
        panic!("no cut");
    };
    assert_eq!(Some(cut.range), OffsetRange::new(at(60), at(71)));
    assert_eq!(
        cut.proven.part_of(cut.range),
        OffsetRange::new(at(60), at(65))
    );
    // A later answer counts for what is on its way, too, even if the session has ended meanwhile.
    slot.mark();
    assert!(slot.end_session(Pause::None).is_some());
    slot.proof.as_ref().unwrap().prove();
    assert_eq!(cut.proven.part_of(cut.range), Some(cut.range));
}

#[test]
fn a_worker_whose_partition_is_taken_is_told_what_is_open() {
    let (mut idle, mut queue) = slot(None, false);
    assert!(idle.leave().is_none());
    assert!(queue.try_recv().is_err());
    let (mut busy, mut queue) = slot(None, false);
    deliver(&mut busy, 60, 3).unwrap();
    assert!(matches!(busy.leave(), Some(Some(cut)) if cut.range.end() == at(61)));
    assert!(matches!(queue.try_recv(), Ok(Work::Burst { .. })));
    // What was cut before may still be on its way.
    assert!(matches!(busy.leave(), Some(None)));
}

/// The lag stood still with the partition, and "since the last commit" began anew with each session.
#[test]
fn a_partition_that_is_not_read_is_measured_too() {
    let (mut slot, _queue) = slot(None, false);
    let begin = slot.last_commit;
    let after = |secs| begin + Duration::from_secs(secs);
    deliver(&mut slot, 60, 3).unwrap();
    let first = 1_700_000_000_000;
    slot.measure(None, after(1), first + 1_000);
    assert_eq!(slot.metrics.lag_records.get(), 30);
    assert!(slot.metrics.is_read());
    slot.end_session(Pause::Frozen);
    slot.stands(&Standing {
        archived_end: Some(at(60)),
        live_start: at(10),
        high_watermark: at(200),
    });
    slot.measure(None, after(9), first + 9_000);
    assert!(!slot.metrics.is_read());
    assert_eq!(slot.metrics.lag_records.get(), 140);
    assert_eq!(slot.metrics.lag_seconds.get(), 9.0);
    assert_eq!(slot.metrics.seconds_since_last_commit.get(), 9.0);
    // What the session had cut is committed after its end.
    slot.committed(1, at(150), after(10));
    slot.measure(None, after(12), first + 12_000);
    assert_eq!(slot.metrics.lag_records.get(), 50);
    assert_eq!(slot.metrics.seconds_since_last_commit.get(), 2.0);
}

#[test]
fn a_session_that_has_ended_counts_until_its_worker_is_done_with_it() {
    let (mut slot, _queue) = slot(None, false);
    deliver(&mut slot, 60, 3).unwrap();
    assert!(!slot.has_cuts_on_their_way());
    slot.cut(Cut::Trouble, false).unwrap();
    assert!(slot.has_cuts_on_their_way());
    slot.end_session(Pause::None);
    assert!(slot.has_cuts_on_their_way());
}

#[test]
fn a_fetcher_is_woken_that_is_silent_and_should_not_be() {
    let (mut slot, _queue) = slot(None, false);
    let begin = crate::clock::now();
    let after = |secs| begin + Duration::from_secs(secs);
    let reading = slot.reading.as_mut().unwrap();
    reading.seated(begin);
    assert_eq!(reading.stall(after(14)), None);
    assert_eq!(reading.stall(after(15)), Some(Stall::Behind));
    reading.told_again(after(15));
    assert_eq!(reading.stall(after(44)), None);
    assert_eq!(reading.stall(after(45)), Some(Stall::Behind));
    deliver(&mut slot, 70, 1).unwrap();
    let reading = slot.reading.as_mut().unwrap();
    reading.brought(begin);
    assert_eq!(reading.stall(after(59)), None);
    assert_eq!(reading.stall(after(61)), Some(Stall::Behind));
    reading.paused = true;
    assert_eq!(reading.stall(after(400)), None);
    reading.paused = false;
    // An open transaction: the log goes on behind what can be read, and that is known.
    slot.end_of_partition(80, after(70)).unwrap();
    let reading = slot.reading.as_mut().unwrap();
    assert_eq!(reading.stall(after(200)), None);
    assert_eq!(reading.stall(after(371)), Some(Stall::Quiet));
    reading.told_again(after(371));
    assert_eq!(reading.stall(after(372)), None);
    assert_eq!(reading.stall(after(401)), Some(Stall::Quiet));
    // An end is an answer too.
    slot.end_of_partition(80, after(402)).unwrap();
    let reading = slot.reading.as_mut().unwrap();
    assert_eq!(reading.stall(after(701)), None);
}
