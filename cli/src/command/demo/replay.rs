//! The demo's reader: an ordinary consumer group behind the proxy, which compares each record with what was sent.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Timestamp, error::KafkaError};
use tokio::time::Instant;

use super::orders::{Order, order};
use super::{PARTITIONS, Shared, TOPIC};

/// Without a single record for so long, something is broken.
const STALL_MAX: Duration = Duration::from_secs(60);

/// How many differences are worth describing.
const DIFFERENCES_TOLD: usize = 5;

/// What the reader has got so far.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// The next offset by partition.
    pub(crate) next: [AtomicI64; PARTITIONS],
    /// Records that were not in the archive when they were read: they came from the live tail.
    pub(crate) live: AtomicU64,
    /// Records that are in all parts as they were sent.
    pub(crate) equal: [AtomicI64; PARTITIONS],
}

/// Reads from offset 0 until the producer is done and everything has come. Blocks. Gives the first few differences.
pub(crate) fn replay(proxy: &str, shared: &Shared) -> Result<Vec<String>> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", proxy)
        .set("group.id", "demo-reader")
        .set("client.id", "demo-reader");
    config
        .set("auto.offset.reset", "earliest")
        .set("check.crcs", "true");
    config.set("queued.max.messages.kbytes", "16384");
    let consumer: BaseConsumer = config.create().context("the consumer")?;
    consumer.subscribe(&[TOPIC]).context("the consumer")?;

    let mut differences = Vec::new();
    let mut last_progress = Instant::now();
    while !is_complete(shared) {
        shared.check()?;
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                differences.extend(
                    take(&message, shared)?.filter(|_| differences.len() < DIFFERENCES_TOLD),
                );
                last_progress = Instant::now();
            }
            // librdkafka goes on by itself after these.
            Some(Err(err @ (KafkaError::MessageConsumption(_) | KafkaError::Global(_)))) => {
                tracing::warn!(
                    error = &err as &dyn std::error::Error,
                    "the consumer met an error and goes on"
                );
            }
            Some(Err(err)) => return Err(err).context("the consumer"),
            None if last_progress.elapsed() > STALL_MAX => bail!(
                "the consumer got nothing for {} s; it stands at {:?}, the producer at {:?}",
                STALL_MAX.as_secs(),
                (0..PARTITIONS)
                    .map(|partition| shared.replayed(partition))
                    .collect::<Vec<_>>(),
                (0..PARTITIONS)
                    .map(|partition| shared.sent.delivered(partition))
                    .collect::<Vec<_>>(),
            ),
            None => {}
        }
    }
    Ok(differences)
}

fn is_complete(shared: &Shared) -> bool {
    shared.sent.is_done()
        && (0..PARTITIONS)
            .all(|partition| shared.replayed(partition) >= shared.sent.delivered(partition))
}

/// Notes the record. An offset that is skipped or comes again is an end; a difference in content is told at the end.
fn take(message: &BorrowedMessage<'_>, shared: &Shared) -> Result<Option<String>> {
    let (partition, offset) = (message.partition(), message.offset());
    let index = usize::try_from(partition)
        .ok()
        .filter(|index| *index < PARTITIONS)
        .context("an unknown partition")?;
    let expected = shared.replayed(index);
    if offset != expected {
        bail!("partition {partition} gave offset {offset} where {expected} comes next");
    }
    if offset >= shared.archived_end(index) {
        shared.replayed.live.fetch_add(1, Ordering::Relaxed);
    }
    let difference = difference(message, &order(partition, offset, shared.start_ms));
    if difference.is_none() {
        shared.replayed.equal[index].fetch_add(1, Ordering::Relaxed);
    }
    shared.replayed.next[index].store(offset + 1, Ordering::Release);
    Ok(
        difference
            .map(|part| format!("partition {partition}, offset {offset}: the {part} differs")),
    )
}

fn difference(message: &BorrowedMessage<'_>, sent: &Order) -> Option<&'static str> {
    let headers: Vec<(String, Option<Vec<u8>>)> = message
        .headers()
        .map(|headers| {
            headers
                .iter()
                .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                .collect()
        })
        .unwrap_or_default();
    if message.key() != sent.key.as_deref() {
        Some("key")
    } else if message.payload() != sent.value.as_deref() {
        Some("value")
    } else if headers != sent.headers {
        Some("list of headers")
    } else if message.timestamp() != Timestamp::CreateTime(sent.timestamp_ms) {
        Some("timestamp")
    } else {
        None
    }
}
