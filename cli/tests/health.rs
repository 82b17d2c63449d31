//! The built binary beside a cluster or an archive that is not there: what `/healthz`, the metrics and the log say.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(100);

/// A running `everlog`, and its log. Ends with the test.
struct Everlog {
    child: Child,
    metrics: u16,
    log: PathBuf,
}

impl Drop for Everlog {
    fn drop(&mut self) {
        let _ended_by_itself = self.child.kill();
        let _status = self.child.wait();
    }
}

/// As many neighbouring ports as a proxy and its nodes need; gives the first. Below those that Linux draws for outgoing connections, or
/// a client's might take one in between, and beside those of other tests.
fn free_ports() -> u16 {
    const COUNT: u16 = 4;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = u16::try_from(std::process::id() % 1_000).unwrap() * COUNT;
    loop {
        let first = 20_000 + (begin + NEXT.fetch_add(COUNT, Ordering::Relaxed)) % 6_000;
        let are_free =
            (first..first + COUNT).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
        if are_free {
            return first;
        }
    }
}

impl Everlog {
    /// `role` with its archive in `dir`, for the topic `orders`.
    fn start(dir: &Path, role: &str, bootstrap: &str) -> Everlog {
        let (metrics, log) = (free_ports(), dir.join(format!("{role}.log")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_everlog"));
        command.current_dir(dir).env_clear().arg(role);
        command.args(["--bootstrap-servers", bootstrap, "--topics", "orders"]);
        command.args(["--archive", &format!("file://{}/archive", dir.display())]);
        command.args(["--data-dir", &format!("local-{role}")]);
        command.args(["--metrics", &format!("127.0.0.1:{metrics}")]);
        if role != "archive" {
            command.args(["--listen", &format!("127.0.0.1:{}", free_ports())]);
        }
        if role != "proxy" {
            command.args(["--segment-max-age", "1s"]);
        }
        command.stderr(std::fs::File::create(&log).unwrap());
        Everlog {
            child: command.spawn().unwrap(),
            metrics,
            log,
        }
    }

    /// Empty before it listens.
    fn get(&self, path: &str) -> String {
        let mut text = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.metrics)) {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let _cut_short = stream
                .write_all(request.as_bytes())
                .and_then(|()| stream.read_to_string(&mut text));
        }
        text
    }

    fn wait_for(&self, path: &str, what: &str, wanted: impl Fn(&str) -> bool) {
        let mut text = String::new();
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            text = self.get(path);
            if wanted(&text) {
                return;
            }
            pause();
        }
        panic!("not {what}:\n{text}\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing else goes on in these threads"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("orders", 1, 1).unwrap();
    cluster
}

fn produce(bootstrap: &str, count: usize) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .unwrap();
    for _ in 0..count {
        let record = BaseRecord::<(), str>::to("orders").payload("x");
        producer.send(record).map_err(|(err, _)| err).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// From now on `port` leads to `server`.
fn forward(port: u16, server: String) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&server) else {
                continue;
            };
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ] {
                std::thread::spawn(move || {
                    let _ended = std::io::copy(&mut from, &mut to);
                    let _ended = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
}

/// The value of a gauge without labels.
fn gauge(metrics: &str, name: &str) -> Option<f64> {
    let mut lines = metrics.lines();
    let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

/// `/healthz` said `starting`, and the metric stood at 0 or was missing, until the first answer.
#[test]
fn a_cluster_that_is_away_at_the_start_is_told_with_its_reason_until_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let (port, cluster) = (free_ports(), cluster());
    let bootstrap = format!("127.0.0.1:{port}");
    let why = format!("no bootstrap server answers: {bootstrap}: Connection refused");
    let roles = [
        ("archive", "archiver", None),
        ("proxy", "proxy", None),
        (
            "run",
            "proxy",
            Some("archiver: starts once the proxy has found the cluster\n"),
        ),
    ];
    // All at once: each has a minute's patience. The archiver makes the archive, the others wait for it.
    let roles = roles.map(|(role, part, beside)| {
        let everlog = Everlog::start(dir.path(), role, &bootstrap);
        (everlog, part, beside)
    });
    for (everlog, part, beside) in &roles {
        let line = format!("\n{part}: {why}");
        everlog.wait_for("/healthz", "told why", |text| {
            text.starts_with("HTTP/1.1 503")
                && text.contains(&line)
                && text.contains("trouble: the cluster has not answered for ")
                && beside.is_none_or(|beside| text.contains(beside))
        });
        let name = format!("everlog_{part}_cluster_silent_seconds");
        everlog.wait_for("/metrics", "counted", |text| {
            gauge(text, &name).is_some_and(|seconds| 1.5 < seconds)
        });
    }
    forward(port, cluster.bootstrap_servers());
    for (everlog, ..) in &roles {
        everlog.wait_for("/healthz", "ready", |text| {
            text.starts_with("HTTP/1.1 200") && !text.contains("trouble:")
        });
    }
}

/// For as long as it waited it only said that it was opening the archive.
#[test]
fn a_proxy_before_its_archive_says_what_it_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster();
    let bootstrap = cluster.bootstrap_servers();
    let proxy = Everlog::start(dir.path(), "proxy", &bootstrap);
    let url = format!("file://{}/archive", dir.path().display());
    let line = format!("\narchive: there is no archive at {url} yet");
    proxy.wait_for("/healthz", "told what for", |text| {
        text.starts_with("HTTP/1.1 503") && text.contains(&line)
    });
    let _archiver = Everlog::start(dir.path(), "archive", &bootstrap);
    proxy.wait_for("/healthz", "ready", |text| text.starts_with("HTTP/1.1 200"));
}

fn names(path: &Path) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(path).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

/// It went on committing into the empty directory of a file system that was not mounted any more, and said nothing.
#[test]
fn an_archive_whose_directory_goes_away_is_told_and_is_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster();
    let bootstrap = cluster.bootstrap_servers();
    produce(&bootstrap, 100);
    let everlog = Everlog::start(dir.path(), "archive", &bootstrap);
    let archived = |count: f64| {
        everlog.wait_for("/metrics", "archived", |text| {
            gauge(text, "everlog_archiver_records_total") == Some(count)
        });
    };
    archived(100.0);
    assert!(everlog.log().contains("a new one has been made"));

    let (root, away) = (dir.path().join("archive"), dir.path().join("away"));
    std::fs::rename(&root, &away).unwrap();
    std::fs::create_dir(&root).unwrap();
    produce(&bootstrap, 50);
    everlog.wait_for("/healthz", "in trouble", |text| {
        let line = text.lines().find(|line| line.contains("object store"));
        line.is_some_and(|line| {
            line.contains(root.to_str().unwrap()) && line.contains("no longer mounted")
        })
    });
    assert_eq!(names(&root), [""; 0]);

    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(&away, &root).unwrap();
    archived(150.0);
    everlog.wait_for("/healthz", "ready", |text| {
        text.starts_with("HTTP/1.1 200") && !text.contains("trouble:")
    });
}
