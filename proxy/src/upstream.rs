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
}

/// Connects to the first address of `host` that answers.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses = timeout(CONNECT_TIMEOUT, lookup_host((host, port))).await??;
    for address in addresses {
        match connect_to(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
    tune(&stream)?;
    Ok(stream)
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
        let (head, reply) = self.register(&frame, frame.len()).await?;
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
            let (head, reply) = self.register(&part, len).await?;
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
        let frame = self.ask(key, version, client_id, body).await?;
        Ok(wire::decode_response(key, version, shape, &frame.bytes)?)
    }

    /// As [`Upstream::call`], with the answer as it came.
    pub(crate) async fn ask<Q: Encodable>(
        &mut self,
        key: ApiKey,
        version: i16,
        client_id: Option<&StrBytes>,
        body: &Q,
    ) -> Result<Frame, Gone> {
        let frame = wire::encode_request(key, version, client_id, body)?;
        self.send(frame.freeze())
            .await?
            .await
            .map_err(|_| Gone::Closed)
    }

    async fn register(&mut self, part: &[u8], len: usize) -> Result<(Bytes, Reply), Gone> {
        let head = self.head(part, len)?;
        let (reply, receiver) = oneshot::channel();
        // Registered before it is written: the answer can't be there earlier.
        self.pending
            .send(Pending {
                correlation: self.correlation,
                reply,
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
            let room = self.budget.reserve(len).await;
            let bytes = self
                .frames
                .take(len, patience)
                .await
                .map_err(gone)?
                .freeze();
            let found = bytes
                .first_chunk::<4>()
                .map(|id| i32::from_be_bytes(*id))
                .ok_or(Malformed)?;
            let pending = self.pending.try_recv().map_err(|_| Gone::Unmatched {
                found,
                wanted: None,
            })?;
            if pending.correlation != found {
                return Err(Gone::Unmatched {
                    found,
                    wanted: Some(pending.correlation),
                });
            }
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
