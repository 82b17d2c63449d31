//! Watches the cluster: which topics there are and match, what they are configured to, which incarnation they are.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::sync::RwLock;
use std::time::Duration;

use everlog_format::{TopicName, TopicSelection};
use prometheus::Gauge;
use tokio::sync::{mpsc, oneshot};

use crate::clock::now;
use crate::cluster::{Cluster, ClusterError, ClusterView, TopicConfigs};
use crate::decide::Backoff;
use crate::message::{Command, Seen};

/// How often the cluster is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Configurations are asked for anew in every so many looks, and at once for topics not seen before.
const CONFIGS_EVERY: u32 = 30;
/// Topics in one request.
const REQUEST_TOPICS: usize = 200;

/// What is known of one topic.
#[derive(Clone, Debug, Default)]
pub(crate) struct TopicFacts {
    pub(crate) partition_count: u32,
    pub(crate) configs: TopicConfigs,
}

/// What is known of all topics that match; written by the watch, read by everybody.
#[derive(Debug, Default)]
pub(crate) struct Facts(RwLock<HashMap<String, TopicFacts>>);

impl Facts {
    /// Defaults if nothing is known.
    pub(crate) fn topic(&self, name: &str) -> TopicFacts {
        self.0
            .read()
            .expect("no writer panics")
            .get(name)
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn retention(&self, name: &str) -> Option<Duration> {
        self.0
            .read()
            .expect("no writer panics")
            .get(name)?
            .configs
            .retention()
    }

    fn set(&self, name: &str, facts: TopicFacts) {
        self.0
            .write()
            .expect("no writer panics")
            .insert(name.to_owned(), facts);
    }
}

/// See the module.
pub(crate) struct Watch {
    pub(crate) cluster: Cluster,
    pub(crate) selection: TopicSelection,
    pub(crate) facts: std::sync::Arc<Facts>,
    pub(crate) commands: mpsc::Sender<Command>,
    known_configs: HashMap<String, TopicConfigs>,
    internal: BTreeSet<String>,
    silent_seconds: Gauge,
    /// Topics that were named plainly and are not there.
    missing: BTreeSet<String>,
    /// What librdkafka took last.
    subscribed: Option<BTreeSet<String>>,
    /// Whether the last question was answered. If not, it is not put again for a while: topics not known count as
    /// ordinary ones.
    configs_told: bool,
    looks: u32,
}

/// Whether a topic is to be archived. Compacted and internal topics and those of Kafka Streams need their plain name.
pub(crate) fn selected(
    selection: &TopicSelection,
    name: &str,
    compacted: bool,
    internal: bool,
) -> bool {
    // A name that is no legal one can't be archived, and Kafka itself makes none.
    TopicName::new(name).is_ok()
        && selection.matches(
            name,
            compacted || internal || TopicSelection::name_needs_plain_name(name),
        )
}

impl Watch {
    pub(crate) fn new(
        cluster: Cluster,
        selection: TopicSelection,
        facts: std::sync::Arc<Facts>,
        commands: mpsc::Sender<Command>,
        silent_seconds: Gauge,
    ) -> Watch {
        Watch {
            cluster,
            selection,
            facts,
            commands,
            known_configs: HashMap::new(),
            internal: BTreeSet::new(),
            silent_seconds,
            missing: BTreeSet::new(),
            subscribed: None,
            configs_told: true,
            looks: 0,
        }
    }

    /// Looks until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(LOOK_EVERY);
        let mut answered = now();
        loop {
            let pause = match self.look().await {
                Ok(()) => {
                    answered = now();
                    self.silent_seconds.set(0.0);
                    backoff = Backoff::new(LOOK_EVERY);
                    LOOK_EVERY
                }
                Err(error) => {
                    let silent = now().saturating_duration_since(answered);
                    self.silent_seconds.set(silent.as_secs_f64());
                    let (pause, log) = backoff.failed(rand::random());
                    if log {
                        let error = &error as &dyn Error;
                        tracing::warn!(error, ?pause, "the cluster can't be looked at, will retry");
                    }
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn look(&mut self) -> Result<(), ClusterError> {
        let view = self.cluster.metadata(None).await?;
        let candidates: Vec<String> = view
            .topics
            .iter()
            .map(|topic| topic.name.clone())
            .filter(|name| selected(&self.selection, name, false, false))
            .collect();
        self.learn_configs(&candidates).await;
        self.mark().await;
        let described = self.describe(&candidates, &view).await?;
        self.tell_missing(&candidates);
        let topics: BTreeSet<String> = candidates
            .into_iter()
            .filter(|name| {
                let compacted = self
                    .known_configs
                    .get(name)
                    .is_some_and(TopicConfigs::is_compacted);
                selected(
                    &self.selection,
                    name,
                    compacted,
                    self.internal.contains(name),
                )
            })
            .collect();
        for topic in view
            .topics
            .iter()
            .filter(|topic| topics.contains(&topic.name))
        {
            let partition_count = u32::try_from(topic.leaders.len()).unwrap_or(u32::MAX);
            let configs = self
                .known_configs
                .get(&topic.name)
                .cloned()
                .unwrap_or_default();
            self.facts.set(
                &topic.name,
                TopicFacts {
                    partition_count,
                    configs,
                },
            );
        }
        self.tell(topics, described).await;
        self.looks = self.looks.wrapping_add(1);
        Ok(())
    }

    /// Says once of each topic that was named plainly that the cluster does not have it: it may be misspelt.
    fn tell_missing(&mut self, candidates: &[String]) {
        let names = self.selection.plain_names().map(|name| name.as_str());
        let missing: BTreeSet<String> = names
            .filter(|name| !candidates.iter().any(|candidate| candidate == name))
            .map(str::to_owned)
            .collect();
        for topic in missing.difference(&self.missing) {
            tracing::warn!(
                topic,
                "the cluster has no topic of this name, keeping watch for it"
            );
        }
        self.missing = missing;
    }

    async fn tell(&mut self, topics: BTreeSet<String>, described: Vec<Seen>) {
        let is_new = self.subscribed.as_ref() != Some(&topics);
        let is_taken = is_new && self.subscribe(&topics).await;
        if is_taken {
            if topics.is_empty() {
                let selection = &self.selection;
                tracing::warn!(%selection, "no topic of the cluster matches the selection, keeping watch");
            } else {
                tracing::info!(count = topics.len(), ?topics, "archiving these topics");
            }
        }
        let gone = self.subscribed.iter().flatten();
        let gone = gone
            .filter(|topic| !topics.contains(*topic))
            .map(|topic| Seen {
                topic: topic.clone(),
                id: None,
                agreed: false,
            });
        let ids = described
            .into_iter()
            .filter(|seen| topics.contains(&seen.topic))
            .chain(gone)
            .collect();
        self.send(Command::Incarnations(ids)).await;
        if is_taken {
            self.subscribed = Some(topics);
        }
    }

    /// Whether it was taken; if not, the next look tries again.
    async fn subscribe(&self, topics: &BTreeSet<String>) -> bool {
        let (told, wait) = oneshot::channel();
        let topics = topics.iter().cloned().collect();
        self.send(Command::Subscribe(topics, told)).await;
        wait.await.unwrap_or(false)
    }

    /// What is delivered from here on is not proven by the ids that are asked for next.
    async fn mark(&self) {
        let (noted, wait) = oneshot::channel();
        self.send(Command::Mark(noted)).await;
        // An error means that the archiver is ending.
        let _ = wait.await;
    }

    async fn send(&self, command: Command) {
        // An error means that the archiver is ending.
        let _ = self.commands.send(command).await;
    }

    async fn learn_configs(&mut self, candidates: &[String]) {
        let all = self.looks.is_multiple_of(CONFIGS_EVERY);
        if !all && !self.configs_told {
            return;
        }
        self.configs_told = true;
        let wanted: Vec<String> = candidates
            .iter()
            .filter(|name| all || !self.known_configs.contains_key(*name))
            .cloned()
            .collect();
        for names in wanted.chunks(REQUEST_TOPICS) {
            match self.cluster.configs(names).await {
                Some(found) => self.known_configs.extend(found),
                // Treated as an ordinary topic, and not asked about again for a while.
                None => {
                    self.configs_told = false;
                    return;
                }
            }
        }
    }

    async fn describe(
        &mut self,
        candidates: &[String],
        view: &ClusterView,
    ) -> Result<Vec<Seen>, ClusterError> {
        let mut ids = Vec::new();
        for names in candidates.chunks(REQUEST_TOPICS) {
            let told = self.cluster.describe_everywhere(names, &view.brokers);
            let (all, agreed) = told.await?;
            for described in all {
                if described.internal {
                    self.internal.insert(described.topic.clone());
                }
                if let Ok(Some(id)) = described.id {
                    ids.push(Seen {
                        topic: described.topic,
                        id: Some(id),
                        agreed,
                    });
                }
            }
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Gauge {
        Gauge::new("silent", "silent").unwrap()
    }

    /// A refused subscription used to count as made, and its topics were never archived.
    #[tokio::test]
    async fn a_subscription_that_is_refused_is_tried_again() {
        let properties = [("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())];
        let (commands, mut queue) = mpsc::channel(8);
        let selection = TopicSelection::parse(&["orders"]).unwrap();
        let cluster = Cluster::new(&properties).unwrap();
        let mut watch = Watch::new(cluster, selection, Default::default(), commands, silent());
        let topics = BTreeSet::from(["orders".to_owned()]);
        for answer in [Some(false), Some(true), None] {
            let answering = async {
                while let Some(command) = queue.recv().await {
                    match command {
                        Command::Subscribe(topics, told) => {
                            assert_eq!(topics, ["orders"]);
                            told.send(answer.expect("not asked again")).unwrap();
                        }
                        Command::Incarnations(_) => return,
                        other => panic!("{other:?}"),
                    }
                }
            };
            tokio::join!(watch.tell(topics.clone(), Vec::new()), answering);
            assert_eq!(watch.subscribed.is_some(), answer != Some(false));
        }
    }

    #[test]
    fn a_plain_name_that_is_not_there_is_told_once() {
        let properties = [("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())];
        let (commands, _queue) = mpsc::channel(1);
        let selection = TopicSelection::parse(&["orders,payments", "log.*"]).unwrap();
        let cluster = Cluster::new(&properties).unwrap();
        let mut watch = Watch::new(cluster, selection, Default::default(), commands, silent());
        watch.tell_missing(&["orders".to_owned()]);
        assert_eq!(watch.missing, BTreeSet::from(["payments".to_owned()]));
        watch.tell_missing(&["orders".to_owned(), "payments".to_owned()]);
        assert!(watch.missing.is_empty());
    }

    #[test]
    fn topics_that_keep_no_history_need_their_plain_name() {
        let check = |arguments: &[&str], name: &str, compacted, internal, wanted: bool| {
            let selection = TopicSelection::parse(arguments).unwrap();
            assert_eq!(
                selected(&selection, name, compacted, internal),
                wanted,
                "{arguments:?} {name}"
            );
        };
        check(&["orders"], "orders", false, false, true);
        check(&["or.*"], "orders", false, false, true);
        check(&["or.*"], "orders", true, false, false);
        check(&["orders"], "orders", true, false, true);
        check(&[".*"], "__consumer_offsets", false, false, false);
        check(
            &["__consumer_offsets"],
            "__consumer_offsets",
            true,
            true,
            true,
        );
        check(&[".*"], "app-store-changelog", false, false, false);
        check(&[".*"], "app-repartition", false, false, false);
        check(&[".*"], "hidden", false, true, false);
    }
}
