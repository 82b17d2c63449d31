//! The commented `everlog.toml` that `everlog config --example` prints.

use std::fmt::Write as _;

use super::setting::{SETTINGS, Setting, Shape};

const HEAD: &str = "\
# everlog.toml: the configuration of everlog.
#
# Read from the working directory or from --config FILE. The environment overrides this file, flags override both:
# key s3.region, variable EVERLOG_S3_REGION, flag --s3-region. Every line below is commented out; `everlog config`
# prints what is in force and where it came from.
";

const PROPERTIES: &str = "
# Passed on to librdkafka as it is (https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md), for the
# archiver and for `inspect`. A name with _file behind it takes the value from a file: for passwords and tokens. As
# variables: EVERLOG_KAFKA_PROPERTIES_SASL_PASSWORD, or with _FILE behind it.
[kafka.properties]
#\"security.protocol\" = \"SASL_SSL\"
#\"sasl.mechanism\" = \"SCRAM-SHA-512\"
#\"sasl.username\" = \"everlog\"
#\"sasl.password_file\" = \"/run/secrets/kafka-password\"
";

/// The file: loaded as it is, it changes nothing.
pub(crate) fn example_file() -> String {
    let mut text = HEAD.to_owned();
    // TOML wants top-level keys before the first table.
    for setting in SETTINGS.iter().filter(|setting| !setting.key.contains('.')) {
        entry(&mut text, setting, setting.key);
    }
    text.push_str("\n[s3]\n");
    for setting in SETTINGS {
        if let Some(name) = setting.key.strip_prefix("s3.") {
            entry(&mut text, setting, name);
        }
    }
    text.push_str(PROPERTIES);
    text
}

fn entry(text: &mut String, setting: &Setting, name: &str) {
    text.push('\n');
    for line in wrap(setting.manual, 110) {
        let _infallible = writeln!(text, "# {line}");
    }
    let absent = setting.default.unwrap_or(setting.absent);
    let env = setting.env();
    let _infallible = match setting.shape {
        Shape::Secret => writeln!(
            text,
            "# Default: {absent}. Variables: {env}, {env}_FILE. Not a flag.\n#{name}_file = {}",
            setting.example
        ),
        _ => writeln!(
            text,
            "# Default: {absent}. Variable: {env}.\n#{name} = {}",
            setting.example
        ),
    };
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file;
    use super::*;

    #[test]
    fn it_is_valid_as_it_stands_and_with_every_line_in_force() {
        let example = example_file();
        let in_force: String = example
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(entry) if !entry.starts_with(' ') => format!("{entry}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        for (text, keys) in [(&example, 0), (&in_force, SETTINGS.len())] {
            let mut problems = Vec::new();
            let layer = file::read(Path::new("everlog.toml"), text, &mut problems);
            let layer = layer.unwrap_or_default();
            assert!(problems.is_empty(), "{problems:?}");
            assert_eq!(layer.values.len(), keys);
        }
    }
}
