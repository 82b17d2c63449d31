//! Records to archive: believable orders, and the odd ones that a lossy archive would lose.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Admin, RawBatch, RawRecord, java_transactions, produce_raw};

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
const FLUSH_MAX: Duration = Duration::from_secs(120);
/// 2026-01-01.
const EPOCH_MS: i64 = 1_767_225_600_000;
const DAY_MS: i64 = 86_400_000;

/// Counts what the broker refused.
#[derive(Clone, Default)]
struct CountErrors(Arc<AtomicU64>);

impl rdkafka::ClientContext for CountErrors {}
impl ProducerContext for CountErrors {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A producer that waits for all in-sync replicas and forgets no error.
struct Sender {
    producer: BaseProducer<CountErrors>,
    errors: CountErrors,
}

impl Sender {
    fn new(bootstrap: &str, codec: &str) -> Result<Sender> {
        let errors = CountErrors::default();
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("compression.codec", codec)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "20")
            .set("batch.size", "131072")
            .set("message.max.bytes", "4000000")
            .set("queue.buffering.max.kbytes", "65536")
            .create_with_context(errors.clone())?;
        Ok(Sender { producer, errors })
    }

    /// Queues one; waits while the queue is full.
    fn send<'a>(&self, mut record: BaseRecord<'a, [u8], [u8]>) -> Result<()> {
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.producer.poll(Duration::from_millis(20));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }

    fn flush(&self) -> Result<()> {
        self.producer.flush(FLUSH_MAX)?;
        let errors = self.errors.0.load(Ordering::Relaxed);
        anyhow::ensure!(errors == 0, "{errors} records were refused");
        Ok(())
    }
}

/// An order of about 1 KiB, the same for the same number.
pub fn order_json(number: u64) -> String {
    const WORDS: [&str; 24] = [
        "amber", "basket", "cedar", "delta", "ember", "fabric", "garnet", "harbor", "indigo",
        "jasper", "kettle", "lantern", "marble", "needle", "orchid", "pepper", "quartz", "ribbon",
        "saffron", "timber", "umber", "velvet", "willow", "zephyr",
    ];
    let mut rng = StdRng::seed_from_u64(number);
    let word = |rng: &mut StdRng| WORDS[rng.random_range(0..WORDS.len())];
    let mut items = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        items.push(format!(
            r#"{{"sku":"SKU-{}","name":"{} {} {}","quantity":{},"unit_price":{}.{:02}}}"#,
            rng.random_range(100_000..190_000),
            word(&mut rng),
            word(&mut rng),
            word(&mut rng),
            rng.random_range(1..5),
            rng.random_range(1..500),
            rng.random_range(0..100),
        ));
    }
    let note: Vec<&str> = (0..rng.random_range(55..75))
        .map(|_| word(&mut rng))
        .collect();
    format!(
        r#"{{"order_id":"{:032x}","number":{number},"customer":{{"id":"c-{}","country":"{}","segment":"s{}"}},"placed_at":{},"items":[{}],"currency":"EUR","session":"{:016x}","address":"{}.{}.{}.{}","note":"{}","trace":{{"trace_id":"{:032x}","sampled":{}}},"schema":"com.example.orders.v3"}}"#,
        rng.random::<u128>(),
        rng.random_range(0..250_000),
        ["DE", "FR", "US", "BR", "IN", "JP", "PL"][rng.random_range(0..7)],
        rng.random_range(0..17),
        EPOCH_MS + i64::try_from(number).unwrap_or(0),
        items.join(","),
        rng.random::<u64>(),
        rng.random_range(10..90),
        rng.random::<u8>(),
        rng.random::<u8>(),
        rng.random::<u8>(),
        note.join(" "),
        rng.random::<u128>(),
        rng.random_bool(0.1),
    )
}

/// Sends orders `numbers` round robin over the partitions; their times grow by a millisecond each.
pub fn produce_orders(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    numbers: std::ops::Range<u64>,
    codec: &str,
) -> Result<()> {
    let sender = Sender::new(bootstrap, codec)?;
    for number in numbers {
        let value = order_json(number);
        let key = format!("c-{}", number % 5000);
        let record = BaseRecord::to(topic)
            .partition(i32::try_from(number % u64::try_from(partitions)?)?)
            .timestamp(EPOCH_MS + i64::try_from(number)?)
            .key(key.as_bytes())
            .payload(value.as_bytes());
        sender.send(record)?;
        if number % 64 == 0 {
            sender.producer.poll(Duration::ZERO);
        }
    }
    sender.flush()
}

/// Sends `records` of 1000 bytes that compress about 40 : 1, in large zstd batches, round robin over the partitions.
pub fn produce_inflating(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    records: u64,
) -> Result<()> {
    let sender = Sender::new(bootstrap, "zstd")?;
    let mut rng = StdRng::seed_from_u64(records);
    let mut value = vec![0_u8; 1000];
    for number in 0..records {
        rng.fill(&mut value[..14]);
        let partition = i32::try_from(number % u64::try_from(partitions)?)?;
        let record = BaseRecord::to(topic).partition(partition);
        sender.send(record.payload(&value[..]))?;
        if number % 64 == 0 {
            sender.producer.poll(Duration::ZERO);
        }
    }
    sender.flush()
}

/// A topic that holds everything that line 1 of the issue names.
#[derive(Clone, Debug)]
pub struct Fidelity {
    /// The topic; it has to exist.
    pub topic: String,
    /// Its partitions.
    pub partitions: i32,
    /// Printed where a test fails.
    pub seed: u64,
    /// Days after 2026-01-01 around which most records lie.
    pub day: i64,
}

impl Fidelity {
    /// Sends `records` ordinary-looking but nasty records: all codecs; null and empty keys and values; headers of all kinds that
    /// librdkafka can send; times out of order and years apart.
    pub fn mixed(&self, bootstrap: &str, records: u64, round: u64) -> Result<()> {
        let senders: Vec<Sender> = CODECS
            .iter()
            .map(|codec| Sender::new(bootstrap, codec))
            .collect::<Result<_>>()?;
        let mut rng = StdRng::seed_from_u64(self.seed ^ (round << 32));
        let mut bytes = vec![0_u8; 2_100_000];
        rng.fill(&mut bytes[..]);
        // Half of it compresses well, as real values do.
        bytes[1_000_000..].fill(b'e');
        for number in 0..records {
            // Codecs come in runs, so that batches fill.
            let sender = &senders[usize::try_from((number / 97) % 5)?];
            let start = rng.random_range(0..1_500_000);
            let length = match rng.random_range(0..1000_u32) {
                0..150 => 0,
                150..700 => rng.random_range(1..64),
                700..990 => rng.random_range(64..1200),
                _ => rng.random_range(1200..20_000),
            };
            let mut record = BaseRecord::to(&self.topic)
                .partition(rng.random_range(0..self.partitions))
                .timestamp(self.timestamp(&mut rng, number));
            let key = format!("key-{}", rng.random_range(0..5000));
            match rng.random_range(0..10) {
                0..2 => {}
                2 => record = record.key(&b""[..]),
                _ => record = record.key(key.as_bytes()),
            }
            if !rng.random_bool(0.08) {
                record = record.payload(&bytes[start..start + length]);
            }
            if rng.random_bool(0.3) {
                record = record.headers(headers(&mut rng));
            }
            sender.send(record)?;
            if number % 64 == 0 {
                sender.producer.poll(Duration::ZERO);
            }
        }
        for sender in &senders {
            sender.flush()?;
        }
        // 2 MB records, one per codec.
        for (number, sender) in senders.iter().enumerate() {
            let partition = i32::try_from(number)? % self.partitions;
            sender.send(
                BaseRecord::to(&self.topic)
                    .partition(partition)
                    .key(&b"large"[..])
                    .payload(&bytes[..2_000_000 + number]),
            )?;
            sender.flush()?;
        }
        Ok(())
    }

    fn timestamp(&self, rng: &mut StdRng, number: u64) -> i64 {
        let usual = EPOCH_MS + self.day * DAY_MS + i64::try_from(number).unwrap_or(0) * 3;
        match rng.random_range(0..100) {
            0..90 => usual,
            90..97 => usual + rng.random_range(-60_000..60_000),
            97..99 => usual + rng.random_range(-400 * DAY_MS..400 * DAY_MS),
            _ => rng.random_range(1..1_000_000),
        }
    }

    /// What no client library sends: timestamps 0 and -1, 1970 beside now, header keys that are no text.
    pub fn hand_made(&self, bootstrap: &str) -> Result<()> {
        (0..self.partitions).try_for_each(|partition| self.hand_made_in(bootstrap, partition))
    }

    /// [`Fidelity::hand_made`] for one partition.
    pub fn hand_made_in(&self, bootstrap: &str, partition: i32) -> Result<()> {
        let record = |timestamp_ms: i64, value: &str| RawRecord {
            timestamp_ms,
            key: Some(b"raw".to_vec()),
            value: Some(value.as_bytes().to_vec()),
            headers: Vec::new(),
        };
        let mut batches = Vec::new();
        batches.push(RawBatch {
            records: vec![
                record(0, "zero"),
                record(-1, "none"),
                record(EPOCH_MS, "now"),
            ],
        });
        batches.push(RawBatch {
            records: vec![record(-1, "none"), record(-1, "none")],
        });
        // More than 2^31 ms apart, both ways, in one batch.
        let times = [
            EPOCH_MS,
            0,
            EPOCH_MS + 60 * DAY_MS,
            -1,
            EPOCH_MS - 3000 * DAY_MS,
            253_402_300_800_000,
            1,
        ];
        batches.push(RawBatch {
            records: times
                .iter()
                .map(|time| record(*time, "far apart"))
                .collect(),
        });
        // Beyond what microseconds in 64 bits can hold.
        batches.push(RawBatch {
            records: vec![
                record(i64::MAX / 1000 + 1, "beyond micros"),
                record(5, "back"),
            ],
        });
        let odd = RawRecord {
            headers: vec![
                (
                    b"\xff\xfe not text".to_vec(),
                    Some(b"\x00\x01\x02".to_vec()),
                ),
                (b"".to_vec(), Some(b"empty key".to_vec())),
                (b"same".to_vec(), Some(b"first".to_vec())),
                (b"same".to_vec(), None),
                (b"same".to_vec(), Some(Vec::new())),
                (b"\xc3\x28".to_vec(), None),
            ],
            ..record(EPOCH_MS, "odd headers")
        };
        let bare = RawRecord {
            timestamp_ms: EPOCH_MS,
            ..RawRecord::default()
        };
        let empty = RawRecord {
            key: Some(Vec::new()),
            value: Some(Vec::new()),
            ..bare.clone()
        };
        // Any text may be a key, U+0000 too.
        let mut nul = record(EPOCH_MS, "NUL in header keys");
        for key in [&b"a\0b"[..], b"end\0", b"\0"] {
            for value in [None, Some(&b""[..]), Some(&b"v\0"[..])] {
                nul.headers.push((key.to_vec(), value.map(<[u8]>::to_vec)));
            }
        }
        batches.push(RawBatch {
            records: vec![odd, bare, empty, nul],
        });
        produce_raw(bootstrap, &self.topic, partition, &batches)
    }

    /// Some records under LogAppendTime, in the same partitions.
    pub fn log_append_time(
        &self,
        bootstrap: &str,
        admin: &Admin,
        records: u64,
        round: u64,
    ) -> Result<()> {
        admin.set_topic_config(&self.topic, &[("message.timestamp.type", "LogAppendTime")])?;
        // The config reaches the broker's log a moment after the answer: both kinds are fine to archive.
        self.mixed(bootstrap, records, round)?;
        std::thread::sleep(Duration::from_millis(500));
        self.mixed(bootstrap, records, round + 1)?;
        admin.set_topic_config(&self.topic, &[("message.timestamp.type", "CreateTime")])
    }

    /// Transactions, a third of them aborted.
    pub fn transactions(
        &self,
        bootstrap: &str,
        folder: &Path,
        records: u64,
        round: u64,
    ) -> Result<()> {
        let id = format!("fidelity-{round}");
        java_transactions(
            bootstrap,
            &self.topic,
            folder,
            &id,
            self.seed + round,
            records,
            false,
        )
        .map(|_| ())
        .with_context(|| format!("seed {}", self.seed))
    }

    /// One more transaction that stays open: nothing behind its first record is visible.
    pub fn leave_open(&self, bootstrap: &str, folder: &Path) -> Result<()> {
        java_transactions(
            bootstrap,
            &self.topic,
            folder,
            "fidelity-open",
            self.seed,
            1,
            true,
        )
        .map(|_| ())
    }
}

fn headers(rng: &mut StdRng) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new();
    for _ in 0..rng.random_range(1..5) {
        let key = ["trace", "trace", "", "ключ", "content-type"][rng.random_range(0..5)];
        let value = match rng.random_range(0..4) {
            0 => None,
            1 => Some(Vec::new()),
            _ => Some((0..rng.random_range(1..40)).map(|_| rng.random()).collect()),
        };
        headers = headers.insert(Header {
            key,
            value: value.as_ref(),
        });
    }
    headers
}
