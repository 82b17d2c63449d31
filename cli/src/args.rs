//! The command line. What a flag of a setting means is `config`'s; here are the subcommands and what is theirs alone.

pub(crate) mod wal;

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::config::flags::{self, SettingFlags, setting_of_flag};

/// Kafka forgets; everlog does not.
///
/// Archives the topics of a Kafka cluster into object storage, and lets unmodified clients read them through a proxy,
/// from the first record to the live tail.
#[derive(Debug, Parser)]
#[command(
    name = "everlog",
    version,
    propagate_version = true,
    max_term_width = 110
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show the whole thing on this machine in about a minute: no service, no Java, no Docker
    Demo(DemoArgs),
    /// Archive and serve in one process: the sidecar
    Run(SettingFlags<flags::Run>),
    /// Archive topics
    Archive(SettingFlags<flags::Archive>),
    /// Serve archived topics, and the live tail behind them, to Kafka clients
    Proxy(SettingFlags<flags::Proxy>),
    /// Show what an archive holds: topics, ranges, records, bytes, holes, and how far it is behind the cluster
    ///
    /// Exit status: 0 all was shown, 1 a topic that was asked for is not there or the cluster could not be asked, 2 there is
    /// nothing to show: no archive, no answer from its store, or a configuration that is refused.
    Inspect(InspectArgs),
    /// Read and hash everything that an archive's commits name
    ///
    /// Exit status: 0 all is well, 1 damage was found, 2 it could not be checked.
    Verify(VerifyArgs),
    /// Print the configuration in force, and where each value came from
    Config(ConfigArgs),
    /// Make, look at, check and rescue the log on a device
    Wal(wal::WalArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Where the demo's archive goes. An earlier demo's directory is replaced; anything else is left alone
    #[arg(long, value_name = "DIR", default_value = "everlog-demo")]
    pub(crate) dir: PathBuf,
    /// How much to produce, in MB of keys, values and headers: 60 to 10000
    #[arg(long, value_name = "MB", default_value_t = 200, value_parser = clap::value_parser!(u32).range(60..=10_000))]
    pub(crate) megabytes: u32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) flags: SettingFlags<flags::Inspect>,
    /// One array of objects instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) flags: SettingFlags<flags::Verify>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) flags: SettingFlags<flags::Config>,
    /// Print a commented everlog.toml instead
    #[arg(long, exclusive = true)]
    pub(crate) example: bool,
}

/// Reads the command line. An error prints itself; `--help` and `--version` come back as one too.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
) -> Result<Args, clap::Error> {
    let matches = Args::command()
        .try_get_matches_from(arguments)
        .map_err(with_users)?;
    Args::from_arg_matches(&matches)
}

/// A flag that exists, but not here, is told with the subcommands that use it.
fn with_users(err: clap::Error) -> clap::Error {
    let Some(ContextValue::String(written)) = err.get(ContextKind::InvalidArg) else {
        return err;
    };
    let Some(setting) =
        setting_of_flag(written).filter(|_| err.kind() == ErrorKind::UnknownArgument)
    else {
        return err;
    };
    let users: Vec<&str> = setting
        .used_by()
        .iter()
        .map(|command| command.as_str())
        .collect();
    let message = if setting.has_flag() {
        format!(
            "this command does not use --{}; used by: {}",
            setting.flag(),
            users.join(", ")
        )
    } else {
        let (key, env) = (setting.key, setting.env());
        format!(
            "command lines are public, so there is no --{}: use {env}, {env}_FILE or the key {key}_file",
            setting.flag()
        )
    };
    Args::command().error(ErrorKind::UnknownArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_fault_with_the_commands() {
        Args::command().debug_assert();
    }

    #[track_caller]
    fn refused(arguments: &[&str], part: &str) {
        let err = parse(arguments.iter().map(Into::into))
            .expect_err("refused")
            .to_string();
        assert!(err.contains(part), "{err}");
    }

    #[test]
    fn a_flag_that_a_command_does_not_use_is_an_error_that_names_who_does() {
        refused(
            &["everlog", "archive", "--listen", "127.0.0.1:1"],
            "--listen; used by: run, proxy",
        );
        refused(
            &["everlog", "proxy", "--segment-max-age=1m"],
            "--segment-max-age; used by: run, archive",
        );
        refused(
            &["everlog", "inspect", "--memory", "1GiB"],
            "--memory; used by: run, archive, proxy",
        );
        refused(
            &["everlog", "run", "--s3-secret-access-key", "x"],
            "EVERLOG_S3_SECRET_ACCESS_KEY_FILE",
        );
        refused(&["everlog", "run", "--lisen", "x"], "--listen");
        refused(&["everlog", "demo", "--topics", "x"], "--topics; used by");
    }
}
