//! Record batches made by hand, for what no client library would send: timestamp -1, header keys that are no text,
//! 1970 and today in one batch.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

/// A header, any bytes.
pub type RawHeader = (Vec<u8>, Option<Vec<u8>>);

/// A record for a hand-made batch.
#[derive(Clone, Debug, Default)]
pub struct RawRecord {
    /// Any value.
    pub timestamp_ms: i64,
    /// Null differs from empty.
    pub key: Option<Vec<u8>>,
    /// Null differs from empty.
    pub value: Option<Vec<u8>>,
    /// In order, duplicates kept.
    pub headers: Vec<RawHeader>,
}

/// An uncompressed batch, magic 2, without a producer id.
#[derive(Clone, Debug, Default)]
pub struct RawBatch {
    /// At least one.
    pub records: Vec<RawRecord>,
}

fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = (value.wrapping_shl(1) ^ (value >> 63)).cast_unsigned();
    loop {
        let low = u8::try_from(rest & 0x7f).expect("7 bits");
        rest >>= 7;
        if rest == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) -> Result<()> {
    put_varint(out, i64::try_from(length)?);
    Ok(())
}

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) -> Result<()> {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_length(out, bytes.len())?;
            out.extend_from_slice(bytes);
        }
    }
    Ok(())
}

impl RawBatch {
    /// The bytes of the batch.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let first = self.records.first().context("a batch has a record")?;
        let max = self
            .records
            .iter()
            .map(|record| record.timestamp_ms)
            .max()
            .context("a batch has a record")?;
        let count = i32::try_from(self.records.len())?;
        let mut body = Vec::new();
        body.extend_from_slice(&0_i16.to_be_bytes()); // attributes
        body.extend_from_slice(&(count - 1).to_be_bytes());
        body.extend_from_slice(&first.timestamp_ms.to_be_bytes());
        body.extend_from_slice(&max.to_be_bytes());
        body.extend_from_slice(&(-1_i64).to_be_bytes()); // producer id
        body.extend_from_slice(&(-1_i16).to_be_bytes()); // producer epoch
        body.extend_from_slice(&(-1_i32).to_be_bytes()); // base sequence
        body.extend_from_slice(&count.to_be_bytes());
        for (index, record) in self.records.iter().enumerate() {
            let mut out = vec![0]; // attributes
            put_varint(
                &mut out,
                record.timestamp_ms.wrapping_sub(first.timestamp_ms),
            );
            put_length(&mut out, index)?;
            put_nullable(&mut out, record.key.as_deref())?;
            put_nullable(&mut out, record.value.as_deref())?;
            put_length(&mut out, record.headers.len())?;
            for (key, value) in &record.headers {
                put_nullable(&mut out, Some(key))?;
                put_nullable(&mut out, value.as_deref())?;
            }
            put_length(&mut body, out.len())?;
            body.extend_from_slice(&out);
        }
        let mut batch = Vec::new();
        batch.extend_from_slice(&0_i64.to_be_bytes()); // base offset
        batch.extend_from_slice(&i32::try_from(body.len() + 9)?.to_be_bytes());
        batch.extend_from_slice(&(-1_i32).to_be_bytes()); // leader epoch
        batch.push(2); // magic
        batch.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
        batch.extend_from_slice(&body);
        Ok(batch)
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) -> Result<()> {
    out.extend_from_slice(&i16::try_from(text.len())?.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn leader(bootstrap: &str, topic: &str, partition: i32) -> Result<String> {
    let asker: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()?;
    let metadata = asker.fetch_metadata(Some(topic), Duration::from_secs(30))?;
    let topic = metadata.topics().first().context("no topic")?;
    let partition = topic
        .partitions()
        .iter()
        .find(|found| found.id() == partition)
        .context("no partition")?;
    let broker = metadata
        .brokers()
        .iter()
        .find(|broker| broker.id() == partition.leader())
        .context("no leader")?;
    Ok(format!("{}:{}", broker.host(), broker.port()))
}

/// Sends batches to the partition's leader with Produce version 3, acks -1, one request each.
pub fn produce_raw(
    bootstrap: &str,
    topic: &str,
    partition: i32,
    batches: &[RawBatch],
) -> Result<()> {
    let mut stream = TcpStream::connect(leader(bootstrap, topic, partition)?)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    for (number, batch) in batches.iter().enumerate() {
        let batch = batch.encode()?;
        let mut request = Vec::new();
        request.extend_from_slice(&0_i16.to_be_bytes()); // Produce
        request.extend_from_slice(&3_i16.to_be_bytes()); // version
        request.extend_from_slice(&i32::try_from(number)?.to_be_bytes());
        put_string(&mut request, "raw")?;
        request.extend_from_slice(&(-1_i16).to_be_bytes()); // no transactional id
        request.extend_from_slice(&(-1_i16).to_be_bytes()); // acks
        request.extend_from_slice(&30_000_i32.to_be_bytes());
        request.extend_from_slice(&1_i32.to_be_bytes());
        put_string(&mut request, topic)?;
        request.extend_from_slice(&1_i32.to_be_bytes());
        request.extend_from_slice(&partition.to_be_bytes());
        request.extend_from_slice(&i32::try_from(batch.len())?.to_be_bytes());
        request.extend_from_slice(&batch);
        stream.write_all(&i32::try_from(request.len())?.to_be_bytes())?;
        stream.write_all(&request)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length))?];
        stream.read_exact(&mut answer)?;
        // Correlation id, one topic with its name, one partition, its number: then the code.
        let at = 4 + 4 + 2 + topic.len() + 4 + 4;
        let code = i16::from_be_bytes(
            answer
                .get(at..at + 2)
                .context("a short answer")?
                .try_into()?,
        );
        if code != 0 {
            bail!("the broker refused a hand-made batch with error {code}");
        }
    }
    Ok(())
}
