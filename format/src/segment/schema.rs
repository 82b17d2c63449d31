//! The columns of a segment, version 1: frozen. A test compares them with the message in the specification.

use std::sync::{Arc, LazyLock};

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{ColumnPath, SchemaDescriptor};

use super::{SegmentError, SegmentOptions};

/// The schema as Parquet's own tools print it. The numbers are Iceberg's field ids.
pub(super) const MESSAGE: &str = "message everlog_segment {
  required int32 dt (DATE) = 1;
  required int32 kafka_partition = 2;
  required int64 kafka_offset = 3;
  optional int64 ts (TIMESTAMP(MICROS,true)) = 4;
  required int64 ts_ms = 5;
  required int32 ts_type = 6;
  optional int32 leader_epoch = 7;
  optional binary key = 8;
  optional binary value = 9;
  required group headers (LIST) = 10 {
    repeated group list {
      required group element = 11 {
        required binary key = 12;
        optional binary value = 13;
      }
    }
  }
}";

/// How many leaf columns the schema has.
pub(super) const LEAF_COUNT: usize = 11;

/// Positions of the leaf columns in a row group.
pub(super) mod leaf {
    pub(in super::super) const DT: usize = 0;
    pub(in super::super) const PARTITION: usize = 1;
    pub(in super::super) const OFFSET: usize = 2;
    pub(in super::super) const TS_MS: usize = 4;
    pub(in super::super) const TS_TYPE: usize = 5;
    pub(in super::super) const LEADER_EPOCH: usize = 6;
    pub(in super::super) const KEY: usize = 7;
    pub(in super::super) const VALUE: usize = 8;
    pub(in super::super) const HEADER_KEY: usize = 9;
    pub(in super::super) const HEADER_VALUE: usize = 10;
}

/// Whether values of this leaf are byte strings.
pub(super) fn is_bytes(leaf: usize) -> bool {
    leaf >= leaf::KEY
}

/// The Parquet schema.
pub(super) static DESCRIPTOR: LazyLock<Arc<SchemaDescriptor>> = LazyLock::new(|| {
    let root =
        parse_message_type(MESSAGE).expect("the message is a constant that a test has parsed");
    Arc::new(SchemaDescriptor::new(Arc::new(root)))
});

/// The columns as the arrays that the writer hands to Parquet.
pub(super) static WRITE_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let bytes = DataType::Binary;
    let header = Fields::from(vec![
        Field::new("key", bytes.clone(), false),
        Field::new("value", bytes.clone(), true),
    ]);
    let element = Field::new("element", DataType::Struct(header), false);
    Arc::new(Schema::new(vec![
        Field::new("dt", DataType::Date32, false),
        Field::new("kafka_partition", DataType::Int32, false),
        Field::new("kafka_offset", DataType::Int64, false),
        Field::new(
            "ts",
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            true,
        ),
        Field::new("ts_ms", DataType::Int64, false),
        Field::new("ts_type", DataType::Int32, false),
        Field::new("leader_epoch", DataType::Int32, true),
        Field::new("key", bytes.clone(), true),
        Field::new("value", bytes.clone(), true),
        Field::new("headers", DataType::List(Arc::new(element)), false),
    ]))
});

fn path(parts: &[&str]) -> ColumnPath {
    ColumnPath::new(parts.iter().map(|&part| part.to_owned()).collect())
}

/// How each column is written.
pub(super) fn writer_properties(
    options: &SegmentOptions,
) -> Result<WriterProperties, SegmentError> {
    let level = ZstdLevel::try_new(options.zstd_level)
        .map_err(|err| SegmentError::Encode(Box::new(err)))?;
    if options.zstd_level > 19 || options.zstd_level < 1 {
        return Err(SegmentError::Encode(
            "the zstd level is not between 1 and 19".into(),
        ));
    }
    let row_group_fits = options.row_group_raw_max_bytes <= 256 << 20
        && options.row_group_encoded_max_bytes <= 256 << 20;
    if !row_group_fits {
        return Err(SegmentError::Encode(
            "a row group may not be larger than 256 MiB".into(),
        ));
    }
    if !(1 << 10..=16 << 20).contains(&options.page_max_bytes) {
        return Err(SegmentError::Encode(
            "the page size is not between 1 KiB and 16 MiB".into(),
        ));
    }
    let mut builder = WriterProperties::builder()
        .set_created_by(concat!("everlog version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        // Values hardly repeat, and for constants the delta encoding is as small: no page is ever a dictionary, so
        // each page can be read by itself.
        .set_dictionary_enabled(false)
        // Parquet looks behind each chunk, and closes a page that has come to this much. A chunk is as large as a page may
        // be, so that one lies in a page by itself, or several small ones together.
        .set_data_page_size_limit(options.page_max_bytes / 2)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_statistics_truncate_length(Some(64))
        .set_column_index_truncate_length(Some(64))
        // The limits that Parquet keeps count other bytes than ours do: the writer closes row groups itself.
        .set_max_row_group_row_count(None)
        .set_max_row_group_bytes(None);
    for name in [
        "dt",
        "kafka_partition",
        "kafka_offset",
        "ts",
        "ts_ms",
        "ts_type",
        "leader_epoch",
    ] {
        builder = builder.set_column_encoding(path(&[name]), Encoding::DELTA_BINARY_PACKED);
    }
    builder = builder
        .set_column_encoding(path(&["key"]), Encoding::PLAIN)
        .set_column_encoding(path(&["value"]), Encoding::DELTA_LENGTH_BYTE_ARRAY)
        .set_column_statistics_enabled(path(&["value"]), EnabledStatistics::None);
    for name in ["key", "value"] {
        let path = path(&["headers", "list", "element", name]);
        builder = builder
            .set_column_encoding(path.clone(), Encoding::PLAIN)
            .set_column_statistics_enabled(path, EnabledStatistics::None);
    }
    Ok(builder.build())
}
