//! What fits together, and what does not.

use std::collections::BTreeMap;

use super::super::layers::{Layer, Raw};
use super::super::setting::SETTINGS;
use super::*;

fn layers(flags: &[(&'static str, &str)]) -> Layers {
    let raw = |text: &str, origin| Raw {
        texts: vec![text.to_owned()],
        origin,
        in_file: false,
    };
    let mut values: BTreeMap<&'static str, Raw> = SETTINGS
        .iter()
        .filter_map(|s| Some((s.key, raw(s.default?, Origin::Default))))
        .collect();
    let mut properties = BTreeMap::new();
    for (key, text) in flags {
        if setting(key).is_some() {
            values.insert(key, raw(text, Origin::Flag(format!("--{key}"))));
        } else {
            properties.insert((*key).to_owned(), raw(text, Origin::Env((*key).to_owned())));
        }
    }
    Layers {
        merged: Layer { values, properties },
        file: None,
        is_unread: false,
        problems: Vec::new(),
    }
}

const BASIC: [(&str, &str); 3] = [
    ("bootstrap_servers", "kafka:9092"),
    ("archive", "s3://bucket/p"),
    ("topics", "orders"),
];

#[track_caller]
fn check(roles: Roles, extra: &[(&'static str, &str)], wanted: &[&str]) {
    let given: Vec<_> = BASIC.iter().chain(extra).copied().collect();
    let found = match ServiceConfig::new(layers(&given), roles, Some("host".to_owned())) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.0.iter().map(Problem::to_string).collect(),
    };
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(
            found.contains(wanted),
            "{found:?} should contain {wanted:?}"
        );
    }
}

#[test]
fn archive_and_data_directory_do_not_lie_in_each_other() {
    let archive = ("archive", "file:///srv/everlog");
    for dir in ["/srv/everlog", "/srv/everlog/data", "/srv"] {
        check(
            Roles::BOTH,
            &[archive, ("data_dir", dir)],
            &["must not lie in each other"],
        );
    }
    check(
        Roles::BOTH,
        &[archive, ("data_dir", "/srv/everlog-data")],
        &[],
    );
}

#[test]
fn archives_do_not_share_a_group() {
    let one = group_of("s3://bucket/p");
    assert_eq!(one, group_of("s3://bucket/p/"));
    assert_ne!(one, group_of("s3://bucket/q"));
    assert!(
        one.starts_with("everlog-archiver-") && one.len() == 29,
        "{one}"
    );
}

fn signed_in(protocol: &'static str) -> [(&'static str, &'static str); 4] {
    [
        ("security.protocol", protocol),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "everlog"),
        ("sasl.password", "x"),
    ]
}

/// librdkafka then chose Kerberos, and said that its library was not built in.
#[test]
fn signing_in_needs_a_mechanism_and_what_belongs_to_it() {
    for roles in [Roles::ARCHIVER, Roles::BOTH] {
        check(
            roles,
            &[("security.protocol", "SASL_PLAINTEXT")],
            &["`sasl.mechanism` is not given"],
        );
    }
    let given = [
        ("archive", "s3://bucket/p"),
        ("security.protocol", "SASL_SSL"),
    ];
    assert!(
        ToolConfig::new(layers(&given), true).is_ok(),
        "no cluster is asked"
    );
    let given = [&given[..], &[("bootstrap_servers", "kafka:9092")]].concat();
    assert!(
        ToolConfig::new(layers(&given), false).is_ok(),
        "`verify` asks none, and was refused what only an archiver needs"
    );
    let told = ToolConfig::new(layers(&given), true)
        .err()
        .map(|told| told.to_string());
    assert!(
        told.as_ref()
            .is_some_and(|told| told.contains("`sasl.mechanism` is not given")),
        "{told:?}"
    );
}

#[test]
fn what_fits_together_is_taken() {
    check(Roles::BOTH, &[], &[]);
    check(
        Roles::BOTH,
        &[("listen", "0.0.0.0:19092"), ("advertise", "proxy.example")],
        &[],
    );
    check(Roles::ARCHIVER, &signed_in("SASL_SSL"), &[]);
    check(Roles::BOTH, &signed_in("SASL_PLAINTEXT"), &[]);
    // Clients bring their own.
    check(
        Roles::PROXY,
        &[("security.protocol", "SASL_PLAINTEXT")],
        &[],
    );
    check(Roles::BOTH, &[("archive", "memory://")], &[]);
    check(Roles::ARCHIVER, &[("listen", "0.0.0.0:19092")], &[]);
}

#[test]
fn impossible_combinations_are_refused_with_the_reason() {
    check(
        Roles::BOTH,
        &[("listen", "0.0.0.0:19092")],
        &["--advertise HOST"],
    );
    check(
        Roles::PROXY,
        &[("listen", "[::]:19092")],
        &["nobody can connect to ::"],
    );
    check(
        Roles::PROXY,
        &[("node_ports", "1=19092")],
        &["node 1 cannot have the port of `listen`"],
    );
    check(
        Roles::BOTH,
        &[("metrics", "127.0.0.1:19092")],
        &["port 19092 is taken by the proxy"],
    );
    check(
        Roles::BOTH,
        &[("bootstrap_servers", "127.0.0.1:19092")],
        &["is the proxy itself"],
    );
    check(
        Roles::BOTH,
        &[("security.protocol", "SSL")],
        &["speaks no TLS"],
    );
    check(
        Roles::PROXY,
        &[("security.protocol", "sasl_ssl")],
        &["speaks no TLS"],
    );
    check(
        Roles::BOTH,
        &[("memory", "128MiB")],
        &["`everlog run` needs at least 256MiB"],
    );
    check(
        Roles::BOTH,
        &[("memory", "12")],
        &["12 without a unit is read as 12 bytes"],
    );
    check(
        Roles::ARCHIVER,
        &[("segment_max_bytes", "64")],
        &["at least 64KiB; 64 without a unit is read as 64 bytes: write the unit too, as in 64MiB"],
    );
    check(
        Roles::PROXY,
        &[("archive", "memory://")],
        &["only `everlog run`"],
    );
    check(
        Roles::BOTH,
        &[("s3.access_key_id", "AK")],
        &["`s3.secret_access_key` is wanted"],
    );
    check(
        Roles::BOTH,
        &[("archive", "file:///x"), ("s3.region", "eu")],
        &["no use for the archive file:///x"],
    );
}

#[test]
fn all_mistakes_come_at_once() {
    let bad = [
        ("memory", "12Q"),
        ("segment_max_age", "soon"),
        ("sasl.pasword", "x"),
        ("listen", "0.0.0.0:1"),
    ];
    check(
        Roles::BOTH,
        &bad,
        &["sasl.pasword", "12Q", "soon", "--advertise"],
    );
    let Err(problems) = ServiceConfig::new(layers(&[]), Roles::BOTH, None) else {
        panic!("it lacks everything")
    };
    let text = problems.to_string();
    for key in ["archive", "bootstrap_servers", "topics", "instance_id"] {
        assert!(text.contains(&format!("`{key}` is not given")), "{text}");
    }
}

#[test]
fn a_proxy_without_topics_serves_all_that_is_archived() {
    let given = [
        ("bootstrap_servers", "kafka:9092"),
        ("archive", "s3://bucket/p"),
    ];
    let config =
        ServiceConfig::new(layers(&given), Roles::PROXY, None).expect("nothing is missing");
    assert!(config.topics.matches("__consumer_offsets", true));
}
