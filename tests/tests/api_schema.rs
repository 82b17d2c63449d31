//! What the proxy offers, held against the schemas of Kafka's own newest client: a version that nobody has looked at must
//! not slip through, neither to clients nor past us.
//!
//! The proxy's list is read from `docs/protocol.md`, which a test beside the list keeps equal to it. The schemas are those
//! in the `kafka-clients` jar that `tests/setup` fetches: raise its version in `java/pom.xml`, and this says what is new.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use everlog_tests::{Cache, Case};
use serde_json::Value;

/// Fields of responses whose names sound like a broker's address, by API key. The brokers' own are replaced (the APIs
/// that are patched, and Fetch); the others are somebody else's, and stay.
const ADDRESSES: &[(i16, &[&str])] = &[
    (0, &["Host", "NodeEndpoints", "Port"]),
    (1, &["Host", "NodeEndpoints", "Port"]),
    (3, &["Host", "Port"]),
    (10, &["Host", "Port"]),
    // Members of a group, as the coordinator sees them.
    (15, &["ClientHost"]),
    // ACL rules.
    (29, &["Host"]),
    (31, &["Host"]),
    (60, &["EndpointType", "Host", "Port"]),
    (69, &["ClientHost"]),
    (77, &["ClientHost"]),
    (78, &["Host", "NodeEndpoints", "Port"]),
    (79, &["Host", "NodeEndpoints", "Port"]),
    // Instances of the application.
    (
        88,
        &[
            "EndpointInformationEpoch",
            "Host",
            "PartitionsByUserEndpoint",
            "Port",
            "UserEndpoint",
        ],
    ),
    (89, &["ClientHost", "Host", "Port", "UserEndpoint"]),
];

/// Words of a field's name that make one look.
const SUSPECT: &[&str] = &[
    "Host",
    "Port",
    "Endpoint",
    "Endpoints",
    "Address",
    "Addresses",
    "Listener",
    "Listeners",
    "Url",
];

/// Versions by API key.
type Versions = BTreeMap<i16, BTreeSet<i16>>;

struct Schemas {
    requests: Vec<Value>,
    responses: BTreeMap<i16, Value>,
}

/// `3`, `3-13`, or `none`.
fn range(text: &str) -> Result<BTreeSet<i16>> {
    if text == "none" {
        return Ok(BTreeSet::new());
    }
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        text.parse()
            .with_context(|| format!("{text:?} is no version"))
    };
    Ok((number(low)?..=number(high)?).collect())
}

/// The cells of the tables of a page whose rows have `count` of them and begin with a number.
fn rows(page: &str, count: usize) -> Vec<Vec<&str>> {
    page.lines()
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| {
            cells.len() == count + 2 && cells[1].starts_with(|c: char| c.is_ascii_digit())
        })
        .map(|cells| cells[1..=count].to_vec())
        .collect()
}

fn versions(page: &str, count: usize, column: usize) -> Result<Versions> {
    let mut versions = Versions::new();
    for row in rows(page, count) {
        versions.insert(row[0].parse()?, range(row[column])?);
    }
    Ok(versions)
}

fn hidden(page: &str) -> Result<BTreeSet<i16>> {
    let mut hidden = BTreeSet::new();
    for row in rows(page, 2) {
        for part in row[0].split(", ") {
            hidden.extend(range(part)?);
        }
    }
    Ok(hidden)
}

fn schemas(case: &Case) -> Result<Schemas> {
    let jar = Cache::find()?.jar("kafka-clients")?;
    let folder = case.folder().to_owned();
    let unpacked = Command::new("jar")
        .arg("xf")
        .arg(&jar)
        .arg("common/message")
        .current_dir(&folder)
        .status()
        .context("jar, which comes with the JDK")?;
    ensure!(unpacked.success(), "{} can't be unpacked", jar.display());
    let (mut requests, mut responses) = (Vec::new(), BTreeMap::new());
    let files: Vec<PathBuf> = std::fs::read_dir(folder.join("common/message"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    let is_schema = |path: &&PathBuf| path.extension().is_some_and(|kind| kind == "json");
    for path in files.iter().filter(is_schema) {
        // They are JSON with comments on lines of their own.
        let text: String = std::fs::read_to_string(path)?
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        let schema: Value =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        match schema["type"].as_str() {
            Some("request") => requests.push(schema),
            Some("response") => {
                responses.insert(key(&schema)?, schema);
            }
            _ => {}
        }
    }
    ensure!(requests.len() > 80, "only {} requests", requests.len());
    Ok(Schemas {
        requests,
        responses,
    })
}

fn key(schema: &Value) -> Result<i16> {
    let key = schema["apiKey"].as_i64().context("an API key")?;
    Ok(i16::try_from(key)?)
}

/// Names of fields, at any depth, in which a suspect word stands.
fn suspects(schema: &Value, found: &mut BTreeSet<String>) {
    let lists = [&schema["fields"], &schema["commonStructs"]];
    for field in lists.into_iter().filter_map(Value::as_array).flatten() {
        // The name of a structure is none of a field.
        let is_field = field["versions"].is_string() && field["type"].is_string();
        if let Some(name) = field["name"].as_str().filter(|_| is_field)
            && words(name)
                .iter()
                .any(|word| SUSPECT.contains(&word.as_str()))
        {
            found.insert(name.to_owned());
        }
        suspects(field, found);
    }
}

/// `NodeEndpoints` is `Node` and `Endpoints`.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for letter in name.chars() {
        match words.last_mut().filter(|_| !letter.is_uppercase()) {
            Some(word) => word.push(letter),
            None => words.push(letter.to_string()),
        }
    }
    words
}

#[test]
fn every_version_that_kafka_knows_has_been_looked_at() {
    Case::run("api-schema", check_versions);
}

fn check_versions(case: &Case) -> Result<()> {
    let page = include_str!("../../docs/protocol.md");
    let (offered, left_out, hidden) = (versions(page, 5, 2)?, versions(page, 3, 1)?, hidden(page)?);
    ensure!(
        offered.len() > 50 && left_out.len() > 3 && hidden.len() > 20,
        "the page was not read"
    );
    let none = BTreeSet::new();
    let mut wrong = Vec::new();
    for schema in schemas(case)?.requests {
        let (key, name) = (key(&schema)?, schema["name"].as_str().unwrap_or_default());
        let valid = range(schema["validVersions"].as_str().context("versions")?)?;
        let Some(ours) = offered.get(&key) else {
            if !hidden.contains(&key) {
                wrong.push(format!("{key} {name}: neither offered nor hidden"));
            }
            continue;
        };
        let not_ours = left_out.get(&key).unwrap_or(&none);
        for version in valid
            .difference(ours)
            .filter(|version| !not_ours.contains(version))
        {
            wrong.push(format!("{key} {name} {version}: nobody has looked at it"));
        }
        // Brokers still offer these, and so do we.
        let is_gone = |version: &&i16| !(valid.contains(version) || key == 0 && **version < 3);
        for version in ours.union(not_ours).filter(is_gone) {
            wrong.push(format!("{key} {name} {version}: Kafka does not know it"));
        }
    }
    wrong.sort();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn no_response_that_passes_holds_an_address_that_nobody_knows_of() {
    Case::run("api-addresses", check_addresses);
}

fn check_addresses(case: &Case) -> Result<()> {
    let page = include_str!("../../docs/protocol.md");
    let known: BTreeMap<i16, BTreeSet<String>> = ADDRESSES
        .iter()
        .map(|(key, names)| (*key, names.iter().map(|name| (*name).to_owned()).collect()))
        .collect();
    let schemas = schemas(case)?;
    let mut wrong = Vec::new();
    for key in versions(page, 5, 2)?.into_keys() {
        let schema = schemas.responses.get(&key).context("a response")?;
        let mut found = BTreeSet::new();
        suspects(schema, &mut found);
        let expected = known.get(&key).cloned().unwrap_or_default();
        if found != expected {
            wrong.push(format!(
                "{key} {}: {found:?}, known: {expected:?}",
                schema["name"]
            ));
        }
    }
    wrong.sort();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
