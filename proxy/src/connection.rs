//! One client connection and the upstream connection that belongs to it.
//!
//! Three parts run side by side: the *reader* takes the client's requests in order and sends them on or answers them;
//! `upstream::Replies` hands out the broker's answers; the *writer* writes responses in the order of the requests.
//! Requests that pass are sent on at once, so a producer's pipelining survives. A request that is answered here is
//! worked on while the reader waits, as a broker would (it serves one request of a connection at a time); what was
//! sent before it has its answer first, since the broker answers in order.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::ApiKey;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::api;
use crate::api::addressed::Passing;
use crate::budget::Room;
use crate::conversation::Conversation;
use crate::frame::{FrameError, FrameReader, Patience, write_chunks_while};
use crate::nodes::Target;
use crate::passthrough;
use crate::shape::Malformed;
use crate::shared::Shared;
use crate::upstream::{self, Frame, Gone, Replies, Reply, Upstream};
use crate::versions::{self, Reviewed, Treatment};
use crate::wire::{Prefix, WireError};

/// Responses that may wait for the writer.
const SLOTS_MAX: usize = 64;

/// What was delivered before the broker closed is still written for this long: an error that it sends before it closes
/// must arrive.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// The largest request that is decoded, in bytes. A fetch of 100,000 partitions fits.
const DECODED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A request that is decoded takes room as if it were so many times as long: each partition of a fetch has some 35
/// bytes on the wire, and several hundred while it is worked on. The rest is small enough to be let be.
const DECODED_FACTOR: usize = 8;

/// Requests up to this size are read whole before they are sent on.
const WHOLE_BYTES_MAX: usize = 64 * 1024;

/// A response frame, from the correlation id on, in pieces; and what must live until it is written.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) chunks: Vec<Bytes>,
    pub(crate) room: Room,
}

impl From<Bytes> for Answer {
    fn from(frame: Bytes) -> Answer {
        Answer {
            chunks: vec![frame],
            room: None,
        }
    }
}

/// A place in the order of responses.
#[derive(Debug)]
enum Slot {
    Ready(Answer),
    /// The broker's answer, to be patched and given the client's correlation id.
    Passing {
        reply: Reply,
        api: &'static Reviewed,
        prefix: Prefix,
    },
}

/// Why a connection ended, split by what is logged.
#[derive(Debug, thiserror::Error)]
enum End {
    /// As clients do all the time.
    #[error("closed by the client")]
    Closed,
    /// Shutting down, and everything was answered.
    #[error("drained")]
    Drained,
    /// Nothing was heard for longer than brokers wait.
    #[error("idle")]
    Idle,
    /// The client sent what no client of Kafka sends, or stopped half way.
    #[error("rejected: {reason}")]
    Rejected {
        reason: &'static str,
        source: Box<dyn Error + Send + Sync>,
    },
    /// A request that no reviewed version covers. Brokers close the connection too.
    #[error("API key {} version {} is not offered", .0.key, .0.version)]
    NotOffered(Prefix),
    /// The broker's side ended. Clients look for their broker again.
    #[error("the upstream connection ended")]
    Upstream(#[source] Gone),
    /// The client does not take its responses.
    #[error("the client's socket failed")]
    Write(#[source] std::io::Error),
}

/// Serves one client until either side ends or the shutdown has drained it.
pub(crate) async fn serve(
    client: TcpStream,
    target: Target,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    let peer = client.peer_addr().ok();
    shared.metrics.connections.inc();
    let end = match open(&client, target, &shared).await {
        Ok((upstream, replies)) => {
            Box::pin(run(client, upstream, replies, &shared, &shutdown)).await
        }
        Err(gone) => {
            // Reset, as if nobody listened: a connection that opens and then ends before its first answer looks to
            // clients like a wrong security protocol, and some then give up for good.
            let _ = socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
            drop(client);
            End::Upstream(gone)
        }
    };
    shared.metrics.connections.dec();
    log(&end, peer, target, &shared);
}

async fn open(
    client: &TcpStream,
    target: Target,
    shared: &Shared,
) -> Result<(Upstream, Replies), Gone> {
    upstream::tune(client)?;
    let stream = shared.connect(target).await?;
    Ok(upstream::open(
        stream,
        shared.responses.clone(),
        shared.patience,
    ))
}

async fn run(
    client: TcpStream,
    upstream: Upstream,
    replies: Replies,
    shared: &Arc<Shared>,
    shutdown: &CancellationToken,
) -> End {
    let (read, write) = client.into_split();
    let (slots, waiting) = mpsc::channel(SLOTS_MAX);
    let outstanding = Arc::new(AtomicUsize::new(0));
    let mut writer = Box::pin(write_responses(
        write,
        waiting,
        Arc::clone(shared),
        Arc::clone(&outstanding),
    ));
    let mut reader = Reader {
        frames: FrameReader::new(read),
        conversation: Conversation::new(Arc::clone(shared), upstream),
        slots: Some(slots),
        outstanding,
        shared: Arc::clone(shared),
    };
    let upstream_end = {
        let read_all = async {
            match reader.run(shutdown).await {
                // The writer ends by itself once it has written what is due.
                End::Drained => {
                    reader.slots = None;
                    std::future::pending().await
                }
                end => end,
            }
        };
        tokio::select! {
            end = Box::pin(read_all) => return end,
            end = &mut writer => return end,
            gone = Box::pin(replies.run()) => gone,
        }
    };
    drop(reader);
    // The writer ends at the first answer that will not come.
    let _ = timeout(FLUSH_MAX, writer).await;
    End::Upstream(upstream_end)
}

fn log(end: &End, peer: Option<std::net::SocketAddr>, target: Target, shared: &Shared) {
    let error: &dyn Error = end;
    let peer = peer.map(tracing::field::display);
    match end {
        End::Closed | End::Drained | End::Idle => debug!(peer, %target, %end, "connection ended"),
        End::Rejected { reason, .. } => {
            shared.metrics.rejected.with_label_values(&[reason]).inc();
            warn!(peer, %target, reason, error, "connection rejected");
        }
        End::NotOffered(prefix) => {
            shared
                .metrics
                .rejected
                .with_label_values(&["not_offered"])
                .inc();
            warn!(
                peer,
                %target,
                key = prefix.key,
                version = prefix.version,
                "connection closed: API is not offered"
            );
        }
        End::Upstream(Gone::Closed) => debug!(peer, %target, "connection ended by the broker"),
        End::Upstream(_) => info!(peer, %target, error, "connection ended with the broker's"),
        End::Write(_) => debug!(peer, %target, error, "connection ended"),
    }
}

/// The client's requests, in order.
struct Reader {
    frames: FrameReader<OwnedReadHalf>,
    conversation: Conversation,
    /// `None` once no more responses will come.
    slots: Option<mpsc::Sender<Slot>>,
    /// Responses that are due: while there are some, a silent client is not idle.
    outstanding: Arc<AtomicUsize>,
    shared: Arc<Shared>,
}

impl Reader {
    async fn run(&mut self, shutdown: &CancellationToken) -> End {
        let mut patience = Patience {
            idle: self.shared.first_request,
            ..self.shared.patience
        };
        loop {
            let next = tokio::select! {
                () = shutdown.cancelled() => return End::Drained,
                next = self.frames.length(patience) => next,
            };
            patience = self.shared.patience;
            let served = match next {
                Ok(len) => self.request(len).await,
                Err(FrameError::Idle) if self.outstanding.load(Ordering::Relaxed) > 0 => continue,
                Err(error) => Err(from_client(error)),
            };
            if let Err(end) = served {
                return end;
            }
        }
    }

    async fn request(&mut self, len: usize) -> Result<(), End> {
        if len < Prefix::BYTES {
            return Err(rejected("malformed", Malformed));
        }
        let start = self.take(Prefix::BYTES).await?;
        let prefix = Prefix::read(&start).map_err(|error| rejected("malformed", error))?;
        let Some(api) = versions::find(prefix.key, prefix.version) else {
            return self.not_reviewed(prefix, len).await;
        };
        self.shared
            .metrics
            .requests
            .with_label_values(&[api.name])
            .inc();
        let served = self.reviewed(api, prefix, start, len).await;
        if served.is_err() {
            self.shared
                .metrics
                .request_errors
                .with_label_values(&[api.name])
                .inc();
        }
        served
    }

    async fn reviewed(
        &mut self,
        api: &'static Reviewed,
        prefix: Prefix,
        start: BytesMut,
        len: usize,
    ) -> Result<(), End> {
        if prefix.key == ApiKey::SaslHandshake as i16 && prefix.version == 0 {
            self.rest(start, len, WHOLE_BYTES_MAX).await?;
            let refusal = api::k17_sasl_handshake::refuse(prefix.correlation)
                .map_err(|e| rejected("malformed", e))?;
            return self.answer(refusal.into()).await;
        }
        if prefix.key == ApiKey::Produce as i16 {
            return self.produce(api, prefix, start, len).await;
        }
        if api.treatment == Treatment::Answered {
            let bytes = len.min(DECODED_BYTES_MAX);
            let room = self
                .shared
                .requests
                .reserve_times(bytes, DECODED_FACTOR)
                .await;
            let frame = self.rest(start, len, DECODED_BYTES_MAX).await?;
            let answer = self.converse(prefix, frame).await?;
            drop(room);
            return self.answer(answer).await;
        }
        if prefix.key == ApiKey::DescribeCluster as i16 {
            let frame = self.rest(start, len, WHOLE_BYTES_MAX).await?;
            let refusal = api::k60_describe_cluster::refuse(
                prefix.version,
                prefix.correlation,
                frame.clone(),
            );
            return match refusal.map_err(|error| rejected("malformed", error))? {
                Some(refusal) => self.answer(refusal.into()).await,
                None => {
                    let reply = self
                        .conversation
                        .upstream
                        .send(frame)
                        .await
                        .map_err(End::Upstream)?;
                    self.passing(reply, api, prefix).await
                }
            };
        }
        let reply = self.pass(start, len, true).await?;
        match reply {
            Some(reply) => self.passing(reply, api, prefix).await,
            None => Ok(()),
        }
    }

    /// Closes the connection, but for the one question whose point is to be asked too high (KIP-511).
    async fn not_reviewed(&mut self, prefix: Prefix, len: usize) -> Result<(), End> {
        if prefix.key != ApiKey::ApiVersions as i16 || prefix.version < 0 {
            return Err(End::NotOffered(prefix));
        }
        passthrough::skip(&mut self.frames, len - Prefix::BYTES, self.shared.patience)
            .await
            .map_err(from_client)?;
        let answer = api::k18_api_versions::too_high(prefix.correlation)
            .map_err(|e| rejected("malformed", e))?;
        self.answer(answer.into()).await
    }

    /// Records are passed on as they arrive: only what stands before them is held.
    async fn produce(
        &mut self,
        api: &'static Reviewed,
        prefix: Prefix,
        start: BytesMut,
        len: usize,
    ) -> Result<(), End> {
        let (head, acks) = passthrough::produce_head(
            &mut self.frames,
            prefix.version,
            start,
            len,
            self.shared.patience,
        )
        .await
        .map_err(from_client)?;
        let answered = match acks {
            api::k00_produce::Acks::Some => true,
            api::k00_produce::Acks::None => false,
            api::k00_produce::Acks::Unread | api::k00_produce::Acks::Malformed => {
                return Err(rejected("malformed", Malformed));
            }
        };
        match self.pass(head, len, answered).await? {
            Some(reply) => self.passing(reply, api, prefix).await,
            None => Ok(()),
        }
    }

    /// Sends a request on of which `head` was read.
    async fn pass(
        &mut self,
        head: BytesMut,
        len: usize,
        answered: bool,
    ) -> Result<Option<Reply>, End> {
        let head = if len <= WHOLE_BYTES_MAX {
            self.rest(head, len, WHOLE_BYTES_MAX).await?
        } else {
            head.freeze()
        };
        let mut missing = len - head.len();
        let reply = self
            .conversation
            .upstream
            .begin(head, len, answered)
            .await
            .map_err(End::Upstream)?;
        while missing > 0 {
            let part = self
                .frames
                .some(missing, self.shared.patience)
                .await
                .map_err(from_client)?;
            missing -= part.len();
            self.conversation
                .upstream
                .go_on(part)
                .await
                .map_err(End::Upstream)?;
        }
        Ok(reply)
    }

    /// Works on a request that is answered here. Gives up when the client goes away.
    async fn converse(&mut self, prefix: Prefix, frame: Bytes) -> Result<Answer, End> {
        let answer = Box::pin(self.conversation.answer(prefix, frame));
        tokio::select! {
            answer = answer => answer.map_err(|error| match error {
                crate::conversation::Failed::Request(error) => rejected("malformed", error),
                crate::conversation::Failed::Follower => rejected("follower", Malformed),
                crate::conversation::Failed::Upstream(gone) => End::Upstream(gone),
            }),
            () = self.frames.closed() => Err(End::Closed),
        }
    }

    async fn passing(
        &mut self,
        reply: Reply,
        api: &'static Reviewed,
        prefix: Prefix,
    ) -> Result<(), End> {
        self.slot(Slot::Passing { reply, api, prefix }).await
    }

    async fn answer(&mut self, answer: Answer) -> Result<(), End> {
        self.slot(Slot::Ready(answer)).await
    }

    async fn slot(&mut self, slot: Slot) -> Result<(), End> {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        match &self.slots {
            Some(slots) => slots.send(slot).await.map_err(|_| End::Closed),
            None => Err(End::Drained),
        }
    }

    async fn take(&mut self, len: usize) -> Result<BytesMut, End> {
        self.frames
            .take(len, self.shared.patience)
            .await
            .map_err(from_client)
    }

    /// The whole frame, of which `start` was read.
    async fn rest(&mut self, mut start: BytesMut, len: usize, max: usize) -> Result<Bytes, End> {
        if len > max {
            return Err(rejected("too_large", Malformed));
        }
        let missing = len - start.len();
        // The start was split off the read-ahead buffer, so this mostly joins the two again without copying.
        start.unsplit(self.take(missing).await?);
        Ok(start.freeze())
    }
}

fn rejected(reason: &'static str, source: impl Error + Send + Sync + 'static) -> End {
    End::Rejected {
        reason,
        source: Box::new(source),
    }
}

fn from_client(error: FrameError) -> End {
    match error {
        FrameError::Closed => End::Closed,
        FrameError::Idle => End::Idle,
        FrameError::Half => rejected("half_frame", error),
        FrameError::Tls => rejected("tls", error),
        FrameError::Length(_) => rejected("frame_length", error),
        FrameError::Io(_) => End::Closed,
    }
}

/// Writes responses in the order of their slots.
async fn write_responses(
    mut client: OwnedWriteHalf,
    mut slots: mpsc::Receiver<Slot>,
    shared: Arc<Shared>,
    outstanding: Arc<AtomicUsize>,
) -> End {
    while let Some(slot) = slots.recv().await {
        let answer = match slot {
            Slot::Ready(answer) => answer,
            Slot::Passing { reply, api, prefix } => {
                let Ok(frame) = reply.await else {
                    return End::Upstream(Gone::Closed);
                };
                match patch(api, prefix, frame, &shared) {
                    Ok(answer) => answer,
                    Err(error) => return End::Upstream(Gone::Wire(error)),
                }
            }
        };
        if let Err(error) = write_answer(&mut client, answer, &shared).await {
            return End::Write(error);
        }
        outstanding.fetch_sub(1, Ordering::Relaxed);
    }
    End::Drained
}

async fn write_answer(
    client: &mut OwnedWriteHalf,
    answer: Answer,
    shared: &Shared,
) -> std::io::Result<()> {
    let Answer { mut chunks, room } = answer;
    let len: usize = chunks.iter().map(Bytes::len).sum();
    let mut length = BytesMut::with_capacity(4);
    length.put_i32(i32::try_from(len).map_err(|_| std::io::ErrorKind::InvalidData)?);
    chunks.insert(0, length.freeze());
    let goes_on = |stalled| stalled < shared.client_write && !shared.is_crowded();
    let written = write_chunks_while(client, &chunks, shared.crowded_write, goes_on).await;
    drop(room);
    written
}

/// The client's correlation id, and our addresses where the response has addresses.
fn patch(
    reviewed: &Reviewed,
    prefix: Prefix,
    frame: Frame,
    shared: &Shared,
) -> Result<Answer, WireError> {
    let Frame { bytes, room } = frame;
    let passing = Passing {
        version: prefix.version,
        correlation: prefix.correlation,
        frame: &bytes,
        nodes: &shared.nodes,
    };
    let patched = match ApiKey::try_from(reviewed.key) {
        Ok(ApiKey::Produce) => api::k00_produce::patch(&passing)?,
        Ok(ApiKey::Metadata) => api::k03_metadata::patch(&passing)?,
        Ok(ApiKey::FindCoordinator) => api::k10_find_coordinator::patch(&passing)?,
        Ok(ApiKey::DescribeCluster) => api::k60_describe_cluster::patch(&passing)?,
        Ok(ApiKey::ShareFetch) => api::k78_share_fetch::patch(&passing)?,
        Ok(ApiKey::ShareAcknowledge) => api::k79_share_acknowledge::patch(&passing)?,
        _ => None,
    };
    let chunks = match patched {
        Some(frame) => vec![frame],
        None => vec![
            Bytes::copy_from_slice(&prefix.correlation.to_be_bytes()),
            bytes.slice(4..),
        ],
    };
    shared.note_nodes();
    Ok(Answer { chunks, room })
}
