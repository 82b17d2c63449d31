//! The settings as flags of a subcommand, made from the table; each subcommand has those that it uses, and no other.

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches};

use super::layers::{Layer, Origin, Raw};
use super::setting::{CommandName, SETTINGS, Setting, Shape};

/// A subcommand, as a type.
pub(crate) trait Uses {
    const COMMAND: CommandName;
}

macro_rules! subcommands {
    ($($name:ident),*) => {$(
        /// Marks the flags of this subcommand.
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name;
        impl Uses for $name {
            const COMMAND: CommandName = CommandName::$name;
        }
    )*};
}
subcommands!(Run, Archive, Proxy, Inspect, Verify, Config);

/// What flags said.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlagLayer {
    layer: Layer,
    config_file: Option<PathBuf>,
}

impl FlagLayer {
    pub(crate) fn layer(&self) -> Layer {
        self.layer.clone()
    }

    pub(crate) fn config_file(&self) -> Option<&Path> {
        self.config_file.as_deref()
    }
}

/// The flags of subcommand `C`, for clap to flatten.
pub(crate) struct SettingFlags<C> {
    pub(crate) given: FlagLayer,
    command: PhantomData<C>,
}

impl<C> fmt::Debug for SettingFlags<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.given.fmt(f)
    }
}

const CONFIG: &str = "config";

impl<C: Uses> clap::Args for SettingFlags<C> {
    fn augment_args(command: clap::Command) -> clap::Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("The configuration file [default: ./everlog.toml if it is there] [env: EVERLOG_CONFIG]");
        let ours = SETTINGS
            .iter()
            .filter(|setting| setting.has_flag() && setting.is_used_by(C::COMMAND));
        command
            .args(ours.map(|setting| flag(setting, C::COMMAND)))
            .arg(config)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<C: Uses> clap::FromArgMatches for SettingFlags<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = FlagLayer {
            config_file: matches.get_one(CONFIG).cloned(),
            ..FlagLayer::default()
        };
        for setting in SETTINGS
            .iter()
            .filter(|setting| setting.has_flag() && setting.is_used_by(C::COMMAND))
        {
            if let Some(texts) = matches.get_many::<String>(setting.key) {
                let origin = Origin::Flag(format!("--{}", setting.flag()));
                let raw = Raw {
                    texts: texts.cloned().collect(),
                    origin,
                    in_file: false,
                };
                given.layer.values.insert(setting.key, raw);
            }
        }
        Ok(SettingFlags {
            given,
            command: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Values stay text here: they are judged later, together with those of file and environment.
fn flag(setting: &'static Setting, command: CommandName) -> Arg {
    let meaning = setting.meaning(command);
    let default = match (setting.default, meaning.absent) {
        (Some(default), _) => format!("[default: {default}]"),
        (None, absent) => format!("[default: {absent}]"),
    };
    let first_sentence = meaning
        .manual
        .split_inclusive(". ")
        .next()
        .unwrap_or_default()
        .trim_end();
    let tail = format!("{default} [env: {}]", setting.env());
    let arg = Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.value_name)
        .help(format!("{} {tail}", first_sentence.trim_end_matches('.')))
        .long_help(format!("{}\n\n{tail}", meaning.manual));
    match setting.shape {
        Shape::List => arg.action(ArgAction::Append),
        Shape::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Shape::One | Shape::Pairs | Shape::Secret => arg.action(ArgAction::Set),
    }
}

/// The setting whose flag `written` is (`--listen` or `--listen=x`), for a word on who uses it.
pub(crate) fn setting_of_flag(written: &str) -> Option<&'static Setting> {
    let name = written.strip_prefix("--")?.split('=').next()?;
    SETTINGS.iter().find(|setting| setting.flag() == name)
}
