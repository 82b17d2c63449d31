//! What `everlog config` prints: every value, where it came from, and how memory is split. Secrets are masked.

use std::fmt::Write as _;

use everlog_archiver::QUEUE_BYTES;

use super::layers::Raw;
use super::memory;
use super::secret::{MASK, is_secret_key};
use super::setting::{SETTINGS, Shape};
use super::size::display_size;
use super::{Layers, Roles, Values};

struct Row {
    key: String,
    value: String,
    layer: String,
    place: String,
}

/// The table, aligned, with a line for each key in the order of the example file.
pub(crate) fn effective(layers: &Layers, values: &Values) -> String {
    let mut rows: Vec<Row> = SETTINGS
        .iter()
        .map(|setting| match layers.merged.values.get(setting.key) {
            Some(raw) => row(setting.key.to_owned(), raw, setting.shape == Shape::Secret),
            None => Row {
                key: setting.key.to_owned(),
                value: format!("({})", setting.absent),
                layer: "default".to_owned(),
                place: String::new(),
            },
        })
        .collect();
    let properties = layers.merged.properties.iter();
    rows.extend(properties.map(|(name, raw)| {
        row(
            format!("kafka.properties.\"{name}\""),
            raw,
            is_secret_key(name),
        )
    }));

    let width = |cell: fn(&Row) -> &str| {
        rows.iter()
            .map(|row| cell(row).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (key_width, value_width) = (width(|row| &row.key), width(|row| &row.value).min(48));
    let mut text = String::new();
    for Row {
        key,
        value,
        layer,
        place,
    } in &rows
    {
        let line = format!("{key:key_width$}  {value:value_width$}  {layer:7}  {place}");
        let _infallible = writeln!(text, "{}", line.trim_end());
    }
    let _infallible = write!(text, "\n{}", memory_split(values.memory_bytes));
    text
}

fn row(key: String, raw: &Raw, secret: bool) -> Row {
    let value = if secret {
        MASK.to_owned()
    } else {
        raw.texts.join(", ")
    };
    let layer = raw.origin.layer().to_owned();
    let place = if layer == "default" {
        String::new()
    } else {
        raw.origin.to_string()
    };
    Row {
        key,
        value,
        layer,
        place,
    }
}

fn memory_split(memory_bytes: u64) -> String {
    let mut text = format!(
        "memory of {}, as each command splits it:\n",
        display_size(memory_bytes)
    );
    for (name, roles) in [
        ("run", Roles::BOTH),
        ("archive", Roles::ARCHIVER),
        ("proxy", Roles::PROXY),
    ] {
        let _infallible = match memory::split(memory_bytes, roles) {
            None => writeln!(
                text,
                "  {name:8} too little: it needs at least {}",
                display_size(memory::min_bytes(roles))
            ),
            Some(split) => {
                let mut parts = Vec::new();
                if roles.archiver {
                    let (all, queue) = (
                        display_size(split.archiver_bytes),
                        display_size(QUEUE_BYTES),
                    );
                    parts.push(format!(
                        "archiver {all} (librdkafka's queue of {queue} included)"
                    ));
                }
                if roles.proxy {
                    parts.push(format!("proxy cache {}", display_size(split.proxy_bytes)));
                }
                parts.push(format!(
                    "process and connections {}",
                    display_size(split.base_bytes)
                ));
                writeln!(text, "  {name:8} {}", parts.join(", "))
            }
        };
    }
    text
}
