//! Line 7: random bytes, half frames, length prefixes of 2 GiB, TLS hellos and silence at the proxy's port. Connections are
//! closed, a line is logged, memory stays flat, and real clients notice nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use everlog_tests::{
    Archive, Case, Client, Everlog, EverlogOptions, Kafka, produce_orders, read, soak,
};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

/// Sends `bytes` and waits until the proxy closes the connection.
fn closes(port: u16, bytes: &[u8], end_writing: bool) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // It may have closed before all is sent.
    let _ = stream.write_all(bytes);
    if end_writing {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => return Ok(()),
            // An answer to something that happened to be a request is fine.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("still open after 20 s"),
            Err(_) => return Ok(()),
        }
    }
}

/// A client hello as OpenSSL sends it, up to where nobody looks any more.
fn tls_hello() -> Vec<u8> {
    let mut hello = vec![
        0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
    ];
    hello.extend([7; 500]);
    hello
}

#[test]
fn hostile_bytes_close_their_connection_and_nothing_else() {
    Case::run("hostile", |case| {
        let kafka = Kafka::start(case)?;
        let admin = kafka.admin()?;
        admin.create_topic("orders", 1, &[])?;
        produce_orders(&kafka.bootstrap(), "orders", 1, 0..200, "none")?;
        let archive = Archive::folder(&case.path("archive"));
        let options = EverlogOptions::default();
        let mut everlog = Everlog::start(case, &kafka.bootstrap(), &archive, &options)?;
        read(
            Client::Rdkafka,
            &everlog.bootstrap(),
            "orders",
            &case.path("warm"),
        )?;
        let before = everlog.process.usage()?.rss_bytes;
        let rounds = if soak() { 5_000 } else { 400 };
        let mut rng = StdRng::seed_from_u64(5);
        // Both the first port and a node's own.
        let ports = [everlog.port(), everlog.port() + 2];
        for round in 0..rounds {
            let port = ports[round % 2];
            let mut bytes = vec![0; rng.random_range(1..3000)];
            rng.fill_bytes(&mut bytes);
            let what = match round % 8 {
                0 | 1 => "random bytes",
                2 => {
                    bytes = vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0];
                    "a frame of 2 GiB"
                }
                3 => {
                    bytes = (-5_i32).to_be_bytes().to_vec();
                    "a negative length"
                }
                4 => {
                    bytes = tls_hello();
                    "a TLS hello"
                }
                5 => {
                    // Right length, random content: an unknown API, version or field.
                    let length = u32::try_from(bytes.len())?.to_be_bytes();
                    bytes.splice(0..0, length);
                    "a frame of random bytes"
                }
                6 => {
                    // A request whose arrays claim far more than the frame has.
                    let key: i16 = [1, 2, 3, 18, 23, 10, 60][rng.random_range(0..7)];
                    let mut frame = Vec::new();
                    frame.extend(key.to_be_bytes());
                    frame.extend([4_i16, 1, 9, 3, 3, 2, 0][rng.random_range(0..7)].to_be_bytes());
                    frame.extend(7_i32.to_be_bytes());
                    frame.extend([0, 1, b'x']);
                    frame.extend([0x7f, 0xff, 0xff, 0xff].repeat(rng.random_range(1..20)));
                    bytes = u32::try_from(frame.len())?.to_be_bytes().to_vec();
                    bytes.extend(frame);
                    "a request with huge arrays"
                }
                _ => {
                    bytes = vec![0, 0, 1, 0, 0, 18, 0, 3];
                    "half a frame"
                }
            };
            // Who leaves in the middle of a frame is noticed at once; to stay silent is everybody's right for a while.
            if let Err(error) = closes(port, &bytes, true) {
                bail!("{what} (round {round}): {error}\n{bytes:02x?}");
            }
            everlog.process.check_alive()?;
        }
        for bytes in [
            vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
            (-5_i32).to_be_bytes().to_vec(),
            tls_hello(),
        ] {
            // These are hopeless at first sight: closed although the client would go on.
            closes(everlog.port(), &bytes, false)?;
        }
        // Many half frames of announced 50 MB at the same time take no memory.
        let mut held = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(("127.0.0.1", everlog.port()))?;
            stream.write_all(&50_000_000_u32.to_be_bytes())?;
            stream.write_all(&[0, 1, 0, 4, 0, 0])?;
            held.push(stream);
        }
        std::thread::sleep(Duration::from_secs(1));
        let after = everlog.process.usage()?.rss_bytes;
        case.note(&format!(
            "{} KiB before, {} KiB after {rounds} rounds",
            before / 1024,
            after / 1024
        ));
        ensure!(
            after < before + (32 << 20),
            "memory grew from {before} to {after} bytes"
        );
        drop(held);
        ensure!(
            everlog.process.log_text().to_lowercase().contains("tls"),
            "the log says nothing of TLS"
        );
        ensure!(
            !everlog.process.log_text().contains("panicked"),
            "something panicked"
        );
        let report = read(
            Client::Java,
            &everlog.bootstrap(),
            "orders",
            &case.path("after"),
        )?;
        ensure!(report.records == 200, "{report:?}");
        everlog.stop()
    });
}
