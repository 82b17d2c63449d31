//! Azure's object store on loopback, as far as its emulator Azurite is like it: over a folder, with one container.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Cache, Case, Process, free_ports, wait_until};

const ACCOUNT: &str = "everlogtest";
const KEY: &str = "ZXZlcmxvZ3Rlc3RzZWNyZXQ=";
const CONTAINER: &str = "archive";

/// The creation of the container, signed once with the key above: the emulator minds no clock.
const CREATION_DATE: &str = "Sun, 22 Nov 2026 00:00:00 GMT";
const CREATION_SIGNATURE: &str = "WFHd2VvcWWRsuJl4dpsUmS4a23rPscPekRGHOCkOjL4=";

/// A running emulator. Stops with its value.
#[derive(Debug)]
pub struct Azure {
    port: u16,
    _process: Process,
}

impl Azure {
    /// A fresh one in the test's folder.
    pub fn start(case: &Case) -> Result<Azure> {
        let port = free_ports(1)?;
        let folder = case.path(&format!("azure-{port}"));
        std::fs::create_dir_all(&folder)?;
        let mut command = Cache::find()?.azurite();
        command
            .args(["--silent", "--disableTelemetry"])
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .arg("--location")
            .arg(&folder)
            .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"));
        let log = case.path(&format!("azure-{port}.log"));
        let mut process = Process::start("azurite", &command, &log)?;
        wait_until("Azurite", Duration::from_secs(60), || {
            process.check_alive()?;
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        })?;
        create_container(port).context("creating a container")?;
        Ok(Azure {
            port,
            _process: process,
        })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// An archive's URL in its container.
    pub fn url(prefix: &str) -> String {
        format!("az://{CONTAINER}/{prefix}")
    }

    /// The endpoint of a program that reaches it through `port` (its own, or a fault proxy's).
    pub fn endpoint(port: u16) -> String {
        format!("http://127.0.0.1:{port}/{ACCOUNT}")
    }

    /// What a program needs in its environment beside the endpoint.
    pub fn environment() -> [(&'static str, &'static str); 2] {
        [
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY),
        ]
    }
}

fn create_container(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(
        stream,
        "PUT /{ACCOUNT}/{CONTAINER}?restype=container HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nx-ms-date: {CREATION_DATE}\r\n\
         x-ms-version: 2021-08-06\r\nAuthorization: SharedKey {ACCOUNT}:{CREATION_SIGNATURE}\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    Ok(())
}
