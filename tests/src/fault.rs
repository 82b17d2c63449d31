//! A relay in front of an object store that fails on demand.
//!
//! One request per connection, so that a fault hits exactly one request. Signatures stay valid: the client signs this
//! relay's address, and the server checks the `Host` header as it came.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use rand::Rng;

use crate::free_ports;

/// What the relay does to requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Faults {
    /// Passes all on.
    #[default]
    None,
    /// Closes each connection at once, as if nobody listened.
    Refuse,
    /// Takes the request and never answers, until the mode changes.
    Hang,
    /// Takes the request and passes it on only when the mode changes: it arrives at the server when nobody expects it
    /// any more.
    Hold,
    /// Passes the request on, lets the server act, and drops this share (0 to 1) of the answers, the first among them.
    LoseAnswers(f64),
    /// Answers this share (0 to 1), the first among them, with 503 SlowDown without asking the server.
    Unavailable(f64),
}

#[derive(Debug)]
struct Shared {
    upstream: u16,
    faults: Mutex<Faults>,
    requests: AtomicU64,
    failed: AtomicU64,
    /// Requests that are held back and have not reached the server.
    held: AtomicU64,
    stopped: AtomicBool,
    /// Nothing has failed in this mode yet: the first request does, whatever the share, or a short test may see no fault.
    first: AtomicBool,
}

/// A running relay. Ends with its value.
#[derive(Debug)]
pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
}

impl FaultProxy {
    /// Relays to `upstream` on loopback.
    pub fn start(upstream: u16) -> Result<FaultProxy> {
        let port = free_ports(1)?;
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let shared = Arc::new(Shared {
            upstream,
            faults: Mutex::default(),
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            held: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            first: AtomicBool::new(true),
        });
        let inner = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if inner.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&inner);
                // An error ends the connection, which is all that a client can see of it.
                std::thread::spawn(move || relay(&shared, client));
            }
        });
        Ok(FaultProxy { port, shared })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on.
    pub fn set(&self, faults: Faults) {
        *self
            .shared
            .faults
            .lock()
            .expect("no panic while it is held") = faults;
        self.shared.first.store(true, Ordering::Relaxed);
    }

    /// Requests so far, and how many of them were made to fail.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.shared.requests.load(Ordering::Relaxed),
            self.shared.failed.load(Ordering::Relaxed),
        )
    }
}

impl FaultProxy {
    /// Requests held back by [`Faults::Hold`] that have not reached the server yet.
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn relay(shared: &Shared, mut client: TcpStream) -> Result<()> {
    let faults = || *shared.faults.lock().expect("no panic while it is held");
    if faults() == Faults::Refuse {
        shared.failed.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    let (head, already) = read_head(&mut client)?;
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let expects = head_value(&head, "expect").is_some();
    let length: Option<usize> =
        head_value(&head, "content-length").and_then(|text| text.parse().ok());
    let chunked = head_value(&head, "transfer-encoding").is_some();
    if expects {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mode = faults();
    let failed =
        |share: f64| shared.first.swap(false, Ordering::Relaxed) || rand::rng().random_bool(share);
    match mode {
        Faults::Unavailable(share) if failed(share) => {
            shared.failed.fetch_add(1, Ordering::Relaxed);
            copy_body(&mut client, &mut std::io::sink(), &already, length, chunked)?;
            let body = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
            write!(
                client,
                "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )?;
            return Ok(());
        }
        Faults::Hang => {
            shared.failed.fetch_add(1, Ordering::Relaxed);
            while faults() == Faults::Hang && !shared.stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
            }
            return Ok(());
        }
        _ => {}
    }
    // The whole body first: a server that answers early, because the key is taken, may close before it has read it all.
    let mut body = Vec::new();
    copy_body(&mut client, &mut body, &already, length, chunked)?;
    if mode == Faults::Hold {
        shared.failed.fetch_add(1, Ordering::Relaxed);
        shared.held.fetch_add(1, Ordering::Relaxed);
        while faults() == Faults::Hold && !shared.stopped.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let arrived = arrive(shared.upstream, &head, &body);
    if mode == Faults::Hold {
        shared.held.fetch_sub(1, Ordering::Relaxed);
    }
    let mut server = arrived?;
    let lost = matches!(mode, Faults::LoseAnswers(share) if failed(share));
    if lost {
        shared.failed.fetch_add(1, Ordering::Relaxed);
        // To the end, so that the server has acted for sure.
        std::io::copy(&mut server, &mut std::io::sink())?;
        client.shutdown(Shutdown::Both)?;
        return Ok(());
    }
    std::io::copy(&mut server, &mut client)?;
    Ok(())
}

/// Hands a request to the server.
fn arrive(upstream: u16, head: &str, body: &[u8]) -> Result<TcpStream> {
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    server.write_all(&for_one_request(head))?;
    // What a server does not want to read any more is its own affair; its answer counts.
    let _ = server.write_all(body);
    Ok(server)
}

fn read_head(client: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let got = client.read(&mut part)?;
        if got == 0 {
            bail!("no request");
        }
        bytes.extend_from_slice(&part[..got]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8(bytes)?, rest));
        }
        if bytes.len() > 1 << 16 {
            bail!("a request's head is too long");
        }
    }
}

fn head_value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// The head for a connection that carries this request only. The `Expect` was answered here.
fn for_one_request(head: &str) -> Vec<u8> {
    let mut out = String::with_capacity(head.len() + 24);
    for line in head.trim_end().split("\r\n") {
        let name = line.split(':').next().unwrap_or("");
        if !name.eq_ignore_ascii_case("connection") && !name.eq_ignore_ascii_case("expect") {
            out.push_str(line);
            out.push_str("\r\n");
        }
    }
    out.push_str("Connection: close\r\n\r\n");
    out.into_bytes()
}

fn copy_body(
    client: &mut TcpStream,
    out: &mut impl Write,
    already: &[u8],
    length: Option<usize>,
    chunked: bool,
) -> Result<()> {
    out.write_all(already)?;
    if chunked {
        let mut last: Vec<u8> = already[already.len().saturating_sub(5)..].to_vec();
        let mut part = [0; 1 << 16];
        while !last.ends_with(b"0\r\n\r\n") {
            let got = client.read(&mut part)?;
            if got == 0 {
                bail!("the body ended early");
            }
            out.write_all(&part[..got])?;
            last.extend_from_slice(&part[..got]);
            last.drain(..last.len().saturating_sub(5));
        }
        return Ok(());
    }
    let missing = length.unwrap_or(0).saturating_sub(already.len());
    let copied = std::io::copy(&mut client.take(u64::try_from(missing)?), out)?;
    if copied < u64::try_from(missing)? {
        bail!("the body ended early");
    }
    Ok(())
}
