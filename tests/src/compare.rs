//! Two reads, record by record.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail};

fn partitions(folder: &Path) -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(partition) = name
            .strip_prefix('p')
            .and_then(|digits| digits.parse().ok())
        {
            found.insert(partition);
        }
    }
    Ok(found)
}

/// Fails at the first record in which the two reads differ; gives the number of records that are equal.
pub fn same(wanted: &Path, found: &Path) -> Result<u64> {
    let (left, right) = (partitions(wanted)?, partitions(found)?);
    if left != right {
        bail!(
            "partitions with records: {left:?} in {}, {right:?} in {}",
            wanted.display(),
            found.display()
        );
    }
    let mut records = 0;
    for partition in left {
        let name = format!("p{partition}");
        let mut left = BufReader::with_capacity(1 << 16, File::open(wanted.join(&name))?);
        let mut right = BufReader::with_capacity(1 << 16, File::open(found.join(&name))?);
        let (mut one, mut other) = (Vec::new(), Vec::new());
        loop {
            one.clear();
            other.clear();
            left.read_until(b'\n', &mut one)?;
            right.read_until(b'\n', &mut other)?;
            if one != other {
                bail!(
                    "partition {partition} differs after {records} equal records:\n  wanted {}  found  {}  ({} and {})",
                    show(&one),
                    show(&other),
                    wanted.join(&name).display(),
                    found.join(&name).display()
                );
            }
            if one.is_empty() {
                break;
            }
            records += 1;
        }
    }
    Ok(records)
}

fn show(line: &[u8]) -> String {
    if line.is_empty() {
        "(nothing)\n".to_owned()
    } else {
        String::from_utf8_lossy(line).into_owned()
    }
}

/// Like [`same`], and there have to be `records` of them.
pub fn assert_same(wanted: &Path, found: &Path, records: u64) -> Result<()> {
    let equal = same(wanted, found)?;
    if equal != records {
        bail!(
            "{equal} records are equal in {}, but {records} were expected",
            found.display()
        );
    }
    Ok(())
}

/// All records in a folder.
pub fn count_lines(folder: &Path) -> Result<u64> {
    let mut count = 0;
    if !folder.exists() {
        return Ok(0);
    }
    for partition in partitions(folder)? {
        let mut file =
            BufReader::with_capacity(1 << 16, File::open(folder.join(format!("p{partition}")))?);
        let mut line = Vec::new();
        while file.read_until(b'\n', &mut line)? > 0 {
            count += 1;
            line.clear();
        }
    }
    Ok(count)
}

/// The offsets of one partition in the order in which they were read.
pub fn offsets(folder: &Path, partition: i32) -> Result<Vec<i64>> {
    let text = std::fs::read_to_string(folder.join(format!("p{partition}")))?;
    text.lines()
        .map(|line| {
            line.split(' ')
                .next()
                .and_then(|word| word.parse().ok())
                .context("a line starts with an offset")
        })
        .collect()
}
