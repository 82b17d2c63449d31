//! How fast one thread turns records into a segment and a segment into record batches: MB of raw record bytes per
//! second of the thread's own CPU time, so that a busy machine does not change the figures much.
//!
//!     cargo run --release -p everlog-format --example speed
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "offsets and sizes here are small"
)]
#![expect(
    clippy::print_stdout,
    reason = "a program for people to read the output of"
)]

use std::sync::Arc;

use anyhow_less::Result;
use everlog_format::{
    ClusterId, Day, Header, Incarnation, Offset, Partition, Record, RowGroupReader, Salt, Segment,
    SegmentIdentity, SegmentOptions, SegmentWriter, TimestampType, TopicId, TopicName,
    encode_batches,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

mod anyhow_less {
    pub(super) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
}

const RAW_BYTES: u64 = 64 << 20;
const ROUNDS: usize = 5;

/// CPU time of this thread in seconds.
fn cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = text
        .split_whitespace()
        .next()
        .ok_or("no schedstat")?
        .parse()?;
    Ok(nanoseconds / 1e9)
}

/// A JSON order of about 1 KiB with a key and two headers.
fn order(rng: &mut StdRng, offset: i64) -> Record {
    let mut value = format!(
        "{{\"order_id\":\"{:016x}\",\"customer\":{},\"currency\":\"EUR\",\"items\":[",
        rng.random::<u64>(),
        rng.random_range(1..200_000)
    );
    while value.len() < 940 {
        value.push_str(&format!(
            "{{\"sku\":\"SKU-{:06}\",\"quantity\":{},\"unit_price\":{}.{:02},\"warehouse\":\"{}\"}},",
            rng.random_range(0..500_000),
            rng.random_range(1..9),
            rng.random_range(1..900),
            rng.random_range(0..100),
            ["hamburg", "lyon", "gdansk", "porto"][rng.random_range(0..4)],
        ));
    }
    value.push_str("{}],\"note\":\"leave at the door\"}");
    let header = |key: &str, value: String| Header {
        key: key.as_bytes().to_vec(),
        value: Some(value.into_bytes()),
    };
    Record {
        offset,
        timestamp_ms: 1_700_000_000_000 + offset * 3 + rng.random_range(0..20),
        timestamp_type: TimestampType::Create,
        leader_epoch: Some(3),
        key: Some(format!("{:016x}", rng.random::<u64>()).into_bytes()),
        value: Some(value.into_bytes()),
        headers: vec![
            header(
                "traceparent",
                format!(
                    "00-{:032x}-{:016x}-01",
                    rng.random::<u128>(),
                    rng.random::<u64>()
                ),
            ),
            header("source", "shop".to_owned()),
        ],
    }
}

/// A sensor's reading of about 110 bytes.
fn reading(rng: &mut StdRng, offset: i64) -> Record {
    let value = format!(
        "{{\"sensor\":\"s-{:05}\",\"t\":{:.2},\"h\":{:.1},\"battery\":{},\"state\":\"ok\",\"seq\":{offset}}}",
        rng.random_range(0..20_000),
        rng.random::<f64>() * 60.0,
        rng.random::<f64>() * 100.0,
        rng.random_range(10..100),
    );
    Record {
        offset,
        timestamp_ms: 1_700_000_000_000 + offset,
        timestamp_type: TimestampType::Create,
        leader_epoch: Some(3),
        key: Some(format!("sensor-{:05}", rng.random_range(0..20_000)).into_bytes()),
        value: Some(value.into_bytes()),
        headers: Vec::new(),
    }
}

fn records(make: impl Fn(&mut StdRng, i64) -> Record) -> Vec<Record> {
    let mut rng = StdRng::seed_from_u64(1);
    let (mut records, mut raw_bytes) = (Vec::new(), 0);
    while raw_bytes < RAW_BYTES {
        let record = make(&mut rng, records.len() as i64);
        raw_bytes += record.as_ref(&mut Vec::new()).raw_bytes();
        records.push(record);
    }
    records
}

fn write(records: &[Record]) -> Result<(everlog_format::SegmentSummary, Vec<u8>)> {
    let identity = SegmentIdentity {
        incarnation: Incarnation {
            cluster: ClusterId::new("cluster")?,
            topic_id: TopicId::new("4L6g3nShT-eMCtK--X86sw")?,
        },
        topic: TopicName::new("orders")?,
        partition: Partition::new(0).ok_or("a partition")?,
    };
    let out = Vec::with_capacity(40 << 20);
    let mut writer = SegmentWriter::new(
        out,
        identity,
        Offset::ZERO,
        Day::UNKNOWN,
        Salt::new([0; 16]),
        SegmentOptions::default(),
    )?;
    for record in records {
        writer.push(&record.as_ref(&mut Vec::new()))?;
    }
    Ok(writer.finish(Offset::new(records.len() as i64)?)?)
}

/// Gives the seconds for slices alone, and for slices and batches.
fn read(segment: &Arc<Segment>, bytes: &bytes::Bytes) -> Result<(f64, f64)> {
    let mut seconds = [0.0; 2];
    let mut out = Vec::new();
    for (encode, seconds) in [false, true].into_iter().zip(&mut seconds) {
        let before = cpu_seconds()?;
        for (index, group) in segment.row_groups().iter().enumerate() {
            let group =
                bytes.slice(usize::try_from(group.bytes.start)?..usize::try_from(group.bytes.end)?);
            let mut reader = RowGroupReader::new(segment, index, group)?;
            while let Some(slice) = reader.next_slice(1 << 20)? {
                if encode {
                    out.clear();
                    encode_batches(&slice, 1 << 20, &mut out);
                }
            }
        }
        *seconds = cpu_seconds()? - before;
    }
    Ok((seconds[0], seconds[1]))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    println!(
        "{:<10} {:>9} {:>9} {:>8} {:>14} {:>14} {:>14}",
        "records", "raw MB", "stored MB", "groups", "write MB/s", "slices MB/s", "batches MB/s"
    );
    for (name, records) in [("1 KiB", records(order)), ("100 B", records(reading))] {
        let mut speeds = [const { Vec::new() }; 3];
        let mut line = String::new();
        for _ in 0..ROUNDS {
            let before = cpu_seconds()?;
            let (summary, object) = write(&records)?;
            let write_seconds = cpu_seconds()? - before;
            let object = bytes::Bytes::from(object);
            let tail = object.slice(object.len() - summary.footer_len as usize..);
            let segment = Arc::new(Segment::parse(&tail, object.len() as u64)?);
            let (slices, batches) = read(&segment, &object)?;
            let megabytes = summary.raw_bytes as f64 / 1e6;
            for (speed, seconds) in speeds.iter_mut().zip([write_seconds, slices, batches]) {
                speed.push(megabytes / seconds);
            }
            line = format!(
                "{name:<10} {megabytes:>9.1} {:>9.1} {:>8}",
                summary.bytes as f64 / 1e6,
                segment.row_groups().len()
            );
        }
        let [write, slices, batches] = speeds.map(median);
        println!("{line} {write:>14.0} {slices:>14.0} {batches:>14.0}");
    }
    Ok(())
}
