//! Watches the cluster: which topics there are and match, what they are configured to, which incarnation they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::sync::RwLock;
use std::time::Duration;

use everlog_format::{TopicId, TopicName, TopicSelection};
use prometheus::{Gauge, IntGauge};
use tokio::sync::{mpsc, oneshot};

use crate::clock::now;
use crate::cluster::{Cluster, ClusterError, ClusterView, TopicConfigs};
use crate::decide::Backoff;
use crate::message::{Command, Seen};
use crate::metrics::Metrics;
use crate::silence::counted;

/// How often the cluster is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Configurations are asked for anew in every so many looks, and at once for topics not seen before.
const CONFIGS_EVERY: u32 = 30;
/// Topics in one request.
const REQUEST_TOPICS: usize = 200;
/// A new topic is in some broker's metadata before all know it: what is not told in this many looks running is told of.
const UNTOLD_LOOKS: u32 = 2;
/// What is not told for long is told of again in every so many looks, some five minutes apart.
const TOLD_AGAIN_LOOKS: u32 = 30;
/// Topics that a line names; of more only the number is told.
const NAMED_MAX: usize = 20;

/// The configurations of all topics that match; written by the watch, read by everybody.
#[derive(Debug, Default)]
pub(crate) struct Facts(RwLock<HashMap<String, TopicConfigs>>);

impl Facts {
    /// Defaults if nothing is known.
    pub(crate) fn configs(&self, name: &str) -> TopicConfigs {
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
            .retention()
    }

    fn set(&self, name: &str, configs: TopicConfigs) {
        self.0
            .write()
            .expect("no writer panics")
            .insert(name.to_owned(), configs);
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
    /// How many topics are held back.
    held_back_topics: IntGauge,
    /// Words of the selection that mean no topic of the cluster, and how many they are.
    unmatched: BTreeSet<String>,
    unmatched_topics: IntGauge,
    /// Topics that a regex matches and may not pick.
    left_out: BTreeMap<String, &'static str>,
    /// Topics that are being archived, as they were last seen.
    archived: BTreeMap<String, TopicId>,
    /// What librdkafka took last.
    subscribed: Option<BTreeSet<String>>,
    /// Whether the last question was answered. If not, it is not put again for a while for topics that were named plainly:
    /// they are archived, whatever they are.
    configs_told: bool,
    /// Topics that are held back since their configurations are not told, and for how many looks.
    untold: BTreeMap<String, u32>,
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
        metrics: &Metrics,
    ) -> Watch {
        Watch {
            cluster,
            selection,
            facts,
            commands,
            known_configs: HashMap::new(),
            internal: BTreeSet::new(),
            silent_seconds: metrics.cluster_silent_seconds.clone(),
            held_back_topics: metrics.held_back_topics.clone(),
            unmatched: BTreeSet::new(),
            unmatched_topics: metrics.unmatched_topics.clone(),
            left_out: BTreeMap::new(),
            archived: BTreeMap::new(),
            subscribed: None,
            configs_told: true,
            untold: BTreeMap::new(),
            looks: 0,
        }
    }

    /// Looks until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(LOOK_EVERY);
        let silent_seconds = self.silent_seconds.clone();
        let mut answered = now();
        let mut silent_since = None;
        loop {
            let pause = match counted(&silent_seconds, silent_since, self.look()).await {
                Ok(()) => {
                    answered = now();
                    silent_since = None;
                    silent_seconds.set(0.0);
                    backoff = Backoff::new(LOOK_EVERY);
                    LOOK_EVERY
                }
                Err(error) => {
                    silent_since = Some(answered);
                    let (pause, log) = backoff.failed(rand::random());
                    if log {
                        let error = &error as &dyn Error;
                        tracing::warn!(error, ?pause, "the cluster can't be looked at, will retry");
                    }
                    pause
                }
            };
            counted(&silent_seconds, silent_since, tokio::time::sleep(pause)).await;
        }
    }

    async fn look(&mut self) -> Result<(), ClusterError> {
        let view = self.cluster.metadata(None).await?;
        let mut candidates: Vec<String> = view
            .topics
            .iter()
            .filter(|name| selected(&self.selection, name, false, false))
            .cloned()
            .collect();
        candidates.sort();
        let error = self.learn_configs(&candidates).await;
        self.mark().await;
        let described = self.describe(&candidates, &view).await?;
        let there: BTreeSet<&str> = view.topics.iter().map(String::as_str).collect();
        self.tell_unmatched(&there);
        self.tell_untold(&candidates, error.as_ref());
        let topics: BTreeSet<String> = candidates
            .into_iter()
            .filter(|name| !self.awaits_configs(name))
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
        for topic in &topics {
            let configs = self.known_configs.get(topic).cloned().unwrap_or_default();
            self.facts.set(topic, configs);
        }
        self.tell_left_out(&there);
        self.tell_fates(&there, &topics, &described);
        self.tell(topics, described).await;
        self.looks = self.looks.wrapping_add(1);
        Ok(())
    }

    /// Says once of each name and regex of the selection that it means no topic of the cluster: there may be a slip in it.
    fn tell_unmatched(&mut self, there: &BTreeSet<&str>) {
        let unmatched = self.selection.unmatched(there.iter().copied());
        let unmatched: BTreeSet<String> = unmatched.into_iter().map(str::to_owned).collect();
        for word in unmatched.difference(&self.unmatched) {
            if self.selection.is_plain_name(word) {
                let topic = word;
                tracing::warn!(
                    topic,
                    "the cluster has no topic of this name, keeping watch for it"
                );
            } else {
                let regex = word;
                tracing::warn!(
                    regex,
                    "no topic of the cluster matches this regex, keeping watch for one"
                );
            }
        }
        self.unmatched = unmatched;
        let count = i64::try_from(self.unmatched.len()).unwrap_or(i64::MAX);
        self.unmatched_topics.set(count);
    }

    /// Whether a topic is held back until its configuration is known: it may be compacted, and only a regex matches it.
    fn awaits_configs(&self, topic: &str) -> bool {
        !self.known_configs.contains_key(topic) && !self.selection.matches(topic, true)
    }

    /// Says of topics that are held back that they are, why, and what to do; again for as long as it lasts, since retention
    /// goes on. The metric tells at any time.
    fn tell_untold(&mut self, candidates: &[String], error: Option<&ClusterError>) {
        let untold = candidates
            .iter()
            .filter(|topic| self.awaits_configs(topic) && !self.internal.contains(*topic));
        let looks = |topic: &String| {
            self.untold
                .get(topic)
                .map_or(1, |looks| looks.saturating_add(1))
        };
        self.untold = untold.map(|topic| (topic.clone(), looks(topic))).collect();
        self.held_back_topics
            .set(i64::try_from(self.untold.len()).unwrap_or(i64::MAX));
        let due = self.untold.iter().filter(|(_, looks)| {
            let since_first = looks.checked_sub(UNTOLD_LOOKS);
            since_first.is_some_and(|looks| looks.is_multiple_of(TOLD_AGAIN_LOOKS))
        });
        let topics: Vec<&String> = due.map(|(topic, _)| topic).collect();
        if topics.is_empty() {
            return;
        }
        tracing::warn!(
            count = topics.len(),
            topics = ?topics.iter().take(NAMED_MAX).collect::<Vec<_>>(),
            error = error.map(|error| error as &dyn Error),
            "not archived yet, though a regex matches them: the cluster does not tell these topics' configurations, and they may \
             be compacted. The archiver's user needs the right DescribeConfigs on them; or name them plainly in `topics`"
        );
    }

    /// Why a topic that a regex matches is not archived; `None` if it is, or if none matches.
    fn why_left_out(&self, topic: &str) -> Option<&'static str> {
        if self.selection.is_plain_name(topic) || !self.selection.a_regex_matches(topic) {
            return None;
        }
        let configs = self.known_configs.get(topic);
        if topic.starts_with("__") || self.internal.contains(topic) {
            Some("internal")
        } else if TopicSelection::name_needs_plain_name(topic) {
            Some("of Kafka Streams")
        } else {
            configs
                .is_some_and(TopicConfigs::is_compacted)
                .then_some("compacted")
        }
    }

    /// Says once of each topic that a regex matches and may not pick that it is left out, why, and what to do.
    fn tell_left_out(&mut self, there: &BTreeSet<&str>) {
        let found = there
            .iter()
            .filter_map(|topic| Some(((*topic).to_owned(), self.why_left_out(topic)?)));
        let left_out: BTreeMap<String, &'static str> = found.collect();
        for (topic, kind) in &left_out {
            // Of one that was archived until now, its fate is told.
            if self.left_out.get(topic) != Some(kind) && !self.archived.contains_key(topic) {
                tracing::info!(
                    topic,
                    kind,
                    "not archived, though a regex matches it: a topic of this kind needs its plain name in `topics`"
                );
            }
        }
        self.left_out = left_out;
    }

    /// Says of each topic that is being archived if it is gone, may not be picked any more, or is another one with the same
    /// name.
    fn tell_fates(&mut self, there: &BTreeSet<&str>, topics: &BTreeSet<String>, seen: &[Seen]) {
        self.archived.retain(|topic, topic_id| {
            if topics.contains(topic) {
                return true;
            }
            if there.contains(topic.as_str()) {
                let kind = self.left_out.get(topic);
                tracing::warn!(
                    topic,
                    %topic_id,
                    kind,
                    "archiving of this topic ends here: it is of another kind now, which a regex does not pick; to go on, give its \
                     plain name in `topics`. The archive keeps what it holds"
                );
            } else {
                tracing::warn!(
                    topic,
                    %topic_id,
                    "a topic that is being archived is gone from the cluster (deleted, or not permitted any more): what was \
                     fetched before its id was last seen is committed, what came later is dropped, and the archive keeps \
                     what it holds"
                );
            }
            false
        });
        for Seen { topic, id, .. } in seen.iter().filter(|seen| topics.contains(&seen.topic)) {
            let Some(new_id) = *id else { continue };
            let before = self.archived.insert(topic.clone(), new_id);
            if let Some(old_id) = before.filter(|before| *before != new_id) {
                tracing::warn!(
                    topic,
                    %old_id,
                    %new_id,
                    "a topic that is being archived was deleted and created again: what was fetched of the old one before \
                     its id was last seen is committed, what came later is dropped, and the new one is archived apart"
                );
            }
        }
    }

    async fn tell(&mut self, topics: BTreeSet<String>, described: Vec<Seen>) {
        let is_new = self.subscribed.as_ref() != Some(&topics);
        let is_taken = is_new && self.subscribe(&topics).await;
        if is_taken {
            if topics.is_empty() && !self.untold.is_empty() {
                tracing::info!(
                    count = self.untold.len(),
                    "no topic is archived until the cluster has told the configurations of those that match"
                );
            } else if topics.is_empty() {
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

    /// The error with which the question ended, if it did.
    async fn learn_configs(&mut self, candidates: &[String]) -> Option<ClusterError> {
        self.known_configs
            .retain(|name, _| candidates.binary_search(name).is_ok());
        let wanted = self.configs_wanted(candidates);
        for names in wanted.chunks(REQUEST_TOPICS) {
            match self.cluster.configs(names).await {
                Ok(found) => {
                    self.configs_told = true;
                    self.known_configs.extend(found);
                }
                // Not the rest now: each question may take its whole time-out, and the topics' ids wait for it.
                Err(error) => {
                    self.configs_told = false;
                    return Some(error);
                }
            }
        }
        None
    }

    /// The topics to ask for, in this order. Each look begins elsewhere, and so does each of the looks that ask for all, so
    /// that a question that is never answered does not keep others from being put.
    fn configs_wanted(&self, candidates: &[String]) -> Vec<String> {
        let all = self.looks.is_multiple_of(CONFIGS_EVERY);
        let is_wanted = |name: &String| {
            let is_new = !self.known_configs.contains_key(name) && self.configs_told;
            all || is_new || self.awaits_configs(name)
        };
        let wanted = candidates.iter().filter(|name| is_wanted(name));
        let mut wanted: Vec<String> = wanted.cloned().collect();
        let requests = wanted.len().div_ceil(REQUEST_TOPICS).max(1);
        // Looks that ask for all are far apart: counted with the others, most of them would begin at the same place.
        let turn = match all {
            true => self.looks / CONFIGS_EVERY,
            false => self.looks,
        };
        let turn = usize::try_from(turn).unwrap_or(0) % requests;
        wanted.rotate_left(turn * REQUEST_TOPICS);
        wanted
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
#[path = "watch_tests.rs"]
mod tests;
