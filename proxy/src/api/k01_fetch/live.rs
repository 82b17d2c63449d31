//! Partitions that the cluster answers, and the moment at which it says that it no longer can.

use everlog_format::Offset;
use everlog_index::Freshness;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::TopicName;
use tokio::time::{Instant, timeout};

use crate::connection::Answer;
use crate::conversation::{EARLIEST, Failed, LATEST};
use crate::errors::HistoryError;
use crate::history::Chain;
use crate::plan::{FetchPlan, Live, plan};
use crate::upstream::Gone;

use super::answer::{Part, Parts, Served};
use super::memory::Mark;
use super::{Fetch, Round, Wanted};

impl Fetch<'_> {
    /// Nothing of the request is archived: the broker's answer, as asked for, with its long poll.
    pub(super) async fn serve_live(mut self) -> Result<Answer, Failed> {
        let request = self.as_asked();
        let mut parts = match self.round(&request).await? {
            Round::Relay(response) => return self.relay(*response),
            Round::Parts(parts) => parts,
        };
        self.reconsider(&mut parts).await?;
        Ok(self.send(parts))
    }

    /// Asks for the watermarks of archived partitions that this connection has not seen yet.
    pub(super) async fn learn_marks(&mut self) -> Result<(), Gone> {
        let missing = self.wanted.iter().filter(|wanted| {
            let covered = wanted
                .chain
                .snapshot()
                .and_then(|snapshot| snapshot.covered());
            wanted.mark.is_none()
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
            // The last stable offset is not known; the shadow brings it before anything is answered.
            set_mark(
                self.conversation,
                wanted,
                Mark {
                    high_watermark,
                    last_stable_offset: high_watermark,
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

    /// Looks again at each live partition that is out of range: the log's start may just have moved past it.
    pub(super) async fn reconsider(&mut self, parts: &mut Parts) -> Result<(), Gone> {
        for index in 0..parts.parts.len() {
            let part = &parts.parts[index];
            let out_of_range = part.served == Served::Live
                && part.data.error_code == ResponseError::OffsetOutOfRange.code()
                && !self.wanted[index].is_archived();
            if out_of_range && let Some(part) = self.out_of_range(index).await? {
                parts.parts[index] = part;
            }
        }
        Ok(())
    }

    /// What to say instead of OFFSET_OUT_OF_RANGE; `None`: nothing, it is true.
    async fn out_of_range(&mut self, index: usize) -> Result<Option<Part>, Gone> {
        let wanted = &self.wanted[index];
        let (Some(key), Some(name), Some(offset)) =
            (wanted.key.clone(), wanted.name.clone(), wanted.offset())
        else {
            return Ok(None);
        };
        let (partition, version) = (wanted.asked.partition, self.prefix.version);
        let history = &self.conversation.shared.history;
        self.wanted[index].chain = history
            .chain(&key, Freshness::Within(std::time::Duration::ZERO))
            .await;
        let snapshot = match &self.wanted[index].chain {
            Chain::None => return Ok(None),
            Chain::Unknown(error) => return Ok(Some(Part::failed(partition, error, version))),
            Chain::Known(snapshot) => std::sync::Arc::clone(snapshot),
        };
        let asked = [(name.clone(), partition)];
        let start = self.conversation.live_offsets(&asked, EARLIEST).await?;
        let Some(start) = start
            .get(&(name.clone(), partition))
            .and_then(|start| Offset::new(*start).ok())
        else {
            return Ok(Some(self.fail(partition, HistoryError::NoLiveStart)));
        };
        match plan(offset, snapshot.covered(), Live::OutOfRange { start }) {
            FetchPlan::Live => Ok(None),
            FetchPlan::NotYet => Ok(Some(self.fail(partition, HistoryError::NotYet))),
            FetchPlan::Archive => {
                // The broker's "out of range" comes after its question whether the client may read: it is the proof.
                let latest = self.conversation.live_offsets(&asked, LATEST).await?;
                let high_watermark = latest.get(&(name, partition)).copied().unwrap_or(-1);
                let max_bytes = self.wanted[index]
                    .partition_max_bytes()
                    .min(self.max_bytes)
                    .max(1);
                let read = self
                    .conversation
                    .shared
                    .history
                    .read(&snapshot, offset, max_bytes);
                let mut part = Part::empty(partition, high_watermark, high_watermark);
                match timeout(super::archived::LATE_READ_MAX, read).await {
                    Ok(Ok(piece)) => part.records = piece.records,
                    Ok(Err(error)) => part = Part::failed(partition, &error, version),
                    // It goes on; the client asks again.
                    Err(_) => {}
                }
                Ok(Some(part))
            }
        }
    }

    fn fail(&self, partition: i32, error: HistoryError) -> Part {
        let error = self.conversation.shared.history.failed(error);
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
