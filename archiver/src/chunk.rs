//! Records on their way from the consumer to the encoder: packed one behind the other in chunks.
//!
//! A chunk lives for seconds to minutes in this process only, so its layout is private and may change: per record a
//! fixed head in native byte order, then key, value and headers as they are. Neighbour: `spool` decides which chunks
//! stay in memory.

use everlog_format::{HeaderRef, RecordRef, TimestampType};

/// Length of a record's fixed head.
const HEAD_LEN: usize = 8 + 8 + 4 + 1 + 4 + 4 + 4;
/// Length field of what is null.
const NULL: u32 = u32::MAX;

/// A chunk can't be read: a bug, or a disk that returns other bytes than were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a spooled chunk is damaged")]
pub(crate) struct DamagedChunk;

/// A key, value or header of 4 GiB or more; Kafka's own limit is far below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part of a record is longer than 4 GiB")]
pub(crate) struct PartTooLong;

/// Appends `record` to `out`; on an error `out` is as before.
pub(crate) fn pack(record: &RecordRef<'_>, out: &mut Vec<u8>) -> Result<(), PartTooLong> {
    let before = out.len();
    let packed = pack_parts(record, out);
    if packed.is_err() {
        out.truncate(before);
    }
    packed
}

fn pack_parts(record: &RecordRef<'_>, out: &mut Vec<u8>) -> Result<(), PartTooLong> {
    let len_of = |part: Option<&[u8]>| match part {
        None => Ok(NULL),
        Some(part) => u32::try_from(part.len())
            .ok()
            .filter(|len| *len != NULL)
            .ok_or(PartTooLong),
    };
    let mut head = [0; HEAD_LEN];
    head[0..8].copy_from_slice(&record.offset.to_ne_bytes());
    head[8..16].copy_from_slice(&record.timestamp_ms.to_ne_bytes());
    head[16..20].copy_from_slice(&record.leader_epoch.unwrap_or(-1).to_ne_bytes());
    head[20] = u8::from(record.timestamp_type == TimestampType::LogAppend);
    head[21..25].copy_from_slice(&len_of(record.key)?.to_ne_bytes());
    head[25..29].copy_from_slice(&len_of(record.value)?.to_ne_bytes());
    head[29..33].copy_from_slice(
        &u32::try_from(record.headers.len())
            .map_err(|_| PartTooLong)?
            .to_ne_bytes(),
    );
    out.extend_from_slice(&head);
    out.extend_from_slice(record.key.unwrap_or_default());
    out.extend_from_slice(record.value.unwrap_or_default());
    for header in record.headers {
        out.extend_from_slice(&len_of(Some(header.key))?.to_ne_bytes());
        out.extend_from_slice(&len_of(header.value)?.to_ne_bytes());
        out.extend_from_slice(header.key);
        out.extend_from_slice(header.value.unwrap_or_default());
    }
    Ok(())
}

/// Bytes that [`pack`] takes for `record`.
pub(crate) fn packed_len(record: &RecordRef<'_>) -> usize {
    HEAD_LEN + usize::try_from(record.raw_bytes()).unwrap_or(usize::MAX) + record.headers.len() * 8
}

/// Hands every record of a chunk to `each`, in order.
pub(crate) fn unpack<E: From<DamagedChunk>>(
    mut chunk: &[u8],
    mut each: impl FnMut(&RecordRef<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut headers = Vec::new();
    while !chunk.is_empty() {
        let mut offset_and_time = [0; 8];
        offset_and_time.copy_from_slice(take(&mut chunk, 8)?);
        let offset = i64::from_ne_bytes(offset_and_time);
        offset_and_time.copy_from_slice(take(&mut chunk, 8)?);
        let timestamp_ms = i64::from_ne_bytes(offset_and_time);
        let epoch = i32::from_ne_bytes(take_u32(&mut chunk)?.to_ne_bytes());
        let log_append = take(&mut chunk, 1)?[0] == 1;
        let (key_len, value_len) = (take_u32(&mut chunk)?, take_u32(&mut chunk)?);
        let header_count = take_u32(&mut chunk)?;
        let key = take_part(&mut chunk, key_len)?;
        let value = take_part(&mut chunk, value_len)?;
        headers.clear();
        for _ in 0..header_count {
            let (key_len, value_len) = (take_u32(&mut chunk)?, take_u32(&mut chunk)?);
            let key = take_part(&mut chunk, key_len)?.ok_or(DamagedChunk)?;
            headers.push(HeaderRef {
                key,
                value: take_part(&mut chunk, value_len)?,
            });
        }
        each(&RecordRef {
            offset,
            timestamp_ms,
            timestamp_type: if log_append {
                TimestampType::LogAppend
            } else {
                TimestampType::Create
            },
            leader_epoch: (epoch >= 0).then_some(epoch),
            key,
            value,
            headers: &headers,
        })?;
    }
    Ok(())
}

fn take<'a>(chunk: &mut &'a [u8], len: usize) -> Result<&'a [u8], DamagedChunk> {
    let (part, rest) = chunk.split_at_checked(len).ok_or(DamagedChunk)?;
    *chunk = rest;
    Ok(part)
}

fn take_u32(chunk: &mut &[u8]) -> Result<u32, DamagedChunk> {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(take(chunk, 4)?);
    Ok(u32::from_ne_bytes(bytes))
}

fn take_part<'a>(chunk: &mut &'a [u8], len: u32) -> Result<Option<&'a [u8]>, DamagedChunk> {
    if len == NULL {
        return Ok(None);
    }
    take(chunk, usize::try_from(len).map_err(|_| DamagedChunk)?).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunk: &[u8]) -> Result<Vec<String>, DamagedChunk> {
        let mut seen = Vec::new();
        unpack(chunk, |record| {
            seen.push(format!("{record:?}"));
            Ok::<_, DamagedChunk>(())
        })?;
        Ok(seen)
    }

    #[test]
    fn records_come_back_as_they_went_in_and_a_torn_chunk_is_refused() {
        let headers = [
            HeaderRef {
                key: b"\xff\0k",
                value: Some(b""),
            },
            HeaderRef {
                key: b"",
                value: None,
            },
            HeaderRef {
                key: b"\xff\0k",
                value: Some(b"again"),
            },
        ];
        let full = RecordRef {
            offset: i64::MAX,
            timestamp_ms: -1,
            timestamp_type: TimestampType::LogAppend,
            leader_epoch: Some(7),
            key: Some(b""),
            value: Some(b"value"),
            headers: &headers,
        };
        let empty = RecordRef {
            key: None,
            value: None,
            leader_epoch: None,
            headers: &[],
            ..full
        };
        let mut chunk = Vec::new();
        pack(&full, &mut chunk).unwrap();
        assert_eq!(chunk.len(), packed_len(&full));
        let first = chunk.len();
        pack(&empty, &mut chunk).unwrap();
        assert_eq!(
            read(&chunk).unwrap(),
            [format!("{full:?}"), format!("{empty:?}")]
        );
        for torn in (1..chunk.len()).filter(|torn| *torn != first) {
            assert_eq!(read(&chunk[..torn]), Err(DamagedChunk), "{torn}");
        }
    }
}
