//! DescribeTopics to one named broker: topic ids, which the safe interface does not offer.

use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

use everlog_format::TopicId;
use rdkafka_sys::{
    rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new, rd_kafka_AdminOptions_set_broker,
    rd_kafka_AdminOptions_set_request_timeout, rd_kafka_DescribeTopics,
    rd_kafka_DescribeTopics_result_topics, rd_kafka_TopicCollection_destroy,
    rd_kafka_TopicCollection_of_topic_names, rd_kafka_TopicDescription_error,
    rd_kafka_TopicDescription_is_internal, rd_kafka_TopicDescription_name,
    rd_kafka_TopicDescription_partitions, rd_kafka_TopicDescription_topic_id,
    rd_kafka_Uuid_least_significant_bits, rd_kafka_Uuid_most_significant_bits, rd_kafka_admin_op_t,
    rd_kafka_error_code, rd_kafka_event_DescribeTopics_result, rd_kafka_event_destroy,
    rd_kafka_event_error, rd_kafka_event_error_string, rd_kafka_event_t, rd_kafka_queue_destroy,
    rd_kafka_queue_new, rd_kafka_queue_poll, rd_kafka_resp_err_t, rd_kafka_t,
};

/// What one broker says of one topic.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) topic: String,
    /// `Ok(None)`: the broker gives no topic ids. `Err`: its error for this topic, as rdkafka's code.
    pub(crate) id: Result<Option<TopicId>, rdkafka::types::RDKafkaErrorCode>,
    pub(crate) internal: bool,
    /// 0 beside an error.
    pub(crate) partition_count: u32,
}

/// Asks `broker` (`None`: librdkafka's choice) what it knows of `topics`. Blocks up to `timeout`. Error: what failed,
/// as text for the log.
pub(crate) fn describe_topics(
    client: *mut rd_kafka_t,
    topics: &[&str],
    broker: Option<i32>,
    timeout: Duration,
) -> Result<Vec<Described>, String> {
    let names: Vec<CString> = topics
        .iter()
        .filter_map(|topic| CString::new(*topic).ok())
        .collect();
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `client` is a live handle (the caller holds its owner during the call). Options, collection and queue
    // are made, used and freed here; names outlive the call that copies them; the event is read before it is freed.
    unsafe {
        let options = rd_kafka_AdminOptions_new(
            client,
            rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        );
        let mut text = [0; 256];
        rd_kafka_AdminOptions_set_request_timeout(
            options,
            timeout_ms,
            text.as_mut_ptr(),
            text.len(),
        );
        if let Some(broker) = broker {
            rd_kafka_AdminOptions_set_broker(options, broker, text.as_mut_ptr(), text.len());
        }
        let collection =
            rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let queue = rd_kafka_queue_new(client);
        rd_kafka_DescribeTopics(client, collection, options, queue);
        // The request has its own time-out; waiting longer than it means that an answer of some kind always comes.
        let event = rd_kafka_queue_poll(queue, timeout_ms.saturating_add(5_000));
        let answer = if event.is_null() {
            Err("no answer in time".to_owned())
        } else {
            read(event)
        };
        if !event.is_null() {
            rd_kafka_event_destroy(event);
        }
        rd_kafka_queue_destroy(queue);
        rd_kafka_TopicCollection_destroy(collection);
        rd_kafka_AdminOptions_destroy(options);
        answer
    }
}

/// # Safety
/// `event` is a live event.
unsafe fn read(event: *mut rd_kafka_event_t) -> Result<Vec<Described>, String> {
    // SAFETY: the event is alive; all that is read from it belongs to it and is copied.
    unsafe {
        if rd_kafka_event_error(event) != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(super::owned_text(rd_kafka_event_error_string(event)));
        }
        let result = rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err("an answer of another kind".to_owned());
        }
        let mut count = 0;
        let topics = rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if topics.is_null() || count == 0 {
            return Ok(Vec::new());
        }
        let topics = std::slice::from_raw_parts(topics, count);
        Ok(topics
            .iter()
            .map(|&topic| {
                let error = rd_kafka_TopicDescription_error(topic);
                let code = if error.is_null() {
                    rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
                } else {
                    rd_kafka_error_code(error)
                };
                let uuid = rd_kafka_TopicDescription_topic_id(topic);
                let id = if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    Err(code.into())
                } else if uuid.is_null() {
                    Ok(None)
                } else {
                    Ok(topic_id(
                        rd_kafka_Uuid_most_significant_bits(uuid),
                        rd_kafka_Uuid_least_significant_bits(uuid),
                    ))
                };
                let mut partition_count = 0;
                rd_kafka_TopicDescription_partitions(topic, &mut partition_count);
                let name = CStr::from_ptr(rd_kafka_TopicDescription_name(topic))
                    .to_string_lossy()
                    .into_owned();
                Described {
                    topic: name,
                    id,
                    internal: rd_kafka_TopicDescription_is_internal(topic) != 0,
                    partition_count: u32::try_from(partition_count).unwrap_or(u32::MAX),
                }
            })
            .collect())
    }
}

fn topic_id(high: i64, low: i64) -> Option<TopicId> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_be_bytes());
    bytes[8..].copy_from_slice(&low.to_be_bytes());
    TopicId::from_uuid(uuid::Uuid::from_bytes(bytes))
}
