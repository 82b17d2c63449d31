//! A topic is deleted while segments of it are on their way: what was fetched and proven is archived, all of it,
//! whoever finds out first.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should panic")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{
    Running, archived_end, config, incarnations, log_of, open_archive, records, snapshot, start,
    until,
};
use everlog_index::Archive;
use everlog_store::MemoryStore;
use everlog_store::faulty::{Fault, FaultyStore, Gate, OperationKind};
use rdkafka::config::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::types::RDKafkaRespErr;

type Mock = MockCluster<'static, DefaultProducerContext>;

/// A topic being archived into a store whose uploads of segments can be held back.
struct Scene {
    /// The log of all tests is one: by its topic a test finds its own lines.
    topic: &'static str,
    mock: Mock,
    archive: Arc<Archive>,
    archiver: Running,
    gate: Gate,
    sent: i64,
    spool: tempfile::TempDir,
}

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3_600);
const SEGMENT_MAX_BYTES: u64 = 64 << 10;
/// Records of [`LONG`] that make a segment full, and one more: one is full once it holds twice as many bytes, as long as
/// nothing is known of how they compress, and that is looked at whenever so many have come again.
const FILLING: i64 = 17;
const LONG: usize = 8 << 10;

impl Scene {
    async fn new(topic: &'static str, segment_max_age: Duration) -> Scene {
        let mock = Mock::new(1).unwrap();
        mock.create_topic(topic, 1, 1).unwrap();
        let spool = tempfile::tempdir().unwrap();
        let gate = Gate::new();
        let store = FaultyStore::new(Arc::new(MemoryStore::new()));
        let held_by = gate.clone();
        store.on_operation(move |operation| match operation.kind {
            OperationKind::Put if operation.name.contains("data/") => {
                Fault::HeldBefore(held_by.clone())
            }
            _ => Fault::None,
        });
        let archive = open_archive(Arc::new(store)).await;
        let mut config = config(&mock.bootstrap_servers(), &[topic], spool.path());
        config.segment_max_age = segment_max_age;
        config.segment_max_bytes = SEGMENT_MAX_BYTES;
        let archiver = start(config, &archive);
        Scene {
            topic,
            mock,
            archive,
            archiver,
            gate,
            sent: 0,
            spool,
        }
    }

    /// `count` more records; waits until they are fetched.
    async fn send(&mut self, count: i64, value_bytes: usize) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.mock.bootstrap_servers())
            .create()
            .unwrap();
        for _ in 0..count {
            // Text that compresses little.
            let letters = (0..value_bytes).map(|_| char::from(b'!' + rand::random::<u8>() % 90));
            let value: String = letters.collect();
            let record = BaseRecord::<str, str>::to(self.topic).partition(0);
            producer
                .send(record.payload(&value))
                .map_err(|(e, _)| e)
                .unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
        self.sent += count;
        let sent = self.sent;
        until("records to be fetched", async || {
            self.archiver
                .metric("everlog_archiver_fetched_records_total")
                == sent as f64
        })
        .await;
    }

    /// The upload of the first records is held up; the next ones are fetched, and all are proven.
    async fn upload_one_and_prove_two(&mut self) {
        self.send(FILLING, LONG).await;
        self.gate.reached().await;
        self.send(100, 20).await;
        self.all_is_proven().await;
    }

    /// A segment's file is made in the spool when it is cut: as small as these are, nothing of it is encoded before. The
    /// consumer's thread does no other work between handing over the records and the cut.
    async fn is_cut(&self, segments: usize) {
        until("segments to be cut", async || {
            let files = std::fs::read_dir(self.spool.path()).unwrap().flatten();
            let is_segment = |name: &str| name.starts_with("everlog-segment-");
            let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
            names.filter(|name| is_segment(name)).count() >= segments
        })
        .await;
    }

    async fn is_logged(&self, text: &str) {
        until(text, async || log_of(self.topic).contains(text)).await;
    }

    async fn all_is_proven(&self) {
        until("everything to be proven", async || {
            self.archiver.metric("everlog_archiver_proven_offset") == self.sent as f64
        })
        .await;
    }

    /// The mock can't delete a topic, but say that there is none.
    fn delete_topic(&self) {
        self.mock
            .topic_error(
                self.topic,
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
            )
            .unwrap();
    }

    async fn everything_is_archived(&self) {
        until("everything to be archived", async || {
            archived_end(&self.archive, self.topic, 0).await == self.sent
        })
        .await;
        let infos = incarnations(&self.archive, self.topic).await;
        let snapshot = snapshot(&self.archive, &infos[0], 0).await.unwrap();
        let found = records(&self.archive, &snapshot).await;
        assert!(
            found.iter().map(|record| record.offset).eq(0..self.sent),
            "{} of {} records",
            found.len(),
            self.sent
        );
    }
}

/// The second segment, waiting for the first to be committed, used to be dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_segment_behind_the_one_that_finds_the_topic_gone_is_archived() {
    let mut scene = Scene::new("behind", Duration::from_secs(3)).await;
    scene.upload_one_and_prove_two().await;
    scene.is_cut(2).await;
    scene.delete_topic();
    scene.gate.open();
    scene.everything_is_archived().await;
    scene.archiver.stop().await;
}

/// So was the segment that was still open then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_when_a_commit_finds_the_topic_gone_is_archived() {
    let mut scene = Scene::new("open", NEVER).await;
    scene.upload_one_and_prove_two().await;
    scene.delete_topic();
    scene.gate.open();
    scene.everything_is_archived().await;
    scene.archiver.stop().await;
}

/// The watch finds out, the group takes the partition away, and all the time nothing can be uploaded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_its_way_when_the_partition_is_taken_is_archived() {
    let mut scene = Scene::new("taken", Duration::from_secs(3)).await;
    scene.upload_one_and_prove_two().await;
    scene.delete_topic();
    scene
        .is_logged("a topic that is being archived is gone from the cluster")
        .await;
    scene.is_logged("the group took the partition away").await;
    scene.gate.open();
    scene.everything_is_archived().await;
    until("the worker to end", async || {
        scene.archiver.metric("everlog_archiver_partitions") == 0.0
    })
    .await;
    scene.archiver.stop().await;
}

/// The end of the process waits for it as for any other commit. It used to wait for sessions only that go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archiver_that_is_told_to_stop_archives_it_first() {
    let mut scene = Scene::new("stopped", NEVER).await;
    scene.upload_one_and_prove_two().await;
    scene.delete_topic();
    scene.archiver.shutdown();
    // What is open is cut by the stop.
    scene.is_cut(2).await;
    scene.gate.open();
    scene.archiver.stop().await;
    assert_eq!(
        archived_end(&scene.archive, scene.topic, 0).await,
        scene.sent
    );
}
