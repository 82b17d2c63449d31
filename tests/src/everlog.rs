//! The product under test, run as its users run it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::tail;
use crate::{Case, Process, S3, free_ports, wait_until};

const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(60);
/// More than the largest node id in use.
const NODE_PORTS: u16 = 5;

/// Where an archive lies, and what a program needs in its environment to reach it.
#[derive(Clone, Debug)]
pub struct Archive {
    /// `--archive`.
    pub url: String,
    /// Credentials and endpoint.
    pub environment: Vec<(String, String)>,
}

impl Archive {
    /// On the S3 server.
    pub fn on(s3: &S3, prefix: &str) -> Archive {
        Archive {
            url: s3.url(prefix),
            environment: S3::environment(s3.port()),
        }
    }

    /// On the S3 server, reached through another port.
    pub fn through(s3: &S3, port: u16, prefix: &str) -> Archive {
        Archive {
            url: s3.url(prefix),
            environment: S3::environment(port),
        }
    }

    /// In a local folder.
    pub fn folder(path: &Path) -> Archive {
        Archive {
            url: format!("file://{}", path.display()),
            environment: Vec::new(),
        }
    }
}

/// How to run it.
#[derive(Clone, Debug)]
pub struct EverlogOptions {
    /// `run`, `archive` or `proxy`.
    pub command: &'static str,
    /// `--topics`, each.
    pub topics: Vec<String>,
    /// `--segment-max-bytes`.
    pub segment_max_bytes: String,
    /// `--segment-max-age`.
    pub segment_max_age: String,
    /// Further words.
    pub extra: Vec<String>,
    /// `--instance-id`; a fresh one if absent.
    pub instance_id: Option<String>,
    /// `--data-dir`; a fresh one if absent.
    pub data_dir: Option<PathBuf>,
    /// More variables, such as `EVERLOG_GROUP_ID`.
    pub environment: Vec<(String, String)>,
}

impl Default for EverlogOptions {
    fn default() -> EverlogOptions {
        EverlogOptions {
            command: "run",
            topics: vec![".*".to_owned()],
            segment_max_bytes: "4MiB".to_owned(),
            segment_max_age: "2s".to_owned(),
            extra: Vec::new(),
            instance_id: None,
            data_dir: None,
            environment: Vec::new(),
        }
    }
}

/// What `inspect --json` says of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Name.
    pub topic: String,
    /// Incarnation.
    pub topic_id: String,
    /// Number.
    pub partition: i32,
    /// First covered offset.
    pub start: i64,
    /// Archived end.
    pub end: i64,
    /// Records.
    pub records: u64,
    /// Segments.
    pub segments: u64,
    /// Stored bytes.
    pub bytes: u64,
    /// Bytes of keys, values and headers.
    pub raw_bytes: u64,
    /// How many holes (a number, or the length of a list of them).
    pub holes: u64,
}

/// A running `everlog`.
#[derive(Debug)]
pub struct Everlog {
    /// The process, for signals.
    pub process: Process,
    port: u16,
    metrics_port: u16,
}

/// The binary: `EVERLOG_BIN`, or the one beside the test's own.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EVERLOG_BIN") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe()?;
    let found = own
        .ancestors()
        .skip(1)
        .take(3)
        .map(|folder| folder.join("everlog"))
        .find(|path| path.is_file());
    found.context(
        "no everlog binary beside the tests: run `cargo build --release`, or set EVERLOG_BIN",
    )
}

/// The binary with an environment in which none of our own variables is left: it refuses those that it does not know.
fn command() -> Result<Command> {
    let mut command = Command::new(binary()?);
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("EVERLOG_") {
            command.env_remove(key);
        }
    }
    Ok(command)
}

impl Everlog {
    /// Starts it and waits until it says that it is well.
    pub fn start(
        case: &Case,
        bootstrap: &str,
        archive: &Archive,
        options: &EverlogOptions,
    ) -> Result<Everlog> {
        let mut everlog = Everlog::launch(case, bootstrap, archive, options)?;
        everlog.wait_ready()?;
        Ok(everlog)
    }

    /// Starts it without waiting.
    pub fn launch(
        case: &Case,
        bootstrap: &str,
        archive: &Archive,
        options: &EverlogOptions,
    ) -> Result<Everlog> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let port = free_ports(2 + NODE_PORTS)?;
        let metrics_port = port + 1 + NODE_PORTS;
        let mut command = command()?;
        command.arg(options.command);
        command.args(["--bootstrap-servers", bootstrap, "--archive", &archive.url]);
        for topic in &options.topics {
            command.args(["--topics", topic]);
        }
        command.args(["--metrics", &format!("127.0.0.1:{metrics_port}")]);
        let data_dir = options
            .data_dir
            .clone()
            .unwrap_or_else(|| case.path(&format!("everlog-{number}-data")));
        command.arg("--data-dir").arg(data_dir);
        if options.command != "archive" {
            command.args(["--listen", &format!("127.0.0.1:{port}")]);
        }
        if options.command != "proxy" {
            command.args(["--segment-max-bytes", &options.segment_max_bytes]);
            command.args(["--segment-max-age", &options.segment_max_age]);
            let instance = options
                .instance_id
                .clone()
                .unwrap_or_else(|| format!("{}-{number}", case.name()));
            command.args(["--instance-id", &instance]);
        }
        command.args(&options.extra);
        command.envs(
            archive
                .environment
                .iter()
                .chain(&options.environment)
                .cloned(),
        );
        if std::env::var_os("RUST_BACKTRACE").is_none() {
            command.env("RUST_BACKTRACE", "1");
        }
        let log = case.path(&format!("everlog-{number}-{}.log", options.command));
        let process = Process::start("everlog", &command, &log)?;
        Ok(Everlog {
            process,
            port,
            metrics_port,
        })
    }

    /// Waits until `/healthz` answers 200.
    pub fn wait_ready(&mut self) -> Result<()> {
        let port = self.metrics_port;
        let process = &mut self.process;
        wait_until("everlog to be ready", START_MAX, || {
            process.check_alive()?;
            Ok(http_get(port, "/healthz").is_ok_and(|(status, _)| status == 200))
        })
        .with_context(|| tail(&self.process.log_text(), 20))
    }

    /// Where clients connect.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The proxy's first port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `/healthz`: status and body.
    pub fn health(&self) -> Result<(u16, String)> {
        http_get(self.metrics_port, "/healthz")
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        Ok(http_get(self.metrics_port, "/metrics")?.1)
    }

    /// The sum over all series of a metric; 0 if there is none.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.metrics()?;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            (rest.starts_with(' ') || rest.starts_with('{'))
                .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        Ok(values.sum())
    }

    /// SIGTERM; it has to end by itself, with success, in bounded time.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(STOP_MAX)?;
        if !status.success() {
            bail!(
                "everlog ended with {status} after SIGTERM:\n{}",
                tail(&self.process.log_text(), 20)
            );
        }
        Ok(())
    }
}

/// A plain GET. Gives the status and the body.
fn http_get(port: u16, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

fn number(object: &Value, name: &str) -> Result<i64> {
    let value = object
        .get(name)
        .with_context(|| format!("inspect has no {name}: {object}"))?;
    if let Some(list) = value.as_array() {
        return Ok(i64::try_from(list.len())?);
    }
    let parsed = value
        .as_i64()
        .or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    parsed.with_context(|| format!("{name} is no number: {value}"))
}

fn text(object: &Value, name: &str) -> Result<String> {
    let value = object.get(name).and_then(Value::as_str);
    Ok(value
        .with_context(|| format!("inspect has no {name}: {object}"))?
        .to_owned())
}

impl Archive {
    /// A tool of the binary on this archive: `inspect`, `verify`. Gives success, standard output, standard error.
    pub fn tool(&self, words: &[&str]) -> Result<(bool, String, String)> {
        let mut command = command()?;
        command
            .args(words)
            .args(["--archive", &self.url])
            .envs(self.environment.iter().cloned());
        let output = command.output().context("running everlog")?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((
            output.status.success(),
            text(output.stdout),
            text(output.stderr),
        ))
    }

    /// What it holds, by `inspect --json`.
    pub fn held(&self) -> Result<Vec<Held>> {
        let (success, out, err) = self.tool(&["inspect", "--json"])?;
        if !success {
            bail!("inspect failed:\n{}", tail(&err, 20));
        }
        let parsed: Value =
            serde_json::from_str(&out).with_context(|| format!("inspect printed {out}"))?;
        let mut held = Vec::new();
        for object in parsed.as_array().context("inspect prints one array")? {
            // A partition that waits for its first commit holds nothing.
            if object.get("commit").is_some_and(Value::is_null) {
                continue;
            }
            held.push(Held {
                topic: text(object, "topic")?,
                topic_id: text(object, "topic_id")?,
                partition: i32::try_from(number(object, "partition")?)?,
                start: number(object, "start")?,
                end: number(object, "end")?,
                records: u64::try_from(number(object, "records")?)?,
                segments: u64::try_from(number(object, "segments")?)?,
                bytes: u64::try_from(number(object, "bytes")?)?,
                raw_bytes: u64::try_from(number(object, "raw_bytes")?)?,
                holes: u64::try_from(number(object, "holes")?)?,
            });
        }
        Ok(held)
    }

    /// What it holds of one topic. Fails where there are several incarnations of it.
    pub fn held_of(&self, topic: &str) -> Result<BTreeMap<i32, Held>> {
        let mut found = BTreeMap::new();
        for held in self.held()?.into_iter().filter(|held| held.topic == topic) {
            if let Some(other) = found.insert(held.partition, held) {
                bail!("two incarnations of {topic}: {other:?}");
            }
        }
        Ok(found)
    }

    /// Waits until the archived end of each partition has reached `ends`. Trouble with the tool is waited out too: the
    /// store may be under faults.
    pub fn wait_archived(
        &self,
        topic: &str,
        ends: &BTreeMap<i32, i64>,
        patience: Duration,
    ) -> Result<()> {
        let mut last = String::from("nothing was asked");
        let mut pause = 0_u32;
        wait_until(&format!("the archive to hold {topic}"), patience, || {
            // Each look is a process: once a second is often enough.
            pause += 1;
            if pause % 8 != 1 {
                return Ok(false);
            }
            match self.held_of(topic) {
                Ok(held) => {
                    last = format!("held {held:?}, wanted {ends:?}");
                    Ok(ends.iter().all(|(partition, end)| {
                        *end == 0 || held.get(partition).is_some_and(|held| held.end >= *end)
                    }))
                }
                Err(error) => {
                    last = format!("{error:#}");
                    Ok(false)
                }
            }
        })
        .with_context(|| last.clone())
    }

    /// Re-reads and re-hashes everything, with the tool.
    pub fn verify(&self) -> Result<()> {
        let (success, out, err) = self.tool(&["verify"])?;
        if !success {
            bail!("verify failed:\n{}\n{}", tail(&out, 20), tail(&err, 20));
        }
        Ok(())
    }
}
