//! The built binary, as operators meet it: configuration, its mistakes, its help. Nothing here needs a cluster or a store.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

mod support;

use support::everlog;

fn line<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines()
        .find(|line| line.starts_with(key))
        .unwrap_or_else(|| panic!("no line {key:?} in:\n{text}"))
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = "memory = \"1GiB\"\nsegment_max_age = \"5m\"\nlisten = \"127.0.0.1:1111\"\n";
    std::fs::write(dir.path().join("everlog.toml"), file).unwrap();
    let variables = [
        ("EVERLOG_SEGMENT_MAX_AGE", "7m"),
        ("EVERLOG_LISTEN", "127.0.0.1:2222"),
    ];
    let ran = everlog(
        dir.path(),
        &["config", "--listen", "127.0.0.1:3333"],
        &variables,
    );
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let words = |key| {
        line(&ran.out, key)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        words("segment_max_bytes"),
        "segment_max_bytes 256MiB default"
    );
    assert_eq!(words("memory "), "memory 1GiB file everlog.toml:1");
    assert_eq!(
        words("segment_max_age"),
        "segment_max_age 7m env EVERLOG_SEGMENT_MAX_AGE"
    );
    assert_eq!(words("listen"), "listen 127.0.0.1:3333 flag --listen");
}

#[test]
fn the_memory_split_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let ran = everlog(dir.path(), &["config", "--memory", "512MiB"], &[]);
    let run = line(&ran.out, "  run");
    assert!(
        run.contains("archiver 208MiB (librdkafka's queue of 32MiB included)"),
        "{run}"
    );
    assert!(run.contains("proxy cache 208MiB"), "{run}");
}

#[test]
fn every_mistake_is_told_at_once_with_the_nearest_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = "bootstrap_server = \"x:1\"\n[kafka.properties]\n\"sasl.pasword\" = \"x\"\n[s3]\nregoin = \"eu\"\n";
    std::fs::write(dir.path().join("everlog.toml"), file).unwrap();
    let flags = [
        "run",
        "--listen",
        "0.0.0.0:19092",
        "--topics",
        "pay(",
        "--segment-max-age",
        "10",
    ];
    let ran = everlog(
        dir.path(),
        &flags,
        &[("EVERLOG_MEMROY", "1GiB"), ("EVERLOG_MEMORY", "lots")],
    );
    assert_eq!(ran.status, 2);
    for told in [
        "everlog.toml:1: unknown key `bootstrap_server`; did you mean `bootstrap_servers`?",
        "everlog.toml:3: librdkafka has no property `sasl.pasword`; did you mean `sasl.password`?",
        "everlog.toml:5: unknown key `s3.regoin`; did you mean `s3.region`?",
        "EVERLOG_MEMROY: there is no such variable; did you mean `EVERLOG_MEMORY`?",
        "EVERLOG_MEMORY: \"lots\" is not a size",
        "--listen: listening on all addresses (0.0.0.0) needs --advertise HOST",
        "--topics: \"pay(\" is taken as a regex",
        "--segment-max-age: \"10\" is not a duration",
        "`archive` is not given",
        "`bootstrap_servers` is not given",
    ] {
        assert!(ran.err.contains(told), "{told:?} is not in:\n{}", ran.err);
    }
    assert!(
        ran.err.contains("the configuration has 10 problems:"),
        "{}",
        ran.err
    );
}

/// Besides, all that might have been in the file was called missing.
#[test]
fn of_a_file_that_cannot_be_read_nothing_else_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("broken.toml"),
        "topics = [\"a\"\nlisten = 3\n",
    )
    .unwrap();
    for (file, told) in [
        (
            "nowhere.toml",
            "--config: the file nowhere.toml cannot be read: ",
        ),
        ("broken.toml", "broken.toml:2: this is not TOML: "),
    ] {
        for command in ["run", "archive", "proxy", "inspect", "verify", "config"] {
            let ran = everlog(dir.path(), &[command, "--config", file], &[]);
            assert_eq!(ran.status, 2, "{}", ran.err);
            let lines: Vec<&str> = ran.err.lines().collect();
            assert!(
                lines.len() == 2
                    && lines[0].ends_with("the configuration has 1 problem:")
                    && lines[1].trim().starts_with(told),
                "{command}: {}",
                ran.err
            );
        }
    }
}

/// It was called unknown, and no key like it was offered.
#[test]
fn librdkafkas_variables_are_known_for_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let variables = [
        ("EVERLOG_SECURITY_PROTOCOL", "SSL"),
        ("EVERLOG_KAFKA_SASL_PASSWORD_FILE", "x"),
    ];
    let ran = everlog(dir.path(), &["config"], &variables);
    for told in [
        "EVERLOG_SECURITY_PROTOCOL: there is no such variable; it is librdkafka's: set EVERLOG_KAFKA_PROPERTIES_SECURITY_PROTOCOL\n",
        "set EVERLOG_KAFKA_PROPERTIES_SASL_PASSWORD_FILE",
    ] {
        assert!(ran.err.contains(told), "{}", ran.err);
    }
}

/// 50 was refused, and the help did not say why.
#[test]
fn the_demos_help_says_how_much_it_can_produce() {
    let dir = tempfile::tempdir().unwrap();
    let help = everlog(dir.path(), &["demo", "--help"], &[]).out;
    for megabytes in ["60", "10000"] {
        let ran = everlog(dir.path(), &["demo", "--megabytes", "0"], &[]);
        assert!(ran.err.contains(megabytes), "{}", ran.err);
        assert!(help.contains(megabytes), "{help}");
    }
}

#[test]
fn no_secret_is_ever_printed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("password"), "hunter2-from-a-file\n").unwrap();
    let file = "[kafka.properties]\nsasl.password_file = \"password\"\nssl.key.password = \"hunter2-in-the-file\"\n";
    std::fs::write(dir.path().join("everlog.toml"), file).unwrap();
    let variables = [
        ("EVERLOG_S3_SECRET_ACCESS_KEY", "hunter2-s3"),
        ("EVERLOG_S3_ACCESS_KEY_ID", "hunter2-id"),
        (
            "EVERLOG_KAFKA_PROPERTIES_SSL_KEYSTORE_PASSWORD",
            "hunter2-oauth",
        ),
    ];
    let ran = everlog(dir.path(), &["config"], &variables);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert!(!ran.out.contains("hunter2"), "{}", ran.out);
    for key in ["s3.secret_access_key", "s3.access_key_id"] {
        assert!(line(&ran.out, key).contains("********"), "{}", ran.out);
    }
    for key in ["sasl.password", "ssl.key.password", "ssl.keystore.password"] {
        assert!(
            line(&ran.out, &format!("kafka.properties.\"{key}\"")).contains("********"),
            "{}",
            ran.out
        );
    }
    // A value that is refused is not quoted either.
    let bad = [
        (
            "EVERLOG_KAFKA_PROPERTIES_SSL_KEYSTORE_PASSWORD",
            "hunter2\u{1}",
        ),
        // Refused by librdkafka, with its value in the refusal.
        (
            "EVERLOG_KAFKA_PROPERTIES_SASL_JAAS_CONFIG",
            "x required password=\"hunter2\";",
        ),
        ("EVERLOG_MEMORY", "x"),
    ];
    let ran = everlog(dir.path(), &["config"], &bad);
    assert!(
        ran.status == 2 && !ran.err.contains("hunter2"),
        "{}",
        ran.err
    );
}

#[test]
fn a_secret_whose_file_is_missing_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let ran = everlog(
        dir.path(),
        &["config"],
        &[("EVERLOG_S3_SESSION_TOKEN_FILE", "/nowhere/token")],
    );
    assert_eq!(ran.status, 2);
    assert!(
        ran.err
            .contains("EVERLOG_S3_SESSION_TOKEN_FILE: the file \"/nowhere/token\" cannot be read"),
        "{}",
        ran.err
    );
}

#[test]
fn a_flag_that_a_command_does_not_use_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, told) in [
        (
            ["archive", "--listen", "127.0.0.1:1"],
            "does not use --listen; used by: run, proxy",
        ),
        (
            ["proxy", "--segment-max-bytes", "1MiB"],
            "does not use --segment-max-bytes; used by: run, archive",
        ),
        (
            ["verify", "--bootstrap-servers", "x:1"],
            "does not use --bootstrap-servers; used by: run, archive, proxy, inspect",
        ),
        (["run", "--json", "x"], "unexpected argument '--json'"),
    ] {
        let ran = everlog(dir.path(), &arguments, &[]);
        assert_eq!(ran.status, 2, "{arguments:?}");
        assert!(ran.err.contains(told), "{told:?} is not in:\n{}", ran.err);
    }
}

#[test]
fn the_example_file_is_a_valid_configuration_also_with_every_line_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let example = everlog(dir.path(), &["config", "--example"], &[]).out;
    std::fs::write(dir.path().join("everlog.toml"), &example).unwrap();
    assert_eq!(everlog(dir.path(), &["config"], &[]).status, 0);

    let in_force: Vec<&str> = example
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|entry| !entry.starts_with(' '))
                .unwrap_or(line)
        })
        // The proxy speaks PLAINTEXT so far, and the secrets' files are not on this machine.
        .filter(|line| !line.contains("security.protocol") && !line.contains("_file"))
        .collect();
    std::fs::write(dir.path().join("everlog.toml"), in_force.join("\n")).unwrap();
    let ran = everlog(dir.path(), &["config"], &[]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let line_of = |key| line(&ran.out, key).to_owned();
    assert!(line_of("topics").contains("orders, pay.*"));
    assert!(line_of("node_ports").contains("1=19101, 2=19102"));
}

#[test]
fn help_names_what_scripts_rely_on() {
    let dir = tempfile::tempdir().unwrap();
    let ran = everlog(dir.path(), &["--help"], &[]);
    assert_eq!(ran.status, 0);
    for command in [
        "demo", "run", "archive", "proxy", "inspect", "verify", "config",
    ] {
        assert!(ran.out.contains(&format!("\n  {command} ")), "{}", ran.out);
    }
    let flags_of = |command: &str| {
        let help = everlog(dir.path(), &[command, "-h"], &[]).out;
        let words = help
            .split_whitespace()
            .filter(|word| word.starts_with("--"));
        words
            .map(|word| word.trim_end_matches(',').to_owned())
            .collect::<Vec<_>>()
    };
    let run = flags_of("run");
    for flag in [
        "--bootstrap-servers",
        "--archive",
        "--topics",
        "--listen",
        "--advertise",
        "--node-ports",
        "--data-dir",
        "--memory",
        "--segment-max-bytes",
        "--segment-max-age",
        "--instance-id",
        "--metrics",
        "--config",
        "--s3-endpoint",
        "--s3-region",
    ] {
        assert!(
            run.iter().any(|word| word == flag),
            "{flag} is not in {run:?}"
        );
    }
    assert!(
        !run.iter().any(|word| word.contains("secret")),
        "command lines are public: {run:?}"
    );
    assert!(flags_of("inspect").contains(&"--json".to_owned()));
    assert!(flags_of("config").contains(&"--example".to_owned()));
    assert!(!flags_of("archive").contains(&"--listen".to_owned()));
}

#[test]
fn the_example_stands_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ran = everlog(
        dir.path(),
        &["config", "--example", "--memory", "1GiB"],
        &[],
    );
    assert_eq!(ran.status, 2);
    assert!(ran.err.contains("--example"), "{}", ran.err);
}

#[test]
fn the_demo_leaves_other_peoples_directories_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("precious"), "x").unwrap();
    let ran = everlog(dir.path(), &["demo", "--dir", "."], &[]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.err.contains("holds files that no demo made"),
        "{}",
        ran.err
    );
    assert!(dir.path().join("precious").exists());
}
