//! The configuration as the commands use it: what belongs together checked together, and what a command needs present.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use everlog_archiver::KafkaProperties;
use everlog_format::TopicSelection;

use super::kafka_properties::{check_sign_in, check_together};
use super::layers::Origin;
use super::memory::{self, MemorySplit};
use super::setting::setting;
use super::size::{display_size, too_little};
use super::values::{HoleRule, S3};
use super::{CommandName, Layers, LogConfig, Problem, Problems, Values};

/// Which services a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roles {
    pub(crate) archiver: bool,
    pub(crate) proxy: bool,
}

impl Roles {
    pub(crate) const ARCHIVER: Roles = Roles {
        archiver: true,
        proxy: false,
    };
    pub(crate) const PROXY: Roles = Roles {
        archiver: false,
        proxy: true,
    };
    pub(crate) const BOTH: Roles = Roles {
        archiver: true,
        proxy: true,
    };

    fn command(self) -> CommandName {
        match (self.archiver, self.proxy) {
            (true, true) => CommandName::Run,
            (true, false) => CommandName::Archive,
            (false, _) => CommandName::Proxy,
        }
    }
}

/// Where the archive lies.
#[derive(Clone, Debug)]
pub(crate) struct ArchivePlace {
    pub(crate) url: String,
    pub(crate) s3: S3,
}

/// For `run`, `archive` and `proxy`.
#[derive(Clone, Debug)]
pub(crate) struct ServiceConfig {
    pub(crate) roles: Roles,
    pub(crate) bootstrap_servers: String,
    pub(crate) properties: KafkaProperties,
    pub(crate) archive: ArchivePlace,
    pub(crate) topics: TopicSelection,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) memory: MemorySplit,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) log: LogConfig,
    pub(crate) group_id: String,
    pub(crate) instance_id: String,
    pub(crate) segment_max_bytes: u64,
    pub(crate) segment_max_age: Duration,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<String>,
    pub(crate) node_ports: BTreeMap<i32, u16>,
    pub(crate) on_hole: HoleRule,
}

/// For `inspect` and `verify`.
#[derive(Clone, Debug)]
pub(crate) struct ToolConfig {
    pub(crate) archive: ArchivePlace,
    /// `None`: all.
    pub(crate) topics: Option<TopicSelection>,
    pub(crate) bootstrap_servers: Option<String>,
    pub(crate) properties: KafkaProperties,
    pub(crate) log: LogConfig,
}

impl ServiceConfig {
    /// Everything that is wrong comes back at once.
    pub(crate) fn new(
        mut layers: Layers,
        roles: Roles,
        host_name: Option<String>,
    ) -> Result<ServiceConfig, Problems> {
        let mut problems = layers.take_problems()?;
        let values = Values::parse(&layers.merged, &mut problems);
        check_service(&values, &layers, roles, &mut problems);
        let instance_id = values
            .instance_id
            .clone()
            .or_else(|| host_name.as_deref().map(as_member_name));
        if roles.archiver && instance_id.is_none() {
            problems.push(missing(
                "instance_id",
                "this machine has no host name to use instead",
            ));
        }
        let memory = memory::split(values.memory_bytes, roles);
        let topics = values
            .topics
            .or_else(|| (!roles.archiver).then(TopicSelection::everything));
        match (values.bootstrap_servers, values.archive, topics, memory) {
            (Some(bootstrap_servers), Some(url), Some(topics), Some(memory))
                if problems.is_empty() =>
            {
                let group_id = values.group_id.unwrap_or_else(|| group_of(&url));
                Ok(ServiceConfig {
                    roles,
                    bootstrap_servers,
                    properties: values.properties,
                    archive: ArchivePlace { url, s3: values.s3 },
                    topics,
                    data_dir: values.data_dir,
                    memory,
                    metrics: values.metrics,
                    log: values.log,
                    group_id,
                    instance_id: instance_id.unwrap_or_default(),
                    segment_max_bytes: values.segment_max_bytes,
                    segment_max_age: values.segment_max_age,
                    listen: values.listen,
                    advertise: values.advertise,
                    node_ports: values.node_ports,
                    on_hole: values.on_hole,
                })
            }
            _ => Err(Problems(problems)),
        }
    }
}

/// The consumer group of an archive's archivers. Another archive has another one: two archives that shared a group would
/// each get a part of the partitions, and neither would say so.
fn group_of(archive_url: &str) -> String {
    let mut hash =
        everlog_format::Hash::of(archive_url.trim_end_matches('/').as_bytes()).to_string();
    hash.truncate(12);
    format!("everlog-archiver-{hash}")
}

impl ToolConfig {
    /// Everything that is wrong comes back at once. `asks_cluster`: whether the command talks to Kafka where it is told of one.
    pub(crate) fn new(mut layers: Layers, asks_cluster: bool) -> Result<ToolConfig, Problems> {
        let mut problems = layers.take_problems()?;
        let values = Values::parse(&layers.merged, &mut problems);
        check_archive(&values, &layers, &mut problems);
        if values.archive.as_deref().is_some_and(is_memory) {
            problems.push(at(
                &layers,
                "archive",
                "an archive in memory ends with its process: there is nothing to look at",
            ));
        }
        // A file that serves a proxy, too, names a cluster, and signs in nowhere.
        if asks_cluster && values.bootstrap_servers.is_some() {
            check_sign_in(&layers.merged.properties, &mut problems);
        }
        match values.archive {
            Some(url) if problems.is_empty() => Ok(ToolConfig {
                archive: ArchivePlace { url, s3: values.s3 },
                topics: values.topics,
                bootstrap_servers: values.bootstrap_servers,
                properties: values.properties,
                log: values.log,
            }),
            _ => Err(Problems(problems)),
        }
    }
}

/// A problem at the place where `key` was given.
fn at(layers: &Layers, key: &str, message: impl Into<String>) -> Problem {
    match layers.merged.values.get(key).map(|raw| &raw.origin) {
        Some(origin @ Origin::File { .. }) => Problem::new(format!("{origin}: {key}"), message),
        Some(Origin::Default) | None => {
            Problem::new(format!("--{}", key.replace(['.', '_'], "-")), message)
        }
        Some(origin) => Problem::new(origin, message),
    }
}

fn missing(key: &str, why: &str) -> Problem {
    let (flag, env) = setting(key)
        .map(|setting| (setting.flag(), setting.env()))
        .unwrap_or_default();
    Problem::missing(format!(
        "`{key}` is not given ({why}): use --{flag}, {env} or the file"
    ))
}

fn is_memory(url: &str) -> bool {
    url.starts_with("memory:")
}

/// What concerns the archive alone.
fn check_archive(values: &Values, layers: &Layers, problems: &mut Vec<Problem>) {
    match values.archive.as_deref() {
        // A value that does not parse has been told already.
        None if layers.merged.values.contains_key("archive") => {}
        None => problems.push(missing("archive", "where the archive lies")),
        Some(url) if !url.starts_with("s3:") => {
            for (key, raw) in layers
                .merged
                .values
                .iter()
                .filter(|(key, _)| key.starts_with("s3."))
            {
                // File and environment may serve several archives; a flag was meant for this one.
                if matches!(raw.origin, Origin::Flag(_)) {
                    problems.push(at(
                        layers,
                        key,
                        format!("it has no use for the archive {url}"),
                    ));
                }
            }
        }
        Some(_) => {}
    }
    let s3 = &values.s3;
    match (s3.access_key_id.is_some(), s3.secret_access_key.is_some()) {
        (true, false) => problems.push(at(
            layers,
            "s3.access_key_id",
            "`s3.secret_access_key` is wanted beside it",
        )),
        (false, true) => problems.push(at(
            layers,
            "s3.secret_access_key",
            "`s3.access_key_id` is wanted beside it",
        )),
        (false, false) if s3.session_token.is_some() => {
            problems.push(at(
                layers,
                "s3.session_token",
                "`s3.access_key_id` is wanted beside it",
            ));
        }
        _ => {}
    }
}

/// Whoever clears a data directory may do so at any time; it must not hold the archive, nor lie in it.
fn check_data_dir(values: &Values, layers: &Layers, problems: &mut Vec<Problem>) {
    let archive = values.archive.as_deref();
    let (Some(dir), Some(archive)) = (
        &values.data_dir,
        archive.and_then(|url| url.strip_prefix("file://")),
    ) else {
        return;
    };
    let Ok(dir) = std::path::absolute(dir) else {
        return;
    };
    if dir.starts_with(archive) || Path::new(archive).starts_with(&dir) {
        let message = format!(
            "{} and the archive's directory, {archive}, must not lie in each other: a data directory holds nothing that cannot be \
             lost, and may be cleared at any time; name another",
            dir.display()
        );
        problems.push(at(layers, "data_dir", message));
    }
}

fn check_service(values: &Values, layers: &Layers, roles: Roles, problems: &mut Vec<Problem>) {
    check_archive(values, layers, problems);
    check_data_dir(values, layers, problems);
    if values.archive.as_deref().is_some_and(is_memory) && roles != Roles::BOTH {
        let message = "an archive in memory is seen by one process alone: only `everlog run` can make sense of it";
        problems.push(at(layers, "archive", message));
    }
    if values.bootstrap_servers.is_none() && !layers.merged.values.contains_key("bootstrap_servers")
    {
        problems.push(missing("bootstrap_servers", "where the Kafka cluster is"));
    }
    if roles.archiver && values.topics.is_none() && !layers.merged.values.contains_key("topics") {
        problems.push(missing("topics", "what to archive"));
    }
    let min_bytes = memory::min_bytes(roles);
    if values.memory_bytes < min_bytes {
        let (command, min) = (roles.command().as_str(), display_size(min_bytes));
        let written = layers.merged.values.get("memory");
        let unit = written.map(|raw| too_little(&raw.texts.concat(), min_bytes));
        problems.push(at(
            layers,
            "memory",
            format!(
                "`everlog {command}` needs at least {min}{}",
                unit.unwrap_or_default()
            ),
        ));
    }
    // A proxy of its own signs in nowhere: clients do, through it.
    if roles.archiver {
        let written = &layers.merged.properties;
        let before = problems.len();
        check_sign_in(written, problems);
        // Who does not say how to sign in would hear of it twice.
        if problems.len() == before
            && let Some(memory) = memory::split(values.memory_bytes, roles)
        {
            check_together(written, &values.properties, memory.archiver_bytes, problems);
        }
    }
    if roles.proxy {
        check_proxy(values, layers, problems);
    }
}

/// For `everlog config`: all that `run` would refuse.
pub(crate) fn check_all(values: &Values, layers: &Layers, problems: &mut Vec<Problem>) {
    check_service(values, layers, Roles::BOTH, problems);
}

fn check_proxy(values: &Values, layers: &Layers, problems: &mut Vec<Problem>) {
    let listen = values.listen;
    if listen.ip().is_unspecified()
        && values.advertise.is_none()
        && !layers.merged.values.contains_key("advertise")
    {
        let message = format!(
            "listening on all addresses ({}) needs --advertise HOST: clients are told where each broker is, and nobody can \
             connect to {}",
            listen.ip(),
            listen.ip()
        );
        problems.push(at(layers, "listen", message));
    }
    for (node, port) in &values.node_ports {
        if *port == listen.port() {
            problems.push(at(
                layers,
                "node_ports",
                format!("node {node} cannot have the port of `listen`, {port}"),
            ));
        }
    }
    if let Some(metrics) = values.metrics {
        let clash = listen.port() == metrics.port()
            || values
                .node_ports
                .values()
                .any(|port| *port == metrics.port());
        let same_host = listen.ip() == metrics.ip()
            || listen.ip().is_unspecified()
            || metrics.ip().is_unspecified();
        if clash && same_host {
            problems.push(at(
                layers,
                "metrics",
                format!("port {} is taken by the proxy", metrics.port()),
            ));
        }
    }
    if values
        .bootstrap_servers
        .as_deref()
        .is_some_and(|servers| servers.split(',').any(|s| s == listen.to_string()))
    {
        problems.push(at(
            layers,
            "bootstrap_servers",
            format!("{listen} is the proxy itself: name the cluster's own address"),
        ));
    }
    let protocol = values
        .properties
        .get("security.protocol")
        .map(|text| text.to_ascii_uppercase());
    if let (Some(protocol), Some(raw)) =
        (protocol, layers.merged.properties.get("security.protocol"))
        // Clients bring their own SASL exchange, which passes through the proxy: nothing is asked of us.
        && protocol != "PLAINTEXT"
        && protocol != "SASL_PLAINTEXT"
    {
        let message = format!(
            "`security.protocol` = {protocol}: this version of the proxy speaks no TLS to the cluster; name a PLAINTEXT or \
             SASL_PLAINTEXT listener, or run `everlog archive` alone"
        );
        problems.push(Problem::new(&raw.origin, message));
    }
}

/// Host names can hold what Kafka's member names cannot.
fn as_member_name(host_name: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    host_name
        .chars()
        .take(249)
        .map(|c| if legal(c) { c } else { '-' })
        .collect()
}
