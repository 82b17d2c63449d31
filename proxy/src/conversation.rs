//! Requests that are answered here, one at a time, each with whatever has to be asked upstream first.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, BrokerId, ListOffsetsRequest,
    ListOffsetsResponse, TopicName,
};
use kafka_protocol::protocol::{Decodable, StrBytes};

use crate::api;
use crate::api::k01_fetch::FetchMemory;
use crate::connection::Answer;
use crate::shape::{self, Shape};
use crate::shared::Shared;
use crate::topics::{BY_ID_MIN, BY_NAME_MIN, NameAge, Topics};
use crate::upstream::{Gone, Upstream};
use crate::wire::{self, Prefix, WireError};

/// What ListOffsets calls the high watermark and the log's start.
pub(crate) const LATEST: i64 = -1;
pub(crate) const EARLIEST: i64 = -2;

/// Why a request got no answer; the connection ends.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The client's request can't be read.
    Request(WireError),
    /// A follower's fetch: the archive is for consumers.
    Follower,
    /// The upstream connection is of no more use.
    Upstream(Gone),
}

impl From<Gone> for Failed {
    fn from(gone: Gone) -> Failed {
        Failed::Upstream(gone)
    }
}

/// The state of one client connection.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) shared: Arc<Shared>,
    pub(crate) upstream: Upstream,
    /// As the client's last decoded request had it: what the proxy asks is counted under the same name.
    pub(crate) client_id: Option<StrBytes>,
    pub(crate) topics: Topics,
    pub(crate) fetches: FetchMemory,
    /// What the broker offers, once asked.
    pub(crate) offered: Option<Vec<ApiVersion>>,
}

impl Conversation {
    pub(crate) fn new(shared: Arc<Shared>, upstream: Upstream) -> Conversation {
        Conversation {
            shared,
            upstream,
            client_id: None,
            topics: Topics::default(),
            fetches: FetchMemory::default(),
            offered: None,
        }
    }

    /// The response to one request, given as its frame from the API key on.
    pub(crate) async fn answer(&mut self, prefix: Prefix, frame: Bytes) -> Result<Answer, Failed> {
        match ApiKey::try_from(prefix.key) {
            Ok(ApiKey::Fetch) => api::k01_fetch::answer(self, prefix, frame).await,
            Ok(ApiKey::ListOffsets) => api::k02_list_offsets::answer(self, prefix, frame).await,
            Ok(ApiKey::ApiVersions) => api::k18_api_versions::answer(self, prefix, frame).await,
            Ok(ApiKey::OffsetForLeaderEpoch) => {
                api::k23_offset_for_leader_epoch::answer(self, prefix, frame).await
            }
            _ => Err(Failed::Request(WireError::Codec(
                "an API that is not answered here".to_owned(),
            ))),
        }
    }

    /// A request taken apart. Its client id is used from now on.
    pub(crate) fn read<M: Decodable>(
        &mut self,
        key: ApiKey,
        version: i16,
        shape: &Shape,
        frame: Bytes,
    ) -> Result<M, Failed> {
        let (header, request) =
            wire::decode_request(key, version, shape, frame).map_err(Failed::Request)?;
        self.client_id = header.client_id;
        Ok(request)
    }

    /// The newest version of `key` that the broker offers; -1 if it has none.
    pub(crate) async fn version_max(&mut self, key: ApiKey) -> Result<i16, Gone> {
        if self.offered.is_none() {
            // A client may begin without asking; version 0 is known to every broker.
            let request = ApiVersionsRequest::default();
            let response: ApiVersionsResponse = self
                .upstream
                .call(
                    ApiKey::ApiVersions,
                    0,
                    self.client_id.as_ref(),
                    &request,
                    &shape::API_VERSIONS_RESPONSE,
                )
                .await?;
            self.offered = Some(response.api_keys);
        }
        let offered = self
            .offered
            .iter()
            .flatten()
            .find(|api| api.api_key == key as i16);
        Ok(offered.map_or(-1, |api| api.max_version))
    }

    /// Whether the broker can tell the names of topics (`by_id`) or their ids. Old ones can't: then there is no archive.
    pub(crate) async fn tells_topics(&mut self, by_id: bool) -> Result<bool, Gone> {
        let min = if by_id { BY_ID_MIN } else { BY_NAME_MIN };
        Ok(min <= self.version_max(ApiKey::Metadata).await?)
    }

    /// Learns the ids behind `names`, as this client may see them.
    pub(crate) async fn learn_ids(
        &mut self,
        names: impl Iterator<Item = &TopicName>,
        age: NameAge,
    ) -> Result<(), Gone> {
        let version_max = self.version_max(ApiKey::Metadata).await?;
        self.topics
            .learn_ids(
                names,
                age,
                &mut self.upstream,
                version_max,
                self.client_id.as_ref(),
            )
            .await
    }

    /// Learns the names behind `ids`, as this client may see them.
    pub(crate) async fn learn_names(
        &mut self,
        ids: impl Iterator<Item = uuid::Uuid>,
    ) -> Result<(), Gone> {
        let version_max = self.version_max(ApiKey::Metadata).await?;
        self.topics
            .learn_names(
                ids,
                &mut self.upstream,
                version_max,
                self.client_id.as_ref(),
            )
            .await
    }

    /// Asks the broker for [`LATEST`] or [`EARLIEST`] of some partitions. What it answers with an error is left out.
    pub(crate) async fn live_offsets(
        &mut self,
        partitions: &[(TopicName, i32)],
        question: i64,
    ) -> Result<HashMap<(TopicName, i32), i64>, Gone> {
        let version = self.version_max(ApiKey::ListOffsets).await?.min(7);
        if version < 1 || partitions.is_empty() {
            return Ok(HashMap::new());
        }
        let mut topics: HashMap<&TopicName, Vec<ListOffsetsPartition>> = HashMap::new();
        for (name, index) in partitions {
            let partition = ListOffsetsPartition::default()
                .with_partition_index(*index)
                .with_timestamp(question);
            topics.entry(name).or_default().push(partition);
        }
        let topic = |(name, partitions): (&TopicName, _)| {
            ListOffsetsTopic::default()
                .with_name(name.clone())
                .with_partitions(partitions)
        };
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_topics(topics.into_iter().map(topic).collect());
        let (client_id, key) = (self.client_id.clone(), ApiKey::ListOffsets);
        let response: ListOffsetsResponse = self
            .upstream
            .call(
                key,
                version,
                client_id.as_ref(),
                &request,
                &shape::LIST_OFFSETS_RESPONSE,
            )
            .await?;
        let mut offsets = HashMap::new();
        for topic in response.topics {
            for partition in topic.partitions {
                if partition.error_code == 0 && 0 <= partition.offset {
                    offsets.insert(
                        (topic.name.clone(), partition.partition_index),
                        partition.offset,
                    );
                }
            }
        }
        Ok(offsets)
    }
}
