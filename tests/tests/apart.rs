//! Archiver and proxy as two processes that share nothing but the archive, in a folder and on S3; and what `inspect` says of
//! the archive from its first minute on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, Follower, Kafka, S3, assert_same, count_lines,
    produce_orders, read, wait_until,
};
use serde_json::Value;

const PARTITIONS: i32 = 2;

/// `inspect --json` beside the cluster.
fn inspect(archive: &Archive, kafka: &Kafka) -> Result<Vec<Value>> {
    let words = [
        "inspect",
        "--json",
        "--bootstrap-servers",
        &kafka.bootstrap(),
    ];
    let (success, out, err) = archive.tool(&words)?;
    ensure!(success, "inspect failed: {err}");
    let rows: Value = serde_json::from_str(&out)?;
    Ok(rows.as_array().context("one array")?.clone())
}

/// The sum of a column; fails where it is null.
fn sum(rows: &[Value], name: &str) -> Result<i64> {
    rows.iter()
        .map(|row| {
            row[name]
                .as_i64()
                .with_context(|| format!("{name} in {row}"))
        })
        .sum()
}

fn options(command: &'static str, age: &str) -> EverlogOptions {
    EverlogOptions {
        command,
        topics: vec!["orders".to_owned()],
        segment_max_age: age.to_owned(),
        ..EverlogOptions::default()
    }
}

/// Shown as waiting while there is no commit, then with what it is behind.
fn inspect_tells(case: &Case, kafka: &Kafka, archive: &Archive) -> Result<()> {
    let archiver = Everlog::start(case, &kafka.bootstrap(), archive, &options("archive", "1h"))?;
    let mut rows = Vec::new();
    wait_until("the topic to be shown", Duration::from_secs(60), || {
        rows = inspect(archive, kafka)?;
        Ok(!rows.is_empty())
    })?;
    ensure!(rows.len() == 2, "{rows:?}");
    for row in &rows {
        ensure!(row["commit"].is_null() && row["end"].is_null(), "{row}");
    }
    ensure!(sum(&rows, "records")? == 0 && sum(&rows, "lag")? == 2000);
    let (success, table, _) = archive.tool(&["inspect"])?;
    ensure!(
        success && table.contains("2 of 2 partitions wait for the first commit"),
        "{table}"
    );
    // What is open is committed by the drain.
    archiver.stop()?;
    produce_orders(&kafka.bootstrap(), "orders", PARTITIONS, 2000..2301, "lz4")?;
    let rows = inspect(archive, kafka)?;
    case.note(&format!("behind: {rows:?}"));
    ensure!(sum(&rows, "records")? == 2000 && sum(&rows, "lag")? == 301);
    ensure!(sum(&rows, "high_watermark")? == 2301 && sum(&rows, "live_start")? == 0);
    Ok(())
}

fn apart(case: &Case, archive: &Archive) -> Result<()> {
    let kafka = Kafka::start(case)?;
    let admin = kafka.admin()?;
    admin.create_topic("orders", PARTITIONS, &[])?;
    produce_orders(&kafka.bootstrap(), "orders", PARTITIONS, 0..2000, "zstd")?;
    // Before there is an archive at all: it waits for whoever makes it.
    let mut proxy = Everlog::launch(case, &kafka.bootstrap(), archive, &options("proxy", "1s"))?;
    wait_until("the proxy to wait", Duration::from_secs(30), || {
        proxy.process.check_alive()?;
        Ok(proxy.process.log_text().contains("there is no archive yet"))
    })?;
    inspect_tells(case, &kafka, archive)?;

    let archiver = Everlog::start(case, &kafka.bootstrap(), archive, &options("archive", "1s"))?;
    proxy.wait_ready()?;
    let mut follower = Follower::start(
        Client::Java,
        &proxy.bootstrap(),
        "orders",
        "follower",
        &case.path("follower"),
        Follower::ENDLESS,
    )?;
    let mut sent = 2301;
    // The cluster forgets behind the archiver three times: the proxy has to learn of commits that another process made.
    for round in 0..3 {
        produce_orders(
            &kafka.bootstrap(),
            "orders",
            PARTITIONS,
            sent..sent + 500,
            "zstd",
        )?;
        sent += 500;
        let ends = admin.ends("orders", PARTITIONS)?;
        archive.wait_archived("orders", &ends, Duration::from_secs(120))?;
        wait_until("the follower at the tail", Duration::from_secs(120), || {
            follower.check_alive()?;
            Ok(count_lines(&case.path("follower"))? >= sent)
        })?;
        admin.delete_records("orders", &ends)?;
        let again = case.path(&format!("again-{round}"));
        let report = read(Client::Rdkafka, &proxy.bootstrap(), "orders", &again)?;
        ensure!(
            report.records == sent,
            "round {round}: {report:?} of {sent}"
        );
    }
    follower.stop()?;
    assert_same(&case.path("again-2"), &case.path("follower"), sent)?;
    let rows = inspect(archive, &kafka)?;
    ensure!(sum(&rows, "lag")? == 0 && sum(&rows, "live_start")? == i64::try_from(sent)?);
    archive.verify()?;
    archiver.stop()?;
    proxy.stop()?;
    inspect_tells_what_is_lost_and_gone(kafka, archive)
}

/// With no archiver at work: what the cluster lets go of is lost, then the topic is made anew, then the cluster is gone.
fn inspect_tells_what_is_lost_and_gone(mut kafka: Kafka, archive: &Archive) -> Result<()> {
    let (admin, servers) = (kafka.admin()?, kafka.bootstrap());
    let words = ["inspect", "--bootstrap-servers", &servers];
    produce_orders(&servers, "orders", PARTITIONS, 9_000..9_200, "zstd")?;
    admin.delete_records("orders", &admin.ends("orders", PARTITIONS)?)?;
    let rows = inspect(archive, &kafka)?;
    let lost = |row: &Value| {
        let [start, end] = [0_usize, 1].map(|index| row["lost_range"][index].as_i64());
        Some(end? - start?)
    };
    let lost: Option<Vec<i64>> = rows.iter().map(lost).collect();
    ensure!(
        lost.is_some_and(|lost| lost.iter().sum::<i64>() == 200),
        "{rows:?}"
    );
    ensure!(rows.iter().all(|row| row["live"] == true), "{rows:?}");
    ensure!(
        sum(&rows, "lag")? == 0,
        "what is lost cannot be archived any more"
    );
    let (_, table, _) = archive.tool(&words)?;
    ensure!(table.matches("lost: orders/").count() == 2, "{table}");

    admin.delete_topic("orders")?;
    let is_gone = |rows: &[Value]| rows.iter().all(|row| row["live"] == false);
    wait_until("the topic to be gone", Duration::from_secs(60), || {
        Ok(is_gone(&inspect(archive, &kafka)?))
    })?;
    admin.create_topic("orders", PARTITIONS, &[])?;
    wait_until("another to be there", Duration::from_secs(60), || {
        let rows = inspect(archive, &kafka)?;
        Ok(is_gone(&rows) && rows.iter().all(|row| row["lag"].is_null()))
    })?;
    let (_, table, _) = archive.tool(&words)?;
    ensure!(table.matches("gone: orders ").count() == 1, "{table}");

    let (success, _, err) = archive.tool(&[&words[..], &["--topics", "oders"]].concat())?;
    let told = "neither the archive nor the cluster has a topic oders";
    ensure!(!success && err.contains(told), "{err}");
    let controllers = kafka.controllers();
    let (success, table, err) = archive.tool(&["inspect", "--bootstrap-servers", &controllers])?;
    ensure!(
        !success && table.contains("orders") && err.contains("KRaft controller"),
        "{err}"
    );
    kafka.kill(1)?;
    let (success, table, err) = archive.tool(&words)?;
    ensure!(
        !success && table.contains("orders") && err.contains("Connection refused"),
        "{err}"
    );
    Ok(())
}

#[test]
fn archiver_and_proxy_share_nothing_but_a_folder() {
    Case::run("apart-folder", |case| {
        // Nobody makes the folder beforehand: the archiver does, and the proxy, which is started first, waits for it.
        apart(case, &Archive::folder(&case.path("archive")))
    });
}

#[test]
fn archiver_and_proxy_share_nothing_but_a_prefix_on_s3() {
    Case::run("apart-s3", |case| {
        let s3 = S3::start(case)?;
        apart(case, &Archive::on(&s3, "apart"))
    });
}
