//! `everlog.toml`, into a layer. No key is let through that nobody knows.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;
use super::kafka_properties;
use super::layers::{Layer, Origin, Raw, Unread, find_key, known_keys};
use super::problem::suggestion;
use super::setting::{SETTINGS, Shape, setting};

/// The free-form table, passed on to librdkafka.
pub(crate) const PROPERTIES: &str = "kafka.properties";

/// Reads `text`, the content of `path`. Nothing of it counts if it is not TOML.
pub(crate) fn read(path: &Path, text: &str, problems: &mut Vec<Problem>) -> Result<Layer, Unread> {
    let mut found = Vec::new();
    let mut reader = Reader {
        path,
        text,
        layer: Layer::default(),
        problems: &mut found,
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    let is_toml = errors.is_empty();
    if is_toml {
        reader.table("", table.get_ref());
    }
    // The parser goes on behind the first one; what it meets there is mostly its consequence.
    if let Some(err) = errors.first() {
        let origin = reader.origin(err.span().map_or(0, |span| span.start));
        reader.problems.push(Problem::new(
            origin,
            format!("this is not TOML: {}", err.message()),
        ));
    }
    let layer = reader.layer;
    // The parser gives tables in the order of their names; people read files from the top.
    found.sort_by_key(|problem| problem.line());
    problems.append(&mut found);
    if is_toml { Ok(layer) } else { Err(Unread) }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    layer: Layer,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn origin(&self, at: usize) -> Origin {
        let line = 1 + self
            .text
            .bytes()
            .take(at)
            .filter(|byte| *byte == b'\n')
            .count();
        Origin::File {
            path: self.path.to_owned(),
            line,
        }
    }

    fn problem(&mut self, at: usize, message: String) {
        let origin = self.origin(at);
        self.problems.push(Problem::new(origin, message));
    }

    /// `prefix` is empty or ends in a dot.
    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            let at = name.span().start;
            let is_pairs = setting(&key).is_some_and(|setting| setting.shape == Shape::Pairs);
            match value.get_ref() {
                DeValue::Table(inner) if key == PROPERTIES => self.properties("", inner),
                DeValue::Table(inner) if !is_pairs => self.table(&format!("{key}."), inner),
                _ => match find_key(&key) {
                    Some((key, in_file)) => self.value(key, in_file, at, value),
                    None => self.unknown(&key, at),
                },
            }
        }
    }

    fn unknown(&mut self, key: &str, at: usize) {
        let hint = kafka_properties::hint(key).unwrap_or_else(|| {
            let known = known_keys();
            suggestion(key, known.iter().map(String::as_str))
        });
        self.problem(at, format!("unknown key `{key}`{hint}"));
    }

    fn value(&mut self, key: &'static str, in_file: bool, at: usize, value: &Spanned<DeValue<'_>>) {
        let shape = SETTINGS
            .iter()
            .find(|setting| setting.key == key)
            .map_or(Shape::One, |setting| setting.shape);
        let texts = match (shape, value.get_ref()) {
            (Shape::List | Shape::Pairs, DeValue::Array(items)) => items
                .iter()
                .map(|item| scalar(item.get_ref()))
                .collect::<Option<Vec<_>>>(),
            (Shape::Pairs, DeValue::Table(pairs)) => {
                let pair = |(id, port): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                    Some(format!("{}={}", id.get_ref(), scalar(port.get_ref())?))
                };
                pairs.iter().map(pair).collect()
            }
            (Shape::Switch, DeValue::Boolean(on)) => Some(vec![on.to_string()]),
            (Shape::Switch, _) => None,
            (_, other) => scalar(other).map(|text| vec![text]),
        };
        match texts {
            Some(texts) => {
                let raw = Raw {
                    texts,
                    origin: self.origin(at),
                    in_file,
                };
                self.layer.set(key, raw, self.problems);
            }
            None => {
                let wanted = match shape {
                    Shape::List => "a string or an array of strings",
                    Shape::Pairs => "a table such as { 1 = 19101 }, or strings such as \"1=19101\"",
                    Shape::Switch => "true or false",
                    Shape::One | Shape::Secret => "a string",
                };
                let found = value.get_ref().type_str();
                self.problem(at, format!("`{key}` wants {wanted}, and not this {found}"));
            }
        }
    }

    /// Dots in unquoted names make tables of tables in TOML; librdkafka's names simply have dots in them.
    fn properties(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let written = format!("{prefix}{}", name.get_ref());
            let at = name.span().start;
            if let DeValue::Table(inner) = value.get_ref() {
                self.properties(&format!("{written}."), inner);
                continue;
            }
            let (name, in_file) = match written.strip_suffix("_file") {
                Some(name) => (name, true),
                None => (written.as_str(), false),
            };
            match scalar(value.get_ref()) {
                Some(text) => {
                    let raw = Raw {
                        texts: vec![text],
                        origin: self.origin(at),
                        in_file,
                    };
                    self.layer.set_property(name, raw, self.problems);
                }
                None => {
                    let found = value.get_ref().type_str();
                    self.problem(
                        at,
                        format!(
                            "`{PROPERTIES}` wants strings, and not this {found} for `{written}`"
                        ),
                    );
                }
            }
        }
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(on) => Some(on.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> (Layer, Vec<String>) {
        let mut problems = Vec::new();
        let read = read(Path::new("everlog.toml"), text, &mut problems);
        let layer = read.unwrap_or_default();
        (layer, problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn all_shapes_are_read() {
        let (layer, problems) = check(
            r#"
            memory = "1GiB"
            topics = ["orders", "pay.*"]
            node_ports = { 1 = 19101, 2 = 19102 }
            [s3]
            path_style = true
            secret_access_key_file = "/run/key"
            [kafka.properties]
            security.protocol = "SSL"
            "sasl.password_file" = "/run/pw"
            socket.timeout.ms = 5000
            "#,
        );
        assert_eq!(problems, [""; 0]);
        let texts = |key: &str| layer.values[key].texts.join(" ");
        assert_eq!(texts("memory"), "1GiB");
        assert_eq!(texts("topics"), "orders pay.*");
        assert_eq!(texts("node_ports"), "1=19101 2=19102");
        assert_eq!(texts("s3.path_style"), "true");
        assert!(layer.values["s3.secret_access_key"].in_file);
        assert_eq!(layer.properties["security.protocol"].texts, ["SSL"]);
        assert_eq!(layer.properties["socket.timeout.ms"].texts, ["5000"]);
        assert!(layer.properties["sasl.password"].in_file);
        assert_eq!(layer.values["memory"].origin.to_string(), "everlog.toml:2");
    }

    #[test]
    fn all_mistakes_are_told_with_line_and_nearest_key() {
        let (_, problems) = check(
            "lisen = \"x\"\ntopics = 2020-01-01\n[s3]\nregoin = \"eu\"\npath_style = \"yes\"\n[storage]\nurl = 1\n",
        );
        assert_eq!(
            problems,
            [
                "everlog.toml:1: unknown key `lisen`; did you mean `listen`?",
                "everlog.toml:2: `topics` wants a string or an array of strings, and not this datetime",
                "everlog.toml:4: unknown key `s3.regoin`; did you mean `s3.region`?",
                "everlog.toml:5: `s3.path_style` wants true or false, and not this string",
                "everlog.toml:7: unknown key `storage.url`; `everlog config --example` lists all keys",
            ]
        );
    }

    /// They were unknown, or taken for a slip in some other key.
    #[test]
    fn what_belongs_to_librdkafka_is_sent_to_its_table() {
        let (_, problems) = check(
            "security.protocol = \"SSL\"\nsasl_username = \"x\"\n[kafka]\nsasl.mechanism = \"PLAIN\"\n\
             \"sasl.password_file\" = \"x\"\nsecurity.protocl = \"x\"\nbootstrap_servers = \"x:1\"\ngroup.id = \"x\"\n",
        );
        let its = |key: &str, name: &str| {
            format!(
                "unknown key `{key}`; it is librdkafka's: set `{name}` under [kafka.properties]"
            )
        };
        assert_eq!(
            problems,
            [
                format!("everlog.toml:1: {}", its("security.protocol", "security.protocol")),
                format!("everlog.toml:2: {}", its("sasl_username", "sasl.username")),
                format!("everlog.toml:4: {}", its("kafka.sasl.mechanism", "sasl.mechanism")),
                format!(
                    "everlog.toml:5: {}",
                    its("kafka.sasl.password_file", "sasl.password_file")
                ),
                "everlog.toml:6: unknown key `kafka.security.protocl`; did you mean `security.protocol` under [kafka.properties]?"
                    .to_owned(),
                "everlog.toml:7: unknown key `kafka.bootstrap_servers`; did you mean `bootstrap_servers`?"
                    .to_owned(),
                "everlog.toml:8: unknown key `kafka.group.id`; did you mean `group_id`?".to_owned(),
            ]
        );
    }

    #[test]
    fn broken_toml_is_told_with_its_line() {
        let (_, problems) = check("memory = \"1GiB\"\ntopics = [\"a\"\nlisten = = 3\n");
        assert!(problems[0].starts_with("everlog.toml:"), "{problems:?}");
        assert!(problems[0].contains("this is not TOML"), "{problems:?}");
    }
}
