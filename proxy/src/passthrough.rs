//! Requests that pass without being held: the few bytes that must be known first, and getting rid of a body.

use bytes::BytesMut;
use tokio::io::AsyncRead;

use crate::api::k00_produce::{self, Acks};
use crate::frame::{FrameError, FrameReader, Patience};

/// What may stand before `acks`: client id and transactional id have at most 32 KiB each.
const PRODUCE_HEAD_MAX: usize = 80 * 1024;

/// Reads on behind `start` until `acks` is known.
pub(crate) async fn produce_head<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    version: i16,
    start: BytesMut,
    len: usize,
    patience: Patience,
) -> Result<(BytesMut, Acks), FrameError> {
    let mut head = start;
    loop {
        match k00_produce::acks(version, &head) {
            Acks::Unread if head.len() < len.min(PRODUCE_HEAD_MAX) => {
                let part = frames.some(len - head.len(), patience).await?;
                head.extend_from_slice(&part);
            }
            acks => return Ok((head, acks)),
        }
    }
}

/// Reads `len` bytes and forgets them.
pub(crate) async fn skip<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    mut len: usize,
    patience: Patience,
) -> Result<(), FrameError> {
    while len > 0 {
        len -= frames.some(len, patience).await?.len();
    }
    Ok(())
}
