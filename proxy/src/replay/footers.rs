//! Footers: read once by one ranged read, checked against the commit, kept.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use everlog_format::{OffsetRange, Segment, contain_panic};
use everlog_index::{DataEntry, Snapshot};
use everlog_store::Key;
use tokio::sync::oneshot;

use super::ReplayError;
use super::budget::{Need, Share};
use super::cache::Cache;
use super::group::{Footer, touch};
use super::job::segment_error;

/// A parsed footer takes about this many times its stored length.
const PARSED_FACTOR: u64 = 8;

/// And this on top, however short it is.
const PARSED_MIN_BYTES: u64 = 16 << 10;

/// One footer to read and what the commit says about it.
struct Wanted {
    snapshot: Arc<Snapshot>,
    key: Key,
    range: OffsetRange,
    data: DataEntry,
}

impl Cache {
    /// The footer of the segment `data` that covers `range`. `None` only for read-ahead, where there is no room.
    pub(super) async fn footer(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        range: OffsetRange,
        data: &DataEntry,
        need: Need,
    ) -> Result<Option<Arc<Footer>>, ReplayError> {
        let key = snapshot.segment_key(range, data);
        if need == Need::Ahead
            && !self.held().footers.contains_key(&data.hash)
            && self
                .room(Share::Footers, weight(data), need)
                .await
                .is_none()
        {
            return Ok(None);
        }
        let waiting = {
            let mut held = self.held();
            if let Some(footer) = held.footers.get(&data.hash) {
                touch(&footer.used, self.now());
                return Ok(Some(Arc::clone(footer)));
            }
            let (reply, waiting) = oneshot::channel();
            match held.footer_reads.get_mut(&data.hash) {
                Some(waiters) => waiters.push(reply),
                None => {
                    held.footer_reads.insert(data.hash, vec![reply]);
                    let wanted = Wanted {
                        snapshot: Arc::clone(snapshot),
                        key: key.clone(),
                        range,
                        data: data.clone(),
                    };
                    tokio::spawn(Arc::clone(self).answer_footer(wanted));
                }
            }
            waiting
        };
        waiting
            .await
            .unwrap_or_else(|gone| Err(ReplayError::interrupted(key, gone)))
            .map(Some)
    }

    /// Reads one footer for all who wait for it by then.
    async fn answer_footer(self: Arc<Self>, wanted: Wanted) {
        let (hash, key) = (wanted.data.hash, wanted.key.clone());
        // A task of its own: should parsing panic, those who wait are told.
        let read = tokio::spawn(Arc::clone(&self).read_footer(wanted));
        let footer = read
            .await
            .unwrap_or_else(|panic| Err(ReplayError::interrupted(key, panic)));
        if let Err(error) = &footer {
            self.metrics.failed(error);
        }
        let waiters = {
            let mut held = self.held();
            if let Ok(footer) = &footer {
                held.footers.insert(hash, Arc::clone(footer));
            }
            held.footer_reads.remove(&hash).unwrap_or_default()
        };
        for waiter in waiters {
            // One who is gone will find it in the cache.
            let _ = waiter.send(footer.clone());
        }
    }

    async fn read_footer(self: Arc<Self>, wanted: Wanted) -> Result<Arc<Footer>, ReplayError> {
        let Wanted {
            snapshot,
            key,
            range,
            data,
        } = wanted;
        let footer_len = u64::from(data.footer_len);
        let start = data.bytes.checked_sub(footer_len).ok_or_else(|| {
            ReplayError::corrupt(&key, "the commit says that its footer is longer than it is")
        })?;
        // Others may have joined who do need it, so from here on it is always waited for.
        let permit = self
            .room(Share::Footers, weight(&data), Need::Demand)
            .await
            .ok_or_else(|| ReplayError::interrupted(&key, "no room was found"))?;
        let tail = self
            .archive
            .store()
            .get_range(&key, start..data.bytes)
            .await?;
        self.metrics.object_reads.inc();
        self.metrics.object_bytes.inc_by(footer_len);
        let segment = contain_panic(|| Segment::parse(&tail, data.bytes))
            .map_err(|panic| ReplayError::corrupt(&key, panic))?
            .map_err(|error| segment_error(key.to_string(), error))?;
        check(&snapshot, range, &data, &segment).map_err(|why| ReplayError::corrupt(&key, why))?;
        Ok(Arc::new(Footer {
            key,
            hash: data.hash,
            segment: Arc::new(segment),
            used: AtomicU64::new(self.now()),
            _permit: permit,
        }))
    }
}

fn weight(data: &DataEntry) -> u64 {
    u64::from(data.footer_len) * PARSED_FACTOR + PARSED_MIN_BYTES
}

/// Whether the segment is the one that the commit means. Its hash can't be checked without reading all of it; what
/// contradicts the commit is found here, and row groups carry checksums of their own.
fn check(
    snapshot: &Snapshot,
    range: OffsetRange,
    data: &DataEntry,
    segment: &Segment,
) -> Result<(), &'static str> {
    let (key, identity) = (snapshot.key(), segment.identity());
    if identity.incarnation != key.incarnation || identity.partition != key.partition {
        return Err("it belongs to another partition");
    }
    if segment.range() != range {
        return Err("it covers another range than the commit says");
    }
    if segment.records() != data.records {
        return Err("it holds another number of records than the commit says");
    }
    Ok(())
}
