//! Watches the cluster: which topics there are and match, what they are configured to, which incarnation they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::sync::RwLock;
use std::time::Duration;

use everlog_format::{TopicId, TopicName, TopicSelection};
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
/// A new topic is in some broker's metadata before all know it: what is not told in this many looks running is told of.
const UNTOLD_LOOKS: u32 = 2;
/// Topics that a line names; of more only the number is told.
const NAMED_MAX: usize = 20;

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
        let mut candidates: Vec<String> = view
            .topics
            .iter()
            .map(|topic| topic.name.clone())
            .filter(|name| selected(&self.selection, name, false, false))
            .collect();
        candidates.sort();
        let error = self.learn_configs(&candidates).await;
        self.mark().await;
        let described = self.describe(&candidates, &view).await?;
        self.tell_missing(&candidates);
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
        let there = view.topics.iter().map(|topic| topic.name.as_str());
        let there: BTreeSet<&str> = there.collect();
        self.tell_left_out(&there);
        self.tell_fates(&there, &topics, &described);
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

    /// Whether a topic is held back until its configuration is known: it may be compacted, and only a regex matches it.
    fn awaits_configs(&self, topic: &str) -> bool {
        !self.known_configs.contains_key(topic) && !self.selection.matches(topic, true)
    }

    /// Says once of topics that are held back that they are, why, and what to do.
    fn tell_untold(&mut self, candidates: &[String], error: Option<&ClusterError>) {
        let untold = candidates
            .iter()
            .filter(|topic| self.awaits_configs(topic) && !self.internal.contains(*topic));
        let looks = |topic: &String| self.untold.get(topic).map_or(1, |looks| looks + 1);
        self.untold = untold.map(|topic| (topic.clone(), looks(topic))).collect();
        let due = self
            .untold
            .iter()
            .filter(|(_, looks)| **looks == UNTOLD_LOOKS);
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
            if self.left_out.get(topic) != Some(kind) {
                tracing::info!(
                    topic,
                    kind,
                    "not archived, though a regex matches it: a topic of this kind needs its plain name in `topics`"
                );
            }
        }
        self.left_out = left_out;
    }

    /// Says of each topic that is being archived if it is gone, or another one with the same name.
    fn tell_fates(&mut self, there: &BTreeSet<&str>, topics: &BTreeSet<String>, seen: &[Seen]) {
        self.archived.retain(|topic, topic_id| {
            if !there.contains(topic.as_str()) {
                tracing::warn!(
                    topic,
                    %topic_id,
                    "a topic that is being archived is gone from the cluster (deleted, or not permitted any more): what was \
                     fetched before its id was last seen is committed, what came later is dropped, and the archive keeps \
                     what it holds"
                );
            }
            topics.contains(topic)
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

    /// The topics to ask for, in this order. Each look begins elsewhere, so that a question that is never answered does not
    /// keep others from being put.
    fn configs_wanted(&self, candidates: &[String]) -> Vec<String> {
        let all = self.looks.is_multiple_of(CONFIGS_EVERY);
        let is_wanted = |name: &String| {
            let is_new = !self.known_configs.contains_key(name) && self.configs_told;
            all || is_new || self.awaits_configs(name)
        };
        let wanted = candidates.iter().filter(|name| is_wanted(name));
        let mut wanted: Vec<String> = wanted.cloned().collect();
        let requests = wanted.len().div_ceil(REQUEST_TOPICS).max(1);
        let turn = usize::try_from(self.looks).unwrap_or(0) % requests;
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
mod tests {
    use super::*;
    use crate::logged::logged;

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
        let mut watch = watch(&["orders,payments", "log.*"]);
        watch.tell_missing(&["orders".to_owned()]);
        assert_eq!(watch.missing, BTreeSet::from(["payments".to_owned()]));
        watch.tell_missing(&["orders".to_owned(), "payments".to_owned()]);
        assert!(watch.missing.is_empty());
    }

    /// A topic that is not known to be no compacted one used to be archived because a regex matched it: for minutes while
    /// the question timed out, and for ever without the right to ask it.
    #[test]
    fn a_topic_that_only_a_regex_matches_waits_for_its_configuration() {
        let mut watch = watch(&["t.*", "table"]);
        let names = ["table", "t-hidden", "tea"].map(str::to_owned);
        let told = TopicConfigs {
            all: BTreeMap::from([("cleanup.policy".to_owned(), "delete".to_owned())]),
        };
        watch.known_configs.insert("tea".to_owned(), told);
        assert_eq!(
            names.each_ref().map(|name| watch.awaits_configs(name)),
            [false, true, false]
        );
        // A new topic may be told in the next look.
        assert_eq!(logged(|| watch.tell_untold(&names, None)), "");
        let log = logged(|| watch.tell_untold(&names, None));
        for part in [
            "WARN",
            "[\"t-hidden\"]",
            "DescribeConfigs",
            "name them plainly",
        ] {
            assert!(log.contains(part), "{part}: {log}");
        }
        assert_eq!(logged(|| watch.tell_untold(&names, None)), "");
        // One whose turn comes only now is told of by itself.
        let more = ["t-hidden", "t-new"].map(str::to_owned);
        assert_eq!(logged(|| watch.tell_untold(&more, None)), "");
        assert!(logged(|| watch.tell_untold(&more, None)).contains("[\"t-new\"]"));
    }

    /// After one question that was not answered nothing was asked for minutes, and what came after it never.
    #[test]
    fn what_is_held_back_is_asked_for_in_every_look() {
        let mut watch = watch(&["t.*", "plain"]);
        let mut names: Vec<String> = (0..500).map(|number| format!("t{number:03}")).collect();
        names.insert(0, "plain".to_owned());
        watch.configs_told = false;
        assert_eq!(watch.configs_wanted(&names), names);
        let firsts = [1, 2, 3, 4].map(|look| {
            watch.looks = look;
            let wanted = watch.configs_wanted(&names);
            assert_eq!(wanted.len(), 500);
            wanted[0].clone()
        });
        assert_eq!(firsts, ["t200", "t400", "t000", "t200"]);
    }

    fn watch(arguments: &[&str]) -> Watch {
        let properties = [("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())];
        let (commands, _queue) = mpsc::channel(1);
        let selection = TopicSelection::parse(arguments).unwrap();
        let cluster = Cluster::new(&properties).unwrap();
        Watch::new(cluster, selection, Default::default(), commands, silent())
    }

    /// Used to be left out without a word.
    #[test]
    fn a_topic_that_a_regex_matches_and_may_not_pick_is_told_once() {
        let mut watch = watch(&["app-.*|__.*|t.*", "app-a-changelog"]);
        let compacted = BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
        let configs = TopicConfigs { all: compacted };
        watch.known_configs.insert("table".to_owned(), configs);
        watch.internal.insert("t-hidden".to_owned());
        let mut there = BTreeSet::from([
            "__consumer_offsets",
            "app-a-changelog",
            "app-b-changelog",
            "orders-changelog",
            "table",
            "t-hidden",
            "t-ordinary",
        ]);
        let log = logged(|| watch.tell_left_out(&there));
        let has = |topic: &str, kind: &str| {
            log.lines().any(|line| {
                line.contains("INFO")
                    && line.contains(&format!("topic=\"{topic}\""))
                    && line.contains(&format!("kind=\"{kind}\""))
                    && line.contains("plain name")
            })
        };
        assert!(has("__consumer_offsets", "internal"), "{log}");
        assert!(has("app-b-changelog", "of Kafka Streams"), "{log}");
        assert!(has("table", "compacted") && has("t-hidden", "internal"));
        assert_eq!(log.lines().count(), 4, "{log}");
        assert_eq!(logged(|| watch.tell_left_out(&there)), "");
        // One that was away for a while is told again.
        there.remove("table");
        assert_eq!(logged(|| watch.tell_left_out(&there)), "");
        there.insert("table");
        assert_eq!(logged(|| watch.tell_left_out(&there)).lines().count(), 1);
    }

    /// The log used to name partitions at best, and nothing where the fetcher was the first to know.
    #[test]
    fn a_topic_that_is_gone_or_made_anew_is_told_once_by_name_and_id() {
        let mut watch = watch(&["orders,other"]);
        let id = |number| TopicId::from_uuid(uuid::Uuid::from_u128(number)).unwrap();
        let seen = |topic: &str, number| Seen {
            topic: topic.to_owned(),
            id: Some(id(number)),
            agreed: true,
        };
        let mut look = |names: &[&str], seen: &[Seen]| {
            let there: BTreeSet<&str> = names.iter().copied().collect();
            let topics = names.iter().map(|name| (*name).to_owned()).collect();
            logged(|| watch.tell_fates(&there, &topics, seen))
        };
        let both = ["orders", "other"];
        assert_eq!(look(&both, &[seen("orders", 1), seen("other", 2)]), "");
        // A broker that does not tell an id for a moment is no news.
        assert_eq!(look(&both, &[seen("other", 2)]), "");
        let anew = look(&both, &[seen("orders", 3), seen("other", 2)]);
        for part in [
            "WARN",
            "\"orders\"",
            &id(1).to_string(),
            &id(3).to_string(),
            "created again",
        ] {
            assert!(anew.contains(part), "{part}: {anew}");
        }
        let gone = look(&["other"], &[seen("other", 2)]);
        for part in [
            "WARN",
            "\"orders\"",
            &id(3).to_string(),
            "is gone",
            "is committed",
        ] {
            assert!(gone.contains(part), "{part}: {gone}");
        }
        assert_eq!(gone.lines().count(), 1);
        assert_eq!(look(&["other"], &[seen("other", 2)]), "");
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
