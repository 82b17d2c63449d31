//! What the operator wrote, layer over layer: the later one wins, key by key.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::secret::is_secret_key;
use super::setting::{SETTINGS, Shape};
use super::{FlagLayer, Problem, Problems, env, file};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Env(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Env(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

impl Origin {
    /// The kind of layer, as `everlog config` names it.
    pub(crate) fn layer(&self) -> &'static str {
        match self {
            Origin::Default => "default",
            Origin::File { .. } => "file",
            Origin::Env(_) => "env",
            Origin::Flag(_) => "flag",
        }
    }
}

/// A value as it was written.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Raw {
    /// One text, or one per element or repetition.
    pub(crate) texts: Vec<String>,
    pub(crate) origin: Origin,
    /// The texts name a file that holds the value.
    pub(crate) in_file: bool,
}

// No `Debug` that could print a secret: where it came from is enough.
impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw")
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// One layer, or several merged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    /// By key of [`SETTINGS`].
    pub(crate) values: BTreeMap<&'static str, Raw>,
    /// `[kafka.properties]`, by librdkafka's name.
    pub(crate) properties: BTreeMap<String, Raw>,
}

impl Layer {
    /// Takes a value that is written at most once per layer; the second one is a problem.
    pub(crate) fn set(&mut self, key: &'static str, raw: Raw, problems: &mut Vec<Problem>) {
        let place = raw.origin.to_string();
        if let Some(before) = self.values.insert(key, raw) {
            problems.push(Problem::new(
                place,
                format!("`{key}` is given here and at {}: keep one", before.origin),
            ));
        }
    }

    /// As [`Layer::set`], for a property of librdkafka.
    pub(crate) fn set_property(&mut self, name: &str, raw: Raw, problems: &mut Vec<Problem>) {
        let place = raw.origin.to_string();
        if let Some(before) = self.properties.insert(name.to_owned(), raw) {
            problems.push(Problem::new(
                place,
                format!("`{name}` is given here and at {}: keep one", before.origin),
            ));
        }
    }

    fn put_over(self, below: &mut Layer) {
        below.values.extend(self.values);
        below.properties.extend(self.properties);
    }
}

/// All layers merged, and what was wrong with them.
#[derive(Debug)]
pub(crate) struct Layers {
    pub(crate) merged: Layer,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// A file was named, or lay there, and nothing of it could be read.
    pub(crate) is_unread: bool,
    pub(crate) problems: Vec<Problem>,
}

/// The file that is read if none is named.
const DEFAULT_FILE: &str = "everlog.toml";

impl Layers {
    /// Reads the file and the variables, puts the flags on top, and fetches secrets from the files that hold them.
    pub(crate) fn read(flags: &FlagLayer, variables: Vec<(OsString, OsString)>) -> Layers {
        let mut problems = Vec::new();
        let (env_layer, env_file) = env::read(variables, &mut problems);
        let named = flags
            .config_file()
            .map(|path| (path.to_owned(), "--config".to_owned()));
        let named = named.or_else(|| env_file.map(|path| (path, "EVERLOG_CONFIG".to_owned())));

        let mut merged = defaults();
        let read = match named {
            Some((path, place)) => read_file(&path, Some(&place), &mut merged, &mut problems),
            None => read_file(Path::new(DEFAULT_FILE), None, &mut merged, &mut problems),
        };
        env_layer.put_over(&mut merged);
        flags.layer().put_over(&mut merged);
        fetch_from_files(&mut merged, &mut problems);
        Layers {
            merged,
            is_unread: read.is_err(),
            file: read.unwrap_or_default(),
            problems,
        }
    }

    /// What was wrong so far. Fails if the file could not be read: whatever else were found wrong or missing might be in it.
    pub(crate) fn take_problems(&mut self) -> Result<Vec<Problem>, Problems> {
        let problems = std::mem::take(&mut self.problems);
        if self.is_unread {
            Err(Problems(problems))
        } else {
            Ok(problems)
        }
    }
}

/// A file of which nothing could be read; why is among the problems.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unread;

fn defaults() -> Layer {
    let raw = |text: &str| Raw {
        texts: vec![text.to_owned()],
        origin: Origin::Default,
        in_file: false,
    };
    let values = SETTINGS
        .iter()
        .filter_map(|setting| Some((setting.key, raw(setting.default?))))
        .collect();
    Layer {
        values,
        properties: BTreeMap::new(),
    }
}

/// `place` is who named the file; without it a file that is not there is none of our business.
fn read_file(
    path: &Path,
    place: Option<&str>,
    merged: &mut Layer,
    problems: &mut Vec<Problem>,
) -> Result<Option<PathBuf>, Unread> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            file::read(path, &text, problems)?.put_over(merged);
            Ok(Some(path.to_owned()))
        }
        Err(err) if place.is_none() && err.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(err) => {
            let message = format!("the file {} cannot be read: {err}", path.display());
            problems.push(Problem::new(place.unwrap_or(DEFAULT_FILE), message));
            Err(Unread)
        }
    }
}

/// Replaces the name of a file by its content. A newline at the end is not part of a secret.
fn fetch_from_files(merged: &mut Layer, problems: &mut Vec<Problem>) {
    for raw in merged
        .values
        .values_mut()
        .chain(merged.properties.values_mut())
        .filter(|raw| raw.in_file)
    {
        for text in &mut raw.texts {
            match std::fs::read_to_string(&*text) {
                Ok(content) => *text = content.trim_end_matches(['\r', '\n']).to_owned(),
                Err(err) => {
                    problems.push(Problem::new(
                        &raw.origin,
                        format!("the file {text:?} cannot be read: {err}"),
                    ));
                    text.clear();
                }
            }
        }
    }
}

/// A key as it may be written: itself, or for a secret with `_file` behind it. Tells which it was.
pub(crate) fn find_key(written: &str) -> Option<(&'static str, bool)> {
    SETTINGS.iter().find_map(|setting| {
        let in_file =
            setting.shape == Shape::Secret && written.strip_suffix("_file") == Some(setting.key);
        (written == setting.key || in_file).then_some((setting.key, in_file))
    })
}

/// All names that [`find_key`] knows.
pub(crate) fn known_keys() -> Vec<String> {
    let twin = |key: &str| is_secret_key(key).then(|| format!("{key}_file"));
    SETTINGS
        .iter()
        .flat_map(|s| std::iter::once(s.key.to_owned()).chain(twin(s.key)))
        .collect()
}
