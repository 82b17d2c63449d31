//! What is wrong with a configuration, collected so that all of it is said at once.

use std::fmt;

/// One mistake, and where the operator made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// File and line, variable or flag; empty if something is missing.
    place: String,
    message: String,
    /// Something that a command needs was not given: no mistake for `everlog config`, which only shows.
    missing: bool,
}

impl Problem {
    pub(crate) fn new(place: impl fmt::Display, message: impl Into<String>) -> Problem {
        Problem {
            place: place.to_string(),
            message: message.into(),
            missing: false,
        }
    }

    pub(crate) fn missing(message: impl Into<String>) -> Problem {
        Problem {
            place: String::new(),
            message: message.into(),
            missing: true,
        }
    }

    /// The line of a file's problem: what is between the place's colons.
    pub(crate) fn line(&self) -> Option<usize> {
        self.place.rsplit(':').next()?.parse().ok()
    }

    pub(crate) fn is_missing(&self) -> bool {
        self.missing
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.place, self.message)
        }
    }
}

/// At least one problem: the operator mends all of them and starts again.
#[derive(Debug)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "the configuration has {count} {noun}:")?;
        self.0
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// The known name nearest to `wrong`, if any comes near enough to be a help.
pub(crate) fn nearest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wrong_lower = wrong.to_ascii_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|name| {
            let likeness = strsim::normalized_damerau_levenshtein(
                &wrong_lower,
                &name.to_ascii_lowercase().replace('-', "_"),
            );
            // `region` for `s3.region`, `segment_bytes` for `segment_max_bytes`: a part is as good as a slip.
            let is_part =
                name.rsplit('.').next() == Some(wrong) || wrong.rsplit('.').next() == Some(name);
            (name, if is_part { 1.0 } else { likeness })
        })
        .filter(|(_, likeness)| *likeness >= 0.45)
        .max_by(|(_, one), (_, other)| one.total_cmp(other))
        .map(|(name, _)| name)
}

/// `; did you mean X?`, or a word on where the known names are listed.
pub(crate) fn suggestion<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(wrong, known) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => "; `everlog config --example` lists all keys".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered_only_if_it_is_near() {
        let known = ["listen", "s3.region", "segment_max_bytes", "topics"];
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("region", known), Some("s3.region"));
        assert_eq!(nearest("segment-bytes", known), Some("segment_max_bytes"));
        assert_eq!(nearest("kafka.topics", known), Some("topics"));
        assert_eq!(nearest("xyzzy", known), None);
    }
}
