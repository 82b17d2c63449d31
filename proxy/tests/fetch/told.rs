//! What the operator reads and counts while requests meet trouble in the archive.

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};

use everlog_store::Store;
use everlog_store::faulty::Fault;
use kafka_protocol::messages::{ApiKey, FetchResponse};
use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Metadata, Subscriber, span};

use crate::bench::{Bench, TRIMMED};
use crate::support;

/// Each line as `LEVEL field=value ... message`, of this thread: of a whole test, since its tasks run on no other.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => write!(self.0, " {value:?}").unwrap(),
            name => write!(self.0, " {name}={value:?}").unwrap(),
        }
    }
}

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Lines {
    fn here() -> (Lines, DefaultGuard) {
        let lines = Lines::default();
        let guard = tracing::subscriber::set_default(lines.clone());
        (lines, guard)
    }

    /// Those of this level that hold `part`.
    fn found(&self, level: &str, part: &str) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        let is_found = |line: &&String| line.starts_with(level) && line.contains(part);
        lines.iter().filter(is_found).cloned().collect()
    }
}

/// Each used to be counted twice, and told twice: of the topic's id where the look failed, of its name where the client
/// was told.
#[tokio::test]
async fn a_failed_look_is_one_failure_of_a_topic_with_a_name() {
    let (lines, _guard) = Lines::here();
    let mut bench = Bench::apart(TRIMMED).await;
    bench.bed.store.on_operation(|_| Fault::Unavailable);
    for version in [12, 13] {
        let before = bench.failures("index");
        bench.fetched.lock().unwrap().clear();
        assert_eq!(bench.partition(version, 10).await.error_code, 56);
        // Before the cluster is asked, and again whenever it has said "out of range".
        let looks = u32::try_from(1 + bench.fetched.lock().unwrap().len()).unwrap();
        let failures = bench.failures("index") - before;
        assert_eq!(failures, f64::from(looks), "version {version}");
    }
    let before = bench.failures("index");
    assert_eq!(bench.earliest(7).await, (56, -1));
    assert_eq!(bench.failures("index") - before, 1.0);
    let told = lines.found("WARN", "a request met trouble in the archive");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("topic=\"orders\" partition=0"), "{told:?}");
}

/// It used to be told as trouble that passes: as a warning that clients ask again, and of eight partitions at most.
#[tokio::test]
async fn a_deleted_segment_is_an_alarm_for_each_partition() {
    const PARTITIONS: i32 = 12;
    let (lines, _guard) = Lines::here();
    let mut bench = Bench::start(TRIMMED).await;
    for partition in 1..PARTITIONS {
        let (store, archive) = (&bench.bed.store, &bench.bed.archive);
        let mut bed =
            support::Bed::in_archive(Arc::clone(store), Arc::clone(archive), partition).await;
        bed.segment(0..40, &support::records(0..40, 100)).await;
    }
    let listed = bench.bed.store.list("data", true, None).await.unwrap();
    for (key, _) in &listed.objects {
        bench.bed.store.delete(key).await.unwrap();
    }
    let wanted: Vec<(i32, i64)> = (0..PARTITIONS).map(|partition| (partition, 10)).collect();
    let mut request = bench.fetch_request(13, &wanted, 1 << 18);
    request.max_bytes = 4 << 20;
    let mut response: FetchResponse = bench.ask(ApiKey::Fetch, 13, &request).await;
    for part in response.responses.remove(0).partitions {
        assert_eq!(part.error_code, 56, "partition {}", part.partition_index);
    }
    for partition in 0..PARTITIONS {
        let whose = format!("topic=\"orders\" partition={partition} ");
        let told = lines.found("ERROR", &whose);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("or the object was deleted"), "{told:?}");
    }
    assert_eq!(lines.found("WARN", "ask again"), [""; 0]);
}
