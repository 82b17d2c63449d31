//! One segment: its bytes read once, in order, hashed as a whole and decoded row group by row group.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use everlog_format::{Hash, OffsetRange, Panicked, RowGroupReader, Segment, contain_panic};
use everlog_index::DataEntry;
use everlog_store::{Key, Store, StoreError, chain};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};

use super::report::{Finding, store_finding};
use super::tally::Tally;
use super::walk::Target;

/// Bytes that are only hashed are read in pieces of this size.
const PIECE_BYTES: u64 = 8 << 20;

/// Raw bytes decoded at a time.
const SLICE_RAW_BYTES: usize = 1 << 20;

/// A segment as the tree names it.
pub(super) struct Named<'a> {
    pub(super) object: &'a Key,
    pub(super) range: OffsetRange,
    pub(super) data: &'a DataEntry,
}

/// What is wrong with the segment, if anything.
pub(super) async fn check(
    store: &Arc<dyn Store>,
    target: &Target,
    named: &Named<'_>,
    bar: &ProgressBar,
) -> Option<Finding> {
    let Named {
        object: key,
        range,
        data,
    } = *named;
    let damage = |why: String| {
        Some(Finding::Damage {
            what: key.to_string(),
            why,
        })
    };
    let footer_start = match data.bytes.checked_sub(u64::from(data.footer_len)) {
        Some(start) => start,
        None => {
            return damage(format!(
                "the index says {} bytes, {} of them footer",
                data.bytes, data.footer_len
            ));
        }
    };
    let tail = match store.get_range(key, footer_start..data.bytes).await {
        Ok(tail) => tail,
        Err(err) => return unread(store, key, data, &err).await,
    };
    let mut state = State::new(range);
    let segment = match contain_panic(|| Segment::parse(&tail, data.bytes)) {
        Ok(Ok(segment)) => Some(Arc::new(segment)),
        Ok(Err(err)) => return damage(chain(&err)),
        Err(panic) => {
            state.trouble = Some(Trouble::Panicked(panic));
            None
        }
    };
    if let Some(segment) = &segment
        && let Some(why) = wrong_identity(segment, target, range)
    {
        return damage(why);
    }
    let pieces = match pieces(segment.as_deref(), footer_start) {
        Ok(pieces) => pieces,
        Err(why) => return damage(why),
    };
    for piece in pieces {
        let bytes = match store.get_range(key, piece.bytes.clone()).await {
            Ok(bytes) => bytes,
            Err(err) => return unread(store, key, data, &err).await,
        };
        bar.inc(bytes.len() as u64);
        let group = segment.clone().zip(piece.row_group);
        // Hashing and decoding 8 MiB takes tens of milliseconds: too long to hold up a thread that others wait for.
        let taken = tokio::task::spawn_blocking(move || {
            state.take(&bytes, |tally| match &group {
                Some((segment, index)) => decode(tally, segment, *index, bytes.clone()),
                None => Ok(()),
            })
        });
        state = match taken.await {
            Ok(state) => state,
            Err(err) => {
                return Some(Finding::Unchecked {
                    what: key.to_string(),
                    why: err.to_string(),
                });
            }
        };
    }
    bar.inc(tail.len() as u64);
    state.hasher.update(&tail);
    match state.conclude(key, data) {
        None => too_long(store, key, data).await,
        found => found,
    }
}

/// A range that could not be read. An object that is too short is refused like one that may not be read, so its
/// listed size has to tell the two apart.
async fn unread(
    store: &Arc<dyn Store>,
    key: &Key,
    data: &DataEntry,
    err: &StoreError,
) -> Option<Finding> {
    if matches!(err, StoreError::Refused { .. })
        && let Some(size) = listed_size(store, key).await
        && size != data.bytes
    {
        return Some(Finding::Damage {
            what: key.to_string(),
            why: format!("it has {size} bytes, and the index says {}", data.bytes),
        });
    }
    Some(store_finding(key.to_string(), err))
}

/// The object's size as its folder's listing tells it. Asked for only where something is wrong: a listing is dear.
async fn listed_size(store: &Arc<dyn Store>, key: &Key) -> Option<u64> {
    let (folder, _) = key.as_str().rsplit_once('/')?;
    let mut token = None;
    loop {
        let page = store.list(folder, false, token).await.ok()?;
        let found = page.objects.iter().find(|(listed, _)| listed == key);
        if let Some((_, size)) = found {
            return Some(*size);
        }
        token = Some(page.next?);
    }
}

/// Bytes behind the end would be in nobody's hash: the byte after the last must not be there.
async fn too_long(store: &Arc<dyn Store>, key: &Key, data: &DataEntry) -> Option<Finding> {
    let end = data.bytes;
    match store.get_range(key, end..end.saturating_add(1)).await {
        Ok(_) => Some(Finding::Damage {
            what: key.to_string(),
            why: format!("it goes on after the {end} bytes that the index says"),
        }),
        // As it should be. That reading is allowed has been shown by all the ranges before.
        Err(StoreError::Refused { .. }) => None,
        Err(err) => Some(store_finding(key.to_string(), &err)),
    }
}

fn wrong_identity(segment: &Segment, target: &Target, range: OffsetRange) -> Option<String> {
    let (identity, key) = (segment.identity(), &target.key);
    if identity.incarnation != key.incarnation || identity.partition != key.partition {
        let (incarnation, partition) = (&identity.incarnation, identity.partition);
        return Some(format!(
            "it says that it belongs to {}/{}/{partition}",
            incarnation.cluster, incarnation.topic_id
        ));
    }
    if identity.topic != target.topic.name {
        return Some(format!(
            "it says that it belongs to the topic {}",
            identity.topic
        ));
    }
    if segment.range() != range {
        return Some(format!(
            "it says that it covers {}, and the index {range}",
            segment.range()
        ));
    }
    None
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    bytes: Range<u64>,
    /// The row group that these bytes are.
    row_group: Option<usize>,
}

/// `[0, end)` without a gap: the row groups, as far as they are known, and what lies between them.
fn pieces(segment: Option<&Segment>, end: u64) -> Result<Vec<Piece>, String> {
    let row_groups = segment.into_iter().flat_map(Segment::row_groups);
    lay_out(row_groups.map(|group| group.bytes.clone()), end)
        .ok_or_else(|| "its row groups overlap or leave the file".to_owned())
}

fn lay_out(row_groups: impl Iterator<Item = Range<u64>>, end: u64) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let fill = |pieces: &mut Vec<Piece>, from: u64, to: u64| {
        let mut start = from;
        while start < to {
            let stop = to.min(start + PIECE_BYTES);
            pieces.push(Piece {
                bytes: start..stop,
                row_group: None,
            });
            start = stop;
        }
    };
    for (index, bytes) in row_groups.enumerate() {
        if bytes.start < at || bytes.end <= bytes.start || end < bytes.end {
            return None;
        }
        fill(&mut pieces, at, bytes.start);
        at = bytes.end;
        pieces.push(Piece {
            bytes,
            row_group: Some(index),
        });
    }
    fill(&mut pieces, at, end);
    Some(pieces)
}

struct State {
    hasher: Sha256,
    tally: Tally,
    /// The first thing that would not decode. Hashing goes on: the hash tells whether the bytes or the writer are at fault.
    trouble: Option<Trouble>,
}

enum Trouble {
    /// The decoder or the tally says that it is wrong.
    Wrong(String),
    /// The decoder itself failed. That tells nothing of the bytes.
    Panicked(Panicked),
}

impl State {
    fn new(range: OffsetRange) -> State {
        State {
            hasher: Sha256::new(),
            tally: Tally::new(range),
            trouble: None,
        }
    }

    /// Hashes the next bytes, and decodes them unless there was trouble before.
    fn take(
        mut self,
        bytes: &Bytes,
        decode: impl FnOnce(&mut Tally) -> Result<(), String>,
    ) -> State {
        self.hasher.update(bytes);
        if self.trouble.is_none() {
            self.trouble = match contain_panic(|| decode(&mut self.tally)) {
                Ok(Ok(())) => None,
                Ok(Err(why)) => Some(Trouble::Wrong(why)),
                Err(panic) => Some(Trouble::Panicked(panic)),
            };
        }
        self
    }

    /// The hash says most: with it right, a wrong figure is the index's, and a panic is ours.
    fn conclude(self, key: &Key, data: &DataEntry) -> Option<Finding> {
        let hash = Hash::from_digest(self.hasher.finalize().into());
        let what = key.to_string();
        let damage = |why: String| Finding::Damage {
            what: what.clone(),
            why,
        };
        if hash != data.hash {
            return Some(damage(format!(
                "its bytes hash to {hash}, and the index says {}: they were changed after they were written",
                data.hash
            )));
        }
        match self.trouble {
            None => self.tally.difference(data).map(damage),
            Some(Trouble::Wrong(why)) => Some(damage(why)),
            Some(Trouble::Panicked(panic)) => Some(Finding::Unchecked {
                what,
                why: format!("its bytes are as they were written, but {panic}: a bug in everlog"),
            }),
        }
    }
}

fn decode(
    tally: &mut Tally,
    segment: &Arc<Segment>,
    index: usize,
    bytes: Bytes,
) -> Result<(), String> {
    let in_group = |text: String| format!("row group {index}: {text}");
    let mut reader =
        RowGroupReader::new(segment, index, bytes).map_err(|err| in_group(chain(&err)))?;
    while let Some(slice) = reader
        .next_slice(SLICE_RAW_BYTES)
        .map_err(|err| in_group(chain(&err)))?
    {
        let mut headers = Vec::new();
        for record in 0..slice.len() {
            tally
                .add(&slice.get(record, &mut headers))
                .map_err(in_group)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use everlog_format::Offset;

    use super::*;

    #[test]
    fn every_byte_is_in_one_piece() {
        let groups = [
            4..100,
            100..PIECE_BYTES * 3,
            PIECE_BYTES * 3 + 7..PIECE_BYTES * 4,
        ];
        let end = PIECE_BYTES * 6 + 1;
        let pieces = lay_out(groups.into_iter(), end).expect("they fit");
        let mut at = 0;
        for piece in &pieces {
            assert_eq!(piece.bytes.start, at);
            assert!(
                piece.row_group.is_some() || piece.bytes.end - piece.bytes.start <= PIECE_BYTES
            );
            at = piece.bytes.end;
        }
        assert_eq!(at, end);
        assert_eq!(
            pieces
                .iter()
                .filter_map(|piece| piece.row_group)
                .collect::<Vec<_>>(),
            [0, 1, 2]
        );
    }

    /// It used to be damage before the hash was known, with the advice to put the object back as it was.
    #[test]
    fn a_panic_of_the_decoder_is_damage_only_if_the_bytes_were_changed() {
        let offset = |raw| Offset::new(raw).expect("not negative");
        let range = OffsetRange::new(offset(0), offset(2)).expect("not empty");
        let pieces = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        let data = DataEntry {
            hash: Hash::of(b"onetwo"),
            records: 2,
            bytes: 6,
            raw_bytes: 2,
            min_timestamp_ms: 0,
            max_timestamp_ms: 0,
            epochs: Vec::new(),
            day: everlog_format::Day::UNKNOWN,
            time_disorder: false,
            redacted: false,
            footer_len: 0,
            supersedes: Vec::new(),
        };
        let key = Key::new("a/segment").expect("a key");
        let conclude = |data: &DataEntry| {
            let [first, second] = &pieces;
            State::new(range)
                .take(first, |_| panic!("as a decoder does"))
                .take(second, |_| unreachable!("nothing is decoded after it"))
                .conclude(&key, data)
        };
        let what = key.to_string();
        let found = conclude(&data);
        let Some(Finding::Unchecked { why, .. }) = found else {
            panic!("{found:?}");
        };
        assert_eq!(
            why,
            "its bytes are as they were written, but reading it panicked: as a decoder does: a bug in everlog"
        );
        let other = DataEntry {
            hash: Hash::of(b"another"),
            ..data
        };
        let found = conclude(&other);
        assert!(
            matches!(&found, Some(Finding::Damage { what: of, why }) if *of == what && why.contains("were changed")),
            "{found:?}"
        );
    }

    /// What a footer that cannot be read says of row groups is not known; all bytes are hashed all the same.
    #[test]
    fn a_segment_without_row_groups_is_still_hashed_whole() {
        let end = PIECE_BYTES + 7;
        let pieces = pieces(None, end).expect("nothing overlaps");
        let bytes: Vec<_> = pieces.iter().map(|piece| piece.bytes.clone()).collect();
        assert_eq!(bytes, [0..PIECE_BYTES, PIECE_BYTES..end]);
        assert!(pieces.iter().all(|piece| piece.row_group.is_none()));
    }

    #[test]
    fn row_groups_that_overlap_or_leave_the_file_are_refused() {
        assert_eq!(lay_out([4..100, 99..200].into_iter(), 300), None);
        assert_eq!(lay_out(std::iter::once(4..301), 300), None);
        #[expect(clippy::reversed_empty_ranges, reason = "a file may say anything")]
        let backwards = 10..4;
        assert_eq!(lay_out([backwards].into_iter(), 300), None);
    }
}
