//! For trying the proxy by hand: `serve BOOTSTRAP LISTEN ARCHIVE DATA_DIR`.

use std::collections::BTreeMap;

use everlog_format::TopicSelection;
use everlog_index::{Archive, ArchiveOptions};
use everlog_proxy::{OnHole, Proxy, ProxyConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();
    let args: Vec<String> = std::env::args().collect();
    let store = everlog_store::open(&args[3], Default::default()).await?;
    let archive = Archive::open(store, ArchiveOptions { node_cache_dir: None, create: true }).await?;
    let config = ProxyConfig {
        bootstrap_servers: args[1].clone(),
        listen: args[2].parse()?,
        advertise: None,
        node_ports: BTreeMap::new(),
        topics: TopicSelection::everything(),
        memory_bytes: 256 << 20,
        data_dir: std::path::PathBuf::from(&args[4]),
        on_hole: OnHole::Fail,
    };
    let registry = prometheus::Registry::new();
    let proxy = Proxy::bind(config, archive, &registry).await?;
    proxy.run(tokio_util::sync::CancellationToken::new()).await?;
    Ok(())
}
