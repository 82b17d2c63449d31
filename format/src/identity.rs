//! Who a record belongs to: cluster, incarnation of a topic, partition. These become parts of object names, so their
//! constructors refuse whatever Kafka itself would refuse.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

/// A name outside Kafka's own character set, or too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not allowed: {rule}")]
pub struct InvalidName {
    what: &'static str,
    text: String,
    rule: &'static str,
}

fn check(
    what: &'static str,
    text: &str,
    max_len: usize,
    rule: &'static str,
) -> Result<String, InvalidName> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty()
        || text.len() > max_len
        || text == "."
        || text == ".."
        || !text.chars().all(legal)
    {
        return Err(InvalidName {
            what,
            text: text.chars().take(80).collect(),
            rule,
        });
    }
    Ok(text.to_owned())
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max_len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// Checks `text` against Kafka's rule for names.
            pub fn new(text: &str) -> Result<$type, InvalidName> {
                let rule = concat!("1 to ", $max_len, " characters of A-Z a-z 0-9 . _ -, and neither . nor ..");
                check($what, text, $max_len, rule).map($type)
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        text_impls!($type);
    };
}

macro_rules! text_impls {
    ($type:ident) => {
        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<$type, InvalidName> {
                $type::new(text)
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

checked_name!(
    /// The id that a Kafka cluster gives itself, as text: 22 characters, or up to 200 that somebody chose (it becomes
    /// a part of object names, of which 255 characters are the most that every store takes).
    ClusterId,
    "cluster id",
    200
);
checked_name!(
    /// The name of a topic: an alias, never an identity (a topic that is created again has another [`TopicId`]).
    TopicName,
    "topic name",
    249
);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A topic's id (KIP-516), in text as Kafka prints it: 22 characters of URL-safe base64 without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(Uuid);

impl TopicId {
    /// Reads Kafka's text form.
    pub fn new(text: &str) -> Result<TopicId, InvalidName> {
        let invalid = || InvalidName {
            what: "topic id",
            text: text.chars().take(80).collect(),
            rule: "22 characters of URL-safe base64, and not the zero id",
        };
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        Uuid::from_slice(&bytes)
            .ok()
            .and_then(TopicId::from_uuid)
            .ok_or_else(invalid)
    }

    /// `None` for the zero id, which brokers send where a topic has none.
    pub fn from_uuid(id: Uuid) -> Option<TopicId> {
        (!id.is_nil()).then_some(TopicId(id))
    }

    /// The id as the wire codec wants it.
    pub fn as_uuid(self) -> Uuid {
        self.0
    }

    /// The first 8 hex digits: enough to tell two incarnations of a topic apart in a path.
    pub fn short(self) -> String {
        self.0.simple().to_string()[..8].to_owned()
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0.as_bytes()))
    }
}

text_impls!(TopicId);

/// A partition's number, 0 to `i32::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(i32);

impl Partition {
    /// `None` for a negative number.
    pub fn new(raw: i32) -> Option<Partition> {
        (raw >= 0).then_some(Partition(raw))
    }

    /// The number Kafka uses.
    pub fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// The cluster.
    pub cluster: ClusterId,
    /// The topic's id there.
    pub topic_id: TopicId,
}

/// One partition of one life of a topic: what a chain of commits belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    /// Whose partition.
    pub incarnation: Incarnation,
    /// Which one.
    pub partition: Partition,
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.incarnation.cluster, self.incarnation.topic_id, self.partition
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_kafkas_characters_are_refused() {
        assert!(TopicName::new("orders.v1_x-Y").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(250)] {
            assert!(TopicName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_topic_id_reads_back_as_kafka_prints_it() {
        let id = TopicId::new("4L6g3nShT-eMCtK--X86sw").expect("an id");
        assert_eq!(id.to_string(), "4L6g3nShT-eMCtK--X86sw");
        assert_eq!(id.short(), "e0bea0de");
        assert!(TopicId::new("AAAAAAAAAAAAAAAAAAAAAA").is_err());
        assert!(TopicId::new("4L6g3nSh").is_err());
    }
}
