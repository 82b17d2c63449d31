//! The subcommands, one file each.

pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod inspect;
pub(crate) mod serve;
pub(crate) mod verify;
pub(crate) mod wal;
