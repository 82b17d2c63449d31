//! Whether the body of an upload still moves.
//!
//! A server that takes no byte and says nothing would otherwise be waited for until the deadline that the body has by
//! its size: a quarter of an hour for a segment. What counts as movement is that the connection asks for the next
//! piece, which it does only once the ones before have left its buffer.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::retry::{Failure, RetryPolicy};

/// Given to the connection at once. A body in one piece would show no movement at all.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// What can be in the buffers of connection and kernel after the last byte was taken: the largest send buffer that
/// Linux gives by itself.
const IN_FLIGHT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How far one try of an upload is. Shared by the body and by who waits for the answer.
#[derive(Debug)]
pub(crate) struct Progress {
    begun: Instant,
    len: u64,
    taken: AtomicU64,
    /// After `begun`. Relaxed, like `taken`: a value that is a moment old only makes the watch look once more.
    moved_after_ms: AtomicU64,
}

impl Progress {
    /// Of a body of `len` bytes that starts now.
    pub(crate) fn new(len: u64) -> Arc<Progress> {
        Arc::new(Progress {
            begun: Instant::now(),
            len,
            taken: AtomicU64::new(0),
            moved_after_ms: AtomicU64::new(0),
        })
    }

    fn took(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
        let after = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_after_ms.store(after, Ordering::Relaxed);
    }

    fn is_whole(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.len
    }

    /// If nothing moves from now on, the try is given up then.
    fn deadline(&self, policy: &RetryPolicy) -> Instant {
        let patience = if self.is_whole() {
            policy.answer_max + policy.transfer_max(self.len.min(IN_FLIGHT_BYTES_MAX))
        } else {
            policy.stall_max
        };
        let moved_after = Duration::from_millis(self.moved_after_ms.load(Ordering::Relaxed));
        self.begun + moved_after + patience
    }

    /// `work`, which sends the body that [`Watched`] reports of, given up when nothing moves any more, and at the
    /// latest by the deadline that the body has by its size.
    pub(crate) async fn watch<T>(
        &self,
        policy: &RetryPolicy,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let latest = self.begun + policy.answer_max + policy.transfer_max(self.len);
        let mut work = pin!(work);
        loop {
            let until = self.deadline(policy).min(latest);
            if let Ok(done) = tokio::time::timeout_at(until, work.as_mut()).await {
                return Ok(done);
            }
            if self.deadline(policy).min(latest) <= until {
                return Err(self.given_up());
            }
        }
    }

    fn given_up(&self) -> Failure {
        let (taken, len) = (self.taken.load(Ordering::Relaxed), self.len);
        let after = self.begun.elapsed();
        Failure::transient(format!(
            "the upload was given up after {after:.1?}: {taken} of {len} bytes were taken, and no answer came"
        ))
    }
}

/// A body that notes in its [`Progress`] what is taken of it.
#[derive(Debug)]
pub(crate) struct Watched<B> {
    inner: B,
    /// Of the piece that `inner` gave last.
    rest: Bytes,
    progress: Arc<Progress>,
}

impl<B> Watched<B> {
    pub(crate) fn new(inner: B, progress: Arc<Progress>) -> Watched<B> {
        Watched {
            inner,
            rest: Bytes::new(),
            progress,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = bytes,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let len = self.rest.len().min(PIECE_BYTES_MAX);
        let piece = self.rest.split_to(len);
        self.progress.took(len);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.inner.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(inner.lower().saturating_add(rest));
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Pieces as they are given, to the end.
    struct Pieces(Vec<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop().map(|piece| Ok(Frame::data(piece))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
        }
    }

    async fn take<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Option<Bytes> {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        frame.and_then(Result::ok)?.into_data().ok()
    }

    #[tokio::test]
    async fn a_large_piece_is_given_in_small_ones_and_its_size_stays_known() {
        let bytes = Bytes::from_iter((0..200_000_u32).map(|n| n.to_le_bytes()[0]));
        let pieces = Pieces(vec![
            bytes.slice(150_000..),
            Bytes::new(),
            bytes.slice(..150_000),
        ]);
        let progress = Progress::new(200_000);
        let mut body = Watched::new(pieces, Arc::clone(&progress));
        let (mut found, mut count) = (Vec::new(), 0);
        while let Some(piece) = take(&mut body).await {
            assert!(piece.len() <= PIECE_BYTES_MAX && !progress.is_whole() || body.is_end_stream());
            found.extend_from_slice(&piece);
            count += 1;
            let left = (200_000 - found.len()) as u64;
            assert_eq!(body.size_hint().exact(), Some(left));
        }
        assert_eq!((found, count), (bytes.to_vec(), 4));
        assert!(body.is_end_stream() && progress.is_whole());
    }

    const STALL_MAX: Duration = Duration::from_millis(300);
    const ANSWER_MAX: Duration = Duration::from_millis(100);
    const MIB: u64 = 1024 * 1024;

    fn policy() -> RetryPolicy {
        RetryPolicy {
            answer_max: ANSWER_MAX,
            stall_max: STALL_MAX,
            bytes_per_second_min: 40 * MIB,
            ..RetryPolicy::default()
        }
    }

    /// How long `watch` waits for a server that takes `step` bytes of `len` so many times, 20 ms before each, and then
    /// no more.
    async fn waits(len: u64, step: usize, times: u32) -> Duration {
        let progress = Progress::new(len);
        let work = async {
            for _ in 0..times {
                tokio::time::sleep(PAUSE).await;
                progress.took(step);
            }
            std::future::pending::<()>().await;
        };
        let begun = Instant::now();
        let ended = progress.watch(&policy(), work).await;
        assert!(matches!(ended, Err(Failure::Transient(_))), "{ended:?}");
        begun.elapsed()
    }

    const PAUSE: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn an_upload_is_given_up_when_nothing_moves_and_not_before() {
        // What a machine under load may add. The deadline by size of a GiB is 25 s.
        let slack = Duration::from_secs(8);
        let check = |what: &str, waited: Duration, right: Duration| {
            let bounds = right - Duration::from_millis(2)..right + slack;
            assert!(bounds.contains(&waited), "{what}: {waited:?}");
        };
        let gib = 1024 * MIB;
        check("not a byte is taken", waits(gib, 0, 0).await, STALL_MAX);
        let stopped = waits(gib, 1024 * 1024, 40).await;
        check("it stops halfway", stopped, 40 * PAUSE + STALL_MAX);
        let in_flight = Duration::from_millis(100);
        let unanswered = waits(gib, 256 * 1024 * 1024, 6).await;
        check("no answer", unanswered, 6 * PAUSE + ANSWER_MAX + in_flight);
        let by_size = ANSWER_MAX + Duration::from_millis(500);
        check("a trickle", waits(20 * MIB, 1, 1_000).await, by_size);
    }

    #[tokio::test]
    async fn an_answer_is_passed_on() {
        let progress = Progress::new(1);
        let work = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            7
        };
        let answer = progress.watch(&policy(), work).await;
        assert_eq!(answer.ok(), Some(7));
    }
}
