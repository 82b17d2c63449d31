//! The consumer: messages from librdkafka's queue, and partitions assigned one by one.
//!
//! Assignment is cooperative (KIP-429, classic protocol), because only then can a partition be given to the fetcher,
//! taken back or moved without touching the others. The rebalance callback acknowledges a change and notes it; whoever
//! polls takes the notes ([`Consumer::take_changes`]) and assigns each partition with [`Consumer::assign`] once the
//! archive has said where to go on. Whatever was fetched before a partition was assigned anew is dropped by
//! librdkafka's own version barriers.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use everlog_format::{RecordRef, TimestampType};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys::*;

use super::bytes;
use super::headers::{KnownLayout, with_headers};
use super::list::{List, names_of};
use crate::ArchiverError;
use crate::clock::now;
use crate::trouble::{LineLimit, Trouble};

const NO_PANIC: &str = "nobody panics with the lock held";
/// Offset of a list element for which none is given.
const NO_OFFSET: i64 = -1001;

/// The group gave or took partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Given(Vec<(String, i32)>),
    Taken(Vec<(String, i32)>),
}

/// One thing that the queue delivered, in the queue's order.
#[derive(Debug)]
pub(crate) struct Delivery<'a> {
    /// Empty for an event of the whole client.
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    /// Whether topic and partition are those of the delivery before (of the same poll).
    pub(crate) same_partition: bool,
    pub(crate) what: What<'a>,
}

/// What was delivered.
#[derive(Debug)]
pub(crate) enum What<'a> {
    /// A record, and the node id of the broker that served it (-1 if unknown).
    Record(RecordRef<'a>, i32),
    /// The fetcher has come to the end: everything below `offset` was delivered or holds nothing to deliver.
    End { offset: i64 },
    /// The partition, or without a topic the client, is in trouble.
    Error {
        code: RDKafkaErrorCode,
        text: String,
    },
}

/// What the callbacks write to; some of them run on librdkafka's own threads.
#[derive(Default)]
struct Shared {
    changes: Mutex<Vec<Change>>,
    trouble: Mutex<Trouble>,
    lines: Mutex<LineLimit>,
}

/// One member of the consumer group.
pub(crate) struct Consumer {
    client: NonNull<rd_kafka_t>,
    queue: NonNull<rd_kafka_queue_t>,
    // The callbacks' opaque pointer points into this box.
    shared: Box<Shared>,
    layout: KnownLayout,
    batch: Vec<*mut rd_kafka_message_t>,
}

// SAFETY: librdkafka's handles may be used from any thread; the batch is only touched through `&mut self`.
unsafe impl Send for Consumer {}

impl Consumer {
    /// A consumer with these properties; it connects and joins nothing before [`Consumer::subscribe`].
    pub(crate) fn new(
        properties: &[(String, String)],
        batch_max: usize,
    ) -> Result<Consumer, ArchiverError> {
        let layout = KnownLayout::check()?;
        let shared = Box::<Shared>::default();
        // SAFETY: `rd_kafka_new` takes over the configuration if it succeeds; on every other path it is freed here.
        // The opaque pointer stays valid because the box lives as long as the client (see `drop`).
        unsafe {
            let conf = rd_kafka_conf_new();
            for (name, value) in properties {
                if let Err(error) = set(conf, name, value) {
                    rd_kafka_conf_destroy(conf);
                    return Err(error);
                }
            }
            rd_kafka_conf_set_opaque(conf, ptr::from_ref(&*shared).cast_mut().cast());
            rd_kafka_conf_set_rebalance_cb(conf, Some(on_rebalance));
            rd_kafka_conf_set_log_cb(conf, Some(on_log));
            rd_kafka_conf_set_error_cb(conf, Some(on_error));
            let mut text = [0; 512];
            let client = rd_kafka_new(
                rd_kafka_type_t::RD_KAFKA_CONSUMER,
                conf,
                text.as_mut_ptr(),
                text.len(),
            );
            let Some(client) = NonNull::new(client) else {
                rd_kafka_conf_destroy(conf);
                return Err(ArchiverError::Client {
                    why: super::owned_text(text.as_ptr()),
                });
            };
            rd_kafka_poll_set_consumer(client.as_ptr());
            let queue = NonNull::new(rd_kafka_queue_get_consumer(client.as_ptr()))
                .expect("a consumer with a group id has a consumer queue");
            Ok(Consumer {
                client,
                queue,
                shared,
                layout,
                batch: vec![ptr::null_mut(); batch_max],
            })
        }
    }

    /// Joins the group for exactly these topics; leaves it if there are none.
    pub(crate) fn subscribe(&self, topics: &[String]) -> Result<(), RDKafkaErrorCode> {
        if topics.is_empty() {
            // SAFETY: the client is alive.
            return check(unsafe { rd_kafka_unsubscribe(self.client.as_ptr()) });
        }
        let mut list = List::new();
        for topic in topics {
            list.add(topic, -1, NO_OFFSET);
        }
        // SAFETY: client and list are alive; the list is copied.
        check(unsafe { rd_kafka_subscribe(self.client.as_ptr(), list.as_ptr()) })
    }

    /// Waits up to `timeout` for deliveries and hands each to `handle`. Changes of the assignment noted meanwhile
    /// have to be taken before the deliveries are judged, so `changes` gets them first.
    pub(crate) fn poll<S>(
        &mut self,
        timeout: Duration,
        state: &mut S,
        changes: impl FnOnce(&mut S, Vec<Change>),
        mut handle: impl FnMut(&mut S, Delivery<'_>),
    ) -> usize {
        let count = self.take_messages(timeout);
        changes(state, self.take_changes());
        let mut before: Option<(*mut rd_kafka_topic_t, i32)> = None;
        let mut topic = "";
        for &message in &self.batch[..count] {
            // SAFETY: the first `count` pointers are messages that we now own and free below, after their last use.
            // Message and topic handles stay alive until then, so that an equal pointer means the same topic.
            unsafe {
                let here = ((*message).rkt, (*message).partition);
                let same_partition = before == Some(here);
                if !same_partition {
                    topic = topic_name((*message).rkt);
                    before = Some(here);
                }
                with_what(message, self.layout, |what| {
                    handle(
                        state,
                        Delivery {
                            topic,
                            partition: here.1,
                            same_partition,
                            what,
                        },
                    );
                });
            }
        }
        for message in &mut self.batch[..count] {
            // SAFETY: owned by us and freed once.
            unsafe { rd_kafka_message_destroy(*message) };
            *message = ptr::null_mut();
        }
        count
    }

    /// Fills the batch with what is there, after waiting up to `timeout` for the first; returns how many there are.
    ///
    /// One by one, and not by `rd_kafka_consume_batch_queue`: that one moves the application's position one past the
    /// offset of an end-of-partition event. librdkafka pauses all partitions at each rebalance until the callback has
    /// run, and then resumes them at this position: the record that came at that offset was skipped without a word.
    fn take_messages(&mut self, timeout: Duration) -> usize {
        let mut timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        for (count, slot) in self.batch.iter_mut().enumerate() {
            // SAFETY: the queue is alive. A message that comes back is ours until it is freed in `poll`.
            *slot = unsafe { rd_kafka_consume_queue(self.queue.as_ptr(), timeout_ms) };
            if slot.is_null() {
                return count;
            }
            timeout_ms = 0;
        }
        self.batch.len()
    }

    /// What the group gave and took since the last call, in order.
    pub(crate) fn take_changes(&self) -> Vec<Change> {
        std::mem::take(
            &mut *self
                .shared
                .changes
                .lock()
                .expect("the callback does not panic"),
        )
    }

    /// Lets the fetcher begin at `offset`. Whether the log there is still the one that was read before is for the caller
    /// to find out; from the first record on, librdkafka asks whenever a newer leader epoch shows up (KIP-320).
    pub(crate) fn assign(&self, topic: &str, partition: i32, offset: i64) -> Result<(), String> {
        let mut list = List::new();
        list.add(topic, partition, offset);
        // SAFETY: client and list are alive; the list is copied.
        take_error(unsafe { rd_kafka_incremental_assign(self.client.as_ptr(), list.as_ptr()) })
    }

    /// Takes the partition from the fetcher, for good or until [`Consumer::assign`] says where to go on.
    ///
    /// librdkafka's own pause and resume is not for us: a pause outlives the assignment, so that a partition assigned
    /// anew would stand still, and where it resumes is not ours to say.
    pub(crate) fn unassign(&self, topic: &str, partition: i32) -> Result<(), String> {
        let mut list = List::new();
        list.add(topic, partition, NO_OFFSET);
        // SAFETY: client and list are alive; the list is copied.
        take_error(unsafe { rd_kafka_incremental_unassign(self.client.as_ptr(), list.as_ptr()) })
    }

    /// Tells the group, without waiting, that everything below `offset` is archived.
    pub(crate) fn commit(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> Result<(), RDKafkaErrorCode> {
        let mut list = List::new();
        list.add(topic, partition, offset);
        // SAFETY: client and list are alive; the list is copied.
        check(unsafe { rd_kafka_commit(self.client.as_ptr(), list.as_ptr(), 1) })
    }

    /// Live start and high watermark as the last fetch answer told them; `None` before the first.
    pub(crate) fn watermarks(&self, topic: &str, partition: i32) -> Option<(i64, i64)> {
        let name = CString::new(topic).ok()?;
        let (mut low, mut high) = (-1, -1);
        // SAFETY: client, name and both targets are alive.
        let code = unsafe {
            rd_kafka_get_watermark_offsets(
                self.client.as_ptr(),
                name.as_ptr(),
                partition,
                &mut low,
                &mut high,
            )
        };
        (check(code).is_ok() && low >= 0 && high >= 0).then_some((low, high))
    }

    /// The cluster is about to be asked something, by whatever client.
    pub(crate) fn asking(&self, now: Instant) {
        let mut trouble = self.shared.trouble.lock().expect(NO_PANIC);
        trouble.asking(now);
    }

    /// It has answered: says so in the log, if this ends an outage.
    pub(crate) fn answered(&self, now: Instant) {
        let over = self.shared.trouble.lock().expect(NO_PANIC).answered(now);
        let Some(over) = over else { return };
        let (lasted, held_back) = (over.lasted, over.held_back);
        if over.was_away {
            tracing::info!(?lasted, held_back, "the cluster is back");
        } else {
            tracing::info!(
                ?lasted,
                held_back,
                "the connections to the cluster are well again"
            );
        }
    }

    /// Why the client can't go on at all; `None` while it can.
    pub(crate) fn fatal_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        let mut text = [0; 512];
        // SAFETY: client and buffer are alive, and the buffer has the size given.
        unsafe {
            let code = rd_kafka_fatal_error(self.client.as_ptr(), text.as_mut_ptr(), text.len());
            let code = check(code).err()?;
            Some((code, super::owned_text(text.as_ptr())))
        }
    }

    /// Gives up all partitions and closes the membership. A static member does not leave the group, so that nothing
    /// moves if it comes back in time.
    pub(crate) fn close(self) {
        // SAFETY: the client is alive; nothing is fetched after this, and `drop` follows.
        let code = unsafe { rd_kafka_consumer_close(self.client.as_ptr()) };
        if let Err(code) = check(code) {
            tracing::debug!(?code, "consumer did not close cleanly");
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // SAFETY: both are ours and freed once, the queue before the client. Destroying the client ends its threads
        // and with them all callbacks, so `shared` may go afterwards.
        unsafe {
            rd_kafka_queue_destroy(self.queue.as_ptr());
            rd_kafka_destroy(self.client.as_ptr());
        }
    }
}

/// # Safety
/// `conf` is a live configuration.
unsafe fn set(conf: *mut rd_kafka_conf_t, name: &str, value: &str) -> Result<(), ArchiverError> {
    let refused = |why: String| ArchiverError::Property {
        key: name.to_owned(),
        why,
    };
    let (Ok(key), Ok(text)) = (CString::new(name), CString::new(value)) else {
        return Err(refused("contains a NUL character".to_owned()));
    };
    let mut error = [0; 512];
    // SAFETY: all pointers are alive during the call, and the buffer has the size given.
    unsafe {
        let done = rd_kafka_conf_set(
            conf,
            key.as_ptr(),
            text.as_ptr(),
            error.as_mut_ptr(),
            error.len(),
        );
        if done == rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
            Ok(())
        } else {
            Err(refused(super::owned_text(error.as_ptr())))
        }
    }
}

/// # Safety
/// `topic` is null or a live topic handle; the text is valid as long as the handle.
unsafe fn topic_name<'a>(topic: *mut rd_kafka_topic_t) -> &'a str {
    if topic.is_null() {
        return "";
    }
    // SAFETY: a live handle has a NUL-terminated name that lives as long as it. Kafka's names are ASCII; anything else
    // becomes the empty name, which belongs to no partition of ours.
    unsafe { CStr::from_ptr(rd_kafka_topic_name(topic)) }
        .to_str()
        .unwrap_or("")
}

/// Reads one message and lends it to `then`.
///
/// # Safety
/// `message` is alive during the call.
unsafe fn with_what(
    message: *mut rd_kafka_message_t,
    layout: KnownLayout,
    then: impl FnOnce(What<'_>),
) {
    // SAFETY: the message is alive; whatever is borrowed from it ends with `then`.
    unsafe {
        let raw = &*message;
        match raw.err {
            rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {}
            rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                return then(What::End { offset: raw.offset });
            }
            code => {
                let text = super::owned_text(rd_kafka_message_errstr(message));
                return then(What::Error {
                    code: code.into(),
                    text,
                });
            }
        }
        let mut kind = rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        let timestamp_ms = rd_kafka_message_timestamp(message, &mut kind);
        let timestamp_type = match kind {
            rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => {
                TimestampType::LogAppend
            }
            _ => TimestampType::Create,
        };
        let epoch = rd_kafka_message_leader_epoch(message);
        with_headers(message, layout, |headers| match headers {
            Ok(headers) => {
                let record = RecordRef {
                    offset: raw.offset,
                    timestamp_ms,
                    timestamp_type,
                    leader_epoch: (epoch >= 0).then_some(epoch),
                    key: bytes(raw.key, raw.key_len),
                    value: bytes(raw.payload, raw.len),
                    headers,
                };
                then(What::Record(record, rd_kafka_message_broker_id(message)));
            }
            Err(code) => then(What::Error {
                code,
                text: format!("headers of record {} can't be read", raw.offset),
            }),
        });
    }
}

fn check(code: rd_kafka_resp_err_t) -> Result<(), RDKafkaErrorCode> {
    if code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        Ok(())
    } else {
        Err(code.into())
    }
}

fn take_error(error: *mut rd_kafka_error_t) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: not null, so ours; read, then freed once.
    unsafe {
        let text = super::owned_text(rd_kafka_error_string(error));
        rd_kafka_error_destroy(error);
        Err(text)
    }
}

/// Acknowledges the change with an empty list (giving) or with those that the fetcher really has (taking), and notes
/// it. No I/O here: the group waits for this call.
unsafe extern "C" fn on_rebalance(
    client: *mut rd_kafka_t,
    code: rd_kafka_resp_err_t,
    partitions: *mut rd_kafka_topic_partition_list_t,
    opaque: *mut c_void,
) {
    // SAFETY: librdkafka calls this with a live client and list, and with the opaque pointer set in `new`, whose box
    // outlives the client.
    let (shared, concerned) = unsafe { (&*opaque.cast::<Shared>(), names_of(partitions)) };
    let mut list = List::new();
    let given = code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
    // SAFETY: the client is alive, and the lists are ours.
    let done = unsafe {
        if given {
            take_error(rd_kafka_incremental_assign(client, list.as_ptr()))
        } else {
            let mut current = ptr::null_mut();
            rd_kafka_assignment(client, &mut current);
            let current = List::from_raw(current)
                .map(|list| list.names())
                .unwrap_or_default();
            for (topic, partition) in concerned.iter().filter(|name| current.contains(name)) {
                list.add(topic, *partition, NO_OFFSET);
            }
            take_error(rd_kafka_incremental_unassign(client, list.as_ptr()))
        }
    };
    if let Err(why) = done {
        tracing::warn!(
            why,
            given,
            "a change of the assignment was not acknowledged"
        );
    }
    let change = if given {
        Change::Given(concerned)
    } else {
        Change::Taken(concerned)
    };
    shared
        .changes
        .lock()
        .expect("nobody panics with the lock held")
        .push(change);
}

unsafe extern "C" fn on_log(
    client: *const rd_kafka_t,
    level: c_int,
    facility: *const c_char,
    text: *const c_char,
) {
    // SAFETY: librdkafka passes NUL-terminated strings that live during the call.
    let (facility, text) = unsafe { (super::owned_text(facility), super::owned_text(text)) };
    // What fails with this level is reported to `on_error` too.
    let is_told_there = level <= 3 && facility == "FAIL";
    if 4 < level || is_told_there {
        return tracing::debug!(facility, text, "librdkafka says");
    }
    // SAFETY: the client is null or live, the opaque pointer null or that of `new`, whose box outlives the client.
    let shared = unsafe {
        let opaque = (!client.is_null()).then(|| rd_kafka_opaque(client));
        opaque.and_then(|opaque| opaque.cast::<Shared>().as_ref())
    };
    let told = shared.map_or(Some(0), |shared| {
        let mut lines = shared.lines.lock().expect(NO_PANIC);
        lines.told(&facility, now())
    });
    match told {
        None => tracing::debug!(facility, text, "librdkafka says"),
        Some(held_back) if level <= 3 => {
            tracing::warn!(facility, text, held_back, "librdkafka reports an error");
        }
        Some(held_back) => tracing::info!(facility, text, held_back, "librdkafka warns"),
    }
}

unsafe extern "C" fn on_error(
    _: *mut rd_kafka_t,
    code: c_int,
    reason: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: librdkafka passes a NUL-terminated string that lives during the call, and the opaque pointer set in `new`,
    // whose box outlives the client.
    let (reason, shared) = unsafe { (super::owned_text(reason), &*opaque.cast::<Shared>()) };
    // Whoever asks for the fatal error tells of it: this client does not retry.
    if code == RDKafkaErrorCode::Fatal as c_int {
        return tracing::debug!(reason, "librdkafka ends the client");
    }
    let told = shared.trouble.lock().expect(NO_PANIC).reported(code, now());
    match told {
        Some(held_back) => tracing::warn!(
            code,
            reason,
            held_back,
            "the connection to the cluster is in trouble, librdkafka retries"
        ),
        None => tracing::debug!(
            code,
            reason,
            "the connection to the cluster is still in trouble"
        ),
    }
}
