//! The demo's directory: replaced if an earlier demo made it, left alone if anybody else did.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::TOPIC;

/// A file of this name says that everything beside it is ours.
const MARK: &str = ".made-by-everlog-demo";

/// The directory.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
}

impl Place {
    /// Makes it anew.
    pub(crate) fn prepare(path: &Path) -> Result<Place> {
        let root = std::path::absolute(path).context("the demo's directory")?;
        let is_empty = match std::fs::read_dir(&root) {
            Ok(mut entries) => entries.next().is_none(),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => true,
            Err(err) => {
                return Err(err).with_context(|| format!("{} cannot be read", root.display()));
            }
        };
        if !is_empty && !root.join(MARK).is_file() {
            bail!(
                "{} holds files that no demo made: choose another with --dir",
                root.display()
            );
        }
        if !is_empty {
            std::fs::remove_dir_all(&root)
                .with_context(|| format!("{} cannot be removed", root.display()))?;
        }
        std::fs::create_dir_all(&root)
            .with_context(|| format!("{} cannot be made", root.display()))?;
        std::fs::write(root.join(MARK), "everlog demo replaces this directory\n")?;
        Ok(Place { root })
    }

    pub(crate) fn archive(&self) -> PathBuf {
        self.root.join("archive")
    }

    /// Local state of archiver and proxy.
    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("local")
    }

    pub(crate) fn archive_url(&self) -> Result<String> {
        let path = self.archive();
        let path = path
            .to_str()
            .context("the demo's directory has a name that is not UTF-8")?;
        let is_plain =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-' | b'~');
        let encoded = path.bytes().map(|b| {
            if is_plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        });
        Ok(format!("file://{}", encoded.collect::<String>()))
    }

    /// What to try next.
    pub(crate) fn look_further(&self) -> Result<String> {
        let everlog = std::env::args()
            .next()
            .unwrap_or_else(|| "everlog".to_owned());
        let (url, files) = (self.archive_url()?, self.archive().join("data"));
        Ok(format!(
            "\nLook further:\n\
             \n  {everlog} inspect --archive {url}\
             \n  {everlog} verify --archive {url}\n\
             \nThe archive is Parquet and JSON. With DuckDB:\n\
             \n  duckdb -c \"SELECT kafka_partition, count(*) AS orders, min(kafka_offset), max(kafka_offset), max(ts)\
             \n             FROM read_parquet('{files}/**/*.parquet', hive_partitioning = false) GROUP BY ALL ORDER BY 1\"\
             \n  duckdb -c \"SELECT decode(value)->>'$.customer.country' AS country, count(*) AS orders\
             \n             FROM read_parquet('{files}/**/*.parquet', hive_partitioning = false)\
             \n             WHERE value IS NOT NULL GROUP BY ALL ORDER BY 2 DESC\"\n\
             \nBeside a real cluster, then with clients at 127.0.0.1:19092:\n\
             \n  {everlog} run --bootstrap-servers HOST:9092 --archive s3://BUCKET/PREFIX --topics {TOPIC} \\\
             \n      --listen 127.0.0.1:19092 --data-dir /var/lib/everlog\n",
            files = files.display(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_demo_made_is_replaced() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("demo dir");
        let place = Place::prepare(&path).expect("new");
        std::fs::write(path.join("left-over"), "x").expect("writable");
        assert!(
            place
                .archive_url()
                .expect("UTF-8")
                .ends_with("/demo%20dir/archive")
        );
        Place::prepare(&path).expect("ours");
        assert!(!path.join("left-over").exists());

        std::fs::remove_file(path.join(MARK)).expect("there");
        std::fs::write(path.join("precious"), "x").expect("writable");
        let err = Place::prepare(&path).expect_err("not ours").to_string();
        assert!(err.contains("no demo made"), "{err}");
        assert!(path.join("precious").exists());
    }
}
