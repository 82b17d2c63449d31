//! `everlog`: the one binary. It reads the configuration, starts what the subcommand names, and hands signals on; all
//! that archives and serves lives in the other crates.

mod allocator;
mod args;
mod cluster;
mod command;
mod config;
mod data_dir;
mod health;
mod limits;
mod logging;
mod metrics_server;
mod open;
mod process_metrics;
mod signals;
mod store_metrics;
mod table;
mod terminal;
mod watched_store;

use std::process::ExitCode;

use anyhow::Context as _;
use args::Command;
use command::inspect::Shown;
use command::verify::Verdict;
use command::wal::Outcome;
use config::{FlagLayer, Layers, LogConfig, Problems, Roles, ServiceConfig, ToolConfig};
use terminal::print_error;

/// Bad usage, a bad configuration, a check that could not be made, or nothing to look at.
const EXIT_NOT_DONE: u8 = 2;

/// What services log unless the operator says otherwise.
const SERVICE_LOG: &str = "info";

/// Tools print their results; only trouble is logged.
const TOOL_LOG: &str = "warn";

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(err) => {
            // Help and version come this way too, and then it prints to standard output and exits with 0.
            let status = u8::try_from(err.exit_code()).unwrap_or(EXIT_NOT_DONE);
            return if err.print().is_ok() {
                ExitCode::from(status)
            } else {
                ExitCode::from(EXIT_NOT_DONE)
            };
        }
    };
    let is_tool = matches!(
        args.command,
        Command::Inspect(_) | Command::Verify(_) | Command::Wal(_)
    );
    match run(args.command) {
        Ok(status) => status,
        Err(err) => {
            print_error(&format!("{err:#}"));
            // For these 1 says what was found (damage, a topic that is not there), and an error on the way to it is no finding.
            let not_done = is_tool || err.downcast_ref::<Problems>().is_some();
            ExitCode::from(if not_done { EXIT_NOT_DONE } else { 1 })
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Run(flags) => serve(&flags.given, Roles::BOTH),
        Command::Archive(flags) => serve(&flags.given, Roles::ARCHIVER),
        Command::Proxy(flags) => serve(&flags.given, Roles::PROXY),
        Command::Inspect(args) => {
            let config = tool(&args.flags.given, true)?;
            block_on(command::inspect::inspect(config, args.json)).map(|shown| match shown {
                Shown::All => ExitCode::SUCCESS,
                Shown::Part => ExitCode::from(1),
            })
        }
        Command::Verify(args) => {
            let config = tool(&args.flags.given, false)?;
            block_on(command::verify::verify(config)).map(|verdict| match verdict {
                Verdict::Sound => ExitCode::SUCCESS,
                Verdict::Damaged => ExitCode::from(1),
                Verdict::Unknown => ExitCode::from(EXIT_NOT_DONE),
            })
        }
        Command::Config(args) if args.example => command::config::example().map(done),
        Command::Config(args) => command::config::show(&args.flags.given).map(done),
        Command::Wal(args) => {
            logging::start(&LogConfig::of_the_environment()?, TOOL_LOG);
            command::wal::run(&args.command).map(|outcome| match outcome {
                Outcome::Sound => ExitCode::SUCCESS,
                Outcome::Damaged => ExitCode::from(1),
            })
        }
        Command::Demo(args) => {
            logging::start(&LogConfig::of_the_environment()?, TOOL_LOG);
            block_on(command::demo::demo(args))
        }
    }
}

fn layers(flags: &FlagLayer) -> Layers {
    Layers::read(flags, std::env::vars_os().collect())
}

fn serve(flags: &FlagLayer, roles: Roles) -> anyhow::Result<ExitCode> {
    let config = ServiceConfig::new(layers(flags), roles, host_name())?;
    logging::start(&config.log, SERVICE_LOG);
    limits::raise_open_files();
    block_on(command::serve::serve(config))
}

fn tool(flags: &FlagLayer, asks_cluster: bool) -> Result<ToolConfig, Problems> {
    let config = ToolConfig::new(layers(flags), asks_cluster)?;
    logging::start(&config.log, TOOL_LOG);
    Ok(config)
}

/// Runs to the end on a runtime with a thread per core.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("the runtime could not be started")?;
    let result = runtime.block_on(future);
    // Threads that are blocked in a library must not keep the process from ending.
    runtime.shutdown_background();
    result
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}
