//! `everlog run`, `archive` and `proxy`: the services, from start to drained.

mod first_answer;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use everlog_archiver::{Archiver, ArchiverConfig};
use everlog_index::Archive;
use everlog_proxy::{OnHole, Proxy, ProxyConfig, Unanswered};
use prometheus::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{HoleRule, ServiceConfig};
use crate::data_dir::DataDir;
use crate::health::{Health, State};
use crate::metrics_server::MetricsServer;
use crate::open::{open_to_serve, store_to_serve};
use crate::process_metrics::ProcessMetrics;
use crate::signals::{DRAIN_MAX, shutdown_on_signal};
use crate::store_metrics::StoreMetrics;

/// Names of the process's parts in logs and in `/healthz`.
const ARCHIVE: &str = "archive";
const ARCHIVER: &str = "archiver";
const PROXY: &str = "proxy";

/// Runs what `config` asks for until a signal comes or a part fails.
pub(crate) async fn serve(config: ServiceConfig) -> Result<ExitCode> {
    let shutdown = shutdown_on_signal().context("signals cannot be caught")?;
    let (registry, health) = (Registry::new(), Health::default());
    health.set(ARCHIVE, State::NotReady("opening".to_owned()));
    let metrics =
        match config.metrics {
            Some(address) => {
                let server = MetricsServer::bind(address, registry.clone(), health.clone()).await;
                Some(server.with_context(|| {
                    format!("metrics cannot be served at {address} (--metrics)")
                })?)
            }
            None => None,
        };
    // Metrics outlive the services, so that a drain can be watched; they end with this token.
    let _stop_metrics = metrics.map(|server| {
        let stop = CancellationToken::new();
        tokio::spawn(server.run(stop.clone()));
        stop.drop_guard()
    });

    let started = shutdown
        .run_until_cancelled(start(&config, &registry, &health))
        .await;
    let Some(started) = started else {
        info!("stopped before everything had started");
        return Ok(ExitCode::SUCCESS);
    };
    let Started { services, data_dir } = started?;
    let status = watch(services, &config, &shutdown, &health).await;
    drop(data_dir);
    status
}

/// What is about to run, and the directory it runs on.
struct Started {
    services: Services,
    data_dir: DataDir,
}

struct Services {
    archiver: Option<Archiver>,
    proxy: Option<Proxy>,
}

async fn start(config: &ServiceConfig, registry: &Registry, health: &Health) -> Result<Started> {
    for (part, is_wanted) in [
        (ARCHIVER, config.roles.archiver),
        (PROXY, config.roles.proxy),
    ] {
        if is_wanted {
            let waiting = "starts once the archive is open";
            health.set(part, State::NotReady(waiting.to_owned()));
        }
    }
    let data_dir = DataDir::open(config.data_dir.as_deref())?;
    if config.archive.url.starts_with("memory:") {
        warn!("the archive is in memory: everything in it is lost when this process ends");
    }
    // A proxy of its own never writes: where there is no archive yet, it has to wait for somebody's archiver.
    let create = config.roles.archiver;
    let waiting = |why| health.set(ARCHIVE, State::NotReady(why));
    let store = store_to_serve(&config.archive, create, waiting).await?;
    health.watch_store(Arc::clone(&store));
    registry.register(Box::new(StoreMetrics::new(Arc::clone(&store))?))?;
    registry.register(Box::new(ProcessMetrics::new()?))?;
    let (archive, is_new) = open_to_serve(store, create, data_dir.node_cache(), waiting).await?;
    health.set(ARCHIVE, State::Ready);
    if is_new {
        warn!(
            archive = archive.store().url(),
            "there was no archive here, a new one has been made; if one should have been here, the address is wrong, or its file system is \
             not mounted (then stop, and remove what is there now before it is mounted again)"
        );
    }
    info!(archive = archive.store().url(), topics = %config.topics, "the archive is open");

    let archiver = match config.roles.archiver {
        true => Some(archiver(config, &data_dir, &archive, registry)?),
        false => None,
    };
    if archiver.is_some() && config.roles.proxy {
        let waiting = "starts once the proxy has found the cluster";
        health.set(ARCHIVER, State::NotReady(waiting.to_owned()));
    }
    let proxy = match config.roles.proxy {
        true => Some(proxy(config, &data_dir, &archive, registry, health).await?),
        false => None,
    };
    Ok(Started {
        services: Services { archiver, proxy },
        data_dir,
    })
}

fn archiver(
    config: &ServiceConfig,
    data_dir: &DataDir,
    archive: &Arc<Archive>,
    registry: &Registry,
) -> Result<Archiver> {
    let archiver_config = ArchiverConfig {
        bootstrap_servers: config.bootstrap_servers.clone(),
        kafka_properties: config.properties.clone(),
        topics: config.topics.clone(),
        group_id: config.group_id.clone(),
        instance_id: config.instance_id.clone(),
        spool_dir: data_dir.spool(),
        segment_max_bytes: config.segment_max_bytes,
        segment_max_age: config.segment_max_age,
        memory_bytes: config.memory.archiver_bytes,
    };
    Archiver::new(archiver_config, Arc::clone(archive), registry)
        .context("the archiver cannot start")
}

async fn proxy(
    config: &ServiceConfig,
    data_dir: &DataDir,
    archive: &Arc<Archive>,
    registry: &Registry,
    health: &Health,
) -> Result<Proxy> {
    let proxy_config = ProxyConfig {
        bootstrap_servers: config.bootstrap_servers.clone(),
        listen: config.listen,
        advertise: config.advertise.clone(),
        node_ports: config.node_ports.clone(),
        topics: config.topics.clone(),
        memory_bytes: config.memory.proxy_bytes,
        data_dir: data_dir.proxy()?,
        on_hole: match config.on_hole {
            HoleRule::Fail => OnHole::Fail,
            HoleRule::Skip => OnHole::Skip,
        },
    };
    health.set(PROXY, State::NotReady("looking for the cluster".to_owned()));
    let unanswered = |why: &Unanswered| {
        health.set(PROXY, State::NotReady(first_answer::unanswered(why)));
    };
    let proxy = Proxy::bind_telling(proxy_config, Arc::clone(archive), registry, unanswered)
        .await
        .context("the proxy cannot start")?;
    info!(listen = %proxy.local_addr(), "clients can connect");
    Ok(proxy)
}

/// Runs the archiver, and says that it is ready once it has reached the cluster, and until then why it has not.
async fn archive(
    archiver: Archiver,
    cluster: &first_answer::Address,
    shutdown: CancellationToken,
    health: &Health,
) -> Result<()> {
    let mut is_up = archiver.is_up();
    let mut run = std::pin::pin!(archiver.run(shutdown));
    let tell = |why| health.set(ARCHIVER, State::NotReady(why));
    let hopeless = first_answer::ask(cluster, first_answer::Pace::default(), tell);
    tokio::select! {
        // An archiver that has failed must not be called ready.
        biased;
        ended = &mut run => return ended.map_err(Into::into),
        Ok(_) = is_up.wait_for(|is_up| *is_up) => {}
        why = hopeless => return Err(why).context("it cannot start"),
    }
    health.set(ARCHIVER, State::Ready);
    run.await.map_err(Into::into)
}

/// Runs the services. One that ends by itself takes the others with it: half a sidecar helps nobody, and whoever
/// supervises the process starts it anew.
async fn watch(
    services: Services,
    config: &ServiceConfig,
    shutdown: &CancellationToken,
    health: &Health,
) -> Result<ExitCode> {
    let mut running: JoinSet<(&'static str, Result<()>)> = JoinSet::new();
    if let Some(archiver) = services.archiver {
        let (shutdown, health) = (shutdown.clone(), health.clone());
        let waiting = "waiting for the cluster, which has not answered yet";
        health.set(ARCHIVER, State::NotReady(waiting.to_owned()));
        let cluster = first_answer::Address::of(config);
        running.spawn(async move {
            (
                ARCHIVER,
                archive(archiver, &cluster, shutdown, &health).await,
            )
        });
    }
    if let Some(proxy) = services.proxy {
        let shutdown = shutdown.clone();
        running.spawn(async move { (PROXY, proxy.run(shutdown).await.map_err(Into::into)) });
        health.set(PROXY, State::Ready);
    }
    let mut failure = None;
    let drained = async {
        while let Some(ended) = running.join_next().await {
            match ended {
                Ok((name, Ok(()))) if shutdown.is_cancelled() => {
                    health.set(name, State::NotReady("stopped".to_owned()));
                    info!(part = name, "stopped");
                }
                Ok((name, result)) => {
                    let err = result
                        .err()
                        .unwrap_or_else(|| anyhow::anyhow!("it ended without being asked to"));
                    health.set(name, State::NotReady(format!("failed: {err:#}")));
                    error!(part = name, error = %format!("{err:#}"), "a part of the process failed, stopping the rest");
                    failure.get_or_insert(err.context(format!("the {name} failed")));
                    shutdown.cancel();
                }
                Err(err) => {
                    failure.get_or_insert(err.into());
                    shutdown.cancel();
                }
            }
        }
    };
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    let in_time = tokio::select! {
        () = drained => true,
        () = deadline => false,
    };
    match failure {
        Some(err) => Err(err),
        None if in_time => Ok(ExitCode::SUCCESS),
        // Nothing is lost by it: what is not committed, the cluster still has.
        None => bail!(
            "not everything had stopped after {} s, ending all the same",
            DRAIN_MAX.as_secs()
        ),
    }
}
