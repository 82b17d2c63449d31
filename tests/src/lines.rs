//! The text form of a record that all three clients write: `offset timestamp type epoch key value headers`.
//!
//! Bytes up to 24 are hex after an `x`, longer ones `#length:sha256`, null is `-`. Headers are `key=value` joined by
//! commas, `.` if there are none. The Java and Go programs under `tests/java` and `tests/go` write the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Result;
use sha2::{Digest, Sha256};

/// A record as a client gave it.
#[derive(Clone, Debug, Default)]
pub struct RecordParts<'a> {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Milliseconds.
    pub timestamp_ms: i64,
    /// 0 create, 1 log append.
    pub timestamp_type: i32,
    /// -1 if the client does not know it.
    pub leader_epoch: i32,
    /// Null differs from empty.
    pub key: Option<&'a [u8]>,
    /// Null differs from empty.
    pub value: Option<&'a [u8]>,
    /// In order.
    pub headers: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

impl RecordParts<'_> {
    fn append_line(&self, line: &mut String) {
        // Writing to a String can't fail.
        let _ = write!(
            line,
            "{} {} {} {} ",
            self.offset, self.timestamp_ms, self.timestamp_type, self.leader_epoch
        );
        append_bytes(line, self.key);
        line.push(' ');
        append_bytes(line, self.value);
        line.push(' ');
        for (index, (key, value)) in self.headers.iter().enumerate() {
            if index > 0 {
                line.push(',');
            }
            append_bytes(line, Some(key));
            line.push('=');
            append_bytes(line, *value);
        }
        if self.headers.is_empty() {
            line.push('.');
        }
        line.push('\n');
    }
}

fn append_bytes(line: &mut String, bytes: Option<&[u8]>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let hex = |bytes: &[u8], line: &mut String| {
        for byte in bytes {
            line.push(char::from(HEX[usize::from(byte >> 4)]));
            line.push(char::from(HEX[usize::from(byte & 15)]));
        }
    };
    match bytes {
        None => line.push('-'),
        Some(bytes) if bytes.len() <= 24 => {
            line.push('x');
            hex(bytes, line);
        }
        Some(bytes) => {
            let _ = write!(line, "#{}:", bytes.len());
            hex(&Sha256::digest(bytes), line);
        }
    }
}

/// Appends records to one file per partition (`p0`, `p1`, ...) in a folder.
#[derive(Debug)]
pub struct LineWriter {
    folder: PathBuf,
    files: BTreeMap<i32, BufWriter<File>>,
    line: String,
}

impl LineWriter {
    /// Makes the folder.
    pub fn new(folder: &Path) -> Result<LineWriter> {
        std::fs::create_dir_all(folder)?;
        Ok(LineWriter {
            folder: folder.to_owned(),
            files: BTreeMap::new(),
            line: String::new(),
        })
    }

    /// Appends one.
    pub fn write(&mut self, record: &RecordParts<'_>) -> Result<()> {
        self.line.clear();
        record.append_line(&mut self.line);
        if !self.files.contains_key(&record.partition) {
            let path = self.folder.join(format!("p{}", record.partition));
            let file = File::options().create(true).append(true).open(path)?;
            self.files
                .insert(record.partition, BufWriter::with_capacity(1 << 16, file));
        }
        if let Some(file) = self.files.get_mut(&record.partition) {
            file.write_all(self.line.as_bytes())?;
        }
        Ok(())
    }

    /// Hands everything to the system.
    pub fn flush(&mut self) -> Result<()> {
        for file in self.files.values_mut() {
            file.flush()?;
        }
        Ok(())
    }
}
