//! Prints what an archive holds: `dump ARCHIVE_URL [TOPIC]`. Without a topic the entries of every partition, with one
//! its records in the form of Kafka's console consumer (timestamp, partition, offset, epoch, headers, key, value), so that
//! the two can be compared.
#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

use std::io::Write;
use std::sync::Arc;

use everlog_format::{PartitionKey, Record, RowGroupReader, Segment, TimestampType};
use everlog_index::{Archive, ArchiveOptions, Entry, EntryKind, Freshness, Snapshot};
use everlog_store::StoreOptions;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(url) = arguments.first() else {
        return Err("see the head of this file".into());
    };
    let store = everlog_store::open(
        url,
        StoreOptions {
            read_only: true,
            ..StoreOptions::default()
        },
    )
    .await?;
    let archive = Archive::open(
        store,
        ArchiveOptions {
            node_cache_dir: None,
            create: false,
        },
    )
    .await?;
    for info in archive.topics().await? {
        if arguments
            .get(1)
            .is_some_and(|topic| topic != info.name.as_str())
        {
            continue;
        }
        for partition in archive.partitions(&info.incarnation).await? {
            let key = PartitionKey {
                incarnation: info.incarnation.clone(),
                partition,
            };
            let Some(snapshot) = archive.snapshot(&key, Freshness::Now).await? else {
                continue;
            };
            let Some(covered) = snapshot.covered() else {
                continue;
            };
            if arguments.len() == 1 {
                println!("{} {key} {covered} {:?}", info.name, snapshot.totals());
            }
            let mut from = covered.start();
            loop {
                let entries = snapshot.entries(from, 1_000).await?;
                let Some(last) = entries.last() else { break };
                from = last.range.end();
                for entry in &entries {
                    if arguments.len() == 1 {
                        println!("  {} {:?}", entry.range, entry.kind);
                    } else {
                        print_records(&archive, &snapshot, entry, partition.get()).await?;
                    }
                }
            }
        }
    }
    Ok(())
}

async fn print_records(
    archive: &Archive,
    snapshot: &Snapshot,
    entry: &Entry,
    partition: i32,
) -> Result<(), Failure> {
    let EntryKind::Data(data) = &entry.kind else {
        return Ok(());
    };
    let bytes = archive
        .store()
        .get(&snapshot.segment_key(entry.range, data))
        .await?;
    let footer = bytes.len() - usize::try_from(data.footer_len)?;
    let segment = Arc::new(Segment::parse(&bytes.slice(footer..), data.bytes)?);
    let mut out = std::io::stdout().lock();
    for (index, group) in segment.row_groups().iter().enumerate() {
        let range = usize::try_from(group.bytes.start)?..usize::try_from(group.bytes.end)?;
        let mut reader = RowGroupReader::new(&segment, index, bytes.slice(range))?;
        while let Some(slice) = reader.next_slice(1 << 20)? {
            for record in slice.to_records() {
                print_record(&mut out, partition, &record)?;
            }
        }
    }
    Ok(())
}

fn print_record(out: &mut impl Write, partition: i32, record: &Record) -> std::io::Result<()> {
    let kind = match record.timestamp_type {
        TimestampType::Create if record.timestamp_ms == -1 => "NoTimestampType",
        TimestampType::Create => "CreateTime",
        TimestampType::LogAppend => "LogAppendTime",
    };
    let text = |bytes: Option<&[u8]>| {
        bytes.map_or("null".into(), |bytes| {
            String::from_utf8_lossy(bytes).into_owned()
        })
    };
    let headers: Vec<String> = record
        .headers
        .iter()
        .map(|header| {
            format!(
                "{}:{}",
                String::from_utf8_lossy(&header.key),
                text(header.value.as_deref())
            )
        })
        .collect();
    let headers = if headers.is_empty() {
        "NO_HEADERS".to_owned()
    } else {
        headers.join(",")
    };
    let epoch = record
        .leader_epoch
        .map_or("-1".to_owned(), |epoch| epoch.to_string());
    let (key, value) = (text(record.key.as_deref()), text(record.value.as_deref()));
    let (timestamp, offset) = (record.timestamp_ms, record.offset);
    writeln!(
        out,
        "{kind}:{timestamp}\tPartition:{partition}\tOffset:{offset}\tEpoch:{epoch}\t{headers}\t{key}\t{value}"
    )
}
