//! Fetch, versions 4 to 18: archived records below the archived end, the cluster's from there on.
//!
//! | version | what happens |
//! |---------|--------------|
//! | 4-12    | topics by name: each becomes an id by our own Metadata request on the client's connection, and shadows ask by id, so that a topic that was made anew is told from the one before |
//! | 13-18   | topics by id |
//! | 7-18    | sessions are declined on both sides: id 0 to the client, a full fetch to the broker |
//! | 16-18   | `node_endpoints` are replaced |
//!
//! Every answer begins with the broker's: the client's own fetch for what is live, and for what is archived a *shadow*,
//! a fetch at the last known high watermark that brings next to nothing but proves in this very round trip that the
//! client may read, that it talks to the right broker about the right topic, and where the log ends now. An error that
//! the broker gives for a partition is the answer for it, and a throttled broker's empty answer proves nothing: then no
//! archived byte leaves. One partition's answer comes from one side only.

mod answer;
mod archived;
mod live;
mod memory;
mod proof;
mod request;

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, FetchRequest, FetchResponse};
use tokio::time::Instant;

use crate::api::addressed::replace_all;
use crate::connection::Answer;
use crate::conversation::{Conversation, Failed};
use crate::shape;
use crate::upstream::{Frame, Gone};
use crate::wire::{self, Prefix};

use answer::{Parts, Served};
use request::Wanted;

pub(crate) use memory::FetchMemory;

const KEY: ApiKey = ApiKey::Fetch;

/// A client that does not want to wait at all gets what the archive has within this time.
const WAIT_MIN: Duration = Duration::from_millis(50);

/// A consumer, as opposed to a follower or a debugger.
const CONSUMER: i32 = -1;

/// What the client's session fields ask for (KIP-227).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    /// All partitions are named, whether or not the client would like a session.
    Full,
    /// Only changes are named, against a session that is none of ours.
    Unknown,
}

impl Session {
    fn of(request: &FetchRequest) -> Session {
        // Epoch 0 asks for a new session, -1 for none (and closes the one named): both name all partitions.
        if 0 < request.session_epoch {
            Session::Unknown
        } else {
            Session::Full
        }
    }
}

/// Answers one Fetch.
pub(crate) async fn answer(
    conversation: &mut Conversation,
    prefix: Prefix,
    frame: Bytes,
) -> Result<Answer, Failed> {
    let version = prefix.version;
    let request: FetchRequest = conversation.read(KEY, version, &shape::FETCH_REQUEST, frame)?;
    let replica = if version >= 15 {
        request.replica_state.replica_id
    } else {
        request.replica_id
    };
    if replica.0 != CONSUMER {
        // A follower that could read the archive would take it for its leader's log.
        return if version < 7 {
            Err(Failed::Follower)
        } else {
            refuse(prefix, ResponseError::InvalidRequest)
        };
    }
    if Session::of(&request) == Session::Unknown {
        return refuse(prefix, ResponseError::FetchSessionIdNotFound);
    }
    let wanted = request::wanted(conversation, &request, version).await?;
    let proof_version = request::proof_version(conversation, version).await?;
    let mut fetch = Fetch::new(conversation, prefix, request, wanted, proof_version);
    fetch.learn_marks().await?;
    fetch.plan();
    if fetch.wanted.iter().any(Wanted::is_archived) {
        fetch.serve_mixed().await
    } else {
        fetch.serve_live().await
    }
}

fn refuse(prefix: Prefix, error: ResponseError) -> Result<Answer, Failed> {
    let response = FetchResponse::default().with_error_code(error.code());
    let frame = wire::encode_response(KEY, prefix.version, prefix.correlation, &response);
    Ok(frame.map_err(Gone::from)?.into())
}

/// One request on its way.
struct Fetch<'a> {
    conversation: &'a mut Conversation,
    prefix: Prefix,
    /// Without its topics: those are `wanted`.
    request: FetchRequest,
    wanted: Vec<Wanted>,
    /// The version of shadows, if it is not the client's.
    proof_version: Option<i16>,
    /// When the client has to have an answer, however empty.
    deadline: Instant,
    /// Record bytes that the answer may hold.
    max_bytes: usize,
}

/// What the broker said to one round of asking.
enum Round {
    /// It goes to the client as it is: throttled, or an error for all.
    Relay(Box<FetchResponse>),
    /// Partition by partition.
    Parts(Parts),
}

impl<'a> Fetch<'a> {
    fn new(
        conversation: &'a mut Conversation,
        prefix: Prefix,
        request: FetchRequest,
        wanted: Vec<Wanted>,
        proof_version: Option<i16>,
    ) -> Fetch<'a> {
        let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
        let max_bytes = usize::try_from(request.max_bytes)
            .unwrap_or(0)
            .min(conversation.shared.fetch_bytes_max);
        Fetch {
            conversation,
            prefix,
            request,
            wanted,
            proof_version,
            deadline: Instant::now() + wait.max(WAIT_MIN),
            max_bytes,
        }
    }

    /// Sends `request` upstream and sorts the answer by what was wanted.
    async fn round(&mut self, request: &FetchRequest) -> Result<Round, Gone> {
        let version = self.prefix.version;
        let reply = self.ask(version, request).await?;
        let Frame { bytes, room } = reply.await.map_err(|_| Gone::Closed)?;
        let response: FetchResponse =
            wire::decode_response(KEY, version, &shape::FETCH_RESPONSE, &bytes)?;
        // Throttled, a broker names no partition at all (KIP-219).
        let nothing_said = response.responses.is_empty() && !self.wanted.is_empty();
        if response.error_code != 0 || nothing_said {
            return Ok(Round::Relay(Box::new(response)));
        }
        Ok(Round::Parts(Parts::sort(response, &self.wanted, room)))
    }

    /// The broker's answer without its session.
    fn relay(&self, mut response: FetchResponse) -> Result<Answer, Failed> {
        response.session_id = 0;
        let nodes = &self.conversation.shared.nodes;
        replace_all(&mut response.node_endpoints, nodes);
        let frame =
            wire::encode_response(KEY, self.prefix.version, self.prefix.correlation, &response);
        Ok(frame.map_err(Gone::from)?.into())
    }

    /// The answer that was put together.
    fn send(&mut self, mut parts: Parts) -> Answer {
        for (wanted, part) in self.wanted.iter().zip(&mut parts.parts) {
            wanted.finish(part);
            if wanted.unresolved && part.served == Served::Live && part.data.error_code == 0 {
                wanted.doubt_partition_count(&mut self.conversation.topics);
            }
        }
        replace_all(&mut parts.node_endpoints, &self.conversation.shared.nodes);
        let replayed: usize = parts
            .parts
            .iter()
            .filter(|part| part.served == Served::Archive)
            .map(|part| part.bytes())
            .sum();
        self.conversation
            .shared
            .metrics
            .replayed_bytes
            .inc_by(replayed as u64);
        self.conversation.fetches.account.served(replayed);
        answer::encode(self.prefix, &self.wanted, parts)
    }
}
