//! A segment's footer: what it says beside the columns, and everything that is checked before any of it is believed.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData,
};
use parquet::file::statistics::Statistics;
use serde::{Deserialize, Serialize};

use super::footer_shape::is_sound;
use super::schema::{DESCRIPTOR, LEAF_COUNT, leaf};
use super::{ROW_GROUP_RECORDS_MAX, SEGMENT_VERSION, SegmentError, SegmentIdentity};
use crate::{ClusterId, Incarnation, Offset, OffsetRange, Partition, Salt, TopicId, TopicName};

/// The length of the footer's length and the magic bytes behind it.
const TRAILER_LEN: usize = 8;
const MAGIC: &[u8] = b"PAR1";
/// No footer is longer: about 100,000 row groups.
const FOOTER_MAX_LEN: usize = 64 << 20;
/// No row group is longer than this, stored or decompressed: the largest record, a full row group and their framing.
const ROW_GROUP_BYTES_MAX: u64 = 1 << 30;

/// What the footer says about a row group beside what Parquet has a place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowGroupFields {
    pub(super) raw_bytes: u64,
    pub(super) crc32c: u32,
}

/// The file's own key-value metadata.
#[derive(Debug)]
pub(super) struct FooterFields {
    pub(super) identity: SegmentIdentity,
    pub(super) range: OffsetRange,
    pub(super) salt: Salt,
    pub(super) row_groups: Vec<RowGroupFields>,
}

const VERSION: &str = "everlog.format_version";
const CLUSTER: &str = "everlog.cluster_id";
const TOPIC: &str = "everlog.topic";
const TOPIC_ID: &str = "everlog.topic_id";
const PARTITION: &str = "everlog.partition";
const START: &str = "everlog.start_offset";
const END: &str = "everlog.end_offset";
const SALT: &str = "everlog.salt";
const ROW_GROUPS: &str = "everlog.row_groups";

/// One element of `everlog.row_groups`.
#[derive(Serialize, Deserialize)]
struct RowGroupJson {
    raw_bytes: String,
    crc32c: String,
}

impl FooterFields {
    pub(super) fn to_pairs(&self) -> [(String, String); 9] {
        let groups: Vec<String> = self
            .row_groups
            .iter()
            .map(|group| {
                format!(
                    "{{\"raw_bytes\":\"{}\",\"crc32c\":\"{:08x}\"}}",
                    group.raw_bytes, group.crc32c
                )
            })
            .collect();
        [
            (VERSION, SEGMENT_VERSION.to_string()),
            (CLUSTER, self.identity.incarnation.cluster.to_string()),
            (TOPIC, self.identity.topic.to_string()),
            (TOPIC_ID, self.identity.incarnation.topic_id.to_string()),
            (PARTITION, self.identity.partition.to_string()),
            (START, self.range.start().to_string()),
            (END, self.range.end().to_string()),
            (SALT, self.salt.to_string()),
            (ROW_GROUPS, format!("[{}]", groups.join(","))),
        ]
        .map(|(key, value)| (key.to_owned(), value))
    }

    fn from_metadata(metadata: &ParquetMetaData) -> Result<FooterFields, SegmentError> {
        let mut pairs: HashMap<&str, &str> = HashMap::new();
        for pair in metadata
            .file_metadata()
            .key_value_metadata()
            .into_iter()
            .flatten()
        {
            let value = pair.value.as_deref().unwrap_or_default();
            if pairs.insert(&pair.key, value).is_some() && pair.key.starts_with("everlog.") {
                return Err(SegmentError::corrupt(format!(
                    "metadata has {} twice",
                    pair.key
                )));
            }
        }
        let get = |key: &'static str| {
            pairs
                .get(key)
                .copied()
                .ok_or_else(|| SegmentError::corrupt(format!("metadata lacks {key}")))
        };
        let version = get(VERSION)?;
        if version != SEGMENT_VERSION.to_string() {
            return Err(SegmentError::Version(version.chars().take(20).collect()));
        }
        let bad = |key: &'static str| SegmentError::corrupt(format!("metadata has a bad {key}"));
        let number = |key: &'static str| canonical::<i64>(get(key)?).ok_or_else(|| bad(key));
        let offset = |key: &'static str| Offset::new(number(key)?).map_err(|_| bad(key));
        let partition = canonical::<i32>(get(PARTITION)?)
            .and_then(Partition::new)
            .ok_or_else(|| bad(PARTITION))?;
        let identity = SegmentIdentity {
            incarnation: Incarnation {
                cluster: ClusterId::new(get(CLUSTER)?).map_err(|_| bad(CLUSTER))?,
                topic_id: TopicId::new(get(TOPIC_ID)?).map_err(|_| bad(TOPIC_ID))?,
            },
            topic: TopicName::new(get(TOPIC)?).map_err(|_| bad(TOPIC))?,
            partition,
        };
        let range = OffsetRange::new(offset(START)?, offset(END)?).ok_or_else(|| bad(END))?;
        let salt = get(SALT)?.parse().map_err(|_| bad(SALT))?;
        let groups: Vec<RowGroupJson> =
            serde_json::from_str(get(ROW_GROUPS)?).map_err(|_| bad(ROW_GROUPS))?;
        let row_groups = groups
            .iter()
            .map(|group| {
                let raw_bytes = canonical::<u64>(&group.raw_bytes)
                    .filter(|&bytes| bytes <= ROW_GROUP_BYTES_MAX)?;
                let crc32c = u32::from_str_radix(&group.crc32c, 16).ok()?;
                (format!("{crc32c:08x}") == group.crc32c)
                    .then_some(RowGroupFields { raw_bytes, crc32c })
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| bad(ROW_GROUPS))?;
        Ok(FooterFields {
            identity,
            range,
            salt,
            row_groups,
        })
    }
}

/// Reads a number that is written in its one decimal form: no sign in front, no leading zero.
fn canonical<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse::<T>()
        .ok()
        .filter(|number| number.to_string() == text)
}

/// A segment's footer, checked. It holds no records.
#[derive(Debug)]
pub struct Segment {
    fields: FooterFields,
    records: u64,
    row_groups: Vec<RowGroupInfo>,
    /// For each row group, one for each column.
    chunks: Vec<Vec<ChunkTotals>>,
}

/// What the pages of one column of a row group have to add up to.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkTotals {
    /// Bytes, as stored.
    pub(super) stored: u64,
    /// Bytes, headers of pages included, if nothing were compressed.
    pub(super) uncompressed: u64,
    /// Values, nulls and empty lists included.
    pub(super) values: u64,
}

/// Where a row group lies and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowGroupInfo {
    /// Its bytes in the object; one run, nothing else in it.
    pub bytes: Range<u64>,
    /// The offset of its first record.
    pub first_offset: Offset,
    /// The offset of its last record.
    pub last_offset: Offset,
    /// How many records, at least 1.
    pub records: u64,
    /// Sum of the records' [`crate::RecordRef::raw_bytes`].
    pub raw_bytes: u64,
    /// Smallest timestamp, -1 (none given) included.
    pub min_timestamp_ms: i64,
    /// Largest timestamp.
    pub max_timestamp_ms: i64,
}

impl Segment {
    /// Reads and checks a footer. `tail` is the end of the object, `footer_len` bytes as the index has it, and
    /// `object_len` the object's whole length in bytes.
    pub fn parse(tail: &Bytes, object_len: u64) -> Result<Segment, SegmentError> {
        let footer_start = object_len
            .checked_sub(tail.len() as u64)
            .ok_or_else(|| SegmentError::corrupt("the object is shorter than its footer"))?;
        Segment::check(decode(tail)?, footer_start)
    }

    /// Believes a footer that starts at byte `footer_start`, or not.
    pub(super) fn check(
        metadata: ParquetMetaData,
        footer_start: u64,
    ) -> Result<Segment, SegmentError> {
        let file = metadata.file_metadata();
        if file.schema_descr().root_schema() != DESCRIPTOR.root_schema() {
            // A later version says so in its metadata, where it may also have told its other columns.
            FooterFields::from_metadata(&metadata)?;
            return Err(SegmentError::corrupt(
                "the columns are not those of version 1",
            ));
        }
        let fields = FooterFields::from_metadata(&metadata)?;
        if metadata.num_row_groups() == 0 || metadata.num_row_groups() != fields.row_groups.len() {
            return Err(SegmentError::corrupt("the number of row groups is wrong"));
        }
        let mut row_groups = Vec::with_capacity(metadata.num_row_groups());
        let mut chunks = Vec::with_capacity(metadata.num_row_groups());
        let mut records = 0_u64;
        let mut next_byte = MAGIC.len() as u64;
        let mut offset_from = fields.range.start().get();
        for (group, group_fields) in metadata.row_groups().iter().zip(&fields.row_groups) {
            let (info, group_chunks) =
                row_group(group, group_fields, next_byte, fields.identity.partition)?;
            if info.first_offset.get() < offset_from || !fields.range.contains(info.last_offset) {
                return Err(SegmentError::corrupt(
                    "row groups overlap, or lie outside of the covered range",
                ));
            }
            next_byte = info.bytes.end;
            // The last offset lies below the range's end, so it has a next one.
            offset_from = info.last_offset.get().saturating_add(1);
            records += info.records;
            row_groups.push(info);
            chunks.push(group_chunks);
        }
        if next_byte > footer_start {
            return Err(SegmentError::corrupt("row groups reach into the footer"));
        }
        if u64::try_from(file.num_rows()).ok() != Some(records) {
            return Err(SegmentError::corrupt("the number of records is wrong"));
        }
        Ok(Segment {
            fields,
            records,
            row_groups,
            chunks,
        })
    }

    /// Whose records they are.
    pub fn identity(&self) -> &SegmentIdentity {
        &self.fields.identity
    }

    /// The offsets that the segment speaks for.
    pub fn range(&self) -> OffsetRange {
        self.fields.range
    }

    /// How many records it holds.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Sum of the records' raw bytes.
    pub fn raw_bytes(&self) -> u64 {
        self.row_groups.iter().map(|group| group.raw_bytes).sum()
    }

    /// The random bytes of its upload.
    pub fn salt(&self) -> Salt {
        self.fields.salt
    }

    /// The row groups, in the order of their offsets. Never empty.
    pub fn row_groups(&self) -> &[RowGroupInfo] {
        &self.row_groups
    }

    /// The first row group that can hold a record at or above `offset`; `None` behind the last record.
    pub fn row_group_at(&self, offset: Offset) -> Option<usize> {
        let index = self
            .row_groups
            .partition_point(|group| group.last_offset < offset);
        (index < self.row_groups.len()).then_some(index)
    }

    /// As if the footer had been written for these bytes.
    #[cfg(test)]
    pub(super) fn with_checksum_of(mut self, index: usize, bytes: &[u8]) -> Segment {
        self.fields.row_groups[index].crc32c = crc32c::crc32c(bytes);
        self
    }

    pub(super) fn chunks(&self, index: usize) -> &[ChunkTotals] {
        self.chunks.get(index).map_or(&[], Vec::as_slice)
    }

    pub(super) fn row_group_crc32c(&self, index: usize) -> Option<u32> {
        self.fields.row_groups.get(index).map(|group| group.crc32c)
    }
}

/// Lets Parquet read the footer's bytes.
fn decode(tail: &Bytes) -> Result<ParquetMetaData, SegmentError> {
    let (footer, trailer) = tail
        .len()
        .checked_sub(TRAILER_LEN)
        .map(|at| tail.split_at(at))
        .ok_or_else(|| SegmentError::corrupt("the footer is too short"))?;
    let (len, magic) = trailer.split_at(4);
    let len = u32::from_le_bytes(len.try_into().unwrap_or_default());
    if magic != MAGIC
        || usize::try_from(len).ok() != Some(footer.len())
        || footer.len() > FOOTER_MAX_LEN
    {
        return Err(SegmentError::corrupt(
            "the footer's length or magic bytes are wrong",
        ));
    }
    // The crate trusts the counts in a footer, so they are proved first.
    if !is_sound(footer) {
        return Err(SegmentError::corrupt(
            "the footer's counts or lengths are wrong, or bytes follow it",
        ));
    }
    ParquetMetaDataReader::decode_metadata(footer)
        .map_err(|err| SegmentError::corrupt(err.to_string()))
}

fn row_group(
    group: &RowGroupMetaData,
    fields: &RowGroupFields,
    start: u64,
    partition: Partition,
) -> Result<(RowGroupInfo, Vec<ChunkTotals>), SegmentError> {
    let bad = |what: &str| SegmentError::corrupt(format!("row group at byte {start}: {what}"));
    let records = u64::try_from(group.num_rows())
        .ok()
        .filter(|records| (1..=ROW_GROUP_RECORDS_MAX).contains(records))
        .ok_or_else(|| bad("the number of records is wrong"))?;
    if group.num_columns() != LEAF_COUNT {
        return Err(bad("the number of columns is wrong"));
    }
    let mut end = start;
    let mut uncompressed = 0_u64;
    let mut chunks = Vec::with_capacity(LEAF_COUNT);
    for (index, column) in group.columns().iter().enumerate() {
        let totals = column_chunk(column, index, end, records)
            .ok_or_else(|| bad(&format!("column {index} is malformed")))?;
        end += totals.stored;
        uncompressed += totals.uncompressed;
        chunks.push(totals);
        if end - start > ROW_GROUP_BYTES_MAX || uncompressed > ROW_GROUP_BYTES_MAX {
            return Err(bad("it is larger than any row group"));
        }
    }
    if group.column(leaf::HEADER_KEY).num_values() != group.column(leaf::HEADER_VALUE).num_values()
    {
        return Err(bad("it has more header keys than values, or fewer"));
    }
    let (first, last) =
        long_bounds(group.column(leaf::OFFSET)).ok_or_else(|| bad("no bounds of offsets"))?;
    let (min_time, max_time) =
        long_bounds(group.column(leaf::TS_MS)).ok_or_else(|| bad("no bounds of ts_ms"))?;
    let (Ok(first_offset), Ok(last_offset)) = (Offset::new(first), Offset::new(last)) else {
        return Err(bad("offsets are negative"));
    };
    if first_offset.distance_to(last_offset) < records - 1 {
        return Err(bad("it has more records than offsets"));
    }
    if int_bounds(group.column(leaf::PARTITION)) != Some((partition.get(), partition.get())) {
        return Err(bad("it belongs to another partition"));
    }
    if int_bounds(group.column(leaf::DT)).is_none_or(|(min, max)| min != max) {
        return Err(bad("dt is not constant"));
    }
    let info = RowGroupInfo {
        bytes: start..end,
        first_offset,
        last_offset,
        records,
        raw_bytes: fields.raw_bytes,
        min_timestamp_ms: min_time,
        max_timestamp_ms: max_time,
    };
    Ok((info, chunks))
}

/// Checks one column of a row group that has to start at byte `start`.
fn column_chunk(
    column: &ColumnChunkMetaData,
    index: usize,
    start: u64,
    records: u64,
) -> Option<ChunkTotals> {
    let stored = u64::try_from(column.compressed_size())
        .ok()
        .filter(|&len| 0 < len && len <= ROW_GROUP_BYTES_MAX)?;
    let inflated = u64::try_from(column.uncompressed_size())
        .ok()
        .filter(|&len| len <= ROW_GROUP_BYTES_MAX)?;
    let values = u64::try_from(column.num_values()).ok()?;
    let values_fit = match index {
        // A list without an element counts as one value; a header key takes four bytes at least.
        leaf::HEADER_KEY => records <= values && values <= records + inflated / 4,
        // As many as there are keys: the caller compares.
        leaf::HEADER_VALUE => true,
        _ => values == records,
    };
    let fits = values_fit
        && u64::try_from(column.data_page_offset()) == Ok(start)
        && column.dictionary_page_offset().is_none()
        && column.index_page_offset().is_none()
        && column.file_path().is_none()
        && matches!(column.compression(), Compression::ZSTD(_));
    fits.then_some(ChunkTotals {
        stored,
        uncompressed: inflated,
        values,
    })
}

/// The smallest and largest value of a column of 64-bit numbers.
fn long_bounds(column: &ColumnChunkMetaData) -> Option<(i64, i64)> {
    match column.statistics()? {
        Statistics::Int64(values) => {
            Some((*values.min_opt()?, *values.max_opt()?)).filter(|(min, max)| min <= max)
        }
        _ => None,
    }
}

/// The smallest and largest value of a column of 32-bit numbers.
fn int_bounds(column: &ColumnChunkMetaData) -> Option<(i32, i32)> {
    match column.statistics()? {
        Statistics::Int32(values) => {
            Some((*values.min_opt()?, *values.max_opt()?)).filter(|(min, max)| min <= max)
        }
        _ => None,
    }
}
