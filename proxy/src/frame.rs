//! Kafka's framing: a length of four bytes, then that many bytes. Bounded in size and in time, in both directions.
//!
//! Nothing here knows what a frame holds, except for the one mistake that everybody makes: TLS on a plaintext port.

use std::io;
use std::io::IoSlice;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// The largest frame that passes in either direction, in bytes: Kafka's own default for `socket.request.max.bytes`.
pub(crate) const FRAME_BYTES_MAX: usize = 100 * 1024 * 1024;

/// A peer that is silent for this long inside a frame, or does not take our bytes, is cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Between two frames.
    pub(crate) idle: Duration,
    /// Inside a frame, for the next byte.
    pub(crate) progress: Duration,
}

/// Read at once where possible; also the most that is read ahead while nobody asks for a frame.
const CHUNK_BYTES: usize = 64 * 1024;

/// Why there is no next frame. All of them end the connection; they differ in what the log says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The peer closed between two frames, as it should.
    #[error("closed by the peer")]
    Closed,
    /// The peer closed, or fell silent, in the middle of a frame.
    #[error("the peer stopped in the middle of a frame")]
    Half,
    /// Silent for too long between frames.
    #[error("idle for too long")]
    Idle,
    /// The first bytes are a TLS handshake.
    #[error("a TLS handshake on a plaintext port")]
    Tls,
    /// Not a length that Kafka would send: another protocol, or an attack.
    #[error("a frame length of {0} bytes is out of bounds")]
    Length(i32),
    /// The socket failed.
    #[error("the socket failed")]
    Io(#[from] io::Error),
}

/// Reads frames from one half of a connection.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    io: R,
    ahead: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(io: R) -> FrameReader<R> {
        FrameReader {
            io,
            ahead: BytesMut::new(),
        }
    }

    /// Waits for the length of the next frame. Cancel safe.
    pub(crate) async fn length(&mut self, patience: Patience) -> Result<usize, FrameError> {
        while self.ahead.len() < 4 {
            let begun = !self.ahead.is_empty();
            let limit = if begun {
                patience.progress
            } else {
                patience.idle
            };
            match timeout(limit, self.read_ahead()).await {
                Ok(Ok(0)) if begun => return Err(FrameError::Half),
                Ok(Ok(0)) => return Err(FrameError::Closed),
                Ok(read) => read?,
                Err(_) if begun => return Err(FrameError::Half),
                Err(_) => return Err(FrameError::Idle),
            };
        }
        let length = (&self.ahead[..4]).get_i32();
        match usize::try_from(length) {
            Ok(length) if length <= FRAME_BYTES_MAX => {
                self.ahead.advance(4);
                Ok(length)
            }
            // Content type 22 (handshake), major version 3. As a length it would be 369 MB: never legal.
            _ if self.ahead[..2] == [0x16, 0x03] => Err(FrameError::Tls),
            _ => Err(FrameError::Length(length)),
        }
    }

    /// The first four bytes of the frame, which stay where they are: the correlation id of a response.
    pub(crate) async fn peek(&mut self, patience: Patience) -> Result<i32, FrameError> {
        while self.ahead.len() < 4 {
            match timeout(patience.progress, self.read_ahead()).await {
                Ok(Ok(0)) | Err(_) => return Err(FrameError::Half),
                Ok(read) => read?,
            };
        }
        Ok((&self.ahead[..4]).get_i32())
    }

    /// The next `len` bytes of the frame, as one piece of memory.
    pub(crate) async fn take(
        &mut self,
        len: usize,
        patience: Patience,
    ) -> Result<BytesMut, FrameError> {
        if self.ahead.len() >= len {
            return Ok(self.ahead.split_to(len));
        }
        // Grown as bytes arrive: a claimed length alone must not cost memory.
        let mut frame = BytesMut::with_capacity(len.min(CHUNK_BYTES));
        frame.extend_from_slice(&self.ahead.split());
        while frame.len() < len {
            let missing = len - frame.len();
            if frame.capacity() == frame.len() {
                frame.reserve(missing.min(frame.len().max(CHUNK_BYTES)));
            }
            let mut limited = (&mut self.io).take(missing as u64);
            match timeout(patience.progress, limited.read_buf(&mut frame)).await {
                Ok(Ok(0)) | Err(_) => return Err(FrameError::Half),
                Ok(read) => read?,
            };
        }
        Ok(frame)
    }

    /// At least one and at most `len` bytes of the frame: for passing on what is too long to hold.
    pub(crate) async fn some(
        &mut self,
        len: usize,
        patience: Patience,
    ) -> Result<Bytes, FrameError> {
        if self.ahead.is_empty() {
            match timeout(patience.progress, self.read_ahead()).await {
                Ok(Ok(0)) | Err(_) => return Err(FrameError::Half),
                Ok(read) => read?,
            };
        }
        let len = len.min(self.ahead.len());
        Ok(self.ahead.split_to(len).freeze())
    }

    /// Returns once the peer has closed. Keeps what arrives meanwhile, up to a bound. Cancel safe.
    pub(crate) async fn closed(&mut self) {
        while self.ahead.len() < CHUNK_BYTES {
            if !matches!(self.read_ahead().await, Ok(read) if read > 0) {
                return;
            }
        }
        // Full: whether it closes is seen when somebody reads on.
        std::future::pending().await
    }

    async fn read_ahead(&mut self) -> io::Result<usize> {
        if self.ahead.capacity() - self.ahead.len() < 4096 {
            self.ahead.reserve(CHUNK_BYTES);
        }
        self.io.read_buf(&mut self.ahead).await
    }
}

/// Writes all `chunks` without gluing them together. The peer has `progress` time for each step forward.
pub(crate) async fn write_chunks<W: AsyncWrite + Unpin>(
    io: &mut W,
    chunks: &[Bytes],
    progress: Duration,
) -> io::Result<()> {
    write_chunks_while(io, chunks, progress, |stalled| stalled < progress).await
}

/// As [`write_chunks`]. Each time that the peer has taken nothing for another `look`, `goes_on` is asked whether to wait
/// on, and told for how long it has taken nothing.
pub(crate) async fn write_chunks_while<W: AsyncWrite + Unpin>(
    io: &mut W,
    chunks: &[Bytes],
    look: Duration,
    goes_on: impl Fn(Duration) -> bool,
) -> io::Result<()> {
    const SLICES_MAX: usize = 64;
    let (mut index, mut offset) = (0, 0);
    let mut stalled = Duration::ZERO;
    while index < chunks.len() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        for (chunk, skip) in chunks[index..]
            .iter()
            .zip(std::iter::once(offset).chain(std::iter::repeat(0)))
        {
            if count == SLICES_MAX {
                break;
            }
            slices[count] = IoSlice::new(&chunk[skip..]);
            count += 1;
        }
        if slices[..count].iter().all(|slice| slice.is_empty()) {
            (index, offset) = (index + count, 0);
            continue;
        }
        let mut written = match timeout(look, io.write_vectored(&slices[..count])).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written?,
            Err(_) => {
                stalled += look;
                if goes_on(stalled) {
                    continue;
                }
                return Err(io::ErrorKind::TimedOut.into());
            }
        };
        stalled = Duration::ZERO;
        while index < chunks.len() && written >= chunks[index].len() - offset {
            written -= chunks[index].len() - offset;
            (index, offset) = (index + 1, 0);
        }
        offset += written;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        idle: Duration::from_millis(50),
        progress: Duration::from_millis(50),
    };

    async fn first(bytes: &[u8]) -> Result<BytesMut, FrameError> {
        let mut reader = FrameReader::new(bytes);
        let len = reader.length(PATIENCE).await?;
        reader.take(len, PATIENCE).await
    }

    #[tokio::test]
    async fn a_frame_is_its_length_and_its_bytes() {
        assert_eq!(
            &first(&[0, 0, 0, 2, 7, 8, 9]).await.expect("a frame")[..],
            [7, 8]
        );
        assert!(matches!(first(&[]).await, Err(FrameError::Closed)));
        assert!(matches!(first(&[0, 0]).await, Err(FrameError::Half)));
        assert!(matches!(
            first(&[0, 0, 0, 9, 1]).await,
            Err(FrameError::Half)
        ));
    }

    #[tokio::test]
    async fn lengths_that_kafka_never_sends_are_told_apart() {
        assert!(matches!(
            first(&[0x7f, 0xff, 0xff, 0xff]).await,
            Err(FrameError::Length(i32::MAX))
        ));
        assert!(matches!(
            first(&[0xff; 4]).await,
            Err(FrameError::Length(-1))
        ));
        assert!(matches!(
            first(&[0x16, 0x03, 0x01, 0x02, 0x00]).await,
            Err(FrameError::Tls)
        ));
        assert!(matches!(
            first(b"GET / HTTP/1.1\r\n").await,
            Err(FrameError::Length(_))
        ));
    }

    #[tokio::test]
    async fn a_silent_peer_is_given_up() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(far);
        assert!(matches!(
            reader.length(PATIENCE).await,
            Err(FrameError::Idle)
        ));
        near.write_all(&[0, 0, 0]).await.expect("room");
        assert!(matches!(
            reader.length(PATIENCE).await,
            Err(FrameError::Half)
        ));
    }

    #[tokio::test]
    async fn chunks_arrive_in_order_through_a_narrow_pipe() {
        let (mut near, mut far) = tokio::io::duplex(7);
        let chunks: Vec<Bytes> = (0u8..200)
            .map(|i| Bytes::from(vec![i; usize::from(i % 5)]))
            .collect();
        let sent: Vec<u8> = chunks.iter().flatten().copied().collect();
        let write = async move { write_chunks(&mut near, &chunks, Duration::from_secs(1)).await };
        let mut got = Vec::new();
        let (wrote, read) = tokio::join!(write, far.read_to_end(&mut got));
        assert!(wrote.is_ok() && read.is_ok());
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_waited_for_as_long_as_one_is_told_to() {
        let (mut near, mut far) = tokio::io::duplex(7);
        let chunks = [Bytes::from_static(b"more than the pipe holds")];
        let look = Duration::from_millis(20);
        let asked = std::sync::Mutex::new(Vec::new());
        let goes_on = |stalled| {
            let mut asked = asked.lock().expect("whole");
            asked.push(stalled);
            asked.len() < 3
        };
        let wrote = write_chunks_while(&mut near, &chunks, look, goes_on).await;
        assert_eq!(wrote.expect_err("given up").kind(), io::ErrorKind::TimedOut);
        assert_eq!(
            *asked.lock().expect("whole"),
            [look, look * 2, look * 3],
            "counted from the last step forward"
        );
        // One that takes a little now and then is never given up.
        asked.lock().expect("whole").clear();
        let reading = async {
            let mut byte = [0];
            while far.read_exact(&mut byte).await.is_ok() {
                tokio::time::sleep(look / 4).await;
            }
        };
        let patient = async {
            // Long enough for a machine that has much else to do.
            let look = Duration::from_secs(10);
            let wrote = write_chunks_while(&mut near, &chunks, look, |_| false).await;
            drop(near);
            wrote
        };
        let (wrote, ()) = tokio::join!(patient, reading);
        assert!(wrote.is_ok());
    }
}
