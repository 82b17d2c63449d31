//! The response: put together partition by partition, and encoded without copying a single record.

use std::collections::{BTreeMap, HashMap};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::FetchResponse;
use kafka_protocol::messages::fetch_response::{NodeEndpoint, PartitionData};

use crate::budget::Room;
use crate::connection::Answer;
use crate::errors::{HistoryError, fetch_error_code};
use crate::wire::{self, Prefix};

use super::KEY;
use super::request::{TopicRef, Wanted};

/// Which side a partition's answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    Live,
    Archive,
    /// The broker left it out. The client gets an empty answer: Java throws a full response away that lacks one of its
    /// partitions.
    Missing,
}

/// The answer for one partition. Its records lie beside the codec's structure, not in it.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) data: PartitionData,
    pub(super) records: Vec<Bytes>,
    pub(super) served: Served,
    /// An error of ours that may pass: held back while there is time, since a client that asks again at once would spin.
    pub(super) may_pass: bool,
}

impl Part {
    pub(super) fn bytes(&self) -> usize {
        self.records.iter().map(Bytes::len).sum()
    }

    /// Worth sending before the client's time is over.
    pub(super) fn says_something(&self) -> bool {
        (self.data.error_code != 0 && !self.may_pass)
            || !self.records.is_empty()
            || 0 <= self.data.preferred_read_replica.0
    }

    /// Nothing to read, and where the log ends.
    pub(super) fn empty(partition: i32, high_watermark: i64, last_stable_offset: i64) -> Part {
        let mut data = PartitionData::default()
            .with_partition_index(partition)
            .with_high_watermark(high_watermark)
            .with_last_stable_offset(last_stable_offset)
            .with_log_start_offset(-1)
            .with_preferred_read_replica((-1).into());
        data.aborted_transactions = None;
        Part {
            data,
            records: Vec::new(),
            served: Served::Archive,
            may_pass: false,
        }
    }

    /// An error of ours.
    pub(super) fn failed(partition: i32, error: &HistoryError, version: i16) -> Part {
        let mut part = Part::empty(partition, -1, -1);
        part.data.error_code = fetch_error_code(error, version);
        part.may_pass = error.may_pass();
        part
    }
}

/// The broker's answer, in the order of what was wanted.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) throttle_time_ms: i32,
    pub(super) parts: Vec<Part>,
    pub(super) node_endpoints: Vec<NodeEndpoint>,
    unknown_tagged_fields: BTreeMap<i32, Bytes>,
    room: Room,
}

impl Parts {
    pub(super) fn sort(response: FetchResponse, wanted: &[Wanted], room: Room) -> Parts {
        let mut found: HashMap<(TopicRef, i32), PartitionData> = HashMap::new();
        for topic in response.responses {
            let topic_ref = TopicRef {
                name: topic.topic,
                id: topic.topic_id,
            };
            for partition in topic.partitions {
                found.insert((topic_ref.clone(), partition.partition_index), partition);
            }
        }
        let part = |wanted: &Wanted| {
            let index = wanted.asked.partition;
            let Some(mut data) = found.remove(&(wanted.topic.clone(), index)) else {
                return Part {
                    served: Served::Missing,
                    ..Part::empty(index, -1, -1)
                };
            };
            // kafkajs relies on the order.
            if let Some(aborted) = &mut data.aborted_transactions {
                aborted.sort_by_key(|transaction| transaction.first_offset);
            }
            let records = data
                .records
                .take()
                .into_iter()
                .filter(|records| !records.is_empty())
                .collect();
            Part {
                data,
                records,
                served: Served::Live,
                may_pass: false,
            }
        };
        let parts = wanted.iter().map(part).collect();
        Parts {
            throttle_time_ms: response.throttle_time_ms,
            parts,
            node_endpoints: response.node_endpoints,
            unknown_tagged_fields: response.unknown_tagged_fields,
            room,
        }
    }
}

/// Writes the response; records become chunks of their own.
pub(super) fn encode(prefix: Prefix, wanted: &[Wanted], parts: Parts) -> Answer {
    let mut out = Encoder {
        version: prefix.version,
        flexible: prefix.version >= 12,
        buffer: wire::response_header(KEY, prefix.version, prefix.correlation),
        chunks: Vec::new(),
    };
    out.buffer.put_i32(parts.throttle_time_ms);
    if out.version >= 7 {
        out.buffer.put_i16(0);
        // No session.
        out.buffer.put_i32(0);
    }
    let pairs: Vec<(&Wanted, &Part)> = wanted.iter().zip(&parts.parts).collect();
    let topics: Vec<&[(&Wanted, &Part)]> = pairs.chunk_by(|a, b| a.0.topic == b.0.topic).collect();
    out.count(topics.len());
    for topic in topics {
        out.topic(&topic[0].0.topic, topic);
    }
    if out.flexible {
        let mut tags = Tags::of(&parts.unknown_tagged_fields);
        if out.version >= 16 && !parts.node_endpoints.is_empty() {
            tags.add(0, |field| endpoints(field, &parts.node_endpoints));
        }
        tags.write(&mut out.buffer);
    }
    out.cut();
    Answer {
        chunks: out.chunks,
        room: parts.room,
    }
}

struct Encoder {
    version: i16,
    flexible: bool,
    buffer: BytesMut,
    chunks: Vec<Bytes>,
}

impl Encoder {
    fn topic(&mut self, topic: &TopicRef, partitions: &[(&Wanted, &Part)]) {
        if self.version >= 13 {
            self.buffer.put_slice(topic.id.as_bytes());
        } else {
            self.text(&topic.name);
        }
        self.count(partitions.len());
        for (_, part) in partitions {
            self.partition(part);
        }
        self.no_tags();
    }

    fn partition(&mut self, part: &Part) {
        let data = &part.data;
        self.buffer.put_i32(data.partition_index);
        self.buffer.put_i16(data.error_code);
        self.buffer.put_i64(data.high_watermark);
        self.buffer.put_i64(data.last_stable_offset);
        if self.version >= 5 {
            self.buffer.put_i64(data.log_start_offset);
        }
        match &data.aborted_transactions {
            None if self.flexible => self.buffer.put_u8(0),
            None => self.buffer.put_i32(-1),
            Some(aborted) => {
                self.count(aborted.len());
                for transaction in aborted {
                    self.buffer.put_i64(transaction.producer_id.0);
                    self.buffer.put_i64(transaction.first_offset);
                    self.no_tags();
                }
            }
        }
        if self.version >= 11 {
            self.buffer.put_i32(data.preferred_read_replica.0);
        }
        // Never null: an empty set is understood by all clients.
        self.count(part.bytes());
        if !part.records.is_empty() {
            self.cut();
            self.chunks.extend(part.records.iter().cloned());
        }
        if self.flexible {
            let mut tags = Tags::of(&data.unknown_tagged_fields);
            let (diverging, leader, snapshot) = (
                &data.diverging_epoch,
                &data.current_leader,
                &data.snapshot_id,
            );
            if diverging.epoch != -1 || diverging.end_offset != -1 {
                tags.add(0, |field| {
                    field.put_i32(diverging.epoch);
                    field.put_i64(diverging.end_offset);
                    field.put_u8(0);
                });
            }
            if leader.leader_id.0 != -1 || leader.leader_epoch != -1 {
                tags.add(1, |field| {
                    field.put_i32(leader.leader_id.0);
                    field.put_i32(leader.leader_epoch);
                    field.put_u8(0);
                });
            }
            if snapshot.end_offset != -1 || snapshot.epoch != -1 {
                tags.add(2, |field| {
                    field.put_i64(snapshot.end_offset);
                    field.put_i32(snapshot.epoch);
                    field.put_u8(0);
                });
            }
            tags.write(&mut self.buffer);
        }
    }

    /// The length of an array or of records.
    fn count(&mut self, count: usize) {
        if self.flexible {
            put_varint(&mut self.buffer, count + 1);
        } else {
            // Bounded by what a frame can hold, far below 2^31.
            self.buffer
                .put_i32(i32::try_from(count).unwrap_or(i32::MAX));
        }
    }

    fn text(&mut self, text: &str) {
        if self.flexible {
            put_varint(&mut self.buffer, text.len() + 1);
        } else {
            // It was decoded from a length of 16 bits.
            self.buffer
                .put_i16(i16::try_from(text.len()).unwrap_or(i16::MAX));
        }
        self.buffer.put_slice(text.as_bytes());
    }

    fn no_tags(&mut self) {
        if self.flexible {
            self.buffer.put_u8(0);
        }
    }

    fn cut(&mut self) {
        if !self.buffer.is_empty() {
            self.chunks.push(self.buffer.split().freeze());
        }
    }
}

/// Tagged fields, which must be written in ascending order.
struct Tags(BTreeMap<u32, Bytes>);

impl Tags {
    fn of(unknown: &BTreeMap<i32, Bytes>) -> Tags {
        Tags(
            unknown
                .iter()
                .filter_map(|(tag, value)| Some((u32::try_from(*tag).ok()?, value.clone())))
                .collect(),
        )
    }

    fn add(&mut self, tag: u32, write: impl FnOnce(&mut BytesMut)) {
        let mut field = BytesMut::new();
        write(&mut field);
        self.0.insert(tag, field.freeze());
    }

    fn write(&self, buffer: &mut BytesMut) {
        put_varint(buffer, self.0.len());
        for (tag, value) in &self.0 {
            put_varint(buffer, *tag as usize);
            put_varint(buffer, value.len());
            buffer.put_slice(value);
        }
    }
}

fn endpoints(field: &mut BytesMut, endpoints: &[NodeEndpoint]) {
    put_varint(field, endpoints.len() + 1);
    for node in endpoints {
        field.put_i32(node.node_id.0);
        put_varint(field, node.host.len() + 1);
        field.put_slice(node.host.as_bytes());
        field.put_i32(node.port);
        match &node.rack {
            None => field.put_u8(0),
            Some(rack) => {
                put_varint(field, rack.len() + 1);
                field.put_slice(rack.as_bytes());
            }
        }
        Tags::of(&node.unknown_tagged_fields).write(field);
    }
}

fn put_varint(buffer: &mut BytesMut, mut value: usize) {
    while 0x80 <= value {
        buffer.put_u8(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests;
