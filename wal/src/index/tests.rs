//! Tests of the index against a plain map, and of its memory budget.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const UNIT: u64 = 4096;
const MIB: usize = 1 << 20;

fn ring(bytes: u64) -> Ring {
    Ring::new(UNIT, bytes + 2 * UNIT).expect("a ring")
}

fn empty(bytes: u64) -> Index {
    let ring = ring(bytes);
    let tail = TailMark {
        lsn: Lsn::ZERO,
        chain: 0,
    };
    Index::new(ring, Index::segment_bytes(ring), tail)
}

fn stream(number: u8) -> StreamId {
    StreamId::new([number; 32])
}

#[derive(Clone, Debug)]
enum Step {
    Append { stream: u8, count: u64 },
    Relocate { stream: u8, skip: u64, count: u64 },
    Trim { stream: u8, records: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..3, 1u64..20).prop_map(|(stream, count)| Step::Append { stream, count }),
        3 => (0u8..3, 0u64..60, 1u64..30)
            .prop_map(|(stream, skip, count)| Step::Relocate { stream, skip, count }),
        1 => (0u8..3, 0u64..40).prop_map(|(stream, records)| Step::Trim { stream, records }),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn it_says_what_a_plain_map_says(steps in steps()) {
        let mut index = empty(1 << 24);
        let mut plain: BTreeMap<(u8, u64), u64> = BTreeMap::new();
        let mut known: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
        for (step, block) in steps.iter().zip(0u64..) {
            let lsn = Lsn::new(block * UNIT);
            index.begin_block(lsn, 0);
            let (id, first, count) = match *step {
                Step::Append { stream, count } => (stream, known.get(&stream).map_or(0, |k| k.1), count),
                Step::Relocate { stream, skip, count } => {
                    let (trimmed, next) = known.get(&stream).copied().unwrap_or_default();
                    let first = (trimmed + skip).min(next);
                    (stream, first, count.min(next - first))
                }
                Step::Trim { stream: id, records } => {
                    if let Some((trimmed, next)) = known.get_mut(&id) {
                        *trimmed = (*trimmed + records).min(*next);
                        index.trim(stream(id), Seq::new(*trimmed));
                        plain.retain(|(of, seq), _| *of != id || *seq >= *trimmed);
                    }
                    continue;
                }
            };
            if count == 0 {
                continue;
            }
            index.place(stream(id), Run { first: Seq::new(first), count, lsn, bytes: 100 * count });
            let entry = known.entry(id).or_default();
            entry.1 = entry.1.max(first + count);
            for seq in first..first + count {
                plain.insert((id, seq), lsn.get());
            }
        }
        prop_assert_eq!(index.missing(), None);
        for (id, (trimmed, next)) in &known {
            for seq in 0..next + 2 {
                let found = index.locate(stream(*id), Seq::new(seq)).map(|run| run.lsn.get());
                prop_assert_eq!(found, plain.get(&(*id, seq)).copied(), "{} {}", id, seq);
            }
            let usage = index.usage_of(stream(*id)).expect("known");
            prop_assert_eq!((usage.trimmed.get(), usage.next.get()), (*trimmed, *next));
        }
        prop_assert_eq!(index.live_records(), plain.len() as u64);
        prop_assert_eq!(index.tail().map(|tail| tail.lsn.get()), plain.values().min().copied());
        for id in known.keys() {
            index.trim(stream(*id), Seq::new(1 << 30));
        }
        prop_assert_eq!((index.live_bytes(), index.live_records()), (0, 0));
        prop_assert_eq!(index.tail(), None);
    }
}

#[test]
fn a_gap_is_found_and_named() {
    let mut index = empty(1 << 24);
    let run = |first, count, block: u64| Run {
        first: Seq::new(first),
        count,
        lsn: Lsn::new(block * UNIT),
        bytes: count,
    };
    index.place(stream(1), run(3, 2, 1));
    assert_eq!(
        index.missing().map(|missing| missing.seq),
        Some(Seq::ZERO),
        "nothing says that 0 to 2 are trimmed"
    );
    index.set_state(stream(1), Seq::new(3), Seq::new(3));
    assert_eq!(index.missing(), None);
    index.place(stream(1), run(7, 1, 2));
    assert_eq!(
        index.missing().map(|missing| missing.seq),
        Some(Seq::new(5))
    );
    index.place(stream(1), run(5, 2, 3));
    assert_eq!(index.missing(), None);
    index.set_state(stream(1), Seq::new(3), Seq::new(9));
    assert_eq!(
        index.missing().map(|missing| missing.seq),
        Some(Seq::new(8))
    );
}

#[test]
fn ten_gib_of_records_of_one_kib_in_blocks_of_one_take_less_than_64_mib() {
    let records = 10 << 20;
    let mut index = empty(records * UNIT);
    for seq in 0..records {
        let lsn = Lsn::new(seq * UNIT);
        index.begin_block(lsn, 0);
        let run = Run {
            first: Seq::new(seq),
            count: 1,
            lsn,
            bytes: 1024 + 64,
        };
        index.place(stream(0), run);
    }
    assert_eq!(index.live_records(), records);
    let used = index.memory_bytes();
    assert!(used <= 64 * MIB, "{used} bytes");
}

#[test]
fn ten_gib_of_records_of_one_kib_from_64_streams_in_turn_take_less_than_64_mib() {
    let records = 10u64 << 20;
    let block = 18 * UNIT;
    let mut index = empty(records / 64 * block);
    for number in 0..records / 64 {
        let lsn = Lsn::new(number * block);
        index.begin_block(lsn, 0);
        for id in 0..64 {
            let run = Run {
                first: Seq::new(number),
                count: 1,
                lsn,
                bytes: 1024 + 64,
            };
            index.place(stream(id), run);
        }
    }
    assert_eq!(index.live_records(), records);
    let used = index.memory_bytes();
    assert!(used <= 64 * MIB, "{used} bytes");
}
