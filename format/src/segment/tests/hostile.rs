//! Bytes that nobody wrote on purpose, and bytes that somebody did. Whatever they are: an error, or records; never a
//! panic, and no memory beyond what the footer's sizes allow.
//!
//! The seeds are fixed. `EVERLOG_FUZZ_ROUNDS` multiplies the rounds.

use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::segment::schema::LEAF_COUNT;

fn rounds(base: usize) -> usize {
    let factor = std::env::var("EVERLOG_FUZZ_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    base * factor
}

/// Three row groups with all that a record can be.
pub(crate) fn sample() -> (Vec<Record>, SegmentSummary, Bytes) {
    let mut records: Vec<Record> = (0..300)
        .map(|n| record(1_000 + 2 * n, &vec![n as u8; (n as usize * 7) % 400]))
        .collect();
    for (index, record) in records.iter_mut().enumerate() {
        match index % 7 {
            0 => record.key = None,
            1 => record.value = None,
            2 => record.headers.clear(),
            3 => record.headers.push(Header {
                key: Vec::new(),
                value: None,
            }),
            4 => record.leader_epoch = None,
            5 => record.timestamp_ms = [-1, i64::MAX, i64::MIN, 0][index % 4],
            _ => record.timestamp_type = TimestampType::LogAppend,
        }
    }
    let options = SegmentOptions {
        row_group_raw_max_bytes: 22 << 10,
        page_max_bytes: 2 << 10,
        ..small()
    };
    let (summary, bytes) = write(&records, 990, 2_000, options);
    (records, summary, bytes)
}

fn read_all(segment: &Arc<Segment>, bytes: &Bytes) -> Result<Vec<Record>, SegmentError> {
    Ok(slices(segment, bytes, 3_000)?
        .iter()
        .flat_map(RecordSlice::to_records)
        .collect())
}

/// One to four small changes, of the kinds that find trouble.
fn mutate(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..8) {
            0 | 1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes[at] = rng.random(),
            3 => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][rng.random_range(0..6)],
            4 => {
                let end = (at + rng.random_range(1..9)).min(bytes.len());
                bytes[at..end].fill([0, 0xff, 0x80][rng.random_range(0..3)]);
            }
            5 => {
                let from = rng.random_range(0..bytes.len());
                let len = rng.random_range(1..9).min(bytes.len() - at.max(from));
                bytes.copy_within(from..from + len, at);
            }
            6 => bytes.truncate(at),
            _ => bytes.insert(at, rng.random()),
        }
    }
}

#[test]
fn a_changed_object_is_an_error_or_says_the_same() {
    let (records, summary, bytes) = sample();
    let mut rng = StdRng::seed_from_u64(1);
    for round in 0..rounds(4_000) {
        let mut changed = bytes.to_vec();
        let at = rng.random_range(0..changed.len());
        changed[at] ^= 1 << rng.random_range(0..8);
        let changed = Bytes::from(changed);
        let result =
            parse(&changed, summary.footer_len).and_then(|segment| read_all(&segment, &changed));
        if let Ok(back) = result {
            assert_eq!(back, records, "round {round}, byte {at}");
        }
    }
}

#[test]
fn any_footer_is_refused_or_read_without_a_panic() {
    let (_, summary, bytes) = sample();
    let at = bytes.len() - summary.footer_len as usize;
    let footer = &bytes[at..bytes.len() - 8];
    let mut rng = StdRng::seed_from_u64(2);
    let mut read = 0;
    for _ in 0..rounds(40_000) {
        let mut changed = footer.to_vec();
        mutate(&mut rng, &mut changed);
        let len = changed.len() as u32;
        changed.extend_from_slice(&len.to_le_bytes());
        changed.extend_from_slice(b"PAR1");
        let changed = Bytes::from(changed);
        let object_len = at as u64 + changed.len() as u64;
        if let Ok(segment) = Segment::parse(&changed, object_len) {
            read += 1;
            assert!(
                segment
                    .row_groups()
                    .iter()
                    .all(|group| group.bytes.end <= at as u64)
            );
            read_all(&Arc::new(segment), &bytes).ok();
        }
    }
    assert!(
        read > 0,
        "no changed footer was ever believed: the test tries too little"
    );
}

#[test]
fn a_cut_footer_is_refused() {
    let (_, summary, bytes) = sample();
    for len in 0..summary.footer_len {
        assert!(parse(&bytes, len).is_err(), "{len}");
        assert!(
            Segment::parse(&bytes.slice(bytes.len() - len as usize..), u64::from(len)).is_err()
        );
    }
    let footer = bytes.slice(bytes.len() - summary.footer_len as usize..);
    // The footer's start may lie further behind, never before the end of the row groups.
    assert!(Segment::parse(&footer, bytes.len() as u64 + 5).is_ok());
    assert!(Segment::parse(&footer, bytes.len() as u64 / 2).is_err());
    assert!(Segment::parse(&footer, 0).is_err());
    assert!(Segment::parse(&footer, u64::MAX).is_ok());
}

#[test]
fn row_groups_behind_a_right_checksum_are_refused_or_read_without_a_panic() {
    let (_, summary, bytes) = sample();
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..rounds(10_000) {
        let segment = parse(&bytes, summary.footer_len).expect("a segment");
        let index = rng.random_range(0..segment.row_groups().len());
        let mut changed = group_bytes(&segment, &bytes, index).to_vec();
        let len = changed.len();
        mutate(&mut rng, &mut changed);
        changed.resize(len, 0);
        let segment = Arc::into_inner(segment)
            .expect("the only one")
            .with_checksum_of(index, &changed);
        read_group(&Arc::new(segment), index, changed.into()).ok();
    }
}

fn read_group(
    segment: &Arc<Segment>,
    index: usize,
    bytes: Bytes,
) -> Result<Vec<Record>, SegmentError> {
    let mut reader = RowGroupReader::new(segment, index, bytes)?;
    let info = &segment.row_groups()[index];
    let middle = offset(info.first_offset.get().midpoint(info.last_offset.get()));
    let mut records = Vec::new();
    // Forwards first, then once more from the middle: passing over is other code than reading.
    let forwards = loop {
        match reader.next_slice(3_000) {
            Ok(Some(slice)) => records.extend(slice.to_records()),
            Ok(None) => break Ok(()),
            Err(err) => break Err(err),
        }
    };
    reader.seek(middle)?;
    while reader.next_slice(3_000)?.is_some() {}
    forwards?;
    Ok(records)
}

/// A page taken apart.
struct TestPage {
    encoding: i64,
    values: i64,
    payload: Vec<u8>,
}

fn zigzag(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

impl TestPage {
    /// The page as it would be stored, and its length if nothing were compressed.
    fn store(&self) -> (Vec<u8>, usize) {
        let compressed = zstd::bulk::compress(&self.payload, 1).expect("memory");
        let mut out = Vec::new();
        for (id, value) in [
            (0x15, 0),
            (0x15, self.payload.len() as i64),
            (0x15, compressed.len() as i64),
        ] {
            out.push(id);
            zigzag(&mut out, value);
        }
        out.push(0x2c);
        for value in [self.values, self.encoding, 3, 3] {
            out.push(0x15);
            zigzag(&mut out, value);
        }
        out.extend_from_slice(&[0, 0]);
        let uncompressed = out.len() + self.payload.len();
        out.extend_from_slice(&compressed);
        (out, uncompressed)
    }
}

/// Takes a row group apart into columns and pages.
fn take_apart(group: &RowGroupMetaData, bytes: &[u8]) -> Vec<Vec<TestPage>> {
    let mut rest = bytes;
    let mut columns = Vec::new();
    for column in group.columns() {
        let (mut chunk, behind) = rest.split_at(column.compressed_size() as usize);
        rest = behind;
        let mut pages = Vec::new();
        while !chunk.is_empty() {
            let header = crate::segment::pages::page_header(&mut chunk).expect("a header");
            let (stored, behind) = chunk.split_at(header.compressed_len);
            chunk = behind;
            pages.push(TestPage {
                encoding: header.encoding,
                values: header.values as i64,
                payload: zstd::bulk::decompress(stored, header.uncompressed_len as usize)
                    .expect("a page"),
            });
        }
        columns.push(pages);
    }
    columns
}

/// Puts changed pages together again, with a footer that fits them.
fn put_together(
    metadata: &ParquetMetaData,
    columns: &[Vec<TestPage>],
) -> (Result<Segment, SegmentError>, Bytes) {
    let group = &metadata.row_groups()[0];
    let mut bytes = Vec::new();
    let mut chunks = Vec::new();
    for (column, pages) in group.columns().iter().zip(columns) {
        let start = bytes.len();
        let mut uncompressed = 0;
        for page in pages {
            let (stored, len) = page.store();
            uncompressed += len;
            bytes.extend_from_slice(&stored);
        }
        let chunk = column
            .clone()
            .into_builder()
            .set_data_page_offset(4 + start as i64)
            .set_total_compressed_size((bytes.len() - start) as i64)
            .set_total_uncompressed_size(uncompressed as i64)
            .set_num_values(pages.iter().map(|page| page.values).sum())
            .build()
            .expect("a column");
        chunks.push(chunk);
    }
    let group = group
        .clone()
        .into_builder()
        .set_column_metadata(chunks)
        .build()
        .expect("a row group");
    let metadata = ParquetMetaData::new(metadata.file_metadata().clone(), vec![group]);
    let segment = Segment::check(metadata, 4 + bytes.len() as u64)
        .map(|segment| segment.with_checksum_of(0, &bytes));
    (segment, bytes.into())
}

/// What the decoders of levels and values see: changed pages, compressed anew, with sizes that fit.
#[test]
fn changed_pages_are_refused_or_read_without_a_panic() {
    let (records, _, _) = sample();
    let options = SegmentOptions {
        page_max_bytes: 2 << 10,
        ..SegmentOptions::default()
    };
    let (summary, bytes) = write(&records[..150], 990, 2_000, options);
    let at = bytes.len() - summary.footer_len as usize;
    let metadata =
        ParquetMetaDataReader::decode_metadata(&bytes[at..bytes.len() - 8]).expect("a footer");
    let segment = parse(&bytes, summary.footer_len).expect("a segment");
    let group = group_bytes(&segment, &bytes, 0);

    let columns = take_apart(&metadata.row_groups()[0], &group);
    assert_eq!(columns.len(), LEAF_COUNT);
    let (whole, group_again) = put_together(&metadata, &columns);
    assert_eq!(
        read_group(&Arc::new(whole.expect("a segment")), 0, group_again).expect("records"),
        records[..150]
    );

    let mut rng = StdRng::seed_from_u64(4);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..rounds(15_000) {
        let mut columns = take_apart(&metadata.row_groups()[0], &group);
        for _ in 0..rng.random_range(1..3) {
            let column = rng.random_range(2..LEAF_COUNT);
            let page = rng.random_range(0..columns[column].len());
            let page = &mut columns[column][page];
            mutate(&mut rng, &mut page.payload);
            match rng.random_range(0..12) {
                0 => page.encoding = [0, 5, 6][rng.random_range(0..3)],
                1 => page.values += rng.random_range(-3..4),
                2 => page.values = rng.random_range(0..100_000),
                _ => {}
            }
        }
        let (segment, bytes) = put_together(&metadata, &columns);
        match segment.and_then(|segment| read_group(&Arc::new(segment), 0, bytes)) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(
        read > 0 && refused > 0,
        "{read} read, {refused} refused: the test tries too little"
    );
}
