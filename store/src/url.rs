//! An archive's URL, checked before any socket opens.

use std::path::PathBuf;

use crate::Key;

/// Where an archive lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// Bucket and prefix (without slashes around it, possibly empty), with the scheme's own words.
    Bucket {
        scheme: Scheme,
        bucket: String,
        prefix: String,
    },
    /// An absolute directory.
    Directory(PathBuf),
    Memory,
}

/// The object stores with buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    S3,
    Gs,
    Az,
}

/// Text that is no archive URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no archive URL: {problem}; a right one looks like {example}")]
pub struct InvalidUrl {
    text: String,
    problem: &'static str,
    example: &'static str,
}

/// S3 allows 1,024 bytes for a name, and ours have up to 900.
const PREFIX_BYTES_MAX: usize = 120;

/// Whether `url` is well formed, for those who collect mistakes before they open anything.
pub fn check_url(url: &str) -> Result<(), InvalidUrl> {
    Location::parse(url).map(drop)
}

impl Location {
    pub(crate) fn parse(text: &str) -> Result<Location, InvalidUrl> {
        let invalid = |problem, example| InvalidUrl {
            text: hide_secrets(text),
            problem,
            example,
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(invalid(
                "it has no scheme",
                "s3://bucket/prefix or file:///var/lib/everlog",
            ));
        };
        let bucket = |scheme, example| bucket(scheme, rest).map_err(|it| invalid(it, example));
        match scheme {
            "s3" => bucket(Scheme::S3, "s3://bucket/prefix"),
            "gs" => bucket(Scheme::Gs, "gs://bucket/prefix"),
            "az" => bucket(Scheme::Az, "az://container/prefix"),
            "file" => {
                directory(rest).map_err(|problem| invalid(problem, "file:///var/lib/everlog"))
            }
            "memory" if rest.trim_matches('/').is_empty() => Ok(Location::Memory),
            other => {
                let (problem, example) = unknown(other);
                Err(invalid(problem, example))
            }
        }
    }
}

/// What is wrong with a scheme that is none of ours, and what is meant.
fn unknown(scheme: &str) -> (&'static str, &'static str) {
    let spelling = "the scheme is written differently here";
    match scheme {
        "memory" => ("a store in memory has no name", "memory://"),
        "s3a" | "s3n" => (spelling, "s3://bucket/prefix"),
        "gcs" => (spelling, "gs://bucket/prefix"),
        "abfs" | "abfss" | "azure" | "wasb" | "wasbs" => (spelling, "az://container/prefix"),
        "http" | "https" => (
            "a server's address is an option of its own (endpoint URL)",
            "s3://bucket/prefix with --s3-endpoint https://host:9000",
        ),
        _ => (
            "schemes are s3, gs, az, file and memory",
            "s3://bucket/prefix or file:///var/lib/everlog",
        ),
    }
}

fn bucket(scheme: Scheme, rest: &str) -> Result<Location, &'static str> {
    if rest.contains(['?', '#', '@']) {
        return Err("options and credentials do not belong into it");
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err("the bucket is missing");
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !(3..=222).contains(&bucket.len()) || !bucket.chars().all(legal) {
        return Err("this is no bucket's name");
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if !prefix.is_empty() && Key::new(prefix).is_err() {
        return Err("the prefix may hold A-Z a-z 0-9 . _ - = and single slashes between its parts");
    }
    if prefix.len() > PREFIX_BYTES_MAX {
        return Err("the prefix is longer than 120 bytes");
    }
    Ok(Location::Bucket {
        scheme,
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    })
}

fn directory(rest: &str) -> Result<Location, &'static str> {
    if !rest.starts_with('/') {
        return Err("after file:// comes an absolute path, which makes three slashes");
    }
    let path = percent_decoded(rest).ok_or("a per cent sign starts a code of two hex digits")?;
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err("the path may not hold \"..\"");
    }
    match path.trim_end_matches('/') {
        "" => Err("the root directory is no place for an archive"),
        path => Ok(Location::Directory(PathBuf::from(path))),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (code, tail) = rest.split_at_checked(2)?;
        rest = tail;
        let code = std::str::from_utf8(code).ok()?;
        bytes.push(
            u8::from_str_radix(code, 16)
                .ok()
                .filter(|_| !code.starts_with('+'))?,
        );
    }
    String::from_utf8(bytes).ok()
}

/// Someone may have written a key or a token into it.
fn hide_secrets(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let text = match (text.split_once("://"), text.rfind('@')) {
        (Some((scheme, _)), Some(at)) => {
            format!("{scheme}://…{}", text.get(at..).unwrap_or_default())
        }
        _ => text.to_owned(),
    };
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_locations() {
        let bucket = |scheme, bucket: &str, prefix: &str| Location::Bucket {
            scheme,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        let check = |text, expected| assert_eq!(Location::parse(text), Ok(expected), "{text}");
        check("s3://lake", bucket(Scheme::S3, "lake", ""));
        check("s3://lake/", bucket(Scheme::S3, "lake", ""));
        check("s3://lake/a/b=c/", bucket(Scheme::S3, "lake", "a/b=c"));
        check(
            "gs://my_bucket.example/x",
            bucket(Scheme::Gs, "my_bucket.example", "x"),
        );
        check("az://box/x", bucket(Scheme::Az, "box", "x"));
        check(
            "file:///var/lib/ever%20log/",
            Location::Directory("/var/lib/ever log".into()),
        );
        check("memory://", Location::Memory);
    }

    #[test]
    fn a_wrong_url_is_refused_with_an_example_of_a_right_one() {
        for (text, example) in [
            (
                "lake/prefix",
                "s3://bucket/prefix or file:///var/lib/everlog",
            ),
            ("ftp://x/y", "s3://bucket/prefix or file:///var/lib/everlog"),
            ("s3a://lake/x", "s3://bucket/prefix"),
            (
                "https://lake.s3.amazonaws.com/x",
                "s3://bucket/prefix with --s3-endpoint https://host:9000",
            ),
            ("s3://", "s3://bucket/prefix"),
            ("s3:///x", "s3://bucket/prefix"),
            ("s3://la ke/x", "s3://bucket/prefix"),
            ("s3://lake//x", "s3://bucket/prefix"),
            ("s3://lake/a/../b", "s3://bucket/prefix"),
            ("s3://lake/ä", "s3://bucket/prefix"),
            ("s3://lake/x?region=eu", "s3://bucket/prefix"),
            ("gcs://lake/x", "gs://bucket/prefix"),
            ("abfss://box/x", "az://container/prefix"),
            ("file://relative/dir", "file:///var/lib/everlog"),
            ("file:///", "file:///var/lib/everlog"),
            ("file:///a/../b", "file:///var/lib/everlog"),
            ("file:///a%2", "file:///var/lib/everlog"),
            ("memory://x", "memory://"),
        ] {
            let error = Location::parse(text).expect_err(text);
            assert!(
                error
                    .to_string()
                    .ends_with(&format!("looks like {example}")),
                "{error}"
            );
        }
    }

    #[test]
    fn credentials_in_a_url_are_not_repeated() {
        let error =
            Location::parse("s3://AKIA:secret@lake/x?token=hidden").expect_err("credentials");
        let text = error.to_string();
        assert!(
            !text.contains("secret") && !text.contains("hidden") && text.contains("@lake/x"),
            "{text}"
        );
    }
}
