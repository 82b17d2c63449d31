//! The headers of pages, checked before Parquet's decoders see them: those trust the sizes and counts in there, and
//! set memory aside for them.
//!
//! A header is a Thrift structure in the compact protocol. Only what version 1 allows gets through: data pages of
//! the first kind, no dictionaries, the two encodings of each kind of column.

use super::SegmentError;
use super::footer::ChunkTotals;
use super::schema::is_bytes;
use super::thrift::{field, int, kind, skip, skip_binary, varint};

const DATA_PAGE: i64 = 0;
pub(super) const PLAIN: i64 = 0;
const RLE: i64 = 3;
pub(super) const DELTA_BINARY_PACKED: i64 = 5;
pub(super) const DELTA_LENGTH_BYTE_ARRAY: i64 = 6;

/// Checks the headers of all pages of one column chunk.
pub(super) fn check_chunk(
    bytes: &[u8],
    leaf: usize,
    totals: &ChunkTotals,
) -> Result<(), SegmentError> {
    let bad = || SegmentError::corrupt(format!("column {leaf} has a malformed page"));
    let (mut values, mut uncompressed) = (0_u64, 0_u64);
    let mut rest = bytes;
    while !rest.is_empty() {
        let before = rest.len();
        let header = page_header(&mut rest).ok_or_else(bad)?;
        let header_len = (before - rest.len()) as u64;
        let encoding_fits = match header.encoding {
            PLAIN => true,
            DELTA_BINARY_PACKED => !is_bytes(leaf),
            DELTA_LENGTH_BYTE_ARRAY => is_bytes(leaf),
            _ => false,
        };
        if !encoding_fits {
            return Err(bad());
        }
        rest = rest.get(header.compressed_len..).ok_or_else(bad)?;
        values += header.values;
        uncompressed += header_len + header.uncompressed_len;
        // Looked at on every page, so that the sums can't run over either.
        if values > totals.values || uncompressed > totals.uncompressed {
            return Err(bad());
        }
    }
    if values == totals.values && uncompressed == totals.uncompressed {
        Ok(())
    } else {
        Err(bad())
    }
}

pub(super) struct PageHeader {
    pub(super) compressed_len: usize,
    pub(super) uncompressed_len: u64,
    pub(super) values: u64,
    pub(super) encoding: i64,
}

/// Reads one page header off the front of `input`.
pub(super) fn page_header(input: &mut &[u8]) -> Option<PageHeader> {
    let (mut page_type, mut uncompressed, mut compressed, mut data) = (None, None, None, None);
    let mut last_id = 0;
    while let Some((id, kind)) = field(input, &mut last_id)? {
        match (id, kind) {
            (1, kind::I32) => page_type = Some(int(input)?),
            (2, kind::I32) => uncompressed = Some(int(input)?),
            (3, kind::I32) => compressed = Some(int(input)?),
            // The checksum of the page: the row group's own covers it.
            (4, kind::I32) => {
                int(input)?;
            }
            (5, kind::STRUCT) => data = Some(data_page_header(input)?),
            _ => return None,
        }
    }
    let (values, encoding) = data?;
    let header = PageHeader {
        compressed_len: usize::try_from(compressed?).ok()?,
        uncompressed_len: u64::try_from(uncompressed?).ok()?,
        values: u64::try_from(values).ok().filter(|&values| values > 0)?,
        encoding,
    };
    (page_type? == DATA_PAGE).then_some(header)
}

/// Gives the number of values and their encoding.
fn data_page_header(input: &mut &[u8]) -> Option<(i64, i64)> {
    let (mut values, mut encoding, mut level_encodings) = (None, None, [None; 2]);
    let mut last_id = 0;
    while let Some((id, kind)) = field(input, &mut last_id)? {
        match (id, kind) {
            (1, kind::I32) => values = Some(int(input)?),
            (2, kind::I32) => encoding = Some(int(input)?),
            (3, kind::I32) => level_encodings[0] = Some(int(input)?),
            (4, kind::I32) => level_encodings[1] = Some(int(input)?),
            (5, kind::STRUCT) => statistics(input)?,
            _ => return None,
        }
    }
    (level_encodings == [Some(RLE); 2]).then_some(())?;
    Some((values?, encoding?))
}

/// Skips a page's statistics: flat, of numbers and short byte strings.
fn statistics(input: &mut &[u8]) -> Option<()> {
    let mut last_id = 0;
    while let Some((_, kind)) = field(input, &mut last_id)? {
        match kind {
            kind::BOOL_TRUE | kind::BOOL_FALSE => {}
            kind::BYTE => skip(input, 1)?,
            kind::I16 | kind::I32 | kind::I64 => {
                varint(input)?;
            }
            kind::DOUBLE => skip(input, 8)?,
            kind::BINARY => skip_binary(input)?,
            _ => return None,
        }
    }
    Some(())
}
