//! The only unsafe code of the archiver: what rdkafka's safe interface would lose or refuse.
//!
//! [`Consumer`] hands over header keys that are no UTF-8, leader epochs, timestamps of -1, the offset of an
//! end-of-partition event and the broker that served a record; [`describe_topics`] asks one named broker for topic
//! ids. Everything else about the cluster goes through rdkafka's safe interface (`crate::cluster`).
//!
//! # Header keys with a NUL
//! librdkafka hands out header keys as C strings. In the bundled version a header's value lies right behind its key,
//! so the key's true length is known wherever the value is not null ([`KeyLength`]). A key with an embedded NUL whose
//! value is null is cut at the NUL: nothing that librdkafka offers shows the rest.
#![expect(
    unsafe_code,
    reason = "librdkafka's C interface; every call says why it is sound"
)]

mod consumer;
mod describe;
mod list;

pub(crate) use consumer::{Change, Consumer, Delivery, What};
pub(crate) use describe::{Described, describe_topics};

use std::ffi::{CStr, c_char};

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
