//! The headers of a message, NUL bytes in their keys included.
//!
//! Kafka lets a header key hold any text, U+0000 too. librdkafka keeps each key with its length and hands it out as a C
//! string, which ends at the first NUL. The length lies right before the text it hands out, in one allocation with it:
//! it is read from there, for the one version whose layout is known. With another version nothing starts
//! ([`KnownLayout::check`]), and a key that contradicts the layout freezes its partition: never is one cut in silence.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use everlog_format::HeaderRef;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys::{
    rd_kafka_header_add, rd_kafka_header_get_all, rd_kafka_headers_destroy, rd_kafka_headers_new,
    rd_kafka_headers_t, rd_kafka_message_headers, rd_kafka_message_t, rd_kafka_resp_err_t,
    rd_kafka_version,
};

use crate::ArchiverError;

/// The version whose layout is known, as `rd_kafka_version` gives it (the last byte counts release candidates) and as
/// people write it. After an update of rdkafka-sys: compare `rd_kafka_header_t` in its src/rdkafka_header.h with
/// [`Front`], and `rd_kafka_header_add0` with what [`key`] takes for granted.
const KNOWN_VERSION: (c_int, &str) = (0x020c_01ff, "2.12.1");
/// More than any record can be.
const KEY_BYTES_MAX: usize = 1 << 30;

/// What lies right before a key. The key's bytes follow, a NUL, and then the value unless it is null.
#[repr(C)]
struct Front {
    key_bytes: usize,
    value: *const c_void,
}

/// Proof that the linked librdkafka has the layout that is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownLayout(());

impl KnownLayout {
    /// Looks at the version, and then whether headers made for this come back whole.
    pub(super) fn check() -> Result<KnownLayout, ArchiverError> {
        // SAFETY: has no precondition.
        let layout = KnownLayout::of(unsafe { rd_kafka_version() })?;
        let keys: [&[u8]; 5] = [b"", b"key", b"\0", b"a\0b", b"a\0"];
        let values = [None, Some(&b""[..]), Some(&b"v\0"[..])];
        let made: Vec<HeaderRef<'_>> = keys
            .iter()
            .flat_map(|key| values.map(|value| HeaderRef { key, value }))
            .collect();
        if layout.comes_back(&made) {
            Ok(layout)
        } else {
            Err(refusal("does not keep record headers as it should"))
        }
    }

    fn of(version: c_int) -> Result<KnownLayout, ArchiverError> {
        if version == KNOWN_VERSION.0 {
            return Ok(KnownLayout(()));
        }
        Err(refusal(&format!("has version {version:#010x}")))
    }

    fn comes_back(self, headers: &[HeaderRef<'_>]) -> bool {
        // SAFETY: the list is made, used and freed here; names and values are given with their lengths and copied.
        unsafe {
            let list = rd_kafka_headers_new(headers.len());
            for header in headers {
                let (key, key_bytes) = parts(Some(header.key));
                let (value, value_bytes) = parts(header.value);
                rd_kafka_header_add(list, key.cast(), key_bytes, value, value_bytes);
            }
            let same = read(list, self).is_ok_and(|found| found == headers);
            rd_kafka_headers_destroy(list);
            same
        }
    }
}

fn refusal(what: &str) -> ArchiverError {
    ArchiverError::Client {
        why: format!(
            "the linked librdkafka {what}, and only with {} is it known how long a record header's key is: others could \
             be cut in silence. Build everlog with the versions in its Cargo.lock and without linking librdkafka \
             dynamically",
            KNOWN_VERSION.1
        ),
    }
}

/// Pointer and length as librdkafka takes them; null for `None`.
fn parts(bytes: Option<&[u8]>) -> (*const c_void, isize) {
    bytes.map_or((ptr::null(), 0), |bytes| {
        (
            bytes.as_ptr().cast(),
            isize::try_from(bytes.len()).unwrap_or(0),
        )
    })
}

/// Reads the headers of `message` and lends them to `then`.
///
/// # Safety
/// `message` is alive during the call.
pub(super) unsafe fn with_headers(
    message: *mut rd_kafka_message_t,
    layout: KnownLayout,
    then: impl FnOnce(Result<&[HeaderRef<'_>], RDKafkaErrorCode>),
) {
    let mut list = ptr::null_mut();
    // SAFETY: message and target are alive; the headers stay the message's own.
    match unsafe { rd_kafka_message_headers(message, &mut list) } {
        rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {}
        rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__NOENT => return then(Ok(&[])),
        code => return then(Err(code.into())),
    }
    // SAFETY: the list is alive as long as the message.
    match unsafe { read(list, layout) } {
        Ok(headers) => then(Ok(&headers)),
        Err(code) => then(Err(code)),
    }
}

/// # Safety
/// `list` is alive for `'a`, and nobody changes it.
unsafe fn read<'a>(
    list: *const rd_kafka_headers_t,
    layout: KnownLayout,
) -> Result<Vec<HeaderRef<'a>>, RDKafkaErrorCode> {
    let mut headers = Vec::new();
    loop {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the list and the three targets are alive. What it returns belongs to the list.
        let code = unsafe {
            rd_kafka_header_get_all(list, headers.len(), &mut name, &mut value, &mut size)
        };
        if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(headers);
        }
        // SAFETY: name and value are those of one header of librdkafka's; value is null or has `size` bytes.
        unsafe {
            headers.push(HeaderRef {
                key: key(name, value, layout).ok_or(RDKafkaErrorCode::BadMessage)?,
                value: super::bytes(value, size),
            });
        }
    }
}

/// The key, whole; `None` if the layout is not as known after all.
///
/// # Safety
/// `name` and `value` are what librdkafka gave for one of its headers, alive for `'a`.
unsafe fn key<'a>(
    name: *const c_char,
    value: *const c_void,
    _layout: KnownLayout,
) -> Option<&'a [u8]> {
    // SAFETY: in the known version `Front` lies right before the name, in the same allocation.
    let front = unsafe { name.cast::<Front>().sub(1).read_unaligned() };
    // SAFETY: librdkafka terminates names.
    let up_to_nul = unsafe { CStr::from_ptr(name) }.to_bytes();
    let is_known =
        front.value == value && (up_to_nul.len()..KEY_BYTES_MAX).contains(&front.key_bytes);
    if !is_known {
        return None;
    }
    // SAFETY: the key and its NUL are in the allocation.
    let with_nul = unsafe { std::slice::from_raw_parts(name.cast::<u8>(), front.key_bytes + 1) };
    let (last, key) = with_nul.split_last()?;
    let value_follows = value.is_null() || value.addr() == name.addr() + with_nul.len();
    (*last == 0 && value_follows).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_librdkafka_is_refused_with_what_to_do() {
        assert!(KnownLayout::of(KNOWN_VERSION.0).is_ok());
        for version in [0x020c_02ff, 0x020b_01ff, 0x020c_01fe] {
            let error = KnownLayout::of(version).unwrap_err().to_string();
            assert!(
                error.contains("2.12.1") && error.contains("Cargo.lock"),
                "{error}"
            );
        }
    }

    #[test]
    fn keys_with_a_nul_come_back_whole_from_the_linked_librdkafka() {
        let layout = KnownLayout::check().unwrap();
        let long = vec![0; 70_000];
        for key in [&b"\0\0"[..], b"\0a", "\u{0}ключ\u{0}".as_bytes(), &long] {
            for value in [None, Some(&b""[..]), Some(&b"\0"[..])] {
                assert!(layout.comes_back(&[HeaderRef { key, value }]), "{key:?}");
            }
        }
    }
}
