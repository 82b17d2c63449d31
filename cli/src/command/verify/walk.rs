//! Everything that the chains name, one partition after the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use everlog_format::{Incarnation, OffsetRange, PartitionKey, TopicName, TopicSelection};
use everlog_index::{
    Archive, DataEntry, Entry, EntryKind, Freshness, IndexError, Lookup, Named, TopicInfo,
};
use futures::StreamExt;
use indicatif::ProgressBar;

use super::report::{Finding, Report, index_finding};
use super::segment;

/// Segments read at a time. Each holds one row group and what is decoded of it.
const PARALLEL: usize = 4;

/// Objects in a row for which the store did not answer, until the whole check gives up. The store layer has tried each of them
/// for a minute and more before it says so.
pub(super) const UNANSWERED_MAX: u32 = 3;

/// One partition that is to be checked.
pub(super) struct Target {
    /// For messages.
    pub(super) what: String,
    pub(super) topic: TopicInfo,
    pub(super) key: PartitionKey,
    /// Stored bytes of all segments, for the progress bar only.
    bytes: u64,
    holes: u64,
    /// Why a reader of the archive would be turned away.
    unreadable: Option<IndexError>,
}

/// Looks at everything that the chains of `topics` name.
pub(super) async fn check(
    archive: &Arc<Archive>,
    topics: Option<&TopicSelection>,
    bar: &ProgressBar,
    report: &mut Report,
) {
    let targets = targets(archive, topics, report).await;
    bar.set_length(targets.iter().map(|target| target.bytes).sum());
    for target in &targets {
        if report.gave_up {
            break;
        }
        bar.set_message(target.what.clone());
        let before = report.finding_count();
        partition(archive, target, bar, report).await;
        report.read.holes += target.holes;
        // The walk reads all that a reader reads, so it has found the same. If it has not, that is a finding too.
        if let (Some(err), true) = (&target.unreadable, before == report.finding_count()) {
            report.add(index_finding(target.what.clone(), err));
        }
    }
}

async fn targets(
    archive: &Arc<Archive>,
    topics: Option<&TopicSelection>,
    report: &mut Report,
) -> Vec<Target> {
    let (mut targets, mut names) = (Vec::new(), BTreeSet::new());
    let incarnations = match archive.incarnations().await {
        Ok(incarnations) => incarnations,
        Err(err) => {
            report.add(index_finding("the list of topics".to_owned(), &err));
            return targets;
        }
    };
    for incarnation in incarnations {
        let Incarnation { cluster, topic_id } = &incarnation;
        let topic = match archive.topic(&incarnation).await {
            Ok(Some(topic)) => topic,
            Ok(None) => {
                let (what, why) = (
                    format!("topic {cluster}/{topic_id}"),
                    "its topic.json is not there".to_owned(),
                );
                report.add(Finding::Damage { what, why });
                continue;
            }
            Err(err) => {
                report.add(index_finding(format!("topic {cluster}/{topic_id}"), &err));
                continue;
            }
        };
        if topics.is_some_and(|topics| !topics.matches(topic.name.as_str(), false)) {
            continue;
        }
        names.insert(topic.name.clone());
        match archive.partitions(&incarnation).await {
            Ok(partitions) => {
                for partition in partitions {
                    let incarnation = incarnation.clone();
                    let key = PartitionKey {
                        incarnation,
                        partition,
                    };
                    targets.push(target(archive, &topic, key).await);
                }
            }
            Err(err) => report.add(index_finding(
                format!("the partitions of {}", topic.name),
                &err,
            )),
        }
    }
    let names = names.iter().map(TopicName::as_str);
    for missing in topics.map_or(Vec::new(), |topics| topics.unmatched(names)) {
        // With a slip in a name nothing would be looked at, and all would seem well for ever.
        report.add(Finding::Unchecked {
            what: format!("topics {missing}"),
            why: "the archive has none that matches".to_owned(),
        });
    }
    targets
}

async fn target(archive: &Arc<Archive>, topic: &TopicInfo, key: PartitionKey) -> Target {
    let (totals, unreadable) = match archive.snapshot(&key, Freshness::Now).await {
        Ok(snapshot) => (snapshot.map(|snapshot| snapshot.totals()), None),
        Err(err) => (None, Some(err)),
    };
    let totals = totals.unwrap_or_default();
    Target {
        what: format!("{}/{}", topic.name, key.partition),
        topic: topic.clone(),
        key,
        bytes: totals.bytes,
        holes: totals.holes,
        unreadable,
    }
}

/// What came of one object.
enum Looked {
    Commit,
    Node,
    Segment {
        data: Box<DataEntry>,
        found: Option<Finding>,
    },
    /// A newer commit names it no more.
    Replaced,
    Trouble(Finding),
}

async fn partition(
    archive: &Arc<Archive>,
    target: &Target,
    bar: &ProgressBar,
    report: &mut Report,
) {
    report.partitions += 1;
    let verifier = match archive.verifier(&target.key).await {
        Ok(Some(verifier)) => verifier,
        // Only a topic that is not there has none, and this one was just read.
        Ok(None) => return,
        Err(err) => {
            let chain = format!("{}: the list of commits", target.what);
            return report.add(index_finding(chain, &err));
        }
    };
    // After an error the walk goes on behind what is damaged: all damage is to be told, not the first.
    let named = futures::stream::unfold(verifier, |mut verifier| async move {
        let next = verifier.next().await.transpose()?;
        Some((next, verifier))
    });
    let looked = named.map(|named| look_at(archive, target, named, bar));
    let mut looked = std::pin::pin!(looked.buffer_unordered(PARALLEL));
    let mut unanswered_in_a_row = 0;
    while let Some(looked) = looked.next().await {
        let finding = match looked {
            Looked::Commit => {
                report.commits += 1;
                None
            }
            Looked::Node => {
                report.nodes += 1;
                None
            }
            Looked::Segment { data, found } => {
                report.read.segments += 1;
                report.read.records += data.records;
                report.read.bytes += data.bytes;
                found
            }
            Looked::Replaced => {
                report.replaced += 1;
                None
            }
            Looked::Trouble(finding) => Some(finding),
        };
        let is_unanswered = matches!(finding, Some(Finding::Unanswered { .. }));
        unanswered_in_a_row = if is_unanswered {
            unanswered_in_a_row + 1
        } else {
            0
        };
        if let Some(finding) = finding {
            report.add(finding.of(&target.what));
        }
        if unanswered_in_a_row == UNANSWERED_MAX {
            // A store that is away would be waited for at every object, for days.
            report.gave_up = true;
            return;
        }
    }
}

async fn look_at(
    archive: &Arc<Archive>,
    target: &Target,
    named: Result<Named, IndexError>,
    bar: &ProgressBar,
) -> Looked {
    let (key, range, data) = match named {
        Ok(Named::Commit { .. }) => return Looked::Commit,
        Ok(Named::Node { .. }) => return Looked::Node,
        Ok(Named::Segment { key, range, data }) => (key, range, data),
        Err(err) => return Looked::Trouble(index_finding("the chain".to_owned(), &err)),
    };
    let named = segment::Named {
        object: &key,
        range,
        data: &data,
    };
    let found = segment::check(archive.store(), target, &named, bar).await;
    if found.is_some() && is_replaced(archive, target, range, &data).await {
        return Looked::Replaced;
    }
    let data = Box::new(data);
    Looked::Segment { data, found }
}

/// Whether a newer commit names this segment no more: maintenance may have rewritten and removed it while we read.
async fn is_replaced(
    archive: &Arc<Archive>,
    target: &Target,
    range: OffsetRange,
    data: &DataEntry,
) -> bool {
    let Ok(Some(newest)) = archive.snapshot(&target.key, Freshness::Now).await else {
        return false;
    };
    match newest.lookup(range.start()).await {
        Ok(Lookup::Covered(Entry {
            kind: EntryKind::Data(now),
            ..
        })) => now.hash != data.hash,
        Ok(Lookup::Covered(Entry {
            kind: EntryKind::Expired,
            ..
        })) => true,
        Ok(_) | Err(_) => false,
    }
}
