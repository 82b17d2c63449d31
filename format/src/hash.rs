//! The names of objects: SHA-256 of their bytes, and the salt that keeps two uploads from sharing one.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// The SHA-256 of an object's bytes, 64 lower-case hex digits in text: what `sha256sum` prints.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

/// 16 random bytes of one upload. Two uploads never share a name, so removing an orphan can't remove what another
/// writer has just committed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Salt([u8; 16]);

/// Text that is not the wanted number of lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not {1} lower-case hex digits")]
pub struct InvalidHash(String, usize);

impl Hash {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(Sha256::digest(bytes).into())
    }

    /// A digest that was computed while the bytes went by.
    pub fn from_digest(digest: [u8; 32]) -> Hash {
        Hash(digest)
    }

    /// The digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Salt {
    /// Salt from the caller's source of randomness.
    pub fn new(bytes: [u8; 16]) -> Salt {
        Salt(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

macro_rules! hex_text {
    ($type:ident, $len:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $type {
            type Err = InvalidHash;

            fn from_str(text: &str) -> Result<$type, InvalidHash> {
                let mut out = [0; $len];
                let digits = text.as_bytes();
                let value = |c: u8| match c {
                    b'0'..=b'9' => Some(c - b'0'),
                    b'a'..=b'f' => Some(c - b'a' + 10),
                    _ => None,
                };
                let invalid = || InvalidHash(text.chars().take(80).collect(), $len * 2);
                if digits.len() != $len * 2 {
                    return Err(invalid());
                }
                for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
                    *byte = match (value(pair[0]), value(pair[1])) {
                        (Some(high), Some(low)) => high << 4 | low,
                        _ => return Err(invalid()),
                    };
                }
                Ok($type(out))
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<$type, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_text!(Hash, 32);
hex_text!(Salt, 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_prints_as_sha256sum_does() {
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Hash::of(b"").to_string(), text);
        assert_eq!(text.parse(), Ok(Hash::of(b"")));
        assert!(text.to_uppercase().parse::<Hash>().is_err());
        assert!("e3".parse::<Hash>().is_err());
    }
}
