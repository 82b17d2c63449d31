//! `[kafka.properties]`: passed on to librdkafka as it is, but tried first, so that a slip is told with the others.

use std::collections::BTreeMap;

use everlog_archiver::{ArchiverConfig, KafkaProperties, REFUSED_PROPERTIES};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::layers::{Raw, known_keys};
use super::problem::{Problem, nearest, suggestion};
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
    // Asking for its value would not do: a property without one seems not to be there.
    !matches!(refusal(name, "1"), Some(Refusal::Unknown))
}

/// librdkafka's name for what was `written` where it does not belong, if it is one that may be set. A key of everlog's own has
/// underscores where librdkafka has dots, so those are tried for each other.
pub(crate) fn librdkafka_name(written: &str) -> Option<String> {
    let written = written.strip_prefix("kafka.").unwrap_or(written);
    let (bare, in_file) = match written.strip_suffix("_file") {
        Some(bare) => (bare, "_file"),
        None => (written, ""),
    };
    let may_be_set = |name: &String| {
        let is_ours = REFUSED_PROPERTIES.iter().any(|(ours, _)| ours == name);
        !name.contains('\0') && !is_ours && exists(name)
    };
    [bare.to_owned(), bare.replace('_', ".")]
        .into_iter()
        .find(may_be_set)
        .map(|name| name + in_file)
}

/// For a key that everlog does not know: that it belongs to librdkafka, or is a slip in one that does.
pub(crate) fn hint(key: &str) -> Option<String> {
    if let Some(name) = librdkafka_name(key) {
        return Some(format!(
            "; it is librdkafka's: set `{name}` under [kafka.properties]"
        ));
    }
    let bare = key.strip_prefix("kafka.").unwrap_or(key);
    let known = known_keys();
    let all = known
        .iter()
        .map(String::as_str)
        .chain(COMMON.iter().copied());
    match nearest(bare, all) {
        Some(name) if COMMON.contains(&name) => {
            Some(format!("; did you mean `{name}` under [kafka.properties]?"))
        }
        Some(name) if bare != key => Some(format!("; did you mean `{name}`?")),
        None if bare != key => Some("; librdkafka's go under [kafka.properties]".to_owned()),
        _ => None,
    }
}

/// What librdkafka says to a property.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refusal {
    Unknown,
    NotBuilt,
    /// Its words, which quote the value.
    Value(String),
}

fn refusal(name: &str, value: &str) -> Option<Refusal> {
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Some(Refusal::Unknown)
        }
        Err(KafkaError::ClientConfig(_, why, ..)) if why.contains("in this build") => {
            Some(Refusal::NotBuilt)
        }
        Err(KafkaError::ClientConfig(_, why, ..)) => Some(Refusal::Value(why)),
        Err(err) => Some(Refusal::Value(err.to_string())),
    }
}

/// Tries every property by itself.
pub(crate) fn check(
    written: &BTreeMap<String, Raw>,
    problems: &mut Vec<Problem>,
) -> KafkaProperties {
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
    properties.into_iter().collect()
}

/// Tries them together, as an archiver with this memory in bytes would have them, if each of them was fine by itself. Of what
/// does not fit together librdkafka tells one thing at a time.
pub(crate) fn check_together(
    written: &BTreeMap<String, Raw>,
    properties: &KafkaProperties,
    memory_bytes: u64,
    problems: &mut Vec<Problem>,
) {
    let Some((_, first)) = written.first_key_value() else {
        return;
    };
    if properties.len() < written.len() {
        return;
    }
    let Err(err) = ArchiverConfig::try_clients(properties, memory_bytes) else {
        return;
    };
    let message = err.to_string();
    let named = written.iter().find(|(name, _)| message.contains(*name));
    let raw = named.map_or(first, |(_, raw)| raw);
    problems.push(Problem::new(&raw.origin, message));
}

/// Who signs in (by SASL) has to say how, and as whom. Without a mechanism librdkafka takes Kerberos (GSSAPI), which is not built
/// in, and tells of a library that is missing. A proxy alone does without: so these count as missing, not as mistakes.
pub(crate) fn check_sign_in(written: &BTreeMap<String, Raw>, problems: &mut Vec<Problem>) {
    let value = |name: &str| written.get(name).map(|raw| raw.texts.concat());
    let Some(protocol) = written.get("security.protocol") else {
        return;
    };
    let name = protocol.texts.concat().to_ascii_uppercase();
    if !name.starts_with("SASL_") {
        return;
    }
    let file = "in [kafka.properties]";
    let Some(mechanism) = value("sasl.mechanism").or_else(|| value("sasl.mechanisms")) else {
        let message = format!(
            "`security.protocol` = {name}, but `sasl.mechanism` is not given: set it {file} to PLAIN, SCRAM-SHA-256, \
             SCRAM-SHA-512 or OAUTHBEARER, and `sasl.username` and `sasl.password` (or `sasl.password_file`) beside it"
        );
        return problems.push(Problem::missing(format!("{}: {message}", protocol.origin)));
    };
    let mechanism = mechanism.to_ascii_uppercase();
    if mechanism == "GSSAPI" {
        let message = "`sasl.mechanism` = GSSAPI: Kerberos is not built into everlog; use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or \
                       OAUTHBEARER";
        return problems.push(Problem::new(&protocol.origin, message));
    }
    if mechanism != "PLAIN" && !mechanism.starts_with("SCRAM-") {
        return;
    }
    let username = value("sasl.username").is_some_and(|text| !text.is_empty());
    let password = value("sasl.password").is_some_and(|text| !text.is_empty());
    let wanted = match (username, password) {
        (true, true) => return,
        (false, true) => "`sasl.username` is not given",
        (true, false) => "`sasl.password` (or `sasl.password_file`) is not given",
        (false, false) => {
            "`sasl.username` and `sasl.password` (or `sasl.password_file`) are not given"
        }
    };
    problems.push(Problem::missing(format!(
        "{}: `sasl.mechanism` = {mechanism}, but {wanted}: set it {file}",
        protocol.origin
    )));
}

fn complaint(name: &str, value: &str) -> Option<String> {
    if let Some((_, why)) = REFUSED_PROPERTIES.iter().find(|(ours, _)| *ours == name) {
        return Some(format!("`{name}` is everlog's own to set: it {why}"));
    }
    if value.contains('\0') {
        return Some(format!("the value of `{name}` holds a NUL byte"));
    }
    match refusal(name, value)? {
        Refusal::NotBuilt => Some(format!("librdkafka was built without `{name}`")),
        Refusal::Unknown => {
            let there = COMMON
                .iter()
                .copied()
                .filter(|name| refusal(name, "1") != Some(Refusal::NotBuilt));
            Some(format!(
                "librdkafka has no property `{name}`{}",
                suggestion(name, there)
            ))
        }
        Refusal::Value(_) if is_secret_key(name) => {
            Some(format!("librdkafka refuses the value of `{name}`"))
        }
        Refusal::Value(why) => Some(format!("librdkafka refuses `{name}` = {value:?}: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::layers::Origin;
    use super::*;

    #[test]
    fn librdkafka_itself_says_what_it_knows() {
        assert!(exists("security.protocol"));
        assert!(exists("sasl.password"), "a property without a default");
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

    #[track_caller]
    fn told(properties: &[(&str, &str)]) -> String {
        let raw = |text: &&str| Raw {
            texts: vec![(*text).to_owned()],
            origin: Origin::Flag("everlog.toml:3".to_owned()),
            in_file: false,
        };
        let written = properties
            .iter()
            .map(|(name, text)| ((*name).to_owned(), raw(text)))
            .collect();
        let mut problems = Vec::new();
        check_sign_in(&written, &mut problems);
        assert!(problems.len() <= 1, "{problems:?}");
        problems.first().map(Problem::to_string).unwrap_or_default()
    }

    #[test]
    fn who_signs_in_says_how_and_as_whom() {
        assert_eq!(told(&[]), "");
        assert_eq!(told(&[("security.protocol", "ssl")]), "");
        let sasl = ("security.protocol", "sasl_ssl");
        for wanted in [
            "everlog.toml:3",
            "sasl.mechanism",
            "sasl.username",
            "sasl.password_file",
        ] {
            assert!(told(&[sasl]).contains(wanted), "{}", told(&[sasl]));
        }
        // librdkafka's older name for the same.
        let plain = ("sasl.mechanisms", "PLAIN");
        assert!(told(&[sasl, plain]).contains("`sasl.username` and `sasl.password`"));
        let user = ("sasl.username", "everlog");
        let half = told(&[sasl, plain, user]);
        assert!(
            half.contains("`sasl.password`") && !half.contains("`sasl.username`"),
            "{half}"
        );
        assert_eq!(told(&[sasl, plain, user, ("sasl.password", "x")]), "");
        assert!(told(&[sasl, ("sasl.mechanism", "GSSAPI")]).contains("Kerberos"));
        assert_eq!(told(&[sasl, ("sasl.mechanism", "OAUTHBEARER")]), "");
    }

    #[test]
    fn what_does_not_fit_together_is_told_with_its_place() {
        let raw = |text: &str, line: usize| Raw {
            texts: vec![text.to_owned()],
            origin: Origin::Flag(format!("everlog.toml:{line}")),
            in_file: false,
        };
        let written = BTreeMap::from([
            ("client.rack".to_owned(), raw("a", 3)),
            ("session.timeout.ms".to_owned(), raw("700000", 4)),
        ]);
        let mut problems = Vec::new();
        let properties = check(&written, &mut problems);
        assert_eq!(problems, [], "each by itself is fine");
        check_together(&written, &properties, 256 << 20, &mut problems);
        let told = problems.first().map(Problem::to_string).unwrap_or_default();
        assert!(
            told.starts_with("everlog.toml:4") && told.contains("session.timeout.ms"),
            "{told}"
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
