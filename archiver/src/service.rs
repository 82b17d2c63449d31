//! The archiver as a service: sets everything up, and keeps it going until it is told to stop.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use everlog_index::Archive;
use prometheus::{Gauge, IntGauge};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::ArchiverError;
use crate::clock::now;
use crate::cluster::Cluster;
use crate::config::{ArchiverConfig, MemoryPlan};
use crate::consume::{BATCH_MAX, Consume, Ended};
use crate::decide::{Backoff, Limits};
use crate::memory::Memory;
use crate::message::Command;
use crate::metrics::Metrics;
use crate::native::Consumer;
use crate::silence::counted;
use crate::spool::{SpoolDir, SpoolLock};
use crate::watch::{Facts, Watch};
use crate::worker::{Context, QUESTIONS_MAX};

/// Segments that are encoded at the same time. More would only take memory: the cores are shared with librdkafka.
const ENCODERS: usize = 2;
const COMMANDS_MAX: usize = 1_024;
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Short: whoever watches takes an archiver that does not get through, though a broker answers, for one with a wrong password.
const FIRST_ANSWER_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A consumer that has lasted for so long was well.
const CALM: Duration = Duration::from_secs(600);

/// Archives the topics of one cluster into one archive.
#[derive(Debug)]
pub struct Archiver {
    config: ArchiverConfig,
    archive: Arc<Archive>,
    metrics: Metrics,
    spool: Arc<SpoolDir>,
    _spool_lock: SpoolLock,
    cluster: Cluster,
    is_up: watch::Sender<bool>,
}

/// Aborts a task when it is dropped.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for the first answer, and counts the seconds without one.
async fn silent_until<T>(silent_seconds: &Gauge, answer: impl Future<Output = T>) -> T {
    let answer = counted(silent_seconds, Some(now()), answer).await;
    silent_seconds.set(0.0);
    answer
}

/// Waits for a consumer's end; says whether it has lasted for `calm`: then it has its place for itself.
async fn calmed<T>(fenced: &IntGauge, calm: Duration, life: impl Future<Output = T>) -> (T, bool) {
    let mut life = std::pin::pin!(life);
    if let Ok(ended) = tokio::time::timeout(calm, &mut life).await {
        return (ended, false);
    }
    fenced.set(0);
    (life.await, true)
}

impl Archiver {
    /// Checks the configuration, takes the spool directory and registers the metrics. Connects to nothing yet.
    pub fn new(
        config: ArchiverConfig,
        archive: Arc<Archive>,
        registry: &prometheus::Registry,
    ) -> Result<Archiver, ArchiverError> {
        config.check()?;
        let cluster = Cluster::new(&config.client_properties())?;
        // A client of its own tells now what librdkafka would refuse later.
        drop(Consumer::new(&config.consumer_properties(), 1)?);
        let (spool, spool_lock) = SpoolDir::open(&config.spool_dir)?;
        let metrics = Metrics::register(registry)?;
        Ok(Archiver {
            config,
            archive,
            metrics,
            spool: Arc::new(spool),
            _spool_lock: spool_lock,
            cluster,
            is_up: watch::Sender::new(false),
        })
    }

    /// Becomes true once the cluster has answered: until then nothing can be archived, whatever the reason (a wrong address or
    /// password looks no different from a cluster that is away). Never false again.
    pub fn is_up(&self) -> watch::Receiver<bool> {
        self.is_up.subscribe()
    }

    /// Archives until `shutdown` is cancelled; then commits what it can in about ten seconds and ends.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ArchiverError> {
        let silent_seconds = &self.metrics.cluster_silent_seconds;
        let waited = silent_until(silent_seconds, self.wait_for_cluster_id());
        let Some(cluster_id) = shutdown.run_until_cancelled(waited).await else {
            return Ok(());
        };
        self.is_up.send_replace(true);
        let mut backoff = Backoff::new(RESTART_PAUSE_MAX);
        loop {
            let life = self.life(&cluster_id, &shutdown);
            let (ended, lasted) = calmed(&self.metrics.fenced, CALM, life).await;
            if lasted {
                backoff = Backoff::new(RESTART_PAUSE_MAX);
            }
            let ended = match ended? {
                Ended::Stopped => return Ok(()),
                ended => ended,
            };
            let (pause, _) = backoff.failed(rand::random());
            if let Ended::Fatal(why) = ended {
                tracing::error!(why, ?pause, "the consumer can't go on, starting another");
            } else {
                self.fenced(pause);
            }
            if shutdown
                .run_until_cancelled(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return Ok(());
            }
        }
    }

    /// Another process is a member of the group under this one's name.
    fn fenced(&self, pause: Duration) {
        self.metrics.fenced.set(1);
        let (group_id, instance_id) = (&self.config.group_id, &self.config.instance_id);
        tracing::error!(
            group_id,
            instance_id,
            ?pause,
            "another process with the same instance id has taken this archiver's place in the group; this one will take it back after \
             a pause, and so on: nothing is lost, but give each archiver an instance id of its own (`--instance-id`)"
        );
    }

    async fn wait_for_cluster_id(&self) -> everlog_format::ClusterId {
        let mut backoff = Backoff::new(FIRST_ANSWER_PAUSE_MAX);
        loop {
            match self.cluster.cluster_id().await {
                Ok(id) => return id,
                Err(error) => {
                    let (pause, log) = backoff.failed(rand::random());
                    if log {
                        tracing::warn!(
                            error = &error as &dyn Error,
                            ?pause,
                            "the cluster is away, will retry"
                        );
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// From one consumer's start to its end.
    async fn life(
        &self,
        cluster_id: &everlog_format::ClusterId,
        shutdown: &CancellationToken,
    ) -> Result<Ended, ArchiverError> {
        let memory = MemoryPlan::of(self.config.memory_bytes);
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        let facts = Arc::new(Facts::default());
        let context = Arc::new(Context {
            questions: Semaphore::new(QUESTIONS_MAX),
            archive: Arc::clone(&self.archive),
            cluster: self.cluster.clone(),
            cluster_id: cluster_id.clone(),
            facts: Arc::clone(&facts),
            encoders: Arc::new(Semaphore::new(ENCODERS)),
            spool: Arc::clone(&self.spool),
            memory: Memory::new(&memory),
            metrics: self.metrics.clone(),
            commands: commands.clone(),
        });
        let watch = Watch::new(
            self.cluster.clone(),
            self.config.topics.clone(),
            facts,
            commands.clone(),
            &self.metrics,
        );
        let _watch = Task(tokio::spawn(watch.run()).abort_handle());
        let consumer = Consumer::new(&self.config.consumer_properties(), BATCH_MAX)?;
        let limits = Limits {
            max_bytes: self.config.segment_max_bytes,
            max_age: self.config.segment_max_age,
        };
        let consume = Consume::new(
            consumer,
            queue,
            context,
            tokio::runtime::Handle::current(),
            memory,
            limits,
        );
        let (ended, mut end) = oneshot::channel();
        let thread = std::thread::Builder::new().name("everlog-consume".to_owned());
        let spawned = thread.spawn(move || {
            let (how, _queue) = consume.run();
            // An error means that nobody waits any more.
            let _ = ended.send(how);
        });
        spawned.map_err(ArchiverError::Thread)?;
        let died = |_| ArchiverError::Died {
            what: "consumer thread",
        };
        tokio::select! {
            how = &mut end => return how.map_err(died),
            () = shutdown.cancelled() => {}
        }
        let _ = commands.send(Command::Stop).await;
        end.await.map_err(died)
    }
}

#[cfg(test)]
mod tests {
    use everlog_format::TopicSelection;
    use everlog_index::ArchiveOptions;

    use super::*;
    use crate::KafkaProperties;

    /// It used to be silent for 0 seconds for as long as no watch had begun.
    #[test]
    fn a_cluster_that_never_answered_is_silent_and_the_archiver_is_not_up() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(never_answered());
        // Not by dropping it: that would wait for the question's time-out.
        runtime.shutdown_background();
    }

    async fn never_answered() {
        let spool = tempfile::tempdir().unwrap();
        let config = ArchiverConfig {
            bootstrap_servers: "127.0.0.1:1".to_owned(),
            kafka_properties: KafkaProperties::default(),
            topics: TopicSelection::parse(&["orders"]).unwrap(),
            group_id: "group".to_owned(),
            instance_id: "instance".to_owned(),
            spool_dir: spool.path().to_owned(),
            segment_max_bytes: 1 << 20,
            segment_max_age: Duration::from_secs(2),
            memory_bytes: 96 << 20,
        };
        let store = Arc::new(everlog_store::MemoryStore::new());
        let options = ArchiveOptions {
            node_cache_dir: None,
            create: true,
        };
        let archive = Archive::open(store, options).await.unwrap();
        let registry = prometheus::Registry::new();
        let archiver = Archiver::new(config, archive, &registry).unwrap();
        let (up, shutdown) = (archiver.is_up(), CancellationToken::new());
        let silent = archiver.metrics.cluster_silent_seconds.clone();
        let running = tokio::spawn(archiver.run(shutdown.clone()));
        while silent.get() < 1.0 {
            assert!(!running.is_finished());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!*up.borrow());
        shutdown.cancel();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_has_lasted_is_no_longer_called_fenced() {
        let fenced = IntGauge::new("fenced", "fenced").unwrap();
        fenced.set(1);
        let life = |ms| tokio::time::sleep(Duration::from_millis(ms));
        let (_, lasted) = calmed(&fenced, Duration::from_secs(30), life(10)).await;
        assert_eq!((lasted, fenced.get()), (false, 1));
        let (_, lasted) = calmed(&fenced, Duration::from_millis(50), life(500)).await;
        assert_eq!((lasted, fenced.get()), (true, 0));
    }

    #[tokio::test]
    async fn the_first_answer_ends_the_silence() {
        let silent = Gauge::new("silent", "silent").unwrap();
        silent.set(9.0);
        assert_eq!(silent_until(&silent, async { 7 }).await, 7);
        assert_eq!(silent.get(), 0.0);
    }
}
