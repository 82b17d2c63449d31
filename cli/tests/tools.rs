//! The built binary at its first contact with an archive and a cluster: not there, not yet, not the right one.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use support::everlog;

#[test]
fn a_place_without_an_archive_is_told_and_stays_empty() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/none", dir.path().display());
    for command in ["inspect", "verify"] {
        // It used to be told like a directory that may not be read. Where there is a directory, it is told the same.
        for place in [&url, &format!("file://{}", dir.path().display())] {
            let ran = everlog(dir.path(), &[command, "--archive", place], &[]);
            // 1 would be something that was found.
            assert_eq!(ran.status, 2, "{}", ran.err);
            let told = format!("error: there is no archive at {place} yet");
            assert!(ran.err.starts_with(&told), "{}", ran.err);
        }
    }
    assert!(
        !dir.path().join("none").exists(),
        "a tool that reads creates nothing"
    );
}

/// Runs until its log has `text`; then it is ended.
fn runs_until(mut command: Command, text: &str) -> String {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = String::new();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    for line in lines {
        log.push_str(&line.unwrap());
        log.push('\n');
        if log.contains(text) {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    log
}

/// README: archiver and proxy may be started in any order. The proxy used to end at once where the directory was not there.
#[test]
fn a_proxy_waits_for_the_archive_that_an_archiver_makes() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/not/yet", dir.path().display());
    let service = |role: &str, topics: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_everlog"));
        command.current_dir(dir.path()).env_clear().arg(role);
        // Nobody listens on the port of `discard`.
        command.args(["--bootstrap-servers", "127.0.0.1:9", "--archive", &url]);
        command.args(topics);
        command
    };
    let log = runs_until(service("proxy", &[]), "there is no archive yet");
    assert!(log.contains("waiting for an archiver"), "{log}");
    assert!(!dir.path().join("not").exists(), "it never writes");
    let waiting = "no bootstrap server answers, the archiver goes on asking";
    let log = runs_until(service("archive", &["--topics", "orders"]), waiting);
    // It used to be told only that there was no answer.
    let reason = "127.0.0.1:9: Connection refused";
    assert!(log.contains(waiting) && log.contains(reason), "{log}");
    assert!(dir.path().join("not/yet/everlog.json").exists(), "{log}");
    let log = runs_until(service("proxy", &[]), "will ask again");
    assert!(
        log.contains(reason) && !log.contains("no archive yet"),
        "{log}"
    );
}

/// An archive without a topic, as an archiver's first second leaves it.
fn empty_archive(dir: &Path) -> String {
    let url = format!("file://{}", dir.display());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = everlog_store::open(&url, everlog_store::StoreOptions::default());
        let options = everlog_index::ArchiveOptions {
            node_cache_dir: None,
            create: true,
        };
        everlog_index::Archive::open(store.await.unwrap(), options)
            .await
            .unwrap();
    });
    url
}

/// It used to print nothing and to exit with 0.
#[test]
fn inspect_tells_of_a_topic_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let url = empty_archive(dir.path());
    let inspect = |more: &[&str]| {
        let words = [&["inspect", "--archive", &url], more].concat();
        everlog(dir.path(), &words, &[])
    };
    let ran = inspect(&[]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let ran = inspect(&["--json", "--topics", "oders", "--topics", "pay.*"]);
    assert_eq!((ran.status, ran.out.as_str()), (1, "[]\n"));
    assert_eq!(
        ran.err,
        "error: the archive has no topic oders\nerror: no topic of the archive matches pay.*\n"
    );
}

/// It used to take ten seconds, and to say that there was no id in time.
#[test]
fn inspect_says_why_the_cluster_could_not_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let url = empty_archive(dir.path());
    let words = [
        "inspect",
        "--archive",
        &url,
        "--bootstrap-servers",
        "127.0.0.1:9",
    ];
    let ran = everlog(dir.path(), &words, &[]);
    assert_eq!(ran.status, 1);
    assert_eq!(ran.out, "the archive holds no topic yet\n");
    assert!(
        ran.err.starts_with("error: the cluster could not be asked")
            && ran.err.contains("127.0.0.1:9: Connection refused")
            && ran.err.lines().count() == 1,
        "{}",
        ran.err
    );
}

/// A server that answers every ApiVersions as a controller of Kafka 4 does: Fetch is among what it offers, Metadata is not.
fn controller() -> String {
    server(&[1, 17, 18, 52, 62, 63])
}

/// A server that says of itself that it knows the API keys `keys`, if it is asked in the oldest way, and hangs up on all else.
fn server(keys: &'static [i16]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut len = [0; 4];
            if client.read_exact(&mut len).is_err() {
                continue;
            }
            let mut request = vec![0; u32::from_be_bytes(len) as usize];
            client.read_exact(&mut request).unwrap();
            // ApiVersions 0: the answer to a later version is laid out in another way.
            if request[..4] != [0, 18, 0, 0] {
                continue;
            }
            // Correlation id, no error, then each key with its lowest and highest version.
            let mut answer = request[4..8].to_vec();
            answer.extend([0, 0]);
            answer.extend(u32::try_from(keys.len()).unwrap().to_be_bytes());
            for &key in keys {
                answer.extend([key, 0, 4].map(i16::to_be_bytes).concat());
            }
            let len = u32::try_from(answer.len()).unwrap().to_be_bytes();
            client.write_all(&[&len[..], &answer].concat()).unwrap();
        }
    });
    address
}

/// It used to be told as a cluster that wants clients to authenticate, or that does not answer.
#[test]
fn a_controller_is_told_from_a_broker() {
    let dir = tempfile::tempdir().unwrap();
    let (url, address) = (empty_archive(&dir.path().join("archive")), controller());
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = free.local_addr().unwrap().to_string();
    drop(free);
    for (command, more) in [
        ("archive", &["--topics", "orders"][..]),
        ("proxy", &["--listen", &listen]),
        ("inspect", &[]),
    ] {
        let words = [command, "--archive", &url, "--bootstrap-servers", &address];
        let words = [&words[..], more].concat();
        let ran = everlog(dir.path(), &words, &[]);
        assert_eq!(ran.status, 1, "{command}: {}", ran.err);
        let told = format!("{address}: this is a KRaft controller");
        assert!(ran.err.contains(&told), "{command}: {}", ran.err);
        assert!(
            ran.err.contains("give the address of a broker"),
            "{}",
            ran.err
        );
    }
}

/// The advice used to come alone, without a word of what had gone wrong.
#[test]
fn inspect_says_what_went_wrong_beside_its_advice() {
    let dir = tempfile::tempdir().unwrap();
    let (url, address) = (
        empty_archive(&dir.path().join("archive")),
        server(&[1, 3, 18]),
    );
    let words = [
        "inspect",
        "--archive",
        &url,
        "--bootstrap-servers",
        &address,
    ];
    let ran = everlog(dir.path(), &words, &[]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    for part in [
        &format!("{address} does not tell which cluster it is"),
        "credentials",
        "the cluster's answer for its id can't be used: there is none in time",
    ] {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
}

/// It used to want what only an archiver needs, since the file names a cluster for the proxy that it also serves.
#[test]
fn verify_wants_no_credentials_of_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let url = empty_archive(&dir.path().join("archive"));
    let file = format!(
        "archive = \"{url}\"\nbootstrap_servers = \"127.0.0.1:9\"\n\n[kafka.properties]\n\"security.protocol\" = \"SASL_PLAINTEXT\"\n"
    );
    std::fs::write(dir.path().join("everlog.toml"), file).unwrap();
    let ran = everlog(dir.path(), &["verify"], &[]);
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    let ran = everlog(dir.path(), &["inspect"], &[]);
    assert_eq!(ran.status, 2, "{}{}", ran.out, ran.err);
    assert!(
        ran.err.contains("`sasl.mechanism` is not given"),
        "{}",
        ran.err
    );
}

/// The tools used to show what the services mean by a flag.
#[test]
fn help_says_what_a_flag_means_to_this_command() {
    let dir = tempfile::tempdir().unwrap();
    let help = |command: &str| {
        let ran = everlog(dir.path(), &[command, "--help"], &[]);
        ran.out.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (command, told, untold) in [
        ("run", "Which topics to archive, and to serve", "to show"),
        ("archive", "Which topics to archive.", "to serve"),
        ("proxy", "Which topics to serve", "topics to archive"),
        (
            "proxy",
            "Compacted, internal and Kafka Streams topics need their plain name",
            "to show",
        ),
        ("inspect", "Which topics of the archive to show", "to serve"),
        (
            "inspect",
            "[default: the cluster is not asked]",
            "must be given to archive",
        ),
        ("verify", "Which topics of the archive to check", "to serve"),
        ("verify", "[default: every topic of the archive]", "a proxy"),
    ] {
        let text = help(command);
        assert!(text.contains(told), "{command}: {text}");
        assert!(!text.contains(untold), "{command}: {text}");
    }
    assert!(
        !help("run").contains("`inspect`"),
        "that is another command"
    );
}

#[test]
fn a_damaged_format_file_is_damage_and_a_newer_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    // For `verify` 1 means damage and 2 that it could not be checked.
    for (text, status) in [("{\"version\":", 1), ("{\"version\":9}", 2)] {
        std::fs::write(dir.path().join("everlog.json"), text).unwrap();
        let ran = everlog(dir.path(), &["verify", "--archive", &url], &[]);
        assert_eq!(ran.status, status, "{text}: {}{}", ran.out, ran.err);
        assert_eq!(
            ran.out.contains("1 damage found"),
            status == 1,
            "{}",
            ran.out
        );
        let ran = everlog(dir.path(), &["inspect", "--archive", &url], &[]);
        assert!(
            ran.status == 2 && ran.err.contains("everlog.json"),
            "{}",
            ran.err
        );
    }
}

/// It used to take a minute and a half, the patience of a service.
#[test]
fn a_store_that_nobody_answers_for_is_told_soon() {
    let dir = tempfile::tempdir().unwrap();
    let variables = [
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_REGION", "us-east-1"),
        // Nobody listens on the port of `discard`.
        ("EVERLOG_S3_ENDPOINT", "http://127.0.0.1:9"),
    ];
    for command in ["inspect", "verify"] {
        let start = tokio::time::Instant::now();
        let ran = everlog(
            dir.path(),
            &[command, "--archive", "s3://bucket/archive"],
            &variables,
        );
        assert_eq!(ran.status, 2, "{}", ran.err);
        assert!(ran.err.contains("did not answer"), "{}", ran.err);
        let seconds = start.elapsed().as_secs();
        assert!(seconds < 45, "{command} took {seconds} s");
    }
}
