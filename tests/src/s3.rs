//! An S3 server on loopback that obeys conditional puts: versitygw over a folder.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{Cache, Case, Process, free_ports, wait_until};

const ACCESS_KEY: &str = "everlogtest";
const SECRET_KEY: &str = "everlogtestsecret";
const BUCKET: &str = "archive";

/// A server with one bucket. Stops with its value.
#[derive(Debug)]
pub struct S3 {
    cache: Cache,
    port: u16,
    folder: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl S3 {
    /// A fresh one in the test's folder.
    pub fn start(case: &Case) -> Result<S3> {
        let port = free_ports(1)?;
        let folder = case.path(&format!("s3-{port}"));
        std::fs::create_dir_all(folder.join(BUCKET))?;
        let log = case.path(&format!("s3-{port}.log"));
        let mut s3 = S3 {
            cache: Cache::find()?,
            port,
            folder,
            log,
            process: None,
        };
        s3.restart()?;
        Ok(s3)
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// An archive's URL in its bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The folder in which an archive's objects lie as files.
    pub fn archive_folder(&self, prefix: &str) -> PathBuf {
        self.folder.join(BUCKET).join(prefix)
    }

    /// What a program needs in its environment to reach it through `port` (its own, or a fault proxy's).
    pub fn environment(port: u16) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ];
        pairs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }

    /// The process, if it runs.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("S3 is stopped")
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("S3 is stopped")?.kill()
    }

    /// Starts it again over the same folder.
    pub fn restart(&mut self) -> Result<()> {
        let mut command: Command = self.cache.versitygw();
        command
            .arg("--port")
            .arg(format!("127.0.0.1:{}", self.port))
            .args(["--quiet", "--keep-alive", "posix"]);
        command
            .arg(&self.folder)
            .env("ROOT_ACCESS_KEY", ACCESS_KEY)
            .env("ROOT_SECRET_KEY", SECRET_KEY);
        let mut process = Process::start("versitygw", &command, &self.log)?;
        wait_until("S3", Duration::from_secs(60), || {
            process.check_alive()?;
            Ok(TcpStream::connect(("127.0.0.1", self.port)).is_ok())
        })?;
        self.process = Some(process);
        Ok(())
    }
}
