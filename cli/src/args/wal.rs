//! `everlog wal ...`: the tools for a log on a device. They take everything by flags; no configuration is read.

use std::path::PathBuf;

use crate::config::size::parse_size;

#[derive(Debug, clap::Args)]
pub(crate) struct WalArgs {
    #[command(subcommand)]
    pub(crate) command: WalCommand,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum WalCommand {
    /// Make an empty log on a block device or in a file
    Format(FormatArgs),
    /// Show whose log it is, how full it is, and how far behind each stream's drain is
    ///
    /// Reads only, and may be asked while the log is in use; the figures are then those of the moment.
    Info(InfoArgs),
    /// Print blocks and records as they lie on the device
    Dump(DumpArgs),
    /// Save what is intact on a damaged log into a file
    Export(ExportArgs),
    /// Read and check every byte of the log; changes nothing
    ///
    /// Exit status: 0 all is well, 1 damage was found, 2 it could not be checked.
    Check(CheckArgs),
}

/// `16GiB`, as a value of clap.
fn size(text: &str) -> Result<u64, String> {
    parse_size(text)
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Give the log a whole device where you can: only whole devices can be reserved against other hosts. \
Size it by bytes per second times the longest outage to be bridged, and double that: \
streams that are stuck may hold up to half of it.

Nothing is overwritten unasked. What is found (partition tables, file systems, volume managers, another log, \
or just bytes other than zero) is listed with a name, and goes only if --overwrite says that name:

    everlog wal format /dev/nvme1n1
    everlog wal format /dev/nvme1n1 --overwrite gpt --overwrite ext
    everlog wal format /var/lib/everlog/wal --size 16GiB")]
pub(crate) struct FormatArgs {
    /// A block device, or a file (made if it is not there and --size says how large)
    #[arg(value_name = "DEVICE")]
    pub(crate) path: PathBuf,
    /// Make a file of this size, allocated and written with zeros
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) size: Option<u64>,
    /// What may be overwritten, by the name under which it was refused; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) overwrite: Vec<String>,
    /// Do not reserve the device against other hosts: for a volume that is sure to be attached to this one alone
    #[arg(long)]
    pub(crate) no_fencing: bool,
    /// The largest record that the log is to take [default: a sixteenth of the ring, at most 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) record_max: Option<u64>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct InfoArgs {
    /// The device or file of the log
    #[arg(value_name = "DEVICE")]
    pub(crate) path: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Blocks come in the order of the log, from its tail to its end. Each record is a line below its block: stream, number, bytes.

    everlog wal dump /dev/nvme1n1 --from 1048576 --blocks 10
    everlog wal dump /dev/nvme1n1 --stream 1f00.. --json")]
pub(crate) struct DumpArgs {
    /// The device or file of the log
    #[arg(value_name = "DEVICE")]
    pub(crate) path: PathBuf,
    /// Only blocks at or after this LSN
    #[arg(long, value_name = "LSN", default_value_t = 0)]
    pub(crate) from: u64,
    /// At most so many blocks
    #[arg(long, value_name = "COUNT")]
    pub(crate) blocks: Option<usize>,
    /// Only records of this stream: its 64 hex digits, or the first of them
    #[arg(long, value_name = "HEX")]
    pub(crate) stream: Option<String>,
    /// Also what is no part of the log any more: blocks of earlier laps, and what an opening after a crash had cut
    #[arg(long)]
    pub(crate) released: bool,
    /// One JSON object a line, payloads in base64
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Goes over the whole device, follows no chain and stops at no damage, so it also works where the headers are gone. \
Sectors that can't be read are left out one by one. It never writes to the device.

The file has one JSON object a line: first what was exported, then each record in the order of the log

    {\"stream\":\"64 hex digits\",\"seq\":7,\"lsn\":8192,\"epoch\":1,\"payload\":\"base64\"}

(\"damaged\":true instead of a payload where it no longer matches its checksum), and last a summary: \
of each stream what came out and which numbers are missing. An export that was interrupted goes on with --resume.

Exit status: 0 nothing is missing, 1 something is, 2 it could not be done.")]
pub(crate) struct ExportArgs {
    /// The device or file of the log
    #[arg(value_name = "DEVICE")]
    pub(crate) path: PathBuf,
    /// The file to write; it must not be on that device, nor be there already
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    /// Go on with a file that an interrupted export has left
    #[arg(long)]
    pub(crate) resume: bool,
    /// Also what the log had let go of: trimmed records, earlier laps, what an opening after a crash had cut
    #[arg(long)]
    pub(crate) released: bool,
    /// Which log, where the device has had several and the headers are gone
    #[arg(long, value_name = "UUID")]
    pub(crate) log: Option<String>,
    /// The size of the device when it was formatted, where it has another one now and the headers are gone
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) formatted_size: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The device or file of the log
    #[arg(value_name = "DEVICE")]
    pub(crate) path: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}
