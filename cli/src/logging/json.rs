//! A log line as JSON: an object with `timestamp` (RFC 3339, UTC), `level`, `message`, the line's own fields and `target`.
//!
//! The library's own writer tells of an error its first sentence only, and the cause, which is what an operator needs, is in what
//! lies below. Here an error is its whole chain, parted by colons.

use std::error::Error;
use std::fmt;

use serde::Serializer as _;
use serde::ser::SerializeMap;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes each event as one line. Spans are left out: nothing here opens any.
#[derive(Debug)]
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let line = line(event).map_err(|_| fmt::Error)?;
        writeln!(writer, "{}", String::from_utf8_lossy(&line))
    }
}

fn line(event: &Event<'_>) -> Result<Vec<u8>, serde_json::Error> {
    // What comes from the crate `log` has its level and target among its fields.
    let normalized = event.normalized_metadata();
    let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
    let mut timestamp = String::new();
    // It only fails where a string would.
    let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
    let mut line = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("timestamp", &timestamp)?;
    map.serialize_entry("level", metadata.level().as_str())?;
    let mut fields = Fields { map, failed: None };
    event.record(&mut fields);
    let Fields { mut map, failed } = fields;
    if let Some(error) = failed {
        return Err(error);
    }
    map.serialize_entry("target", metadata.target())?;
    map.end()?;
    Ok(line)
}

/// Takes the fields of an event, in their order.
struct Fields<M: SerializeMap> {
    map: M,
    failed: Option<M::Error>,
}

impl<M: SerializeMap> Fields<M> {
    fn add<T: serde::Serialize + ?Sized>(&mut self, field: &Field, value: &T) {
        if self.failed.is_none() && !field.name().starts_with("log.") {
            self.failed = self.map.serialize_entry(field.name(), value).err();
        }
    }
}

impl<M: SerializeMap> Visit for Fields<M> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.add(field, &everlog_store::chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("whole").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the segment was not uploaded")]
    struct Upload(#[source] std::io::Error);

    /// Where logs are JSON, as in a container, every cause was missing: an operator read that something failed, and not why.
    #[test]
    fn an_error_is_told_with_its_causes() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(JsonLines)
            .finish();
        let error = Upload(std::io::Error::other("no \"route\"\nto host"));
        tracing::subscriber::with_default(subscriber, || {
            let topic = "orders";
            tracing::warn!(
                error = &error as &dyn Error,
                topic,
                partition = 3,
                pause = ?std::time::Duration::from_millis(5),
                "will retry"
            );
        });
        let text = String::from_utf8(lines.0.lock().expect("whole").clone()).expect("text");
        assert_eq!(text.lines().count(), 1, "{text}");
        let mut line: Value = serde_json::from_str(&text).expect("JSON");
        let timestamp = line["timestamp"].take();
        let timestamp = timestamp.as_str().expect("a time");
        assert!(timestamp.starts_with("20") && timestamp.ends_with('Z'));
        let wanted = json!({
            "timestamp": null,
            "level": "WARN",
            "message": "will retry",
            "error": "the segment was not uploaded: no \"route\"\nto host",
            "topic": "orders",
            "partition": 3,
            "pause": "5ms",
            "target": module_path!(),
        });
        assert_eq!(line, wanted);
    }
}
