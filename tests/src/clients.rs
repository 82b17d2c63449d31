//! The three clients: Java's kafka-clients and franz-go as programs of their own, librdkafka in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use rdkafka_sys as sys;

use crate::process::tail;
use crate::{Cache, LineWriter, Process, RecordParts};

const STALL_MAX: Duration = Duration::from_secs(60);
const READ_MAX: Duration = Duration::from_secs(1800);

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// kafka-clients.
    Java,
    /// librdkafka.
    Rdkafka,
    /// franz-go.
    FranzGo,
}

impl Client {
    /// All of them.
    pub const ALL: [Client; 3] = [Client::Java, Client::Rdkafka, Client::FranzGo];

    /// For folders and messages.
    pub fn name(self) -> &'static str {
        match self {
            Client::Java => "java",
            Client::Rdkafka => "rdkafka",
            Client::FranzGo => "franz-go",
        }
    }
}

/// What a read saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Earliest and latest offset of each partition as the client was told (`read_committed`).
    pub ranges: BTreeMap<i32, (i64, i64)>,
    /// Records that were delivered.
    pub records: u64,
}

fn report_of(text: &str) -> Result<ReadReport> {
    let mut report = ReadReport::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["partition", partition, "start", start, "end", end] => {
                report
                    .ranges
                    .insert(partition.parse()?, (start.parse()?, end.parse()?));
            }
            ["records", records] => report.records = records.parse()?,
            _ => {}
        }
    }
    Ok(report)
}

/// Reads a topic from its beginning to its end with `client`, which assigns itself all partitions, and writes lines into
/// `folder`.
///
/// The Java client has read all once its `position()` has reached `endOffsets()`; librdkafka, once it has raised
/// PARTITION_EOF in each partition; franz-go, once the last offset came or nothing more comes.
pub fn read(client: Client, bootstrap: &str, topic: &str, folder: &Path) -> Result<ReadReport> {
    Reading::start_with(client, bootstrap, topic, folder, 2)?.finish()
}

/// A [`read`] under way.
#[derive(Debug)]
pub struct Reading {
    what: String,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Program(Process),
    Thread {
        paused: Arc<AtomicBool>,
        done: JoinHandle<Result<ReadReport>>,
    },
}

impl Reading {
    /// Begins, for a time in which nothing may come for a while.
    pub fn start(client: Client, bootstrap: &str, topic: &str, folder: &Path) -> Result<Reading> {
        Reading::start_with(client, bootstrap, topic, folder, 25)
    }

    /// franz-go ends after `quiet_rounds` of 2 s in which nothing came.
    fn start_with(
        client: Client,
        bootstrap: &str,
        topic: &str,
        folder: &Path,
        quiet_rounds: u32,
    ) -> Result<Reading> {
        let cache = Cache::find()?;
        std::fs::create_dir_all(folder)?;
        let what = format!("{} reading {topic}", client.name());
        let mut command = match client {
            Client::Java => cache.java(JAVA, "Client"),
            Client::FranzGo => cache.go_client(),
            Client::Rdkafka => {
                let paused = Arc::new(AtomicBool::new(false));
                let flag = Arc::clone(&paused);
                let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
                let folder = folder.to_owned();
                let done =
                    std::thread::spawn(move || rdkafka_read(&bootstrap, &topic, &folder, &flag));
                let work = Work::Thread { paused, done };
                return Ok(Reading { what, work });
            }
        };
        command.args(["read", bootstrap, topic]).arg(folder);
        command.env("EVERLOG_QUIET_ROUNDS", quiet_rounds.to_string());
        let process = Process::start(client.name(), &command, &folder.join("log"))?;
        let work = Work::Program(process);
        Ok(Reading { what, work })
    }

    /// From now on it takes nothing more: a program is stopped as a whole, its sockets stay open; librdkafka goes on until
    /// its own queue is full.
    pub fn pause(&self) -> Result<()> {
        match &self.work {
            Work::Program(process) => process.signal("STOP"),
            Work::Thread { paused, .. } => {
                paused.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Undoes [`Reading::pause`].
    pub fn resume(&self) -> Result<()> {
        match &self.work {
            Work::Program(process) => process.signal("CONT"),
            Work::Thread { paused, .. } => {
                paused.store(false, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Waits for the end.
    pub fn finish(self) -> Result<ReadReport> {
        let read = match self.work {
            Work::Program(mut process) => process
                .wait_success(READ_MAX)
                .and_then(|()| report_of(&process.log_text())),
            Work::Thread { done, .. } => done
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the reader panicked"))),
        };
        read.context(self.what)
    }
}

const JAVA: &[&str] = &["-Xmx384m", "-XX:+UseSerialGC"];

fn rdkafka_config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("check.crcs", "true")
        .set("queued.max.messages.kbytes", "65536")
        .set("group.id", "everlog-tests-reader");
    config
}

/// All partitions of a topic, from the metadata.
fn partitions_of(consumer: &BaseConsumer, topic: &str) -> Result<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30))?;
    let topic = metadata
        .topics()
        .first()
        .context("no topic in the answer")?;
    Ok(topic
        .partitions()
        .iter()
        .map(rdkafka::metadata::MetadataPartition::id)
        .collect())
}

fn rdkafka_read(
    bootstrap: &str,
    topic: &str,
    folder: &Path,
    paused: &AtomicBool,
) -> Result<ReadReport> {
    let consumer: BaseConsumer = rdkafka_config(bootstrap)
        .set("enable.partition.eof", "true")
        .create()?;
    let mut report = ReadReport::default();
    let mut list = TopicPartitionList::new();
    for partition in partitions_of(&consumer, topic)? {
        let range = consumer.fetch_watermarks(topic, partition, Duration::from_secs(30))?;
        report.ranges.insert(partition, range);
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    let mut open: BTreeSet<i32> = report.ranges.keys().copied().collect();
    consumer.assign(&list)?;
    let mut lines = LineWriter::new(folder)?;
    let mut progress = Instant::now();
    while !open.is_empty() {
        while paused.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
            progress = Instant::now();
        }
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => {
                write_message(&message, &mut lines)?;
                report.records += 1;
                progress = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
                progress = Instant::now();
            }
            Some(Err(error)) => rdkafka_trouble(&error)?,
        }
        if progress.elapsed() > STALL_MAX {
            bail!(
                "stalled after {} records; no end of {open:?}; ranges {:?}",
                report.records,
                report.ranges
            );
        }
    }
    lines.flush()?;
    Ok(report)
}

/// Errors that librdkafka only tells of and gets over by itself are none; an error that an application would see as
/// the end of its reading is one.
fn rdkafka_trouble(error: &KafkaError) -> Result<()> {
    let passing = matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Resolve
        )
    );
    if passing {
        Ok(())
    } else {
        Err(anyhow!("librdkafka: {error}"))
    }
}

#[expect(
    unsafe_code,
    reason = "rdkafka's safe interface has no leader epoch and panics on header keys that are no text"
)]
fn write_message(message: &BorrowedMessage<'_>, lines: &mut LineWriter) -> Result<()> {
    let mut timestamp_type = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the message lives as long as the borrow, and nobody else touches it.
    let (timestamp_ms, leader_epoch) = unsafe {
        (
            sys::rd_kafka_message_timestamp(message.ptr(), &raw mut timestamp_type),
            sys::rd_kafka_message_leader_epoch(message.ptr()),
        )
    };
    let mut headers = Vec::new();
    let mut list = std::ptr::null_mut();
    // SAFETY: as above; the list belongs to the message.
    let found = unsafe { sys::rd_kafka_message_headers(message.ptr(), &raw mut list) };
    if found == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        for index in 0.. {
            let mut name = std::ptr::null();
            let mut value = std::ptr::null();
            let mut size = 0;
            // SAFETY: the list lives as long as the message; an index behind its end is answered with an error.
            let got = unsafe {
                sys::rd_kafka_header_get_all(
                    list,
                    index,
                    &raw mut name,
                    &raw mut value,
                    &raw mut size,
                )
            };
            if got != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                break;
            }
            // SAFETY: librdkafka ends names with a NUL, and gives a value of `size` bytes or a null pointer.
            headers.push(unsafe {
                let key = std::ffi::CStr::from_ptr(name).to_bytes();
                let value = (!value.is_null())
                    .then(|| std::slice::from_raw_parts(value.cast::<u8>(), size));
                (key, value)
            });
        }
    }
    lines.write(&RecordParts {
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms,
        timestamp_type: i32::from(
            timestamp_type == sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME,
        ),
        leader_epoch,
        key: message.key(),
        value: message.payload(),
        headers,
    })
}

/// A member of a consumer group that starts at earliest, writes lines and then commits, until it is stopped.
#[derive(Debug)]
pub struct Follower {
    folder: PathBuf,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Program(Process),
    Thread {
        stop: Arc<AtomicBool>,
        done: Option<JoinHandle<Result<()>>>,
    },
}

impl Follower {
    /// Goes on until it is stopped: what each client can count to.
    pub const ENDLESS: u64 = i64::MAX.unsigned_abs();

    /// Joins `group`; ends by itself after `count` records. Give each follower of a group the same folder: its lines
    /// are appended.
    pub fn start(
        client: Client,
        bootstrap: &str,
        topic: &str,
        group: &str,
        folder: &Path,
        count: u64,
    ) -> Result<Follower> {
        let cache = Cache::find()?;
        std::fs::create_dir_all(folder)?;
        let mut command = match client {
            Client::Java => cache.java(JAVA, "Client"),
            Client::FranzGo => cache.go_client(),
            Client::Rdkafka => {
                let stop = Arc::new(AtomicBool::new(false));
                let (flag, folder_copy) = (Arc::clone(&stop), folder.to_owned());
                let config = rdkafka_config(bootstrap)
                    .set("auto.offset.reset", "earliest")
                    .set("group.id", group)
                    .clone();
                let topic = topic.to_owned();
                let thread = std::thread::spawn(move || {
                    rdkafka_follow(&config, &topic, &folder_copy, count, &flag)
                });
                let running = Running::Thread {
                    stop,
                    done: Some(thread),
                };
                return Ok(Follower {
                    folder: folder.to_owned(),
                    running,
                });
            }
        };
        command
            .args(["group", bootstrap, topic, group])
            .arg(folder)
            .arg(count.to_string());
        let process = Process::start_piped(client.name(), &command, &folder.join("log"))?;
        Ok(Follower {
            folder: folder.to_owned(),
            running: Running::Program(process),
        })
    }

    /// Where its lines are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fails if it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match &mut self.running {
            Running::Program(process) => process.check_alive(),
            Running::Thread { done, .. } => match done {
                Some(thread) if !thread.is_finished() => Ok(()),
                _ => self.finish(),
            },
        }
    }

    /// Asks it to end after the records it has in hand, and waits.
    pub fn stop(mut self) -> Result<()> {
        match &mut self.running {
            Running::Program(process) => process.end_input(),
            Running::Thread { stop, .. } => stop.store(true, Ordering::Relaxed),
        }
        self.finish()
    }

    /// Waits until it has its number of records.
    pub fn finish(&mut self) -> Result<()> {
        match &mut self.running {
            Running::Program(process) => process.wait_success(READ_MAX),
            Running::Thread { done, .. } => {
                let thread = done.take().context("it was waited for before")?;
                thread
                    .join()
                    .map_err(|_| anyhow!("the follower panicked"))?
            }
        }
    }
}

fn rdkafka_follow(
    config: &ClientConfig,
    topic: &str,
    folder: &Path,
    count: u64,
    stop: &AtomicBool,
) -> Result<()> {
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let mut lines = LineWriter::new(folder)?;
    let mut records = 0;
    let mut uncommitted = 0_u32;
    while records < count && !stop.load(Ordering::Relaxed) {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                write_message(&message, &mut lines)?;
                records += 1;
                uncommitted += 1;
                if uncommitted < 1000 {
                    continue;
                }
            }
            Some(Err(error)) => rdkafka_trouble(&error)?,
            None => {}
        }
        if uncommitted > 0 {
            lines.flush()?;
            commit(&consumer)?;
            uncommitted = 0;
        }
    }
    lines.flush()?;
    commit(&consumer)
}

/// Commits what was delivered. That there is nothing to commit is no error.
fn commit(consumer: &BaseConsumer) -> Result<()> {
    match consumer.commit_consumer_state(CommitMode::Sync) {
        Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn java_output(case_folder: &Path, command: &Command) -> Result<String> {
    let log = case_folder.join("java.log");
    let _ = std::fs::remove_file(&log);
    let mut process = Process::start("java", command, &log)?;
    process.wait_success(READ_MAX)?;
    let text = process.log_text();
    if text.is_empty() {
        bail!("the Java client said nothing: {}", tail(&text, 10));
    }
    Ok(text)
}

/// Java's `offsetsForTimes` in all partitions: lines of `partition time -> offset timestamp epoch` or `... -> none`.
pub fn java_times(bootstrap: &str, topic: &str, folder: &Path, times: &[i64]) -> Result<String> {
    std::fs::create_dir_all(folder)?;
    let file = folder.join("times");
    let text: Vec<String> = times.iter().map(i64::to_string).collect();
    std::fs::write(&file, text.join("\n"))?;
    let mut command = Cache::find()?.java(JAVA, "Client");
    command.args(["times", bootstrap, topic]).arg(&file);
    java_output(folder, &command)
}

/// librdkafka's answer to the same question, offsets only (-1: none).
pub fn rdkafka_times(
    bootstrap: &str,
    topic: &str,
    times: &[i64],
) -> Result<BTreeMap<(i32, i64), i64>> {
    let consumer: BaseConsumer = rdkafka_config(bootstrap).create()?;
    let partitions = partitions_of(&consumer, topic)?;
    let mut found = BTreeMap::new();
    for &time in times {
        let mut list = TopicPartitionList::new();
        for &partition in &partitions {
            list.add_partition_offset(topic, partition, Offset::Offset(time))?;
        }
        for element in consumer
            .offsets_for_times(list, Duration::from_secs(30))?
            .elements()
        {
            element.error()?;
            found.insert(
                (element.partition(), time),
                element.offset().to_raw().unwrap_or(-1),
            );
        }
    }
    Ok(found)
}

/// Java's transactional producer: about `records` records, a third of the transactions aborted, the first and the last one among
/// them; with `leave_open` one more stays open. Gives the number of committed records.
pub fn java_transactions(
    bootstrap: &str,
    topic: &str,
    folder: &Path,
    id: &str,
    seed: u64,
    records: u64,
    leave_open: bool,
) -> Result<u64> {
    std::fs::create_dir_all(folder)?;
    let mut command = Cache::find()?.java(JAVA, "Client");
    command.args([
        "transactions",
        bootstrap,
        topic,
        id,
        &seed.to_string(),
        &records.to_string(),
    ]);
    command.arg(if leave_open { "open" } else { "close" });
    command
        .arg("transaction.timeout.ms=3600000")
        .arg("max.block.ms=60000");
    let text = java_output(folder, &command)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("committed "));
    Ok(line.with_context(|| tail(&text, 10))?.parse()?)
}
