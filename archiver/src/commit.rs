//! One finished segment into the archive: upload, then ask for the topic id, then commit, in this order.
//!
//! Trouble of store or cluster is waited out here for as long as it takes; only what changes the partition's course
//! comes back as a [`Failure`]. Nothing is lost by giving up at any point: the next session starts at the archive's
//! own end.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use everlog_format::{Offset, OffsetRange};
use everlog_index::{
    Appended, DataEntry, Entry, EntryKind, IndexError, Writer, WriterError, segment_key,
};
use everlog_store::{Body, Key, Put, StoreError};

use crate::decide::Backoff;
use crate::encode::{EncodeError, FinishedFile, Identity};
use crate::message::{Command, CutWork, Ticket};
use crate::worker::Context;

/// The longest pause between two attempts.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The archive's side of one partition.
#[derive(Debug)]
pub(crate) struct Hand {
    pub(crate) identity: Identity,
    pub(crate) topic: everlog_index::TopicInfo,
    pub(crate) writer: Writer,
}

/// A range to be committed; without a file it holds no record.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) cut: CutWork,
    pub(crate) file: Option<Arc<FinishedFile>>,
}

/// Why a range was not committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Another writer was faster: go on at its end.
    #[error("another writer has committed first")]
    Lost,
    /// Another archiver holds the partition: stay off.
    #[error("another archiver keeps writing to this partition")]
    Contended,
    /// The records may belong to another incarnation: drop them.
    #[error("the topic was deleted or created again")]
    OtherIncarnation,
    /// The consumer was refused the next offset though the cluster still reaches down to it: read it again.
    #[error("the cluster's log does not go on where the last record was")]
    Doubtful,
    /// A segment of a topic that is gone can't be made from what was fetched: that is lost.
    #[error("what is left of a deleted topic can't be written")]
    NotShortened(#[source] Box<EncodeError>),
    /// A bug.
    #[error("a thread of this process ended unexpectedly")]
    Died,
    /// The archive itself is in trouble.
    #[error("the archive's index is in trouble")]
    Damaged(#[source] Box<WriterError>),
}

/// Commits `job`, waiting out what heals by itself.
pub(crate) async fn commit(
    context: Arc<Context>,
    ticket: Ticket,
    mut hand: Hand,
    job: Job,
) -> (Hand, Result<(), Failure>) {
    let done = try_commit(&context, &ticket, &mut hand, &job).await;
    if let Ok(end) = done {
        context.send(Command::Committed(ticket, end)).await;
    }
    (hand, done.map(|_| ()))
}

async fn try_commit(
    context: &Context,
    ticket: &Ticket,
    hand: &mut Hand,
    job: &Job,
) -> Result<Offset, Failure> {
    let checked = if job.cut.doubtful {
        not_truncated(context, ticket, hand, job).await
    } else {
        Ok(())
    };
    let checked = match checked {
        Ok(()) => {
            let kind = entry_kind(context, ticket, hand, job.cut.range, job.file.as_deref()).await;
            same_incarnation(context, ticket, hand, job)
                .await
                .map(|()| kind)
        }
        Err(failure) => Err(failure),
    };
    let kind = match checked {
        Ok(kind) => kind,
        Err(Failure::OtherIncarnation) => {
            commit_proven(context, ticket, hand, job).await?;
            return Err(Failure::OtherIncarnation);
        }
        Err(failure) => return Err(failure),
    };
    let range = job.cut.range;
    append(context, ticket, hand, vec![Entry { range, kind }]).await?;
    count(
        context,
        ticket,
        range,
        job.file.as_deref(),
        job.cut.why.name(),
    );
    Ok(range.end())
}

/// Of a topic that is gone, commits what was fetched before its id was last seen: nobody can fetch it again.
async fn commit_proven(
    context: &Context,
    ticket: &Ticket,
    hand: &mut Hand,
    job: &Job,
) -> Result<(), Failure> {
    let proven = job.cut.proven.part_of(job.cut.range);
    tracing::warn!(
        topic = &*ticket.topic,
        partition = ticket.partition,
        fetched = %job.cut.range,
        proven = proven.map(tracing::field::display),
        "the topic is gone: what was fetched after its id was last seen is dropped"
    );
    let Some(range) = proven else {
        return Ok(());
    };
    let file = match &job.file {
        Some(whole) if range != job.cut.range => {
            let (whole, spool) = (Arc::clone(whole), Arc::clone(&context.spool));
            let end = range.end();
            let shortened = tokio::task::spawn_blocking(move || whole.shortened(&spool, end));
            let shortened = shortened.await.map_err(|_| Failure::Died)?;
            shortened
                .map_err(|error| Failure::NotShortened(Box::new(error)))?
                .map(Arc::new)
        }
        whole => whole.clone(),
    };
    let file = file.as_deref();
    let kind = entry_kind(context, ticket, hand, range, file).await;
    append(context, ticket, hand, vec![Entry { range, kind }]).await?;
    count(context, ticket, range, file, job.cut.why.name());
    Ok(())
}

/// Uploads the segment, if there is one, and says what its entry is to be.
async fn entry_kind(
    context: &Context,
    ticket: &Ticket,
    hand: &Hand,
    range: OffsetRange,
    file: Option<&FinishedFile>,
) -> EntryKind {
    let Some(finished) = file else {
        return EntryKind::Empty;
    };
    let summary = &finished.summary;
    let partition = hand.identity.partition;
    let key = segment_key(&hand.topic, partition, range, summary.day, summary.hash);
    upload(context, ticket, &key, finished).await;
    EntryKind::Data(DataEntry::of(summary))
}

/// Tells metrics and log of a commit.
fn count(
    context: &Context,
    ticket: &Ticket,
    range: OffsetRange,
    file: Option<&FinishedFile>,
    why: &'static str,
) {
    let summary = file.map(|finished| &finished.summary);
    if let Some(summary) = summary {
        let metrics = &context.metrics;
        metrics.records.inc_by(summary.records);
        metrics.bytes.inc_by(summary.raw_bytes);
        metrics.segments.inc();
        metrics.segment_bytes.inc_by(summary.bytes);
    }
    tracing::info!(
        topic = &*ticket.topic,
        partition = ticket.partition,
        %range,
        records = summary.map_or(0, |summary| summary.records),
        bytes = summary.map_or(0, |summary| summary.bytes),
        why,
        "committed"
    );
}

/// Waits after a failed attempt and logs it: the first at once, later ones ever more rarely.
pub(crate) async fn wait(
    context: &Context,
    ticket: &Ticket,
    backoff: &mut Backoff,
    what: &str,
    error: &(dyn Error + Send + Sync + 'static),
) {
    let (pause, log) = backoff.failed(rand::random());
    context.metrics.retries.inc();
    if log {
        tracing::warn!(
            topic = &*ticket.topic,
            partition = ticket.partition,
            what,
            error = error as &dyn Error,
            attempt = backoff.attempts(),
            ?pause,
            "an attempt failed, will retry"
        );
    }
    tokio::time::sleep(pause).await;
}

/// A refused offset leaves what was read before it beyond doubt only if the live start has moved above it. In a topic
/// that was created again, it may be refused too.
async fn not_truncated(
    context: &Context,
    ticket: &Ticket,
    hand: &Hand,
    job: &Job,
) -> Result<(), Failure> {
    let mut backoff = Backoff::new(PAUSE_MAX);
    loop {
        let asked = context
            .cluster
            .watermarks(&ticket.topic, ticket.partition)
            .await;
        same_incarnation(context, ticket, hand, job).await?;
        match asked {
            Ok((live_start, _)) if job.cut.range.end() < live_start => return Ok(()),
            Ok(_) => return Err(Failure::Doubtful),
            Err(error) => {
                wait(
                    context,
                    ticket,
                    &mut backoff,
                    "asking for the live start",
                    &error,
                )
                .await
            }
        }
    }
}

async fn upload(context: &Context, ticket: &Ticket, key: &Key, finished: &FinishedFile) {
    let body = Body::File {
        path: finished.file.path().to_owned(),
        len: finished.summary.bytes,
    };
    let store = context.archive.store();
    let mut backoff = Backoff::new(PAUSE_MAX);
    loop {
        let digest = *finished.summary.hash.as_bytes();
        let error = match store.put_if_absent(key, body.clone(), digest).await {
            Ok(Put::Created) => return,
            // The name holds the hash of bytes with our own salt, so whatever is there under it is this segment: an
            // earlier attempt of ours that seemed to fail. But only reading it proves that it is there.
            Ok(Put::Refused) => {
                match store.get_range(key, 0..finished.summary.bytes.min(4)).await {
                    Ok(_) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        wait(context, ticket, &mut backoff, "uploading a segment", &error).await;
    }
}

async fn same_incarnation(
    context: &Context,
    ticket: &Ticket,
    hand: &Hand,
    job: &Job,
) -> Result<(), Failure> {
    let mut backoff = Backoff::new(PAUSE_MAX);
    loop {
        match context
            .cluster
            .incarnation(&ticket.topic, &job.cut.served)
            .await
        {
            Ok(Some(id)) if id == hand.identity.incarnation.topic_id => return Ok(()),
            Ok(_) => return Err(Failure::OtherIncarnation),
            Err(error) => {
                wait(
                    context,
                    ticket,
                    &mut backoff,
                    "asking for the topic's id",
                    &error,
                )
                .await
            }
        }
    }
}

/// Appends `entries`, again and again while the store does not answer.
pub(crate) async fn append(
    context: &Context,
    ticket: &Ticket,
    hand: &mut Hand,
    entries: Vec<Entry>,
) -> Result<(), Failure> {
    let mut backoff = Backoff::new(PAUSE_MAX);
    loop {
        let error = match hand.writer.append(entries.clone()).await {
            Ok(Appended::Committed(_)) => {
                context.metrics.commits.inc();
                return Ok(());
            }
            Ok(Appended::Lost { .. }) => {
                context.metrics.commits_lost.inc();
                return Err(Failure::Lost);
            }
            Err(WriterError::Contended { .. }) => return Err(Failure::Contended),
            Err(error @ (WriterError::Gap { .. } | WriterError::Invalid { .. })) => {
                return Err(Failure::Damaged(Box::new(error)));
            }
            Err(WriterError::Index(error)) => error,
        };
        match error {
            IndexError::Store(StoreError::Unavailable { .. } | StoreError::Refused { .. }) => {
                wait(context, ticket, &mut backoff, "committing", &error).await;
            }
            other => return Err(Failure::Damaged(Box::new(WriterError::Index(other)))),
        }
    }
}

/// The entry for records that are gone for good.
pub(crate) fn hole(range: OffsetRange) -> Entry {
    Entry {
        range,
        kind: EntryKind::Hole(everlog_index::HoleReason::Retention),
    }
}
