//! Which topics an operator means: plain names and regexes on the whole name.
//!
//! Used by the archiver (what to archive), by the proxy (what to serve from the archive) and by the tools, so that the
//! same text means the same topics everywhere.

use std::collections::BTreeSet;
use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

use crate::TopicName;

/// A set of topics, given by what the operator wrote.
///
/// An argument made of nothing but `A-Z a-z 0-9 . _ -` is a name (so `pay.v1` is no regex), and commas part such names.
/// Anything else is one regex, matched against the whole name, byte by byte and case sensitive.
#[derive(Clone, Debug)]
pub struct TopicSelection {
    everything: bool,
    names: BTreeSet<TopicName>,
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    written: String,
    anchored: Regex,
}

/// What cannot be a selection of topics. The operator has to write it anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelection {
    /// Nothing was given.
    #[error("no topic is named")]
    Empty,
    /// A name that no topic can have.
    #[error("{text:?} is no topic name: {why}")]
    Name {
        /// The part.
        text: String,
        /// Which rule it breaks.
        why: String,
    },
    /// A regex that does not compile.
    #[error(
        "{text:?} is taken as a regex, since it is no plain name, and is not a valid one: {why}"
    )]
    Regex {
        /// As written.
        text: String,
        /// The regex engine's complaint, on one line.
        why: String,
    },
    /// Names and regexes in one argument. Silently it would match nothing, since no name holds a comma.
    #[error(
        "{text:?} is taken as one regex, and no topic name holds a comma: give each regex by itself"
    )]
    Comma {
        /// As written.
        text: String,
    },
}

/// Whether a topic with this `cleanup.policy` (a list of words, parted by commas) is compacted, and so needs its plain name.
pub fn is_compacted(cleanup_policy: &str) -> bool {
    cleanup_policy
        .split(',')
        .any(|word| word.trim() == "compact")
}

fn is_plain(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

impl TopicSelection {
    /// Reads what the operator gave, one string per argument.
    pub fn parse<S: AsRef<str>>(arguments: &[S]) -> Result<TopicSelection, InvalidSelection> {
        let mut selection = TopicSelection {
            everything: false,
            names: BTreeSet::new(),
            patterns: Vec::new(),
        };
        for argument in arguments {
            let argument = argument.as_ref().trim();
            if argument.split(',').all(|part| is_plain(part.trim())) {
                for part in argument.split(',') {
                    selection.names.insert(name(part.trim())?);
                }
            } else {
                selection.patterns.push(pattern(argument)?);
            }
        }
        if selection.names.is_empty() && selection.patterns.is_empty() {
            return Err(InvalidSelection::Empty);
        }
        Ok(selection)
    }

    /// Every topic, also those that otherwise need their plain name: for a proxy that serves whatever was archived.
    pub fn everything() -> TopicSelection {
        TopicSelection {
            everything: true,
            names: BTreeSet::new(),
            patterns: Vec::new(),
        }
    }

    /// Whether `topic` is meant. `needs_plain_name` is the caller's knowledge that the topic is compacted or internal;
    /// what the name itself shows ([`TopicSelection::name_needs_plain_name`]) is taken into account here.
    pub fn matches(&self, topic: &str, needs_plain_name: bool) -> bool {
        if self.everything || self.is_plain_name(topic) {
            return true;
        }
        !needs_plain_name
            && !TopicSelection::name_needs_plain_name(topic)
            && self.a_regex_matches(topic)
    }

    /// Whether a regex matches `topic`, though it may not pick it (see [`TopicSelection::matches`]): to tell the operator
    /// why a topic is left out.
    pub fn a_regex_matches(&self, topic: &str) -> bool {
        self.patterns
            .iter()
            .any(|pattern| pattern.anchored.is_match(topic.as_bytes()))
    }

    /// Whether `topic` was given by its plain name.
    pub fn is_plain_name(&self, topic: &str) -> bool {
        TopicName::new(topic).is_ok_and(|name| self.names.contains(&name))
    }

    /// The plain names, in order: each is expected to exist.
    pub fn plain_names(&self) -> impl Iterator<Item = &TopicName> {
        self.names.iter()
    }

    /// What of the operator's words means none of `topics`: a slip, or not there yet.
    pub fn unmatched<'a>(&self, topics: impl IntoIterator<Item = &'a str>) -> Vec<&str> {
        let topics: Vec<&str> = topics.into_iter().collect();
        let names = self.names.iter().map(TopicName::as_str);
        let names = names.filter(|name| !topics.contains(name));
        let is_met = |pattern: &&Pattern| {
            topics.iter().any(|topic| {
                !TopicSelection::name_needs_plain_name(topic)
                    && pattern.anchored.is_match(topic.as_bytes())
            })
        };
        let patterns = self.patterns.iter().filter(|pattern| !is_met(pattern));
        let patterns = patterns.map(|pattern| pattern.written.as_str());
        names.chain(patterns).collect()
    }

    /// Internal topics (`__*`) and those of Kafka Streams (`*-changelog`, `*-repartition`): a regex never picks them.
    pub fn name_needs_plain_name(topic: &str) -> bool {
        topic.starts_with("__") || topic.ends_with("-changelog") || topic.ends_with("-repartition")
    }
}

fn name(part: &str) -> Result<TopicName, InvalidSelection> {
    if part.is_empty() {
        return Err(InvalidSelection::Name {
            text: String::new(),
            why: "it is empty".to_owned(),
        });
    }
    TopicName::new(part).map_err(|_| InvalidSelection::Name {
        text: part.chars().take(80).collect(),
        why: "a name has 1 to 249 characters and is neither . nor ..".to_owned(),
    })
}

fn pattern(text: &str) -> Result<Pattern, InvalidSelection> {
    if has_literal_comma(text) {
        return Err(InvalidSelection::Comma {
            text: text.to_owned(),
        });
    }
    let invalid = |err: regex::Error| {
        let said = err.to_string();
        // The engine draws a picture over several lines; its last line says what is wrong.
        let why = said
            .lines()
            .last()
            .unwrap_or_default()
            .trim()
            .trim_start_matches("error: ")
            .to_owned();
        InvalidSelection::Regex {
            text: text.to_owned(),
            why,
        }
    };
    // Names are ASCII, so bytes do. Compiled once as written: wrapping could make sense of half a group.
    let compile = |text: &str| {
        RegexBuilder::new(text)
            .unicode(false)
            .size_limit(1 << 20)
            .build()
    };
    compile(text).map_err(invalid)?;
    let anchored = compile(&format!("^(?:{text})$")).map_err(invalid)?;
    Ok(Pattern {
        written: text.to_owned(),
        anchored,
    })
}

/// Whether a comma stands where it would have to be part of a name: not in `{1,3}` and not in a class.
fn has_literal_comma(pattern: &str) -> bool {
    let (mut escaped, mut in_class, mut in_count) = (false, false, false);
    for c in pattern.chars() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match c {
            '\\' => escaped = true,
            '[' => in_class = true,
            ']' => in_class = false,
            '{' => in_count = true,
            '}' => in_count = false,
            ',' if !in_class && !in_count => return true,
            _ => {}
        }
    }
    false
}

impl fmt::Display for TopicSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.everything {
            return f.write_str("every topic");
        }
        let names = self.names.iter().map(TopicName::as_str);
        let patterns = self.patterns.iter().map(|pattern| pattern.written.as_str());
        for (index, text) in names.chain(patterns).enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            f.write_str(text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> TopicSelection {
        TopicSelection::parse(arguments).expect("a selection")
    }

    #[track_caller]
    fn check(arguments: &[&str], yes: &[&str], no: &[&str]) {
        let selection = parse(arguments);
        for topic in yes {
            assert!(
                selection.matches(topic, false),
                "{selection} should match {topic}"
            );
        }
        for topic in no {
            assert!(
                !selection.matches(topic, false),
                "{selection} should not match {topic}"
            );
        }
    }

    #[test]
    fn a_plain_name_is_no_regex() {
        check(&["pay.v1"], &["pay.v1"], &["payxv1", "pay.v1x"]);
        check(&["a,b.c, d_e-f"], &["a", "b.c", "d_e-f"], &["a,b.c", "bxc"]);
    }

    #[test]
    fn a_regex_is_matched_against_the_whole_name() {
        check(
            &["pay.*"],
            &["pay", "payments", "pay.v1"],
            &["repay", "orders"],
        );
        check(&["a|b"], &["a", "b"], &["ax", "xb", "ab"]);
        check(&["(?i)pay.*"], &["Payments"], &["orders"]);
        check(&[r"t\d+"], &["t12"], &["t12x"]);
    }

    #[test]
    fn a_comma_inside_a_regex_survives() {
        check(&["a{1,3}"], &["a", "aaa"], &["aaaa", "a{1"]);
        check(&["x[0-9,]"], &["x1"], &["x"]);
        assert_eq!(
            TopicSelection::parse(&["orders,pay.*"]).map(|s| s.to_string()),
            Err(InvalidSelection::Comma {
                text: "orders,pay.*".to_owned()
            })
        );
    }

    #[test]
    fn special_topics_need_their_plain_name() {
        check(
            &[".*"],
            &["orders"],
            &[
                "__consumer_offsets",
                "app-store-changelog",
                "app-x-repartition",
            ],
        );
        check(
            &["__consumer_offsets"],
            &["__consumer_offsets"],
            &["orders"],
        );
        assert!(
            !parse(&["ord.*"]).matches("orders", true),
            "a compacted topic under a regex"
        );
        assert!(
            parse(&["orders"]).matches("orders", true),
            "a compacted topic by its name"
        );
        assert!(TopicSelection::everything().matches("__consumer_offsets", true));
        assert!(parse(&[".*"]).a_regex_matches("__consumer_offsets"));
        assert!(!parse(&["pay.*", "orders"]).a_regex_matches("orders"));
    }

    /// The proxy used to look for the letters anywhere in the policy, the archiver for the word.
    #[test]
    fn compaction_is_a_word_of_the_policy() {
        for policy in ["compact", "compact,delete", "delete, compact"] {
            assert!(is_compacted(policy), "{policy:?}");
        }
        for policy in ["", "delete", "delete,compacted-elsewhere"] {
            assert!(!is_compacted(policy), "{policy:?}");
        }
    }

    #[test]
    fn what_means_no_topic_is_known() {
        let topics = ["orders", "payments", "app-x-changelog"];
        let unmatched = |words: &[&str]| parse(words).unmatched(topics).join(" ");
        assert_eq!(unmatched(&["orders", "pay.*"]), "");
        assert_eq!(unmatched(&["orders,oders", "pay", "x.*"]), "oders pay x.*");
        // A regex never picks it, so it does not count as met either.
        assert_eq!(unmatched(&["app-.*"]), "app-.*");
        assert_eq!(TopicSelection::everything().unmatched([]).len(), 0);
    }

    #[test]
    fn what_can_never_match_is_refused() {
        use InvalidSelection::{Empty, Name, Regex};
        let parse = |arguments: &[&str]| TopicSelection::parse(arguments).expect_err("refused");
        assert_eq!(parse(&[]), Empty);
        assert!(matches!(parse(&["orders,,pay"]), Name { .. }));
        assert!(matches!(parse(&[""]), Name { .. }));
        assert!(matches!(parse(&[".."]), Name { .. }));
        assert!(matches!(parse(&["pay(.*"]), Regex { .. }));
        assert!(matches!(parse(&["a)(b"]), Regex { .. }));
        let Regex { why, .. } = parse(&["pay(.*"]) else {
            unreachable!()
        };
        assert_eq!(why, "unclosed group");
    }

    #[test]
    fn it_prints_what_was_written() {
        let selection = parse(&["orders", "pay.*", "b,a"]);
        assert_eq!(selection.to_string(), "a, b, orders, pay.*");
        assert!(selection.is_plain_name("a") && !selection.is_plain_name("pay.*"));
        assert_eq!(selection.plain_names().count(), 3);
    }
}
