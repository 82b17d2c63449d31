//! One session of a partition's worker: encodes what the consumer hands over and has it committed, in order.
//!
//! A topic that is deleted takes its records with it, so what was fetched of it is committed as far as it is proven,
//! whatever happens first: the commit under way finds out, or the watch, or the fetcher; the group takes the partition;
//! the process is told to stop.
//!
//! | first to know | then |
//! |---|---|
//! | a commit | [`Command::Gone`]: the consumer cuts what is open and sends [`Work::Reset`] behind it |
//! | the watch, the fetcher | the consumer cuts what is open and sends [`Work::Reset`]; commits find out for themselves |
//! | the group | the slot asks for the id while the worker goes on, and sends [`Work::Leave`] with what was open |
//!
//! A cut that comes after one that was committed whole is committed too; after one that was not, nothing is.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use everlog_format::{Day, Offset};
use tokio::task::{JoinError, JoinSet};

use crate::commit::{Failure, Hand, Job, Outcome, PAUSE_MAX, commit};
use crate::decide::Backoff;
use crate::encode::{EncodeError, Identity, NewFile, OpenFile};
use crate::message::{Command, CutWork, Pause, SegmentMeter, Work};
use crate::spool::Burst;
use crate::worker::Worker;

/// How long a partition that another archiver holds is left alone.
const CONTENDED_PAUSE: Duration = Duration::from_secs(60);

/// Why a session ends from the worker's side.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Commit(#[from] Failure),
    #[error("a thread of this process ended unexpectedly")]
    Died,
}

type Done = Result<(Hand, Result<Outcome, Failure>), JoinError>;

/// See the module.
pub(crate) struct Session<'a> {
    worker: &'a mut Worker,
    hand_slot: &'a mut Option<Hand>,
    identity: Option<Identity>,
    open: Option<OpenFile>,
    day_before: Option<Day>,
    committing: JoinSet<(Hand, Result<Outcome, Failure>)>,
    /// Something was not committed: what comes behind it can't be.
    is_over: bool,
    /// The pause that the trouble of this session asks for.
    pause: Pause,
}

impl<'a> Session<'a> {
    pub(crate) fn new(worker: &'a mut Worker, hand_slot: &'a mut Option<Hand>) -> Session<'a> {
        let identity = hand_slot.as_ref().map(|hand| hand.identity.clone());
        let day_before = hand_slot.as_ref().and_then(|hand| hand.writer.last_day());
        Session {
            worker,
            hand_slot,
            identity,
            open: None,
            day_before,
            committing: JoinSet::new(),
            is_over: false,
            pause: Pause::None,
        }
    }

    /// Works until a reset; `None` when there will be no more work.
    pub(crate) async fn run(mut self) -> Option<Pause> {
        loop {
            tokio::select! {
                biased;
                Some(done) = self.committing.join_next() => self.committed(done).await,
                work = self.worker.work.recv() => match work? {
                    Work::Reset(pause) => {
                        // The hand has to come back, and what is being committed is beyond doubt.
                        self.finish_committing().await;
                        return Some(pause.max(self.pause));
                    }
                    Work::Leave(cut) => {
                        if let Some(cut) = cut
                            && !self.is_over
                            && let Err(error) = self.cut(cut).await
                        {
                            self.fail(error).await;
                        }
                        self.finish_committing().await;
                        return None;
                    }
                    _ if self.is_over => {}
                    Work::Burst { start, burst, ends_row_group, meter } => {
                        if let Err(error) = self.burst(start, burst, ends_row_group, meter).await {
                            self.fail(error).await;
                        }
                    }
                    Work::Cut(cut) => {
                        if let Err(error) = self.cut(cut).await {
                            self.fail(error).await;
                        }
                    }
                },
            }
        }
    }

    async fn finish_committing(&mut self) {
        while let Some(done) = self.committing.join_next().await {
            self.committed(done).await;
        }
    }

    async fn burst(
        &mut self,
        start: Offset,
        burst: Burst,
        ends_row_group: bool,
        meter: Arc<SegmentMeter>,
    ) -> Result<(), SessionError> {
        if burst.is_empty() {
            return Ok(());
        }
        let identity = self.identity.clone().ok_or(SessionError::Died)?;
        let context = Arc::clone(&self.worker.context);
        let permit = Arc::clone(&context.encoders)
            .acquire_owned()
            .await
            .map_err(|_| SessionError::Died)?;
        let (open, day_before) = (self.open.take(), self.day_before);
        let encoded = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let new = NewFile {
                dir: &context.spool,
                identity,
                start,
                day_before,
                gauge: &context.memory.writers,
            };
            OpenFile::add(open, &new, burst, ends_row_group, &meter)
        });
        self.open = encoded.await.map_err(|_| SessionError::Died)??;
        Ok(())
    }

    async fn cut(&mut self, cut: CutWork) -> Result<(), SessionError> {
        let file = match self.open.take() {
            None => None,
            Some(open) => {
                self.day_before = Some(open.day);
                let encoders = Arc::clone(&self.worker.context.encoders);
                let permit = encoders
                    .acquire_owned()
                    .await
                    .map_err(|_| SessionError::Died)?;
                let end = cut.range.end();
                let finished = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    open.finish(end)
                });
                let finished = finished.await.map_err(|_| SessionError::Died)??;
                Some(Arc::new(finished))
            }
        };
        self.finish_committing().await;
        if self.is_over {
            return Ok(());
        }
        let hand = self.hand_slot.take().ok_or(SessionError::Died)?;
        let (context, ticket) = (Arc::clone(&self.worker.context), self.worker.ticket.clone());
        self.committing
            .spawn(commit(context, ticket, hand, Job { cut, file }));
        Ok(())
    }

    async fn committed(&mut self, done: Done) {
        let Ok((hand, outcome)) = done else {
            return self.fail(SessionError::Died).await;
        };
        *self.hand_slot = Some(hand);
        match outcome {
            Ok(Outcome::Committed) => self.worker.resets = Backoff::new(PAUSE_MAX),
            // The consumer knows, and what it still has comes before its reset.
            Ok(Outcome::Gone { whole }) => self.is_over |= !whole,
            Err(failure) => self.fail(failure.into()).await,
        }
    }

    /// Asks for a reset, once.
    async fn fail(&mut self, error: SessionError) {
        let pause = match &error {
            SessionError::Commit(Failure::Lost) => Pause::None,
            SessionError::Commit(Failure::Contended) => {
                self.worker.metrics.contended.inc();
                Pause::Off(CONTENDED_PAUSE)
            }
            _ => Pause::Frozen,
        };
        self.pause = self.pause.max(pause);
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let ticket = &self.worker.ticket;
        tracing::warn!(
            topic = &*ticket.topic,
            partition = ticket.partition,
            error = &error as &dyn Error,
            ?pause,
            "what is not committed is dropped and read again from the cluster"
        );
        self.worker
            .context
            .send(Command::Failed(ticket.clone(), pause))
            .await;
    }
}
