//! One file for each Kafka API that is answered or patched here, named with its key.

pub(crate) mod addressed;
pub(crate) mod k00_produce;
pub(crate) mod k01_fetch;
pub(crate) mod k02_list_offsets;
pub(crate) mod k03_metadata;
pub(crate) mod k10_find_coordinator;
pub(crate) mod k17_sasl_handshake;
pub(crate) mod k18_api_versions;
pub(crate) mod k23_offset_for_leader_epoch;
pub(crate) mod k60_describe_cluster;
pub(crate) mod k78_share_fetch;
pub(crate) mod k79_share_acknowledge;
