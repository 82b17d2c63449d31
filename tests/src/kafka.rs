//! Apache Kafka: one node or more, KRaft, each node broker and controller in one process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{Admin, Cache, Case, Process, free_ports, wait_until};

const START_MAX: Duration = Duration::from_secs(180);
const STOP_MAX: Duration = Duration::from_secs(60);

/// How to start a cluster.
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// How many nodes; their ids are 1, 2, ...
    pub nodes: u16,
    /// More broker properties.
    pub properties: Vec<(String, String)>,
    /// Whether each node has a further listener, `SASL`, of protocol SASL_PLAINTEXT. Its users are among the properties.
    pub sasl: bool,
    /// The heap of each node.
    pub heap: &'static str,
}

impl Default for KafkaOptions {
    fn default() -> KafkaOptions {
        KafkaOptions {
            nodes: 1,
            properties: Vec::new(),
            sasl: false,
            heap: "-Xmx512m",
        }
    }
}

#[derive(Debug)]
struct Node {
    port: u16,
    folder: PathBuf,
    process: Option<Process>,
}

/// A cluster. Stops with its value.
#[derive(Debug)]
pub struct Kafka {
    cache: Cache,
    options: KafkaOptions,
    nodes: Vec<Node>,
}

impl Kafka {
    /// One node with the usual settings.
    pub fn start(case: &Case) -> Result<Kafka> {
        Kafka::start_with(case, KafkaOptions::default())
    }

    /// A cluster in the test's folder; waits until all nodes are ready.
    pub fn start_with(case: &Case, options: KafkaOptions) -> Result<Kafka> {
        let cache = Cache::find()?;
        let count = options.nodes;
        let port = free_ports(3 * count)?;
        let voters: Vec<String> = (0..count)
            .map(|i| format!("{}@127.0.0.1:{}", i + 1, port + count + i))
            .collect();
        let listeners = |plain: u16| {
            let sasl = match options.sasl {
                true => format!(",SASL://127.0.0.1:{}", plain + 2 * count),
                false => String::new(),
            };
            format!("PLAINTEXT://127.0.0.1:{plain}{sasl}")
        };
        let mut nodes = Vec::new();
        for i in 0..count {
            let folder = case.path(&format!("kafka-{}-{}", port, i + 1));
            std::fs::create_dir_all(&folder)?;
            let mut lines = vec![
                "process.roles=broker,controller".to_owned(),
                format!("node.id={}", i + 1),
                format!("controller.quorum.voters={}", voters.join(",")),
                format!(
                    "listeners={},CONTROLLER://127.0.0.1:{}",
                    listeners(port + i),
                    port + count + i
                ),
                format!("advertised.listeners={}", listeners(port + i)),
                "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT"
                    .to_owned(),
                "controller.listener.names=CONTROLLER".to_owned(),
                format!("log.dirs={}", folder.join("data").display()),
                format!("broker.rack=r{}", i + 1),
            ];
            let replicas = count.min(3);
            for name in ["default", "offsets.topic", "transaction.state.log"] {
                lines.push(format!("{name}.replication.factor={replicas}"));
            }
            let in_sync = replicas.div_ceil(2);
            lines.push(format!("min.insync.replicas={in_sync}"));
            lines.push(format!("transaction.state.log.min.isr={in_sync}"));
            lines.extend(COMMON.iter().map(|line| (*line).to_owned()));
            lines.extend(
                options
                    .properties
                    .iter()
                    .map(|(key, value)| format!("{key}={value}")),
            );
            std::fs::write(folder.join("server.properties"), lines.join("\n") + "\n")?;
            nodes.push(Node {
                port: port + i,
                folder,
                process: None,
            });
        }
        let mut kafka = Kafka {
            cache,
            options,
            nodes,
        };
        for index in 0..kafka.nodes.len() {
            kafka.format(index)?;
        }
        for index in 0..kafka.nodes.len() {
            kafka.launch(index)?;
        }
        for index in 0..kafka.nodes.len() {
            kafka.wait_ready(index)?;
        }
        Ok(kafka)
    }

    /// `HOST:PORT` of all nodes, joined by commas.
    pub fn bootstrap(&self) -> String {
        let all: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect();
        all.join(",")
    }

    /// As [`Kafka::bootstrap`], of the SASL listeners.
    pub fn sasl_bootstrap(&self) -> String {
        let all: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port + 2 * self.options.nodes))
            .collect();
        all.join(",")
    }

    /// As [`Kafka::bootstrap`], of the controllers' listeners, which serve no clients.
    pub fn controllers(&self) -> String {
        let all: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port + self.options.nodes))
            .collect();
        all.join(",")
    }

    /// An admin client that talks to the cluster directly.
    pub fn admin(&self) -> Result<Admin> {
        Admin::new(&self.bootstrap())
    }

    /// The folder that holds a node's partitions.
    pub fn data_folder(&self, node: u16) -> PathBuf {
        self.nodes[usize::from(node) - 1].folder.join("data")
    }

    /// The process of a node (1, 2, ...) that runs.
    pub fn process(&self, node: u16) -> Result<&Process> {
        self.nodes[usize::from(node) - 1]
            .process
            .as_ref()
            .context("the node is stopped")
    }

    /// SIGKILL to a node.
    pub fn kill(&mut self, node: u16) -> Result<()> {
        self.nodes[usize::from(node) - 1]
            .process
            .take()
            .context("the node is stopped")?
            .kill()
    }

    /// An orderly stop of a node.
    pub fn stop(&mut self, node: u16) -> Result<()> {
        let mut process = self.nodes[usize::from(node) - 1]
            .process
            .take()
            .context("the node is stopped")?;
        process.terminate(STOP_MAX).map(|_| ())
    }

    /// Starts a node that was stopped or killed, with the data it had.
    pub fn restart(&mut self, node: u16) -> Result<()> {
        let index = usize::from(node) - 1;
        self.launch(index)?;
        self.wait_ready(index)
    }

    fn format(&self, index: usize) -> Result<()> {
        let folder = &self.nodes[index].folder;
        let options = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
        let mut command = self.cache.java(&options, "kafka.tools.StorageTool");
        // Every test's cluster is another one; all nodes of a cluster share the id.
        let id = format!(
            "everlog-{:05}-{:08}",
            self.nodes[0].port,
            std::process::id()
        );
        command
            .args(["format", "-t", &id[..22], "-c"])
            .arg(folder.join("server.properties"));
        let mut process = Process::start("format", &command, &folder.join("format.log"))?;
        process.wait_success(START_MAX)
    }

    fn launch(&mut self, index: usize) -> Result<()> {
        let folder = self.nodes[index].folder.clone();
        if self.nodes[index].process.is_some() {
            bail!("node {} runs already", index + 1);
        }
        let log = folder.join("server.log");
        if log.exists() {
            std::fs::rename(&log, folder.join("server-before.log"))?;
        }
        let options = ["-Xms192m", self.options.heap, "-XX:+UseSerialGC"];
        let mut command = self.cache.java(&options, "kafka.Kafka");
        command.arg(folder.join("server.properties"));
        let process = Process::start(&format!("kafka node {}", index + 1), &command, &log)?;
        self.nodes[index].process = Some(process);
        Ok(())
    }

    fn wait_ready(&mut self, index: usize) -> Result<()> {
        let process = self.nodes[index].process.as_mut().context("started")?;
        wait_until("a Kafka node to be ready", START_MAX, || {
            process.check_alive()?;
            Ok(process.log_text().contains("Kafka Server started"))
        })
    }
}

const COMMON: &[&str] = &[
    "num.partitions=1",
    "offsets.topic.num.partitions=1",
    "transaction.state.log.num.partitions=1",
    "share.coordinator.state.topic.num.partitions=1",
    "share.coordinator.state.topic.replication.factor=1",
    "share.coordinator.state.topic.min.isr=1",
    "group.initial.rebalance.delay.ms=0",
    // Members of tests come and go; a dead one is to be replaced soon.
    "group.min.session.timeout.ms=1000",
    "transaction.max.timeout.ms=7200000",
    "log.cleaner.dedupe.buffer.size=8388608",
    "num.network.threads=2",
    "num.io.threads=4",
    "background.threads=2",
    "auto.create.topics.enable=false",
    "message.max.bytes=4194304",
    "replica.fetch.max.bytes=4194304",
    // Tests put records of 1970 into topics: only DeleteRecords is to remove them.
    "log.retention.ms=-1",
    "log.message.timestamp.before.max.ms=9223372036854775807",
    "log.message.timestamp.after.max.ms=9223372036854775807",
];
