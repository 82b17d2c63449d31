//! What is picked, held back, left out and told, by what the cluster says of its topics.

use prometheus::Registry;

use super::*;
use crate::logged::logged;

fn metrics() -> Metrics {
    Metrics::register(&Registry::new()).unwrap()
}

/// A refused subscription used to count as made, and its topics were never archived.
#[tokio::test]
async fn a_subscription_that_is_refused_is_tried_again() {
    let properties = [("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())];
    let (commands, mut queue) = mpsc::channel(8);
    let selection = TopicSelection::parse(&["orders"]).unwrap();
    let cluster = Cluster::new(&properties).unwrap();
    let mut watch = Watch::new(cluster, selection, Default::default(), commands, &metrics());
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

/// A regex with a slip in it used to go unseen beside a word that matches.
#[test]
fn a_word_that_means_no_topic_is_told_once() {
    let mut watch = watch(&["orders,payments", "lgo.*", "log.*"]);
    let unmatched = watch.unmatched_topics.clone();
    let mut told = |there: &[&str]| {
        let there = there.iter().copied().collect();
        logged(|| watch.tell_unmatched(&there))
    };
    let log = told(&["orders", "logins"]);
    let warned = |word: &str| {
        log.lines()
            .any(|line| line.contains("WARN") && line.contains(word))
    };
    assert!(
        warned("topic=\"payments\"") && warned("regex=\"lgo.*\""),
        "{log}"
    );
    assert_eq!(log.lines().count(), 2, "{log}");
    assert_eq!(told(&["orders", "logins"]), "");
    assert_eq!(unmatched.get(), 2);
    assert_eq!(told(&["orders", "payments", "logins"]), "");
    assert_eq!(unmatched.get(), 1);
    let log = told(&["orders", "payments"]);
    assert!(
        log.contains("regex=\"log.*\"") && log.lines().count() == 1,
        "{log}"
    );
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

/// It used to be told in one line and nowhere else, while retention removed what nobody archived.
#[test]
fn topics_that_are_held_back_are_counted_and_told_again() {
    let mut watch = watch(&["t.*", "table"]);
    let names = ["table", "tea", "toast"].map(str::to_owned);
    let held_back = watch.held_back_topics.clone();
    let mut told = Vec::new();
    for look in 1..=2 * TOLD_AGAIN_LOOKS + 1 {
        let log = logged(|| watch.tell_untold(&names, None));
        assert_eq!(held_back.get(), 2, "at any time");
        if !log.is_empty() {
            assert!(
                log.contains("WARN") && log.contains("[\"tea\", \"toast\"]"),
                "{log}"
            );
            told.push(look);
        }
    }
    assert_eq!(told, [UNTOLD_LOOKS, UNTOLD_LOOKS + TOLD_AGAIN_LOOKS]);
    for name in ["tea", "toast"] {
        let configs = TopicConfigs::default();
        watch.known_configs.insert(name.to_owned(), configs);
    }
    assert_eq!(logged(|| watch.tell_untold(&names, None)), "");
    assert_eq!(held_back.get(), 0);
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

/// They all began with the same question: if that one was never answered, the others were never put.
#[test]
fn looks_that_ask_for_all_begin_with_another_question_each() {
    let mut watch = watch(&["t.*"]);
    for requests in 2..=30 {
        let names: Vec<String> = (0..requests * REQUEST_TOPICS)
            .map(|number| format!("t{number:04}"))
            .collect();
        let looks = (0..).map(|time| time * CONFIGS_EVERY).take(requests);
        let firsts: BTreeSet<String> = looks
            .map(|look| {
                watch.looks = look;
                let mut wanted = watch.configs_wanted(&names);
                assert_eq!(wanted.len(), names.len());
                wanted.swap_remove(0)
            })
            .collect();
        assert_eq!(firsts.len(), requests);
    }
}

fn watch(arguments: &[&str]) -> Watch {
    let properties = [("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())];
    let (commands, _queue) = mpsc::channel(1);
    let selection = TopicSelection::parse(arguments).unwrap();
    let cluster = Cluster::new(&properties).unwrap();
    Watch::new(cluster, selection, Default::default(), commands, &metrics())
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

/// It used to be told as a topic that was never archived is, at INFO.
#[test]
fn a_topic_that_is_archived_and_becomes_compacted_is_told_loudly() {
    let mut watch = watch(&["or.*"]);
    let id = TopicId::from_uuid(uuid::Uuid::from_u128(1)).unwrap();
    let seen = Seen {
        topic: "orders".to_owned(),
        id: Some(id),
        agreed: true,
    };
    let there = BTreeSet::from(["orders"]);
    let mut look = |policy: &str, topics: BTreeSet<String>| {
        let all = BTreeMap::from([("cleanup.policy".to_owned(), policy.to_owned())]);
        let configs = TopicConfigs { all };
        watch.known_configs.insert("orders".to_owned(), configs);
        logged(|| {
            watch.tell_left_out(&there);
            watch.tell_fates(&there, &topics, std::slice::from_ref(&seen));
        })
    };
    let picked = || BTreeSet::from(["orders".to_owned()]);
    assert_eq!(look("delete", picked()), "");
    let log = look("compact,delete", BTreeSet::new());
    for part in [
        "WARN",
        "topic=\"orders\"",
        "kind=\"compacted\"",
        "ends here",
        "plain name",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!(log.lines().count(), 1, "{log}");
    assert_eq!(look("compact,delete", BTreeSet::new()), "");
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
