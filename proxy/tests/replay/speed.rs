//! What a replay costs. Not part of the suite: `EVERLOG_FIGURES=1 cargo test --release -p everlog-proxy --test replay -- --nocapture speed`.
#![expect(
    clippy::print_stderr,
    reason = "what is measured is shown to whoever runs it"
)]

use everlog_format::{Record, SegmentOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Bed, MIB, at, record};

/// User and system time of this process so far, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

fn order(offset: i64, rng: &mut StdRng) -> Record {
    let mut value = format!(
        "{{\"order\":{offset},\"customer\":\"c-{:08}\",\"lines\":[",
        rng.random_range(0..100_000_000)
    );
    while value.len() < 980 {
        let (sku, price) = (rng.random_range(0..100_000), rng.random_range(0..100_000));
        value.push_str(&format!(
            "{{\"sku\":\"sku-{sku:06}\",\"quantity\":{},\"price_cents\":{price}}},",
            price % 9
        ));
    }
    value.push_str("]}");
    Record {
        value: Some(value.into_bytes()),
        ..record(offset, 0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn speed() {
    // Prints figures and takes its time: only for who asks.
    if std::env::var_os("EVERLOG_FIGURES").is_none() {
        return;
    }
    let mut bed = Bed::new().await;
    bed.options = SegmentOptions::default();
    let mut rng = StdRng::seed_from_u64(1);
    let mut raw = 0;
    for segment in 0..4 {
        let start = segment * 65_000;
        let records: Vec<Record> = (start..start + 65_000)
            .map(|offset| order(offset, &mut rng))
            .collect();
        raw += records
            .iter()
            .map(|record| record.as_ref(&mut Vec::new()).raw_bytes())
            .sum::<u64>();
        bed.segment(start..start + 65_000, &records).await;
    }
    let snapshot = bed.snapshot().await;
    for round in 0..3 {
        let replay = bed.replay(96 * MIB);
        let (cpu, wall, reads) = (cpu_seconds(), tokio::time::Instant::now(), bed.reads());
        let (mut next, mut answers) = (at(0), 0_u64);
        while next < at(260_000) {
            let slice = replay.read(&snapshot, next, 1 << 20).await.unwrap();
            next = slice.next;
            answers += 1;
        }
        let gib = raw as f64 / (1 << 30) as f64;
        let (cpu, wall) = (cpu_seconds() - cpu, wall.elapsed().as_secs_f64());
        eprintln!(
            "round {round}: {:.2} CPU s/GiB, {:.0} MiB/s, {} KiB an answer, {} object reads, peak {} MiB of {}",
            cpu / gib,
            gib * 1024.0 / wall,
            raw / answers / 1024,
            bed.reads() - reads,
            replay.memory().peak_bytes / MIB,
            96,
        );
    }
}
