//! Appending to a chain: commit n+1 by put-if-absent. What a number that is taken means stands in [`crate::taken`].
//!
//! A writer may be dropped, and so may the future of any of its calls: what is not known then is read before anything
//! is written again. Nothing here waits or tries again by the clock; the caller pauses as it likes.

mod recall;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use everlog_format::{Day, Hash, Offset, Salt};
use everlog_store::{Body, Digest, Key, Put, digest_of};
use tracing::{debug, warn};

use crate::canonical::{OBJECT_MAX_BYTES, check_writer_features, corrupt};
use crate::chain::{Chain, Found, STEPS_MAX};
use crate::commit::{Commit, CommitKind, Draft, name};
use crate::node::SealedNode;
use crate::shared::{CHAIN_MEMORY, FREE_KEY_ATTEMPTS, still_free};
use crate::slot::Slot;
use crate::summary::{Summary, check_entry};
use crate::taken::{Decision, Row, Said, Seen, row};
use crate::tree::grow;
use crate::{Entry, IndexError, Snapshot, keys};

/// Losses in a row to the same other writer after which two archivers hold the partition.
const LOSSES_MAX: u32 = 3;

/// Why a writer gives up.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The index or the store failed. After `Unavailable` the commit may have happened: call
    /// [`Writer::append`] again with the same entries, which reads the number before it writes.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The entries do not start at the writer's next offset, or do not touch. A bug of the caller: nothing was written.
    #[error("entries start at {found} where {wanted} comes next")]
    Gap {
        /// The chain's next offset.
        wanted: Offset,
        /// What was given.
        found: Offset,
    },
    /// The entries break a rule of the format, or there are none. A bug of the caller: nothing was written.
    #[error("entries that must not be written: {why}")]
    Invalid {
        /// Which rule.
        why: String,
    },
    /// Lost three times running to the same other writer: another archiver holds this partition. Raise the alarm and
    /// give the assignment back.
    #[error("another archiver keeps writing to {partition}")]
    Contended {
        /// Which partition.
        partition: String,
    },
}

/// How an append ended. Losing is an outcome, not an error.
#[derive(Clone, Debug)]
#[must_use = "after a lost commit the caller has to go on at the winner's end"]
pub enum Appended {
    /// All entries are in the archive.
    Committed(Arc<Snapshot>),
    /// Another commit took the number: a rival's, or an earlier attempt of this writer with other entries. The writer is
    /// rebased on it. Drop what `snapshot` covers, void uploaded segments if `swept`, and go on at its end.
    Lost {
        /// The chain as it now is.
        snapshot: Arc<Snapshot>,
        /// A sweep was among the winners: objects not yet committed must be uploaded anew.
        swept: bool,
    },
}

/// One assignment's hand on one chain.
#[derive(Debug)]
pub struct Writer {
    chain: Chain,
    slot: Arc<Slot>,
    /// Drawn for this assignment: no two writers make the same bytes.
    id: Salt,
    base: Option<Arc<Snapshot>>,
    /// When `base` was last proved to be the newest.
    read_at: Duration,
    attempt: Option<Attempt>,
    /// The rival that won the last appends, and how many.
    losses: Option<(Salt, u32)>,
}

/// A commit that is made but not known to be won.
#[derive(Clone, Debug)]
struct Attempt(Arc<Prepared>, Sent);

/// Whether a put of the commit has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    No,
    Perhaps,
}

#[derive(Debug)]
struct Prepared {
    change: Change,
    nodes: Vec<SealedNode>,
    commit: Commit,
    bytes: Bytes,
    digest: Digest,
}

/// What a caller wants committed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    kind: CommitKind,
    entries: Vec<Entry>,
    sweep: Vec<String>,
}

impl Writer {
    pub(crate) async fn open(chain: Chain, slot: Arc<Slot>) -> Result<Writer, IndexError> {
        let now = chain.shared.tuning.clock.now();
        let base = chain.newest().await?;
        let id = chain.shared.tuning.random.salt();
        Ok(Writer {
            chain,
            slot,
            id,
            base,
            read_at: now,
            attempt: None,
            losses: None,
        })
    }

    /// The offset that the next entry has to start at; `None` while the chain has no entry (then it may start anywhere).
    pub fn next_offset(&self) -> Option<Offset> {
        self.base.as_ref()?.covered().map(|covered| covered.end())
    }

    /// The label of the last data entry, which a segment without a usable timestamp inherits.
    pub fn last_day(&self) -> Option<Day> {
        self.base.as_ref()?.last_day()
    }

    /// The commit the writer stands on; `None` while there is none.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.base.as_ref()
    }

    /// Commits `entries` behind the chain's end, at most one commit.
    pub async fn append(&mut self, entries: Vec<Entry>) -> Result<Appended, WriterError> {
        if entries.is_empty() {
            return Err(WriterError::Invalid {
                why: "there are none".to_owned(),
            });
        }
        self.commit(Change {
            kind: CommitKind::Append,
            entries,
            sweep: Vec::new(),
        })
        .await
    }

    /// Commits a sweep: says that `objects` are about to be deleted, so that whoever has uploaded one of them and not
    /// committed it starts over. Look again whether one is in use before deleting.
    pub async fn sweep(&mut self, objects: &[Key]) -> Result<Appended, WriterError> {
        let sweep = objects.iter().map(Key::to_string).collect();
        self.commit(Change {
            kind: CommitKind::Sweep,
            entries: Vec::new(),
            sweep,
        })
        .await
    }

    async fn commit(&mut self, change: Change) -> Result<Appended, WriterError> {
        if let Some(ended) = self.recall(&change).await? {
            return Ok(ended);
        }
        if let Some(Attempt(attempt, Sent::Perhaps)) = self.attempt.clone()
            && let Some(ended) = self
                .settle(&attempt, Said::Unsure, None, &change, self.now())
                .await?
        {
            return Ok(ended);
        }
        let attempt = match self.prepare(change.clone()).await {
            Err(WriterError::Index(missing @ IndexError::Missing { .. })) => {
                return self.overtaken(missing).await;
            }
            prepared => prepared?,
        };
        for node in &attempt.nodes {
            self.chain.shared.put_node(&self.chain.key, node).await?;
        }
        // From here on the commit may exist, whatever becomes of this future.
        self.attempt = Some(Attempt(Arc::clone(&attempt), Sent::Perhaps));
        let key = keys::commit(&self.chain.key, attempt.commit.number);
        for _ in 0..FREE_KEY_ATTEMPTS {
            // Nothing may come between this and the put but the put itself.
            if let Some(ended) = self.recall(&attempt.change).await? {
                return Ok(ended);
            }
            let begun_at = self.now();
            let body = Body::Bytes(attempt.bytes.clone());
            let (said, error) = match self
                .chain
                .shared
                .store
                .put_if_absent(&key, body, attempt.digest)
                .await
            {
                Ok(Put::Created) => (Said::Created, None),
                Ok(Put::Refused) => (Said::Refused, None),
                Err(error) => (Said::NoAnswer, Some(error.into())),
            };
            if said == Said::Created && self.is_forgetful() {
                // The machine slept between the check and the answer: the number may have been free because it was
                // pruned. If it was not, the newest is ours or comes after ours.
                return match self.recall(&attempt.change).await? {
                    Some(ended) => Ok(ended),
                    None => self.won(&attempt, &change, begun_at),
                };
            }
            if let Some(ended) = self
                .settle(&attempt, said, error, &change, begun_at)
                .await?
            {
                return Ok(ended);
            }
        }
        Err(still_free(&key).into())
    }

    /// The base names a node that is gone. If the chain has gone on, the base's own copy of the path was replaced and
    /// swept: rebase. If it has not, data is missing.
    async fn overtaken(&mut self, missing: IndexError) -> Result<Appended, WriterError> {
        let begun_at = self.now();
        let number = self
            .base
            .as_ref()
            .and_then(|base| base.number().checked_add(1));
        let next = match number {
            Some(number) => self.chain.get(number).await?,
            None => None,
        };
        let Some(next) = next else {
            return Err(missing.into());
        };
        self.follows(&next)?;
        let decision = match self.whose(&next, None) {
            Seen::Sweeps => Decision::LostToSweep,
            Seen::Own => Decision::LostToOurselves,
            _ => Decision::Lost,
        };
        self.lost(next, decision, begun_at).await
    }

    /// Looks under the attempt's number unless the put was told "created", and does what the table says. `None`: put.
    async fn settle(
        &mut self,
        attempt: &Arc<Prepared>,
        said: Said,
        error: Option<IndexError>,
        change: &Change,
        begun_at: Duration,
    ) -> Result<Option<Appended>, WriterError> {
        let number = attempt.commit.number;
        let (seen, found, failure) = match said {
            Said::Created => (Seen::NotAsked, None, None),
            Said::Refused | Said::NoAnswer | Said::Unsure => match self.chain.get(number).await {
                Ok(Some(found)) => match self.follows(&found) {
                    Ok(()) => (self.whose(&found, Some(attempt)), Some(found), None),
                    Err(error) => (Seen::Unreadable, None, Some(error)),
                },
                Ok(None) => (Seen::NotThere, None, None),
                Err(error @ (IndexError::Corrupt { .. } | IndexError::Unsupported { .. })) => {
                    (Seen::Unreadable, None, Some(error))
                }
                Err(error) => (Seen::NoAnswer, None, Some(error)),
            },
        };
        let row = row(said, seen);
        debug!(partition = %self.chain.key, number, ?row, ?said, ?seen, "a commit was tried");
        match self.decision(row) {
            Decision::Won => {
                let ended = self.won(attempt, change, begun_at)?;
                if let (Row::A, Some(base)) = (row, &self.base) {
                    // Nothing was newer when the put began: readers beside us need not look.
                    self.slot.publish(base, Some(begun_at));
                }
                Ok(Some(ended))
            }
            decision @ (Decision::Lost | Decision::LostToSweep | Decision::LostToOurselves) => {
                let found = match found {
                    Some(found) => Some(found),
                    None => self.chain.get(number).await?,
                };
                match found {
                    Some(found) => self.lost(found, decision, begun_at).await.map(Some),
                    None => Ok(None),
                }
            }
            Decision::Put | Decision::GoOn => Ok(None),
            Decision::Unknown => Err(error
                .or(failure)
                .unwrap_or_else(|| self.unknown(number))
                .into()),
            Decision::Stop => Err(failure
                .or(error)
                .unwrap_or_else(|| self.unknown(number))
                .into()),
            #[cfg(test)]
            Decision::Forget | Decision::Unvoided => {
                self.attempt = None;
                Err(error
                    .or(failure)
                    .unwrap_or_else(|| self.unknown(number))
                    .into())
            }
        }
    }

    fn decision(&self, row: Row) -> Decision {
        #[cfg(test)]
        if let Some(on_row) = &self.chain.shared.on_row {
            on_row(row);
        }
        #[cfg(test)]
        if let Some((broken, instead)) = self.chain.shared.sabotage
            && broken == row
            && instead != Decision::Unvoided
        {
            return instead;
        }
        row.decision()
    }

    /// The error of a decision that comes without one of the store's.
    fn unknown(&self, number: u64) -> IndexError {
        still_free(&keys::commit(&self.chain.key, number))
    }

    /// The rules between what lies under the next number and our base.
    fn follows(&self, found: &Found) -> Result<(), IndexError> {
        let followed = match &self.base {
            Some(base) => found.commit.check_follows(base.commit(), base.hash()),
            None => Ok(()),
        };
        followed.map_err(|why| corrupt(&name(&self.chain.key, found.commit.number), why))
    }

    fn whose(&self, found: &Found, attempt: Option<&Prepared>) -> Seen {
        if attempt.is_some_and(|attempt| attempt.bytes == found.bytes) {
            Seen::Ours
        } else if found.commit.writer == self.id {
            Seen::Own
        } else if found.commit.kind == CommitKind::Sweep {
            Seen::Sweeps
        } else {
            Seen::Rivals
        }
    }

    /// Our commit is in the chain.
    fn won(
        &mut self,
        attempt: &Arc<Prepared>,
        change: &Change,
        begun_at: Duration,
    ) -> Result<Appended, WriterError> {
        let hash = Hash::of(&attempt.bytes);
        let snapshot = Arc::new(Snapshot::new(
            self.chain.clone(),
            attempt.commit.clone(),
            hash,
            Vec::new(),
        ));
        self.losses = None;
        self.stand_on(&snapshot, begun_at);
        if attempt.change == *change {
            Ok(Appended::Committed(snapshot))
        } else {
            // The caller has changed its mind after an answer that was lost: what it gave first is in.
            Ok(Appended::Lost {
                snapshot,
                swept: false,
            })
        }
    }

    /// Rebases on `found`, which follows the base, and on what follows it.
    async fn lost(
        &mut self,
        found: Found,
        decision: Decision,
        begun_at: Duration,
    ) -> Result<Appended, WriterError> {
        let (winner, kind) = (found.commit.writer, found.commit.kind);
        let mut swept = decision == Decision::LostToSweep;
        let mut last = self.chain.snapshot(found);
        for _ in 0..STEPS_MAX {
            // An error here stops the steps only: the next append meets the number and says what is wrong.
            let Ok(Some(next)) = self.chain.next(&last).await else {
                break;
            };
            swept |= next.kind() == CommitKind::Sweep;
            last = next;
        }
        self.stand_on(&last, begun_at);
        // Only appends of others tell of a second archiver; maintenance comes and goes.
        let rival = decision == Decision::Lost && kind == CommitKind::Append;
        self.losses = match self.losses {
            Some((same, count)) if rival && same == winner => Some((same, count.saturating_add(1))),
            _ if rival => Some((winner, 1)),
            others => others.filter(|_| decision == Decision::LostToSweep),
        };
        if self.losses.is_some_and(|(_, count)| LOSSES_MAX <= count) {
            warn!(partition = %self.chain.key, "another archiver keeps writing to this partition");
            return Err(WriterError::Contended {
                partition: self.chain.key.to_string(),
            });
        }
        Ok(Appended::Lost {
            snapshot: last,
            swept: self.voids(swept),
        })
    }

    /// `swept`, unless a test has taken its meaning away.
    fn voids(&self, swept: bool) -> bool {
        #[cfg(test)]
        if matches!(self.chain.shared.sabotage, Some((_, Decision::Unvoided))) {
            return false;
        }
        swept
    }

    /// `begun_at` is when the request began that proved `snapshot` to be the newest: its answer may be days old when the
    /// machine slept over it.
    fn stand_on(&mut self, snapshot: &Arc<Snapshot>, begun_at: Duration) {
        self.attempt = None;
        self.read_at = begun_at;
        self.base = Some(Arc::clone(snapshot));
        self.slot.publish(snapshot, None);
    }

    fn is_forgetful(&self) -> bool {
        CHAIN_MEMORY <= self.now().saturating_sub(self.read_at)
    }

    fn now(&self) -> Duration {
        self.chain.shared.tuning.clock.now()
    }

    /// The attempt for `change`: the one at hand if it is the same, else a new one.
    async fn prepare(&mut self, change: Change) -> Result<Arc<Prepared>, WriterError> {
        if let Some(base) = &self.base {
            let what = name(&self.chain.key, base.number());
            check_writer_features(&what, base.writer_features())?;
        }
        if let Some(Attempt(attempt, _)) = &self.attempt
            && attempt.change == change
        {
            return Ok(Arc::clone(attempt));
        }
        self.check(&change.entries)?;
        let shared = &self.chain.shared;
        let base = self.base.as_deref();
        let number = match base {
            Some(base) => base
                .number()
                .checked_add(1)
                .ok_or_else(|| self.unknown(u64::MAX))?,
            None => 0,
        };
        let grown = grow(
            &shared.nodes,
            &self.chain.key,
            base.map(Snapshot::commit),
            &change.entries,
            shared.shape,
            &mut || shared.tuning.random.salt(),
        )
        .await?;
        let draft = Draft {
            number,
            writer: self.id,
            kind: change.kind,
            previous: base.map(Snapshot::hash),
            root: grown.root,
            open: grown.open,
            sweep: change.sweep.clone(),
        };
        let invalid = |why: String| WriterError::Invalid { why };
        let commit = Commit::new(draft, shared.shape).map_err(invalid)?;
        if let Some(base) = base {
            commit
                .check_follows(base.commit(), base.hash())
                .map_err(invalid)?;
        }
        let bytes = Bytes::from(commit.encode(&self.chain.key));
        if OBJECT_MAX_BYTES < bytes.len() {
            return Err(invalid(format!(
                "they make a commit of {} bytes",
                bytes.len()
            )));
        }
        let digest = digest_of(&bytes);
        let attempt = Arc::new(Prepared {
            change,
            nodes: grown.nodes,
            commit,
            bytes,
            digest,
        });
        self.attempt = Some(Attempt(Arc::clone(&attempt), Sent::No));
        Ok(attempt)
    }

    /// What the caller may not give.
    fn check(&self, entries: &[Entry]) -> Result<(), WriterError> {
        let mut wanted = self.next_offset();
        for entry in entries {
            let found = entry.range.start();
            if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
                return Err(WriterError::Gap { wanted, found });
            }
            check_entry(entry).map_err(|why| WriterError::Invalid { why })?;
            wanted = Some(entry.range.end());
        }
        Summary::of_entries(entries).map_err(|why| WriterError::Invalid { why })?;
        Ok(())
    }
}
