//! What the end-to-end tests are made of: real brokers, a real S3 server, real clients, our binary, and a way to compare
//! what two reads brought.
//!
//! Nothing here knows the product's code: it is run as its users run it, and judged by what comes out. (The log is a library,
//! so there a program of ours, `wal-writer`, is its user.) The servers come from `tests/setup`. Every process is killed when
//! the test process ends, however it ends.

mod admin;
mod azure;
mod bench;
mod cache;
mod case;
mod clients;
mod compare;
mod everlog;
mod fault;
mod generate;
mod kafka;
mod lines;
mod loop_device;
mod ports;
mod process;
mod raw;
mod s3;

pub use admin::Admin;
pub use azure::Azure;
pub use bench::{Options as BenchOptions, drain, run as run_bench};
pub use cache::Cache;
pub use case::{Case, soak, wait_until};
pub use clients::{
    Client, Follower, ReadReport, Reading, java_times, java_transactions, rdkafka_times, read,
};
pub use compare::{assert_same, count_lines, offsets, same};
pub use everlog::{Archive, Everlog, EverlogOptions, Held};
pub use fault::{FaultProxy, Faults};
pub use generate::{Fidelity, order_json, produce_inflating, produce_orders};
pub use kafka::{Kafka, KafkaOptions};
pub use lines::{LineWriter, RecordParts};
pub use loop_device::LoopDevice;
pub use ports::free_ports;
pub use process::{Process, ProcessUsage};
pub use raw::{RawBatch, RawHeader, RawRecord, produce_raw};
pub use s3::S3;
