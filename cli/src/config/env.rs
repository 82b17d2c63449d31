//! `EVERLOG_*`, into a layer.

use std::ffi::OsString;
use std::path::PathBuf;

use super::Problem;
use super::kafka_properties;
use super::layers::{Layer, Origin, Raw, find_key, known_keys};
use super::problem::suggestion;
use super::setting::{SETTINGS, Shape, env_name, setting};

const PREFIX: &str = "EVERLOG_";
const PROPERTY_PREFIX: &str = "EVERLOG_KAFKA_PROPERTIES_";
const CONFIG_FILE: &str = "EVERLOG_CONFIG";
const RUST_LOG: &str = "RUST_LOG";

/// Reads `variables`. Gives the layer and the file that `EVERLOG_CONFIG` names.
pub(crate) fn read(
    variables: Vec<(OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> (Layer, Option<PathBuf>) {
    let (mut layer, mut config_file, mut rust_log) = (Layer::default(), None, None);
    for (name, value) in variables {
        let Some(name) = name
            .to_str()
            .filter(|name| name.starts_with(PREFIX) || *name == RUST_LOG)
        else {
            continue;
        };
        let Some(value) = value.to_str() else {
            problems.push(Problem::new(name, "its value is not UTF-8"));
            continue;
        };
        if name == CONFIG_FILE {
            config_file = Some(PathBuf::from(value));
        } else if name == RUST_LOG {
            rust_log = Some(value.to_owned());
        } else if let Some(property) = name.strip_prefix(PROPERTY_PREFIX) {
            let (property, in_file) = property_name(property);
            layer.set_property(
                &property,
                raw(name, vec![value.to_owned()], in_file),
                problems,
            );
        } else {
            one_key(name, value, &mut layer, problems);
        }
    }
    if let Some(filter) = rust_log {
        layer
            .values
            .entry("log")
            .or_insert_with(|| raw(RUST_LOG, vec![filter], false));
    }
    (layer, config_file)
}

fn raw(name: &str, texts: Vec<String>, in_file: bool) -> Raw {
    Raw {
        texts,
        origin: Origin::Env(name.to_owned()),
        in_file,
    }
}

fn one_key(name: &str, value: &str, layer: &mut Layer, problems: &mut Vec<Problem>) {
    let known = known_keys();
    let found = known
        .iter()
        .find(|key| env_name(key) == name)
        .and_then(|key| find_key(key));
    match found {
        Some((key, in_file)) => {
            // A list has one variable. Several regexes go on several lines, since a comma can be part of one.
            let is_list = setting(key).is_some_and(|setting| matches!(setting.shape, Shape::List));
            let texts = if is_list {
                value
                    .lines()
                    .map(str::trim)
                    .filter(|line| !line.is_empty())
                    .map(str::to_owned)
                    .collect()
            } else {
                vec![value.to_owned()]
            };
            layer.set(key, raw(name, texts, in_file), problems);
        }
        None if is_service_link(name, value) => {}
        None => {
            let hint = property_variable(name).map_or_else(
                || {
                    let names: Vec<String> =
                        SETTINGS.iter().map(super::setting::Setting::env).collect();
                    suggestion(name, names.iter().map(String::as_str))
                },
                |variable| format!("; it is librdkafka's: set {variable}"),
            );
            problems.push(Problem::new(
                name,
                format!("there is no such variable{hint}"),
            ));
        }
    }
}

/// The variable of a property of librdkafka whose name was put right behind the prefix.
fn property_variable(name: &str) -> Option<String> {
    let written = name.strip_prefix(PREFIX)?;
    let written = written.strip_prefix("KAFKA_").unwrap_or(written);
    let (property, _) = property_name(written);
    kafka_properties::librdkafka_name(&property)?;
    Some(format!("{PROPERTY_PREFIX}{written}"))
}

/// `SASL_PASSWORD_FILE` is `sasl.password` in a file, unless librdkafka has a property of just this name.
fn property_name(written: &str) -> (String, bool) {
    let name = written.to_ascii_lowercase().replace('_', ".");
    match name.strip_suffix(".file") {
        Some(property) if !kafka_properties::exists(&name) => (property.to_owned(), true),
        _ => (name, false),
    }
}

/// Kubernetes describes every service of a namespace in variables. One that is called `everlog` or `everlog-metrics`
/// must not keep its own pods from starting.
fn is_service_link(name: &str, value: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
        || (name.contains("_PORT_") && (name.contains("_TCP") || name.contains("_UDP")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &[(&str, &str)]) -> (Layer, Option<PathBuf>, Vec<String>) {
        let mut problems = Vec::new();
        let variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let (layer, file) = read(variables, &mut problems);
        (
            layer,
            file,
            problems.iter().map(Problem::to_string).collect(),
        )
    }

    #[test]
    fn keys_properties_and_secret_files_are_found() {
        let (layer, file, problems) = check(&[
            ("EVERLOG_CONFIG", "/etc/everlog.toml"),
            ("EVERLOG_TOPICS", "orders,pay\nx{1,3}"),
            ("EVERLOG_S3_SECRET_ACCESS_KEY_FILE", "/run/key"),
            ("EVERLOG_KAFKA_PROPERTIES_SASL_PASSWORD", "hunter2"),
            ("EVERLOG_KAFKA_PROPERTIES_SSL_KEY_PASSWORD_FILE", "/run/pw"),
            ("RUST_LOG", "debug"),
            ("PATH", "/bin"),
        ]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(file, Some(PathBuf::from("/etc/everlog.toml")));
        assert_eq!(layer.values["topics"].texts, ["orders,pay", "x{1,3}"]);
        assert!(layer.values["s3.secret_access_key"].in_file);
        assert_eq!(layer.properties["sasl.password"].texts, ["hunter2"]);
        assert!(layer.properties["ssl.key.password"].in_file);
        assert_eq!(layer.values["log"].origin.to_string(), "RUST_LOG");
    }

    #[test]
    fn everlogs_own_filter_beats_rust_log() {
        let (layer, _, _) = check(&[("EVERLOG_LOG", "warn"), ("RUST_LOG", "debug")]);
        assert_eq!(layer.values["log"].texts, ["warn"]);
    }

    #[test]
    fn an_unknown_variable_is_refused_but_kubernetes_own_are_not() {
        let (_, _, problems) = check(&[("EVERLOG_MEMROY", "1GiB")]);
        assert_eq!(
            problems,
            ["EVERLOG_MEMROY: there is no such variable; did you mean `EVERLOG_MEMORY`?"]
        );
        let (_, _, problems) = check(&[
            ("EVERLOG_SERVICE_HOST", "10.0.0.1"),
            ("EVERLOG_SERVICE_PORT_KAFKA", "9092"),
            ("EVERLOG_PORT", "tcp://10.0.0.1:9092"),
            ("EVERLOG_METRICS_PORT_9644_TCP_ADDR", "10.0.0.1"),
        ]);
        assert_eq!(problems, [""; 0]);
    }
}
