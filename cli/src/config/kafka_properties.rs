//! `[kafka.properties]`: passed on to librdkafka as it is, but tried first, so that a slip is told with the others.

use std::collections::BTreeMap;

use everlog_archiver::REFUSED_PROPERTIES;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use super::layers::Raw;
use super::problem::{Problem, suggestion};
use super::secret::is_secret_key;

/// Names for suggestions: what people do set.
const COMMON: &[&str] = &[
    "broker.address.family",
    "client.id",
    "client.rack",
    "debug",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.wait.max.ms",
    "max.partition.fetch.bytes",
    "message.max.bytes",
    "metadata.max.age.ms",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.receive.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
];

/// Whether librdkafka knows a property of this name.
pub(crate) fn exists(name: &str) -> bool {
    // Callbacks are properties too, but not ones with a text: `get` knows only those that can be written down.
    ClientConfig::new()
        .create_native_config()
        .and_then(|config| config.get(name))
        .is_ok()
}

/// Tries every property by itself.
pub(crate) fn check(
    written: &BTreeMap<String, Raw>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, String> {
    let mut properties = BTreeMap::new();
    for (name, raw) in written {
        let value = raw.texts.concat();
        match complaint(name, &value) {
            Some(message) => problems.push(Problem::new(&raw.origin, message)),
            None => {
                properties.insert(name.clone(), value);
            }
        }
    }
    properties
}

fn complaint(name: &str, value: &str) -> Option<String> {
    if let Some((_, why)) = REFUSED_PROPERTIES.iter().find(|(ours, _)| *ours == name) {
        return Some(format!("`{name}` is everlog's own to set: it {why}"));
    }
    if value.contains('\0') {
        return Some(format!("the value of `{name}` holds a NUL byte"));
    }
    let why = match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => return None,
        Err(KafkaError::ClientConfig(_, why, _, _)) => why,
        Err(err) => err.to_string(),
    };
    Some(if why.contains("in this build") {
        format!("librdkafka was built without `{name}`")
    } else if !exists(name) {
        let there = COMMON.iter().copied().filter(|name| exists(name));
        format!(
            "librdkafka has no property `{name}`{}",
            suggestion(name, there)
        )
    } else if is_secret_key(name) {
        // librdkafka's text quotes the value.
        format!("librdkafka refuses the value of `{name}`")
    } else {
        format!("librdkafka refuses `{name}` = {value:?}: {why}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafka_itself_says_what_it_knows() {
        assert!(exists("security.protocol"));
        assert!(!exists("security.protocoll"));
        assert_eq!(complaint("security.protocol", "SASL_SSL"), None);
        assert_eq!(complaint("sasl.password", "hunter2"), None);
        let unknown = complaint("sasl.pasword", "hunter2").unwrap_or_default();
        assert_eq!(
            unknown,
            "librdkafka has no property `sasl.pasword`; did you mean `sasl.password`?"
        );
        let bad = complaint("security.protocol", "TLS").unwrap_or_default();
        assert!(
            bad.contains("security.protocol") && bad.contains("TLS"),
            "{bad}"
        );
    }

    #[test]
    fn what_keeps_records_safe_is_not_the_operators_to_change() {
        for (ours, _) in REFUSED_PROPERTIES {
            assert!(
                complaint(ours, "x").is_some_and(|text| text.contains("everlog's own")),
                "{ours}"
            );
        }
    }
}
