//! Partitions that the cluster answers, and the moment at which it says that it no longer can.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use everlog_format::Offset;
use everlog_index::Freshness;
use futures::stream::{FuturesUnordered, StreamExt};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::TopicName;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::connection::Answer;
use crate::conversation::{EARLIEST, Failed, LATEST};
use crate::errors::HistoryError;
use crate::history::Chain;
use crate::plan::{FetchPlan, Live, plan};
use crate::upstream::Gone;

use super::answer::{Part, Parts, Served};
use super::archived::{ASK_AGAIN_MAX, ASK_AGAIN_MIN};
use super::memory::Mark;
use super::{Fetch, Round, Wanted};

/// For a newer commit, when the cluster has let go of what is asked for.
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(1000);

/// A read that begins only after the broker answered may take this long.
const LATE_READ_MAX: Duration = Duration::from_millis(500);

impl Fetch<'_> {
    /// Nothing of the request is archived: the broker's answer, as asked for, with its long poll.
    pub(super) async fn serve_live(mut self) -> Result<Answer, Failed> {
        let mut pause = ASK_AGAIN_MIN;
        loop {
            let mut request = self.as_asked();
            let left = self.deadline.saturating_duration_since(Instant::now());
            request.max_wait_ms = i32::try_from(left.as_millis())
                .map_or(request.max_wait_ms, |left| left.min(request.max_wait_ms));
            let mut parts = match self.round(&request).await? {
                Round::Relay(response) => return self.relay(*response),
                Round::Parts(parts) => parts,
            };
            self.reconsider(&mut parts).await?;
            // An error of the broker's ends its long poll; one of ours that may pass is waited for instead.
            let waits = parts.parts.iter().any(|part| part.may_pass)
                && !parts.parts.iter().any(Part::says_something)
                && Instant::now() < self.deadline;
            if !waits {
                return Ok(self.send(parts));
            }
            drop(parts);
            sleep_until((Instant::now() + pause).min(self.deadline)).await;
            pause = (pause * 2).min(ASK_AGAIN_MAX);
        }
    }

    /// Asks for the watermarks of archived partitions that this connection has not seen yet, or has not seen for a while
    /// where they decide: a reader that paused at the log's end may find that end archived when it goes on.
    pub(super) async fn learn_marks(&mut self) -> Result<(), Gone> {
        let now = Instant::now();
        let missing = self.wanted.iter().filter(|wanted| {
            let covered = wanted
                .chain
                .snapshot()
                .and_then(|snapshot| snapshot.covered());
            wanted
                .mark
                .is_none_or(|mark| mark.is_doubtful(wanted.asked.fetch_offset, now))
                && covered
                    .zip(wanted.offset())
                    .is_some_and(|(range, offset)| range.contains(offset))
        });
        let missing: Vec<(TopicName, i32)> = missing
            .filter_map(|wanted| Some((wanted.name.clone()?, wanted.asked.partition)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let latest = self.conversation.live_offsets(&missing, LATEST).await?;
        let at = Instant::now();
        for wanted in &mut self.wanted {
            let Some(name) = wanted.name.clone() else {
                continue;
            };
            let Some(high_watermark) = latest.get(&(name, wanted.asked.partition)).copied() else {
                continue;
            };
            set_mark(
                self.conversation,
                wanted,
                Mark {
                    high_watermark,
                    last_stable_offset: -1,
                    at,
                },
            );
        }
        Ok(())
    }

    /// Decides for each partition where its answer comes from. Without a watermark there can be no shadow, so the
    /// broker is asked as the client asked.
    pub(super) fn plan(&mut self) {
        for wanted in &mut self.wanted {
            wanted.make_plan();
            if wanted.mark.is_none() {
                wanted.plan = FetchPlan::Live;
            }
        }
    }

    /// Looks again at each live partition that is out of range: the log's start may just have moved past it. All of them
    /// together, so that many take no longer than one.
    pub(super) async fn reconsider(&mut self, parts: &mut Parts) -> Result<(), Gone> {
        let out_of_range = |index: &usize| {
            let part = &parts.parts[*index];
            part.served == Served::Live
                && part.data.error_code == ResponseError::OffsetOutOfRange.code()
                && !self.wanted[*index].is_archived()
        };
        let doubted: Vec<usize> = (0..parts.parts.len()).filter(out_of_range).collect();
        if doubted.is_empty() {
            return Ok(());
        }
        self.resolve(&doubted).await?;
        let sought = doubted
            .iter()
            .map(|index| self.wanted[*index].sought())
            .collect();
        let history = &self.conversation.shared.history;
        let newest = Freshness::Within(Duration::ZERO);
        let chains = history.chains(sought, newest, LOOK_AGAIN_MAX).await;
        for (index, chain) in doubted.iter().zip(chains) {
            self.wanted[*index].chain = chain;
        }
        let archived = self.judge(&doubted, parts).await?;
        self.read_late(archived, parts).await
    }

    /// Says instead of OFFSET_OUT_OF_RANGE what is true; gives the partitions whose records the archive has.
    async fn judge(&mut self, doubted: &[usize], parts: &mut Parts) -> Result<Vec<usize>, Gone> {
        let known = |index: &&usize| self.wanted[**index].chain.snapshot().is_some();
        let known: Vec<usize> = doubted.iter().filter(known).copied().collect();
        let starts = self.live_offsets(&known, EARLIEST).await?;
        let mut archived = Vec::new();
        for index in doubted.iter().copied() {
            let wanted = &self.wanted[index];
            let Some(offset) = wanted.offset() else {
                continue;
            };
            let instead = match &wanted.chain {
                // Only who knows which topic this is can say that it has no archive.
                Chain::None if wanted.unresolved => HistoryError::NoTopic,
                Chain::None => continue,
                Chain::Unknown(error) => {
                    let version = self.prefix.version;
                    parts.parts[index] = Part::failed(wanted.asked.partition, error, version);
                    continue;
                }
                Chain::Known(snapshot) => match starts.get(&index) {
                    None => HistoryError::NoLiveStart,
                    Some(start) => {
                        let start = *start;
                        match plan(offset, snapshot.covered(), Live::OutOfRange { start }) {
                            FetchPlan::Live => continue,
                            FetchPlan::NotYet => HistoryError::NotYet,
                            FetchPlan::Archive => {
                                archived.push(index);
                                continue;
                            }
                        }
                    }
                },
            };
            parts.parts[index] = self.fail(wanted, instead);
        }
        Ok(archived)
    }

    /// Reads what the archive turned out to have, as far as there is room and for a short while.
    async fn read_late(&mut self, archived: Vec<usize>, parts: &mut Parts) -> Result<(), Gone> {
        // The broker's "out of range" comes after its question whether the client may read: it is the proof.
        let ends = self.live_offsets(&archived, LATEST).await?;
        let at = Instant::now();
        let mut left = self
            .max_bytes
            .saturating_sub(parts.parts.iter().map(Part::bytes).sum());
        let mut is_first = parts.parts.iter().all(|part| part.records.is_empty());
        let mut reads = FuturesUnordered::new();
        for index in archived {
            let wanted = &mut self.wanted[index];
            let (partition, end) = (wanted.asked.partition, ends.get(&index));
            let high_watermark = end.map_or(-1, |end| end.get());
            parts.parts[index] = Part::empty(partition, high_watermark, -1);
            if end.is_some() {
                let mark = Mark {
                    high_watermark,
                    last_stable_offset: -1,
                    at,
                };
                set_mark(self.conversation, wanted, mark);
            }
            let (Some(snapshot), Some(offset)) =
                (wanted.chain.snapshot().cloned(), wanted.offset())
            else {
                continue;
            };
            // The first of a response may be larger than asked for (KIP-74), so no client is stuck at a large batch.
            let max_bytes = wanted.partition_max_bytes().min(left);
            if max_bytes == 0 && !is_first {
                continue;
            }
            is_first = false;
            left -= max_bytes;
            let shared = Arc::clone(&self.conversation.shared);
            reads.push(async move {
                let read = shared.history.read(&snapshot, offset, max_bytes.max(1));
                (index, read.await)
            });
        }
        let until = Instant::now() + LATE_READ_MAX;
        // What does not end in time goes on behind it; the client asks again.
        while let Ok(Some((index, read))) = timeout_at(until, reads.next()).await {
            let part = &mut parts.parts[index];
            match read {
                Ok(piece) => part.records = piece.records,
                Err(error) => {
                    *part = Part::failed(part.data.partition_index, &error, self.prefix.version);
                }
            }
        }
        Ok(())
    }

    /// [`EARLIEST`] or [`LATEST`] of some of the wanted partitions, as far as the broker says it.
    async fn live_offsets(
        &mut self,
        indexes: &[usize],
        question: i64,
    ) -> Result<HashMap<usize, Offset>, Gone> {
        let named = |index: &usize| {
            let wanted = &self.wanted[*index];
            Some((wanted.name.clone()?, wanted.asked.partition))
        };
        let asked: Vec<(TopicName, i32)> = indexes.iter().filter_map(named).collect();
        let found = self.conversation.live_offsets(&asked, question).await?;
        let offset = |index: &usize| {
            let offset = found.get(&named(index)?).copied()?;
            Some((*index, Offset::new(offset).ok()?))
        };
        Ok(indexes.iter().filter_map(offset).collect())
    }

    fn fail(&self, wanted: &Wanted, error: HistoryError) -> Part {
        let partition = wanted.asked.partition;
        let topic = match (&wanted.name, &wanted.key) {
            (Some(name), _) => name.to_string(),
            (None, Some(key)) => key.incarnation.topic_id.to_string(),
            (None, None) => "a topic that was not named".to_owned(),
        };
        let history = &self.conversation.shared.history;
        let error = history.failed(&topic, partition, error);
        Part::failed(partition, &error, self.prefix.version)
    }
}

/// Notes what the broker said of a partition.
pub(super) fn set_mark(
    conversation: &mut crate::conversation::Conversation,
    wanted: &mut Wanted,
    mark: Mark,
) {
    if let Some(key) = &wanted.key {
        conversation.fetches.set_mark(key, mark);
        wanted.mark = Some(mark);
    }
}
