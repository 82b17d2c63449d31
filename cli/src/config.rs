//! The configuration: defaults, then `everlog.toml`, then `EVERLOG_*`, then flags.
//!
//! The layers are read into what the operator wrote ([`layers`]), parsed as a whole into what the program uses
//! ([`values`], [`service`]), and every mistake found on the way is reported at once, before any socket opens. One table
//! ([`setting`]) knows every key: its manual, default, flag, variable and line in the example file come from there.

pub(crate) mod effective;
mod env;
mod example;
mod file;
pub(crate) mod flags;
mod kafka_properties;
mod layers;
mod memory;
mod problem;
mod secret;
pub(crate) mod service;
pub(crate) mod setting;
pub(crate) mod size;
mod values;

pub(crate) use example::example_file;
pub(crate) use flags::FlagLayer;
pub(crate) use layers::Layers;
pub(crate) use memory::split as memory_split;
pub(crate) use problem::{Problem, Problems};
pub(crate) use secret::Secret;
pub(crate) use service::{ArchivePlace, Roles, ServiceConfig, ToolConfig};
pub(crate) use setting::CommandName;
pub(crate) use values::{HoleRule, LogConfig, LogFormat, Values};
