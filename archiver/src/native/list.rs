//! An owned list of topic partitions in librdkafka's own memory.

use std::ffi::CString;
use std::ptr::NonNull;

use rdkafka_sys::{
    rd_kafka_topic_partition_list_add, rd_kafka_topic_partition_list_destroy,
    rd_kafka_topic_partition_list_new, rd_kafka_topic_partition_list_t,
};

/// A list that is freed with its owner.
pub(super) struct List(NonNull<rd_kafka_topic_partition_list_t>);

impl List {
    pub(super) fn new() -> List {
        // SAFETY: has no precondition; librdkafka aborts the process rather than return null.
        let raw = unsafe { rd_kafka_topic_partition_list_new(8) };
        List(NonNull::new(raw).expect("librdkafka's allocator never returns null"))
    }

    /// Takes over a list that librdkafka has handed to us; `None` for null.
    ///
    /// # Safety
    /// Nobody else frees `raw`.
    pub(super) unsafe fn from_raw(raw: *mut rd_kafka_topic_partition_list_t) -> Option<List> {
        NonNull::new(raw).map(List)
    }

    pub(super) fn as_ptr(&self) -> *mut rd_kafka_topic_partition_list_t {
        self.0.as_ptr()
    }

    /// Adds a partition with an offset (-1001: none given).
    pub(super) fn add(&mut self, topic: &str, partition: i32, offset: i64) {
        // A topic name with a NUL can't come from Kafka; dropping it would hide a bug of ours.
        let name = CString::new(topic).expect("topic names are checked and have no NUL");
        // SAFETY: the list is ours and alive, the name is copied by the call, and the element it returns is valid
        // until the list is changed or freed: neither happens before the last use.
        unsafe {
            let element =
                rd_kafka_topic_partition_list_add(self.as_ptr(), name.as_ptr(), partition);
            (*element).offset = offset;
        }
    }

    /// Topic and partition of each element.
    pub(super) fn names(&self) -> Vec<(String, i32)> {
        // SAFETY: the list is ours and alive.
        unsafe { names_of(self.as_ptr()) }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { rd_kafka_topic_partition_list_destroy(self.as_ptr()) };
    }
}

/// Topic and partition of each element of a borrowed list; nothing for null.
///
/// # Safety
/// `list` is null or a valid list that nobody changes during the call.
pub(super) unsafe fn names_of(list: *const rd_kafka_topic_partition_list_t) -> Vec<(String, i32)> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: not null and valid; `elems` holds `cnt` elements (null only if there is none).
    let elements = unsafe {
        let count = usize::try_from((*list).cnt).unwrap_or(0);
        if count == 0 {
            &[][..]
        } else {
            std::slice::from_raw_parts((*list).elems, count)
        }
    };
    let mut names = Vec::with_capacity(elements.len());
    for element in elements {
        // SAFETY: the topic of an element is a NUL-terminated string owned by the list.
        let topic = unsafe { super::owned_text(element.topic) };
        names.push((topic, element.partition));
    }
    names
}
