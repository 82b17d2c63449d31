//! The librdkafka properties that an operator gives: which may be given, and that none is printed by accident.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use crate::ArchiverError;

/// Why a property may not be given.
pub const REFUSED_PROPERTIES: &[(&str, &str)] = &[
    (
        "isolation.level",
        "must be read_committed, or aborted records would be archived",
    ),
    (
        "auto.offset.reset",
        "must be error, or lost records would be skipped in silence",
    ),
    (
        "enable.auto.commit",
        "must be false: group offsets are committed after the archive's own commit",
    ),
    (
        "auto.commit.enable",
        "must be false: group offsets are committed after the archive's own commit",
    ),
    (
        "enable.auto.offset.store",
        "must be false: group offsets are committed after the archive's own commit",
    ),
    ("group.id", "is a setting of everlog's own (group_id)"),
    (
        "group.instance.id",
        "is a setting of everlog's own (instance_id)",
    ),
    (
        "group.protocol",
        "must be classic: partitions are assigned one by one",
    ),
    (
        "partition.assignment.strategy",
        "must be cooperative-sticky: partitions are assigned one by one",
    ),
    (
        "bootstrap.servers",
        "is a setting of everlog's own (bootstrap_servers)",
    ),
    (
        "metadata.broker.list",
        "is a setting of everlog's own (bootstrap_servers)",
    ),
    (
        "check.crcs",
        "must be true, or damaged records would be archived",
    ),
    (
        "enable.partition.eof",
        "must be true: the covered end is read from it",
    ),
    (
        "queued.max.messages.kbytes",
        "follows from the memory setting",
    ),
    (
        "allow.auto.create.topics",
        "must be false: archiving creates no topics",
    ),
    (
        "topic.blacklist",
        "would hide topics in silence: use the topics setting",
    ),
    (
        "enable.metrics.push",
        "must be left alone: telemetry is not the archiver's",
    ),
];

/// Properties by librdkafka's names. Passwords are among them, so `Debug` shows names alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaProperties(BTreeMap<String, String>);

impl KafkaProperties {
    /// Refuses a name of [`REFUSED_PROPERTIES`].
    pub(crate) fn check_names(&self) -> Result<(), ArchiverError> {
        for key in self.0.keys() {
            let refused = REFUSED_PROPERTIES
                .iter()
                .find(|(refused, _)| *refused == key.trim());
            if let Some((_, why)) = refused {
                return Err(ArchiverError::Property {
                    key: key.clone(),
                    why: (*why).to_owned(),
                });
            }
        }
        Ok(())
    }
}

impl FromIterator<(String, String)> for KafkaProperties {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(properties: I) -> KafkaProperties {
        KafkaProperties(properties.into_iter().collect())
    }
}

impl Deref for KafkaProperties {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for KafkaProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
