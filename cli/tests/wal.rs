//! `everlog wal`, as operators meet it, on logs in files. Direct I/O is needed where the temporary directory lies.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use everlog_wal::device::{self, DeviceOptions};
use everlog_wal::reservation::ReservationKey;
use everlog_wal::{OpenOptions, Seq, StreamId, Wal};
use serde_json::Value;

const A: StreamId = StreamId::new([0xa; 32]);
const B: StreamId = StreamId::new([0xb; 32]);

struct Ran {
    status: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|err| panic!("{err}: {}", self.out))
    }
}

fn everlog(arguments: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_everlog"))
        .arg("wal")
        .args(arguments)
        .env_clear()
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    Ran {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

struct Place {
    _dir: tempfile::TempDir,
    log: PathBuf,
}

impl Place {
    /// A log with 16 MiB.
    fn formatted() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let ran = everlog(&["format", log.to_str().unwrap(), "--size", "16MiB"]);
        assert_eq!(ran.status, 0, "{}", ran.err);
        Place { _dir: dir, log }
    }

    fn path(&self) -> &str {
        self.log.to_str().unwrap()
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.log.with_file_name(name)
    }

    async fn open(&self) -> Wal {
        let options = DeviceOptions::new(ReservationKey::new(1).unwrap());
        let device = device::open(&self.log, &options).unwrap();
        let (wal, _) = Wal::open(Arc::new(device), OpenOptions::new(|| 1_700_000_000_000))
            .await
            .unwrap();
        wal
    }

    /// Fifty records in A and in B, those of A below 20 trimmed for good.
    async fn fill(&self) {
        let wal = self.open().await;
        for number in 0..50_u64 {
            for stream in [A, B] {
                wal.append(stream, payload(number)).await.unwrap();
            }
        }
        wal.sync_trim(A, Seq::new(20)).await.unwrap();
        wal.close().await.unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.log).unwrap()
    }

    fn flip(&self, offset: u64) {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.log)
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }

    /// Where the payload of this number lies first.
    fn find(&self, number: u64) -> u64 {
        let wanted = payload(number);
        let bytes = self.bytes();
        let at = bytes.windows(wanted.len()).position(|some| some == wanted);
        u64::try_from(at.unwrap()).unwrap()
    }
}

fn payload(number: u64) -> Bytes {
    Bytes::from(format!(
        "the record with the number {number:>6}, and no other"
    ))
}

/// The lines of an export, without the first and the last.
fn exported(path: &Path) -> (Vec<Value>, Value) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.remove(0)["everlog_wal_export"], 1);
    let summary = lines.pop().unwrap()["summary"].clone();
    (lines, summary)
}

#[test]
fn what_is_there_is_overwritten_only_by_its_name() {
    let place = Place::formatted();
    let before = place.bytes();
    let refused = everlog(&["format", place.path()]);
    assert_eq!(refused.status, 2);
    let name = refused.err.split("--overwrite ").nth(1).unwrap().trim();
    assert!(name.starts_with("everlog:"), "{}", refused.err);
    assert_eq!(place.bytes(), before);
    let wrong = everlog(&["format", place.path(), "--overwrite", "ext"]);
    assert_eq!(wrong.status, 2);
    assert_eq!(place.bytes(), before, "a refusal changes nothing");
    let done = everlog(&["format", place.path(), "--overwrite", name, "--json"]);
    assert_eq!(done.status, 0, "{}", done.err);
    assert_eq!(done.json()["overwritten"][0], name);
    assert_ne!(done.json()["log"], name.trim_start_matches("everlog:"));
}

#[test]
fn a_file_is_made_only_where_there_is_none_and_with_a_size() {
    let place = Place::formatted();
    let there = everlog(&["format", place.path(), "--size", "16MiB"]);
    assert!(there.err.contains("there already"), "{}", there.err);
    let other = place.beside("other");
    let other = other.to_str().unwrap();
    let missing = everlog(&["format", other]);
    assert!(missing.err.contains("--size"), "{}", missing.err);
    let small = everlog(&["format", other, "--size", "64KiB"]);
    assert_eq!(small.status, 2);
    assert!(small.err.contains("at least"), "{}", small.err);
    // It used to stay, full of zeros, and the next try was told that it was there already.
    assert!(!Path::new(other).exists(), "what did not become a log goes");
    let large = everlog(&["format", other, "--size", "16MiB", "--record-max", "1GiB"]);
    assert_eq!(large.status, 2, "{}{}", large.out, large.err);
    assert!(!Path::new(other).exists());
    // What was there before stays, whatever comes of it.
    std::fs::write(other, [0; 4096]).unwrap();
    assert_eq!(everlog(&["format", other]).status, 2);
    assert!(Path::new(other).exists());
}

#[tokio::test]
async fn info_tells_the_backlog_of_each_stream() {
    let place = Place::formatted();
    place.fill().await;
    let ran = everlog(&["info", place.path(), "--json"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let info = ran.json();
    assert_eq!(info["clean"], true);
    assert_eq!(info["live_records"], 80);
    assert_eq!(info["in_use_by"], Value::Null);
    let of = |stream: StreamId| {
        let streams = info["streams"].as_array().unwrap().iter();
        let name = stream.to_string();
        streams
            .filter(move |one| one["stream"] == name)
            .collect::<Vec<_>>()[0]
            .clone()
    };
    assert_eq!(of(A)["trimmed_below"], 20);
    assert_eq!(of(A)["records"], 30);
    assert_eq!(of(B)["records"], 50);
    assert_eq!(of(B)["next"], 50);
    assert!(of(B)["oldest_age_ms"].as_u64().unwrap() > 1_000_000);
    let text = everlog(&["info", place.path()]).out;
    assert!(text.contains("80 records"), "{text}");
}

#[tokio::test]
async fn a_log_in_use_can_be_looked_at_and_nothing_else() {
    let place = Place::formatted();
    let wal = place.open().await;
    wal.append(A, payload(1)).await.unwrap();
    for command in ["check", "dump", "format"] {
        let ran = everlog(&[command, place.path()]);
        assert_eq!(ran.status, 2, "{command}");
        if command != "format" {
            let own = format!("in use by process {}", std::process::id());
            assert!(ran.err.contains(&own), "{}", ran.err);
        }
    }
    let ran = everlog(&["info", place.path(), "--json"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert_eq!(ran.json()["in_use_by"]["pid"], std::process::id());
    // The log has noticed nothing.
    let appended = wal.append(A, payload(2)).await.unwrap();
    assert_eq!(appended.seq, Seq::new(1));
    wal.close().await.unwrap();
}

#[tokio::test]
async fn check_and_export_agree_on_a_sound_log_and_change_nothing() {
    let place = Place::formatted();
    place.fill().await;
    let before = place.bytes();
    let checked = everlog(&["check", place.path(), "--json"]);
    assert_eq!(checked.status, 0, "{}{}", checked.out, checked.err);
    assert_eq!(checked.json()["live_records"], 80);
    let to = place.beside("out");
    let ran = everlog(&["export", place.path(), "--to", to.to_str().unwrap()]);
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    let (lines, summary) = exported(&to);
    assert_eq!(lines.len(), 80);
    assert_eq!(summary["records"], 80);
    assert_eq!(summary["streams"][A.to_string()]["first"], 20);
    assert_eq!(place.bytes(), before);
    let again = everlog(&["export", place.path(), "--to", to.to_str().unwrap()]);
    assert!(again.err.contains("--resume"), "{}", again.err);
    let dump = everlog(&["dump", place.path(), "--stream", "0b0b", "--json"]);
    let blocks = dump
        .out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let records = blocks.map(|block| block["records"].as_array().unwrap().len());
    assert_eq!(records.sum::<usize>(), 50);
}

/// A crash in the middle of a header update leaves one copy torn. It used to be called damage, exit status 1.
#[tokio::test]
async fn a_torn_header_copy_is_no_damage_and_said() {
    let place = Place::formatted();
    place.fill().await;
    place.flip(200);
    let checked = everlog(&["check", place.path()]);
    assert_eq!(checked.status, 0, "{}{}", checked.out, checked.err);
    let said = "note: header copy A: checksum does not match; the other one is sound and the next opening writes it again";
    assert!(checked.out.contains(said), "{}", checked.out);
    place.open().await.close().await.unwrap();
    let checked = everlog(&["check", place.path()]);
    assert!(!checked.out.contains("header copy"), "{}", checked.out);
}

#[tokio::test]
async fn a_flipped_bit_is_damage_and_all_else_comes_out() {
    let place = Place::formatted();
    place.fill().await;
    // The first record of this number that is found is A's; both have the same payload.
    place.flip(place.find(33));
    let checked = everlog(&["check", place.path()]);
    assert_eq!(checked.status, 1, "{}{}", checked.out, checked.err);
    assert!(
        checked.out.contains("everlog wal export"),
        "{}",
        checked.out
    );
    let info = everlog(&["info", place.path()]);
    assert_eq!(info.status, 1, "{}{}", info.out, info.err);
    let to = place.beside("out");
    let ran = everlog(&["export", place.path(), "--to", to.to_str().unwrap()]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    let (lines, summary) = exported(&to);
    assert_eq!(summary["records"], 79);
    assert_eq!(
        lines.iter().filter(|line| line["damaged"] == true).count(),
        1
    );
    let missing = &summary["streams"][A.to_string()]["missing"];
    assert_eq!(*missing, serde_json::json!([[33, 34]]));
}

#[tokio::test]
async fn without_its_headers_a_log_is_still_exported() {
    let place = Place::formatted();
    place.fill().await;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&place.log)
        .unwrap();
    let end = file.metadata().unwrap().len() - 4096;
    file.write_all_at(&[0; 4096], 0).unwrap();
    file.write_all_at(&[0xff; 4096], end).unwrap();
    let checked = everlog(&["check", place.path()]);
    assert_ne!(checked.status, 0);
    let to = place.beside("out");
    let ran = everlog(&["export", place.path(), "--to", to.to_str().unwrap()]);
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    assert_eq!(exported(&to).1["records"], 80);
}

#[tokio::test]
async fn an_interrupted_export_goes_on() {
    let place = Place::formatted();
    place.fill().await;
    let (whole, part) = (place.beside("whole"), place.beside("part"));
    let ran = everlog(&["export", place.path(), "--to", whole.to_str().unwrap()]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let text = std::fs::read(&whole).unwrap();
    for len in [
        text.len() / 3,
        text.len() / 2 + 7,
        text.len() - 3,
        text.len(),
    ] {
        std::fs::write(&part, &text[..len]).unwrap();
        let resumed = everlog(&[
            "export",
            place.path(),
            "--to",
            part.to_str().unwrap(),
            "--resume",
        ]);
        assert_eq!(resumed.status, 0, "{}", resumed.err);
        assert!(std::fs::read(&part).unwrap() == text, "cut at {len}");
    }
    let other = Place::formatted();
    other.fill().await;
    let wrong = everlog(&[
        "export",
        other.path(),
        "--to",
        part.to_str().unwrap(),
        "--resume",
    ]);
    assert_eq!(wrong.status, 2);
    assert!(wrong.err.contains("same export"), "{}", wrong.err);
}

#[test]
fn nobody_exports_a_log_onto_itself() {
    let place = Place::formatted();
    let before = place.bytes();
    for flags in [&["--resume"][..], &[]] {
        let mut words = vec!["export", place.path(), "--to", place.path()];
        words.extend(flags);
        assert_eq!(everlog(&words).status, 2);
    }
    assert_eq!(place.bytes(), before);
}
