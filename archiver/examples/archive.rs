//! An archiver and nothing else, to try it by hand and to kill it in tests:
//! `archive BOOTSTRAP ARCHIVE_URL SPOOL_DIR INSTANCE SEGMENT_MAX_BYTES SEGMENT_MAX_AGE_S MEMORY_MIB TOPIC...`.
//! It logs to standard error, ends on SIGTERM and prints its metrics then.
#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

use std::sync::Arc;
use std::time::Duration;

use everlog_archiver::{Archiver, ArchiverConfig, KafkaProperties};
use everlog_format::TopicSelection;
use everlog_index::{Archive, ArchiveOptions};
use everlog_store::StoreOptions;
use prometheus::Encoder;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [
        bootstrap,
        url,
        spool,
        instance,
        bytes,
        age,
        memory,
        topics @ ..,
    ] = arguments.as_slice()
    else {
        return Err("see the head of this file".into());
    };
    let store = everlog_store::open(url, StoreOptions::default()).await?;
    let archive = Archive::open(
        store,
        ArchiveOptions {
            node_cache_dir: None,
            create: true,
        },
    )
    .await?;
    let config = ArchiverConfig {
        bootstrap_servers: bootstrap.clone(),
        kafka_properties: KafkaProperties::default(),
        topics: TopicSelection::parse(topics)?,
        group_id: "everlog-archiver".to_owned(),
        instance_id: instance.clone(),
        spool_dir: spool.into(),
        segment_max_bytes: bytes.parse()?,
        segment_max_age: Duration::from_secs(age.parse()?),
        memory_bytes: memory.parse::<u64>()? << 20,
    };
    let registry = prometheus::Registry::new();
    let archiver = Archiver::new(config, Arc::clone(&archive), &registry)?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        term.recv().await;
        token.cancel();
        Ok::<_, std::io::Error>(())
    });
    archiver.run(shutdown).await?;
    let mut text = Vec::new();
    prometheus::TextEncoder::new().encode(&registry.gather(), &mut text)?;
    println!("{}", String::from_utf8_lossy(&text));
    Ok(())
}
