//! Requests with archived partitions: shadows upstream, reads in the archive at the same time, one answer.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use kafka_protocol::ResponseError;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::connection::Answer;
use crate::conversation::Failed;
use crate::errors::HistoryError;
use crate::history::Piece;
use crate::plan::{FetchPlan, Shares, shares};

use super::answer::{Part, Parts, Served};
use super::live::set_mark;
use super::memory::Mark;
use super::{Fetch, Round, Wanted, proof};

/// How long an archived partition is waited for when there is something to send without it.
const GRACE: Duration = Duration::from_millis(20);

/// How long the others are waited for once the first archived partition is there.
const COMPANY: Duration = Duration::from_millis(5);

/// The broker is asked again after this long while there is nothing to send, and each time after twice as long.
pub(super) const ASK_AGAIN_MIN: Duration = Duration::from_millis(50);
pub(super) const ASK_AGAIN_MAX: Duration = Duration::from_millis(200);

/// Reads under way, and what came of those that ended: one place for each wanted partition.
struct Reads {
    running: FuturesUnordered<BoxFuture<'static, (usize, Result<Piece, HistoryError>)>>,
    done: Vec<Option<Result<Piece, HistoryError>>>,
}

impl Fetch<'_> {
    /// Some of the request is archived.
    pub(super) async fn serve_mixed(mut self) -> Result<Answer, Failed> {
        let archived = self
            .wanted
            .iter()
            .filter(|wanted| wanted.is_archived())
            .count();
        let shares = shares(self.max_bytes, self.wanted.len() - archived, archived);
        let mut reads = self.start_reads(shares);
        let mut pause = ASK_AGAIN_MIN;
        loop {
            let questions = self.with_shadows(shares.live);
            let mut parts = match self.shadowed_round(questions).await? {
                Round::Relay(response) => return self.relay(*response),
                Round::Parts(parts) => parts,
            };
            self.reconsider(&mut parts).await?;
            self.take_in_shadows(&mut parts);
            let urgent = parts.parts.iter().any(Part::says_something);
            let now = Instant::now();
            let until = if urgent { now + GRACE } else { now + pause };
            reads
                .collect(until.min(self.deadline.max(now + GRACE)))
                .await;
            // After a shadow that found the log cut off, nothing may be archived any more: what was read is not sent.
            let history = self.wanted.iter().any(Wanted::is_archived) && reads.has_something();
            if urgent || history || self.deadline <= Instant::now() {
                self.fill(&mut parts, reads, shares);
                return Ok(self.send(parts));
            }
            // Everything ended early with trouble that may pass: no reason to ask the broker at once.
            sleep_until(until.min(self.deadline)).await;
            if self.deadline <= Instant::now() {
                self.fill(&mut parts, reads, shares);
                return Ok(self.send(parts));
            }
            pause = (pause * 2).min(ASK_AGAIN_MAX);
            // The room that this answer takes must not be held while another one is waited for.
            drop(parts);
            self.learn_marks().await?;
            self.plan();
        }
    }

    /// Begins to read every archived partition that has room in the response, another one first each time.
    fn start_reads(&mut self, shares: Shares) -> Reads {
        let mut done = Vec::new();
        done.resize_with(self.wanted.len(), || None);
        let reads = Reads {
            running: FuturesUnordered::new(),
            done,
        };
        let mut left = shares.total;
        for index in self.archived_in_turn() {
            let wanted = &self.wanted[index];
            let (Some(snapshot), Some(offset)) =
                (wanted.chain.snapshot().cloned(), wanted.offset())
            else {
                continue;
            };
            let max_bytes = wanted.partition_max_bytes().min(left);
            if left == 0 {
                break;
            }
            left -= max_bytes;
            let shared = std::sync::Arc::clone(&self.conversation.shared);
            reads.running.push(Box::pin(async move {
                (
                    index,
                    shared
                        .history
                        .read(&snapshot, offset, max_bytes.max(1))
                        .await,
                )
            }));
        }
        self.conversation.fetches.turn = self.conversation.fetches.turn.wrapping_add(1);
        reads
    }

    /// The archived partitions, beginning with the one whose turn it is.
    fn archived_in_turn(&self) -> Vec<usize> {
        let mut archived: Vec<usize> = (0..self.wanted.len())
            .filter(|index| self.wanted[*index].is_archived())
            .collect();
        if !archived.is_empty() {
            let first = self.conversation.fetches.turn % archived.len();
            archived.rotate_left(first);
        }
        archived
    }

    /// Turns the broker's answers to shadows into empty answers for the client, or leaves its errors as they are.
    fn take_in_shadows(&mut self, parts: &mut Parts) {
        let (mut dropped, at) = (0, Instant::now());
        for (wanted, part) in self.wanted.iter_mut().zip(&mut parts.parts) {
            if !wanted.is_archived() || part.served == Served::Missing {
                continue;
            }
            dropped += part.bytes();
            let (index, data) = (wanted.asked.partition, &part.data);
            let mark = if data.error_code == 0 {
                let (high_watermark, last_stable_offset) =
                    (data.high_watermark, data.last_stable_offset);
                Some(Mark {
                    high_watermark,
                    last_stable_offset,
                    at,
                })
            } else if data.error_code == ResponseError::OffsetOutOfRange.code() {
                // The expected answer of a shadow that asks nowhere. At the last known watermark it means that the log
                // was cut off below it: learnt anew before anything else is said.
                wanted
                    .mark
                    .filter(|mark| wanted.shadow_offset != Some(mark.high_watermark))
            } else if self.proof_version.is_some() && proof::is_other_topic(data.error_code) {
                // The client asks by name, and the name has come to mean another topic: the next round asks live.
                wanted.forget_topic(self.conversation);
                wanted.plan = FetchPlan::Live;
                *part = Part::empty(index, -1, -1);
                continue;
            } else {
                if data.error_code == ResponseError::UnknownTopicOrPartition.code() {
                    wanted.forget_topic(self.conversation);
                }
                part.records.clear();
                continue;
            };
            let (high, stable) = mark.map_or((-1, -1), |mark| {
                (mark.high_watermark, mark.last_stable_offset)
            });
            *part = Part::empty(index, high, stable);
            match mark {
                Some(mark) => set_mark(self.conversation, wanted, mark),
                None => {
                    wanted.mark = None;
                    if let Some(key) = &wanted.key {
                        self.conversation.fetches.forget_mark(key);
                    }
                    // A log that is shorter than it was may be another one.
                    wanted.forget_topic(self.conversation);
                }
            }
            // What the archive has at or above the watermark is not the client's to see: the next round asks live.
            if mark.is_none_or(|mark| mark.high_watermark <= wanted.asked.fetch_offset) {
                wanted.plan = FetchPlan::Live;
            }
        }
        self.note_dropped(dropped);
    }

    /// Puts what was read beside what the broker sent, as far as there is room.
    fn fill(&mut self, parts: &mut Parts, mut reads: Reads, shares: Shares) {
        let isolated = self.request.isolation_level == 1;
        let live_bytes: usize = parts.parts.iter().map(Part::bytes).sum();
        let mut order = self.archived_in_turn();
        // `turn` has moved on since the reads began: back to the order in which room was given.
        let one = usize::from(!order.is_empty());
        order.rotate_right(one);
        let first = std::mem::take(&mut self.conversation.fetches.archive_first);
        let mut used = if first { 0 } else { live_bytes };
        let mut left_out = false;
        let mut taken = 0;
        for index in order {
            let part = &mut parts.parts[index];
            if part.served != Served::Archive || part.data.error_code != 0 {
                continue;
            }
            if isolated {
                // Archived records are committed records.
                part.data.aborted_transactions = Some(Vec::new());
            }
            match reads.done[index].take() {
                Some(Ok(piece)) if used == 0 || used + piece.bytes <= shares.total => {
                    used += piece.bytes;
                    taken += piece.bytes;
                    part.records = piece.records;
                }
                Some(Ok(_)) => left_out = true,
                Some(Err(error)) => {
                    *part = Part::failed(part.data.partition_index, &error, self.prefix.version)
                }
                None => {}
            }
        }
        if first && shares.total < live_bytes + taken && taken > 0 {
            // It was the archive's turn: live records that do not fit beside it come with the next fetch.
            for part in parts
                .parts
                .iter_mut()
                .filter(|part| part.served == Served::Live)
            {
                part.records.clear();
            }
        }
        self.conversation.fetches.archive_first = left_out && taken == 0;
    }
}

impl Reads {
    /// Waits for reads to end, until `until`; once one has brought something, only a moment longer.
    async fn collect(&mut self, mut until: Instant) {
        let mut in_company = self.has_something();
        while let Ok(Some((index, read))) = timeout_at(until, self.running.next()).await {
            self.done[index] = Some(read);
            if !in_company && self.has_something() {
                in_company = true;
                until = until.min(Instant::now() + COMPANY);
            }
        }
    }

    /// Whether something came that is worth an answer now.
    fn has_something(&self) -> bool {
        self.done.iter().flatten().any(|read| match read {
            Ok(piece) => !piece.records.is_empty(),
            Err(error) => !error.may_pass(),
        })
    }
}
