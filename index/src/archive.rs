//! One archive: its format file, its topics, and the newest known commit of each partition.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use everlog_format::{ClusterId, Incarnation, Partition, PartitionKey, TopicId, TopicName};
use everlog_store::{Store, StoreError};
use futures::{StreamExt, TryStreamExt, stream};

use crate::canonical::check_writer_features;
use crate::chain::Chain;
use crate::disk_cache::DiskCache;
use crate::node::Shape;
use crate::node_cache::NodeCache;
use crate::shared::{Shared, Tuning};
use crate::slot::{LOOK_PAUSE, NONE_MAX_AGE, Slot};
use crate::topics::{open_format, put_topic, read_topic};
use crate::{Snapshot, Writer, keys};

/// `topic.json` files read at the same time by [`Archive::topics`].
const TOPIC_READS: usize = 16;
/// Incarnations remembered before those that are not there are forgotten.
const TOPICS_MAX: usize = 10_000;

/// How to open an archive.
#[derive(Clone, Debug, Default)]
pub struct ArchiveOptions {
    /// Where sealed nodes are kept between runs (sled); `None` keeps some in memory only.
    pub node_cache_dir: Option<PathBuf>,
    /// Put `everlog.json` if the archive has none. Without it, opening an empty place is an error.
    pub create: bool,
}

/// `topic.json`: what was seen of an incarnation at first sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Which.
    pub incarnation: Incarnation,
    /// Its name then.
    pub name: TopicName,
    /// Its partition count then.
    pub partition_count: u32,
    /// Its configuration then, as the cluster showed it; empty if it would not.
    pub configs: std::collections::BTreeMap<String, String>,
}

/// How new a commit the caller needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Whatever is known here; the first call for a partition reads the store.
    Known,
    /// Looked for at most this long ago. Concurrent callers share one probe; a partition is never probed more than
    /// once a second.
    Within(Duration),
    /// Look now: not rate limited. For tools.
    Now,
}

/// What went wrong, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The store failed: its own variant says what to do.
    #[error("the archive's index could not be read or written")]
    Store(#[from] StoreError),
    /// Bytes that break the format: archived data is at risk, stop and raise the alarm.
    #[error("{what} is damaged: {why}")]
    Corrupt {
        /// The object.
        what: String,
        /// Which rule it breaks.
        why: String,
    },
    /// Written by a newer everlog: upgrade.
    #[error("{what} needs the features {features:?}, which this version does not know")]
    Unsupported {
        /// The object.
        what: String,
        /// What it asks for.
        features: Vec<String>,
    },
    /// A commit names an object that is not there. On a lagging replica it may come: try again.
    #[error("{what} is named by a commit but is not there")]
    Missing {
        /// The object.
        what: String,
    },
    /// There is no archive at this URL.
    #[error("there is no everlog archive at {url}")]
    NoArchive {
        /// The place.
        url: String,
    },
}

/// An open archive. Cheap to share; a process has one, so that what its archiver commits its proxy knows at once.
#[derive(Debug)]
pub struct Archive {
    shared: Arc<Shared>,
    /// What `everlog.json` asks of writers.
    writer_features: Vec<String>,
    slots: Mutex<HashMap<PartitionKey, Arc<Slot>>>,
    topics: Mutex<HashMap<Incarnation, KnownTopic>>,
}

/// What was found when a topic was looked up.
#[derive(Clone, Debug)]
enum KnownTopic {
    Found(Arc<TopicInfo>),
    /// Nothing, at this time.
    Absent(Duration),
}

impl Archive {
    /// Reads (or, with `create`, puts) `everlog.json` and checks its version and features.
    pub async fn open(
        store: Arc<dyn Store>,
        options: ArchiveOptions,
    ) -> Result<Arc<Archive>, IndexError> {
        Archive::open_with(store, options, Tuning::default()).await
    }

    /// [`Archive::open`] with a clock, randomness and lag window of the caller's.
    pub async fn open_with(
        store: Arc<dyn Store>,
        options: ArchiveOptions,
        tuning: Tuning,
    ) -> Result<Arc<Archive>, IndexError> {
        let writer_features = open_format(store.as_ref(), options.create).await?;
        let disk = match &options.node_cache_dir {
            Some(dir) => DiskCache::open(dir).await,
            None => None,
        };
        let shape = Shape::VERSION_1;
        let nodes = NodeCache::new(Arc::clone(&store), shape, disk);
        let shared = Shared {
            store,
            nodes,
            shape,
            tuning,
            #[cfg(test)]
            sabotage: None,
            #[cfg(test)]
            on_row: None,
        };
        Ok(Archive::from_shared(Arc::new(shared), writer_features))
    }

    pub(crate) fn from_shared(shared: Arc<Shared>, writer_features: Vec<String>) -> Arc<Archive> {
        Arc::new(Archive {
            shared,
            writer_features,
            slots: Mutex::default(),
            topics: Mutex::default(),
        })
    }

    /// The objects below.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// Every incarnation that the archive knows, by listing.
    pub async fn topics(&self) -> Result<Vec<TopicInfo>, IndexError> {
        let incarnations = self.incarnations().await?;
        // The listing has just shown the folder: that it was not there a while ago counts for nothing.
        let read = |incarnation: Incarnation| async move {
            self.find_topic(&incarnation, Duration::ZERO).await
        };
        let mut reads = stream::iter(incarnations.into_iter().map(read)).buffered(TOPIC_READS);
        let mut topics = Vec::new();
        while let Some(topic) = reads.try_next().await? {
            topics.extend(topic.map(|t| t.as_ref().clone()));
        }
        Ok(topics)
    }

    /// The names of all incarnations that have a folder, by listing; their `topic.json` is not read.
    pub async fn incarnations(&self) -> Result<Vec<Incarnation>, IndexError> {
        let mut incarnations = Vec::new();
        for cluster in self.folders(keys::META).await? {
            // Names that are none of ours may lie there; they are not the archive's.
            let Ok(cluster) = ClusterId::new(&cluster) else {
                continue;
            };
            for id in self.folders(&format!("{}/{cluster}", keys::META)).await? {
                let Ok(topic_id) = TopicId::new(&id) else {
                    continue;
                };
                incarnations.push(Incarnation {
                    cluster: cluster.clone(),
                    topic_id,
                });
            }
        }
        Ok(incarnations)
    }

    /// The `topic.json` of one incarnation; `None` if the archive has never heard of it. Cached once it is found;
    /// "not found" is remembered for 10 s at most.
    pub async fn topic(&self, incarnation: &Incarnation) -> Result<Option<TopicInfo>, IndexError> {
        Ok(self
            .find_topic(incarnation, NONE_MAX_AGE)
            .await?
            .map(|topic| topic.as_ref().clone()))
    }

    /// Puts `topic.json` unless there is one.
    pub async fn register_topic(&self, info: &TopicInfo) -> Result<(), IndexError> {
        check_writer_features(keys::format_file().as_str(), &self.writer_features)?;
        let there = put_topic(self.store().as_ref(), info).await?;
        self.know_topic(&info.incarnation, KnownTopic::Found(Arc::new(there)));
        Ok(())
    }

    /// The partitions of an incarnation that have a folder, by listing: all that have a chain, and perhaps one whose
    /// first commit is under way.
    pub async fn partitions(
        &self,
        incarnation: &Incarnation,
    ) -> Result<Vec<Partition>, IndexError> {
        let folders = self.folders(&keys::incarnation_folder(incarnation)).await?;
        let number = |folder: &String| folder.parse().ok().and_then(Partition::new);
        let mut partitions: Vec<Partition> = folders.iter().filter_map(number).collect();
        partitions.sort_unstable();
        partitions.dedup();
        Ok(partitions)
    }

    /// The newest complete commit as far as `freshness` asks; `None` only after a successful read found no commit. That
    /// there is none is looked at again after 10 s even with [`Freshness::Known`]: a chain begins some day.
    pub async fn snapshot(
        self: &Arc<Self>,
        key: &PartitionKey,
        freshness: Freshness,
    ) -> Result<Option<Arc<Snapshot>>, IndexError> {
        // Who asks for something fresh must not be told "no such topic" from memory: he would take it for the truth.
        let absent_age_max = match freshness {
            Freshness::Known => NONE_MAX_AGE,
            Freshness::Within(wanted) => wanted.clamp(LOOK_PAUSE, NONE_MAX_AGE),
            Freshness::Now => Duration::ZERO,
        };
        match self.chain_within(key, absent_age_max).await? {
            Some(chain) => self.slot(key).snapshot(&chain, freshness).await,
            None => Ok(None),
        }
    }

    /// A writer for one assignment of the partition: finds the newest commit and draws the writer's 16 random bytes. The
    /// topic must have been registered.
    pub async fn writer(self: &Arc<Self>, key: &PartitionKey) -> Result<Writer, IndexError> {
        check_writer_features(keys::format_file().as_str(), &self.writer_features)?;
        let chain = self.chain(key).await?.ok_or_else(|| IndexError::Missing {
            what: keys::topic_file(&key.incarnation).to_string(),
        })?;
        Writer::open(chain, self.slot(key)).await
    }

    /// The chain of a partition; `None` if its topic is unknown.
    pub(crate) async fn chain(&self, key: &PartitionKey) -> Result<Option<Chain>, IndexError> {
        self.chain_within(key, NONE_MAX_AGE).await
    }

    async fn chain_within(
        &self,
        key: &PartitionKey,
        absent_age_max: Duration,
    ) -> Result<Option<Chain>, IndexError> {
        let topic = self.find_topic(&key.incarnation, absent_age_max).await?;
        Ok(topic.map(|topic| Chain {
            shared: Arc::clone(&self.shared),
            key: key.clone(),
            topic,
        }))
    }

    #[cfg(test)]
    pub(crate) fn know(&self, info: &TopicInfo) {
        self.know_topic(&info.incarnation, KnownTopic::Found(Arc::new(info.clone())));
    }

    #[cfg(test)]
    pub(crate) async fn load_node(
        &self,
        key: &PartitionKey,
        child: &crate::wire::Child,
    ) -> Result<Arc<crate::node::Node>, IndexError> {
        self.shared.nodes.load(key, child).await
    }

    fn slot(&self, key: &PartitionKey) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(key) {
            return Arc::clone(slot);
        }
        Arc::clone(slots.entry(key.clone()).or_default())
    }

    async fn find_topic(
        &self,
        incarnation: &Incarnation,
        absent_age_max: Duration,
    ) -> Result<Option<Arc<TopicInfo>>, IndexError> {
        let now = self.shared.tuning.clock.now();
        let known = self
            .topics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(incarnation)
            .cloned();
        match known {
            Some(KnownTopic::Found(topic)) => return Ok(Some(topic)),
            Some(KnownTopic::Absent(at)) if now.saturating_sub(at) < absent_age_max => {
                return Ok(None);
            }
            Some(KnownTopic::Absent(_)) | None => {}
        }
        let found = read_topic(self.store().as_ref(), incarnation)
            .await?
            .map(Arc::new);
        let known = found.as_ref().map_or(KnownTopic::Absent(now), |t| {
            KnownTopic::Found(Arc::clone(t))
        });
        self.know_topic(incarnation, known);
        Ok(found)
    }

    fn know_topic(&self, incarnation: &Incarnation, found: KnownTopic) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        // A read that began before the topic was registered may end after it.
        let registered = matches!(topics.get(incarnation), Some(KnownTopic::Found(_)));
        if !registered {
            if TOPICS_MAX <= topics.len() {
                // Ids come from clients: what is absent may not fill the memory.
                topics.retain(|_, known| matches!(known, KnownTopic::Found(_)));
            }
            topics.insert(incarnation.clone(), found);
        }
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, IndexError> {
        let (mut folders, mut token) = (Vec::new(), None);
        loop {
            let page = self.store().list(prefix, false, token).await?;
            folders.extend(page.folders);
            token = page.next;
            if token.is_none() {
                return Ok(folders);
            }
        }
    }
}
