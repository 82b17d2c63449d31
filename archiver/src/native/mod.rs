//! The only unsafe code of the archiver: what rdkafka's safe interface would lose or refuse.
//!
//! [`Consumer`] hands over header keys that are no UTF-8 or contain a NUL (`headers`), leader epochs, timestamps of -1, the offset of an
//! end-of-partition event and the broker that served a record; [`describe_topics`] asks one named broker for topic
//! ids. Everything else about the cluster goes through rdkafka's safe interface (`crate::cluster`).
#![expect(
    unsafe_code,
    reason = "librdkafka's C interface; every call says why it is sound"
)]

mod consumer;
mod describe;
mod headers;
mod list;

pub(crate) use consumer::{Change, Consumer, Delivery, What};
pub(crate) use describe::{Described, describe_topics};

use std::ffi::{CStr, c_char, c_void};

/// Text that librdkafka owns, copied.
///
/// # Safety
/// `text` is null or points to a NUL-terminated string that stays valid during the call.
unsafe fn owned_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller vouches for the terminator and the lifetime.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// # Safety
/// `data` is null or has `len` bytes that live for `'a`.
unsafe fn bytes<'a>(data: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: not null, and the caller vouches for length and lifetime.
    (!data.is_null()).then(|| unsafe { std::slice::from_raw_parts(data.cast(), len) })
}
