//! Shadows by id for clients that name topics (Fetch up to 12): a request of their own, in the first version that has ids.
//!
//! It is sent in front of what is asked live, so both take one round trip. Its answers become those of a request by name.

use std::collections::HashMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{FetchRequest, FetchResponse, TopicName};
use uuid::Uuid;

use crate::shape;
use crate::upstream::{Frame, Gone, Reply};
use crate::wire;

use super::answer::Parts;
use super::request::Questions;
use super::{Fetch, KEY, Round};

/// Whether a broker that was asked by id says that it knows the id no longer, or under another name.
pub(super) fn is_other_topic(code: i16) -> bool {
    code == ResponseError::UnknownTopicId.code()
        || code == ResponseError::InconsistentTopicId.code()
}

impl Fetch<'_> {
    /// As [`Fetch::round`], for a request with shadows.
    pub(super) async fn shadowed_round(&mut self, questions: Questions) -> Result<Round, Gone> {
        let Questions { request, proof } = questions;
        let Some((proof_version, proof)) = proof else {
            return self.round(&request).await;
        };
        let reply = self.ask(proof_version, &proof).await?;
        let live = if request.topics.is_empty() {
            None
        } else {
            Some(self.ask(self.prefix.version, &request).await?)
        };
        // Its room is given back before the answer to the other request asks for its own.
        let proved = self.proved(proof_version, reply).await?;
        if proved.error_code != 0 || proved.responses.is_empty() {
            // Throttled, or refused as a whole: proves nothing.
            return Ok(Round::Relay(Box::new(proved)));
        }
        let Some(live) = live else {
            return Ok(Round::Parts(Parts::sort(proved, &self.wanted, None)));
        };
        let Frame { bytes, room } = live.await.map_err(|_| Gone::Closed)?;
        let version = self.prefix.version;
        let mut response: FetchResponse =
            wire::decode_response(KEY, version, &shape::FETCH_RESPONSE, &bytes)?;
        if response.error_code != 0 || response.responses.is_empty() {
            return Ok(Round::Relay(Box::new(response)));
        }
        response.throttle_time_ms = response.throttle_time_ms.max(proved.throttle_time_ms);
        response.responses.extend(proved.responses);
        Ok(Round::Parts(Parts::sort(response, &self.wanted, room)))
    }

    /// The answer to shadows by id as one to shadows by name, without what they brought.
    async fn proved(&mut self, version: i16, reply: Reply) -> Result<FetchResponse, Gone> {
        let Frame { bytes, room } = reply.await.map_err(|_| Gone::Closed)?;
        let mut response: FetchResponse =
            wire::decode_response(KEY, version, &shape::FETCH_RESPONSE, &bytes)?;
        let names: HashMap<Uuid, TopicName> = self
            .wanted
            .iter()
            .filter_map(|wanted| Some((wanted.id()?, wanted.topic.name.clone())))
            .collect();
        let mut dropped = 0;
        for topic in &mut response.responses {
            topic.topic = names.get(&topic.topic_id).cloned().unwrap_or_default();
            topic.topic_id = Uuid::nil();
            for partition in &mut topic.partitions {
                dropped += partition.records.take().map_or(0, |records| records.len());
                partition.error_code = error_for(self.prefix.version, partition.error_code);
            }
        }
        if self.prefix.version < 7 {
            // There it has no place; without a topic the answer is one that the client asks again after.
            response.error_code = 0;
        }
        drop(room);
        self.note_dropped(dropped);
        Ok(response)
    }

    /// Counts record bytes that shadows brought and nobody gets.
    pub(super) fn note_dropped(&mut self, bytes: usize) {
        let shared = &self.conversation.shared;
        shared.metrics.shadow_dropped_bytes.inc_by(bytes as u64);
        self.conversation.fetches.account.dropped(bytes);
    }

    /// Sends a request upstream.
    pub(super) async fn ask(
        &mut self,
        version: i16,
        request: &FetchRequest,
    ) -> Result<Reply, Gone> {
        let client_id = self.conversation.client_id.clone();
        self.conversation
            .upstream
            .ask(KEY, version, client_id.as_ref(), request)
            .await
    }
}

/// What brokers say in `version` for what they said in a newer one.
fn error_for(version: i16, code: i16) -> i16 {
    if version <= 5 && code == ResponseError::KafkaStorageError.code() {
        ResponseError::NotLeaderOrFollower.code()
    } else {
        code
    }
}
