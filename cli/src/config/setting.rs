//! Every key of the configuration, once: flag, variable, line in the file, default and manual come from this table.
//!
//! The names follow one rule, so that who knows one knows all: key `s3.path_style`, flag `--s3-path-style`, variable
//! `EVERLOG_S3_PATH_STYLE`. `kafka.properties` is the one free-form table and no row here.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The subcommands, as far as the configuration tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandName {
    Run,
    Archive,
    Proxy,
    Inspect,
    Verify,
    Config,
}

impl CommandName {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            CommandName::Run => "run",
            CommandName::Archive => "archive",
            CommandName::Proxy => "proxy",
            CommandName::Inspect => "inspect",
            CommandName::Verify => "verify",
            CommandName::Config => "config",
        }
    }
}

/// How a value is written in the file and on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One string; in the file also a bare number.
    One,
    /// A string or an array of strings; the flag may be repeated.
    List,
    /// `ID=PORT` pairs: a string, an array of strings or a table.
    Pairs,
    /// `true` or `false`; the flag alone means `true`.
    Switch,
    /// One string that is never printed: no flag, since command lines are public, and a twin `<key>_file`.
    Secret,
}

/// One key.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its name in the file.
    pub(crate) key: &'static str,
    pub(crate) shape: Shape,
    /// What stands for the value in `--help`.
    pub(crate) value_name: &'static str,
    /// What is used if nobody says otherwise, as one would write it.
    pub(crate) default: Option<&'static str>,
    /// What the absence of a value means, where there is no default to print.
    pub(crate) absent: &'static str,
    /// A value for the example file, as TOML.
    pub(crate) example: &'static str,
    /// Effect and unit. The first sentence is the short help.
    pub(crate) manual: &'static str,
    /// The subcommands with this flag (`config` has all of them).
    used_by: &'static [CommandName],
}

impl Setting {
    pub(crate) fn flag(&self) -> &'static str {
        // clap wants names that live as long as the process.
        static FLAGS: LazyLock<BTreeMap<&'static str, String>> = LazyLock::new(|| {
            SETTINGS
                .iter()
                .map(|s| (s.key, s.key.replace(['.', '_'], "-")))
                .collect()
        });
        FLAGS.get(self.key).map_or(self.key, String::as_str)
    }

    pub(crate) fn env(&self) -> String {
        env_name(self.key)
    }

    pub(crate) fn is_used_by(&self, command: CommandName) -> bool {
        command == CommandName::Config || self.used_by.contains(&command)
    }

    pub(crate) fn used_by(&self) -> &'static [CommandName] {
        self.used_by
    }

    pub(crate) fn has_flag(&self) -> bool {
        self.shape != Shape::Secret
    }

    /// What the setting means to `command`. [`Setting::manual`] and [`Setting::absent`] speak of all commands together,
    /// for the file, which serves all of them.
    pub(crate) fn meaning(&self, command: CommandName) -> Meaning {
        let (manual, absent) = match (self.key, command) {
            ("topics", Archive) => (TOPICS_TO_ARCHIVE, "must be given"),
            ("topics", Proxy) => (TOPICS_TO_SERVE, "every archived topic"),
            ("topics", Run) => (self.manual, "must be given"),
            ("topics", Inspect) => (TOPICS_TO_SHOW, "every topic of the archive"),
            ("topics", Verify) => (TOPICS_TO_CHECK, "every topic of the archive"),
            ("bootstrap_servers", Run | Archive | Proxy) => (CLUSTER_TO_SERVE, self.absent),
            ("bootstrap_servers", Inspect) => (CLUSTER_TO_COMPARE, "the cluster is not asked"),
            ("archive", Inspect | Verify) => (ARCHIVE_TO_READ, self.absent),
            ("memory", Archive | Proxy) => (MEMORY_OF_ONE, self.absent),
            ("data_dir", Archive) => (DATA_DIR_OF_ARCHIVER, self.absent),
            ("data_dir", Proxy) => (DATA_DIR_OF_PROXY, self.absent),
            ("log", Inspect | Verify) => (self.manual, "RUST_LOG, else warn"),
            ("log", Run | Archive | Proxy) => (self.manual, "RUST_LOG, else info"),
            _ => (self.manual, self.absent),
        };
        Meaning { manual, absent }
    }
}

/// What a setting means to one command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meaning {
    /// As [`Setting::manual`].
    pub(crate) manual: &'static str,
    /// As [`Setting::absent`].
    pub(crate) absent: &'static str,
}

const TOPICS_TO_ARCHIVE: &str = "Which topics to archive. May be repeated; commas part plain names. Only A-Z a-z 0-9 . _ - make \
     a plain name: anything else is a regex on the whole name. Compacted, internal and Kafka Streams topics need their plain \
     name.";
const TOPICS_TO_SERVE: &str = "Which topics to serve from the archive; of all others clients get what the cluster has. May be \
     repeated; commas part plain names. Only A-Z a-z 0-9 . _ - make a plain name: anything else is a regex on the whole name. \
     Compacted, internal and Kafka Streams topics need their plain name.";
const TOPICS_TO_SHOW: &str = "Which topics of the archive to show. May be repeated; commas part plain names. Only A-Z a-z 0-9 . _ - \
     make a plain name: anything else is a regex on the whole name. One that finds nothing is told, and the exit status is 1. \
     Internal and Kafka Streams topics need their plain name.";
const TOPICS_TO_CHECK: &str = "Which topics of the archive to check. May be repeated; commas part plain names. Only A-Z a-z 0-9 . _ \
     - make a plain name: anything else is a regex on the whole name. One that finds nothing could not be checked, which is exit \
     status 2. Internal and Kafka Streams topics need their plain name.";
const CLUSTER_TO_SERVE: &str =
    "Where the Kafka cluster is reached. Several brokers are parted by commas.";
const CLUSTER_TO_COMPARE: &str = "The Kafka cluster that the archive is held against: how far the archive is behind it, which \
     topics it no longer has, and what it has let go of. Several brokers are parted by commas.";
const ARCHIVE_TO_READ: &str = "Where the archive lies: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or \
     file:///DIRECTORY. It is only read. Credentials come from the provider's usual chain (profiles, SSO, IRSA, instance roles, \
     environment), never from the URL.";
const MEMORY_OF_ONE: &str =
    "What the process may use, in a unit such as MiB. `everlog config` prints how it is used.";
const DATA_DIR_OF_ARCHIVER: &str = "Local disk for the spool and the cache of index nodes. Nothing in it is needed: it can be lost \
     at any time.";
const DATA_DIR_OF_PROXY: &str = "Local disk for the cache of index nodes and the known brokers. Nothing in it is needed: it can be \
     lost at any time.";

/// The variable of a key.
pub(crate) fn env_name(key: &str) -> String {
    format!("EVERLOG_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// The row of `key`.
pub(crate) fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

use CommandName::{Archive, Inspect, Proxy, Run, Verify};

const SERVICES: &[CommandName] = &[Run, Archive, Proxy];
const CLUSTER: &[CommandName] = &[Run, Archive, Proxy, Inspect];
const ARCHIVERS: &[CommandName] = &[Run, Archive];
const PROXIES: &[CommandName] = &[Run, Proxy];
const ALL: &[CommandName] = &[Run, Archive, Proxy, Inspect, Verify];

/// All keys, in the order of the example file.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        key: "bootstrap_servers",
        shape: Shape::One,
        value_name: "HOST:PORT",
        default: None,
        absent: "must be given",
        example: "\"localhost:9092\"",
        manual: "Where the Kafka cluster is reached. Several brokers are parted by commas. `inspect` holds the archive against \
                 it, and does without if it is not given.",
        used_by: CLUSTER,
    },
    Setting {
        key: "archive",
        shape: Shape::One,
        value_name: "URL",
        default: None,
        absent: "must be given",
        example: "\"s3://my-bucket/kafka\"",
        manual: "Where the archive lies: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY. \
                 Credentials come from the provider's usual chain (profiles, SSO, IRSA, instance roles, environment), \
                 never from the URL.",
        used_by: ALL,
    },
    Setting {
        key: "topics",
        shape: Shape::List,
        value_name: "NAMES|REGEX",
        default: None,
        absent: "must be given to archive; a proxy then serves every archived topic, and tools look at every one",
        example: "[\"orders\", \"pay.*\"]",
        manual: "Which topics to archive, and to serve from the archive; to tools: which to look at. May be repeated; commas part plain names. Only A-Z a-z \
                 0-9 . _ - make a plain name: anything else is a regex on the whole name. Compacted, internal and \
                 Kafka Streams topics need their plain name.",
        used_by: ALL,
    },
    Setting {
        key: "listen",
        shape: Shape::One,
        value_name: "ADDRESS:PORT",
        default: Some("127.0.0.1:19092"),
        absent: "",
        example: "\"127.0.0.1:19092\"",
        manual: "Where clients reach the proxy. The broker with node id N is reached at this port + 1 + N.",
        used_by: PROXIES,
    },
    Setting {
        key: "advertise",
        shape: Shape::One,
        value_name: "HOST",
        default: None,
        absent: "the address of `listen`",
        example: "\"kafka-archive.internal\"",
        manual: "The host name that clients are told to connect to. Needed when `listen` names all addresses (0.0.0.0 or ::), \
                 since nobody can connect to those.",
        used_by: PROXIES,
    },
    Setting {
        key: "node_ports",
        shape: Shape::Pairs,
        value_name: "ID=PORT,…",
        default: None,
        absent: "`listen` port + 1 + node id",
        example: "{ 1 = 19101, 2 = 19102 }",
        manual: "Ports for single brokers, by node id, where the rule of `listen` does not suit.",
        used_by: PROXIES,
    },
    Setting {
        key: "on_hole",
        shape: Shape::One,
        value_name: "fail|skip",
        default: Some("fail"),
        absent: "",
        example: "\"fail\"",
        manual: "What a reader gets who comes to a hole, a range that was lost before it could be archived. `fail` gives an \
                 error; `skip` goes on behind it, with an alarm. Nothing is ever skipped without it.",
        used_by: PROXIES,
    },
    Setting {
        key: "data_dir",
        shape: Shape::One,
        value_name: "DIR",
        default: None,
        absent: "a temporary directory, removed at the end",
        example: "\"/var/lib/everlog\"",
        manual: "Local disk for the archiver's spool, the cache of index nodes and the known brokers. Nothing in it is needed: \
                 it can be lost at any time.",
        used_by: SERVICES,
    },
    Setting {
        key: "memory",
        shape: Shape::One,
        value_name: "SIZE",
        default: Some("512MiB"),
        absent: "",
        example: "\"512MiB\"",
        manual: "What the process may use, in a unit such as MiB. It is split by a rule between archiver and proxy; `everlog config` \
                 prints the split.",
        used_by: SERVICES,
    },
    Setting {
        key: "segment_max_bytes",
        shape: Shape::One,
        value_name: "SIZE",
        default: Some("256MiB"),
        absent: "",
        example: "\"256MiB\"",
        manual: "A segment is cut when its Parquet file has this size.",
        used_by: ARCHIVERS,
    },
    Setting {
        key: "segment_max_age",
        shape: Shape::One,
        value_name: "DURATION",
        default: Some("10m"),
        absent: "",
        example: "\"10m\"",
        manual: "A segment is cut at this age, however small: so long a record is in the cluster alone.",
        used_by: ARCHIVERS,
    },
    Setting {
        key: "instance_id",
        shape: Shape::One,
        value_name: "NAME",
        default: None,
        absent: "the host name",
        example: "\"archiver-1\"",
        manual: "The archiver's stable name in its consumer group (group.instance.id), so that a restart moves no partition. No \
                 two archivers may share one.",
        used_by: ARCHIVERS,
    },
    Setting {
        key: "group_id",
        shape: Shape::One,
        value_name: "NAME",
        default: None,
        absent: "everlog-archiver- and a hash of `archive`",
        example: "\"everlog-archiver-orders\"",
        manual: "The consumer group over which the archivers of one archive share partitions. Archivers of different archives must not \
                 share one: each would get a part of the partitions. Its committed offsets are for lag tools only.",
        used_by: ARCHIVERS,
    },
    Setting {
        key: "metrics",
        shape: Shape::One,
        value_name: "ADDRESS:PORT",
        default: None,
        absent: "not served",
        example: "\"127.0.0.1:9644\"",
        manual: "Where /metrics (Prometheus) and /healthz are served.",
        used_by: SERVICES,
    },
    Setting {
        key: "log",
        shape: Shape::One,
        value_name: "FILTER",
        default: None,
        absent: "RUST_LOG, else info for services and warn for tools",
        example: "\"info,everlog_proxy=debug\"",
        manual: "Which log lines are written, as a tracing filter.",
        used_by: ALL,
    },
    Setting {
        key: "log_format",
        shape: Shape::One,
        value_name: "auto|text|json",
        default: Some("auto"),
        absent: "",
        example: "\"auto\"",
        manual: "How log lines are written. `auto` is text on a terminal, else one JSON object a line.",
        used_by: ALL,
    },
    Setting {
        key: "s3.endpoint",
        shape: Shape::One,
        value_name: "URL",
        default: None,
        absent: "Amazon's, or AWS_ENDPOINT_URL",
        example: "\"http://127.0.0.1:9000\"",
        manual: "The address of an S3-compatible store. It has to obey conditional puts.",
        used_by: ALL,
    },
    Setting {
        key: "s3.region",
        shape: Shape::One,
        value_name: "NAME",
        default: None,
        absent: "from the AWS chain",
        example: "\"eu-central-1\"",
        manual: "The bucket's region.",
        used_by: ALL,
    },
    Setting {
        key: "s3.path_style",
        shape: Shape::Switch,
        value_name: "true|false",
        default: None,
        absent: "true with an endpoint of your own, else false",
        example: "true",
        manual: "Whether the bucket's name goes into the path instead of the host name.",
        used_by: ALL,
    },
    Setting {
        key: "s3.lists_in_key_order",
        shape: Shape::Switch,
        value_name: "true|false",
        default: None,
        absent: "true for Amazon's general purpose buckets, else false",
        example: "true",
        manual: "Whether the store lists objects in the order of their keys. `false` is always right and costs more list \
                 requests at a cold start.",
        used_by: ALL,
    },
    Setting {
        key: "s3.access_key_id",
        shape: Shape::Secret,
        value_name: "ID",
        default: None,
        absent: "from the AWS chain",
        example: "\"/run/secrets/s3-access-key-id\"",
        manual: "Fixed credentials, where the AWS chain is not wanted.",
        used_by: ALL,
    },
    Setting {
        key: "s3.secret_access_key",
        shape: Shape::Secret,
        value_name: "KEY",
        default: None,
        absent: "from the AWS chain",
        example: "\"/run/secrets/s3-secret-access-key\"",
        manual: "The other half of `s3.access_key_id`.",
        used_by: ALL,
    },
    Setting {
        key: "s3.session_token",
        shape: Shape::Secret,
        value_name: "TOKEN",
        default: None,
        absent: "none",
        example: "\"/run/secrets/s3-session-token\"",
        manual: "The token of temporary credentials.",
        used_by: ALL,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_one_rule_and_are_unique() {
        let path_style = setting("s3.path_style").expect("a key");
        assert_eq!(path_style.flag(), "s3-path-style");
        assert_eq!(path_style.env(), "EVERLOG_S3_PATH_STYLE");
        let mut flags: Vec<&str> = SETTINGS.iter().map(Setting::flag).collect();
        flags.sort();
        flags.dedup();
        assert_eq!(flags.len(), SETTINGS.len());
    }

    #[test]
    fn every_key_says_what_its_absence_means() {
        for setting in SETTINGS {
            assert!(
                setting.default.is_some() == setting.absent.is_empty(),
                "{}",
                setting.key
            );
            assert!(setting.manual.ends_with('.'), "{}", setting.key);
            for command in [Run, Archive, Proxy, Inspect, Verify, CommandName::Config] {
                let meaning = setting.meaning(command);
                assert!(meaning.manual.ends_with('.'), "{}", setting.key);
                assert_eq!(setting.absent.is_empty(), meaning.absent.is_empty());
            }
        }
    }
}
