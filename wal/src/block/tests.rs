//! Tests of the bytes of a block.

use proptest::prelude::*;

use super::*;

const ID: LogId = LogId::new([7; 16]);

fn ring() -> Ring {
    Ring::new(4096, 1 << 24).expect("a ring")
}

fn header(lsn: u64) -> BlockHeader {
    BlockHeader {
        lsn: Lsn::new(lsn),
        epoch: 3,
        chain: 0xABCD,
        durable: Lsn::new(4096),
        wall_ms: 5,
        ..BlockHeader::gap_pad(ID, 3, Lsn::ZERO, Lsn::new(4096), 0)
    }
}

fn written(entries: &[NewEntry<Vec<u8>>]) -> (BlockHeader, Vec<u8>) {
    let mut buf = AlignedBuf::zeroed(1 << 20);
    buf.as_mut_slice().fill(0xEE);
    let (header, checksum) = encode(ring(), header(8192), entries, &mut buf);
    assert_eq!(checksum, header.checksum());
    (header, buf.as_slice().to_vec())
}

fn entries() -> impl Strategy<Value = Vec<NewEntry<Vec<u8>>>> {
    let kind = prop_oneof![
        Just(EntryKind::Record),
        Just(EntryKind::Relocated),
        Just(EntryKind::State {
            next: Seq::new(1 << 40)
        })
    ];
    let entry = (
        kind,
        any::<[u8; 32]>(),
        0u64..1 << 40,
        proptest::collection::vec(any::<u8>(), 0..3000),
    )
        .prop_map(|(kind, stream, seq, payload)| NewEntry {
            kind,
            stream: StreamId::new(stream),
            seq: Seq::new(seq),
            payload: match kind {
                EntryKind::State { .. } => Vec::new(),
                EntryKind::Record | EntryKind::Relocated => payload,
            },
        });
    proptest::collection::vec(entry, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_block_comes_back_as_it_was_written(entries in entries()) {
        let (header, bytes) = written(&entries);
        prop_assert_eq!(bytes.len() % 4096, 0);
        let read = BlockHeader::decode(ring(), ID, &bytes).expect("sound");
        prop_assert_eq!(read, header);
        let block = Block::open(read, &bytes).expect("sound");
        prop_assert!(block.padding_is_zero());
        let records: Vec<_> = block.records().collect();
        prop_assert_eq!(records.len(), entries.len());
        for (record, entry) in records.iter().zip(&entries) {
            prop_assert!(record.intact);
            prop_assert_eq!(record.payload, entry.payload.as_slice());
            prop_assert_eq!(record.entry.seq, entry.seq);
            prop_assert_eq!(record.entry.stream, entry.stream);
            prop_assert_eq!(record.entry.kind, entry.kind);
        }
    }

    #[test]
    fn a_flipped_bit_is_seen_wherever_it_is(entries in entries(), place: prop::sample::Index, bit in 0u8..8) {
        let (_, mut bytes) = written(&entries);
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        let sound = BlockHeader::decode(ring(), ID, &bytes)
            .ok()
            .and_then(|header| {
                let block = Block::open(header, &bytes)?;
                (block.records().all(|record| record.intact) && block.padding_is_zero()).then_some(())
            });
        prop_assert!(sound.is_none());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        let _ = BlockHeader::decode(ring(), ID, &bytes);
        if bytes.len() >= HEADER_BYTES {
            put(&mut bytes, 0, &MAGIC);
            let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
            put(&mut bytes, CHECKSUM_AT, &checksum.to_le_bytes());
            let _ = BlockHeader::decode(ring(), ID, &bytes);
        }
    }
}

#[test]
fn a_payload_that_is_a_copy_of_the_log_is_not_taken_for_blocks() {
    let record = |payload| NewEntry {
        kind: EntryKind::Record,
        stream: StreamId::new([1; 32]),
        seq: Seq::ZERO,
        payload,
    };
    let (_, block) = written(&[record(vec![5; 3000])]);
    // Copies of a block, placed so that without a skew each would begin at a unit.
    let before = 4096 - HEADER_BYTES - ENTRY_BYTES;
    let mut payload = vec![0; before];
    (0..200).for_each(|_| payload.extend_from_slice(&block));
    let (header, bytes) = written(&[record(payload.clone())]);
    assert_ne!(header.skew, 0);
    for unit in bytes.chunks_exact(4096).skip(1) {
        assert!(matches!(
            BlockHeader::decode(ring(), ID, unit),
            Err(BlockFault::Foreign)
        ));
    }
    let read = Block::open(header, &bytes).expect("sound");
    let records: Vec<_> = read.records().collect();
    assert!(records[0].intact && records[0].payload == payload.as_slice());
}

#[test]
fn a_record_moved_within_or_between_blocks_is_not_intact() {
    let payload = vec![1; 64];
    let here = RecordSeed::new(ID, 3, Lsn::new(4096)).checksum(0, &payload);
    for other in [
        RecordSeed::new(ID, 3, Lsn::new(4096)).checksum(1, &payload),
        RecordSeed::new(ID, 3, Lsn::new(8192)).checksum(0, &payload),
        RecordSeed::new(ID, 4, Lsn::new(4096)).checksum(0, &payload),
        RecordSeed::new(LogId::new([8; 16]), 3, Lsn::new(4096)).checksum(0, &payload),
    ] {
        assert_ne!(here, other);
    }
}

#[test]
fn a_pad_is_one_unit_and_covers_more() {
    let pad = BlockHeader::gap_pad(ID, 2, Lsn::new(4096), Lsn::new(40960), 17);
    let mut buf = AlignedBuf::zeroed(4096);
    let checksum = encode_pad(ring(), &pad, &mut buf);
    let read = BlockHeader::decode(ring(), ID, buf.as_slice()).expect("sound");
    assert_eq!(read, pad);
    assert_eq!(read.end(), Lsn::new(40960));
    assert_eq!(checksum, pad.checksum());
}
