//! Line 3: `offsetsForTimes` below, at and above the seam equals a broker that kept everything.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, Fidelity, Kafka, S3, java_times, rdkafka_times,
    read,
};

const PARTITIONS: i32 = 2;

/// Offset, timestamp, epoch of all visible records, by partition.
type Visible = BTreeMap<i32, Vec<(i64, i64, i32)>>;

/// By partition and time asked for.
type Answers = BTreeMap<(i32, i64), Option<(i64, i64, i32)>>;

fn visible(case: &Case, name: &str) -> Result<Visible> {
    let mut all = Visible::new();
    for partition in 0..PARTITIONS {
        let text = std::fs::read_to_string(case.path(name).join(format!("p{partition}")))?;
        let mut records = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            records.push((words[0].parse()?, words[1].parse()?, words[3].parse()?));
        }
        all.insert(partition, records);
    }
    Ok(all)
}

/// The broker's answers, in which an invisible record (aborted, or a marker) is replaced by the next visible one at or after
/// that time.
fn wanted(answers: &str, visible: &Visible) -> Result<Answers> {
    let mut wanted = BTreeMap::new();
    for ((partition, time), answer) in parsed(answers)? {
        let next = answer.and_then(|(offset, _, _)| {
            visible[&partition]
                .iter()
                .find(|record| record.0 >= offset && record.1 >= time)
                .copied()
        });
        wanted.insert((partition, time), next);
    }
    Ok(wanted)
}

fn parsed(answers: &str) -> Result<Answers> {
    let mut found = BTreeMap::new();
    for line in answers.lines().filter(|line| line.contains(" -> ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words.get(3).context("an answer")? {
            &"none" => None,
            offset => Some((offset.parse()?, words[4].parse()?, words[5].parse()?)),
        };
        found.insert((words[0].parse()?, words[1].parse()?), answer);
    }
    Ok(found)
}

#[test]
fn offsets_for_times_equal_a_broker_that_kept_everything() {
    Case::run("times", |case| {
        let kafka = Kafka::start(case)?;
        let s3 = S3::start(case)?;
        let archive = Archive::on(&s3, "times");
        let admin = kafka.admin()?;
        let odd = Fidelity {
            topic: "odd".to_owned(),
            partitions: PARTITIONS,
            seed: 3,
            day: 0,
        };
        let scratch = case.path("transactions");
        admin.create_topic(&odd.topic, PARTITIONS, &[])?;
        odd.transactions(&kafka.bootstrap(), &scratch, 300, 0)?;
        odd.mixed(&kafka.bootstrap(), 6000, 1)?;
        // Its times are beyond all others, so every later question finds them: in one partition only.
        odd.hand_made_in(&kafka.bootstrap(), 1)?;
        odd.log_append_time(&kafka.bootstrap(), &admin, 200, 2)?;
        let options = EverlogOptions {
            segment_max_bytes: "256KiB".to_owned(),
            ..EverlogOptions::default()
        };
        let run = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
        archive.wait_archived(
            &odd.topic,
            &admin.ends(&odd.topic, PARTITIONS)?,
            Duration::from_secs(120),
        )?;
        run.stop()?;
        let seam: BTreeMap<i32, i64> = archive
            .held_of(&odd.topic)?
            .into_values()
            .map(|held| (held.partition, held.end))
            .collect();
        // The live part, which this archiver never sees.
        Fidelity {
            day: 1200,
            ..odd.clone()
        }
        .mixed(&kafka.bootstrap(), 3000, 4)?;
        odd.transactions(&kafka.bootstrap(), &scratch, 300, 5)?;

        read(
            Client::Java,
            &kafka.bootstrap(),
            &odd.topic,
            &case.path("all"),
        )?;
        let visible = visible(case, "all")?;
        let times = times_to_ask(&visible, &seam);
        let broker = java_times(
            &kafka.bootstrap(),
            &odd.topic,
            &case.path("ask-broker"),
            &times,
        )?;
        let wanted = wanted(&broker, &visible)?;
        admin.delete_records(&odd.topic, &seam)?;

        let options = EverlogOptions {
            command: "proxy",
            ..EverlogOptions::default()
        };
        let proxy = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
        let found = parsed(&java_times(
            &proxy.bootstrap(),
            &odd.topic,
            &case.path("ask-proxy"),
            &times,
        )?)?;
        ensure!(
            found.len() == times.len() * 2,
            "{} answers to {} questions",
            found.len(),
            times.len() * 2
        );
        let mut wrong = Vec::new();
        for (question, answer) in &wanted {
            if found.get(question) != Some(answer) {
                wrong.push(format!(
                    "{question:?}: wanted {answer:?}, found {:?}",
                    found.get(question)
                ));
            }
        }
        ensure!(
            wrong.is_empty(),
            "{} wrong answers (seam {seam:?}):\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        let below = wanted
            .iter()
            .filter(|((p, _), hit)| hit.is_some_and(|hit| hit.0 < seam[p]))
            .count();
        let above = wanted
            .iter()
            .filter(|((p, _), hit)| hit.is_some_and(|hit| hit.0 >= seam[p]))
            .count();
        case.note(&format!(
            "{} answers are right, {below} of them below and {above} above the seam",
            wanted.len()
        ));
        ensure!(below > 20 && above > 5, "the questions lie on one side");

        for ((partition, time), offset) in rdkafka_times(&proxy.bootstrap(), &odd.topic, &times)? {
            // Without a hit librdkafka gives the end (-1).
            let right = wanted[&(partition, time)].map_or(-1, |hit| hit.0);
            ensure!(
                offset == right,
                "librdkafka found {offset} for {partition} {time}, wanted {right}"
            );
        }
        proxy.stop()
    });
}

/// 100 times: of records from everywhere, between and beside them, before the first and after the last.
fn times_to_ask(visible: &Visible, seam: &BTreeMap<i32, i64>) -> Vec<i64> {
    let records = &visible[&0];
    let mut times: Vec<i64> = records
        .iter()
        .step_by(records.len() / 40)
        .map(|record| record.1)
        .collect();
    times.extend(
        records
            .iter()
            .step_by(records.len() / 20)
            .map(|record| record.1 + 1),
    );
    let at_seam = records
        .iter()
        .position(|record| record.0 >= seam[&0])
        .unwrap_or(0);
    times.extend(
        records[at_seam.saturating_sub(8)..]
            .iter()
            .take(16)
            .map(|record| record.1),
    );
    let mut sorted: Vec<i64> = records.iter().map(|record| record.1).collect();
    sorted.sort_unstable();
    for record in sorted.iter().rev().take(6) {
        times.extend([*record, record + 1]);
    }
    times.extend([0, 1, 2, 1_000_000, 4_000_000_000_000]);
    // -1 and below are questions of another kind.
    times.retain(|time| *time >= 0);
    times.sort_unstable();
    times.dedup();
    let mut later = 1_900_000_000_000;
    while times.len() < 100 {
        times.push(later);
        later += 1_000_000_000;
    }
    times
}
