//! The two files of an archive that are put once and never change: `everlog.json` and `topic.json`.

use std::collections::BTreeMap;

use bytes::Bytes;
use everlog_format::{ClusterId, Incarnation, TopicId, TopicName};
use everlog_store::{Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::canonical::{self, VERSION, corrupt};
use crate::shared::put_once;
use crate::{IndexError, TopicInfo, keys};

/// Says what everything beside it is.
#[derive(Serialize, Deserialize)]
struct WireFormat {
    format: String,
    reader_features: Vec<String>,
    version: u32,
    writer_features: Vec<String>,
}

const FORMAT: &str = "everlog";

#[derive(Serialize, Deserialize)]
struct WireTopic {
    cluster: ClusterId,
    configs: BTreeMap<String, String>,
    name: TopicName,
    partition_count: u32,
    reader_features: Vec<String>,
    topic_id: TopicId,
    version: u32,
    writer_features: Vec<String>,
}

/// Reads the format file, putting it first if there is none and `create` says so. Gives the features that a writer has
/// to know.
pub(crate) async fn open_format(
    store: &dyn Store,
    create: bool,
) -> Result<Vec<String>, IndexError> {
    let key = keys::format_file();
    let bytes = match store.get(&key).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) if create => {
            let wire = WireFormat {
                format: FORMAT.to_owned(),
                reader_features: Vec::new(),
                version: VERSION,
                writer_features: Vec::new(),
            };
            let bytes = Bytes::from(canonical::encode(&wire));
            if put_once(store, &key, &bytes).await? {
                bytes
            } else {
                store.get(&key).await?
            }
        }
        Err(StoreError::NotFound { .. }) => {
            return Err(IndexError::NoArchive {
                url: store.url().to_owned(),
            });
        }
        Err(other) => return Err(other.into()),
    };
    let wire: WireFormat = canonical::decode(key.as_str(), &bytes)?;
    if wire.format == FORMAT {
        Ok(wire.writer_features)
    } else {
        Err(corrupt(key.as_str(), "it is not about an everlog archive"))
    }
}

/// Reads a topic file; `None` if there is none.
pub(crate) async fn read_topic(
    store: &dyn Store,
    incarnation: &Incarnation,
) -> Result<Option<TopicInfo>, IndexError> {
    let key = keys::topic_file(incarnation);
    let bytes = match store.get(&key).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(other) => return Err(other.into()),
    };
    let wire: WireTopic = canonical::decode(key.as_str(), &bytes)?;
    let found = Incarnation {
        cluster: wire.cluster,
        topic_id: wire.topic_id,
    };
    if found != *incarnation {
        return Err(corrupt(key.as_str(), "it is about another topic"));
    }
    Ok(Some(TopicInfo {
        incarnation: found,
        name: wire.name,
        partition_count: wire.partition_count,
        configs: wire.configs,
    }))
}

/// Puts a topic file unless there is one; gives what is there now.
pub(crate) async fn put_topic(
    store: &dyn Store,
    info: &TopicInfo,
) -> Result<TopicInfo, IndexError> {
    let wire = WireTopic {
        cluster: info.incarnation.cluster.clone(),
        configs: info.configs.clone(),
        name: info.name.clone(),
        partition_count: info.partition_count,
        reader_features: Vec::new(),
        topic_id: info.incarnation.topic_id,
        version: VERSION,
        writer_features: Vec::new(),
    };
    let key = keys::topic_file(&info.incarnation);
    if put_once(store, &key, &Bytes::from(canonical::encode(&wire))).await? {
        return Ok(info.clone());
    }
    // Somebody was first; what was seen first stays.
    match read_topic(store, &info.incarnation).await? {
        Some(first) => Ok(first),
        None => Err(IndexError::Missing {
            what: key.to_string(),
        }),
    }
}
