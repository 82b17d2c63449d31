//! Where `tests/setup` has put the servers and clients.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The cache of `tests/setup`.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Finds it, or says what to run.
    pub fn find() -> Result<Cache> {
        let folder = match std::env::var_os("EVERLOG_TEST_CACHE") {
            Some(folder) => PathBuf::from(folder),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?)
                .join(".cache/everlog-tests"),
        };
        for part in [
            "jars",
            "classes",
            "bin/versitygw",
            "bin/go-client",
            "python/bin/python",
            "azurite/node_modules/.bin/azurite-blob",
        ] {
            if !folder.join(part).exists() {
                bail!(
                    "{} is missing in {}: run tests/setup",
                    part,
                    folder.display()
                );
            }
        }
        Ok(Cache { folder })
    }

    /// A Java program with Kafka's jars and our client on its class path. `options` are the JVM's.
    pub fn java(&self, options: &[&str], class: &str) -> Command {
        let mut command = Command::new("java");
        let logging = self.folder.join("classes/log4j2.properties");
        command.args(options);
        command.arg(format!(
            "-Dlog4j2.configurationFile=file:{}",
            logging.display()
        ));
        command.arg("-Dlog4j2.disable.jmx=true").arg("-cp");
        command.arg(format!("{0}/classes:{0}/jars/*", self.folder.display()));
        command.arg(class);
        command
    }

    /// The franz-go program.
    pub fn go_client(&self) -> Command {
        Command::new(self.folder.join("bin/go-client"))
    }

    /// Python with pyarrow.
    pub fn python(&self) -> Command {
        Command::new(self.folder.join("python/bin/python"))
    }

    /// The one jar whose name begins with `name` and a version.
    pub fn jar(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join("jars");
        for entry in std::fs::read_dir(&folder)? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            let version = file
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('-'))
                .and_then(|rest| rest.strip_suffix(".jar"));
            if version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit())) {
                return Ok(folder.join(file));
            }
        }
        bail!("there is no {name} in {}", folder.display());
    }

    /// The emulator of Azure's object store.
    pub fn azurite(&self) -> Command {
        Command::new(self.folder.join("azurite/node_modules/.bin/azurite-blob"))
    }

    /// The S3 server.
    pub fn versitygw(&self) -> Command {
        Command::new(self.folder.join("bin/versitygw"))
    }
}
