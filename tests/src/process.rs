//! A child process that can't outlive us: started, signalled, watched through `/proc`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait_until;

/// CPU time and memory of one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessUsage {
    /// User and system time since it started, in seconds.
    pub cpu_seconds: f64,
    /// Largest resident set so far, in bytes.
    pub peak_rss_bytes: u64,
    /// Resident set now, in bytes.
    pub rss_bytes: u64,
}

/// A running (or ended) child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

type Request = (Command, Sender<std::io::Result<Child>>);

/// `PR_SET_PDEATHSIG` looks at the *thread* that started the child, and test threads end early. So all children are
/// started by one thread that never ends.
fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(requests)
    });
    let (answer, outcome) = channel();
    spawner
        .lock()
        .expect("no panic while it is held")
        .send((command, answer))
        .context("the spawner is gone")?;
    outcome
        .recv()
        .context("the spawner is gone")?
        .context("cannot start")
}

impl Process {
    /// Starts `command` with both outputs appended to `log`; it is killed with this process.
    pub fn start(name: &str, command: &Command, log: &Path) -> Result<Process> {
        Process::start_with(name, command, log, Stdio::null())
    }

    /// Like [`Process::start`], with a pipe as standard input, which [`Process::end_input`] closes.
    pub fn start_piped(name: &str, command: &Command, log: &Path) -> Result<Process> {
        Process::start_with(name, command, log, Stdio::piped())
    }

    fn start_with(name: &str, command: &Command, log: &Path, stdin: Stdio) -> Result<Process> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("{}", log.display()))?;
        let mut wrapped = Command::new("setpriv");
        wrapped
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        wrapped.stdin(stdin).stdout(out.try_clone()?).stderr(out);
        let child = spawn(wrapped).with_context(|| format!("starting {name}"))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its output so far.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Fails if it has ended, with the end of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!(
                "{} has ended ({status}):\n{}",
                self.name,
                tail(&self.log_text(), 30)
            );
        }
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let mut status = None;
        wait_until(&format!("the end of {}", self.name), patience, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("ended")
    }

    /// Waits for its end and fails unless it was a success.
    pub fn wait_success(&mut self, patience: Duration) -> Result<()> {
        let status = self.wait(patience)?;
        if !status.success() {
            bail!(
                "{} ended with {status}:\n{}",
                self.name,
                tail(&self.log_text(), 30)
            );
        }
        Ok(())
    }

    /// Waits for its successful end and gives what it has used in all its life.
    pub fn wait_measured(&mut self, patience: Duration) -> Result<ProcessUsage> {
        let id = self.id();
        let mut usage = ProcessUsage::default();
        wait_until(&format!("the end of {}", self.name), patience, || {
            // A process that has ended keeps its times, but not its memory, until it is waited for.
            let now = usage_of(id)?;
            usage.cpu_seconds = now.cpu_seconds;
            usage.peak_rss_bytes = usage.peak_rss_bytes.max(now.peak_rss_bytes);
            Ok(std::fs::read_to_string(format!("/proc/{id}/stat"))?.contains(") Z "))
        })?;
        self.wait_success(patience)?;
        Ok(usage)
    }

    /// Closes its standard input.
    pub fn end_input(&mut self) {
        self.child.stdin = None;
    }

    /// Sends a signal by name, such as `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.id().to_string())
            .status()?;
        if !status.success() {
            bail!("cannot send {signal} to {}", self.name);
        }
        Ok(())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the end; fails where that does not help.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait(patience)
    }

    /// What it has used so far.
    pub fn usage(&self) -> Result<ProcessUsage> {
        usage_of(self.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process `id` has used so far.
pub(crate) fn usage_of(id: u32) -> Result<ProcessUsage> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .context("stat")?
        .1
        .split_whitespace()
        .collect();
    let ticks = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1))
            .and_then(|kib| kib.parse().ok())
            .unwrap_or(0)
    };
    Ok(ProcessUsage {
        // USER_HZ is 100 on every Linux that Rust runs on.
        cpu_seconds: f64::from(ticks) / 100.0,
        peak_rss_bytes: field("VmHWM:") * 1024,
        rss_bytes: field("VmRSS:") * 1024,
    })
}

/// The last `count` lines.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
