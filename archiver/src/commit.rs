//! One finished segment into the archive: upload, then ask for the topic id, then commit, in this order.
//!
//! Trouble of store or cluster is waited out here for as long as it takes; only what changes the partition's course
//! comes back as a [`Failure`]. Nothing is lost by giving up at any point: the next session starts at the archive's
//! own end.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use everlog_format::{Day, Offset, OffsetRange};
use everlog_index::{
    Appended, DataEntry, Entry, EntryKind, EpochStart, IndexError, Writer, WriterError, segment_key,
};
use everlog_store::{Body, Key, Put, StoreError};

use crate::decide::Backoff;
use crate::encode::{FinishedFile, Identity};
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
    pub(crate) file: Option<FinishedFile>,
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
    let range = job.cut.range;
    if job.cut.doubtful {
        overtaken(context, ticket, range.end()).await?;
    }
    let kind = match &job.file {
        None => EntryKind::Empty,
        Some(finished) => {
            let day = finished.summary.day;
            let key = segment_key(
                &hand.topic,
                hand.identity.partition,
                range,
                day,
                finished.summary.hash,
            );
            upload(context, ticket, &key, finished).await;
            EntryKind::Data(data_entry(finished, day))
        }
    };
    same_incarnation(context, ticket, hand, job).await?;
    append(context, ticket, hand, vec![Entry { range, kind }]).await?;
    if let Some(finished) = &job.file {
        let metrics = &context.metrics;
        metrics.records.inc_by(finished.summary.records);
        metrics.bytes.inc_by(finished.summary.raw_bytes);
        metrics.segments.inc();
        metrics.segment_bytes.inc_by(finished.summary.bytes);
    }
    let summary = job.file.as_ref().map(|finished| &finished.summary);
    tracing::info!(
        topic = &*ticket.topic,
        partition = ticket.partition,
        %range,
        records = summary.map_or(0, |summary| summary.records),
        bytes = summary.map_or(0, |summary| summary.bytes),
        why = job.cut.why.name(),
        "committed"
    );
    Ok(range.end())
}

fn data_entry(finished: &FinishedFile, day: Day) -> DataEntry {
    let summary = &finished.summary;
    DataEntry {
        hash: summary.hash,
        records: summary.records,
        bytes: summary.bytes,
        raw_bytes: summary.raw_bytes,
        min_timestamp_ms: summary.min_timestamp_ms,
        max_timestamp_ms: summary.max_timestamp_ms,
        epochs: summary
            .epochs
            .iter()
            .map(|&(epoch, start)| EpochStart { epoch, start })
            .collect(),
        day,
        time_disorder: summary.time_disorder,
        redacted: false,
        footer_len: summary.footer_len,
        supersedes: Vec::new(),
    }
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

/// A refused offset leaves what was read before it beyond doubt only if the live start has moved above it.
async fn overtaken(context: &Context, ticket: &Ticket, end: Offset) -> Result<(), Failure> {
    let mut backoff = Backoff::new(PAUSE_MAX);
    loop {
        match context
            .cluster
            .watermarks(&ticket.topic, ticket.partition)
            .await
        {
            Ok((live_start, _)) if end < live_start => return Ok(()),
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
