//! The connection to a broker that belongs to one client connection.
//!
//! Whatever the client sends and whatever the proxy asks for its own purposes goes over it, under correlation ids of
//! our own, so identity, ACLs, quotas and order are the broker's business. The broker answers in the order of the
//! requests; an answer that nobody waits for, or another than the next one, ends the connection.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::budget::{Budget, Room};
use crate::frame::{FrameError, FrameReader, Patience, write_chunks};
use crate::shape::{Malformed, Shape};
use crate::wire::{self, Prefix, WireError};

/// For one address. Longer only makes a dead address look like a slow cluster.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What was sent and is not acknowledged for this long will never be.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(120);

/// Requests in flight on one connection. Kafka's clients keep 5 by default.
const IN_FLIGHT_MAX: usize = 256;

/// A broker's answer, from the correlation id on, with the room that it takes.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    pub(crate) room: Room,
}

/// Where an answer will arrive. Fails when the upstream connection ends first.
pub(crate) type Reply = oneshot::Receiver<Frame>;

/// The upstream connection has ended, and with it the client's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Gone {
    /// Closed by the broker, or its socket failed.
    #[error("the broker closed the connection")]
    Closed,
    /// The socket failed.
    #[error("the connection to the broker failed")]
    Io(#[from] io::Error),
    /// What came is not what Kafka's protocol says.
    #[error("the broker broke the protocol")]
    Frame(#[source] FrameError),
    /// An answer without a request, or out of order.
    #[error("an answer with correlation id {found} came where {wanted:?} was due")]
    Unmatched {
        /// The answer's.
        found: i32,
        /// The next one due, if any is.
        wanted: Option<i32>,
    },
    /// A message could not be decoded or encoded.
    #[error("a message could not be read or written")]
    Wire(#[from] WireError),
}

impl From<Malformed> for Gone {
    fn from(malformed: Malformed) -> Gone {
        Gone::Wire(malformed.into())
    }
}

/// The sending half, and the register of what is awaited.
#[derive(Debug)]
pub(crate) struct Upstream {
    io: OwnedWriteHalf,
    pending: mpsc::Sender<Pending>,
    correlation: i32,
    patience: Patience,
}

/// The receiving half: [`Replies::run`] has to be polled for answers to arrive.
#[derive(Debug)]
pub(crate) struct Replies {
    frames: FrameReader<OwnedReadHalf>,
    pending: mpsc::Receiver<Pending>,
    budget: Budget,
    patience: Patience,
}

#[derive(Debug)]
struct Pending {
    correlation: i32,
    reply: oneshot::Sender<Frame>,
    asker: Asker,
}

/// For whom something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// The client: the answer may be large, and takes its room until the client has it.
    Client,
    /// The proxy: the answer is small and gone at once. It takes no room, since it may be asked for while the answer to
    /// a client is held: waiting for room would be waiting for oneself.
    Proxy,
}

/// Connects to the first address of `host` that answers.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses = timeout(CONNECT_TIMEOUT, lookup_host((host, port)))
        .await
        .map_err(|_| too_slow("no answer from the name server"))??;
    for address in addresses {
        match connect_to(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| too_slow("no connection"))??;
    tune(&stream)?;
    Ok(stream)
}

fn too_slow(what: &str) -> io::Error {
    let limit = CONNECT_TIMEOUT.as_secs();
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within {limit} s"))
}

/// No delay for small frames, and an end for peers that vanished without a word.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    // Keepalive is silent while something is under way: then this ends it.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(())
}

/// Takes over a fresh connection to a broker.
pub(crate) fn open(stream: TcpStream, budget: Budget, patience: Patience) -> (Upstream, Replies) {
    let (read, io) = stream.into_split();
    let (sender, pending) = mpsc::channel(IN_FLIGHT_MAX);
    let upstream = Upstream {
        io,
        pending: sender,
        correlation: 0,
        patience,
    };
    (
        upstream,
        Replies {
            frames: FrameReader::new(read),
            pending,
            budget,
            patience,
        },
    )
}

impl Upstream {
    /// Sends a whole request frame (from the API key on) under an id of our own.
    pub(crate) async fn send(&mut self, frame: Bytes) -> Result<Reply, Gone> {
        self.send_for(Asker::Client, frame).await
    }

    async fn send_for(&mut self, asker: Asker, frame: Bytes) -> Result<Reply, Gone> {
        let (head, reply) = self.register(asker, &frame, frame.len()).await?;
        write_chunks(
            &mut self.io,
            &[head, frame.slice(Prefix::BYTES..)],
            self.patience.progress,
        )
        .await?;
        Ok(reply)
    }

    /// Begins a request frame of `len` bytes that starts with `part`; the rest follows by [`Upstream::go_on`]. Without
    /// `answered` the broker sends no response to it.
    pub(crate) async fn begin(
        &mut self,
        part: Bytes,
        len: usize,
        answered: bool,
    ) -> Result<Option<Reply>, Gone> {
        let (head, reply) = if answered {
            let (head, reply) = self.register(Asker::Client, &part, len).await?;
            (head, Some(reply))
        } else {
            (self.head(&part, len)?, None)
        };
        write_chunks(
            &mut self.io,
            &[head, part.slice(Prefix::BYTES..)],
            self.patience.progress,
        )
        .await?;
        Ok(reply)
    }

    /// The next bytes of the frame that was begun.
    pub(crate) async fn go_on(&mut self, part: Bytes) -> Result<(), Gone> {
        Ok(write_chunks(&mut self.io, &[part], self.patience.progress).await?)
    }

    /// Asks something on the proxy's own behalf and waits for the answer.
    pub(crate) async fn call<Q: Encodable, A: Decodable>(
        &mut self,
        key: ApiKey,
        version: i16,
        client_id: Option<&StrBytes>,
        body: &Q,
        shape: &Shape,
    ) -> Result<A, Gone> {
        let frame = wire::encode_request(key, version, client_id, body)?;
        let reply = self.send_for(Asker::Proxy, frame.freeze()).await?;
        let frame = reply.await.map_err(|_| Gone::Closed)?;
        Ok(wire::decode_response(key, version, shape, &frame.bytes)?)
    }

    /// Asks in the proxy's words for what the client wants. The answer is waited for where it is needed: what is asked
    /// behind it is on its way meanwhile.
    pub(crate) async fn ask<Q: Encodable>(
        &mut self,
        key: ApiKey,
        version: i16,
        client_id: Option<&StrBytes>,
        body: &Q,
    ) -> Result<Reply, Gone> {
        let frame = wire::encode_request(key, version, client_id, body)?;
        self.send(frame.freeze()).await
    }

    async fn register(
        &mut self,
        asker: Asker,
        part: &[u8],
        len: usize,
    ) -> Result<(Bytes, Reply), Gone> {
        let head = self.head(part, len)?;
        let (reply, receiver) = oneshot::channel();
        // Registered before it is written: the answer can't be there earlier.
        self.pending
            .send(Pending {
                correlation: self.correlation,
                reply,
                asker,
            })
            .await
            .map_err(|_| Gone::Closed)?;
        Ok((head, receiver))
    }

    /// Length, key, version, and the next correlation id.
    fn head(&mut self, part: &[u8], len: usize) -> Result<Bytes, Gone> {
        let key_and_version = part.get(..4).ok_or(Malformed)?;
        self.correlation = self.correlation.checked_add(1).unwrap_or(1);
        let mut head = BytesMut::with_capacity(4 + Prefix::BYTES);
        head.put_i32(i32::try_from(len).map_err(|_| Malformed)?);
        head.put_slice(key_and_version);
        head.put_i32(self.correlation);
        Ok(head.freeze())
    }
}

impl Replies {
    /// Hands each answer to who waits for it, until the connection ends. Ends itself when [`Upstream`] is dropped and
    /// everything was answered.
    pub(crate) async fn run(mut self) -> Gone {
        match self.receive().await {
            Ok(never) => match never {},
            Err(gone) => gone,
        }
    }

    async fn receive(&mut self) -> Result<std::convert::Infallible, Gone> {
        // How long a broker may take to answer is the client's business; inside a frame it has to move on.
        let patience = Patience {
            idle: Duration::from_secs(u64::from(u32::MAX)),
            ..self.patience
        };
        loop {
            let len = self.frames.length(patience).await.map_err(gone)?;
            if len < 4 {
                return Err(Malformed.into());
            }
            // Before anything is held of it: what nobody waits for is not read.
            let found = self.frames.peek(patience).await.map_err(gone)?;
            let pending = self.pending.try_recv().ok();
            let wanted = pending.as_ref().map(|pending| pending.correlation);
            let Some(pending) = pending.filter(|pending| pending.correlation == found) else {
                return Err(Gone::Unmatched { found, wanted });
            };
            let room = match pending.asker {
                Asker::Client => self.budget.reserve(len).await,
                Asker::Proxy => None,
            };
            let bytes = self
                .frames
                .take(len, patience)
                .await
                .map_err(gone)?
                .freeze();
            // Nobody waits any more when the client's request was given up: its answer is dropped.
            let _ = pending.reply.send(Frame { bytes, room });
        }
    }
}

fn gone(error: FrameError) -> Gone {
    match error {
        FrameError::Closed => Gone::Closed,
        FrameError::Io(error) => Gone::Io(error),
        FrameError::Half | FrameError::Idle | FrameError::Tls | FrameError::Length(_) => {
            Gone::Frame(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::shape;

    /// It used to be told in tokio's words, "deadline has elapsed".
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn dropped_packets_are_told_as_no_connection() {
        // Linux drops what comes when nobody has taken the connections before.
        let full = tokio::net::TcpSocket::new_v4().expect("a socket");
        full.bind("127.0.0.1:0".parse().expect("an address"))
            .expect("a port");
        let full = full.listen(1).expect("a listener");
        let port = full.local_addr().expect("bound").port();
        let mut waiting = Vec::new();
        let error = loop {
            match connect("127.0.0.1", port).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10, "all are taken");
        };
        assert_eq!(error.to_string(), "no connection within 3 s");
    }

    /// It used to wait for room as a client's answer does: a fetch that held all of it and then asked where the log
    /// starts waited for itself.
    #[tokio::test]
    async fn what_the_proxy_asks_needs_no_room() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut broker, _) = listener.accept().await.expect("a client");
            loop {
                let len = broker.read_i32().await.unwrap_or(0);
                let mut request = vec![0; usize::try_from(len).expect("a length")];
                if len == 0 || broker.read_exact(&mut request).await.is_err() {
                    return;
                }
                // Correlation id, no error, 5,000 API keys.
                let mut answer = request[4..8].to_vec();
                answer.extend([0, 0, 0, 0, 0x13, 0x88]);
                answer.resize(10 + 5000 * 6, 0);
                let len = i32::try_from(answer.len()).expect("small");
                broker.write_i32(len).await.expect("taken");
                broker.write_all(&answer).await.expect("taken");
            }
        });
        let budget = Budget::new(1 << 20);
        let all = budget.reserve(1 << 20).await;
        let patience = Patience {
            idle: Duration::from_secs(9),
            progress: Duration::from_secs(9),
        };
        let stream = TcpStream::connect(address).await.expect("the broker");
        let (mut upstream, replies) = open(stream, budget.clone(), patience);
        tokio::spawn(replies.run());
        let request = ApiVersionsRequest::default();
        let shape = &shape::API_VERSIONS_RESPONSE;
        let called: Result<ApiVersionsResponse, _> = timeout(
            Duration::from_secs(5),
            upstream.call(ApiKey::ApiVersions, 0, None, &request, shape),
        )
        .await
        .expect("in time");
        assert_eq!(called.expect("an answer").api_keys.len(), 5000);
        let asked = upstream.ask(ApiKey::ApiVersions, 0, None, &request).await;
        let mut asked = asked.expect("it was sent");
        let early = timeout(Duration::from_millis(100), &mut asked).await;
        assert!(early.is_err(), "what a client asks does");
        drop(all);
        assert!(asked.await.expect("an answer").room.is_some());
    }
}
