//! A good segment with everything that a record can have, and the reader to try damaged ones with.

use std::sync::OnceLock;

use bytes::Bytes;
use everlog_format::{
    ClusterId, Day, Header, Incarnation, Offset, Partition, Record, RowGroupReader, Salt, Segment,
    SegmentIdentity, SegmentOptions, SegmentWriter, TimestampType, TopicId, TopicName,
    encode_batches,
};

/// A good segment, and where its footer starts.
pub struct Good {
    pub bytes: Vec<u8>,
    pub footer_len: usize,
}

/// Three small row groups with everything that a record can have.
pub fn good_segment() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let identity = SegmentIdentity {
            incarnation: Incarnation {
                cluster: ClusterId::new("fuzz").expect("a name"),
                topic_id: TopicId::new("4L6g3nShT-eMCtK--X86sw").expect("an id"),
            },
            topic: TopicName::new("orders").expect("a name"),
            partition: Partition::new(3).expect("a partition"),
        };
        let offset = |raw| Offset::new(raw).expect("not negative");
        let options = SegmentOptions {
            row_group_raw_max_bytes: 1_500,
            ..SegmentOptions::default()
        };
        let salt = Salt::new([7; 16]);
        let mut writer =
            SegmentWriter::new(Vec::new(), identity, offset(0), Day::UNKNOWN, salt, options)
                .expect("a writer");
        for number in 0..60_i64 {
            let text = |len: i64| vec![b'x'; usize::try_from(len).expect("small")];
            let record = Record {
                offset: number * 3,
                timestamp_ms: 1_700_000_000_000 - number * 17,
                timestamp_type: if number % 20 == 7 {
                    TimestampType::LogAppend
                } else {
                    TimestampType::Create
                },
                leader_epoch: (number % 11 != 0).then_some(2),
                key: (number % 3 != 0).then(|| text(number % 5)),
                value: (number % 7 != 0).then(|| text(number)),
                headers: (0..number % 4)
                    .map(|n| Header {
                        key: text(n),
                        value: (n % 2 == 0).then(|| text(n * 3)),
                    })
                    .collect(),
            };
            writer
                .push(&record.as_ref(&mut Vec::new()))
                .expect("a record");
        }
        let (summary, bytes) = writer.finish(offset(1_000)).expect("a segment");
        Good {
            footer_len: usize::try_from(summary.footer_len).expect("small"),
            bytes,
        }
    })
}

/// Puts the checksums of the row groups, as they now are, into the footer. They are text of the same length, so the
/// footer stays whole.
pub fn reseal(bytes: &mut [u8]) {
    let good = good_segment();
    let segment = Segment::parse(&footer_of(&good.bytes), good.bytes.len() as u64).expect("good");
    for info in segment.row_groups() {
        let place = |at: u64| usize::try_from(at).expect("small");
        let range = place(info.bytes.start)..place(info.bytes.end);
        let name = |bytes: &[u8]| format!("{:08x}", crc32c::crc32c(&bytes[range.clone()]));
        let (old, new) = (name(&good.bytes), name(bytes));
        let found = good
            .bytes
            .windows(old.len())
            .rposition(|window| window == old.as_bytes())
            .expect("in the footer");
        bytes[found..found + new.len()].copy_from_slice(new.as_bytes());
    }
}

/// The end of the file that holds the good segment's footer.
pub fn footer_of(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&bytes[bytes.len() - good_segment().footer_len..])
}

/// Reads all that a segment holds, as the proxy does, and stops at the first error.
pub fn read_all(segment: Segment, bytes: &[u8]) {
    let segment = std::sync::Arc::new(segment);
    for index in 0..segment.row_groups().len() {
        let range = segment.row_groups()[index].bytes.clone();
        let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end))
        else {
            continue;
        };
        let Some(group) = bytes.get(start..end) else {
            continue;
        };
        let Ok(mut reader) = RowGroupReader::new(&segment, index, Bytes::copy_from_slice(group))
        else {
            continue;
        };
        let mut last = None;
        while let Ok(Some(slice)) = reader.next_slice(1_000) {
            assert!(last < Some(slice.first_offset()), "offsets ascend");
            last = Some(slice.last_offset());
            let mut out = Vec::new();
            let batches = encode_batches(&slice, 4_096, &mut out);
            let records: usize = everlog_format::decode_batches(&out)
                .map(|batch| batch.expect("what is written can be read").records.len())
                .sum();
            assert_eq!((batches.is_empty(), records), (false, slice.len()));
        }
    }
}
