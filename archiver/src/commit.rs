//! One finished segment into the archive: upload, then ask for the topic id, then commit, in this order.
//!
//! Trouble of store or cluster is waited out here for as long as it takes; only what changes the partition's course
//! comes back as a [`Failure`]. Nothing is lost by giving up at any point: the next session starts at the archive's
//! own end.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use everlog_format::{OffsetRange, TopicId};
use everlog_index::{
    Appended, DataEntry, Entry, EntryKind, IndexError, Writer, WriterError, segment_key,
};
use everlog_store::{Body, Key, Put, StoreError};
use tokio::sync::oneshot;

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

/// How a commit ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    /// The topic was deleted or created again; the part that is proven is committed. `whole`: that is all of it, so
    /// what comes behind it can be committed too.
    Gone {
        whole: bool,
    },
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
) -> (Hand, Result<Outcome, Failure>) {
    let done = try_commit(&context, &ticket, &mut hand, &job).await;
    (hand, done)
}

async fn try_commit(
    context: &Context,
    ticket: &Ticket,
    hand: &mut Hand,
    job: &Job,
) -> Result<Outcome, Failure> {
    if !job.cut.doubtful || not_truncated(context, ticket, hand, job).await? {
        let (range, file) = (job.cut.range, job.file.as_deref());
        let kind = entry_kind(context, ticket, hand, range, file).await;
        // Asked after the upload, which may have taken long.
        if is_ours(context, ticket, hand, job).await {
            append_one(context, ticket, hand, job, Entry { range, kind }, file).await?;
            return Ok(Outcome::Committed);
        }
    }
    let (noted, wait) = oneshot::channel();
    context.send(Command::Gone(ticket.clone(), noted)).await;
    // From here on nothing more of the session is proven, so that this cut and those behind it are judged alike. An error
    // says that the archiver is ending.
    let _ = wait.await;
    let whole = commit_proven(context, ticket, hand, job).await?;
    Ok(Outcome::Gone { whole })
}

async fn append_one(
    context: &Context,
    ticket: &Ticket,
    hand: &mut Hand,
    job: &Job,
    entry: Entry,
    file: Option<&FinishedFile>,
) -> Result<(), Failure> {
    let range = entry.range;
    append(context, ticket, hand, vec![entry]).await?;
    count(context, ticket, range, file, job.cut.why.name());
    let committed = Command::Committed(ticket.clone(), range.end());
    context.send(committed).await;
    Ok(())
}

/// Of a topic that is gone, commits what was fetched before its id was last seen: nobody can fetch it again. Whether
/// that was all.
async fn commit_proven(
    context: &Context,
    ticket: &Ticket,
    hand: &mut Hand,
    job: &Job,
) -> Result<bool, Failure> {
    let proven = job.cut.proven.part_of(job.cut.range);
    tracing::warn!(
        topic = &*ticket.topic,
        partition = ticket.partition,
        fetched = %job.cut.range,
        proven = proven.map(tracing::field::display),
        "the topic is gone: what was fetched after its id was last seen is dropped"
    );
    let Some(range) = proven else {
        return Ok(false);
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
    append_one(context, ticket, hand, job, Entry { range, kind }, file).await?;
    Ok(range == job.cut.range)
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
/// that was created again, it may be refused too: then the answer is no.
async fn not_truncated(
    context: &Context,
    ticket: &Ticket,
    hand: &Hand,
    job: &Job,
) -> Result<bool, Failure> {
    let mut backoff = Backoff::new(PAUSE_MAX);
    loop {
        let asked = context
            .cluster
            .watermarks(&ticket.topic, ticket.partition)
            .await;
        if !is_ours(context, ticket, hand, job).await {
            return Ok(false);
        }
        match asked {
            Ok((live_start, _)) if job.cut.range.end() < live_start => return Ok(true),
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

/// Whether the topic is still the incarnation that was fetched.
async fn is_ours(context: &Context, ticket: &Ticket, hand: &Hand, job: &Job) -> bool {
    let ours = hand.identity.incarnation.topic_id;
    !topic_is_gone(context, ticket, &job.cut.served, ours).await
}

/// Whether the topic is no longer the incarnation `ours`; asks the brokers that have `served` it (none: all) until they
/// answer.
pub(crate) async fn topic_is_gone(
    context: &Context,
    ticket: &Ticket,
    served: &BTreeSet<i32>,
    ours: TopicId,
) -> bool {
    let (mut backoff, what) = (Backoff::new(PAUSE_MAX), "asking for the topic's id");
    loop {
        match context.cluster.incarnation(&ticket.topic, served).await {
            Ok(sight) => return sight.map(|sight| sight.id) != Some(ours),
            Err(error) => wait(context, ticket, &mut backoff, what, &error).await,
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
