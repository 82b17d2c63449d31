//! The demo's producer: an ordinary idempotent one that waits for the archiver, since the stand-in cluster forgets fast.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::orders::order;
use super::{PARTITIONS, Shared, TOPIC};

/// How far a partition may run ahead of the archive, in bytes of records. The stand-in cluster keeps 5 MiB of batches,
/// and what it drops before it is archived is a hole.
pub(crate) const AHEAD_MAX_BYTES: u64 = 3 << 20;

const PAUSE: Duration = Duration::from_millis(2);

/// What the producer has brought into the cluster so far.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Acknowledged records by partition, which are offsets too: the demo's topic starts empty.
    pub(crate) delivered: [AtomicI64; PARTITIONS],
    /// Bytes of records given to the producer.
    pub(crate) bytes: AtomicU64,
    /// The end of each partition's log, known once the producer is done.
    pub(crate) done: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Sent {
    pub(crate) fn delivered(&self, partition: usize) -> i64 {
        self.delivered
            .get(partition)
            .map_or(0, |count| count.load(Ordering::Acquire))
    }

    pub(crate) fn delivered_total(&self) -> i64 {
        (0..PARTITIONS)
            .map(|partition| self.delivered(partition))
            .sum()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    fn fail(&self, why: String) {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(why);
    }

    fn check(&self) -> Result<()> {
        match self
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
        {
            Some(why) => bail!("the producer: {why}"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone)]
struct Deliveries(Arc<Sent>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    /// The offset that the record has to get.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, expected: usize) {
        match result {
            Ok(message) => {
                if usize::try_from(message.offset()).ok() != Some(expected) {
                    self.0.fail(format!(
                        "a record got offset {} where {expected} comes next",
                        message.offset()
                    ));
                }
                let partition = usize::try_from(message.partition()).unwrap_or(usize::MAX);
                if let Some(count) = self.0.delivered.get(partition) {
                    count.fetch_max(message.offset() + 1, Ordering::AcqRel);
                }
            }
            Err((err, _)) => self.0.fail(format!("a record was not delivered: {err}")),
        }
    }
}

/// One partition on its way.
struct Lane {
    partition: i32,
    next: i64,
    bytes: u64,
    /// Behind each record that is not archived yet: the bytes sent up to and with it.
    ahead: VecDeque<(i64, u64)>,
    archived_bytes: u64,
}

impl Lane {
    fn has_room(&mut self, archived_end: i64) -> bool {
        while let Some((_, bytes)) = self
            .ahead
            .pop_front_if(|(offset, _)| *offset < archived_end)
        {
            self.archived_bytes = bytes;
        }
        self.bytes - self.archived_bytes < AHEAD_MAX_BYTES
    }
}

/// Produces `bulk_bytes` as fast as the archiver allows, then waits for the reader to have caught up, and then goes on
/// for `tail_records` more at an easy pace, which the reader gets from the live tail. Blocks.
pub(crate) fn produce(
    bootstrap_servers: &str,
    shared: &Shared,
    bulk_bytes: u64,
    tail_records: i64,
) -> Result<()> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap_servers)
        .set("enable.idempotence", "true");
    config
        .set("client.id", "demo-producer")
        .set("linger.ms", "5")
        .set("batch.size", "262144");
    config.set("queue.buffering.max.kbytes", "65536");
    let context = Deliveries(Arc::clone(&shared.sent));
    let producer: BaseProducer<Deliveries> = config
        .create_with_context(context)
        .context("the producer")?;
    let lane = |partition| Lane {
        partition,
        next: 0,
        bytes: 0,
        ahead: VecDeque::new(),
        archived_bytes: 0,
    };
    let mut lanes: Vec<Lane> = (0..).take(PARTITIONS).map(lane).collect();

    while shared.sent.bytes.load(Ordering::Relaxed) < bulk_bytes {
        let mut idle = true;
        for (index, lane) in lanes.iter_mut().enumerate() {
            // Some at a time, so that librdkafka fills its batches.
            for _ in 0..64 {
                if !lane.has_room(shared.archived_end(index)) {
                    break;
                }
                send(&producer, shared, lane)?;
                idle = false;
            }
        }
        producer.poll(Duration::ZERO);
        shared.check()?;
        if idle {
            producer.poll(PAUSE);
        }
    }
    producer
        .flush(Duration::from_secs(60))
        .context("the producer could not deliver everything")?;

    while shared.replayed_total() < shared.sent.delivered_total() {
        shared.check()?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the producer has a thread of its own"
        )]
        std::thread::sleep(Duration::from_millis(20));
    }
    for index in 0..tail_records {
        let lane = usize::try_from(index)
            .ok()
            .and_then(|index| lanes.get_mut(index % PARTITIONS));
        if let Some(lane) = lane {
            while !lane
                .has_room(shared.archived_end(usize::try_from(lane.partition).unwrap_or_default()))
            {
                shared.check()?;
                producer.poll(PAUSE);
            }
            send(&producer, shared, lane)?;
        }
        if index % 100 == 0 {
            producer.poll(Duration::from_millis(20));
        }
    }
    producer
        .flush(Duration::from_secs(60))
        .context("the producer could not deliver everything")?;
    shared.sent.check()?;
    shared.sent.done.store(true, Ordering::Release);
    Ok(())
}

fn send(producer: &BaseProducer<Deliveries>, shared: &Shared, lane: &mut Lane) -> Result<()> {
    let order = order(lane.partition, lane.next, shared.start_ms);
    let headers = order.headers.iter().fold(
        OwnedHeaders::new_with_capacity(order.headers.len()),
        |headers, (key, value)| {
            headers.insert(Header {
                key,
                value: value.as_deref(),
            })
        },
    );
    let expected = usize::try_from(lane.next).context("offsets are not negative")?;
    let mut record: BaseRecord<'_, [u8], [u8], usize> = BaseRecord::with_opaque_to(TOPIC, expected)
        .partition(lane.partition)
        .timestamp(order.timestamp_ms)
        .headers(headers);
    record.key = order.key.as_deref();
    record.payload = order.value.as_deref();
    loop {
        match producer.send(record) {
            Ok(()) => break,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                producer.poll(PAUSE);
                shared.check()?;
            }
            Err((err, _)) => return Err(err).context("the producer"),
        }
    }
    let len = u64::try_from(order.len()).unwrap_or(u64::MAX);
    lane.bytes += len;
    lane.ahead.push_back((lane.next, lane.bytes));
    lane.next += 1;
    shared.sent.bytes.fetch_add(len, Ordering::Relaxed);
    Ok(())
}

impl Shared {
    /// Whether anything has failed elsewhere.
    pub(crate) fn check(&self) -> Result<()> {
        if self.stop.is_cancelled() {
            bail!("stopped");
        }
        self.sent.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_waits_for_the_archive() {
        let mut lane = Lane {
            partition: 0,
            next: 2,
            bytes: AHEAD_MAX_BYTES,
            ahead: VecDeque::new(),
            archived_bytes: 0,
        };
        lane.ahead.extend([(0, 1000), (1, AHEAD_MAX_BYTES)]);
        assert!(!lane.has_room(0));
        assert!(
            lane.has_room(1),
            "the first record is archived, so there is room for its bytes"
        );
        assert!(lane.has_room(2));
        assert_eq!(lane.archived_bytes, AHEAD_MAX_BYTES);
    }
}
