//! The archiver as a service: sets everything up, and keeps it going until it is told to stop.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use everlog_index::Archive;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::ArchiverError;
use crate::cluster::Cluster;
use crate::config::{ArchiverConfig, MemoryPlan};
use crate::consume::{BATCH_MAX, Consume, Ended};
use crate::decide::{Backoff, Limits};
use crate::memory::Memory;
use crate::message::Command;
use crate::metrics::Metrics;
use crate::native::Consumer;
use crate::spool::SpoolDir;
use crate::watch::{Facts, Watch};
use crate::worker::{Context, QUESTIONS_MAX};

/// Segments that are encoded at the same time. More would only take memory: the cores are shared with librdkafka.
const ENCODERS: usize = 2;
const COMMANDS_MAX: usize = 1_024;
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Archives the topics of one cluster into one archive.
#[derive(Debug)]
pub struct Archiver {
    config: ArchiverConfig,
    archive: Arc<Archive>,
    metrics: Metrics,
    spool: Arc<SpoolDir>,
    cluster: Cluster,
}

/// Aborts a task when it is dropped.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
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
        let spool = Arc::new(SpoolDir::open(&config.spool_dir)?);
        let metrics = Metrics::register(registry)?;
        Ok(Archiver {
            config,
            archive,
            metrics,
            spool,
            cluster,
        })
    }

    /// Archives until `shutdown` is cancelled; then commits what it can in about ten seconds and ends.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ArchiverError> {
        let Some(cluster_id) = shutdown
            .run_until_cancelled(self.wait_for_cluster_id())
            .await
        else {
            return Ok(());
        };
        let mut backoff = Backoff::new(RESTART_PAUSE_MAX);
        loop {
            let why = match self.life(&cluster_id, &shutdown).await? {
                Ended::Stopped => return Ok(()),
                Ended::Fatal(why) => why,
            };
            let (pause, _) = backoff.failed(rand::random());
            tracing::error!(
                why,
                ?pause,
                "the consumer can't go on, starting another; is its instance id used twice?"
            );
            if shutdown
                .run_until_cancelled(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return Ok(());
            }
        }
    }

    async fn wait_for_cluster_id(&self) -> everlog_format::ClusterId {
        let mut backoff = Backoff::new(RESTART_PAUSE_MAX);
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
            self.metrics.cluster_silent_seconds.clone(),
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
        spawned.map_err(|source| ArchiverError::Spool {
            path: self.config.spool_dir.clone(),
            source,
        })?;
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
