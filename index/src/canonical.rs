//! The one way everlog writes JSON, and what is common to reading it.
//!
//! Canonical JSON: UTF-8, no white space, keys in ascending byte order (the wire structs declare their fields in that
//! order), numbers that may pass 32 bits as decimal strings, no floats. Every object carries `version` and the features
//! that have to be understood; unknown fields are ignored. What the numbers mean is said elsewhere.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::IndexError;

/// The format version in every object.
pub(crate) const VERSION: u32 = 1;

/// No object of the index is larger, in bytes: a reader refuses more before it parses.
pub(crate) const OBJECT_MAX_BYTES: usize = 4 << 20;

/// A 64-bit number, written as a decimal string because JSON readers round numbers above 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decimal<T>(pub(crate) T);

impl<T: fmt::Display> Serialize for Decimal<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: fmt::Display + FromStr> Deserialize<'de> for Decimal<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Decimal<T>, D::Error> {
        struct Text<T>(PhantomData<T>);

        impl<T: fmt::Display + FromStr> serde::de::Visitor<'_> for Text<T> {
            type Value = Decimal<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a decimal number in a string")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Decimal<T>, E> {
                // One number has one spelling: no sign that is not needed, no zeros in front.
                let digits = text.strip_prefix('-').unwrap_or(text);
                let plain = digits.bytes().all(|c| c.is_ascii_digit())
                    && (digits == "0" || !digits.starts_with('0'))
                    && text != "-0";
                let number = if plain { text.parse().ok() } else { None };
                number
                    .map(Decimal)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_str(Text(PhantomData))
    }
}

/// What every object says about who can read it.
#[derive(Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    reader_features: Vec<String>,
}

/// The bytes of an object.
pub(crate) fn encode<T: Serialize>(object: &T) -> Vec<u8> {
    serde_json::to_vec(object).expect("the wire structs hold nothing that JSON cannot say")
}

/// Reads an object. `what` names it in errors.
///
/// Features come first: an object of a newer everlog may have any shape, and "upgrade" is the better answer than
/// "damaged".
pub(crate) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, IndexError> {
    if bytes.len() > OBJECT_MAX_BYTES {
        return Err(corrupt(
            what,
            format!("{} bytes are more than {OBJECT_MAX_BYTES}", bytes.len()),
        ));
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|e| corrupt(what, e.to_string()))?;
    if head.version != VERSION {
        return Err(IndexError::Unsupported {
            what: what.to_owned(),
            features: vec![format!("version {}", head.version)],
        });
    }
    if !head.reader_features.is_empty() {
        // Version 1 has no feature yet, so each one is unknown.
        return Err(IndexError::Unsupported {
            what: what.to_owned(),
            features: head.reader_features,
        });
    }
    serde_json::from_slice(bytes).map_err(|e| corrupt(what, e.to_string()))
}

/// Refuses to write behind an object that asks its writers for something unknown.
pub(crate) fn check_writer_features(what: &str, features: &[String]) -> Result<(), IndexError> {
    if features.is_empty() {
        Ok(())
    } else {
        Err(IndexError::Unsupported {
            what: what.to_owned(),
            features: features.to_vec(),
        })
    }
}

/// An [`IndexError::Corrupt`].
pub(crate) fn corrupt(what: &str, why: impl Into<String>) -> IndexError {
    IndexError::Corrupt {
        what: what.to_owned(),
        why: why.into(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn a_number_has_one_spelling() {
        let read = |text: &str| serde_json::from_str::<Decimal<i64>>(text).map(|d| d.0);
        assert_eq!(read("\"-1\"").unwrap(), -1);
        assert_eq!(read("\"9223372036854775807\"").unwrap(), i64::MAX);
        for bad in [
            "\"01\"",
            "\"+1\"",
            "\"-0\"",
            "\"\"",
            "\"-\"",
            "\" 1\"",
            "\"1.0\"",
            "1",
            "\"9223372036854775808\"",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Decimal<u64>>("\"-1\"").is_err());
    }

    #[test]
    fn a_newer_object_asks_for_an_upgrade_and_not_for_an_alarm() {
        #[derive(Deserialize)]
        struct Shape {
            #[serde(rename = "needed")]
            _needed: u32,
        }
        let read = |text: &str| decode::<Shape>("x", text.as_bytes()).map(|_| ());
        assert!(matches!(
            read(r#"{"version":2}"#),
            Err(IndexError::Unsupported { .. })
        ));
        assert!(matches!(
            read(r#"{"version":1,"reader_features":["hats"]}"#),
            Err(IndexError::Unsupported { .. })
        ));
        assert!(matches!(
            read(r#"{"version":1}"#),
            Err(IndexError::Corrupt { .. })
        ));
        assert!(matches!(read("{"), Err(IndexError::Corrupt { .. })));
        assert!(read(r#"{"version":1,"needed":3,"other":[]}"#).is_ok());
    }
}
