//! Rows U to X of [`crate::taken`]: a writer that has not read its chain for a day finds the newest commit by listing,
//! since the number that it knows to be next may be free only because it was pruned.

use std::sync::Arc;

use everlog_format::Hash;
use tracing::debug;

use super::{Appended, Attempt, Change, Writer, WriterError};
use crate::canonical::corrupt;
use crate::chain::STEPS_MAX;
use crate::commit::CommitKind;
use crate::taken::{Between, Decision, Newest, Row, recalled_row};
use crate::{IndexError, Snapshot};

impl Writer {
    /// Rows U to X: finds the newest commit if the chain has not been read for a day. `None`: go on from the base.
    pub(super) async fn recall(
        &mut self,
        change: &Change,
    ) -> Result<Option<Appended>, WriterError> {
        if !self.is_forgetful() {
            return Ok(None);
        }
        let begun_at = self.now();
        let newest = self.chain.newest().await?;
        let (row, path) = self.recalled(newest.as_ref()).await?;
        debug!(partition = %self.chain.key, ?row, "the chain has not been read for a day");
        let decision = self.decision(row);
        let newest = match (decision, newest) {
            (Decision::GoOn, _) => {
                self.read_at = begun_at;
                return Ok(None);
            }
            (Decision::Stop, _) | (_, None) => {
                let what = format!("the chain of {}", self.chain.key);
                return Err(corrupt(&what, "the store shows an older one than it had").into());
            }
            (_, Some(newest)) => newest,
        };
        // The first commit of the path took our number.
        let first = path.first().map(|snapshot| snapshot.hash());
        let ours = self.attempt.as_ref().is_some_and(|Attempt(attempt, _)| {
            attempt.change == *change && first == Some(Hash::of(&attempt.bytes))
        });
        self.losses = None;
        self.stand_on(&newest, begun_at);
        if ours && decision == Decision::Lost {
            return Ok(Some(Appended::Committed(newest)));
        }
        let swept =
            decision == Decision::LostToSweep || path.iter().any(|s| s.kind() == CommitKind::Sweep);
        let swept = self.voids(swept);
        Ok(Some(Appended::Lost {
            snapshot: newest,
            swept,
        }))
    }

    /// The row for what the listing showed, and the commits between where they matter.
    async fn recalled(
        &self,
        newest: Option<&Arc<Snapshot>>,
    ) -> Result<(Row, Vec<Arc<Snapshot>>), IndexError> {
        let place = |s: &Arc<Snapshot>| (s.number(), s.hash());
        let found = Newest::of(self.base.as_ref().map(place), newest.map(place));
        let path = match (found, newest) {
            (Newest::Later, Some(newest)) => self.path_to(newest).await?,
            _ => None,
        };
        let between = match path {
            Some(_) => Between::Readable,
            None => Between::Gone,
        };
        Ok((recalled_row(found, between), path.unwrap_or_default()))
    }

    /// The commits after the base up to `newest`, each following the one before; `None` if one is pruned or there are
    /// too many to read.
    async fn path_to(
        &self,
        newest: &Arc<Snapshot>,
    ) -> Result<Option<Vec<Arc<Snapshot>>>, IndexError> {
        let mut path: Vec<Arc<Snapshot>> = Vec::new();
        let mut last = self.base.clone();
        while last
            .as_ref()
            .is_none_or(|last| last.number() < newest.number())
        {
            let next = match &last {
                Some(last) => match self.chain.get_snapshot(last.number() + 1).await? {
                    // A commit of ours that arrived under a pruned number is followed by nothing.
                    Some(next) => next
                        .commit()
                        .check_follows(last.commit(), last.hash())
                        .is_ok()
                        .then_some(next),
                    None => None,
                },
                None => self.chain.get_snapshot(0).await?,
            };
            let Some(next) = next.filter(|_| path.len() < STEPS_MAX) else {
                return Ok(None);
            };
            path.push(Arc::clone(&next));
            last = Some(next);
        }
        let linked = last.is_some_and(|last| last.hash() == newest.hash());
        Ok(linked.then_some(path))
    }
}
