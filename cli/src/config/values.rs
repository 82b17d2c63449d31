//! The settings parsed, each by itself. What cannot be parsed is told and stands at its default, so that the other
//! mistakes come to light too.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use everlog_archiver::KafkaProperties;
use everlog_format::TopicSelection;
use tracing_subscriber::filter::LevelFilter;

use super::layers::{Layer, Origin, Raw};
use super::setting::setting;
use super::size::{parse_duration, parse_size, too_little};
use super::{Problem, Problems, Secret, kafka_properties};

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    Text,
    Json,
}

/// What to log, and how.
#[derive(Clone, Debug)]
pub(crate) struct LogConfig {
    /// A tracing filter; `None` leaves it to the command.
    pub(crate) filter: Option<String>,
    pub(crate) format: LogFormat,
}

impl LogConfig {
    /// The demo and `wal` have no configuration but this one variable.
    pub(crate) fn of_the_environment() -> Result<LogConfig, Problems> {
        const VARIABLE: &str = "EVERLOG_LOG";
        let filter = std::env::var(VARIABLE).ok();
        let filter = filter.map(|text| log_filter(&text)).transpose();
        let refused = |message| Problems(vec![Problem::new(VARIABLE, message)]);
        Ok(LogConfig {
            filter: filter.map_err(refused)?,
            format: LogFormat::Auto,
        })
    }
}

/// What a reader gets at a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HoleRule {
    Fail,
    Skip,
}

/// Where objects of `s3://` are.
#[derive(Clone, Debug, Default)]
pub(crate) struct S3 {
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) path_style: Option<bool>,
    pub(crate) lists_in_key_order: Option<bool>,
    pub(crate) access_key_id: Option<Secret>,
    pub(crate) secret_access_key: Option<Secret>,
    pub(crate) session_token: Option<Secret>,
}

/// All settings, parsed.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    pub(crate) bootstrap_servers: Option<String>,
    pub(crate) archive: Option<String>,
    pub(crate) topics: Option<TopicSelection>,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<String>,
    pub(crate) node_ports: BTreeMap<i32, u16>,
    pub(crate) on_hole: HoleRule,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) memory_bytes: u64,
    pub(crate) segment_max_bytes: u64,
    pub(crate) segment_max_age: Duration,
    pub(crate) instance_id: Option<String>,
    pub(crate) group_id: Option<String>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) log: LogConfig,
    pub(crate) s3: S3,
    pub(crate) properties: KafkaProperties,
}

impl Values {
    /// Parses every value that was written, needed or not.
    pub(crate) fn parse(merged: &Layer, problems: &mut Vec<Problem>) -> Values {
        let properties = kafka_properties::check(&merged.properties, problems);
        let mut p = Parser { merged, problems };
        Values {
            bootstrap_servers: p.one("bootstrap_servers", bootstrap_servers),
            archive: p.one("archive", archive_url),
            topics: p.many("topics", topics),
            listen: p.defaulted("listen", address),
            advertise: p.one("advertise", host_name),
            node_ports: p.many("node_ports", node_ports).unwrap_or_default(),
            on_hole: p.defaulted("on_hole", |text| match text {
                "fail" => Ok(HoleRule::Fail),
                "skip" => Ok(HoleRule::Skip),
                other => Err(format!("{other:?} is neither fail nor skip")),
            }),
            data_dir: p.one("data_dir", |text| not_empty(text).map(PathBuf::from)),
            memory_bytes: p.defaulted("memory", parse_size),
            segment_max_bytes: p.defaulted("segment_max_bytes", |text| {
                const MIN_BYTES: u64 = 64 << 10;
                let bytes = parse_size(text)?;
                let max = "4GiB, what a store takes in a single put";
                let unit = match bytes {
                    ..MIN_BYTES => too_little(text, MIN_BYTES),
                    _ => String::new(),
                };
                within(bytes, MIN_BYTES, 4 << 30, "64KiB", max).map_err(|message| message + &unit)
            }),
            segment_max_age: p.defaulted("segment_max_age", |text| {
                let day = Duration::from_secs(86_400);
                within(
                    parse_duration(text)?,
                    Duration::from_secs(1),
                    7 * day,
                    "1s",
                    "7d",
                )
            }),
            instance_id: p.one("instance_id", member_name),
            group_id: p.one("group_id", member_name),
            metrics: p.one("metrics", address),
            log: LogConfig {
                filter: p.one("log", log_filter),
                format: p.defaulted("log_format", |text| match text {
                    "auto" => Ok(LogFormat::Auto),
                    "text" => Ok(LogFormat::Text),
                    "json" => Ok(LogFormat::Json),
                    other => Err(format!("{other:?} is none of auto, text and json")),
                }),
            },
            s3: S3 {
                endpoint: p.one("s3.endpoint", endpoint_url),
                region: p.one("s3.region", |text| not_empty(text).map(str::to_owned)),
                path_style: p.one("s3.path_style", switch),
                lists_in_key_order: p.one("s3.lists_in_key_order", switch),
                access_key_id: p.one("s3.access_key_id", |text| not_empty(text).map(Secret::new)),
                secret_access_key: p.one("s3.secret_access_key", |text| {
                    not_empty(text).map(Secret::new)
                }),
                session_token: p.one("s3.session_token", |text| not_empty(text).map(Secret::new)),
            },
            properties,
        }
    }
}

struct Parser<'a> {
    merged: &'a Layer,
    problems: &'a mut Vec<Problem>,
}

impl Parser<'_> {
    fn many<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&[String]) -> Result<T, Vec<String>>,
    ) -> Option<T> {
        let raw: &Raw = self.merged.values.get(key)?;
        match parse(&raw.texts) {
            Ok(value) => Some(value),
            Err(messages) => {
                let place = place(key, &raw.origin);
                let problems = messages
                    .into_iter()
                    .map(|message| Problem::new(&place, message));
                self.problems.extend(problems);
                None
            }
        }
    }

    fn one<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.many(key, |texts| match texts {
            [text] => parse(text).map_err(|message| vec![message]),
            _ => Err(vec!["one value is wanted".to_owned()]),
        })
    }

    /// For a setting with a default: that is what stands in for a value that cannot be parsed.
    fn defaulted<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        self.one(key, &parse).unwrap_or_else(|| {
            let default = setting(key)
                .and_then(|setting| setting.default)
                .expect("the table has a default for it");
            parse(default).expect("the table's defaults parse: a test reads them all")
        })
    }
}

/// A file's line holds many things, a flag or a variable is the key.
fn place(key: &str, origin: &Origin) -> String {
    match origin {
        Origin::File { .. } | Origin::Default => format!("{origin}: {key}"),
        Origin::Env(_) | Origin::Flag(_) => origin.to_string(),
    }
}

fn not_empty(text: &str) -> Result<&str, String> {
    if text.is_empty() {
        Err("it is empty".to_owned())
    } else {
        Ok(text)
    }
}

fn within<T: PartialOrd>(
    value: T,
    min: T,
    max: T,
    min_text: &str,
    max_text: &str,
) -> Result<T, String> {
    if value < min {
        Err(format!("it must be at least {min_text}"))
    } else if value > max {
        Err(format!("it must be at most {max_text}"))
    } else {
        Ok(value)
    }
}

fn switch(text: &str) -> Result<bool, String> {
    bool::from_str(text).map_err(|_| format!("{text:?} is neither true nor false"))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let wrong = |example: &dyn fmt::Display| {
        format!("{text:?} is not an address and port such as {example}")
    };
    let text_or_local = text
        .strip_prefix("localhost:")
        .map(|port| format!("127.0.0.1:{port}"));
    let address: SocketAddr = text_or_local
        .as_deref()
        .unwrap_or(text)
        .parse()
        .map_err(|_| wrong(&"127.0.0.1:19092 or [::1]:19092"))?;
    if address.port() == 0 {
        Err(format!(
            "{text:?} has port 0: clients need to know the port"
        ))
    } else {
        Ok(address)
    }
}

fn bootstrap_servers(text: &str) -> Result<String, String> {
    let servers: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|server| !server.is_empty())
        .collect();
    if servers.is_empty() {
        return Err("it is empty".to_owned());
    }
    for server in &servers {
        if server.contains("://") {
            return Err(format!("{server:?} must be HOST:PORT, without a scheme"));
        }
        let (host, port) = server
            .rsplit_once(':')
            .ok_or_else(|| format!("{server:?} has no port: write HOST:PORT"))?;
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(format!("{server:?} has no valid port: write HOST:PORT"));
        }
        host_name(host.trim_start_matches('[').trim_end_matches(']'))?;
    }
    Ok(servers.join(","))
}

/// A host name or an IP address, without a port.
fn host_name(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.parse::<std::net::IpAddr>().is_ok()
        || (!text.is_empty() && text.len() <= 253 && text.chars().all(legal))
    {
        return Ok(text.to_owned());
    }
    match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && !host.contains(':') => {
            Err(format!("{text:?} must be a host without a port"))
        }
        _ => Err(format!("{text:?} is not a host name")),
    }
}

/// By the store's own rules.
fn archive_url(text: &str) -> Result<String, String> {
    everlog_store::check_url(text).map_err(|err| err.to_string())?;
    Ok(text.to_owned())
}

fn endpoint_url(text: &str) -> Result<String, String> {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest) if rest.contains('@') => Err("credentials do not belong in the URL".to_owned()),
        Some(rest) if !rest.is_empty() => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err(format!(
            "{text:?} is not a URL such as http://127.0.0.1:9000"
        )),
    }
}

/// `group.id` and `group.instance.id`: Kafka's rule for the latter, which does the former no harm.
fn member_name(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty()
        || text.len() > 249
        || text == "."
        || text == ".."
        || !text.chars().all(legal)
    {
        return Err(format!(
            "{text:?} is not allowed: 1 to 249 characters of A-Z a-z 0-9 . _ -, and neither . nor .."
        ));
    }
    Ok(text.to_owned())
}

/// A word without a level is a target to tracing, so that a slip in a level would silence everything: it has to be written with one.
fn log_filter(text: &str) -> Result<String, String> {
    let has_level = |part: &str| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    // Fields of spans have equals signs of their own.
    let mut parts = text
        .split(',')
        .map(str::trim)
        .filter(|_| !text.contains('['));
    if let Some(part) = parts.find(|part| !part.is_empty() && !has_level(part)) {
        return Err(format!(
            "{text:?} is not a filter: {part:?} has no level; write one of off, error, warn, info, debug and trace, or TARGET=LEVEL, such as \
             info,everlog_proxy=debug"
        ));
    }
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(err) => Err(format!(
            "{text:?} is not a filter such as info,everlog_proxy=debug: {err}"
        )),
    }
}

/// Each by itself once they are refused together, so that all of the mistakes are told.
fn topics(texts: &[String]) -> Result<TopicSelection, Vec<String>> {
    TopicSelection::parse(texts).map_err(|err| {
        let alone = |text| TopicSelection::parse(std::slice::from_ref(text)).err();
        let each: Vec<String> = texts
            .iter()
            .filter_map(alone)
            .map(|err| err.to_string())
            .collect();
        if each.is_empty() {
            vec![err.to_string()]
        } else {
            each
        }
    })
}

fn node_ports(texts: &[String]) -> Result<BTreeMap<i32, u16>, Vec<String>> {
    let (mut ports, mut problems) = (BTreeMap::new(), Vec::new());
    for pair in texts
        .iter()
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
    {
        let Some((id, port)) = node_port(pair) else {
            problems.push(format!("{pair:?} is not ID=PORT"));
            continue;
        };
        if ports.values().any(|other| *other == port) {
            problems.push(format!("port {port} is given to two nodes"));
        }
        if ports.insert(id, port).is_some() {
            problems.push(format!("node {id} has two ports"));
        }
    }
    if problems.is_empty() {
        Ok(ports)
    } else {
        Err(problems)
    }
}

fn node_port(pair: &str) -> Option<(i32, u16)> {
    let (id, port) = pair.split_once('=')?;
    let id: i32 = id.trim().parse().ok()?;
    let port: u16 = port.trim().parse().ok()?;
    (id >= 0 && port > 0).then_some((id, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::setting::SETTINGS;

    #[test]
    fn every_default_parses() {
        let raw = |text: &str| Raw {
            texts: vec![text.to_owned()],
            origin: Origin::Default,
            in_file: false,
        };
        let values = SETTINGS
            .iter()
            .filter_map(|s| Some((s.key, raw(s.default?))))
            .collect();
        let mut problems = Vec::new();
        let values = Values::parse(
            &Layer {
                values,
                ..Layer::default()
            },
            &mut problems,
        );
        assert_eq!(problems, []);
        assert_eq!(values.memory_bytes, 512 << 20);
        assert_eq!(values.segment_max_age, Duration::from_secs(600));
    }

    #[track_caller]
    fn refused<T: fmt::Debug>(result: Result<T, String>, part: &str) {
        let message = result.expect_err("refused");
        assert!(message.contains(part), "{message}");
    }

    #[test]
    fn addresses_and_urls_are_checked_with_a_word_on_what_to_write() {
        assert_eq!(
            bootstrap_servers("a:9092, b.c:9093").as_deref(),
            Ok("a:9092,b.c:9093")
        );
        assert!(bootstrap_servers("[::1]:9092").is_ok());
        refused(bootstrap_servers("kafka"), "no port");
        refused(
            bootstrap_servers("PLAINTEXT://kafka:9092"),
            "without a scheme",
        );
        refused(bootstrap_servers(" , "), "empty");
        assert_eq!(
            address("localhost:9644"),
            Ok(SocketAddr::from(([127, 0, 0, 1], 9644)))
        );
        refused(address("9644"), "not an address");
        refused(address("127.0.0.1:0"), "port 0");
        refused(host_name("proxy:9092"), "without a port");
        assert!(archive_url("s3://bucket/prefix/").is_ok());
        refused(archive_url("s3://key:secret@bucket/x"), "credentials");
        refused(archive_url("/var/archive"), "file:///");
        refused(archive_url("s4://bucket"), "schemes are s3");
        refused(archive_url("file://x"), "three slashes");
        refused(archive_url("gs:///x"), "bucket");
        refused(endpoint_url("127.0.0.1:9000"), "http://");
        refused(log_filter("everlog=loud"), "filter");
        // Each of them used to silence all.
        for slip in ["inof", "infoo=,x", "info,everlog_proxy", "info=everlog"] {
            refused(log_filter(slip), "has no level");
        }
        for sound in [
            "info",
            "WARN,everlog_proxy=debug",
            "off",
            "info,a[b{c=d}]=trace",
        ] {
            assert_eq!(log_filter(sound).as_deref(), Ok(sound));
        }
    }

    #[test]
    fn node_ports_are_pairs_without_doubles() {
        let texts = |text: &str| vec![text.to_owned()];
        assert_eq!(
            node_ports(&texts("1=9001, 2=9002")),
            Ok(BTreeMap::from([(1, 9001), (2, 9002)]))
        );
        let told = |text| node_ports(&texts(text)).map_err(|told| told.join("; "));
        refused(told("1:9001"), "ID=PORT");
        refused(told("-1=9001"), "ID=PORT");
        refused(told("1=9001,1=9002"), "two ports");
        refused(told("1=9001,2=9001"), "two nodes");
    }

    #[test]
    fn every_mistake_of_a_list_is_told() {
        let texts: Vec<String> = ["orders", "pay(", "", "x["].map(str::to_owned).into();
        assert_eq!(topics(&texts).err().map(|told| told.len()), Some(3));
        let pairs = ["1:9".to_owned(), "2=9,3=9,x".to_owned()];
        assert_eq!(node_ports(&pairs).map_err(|told| told.len()), Err(3));
    }
}
