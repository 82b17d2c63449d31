//! Replay against real segments, a real index and a store that fails on command.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod faults;
mod memory;
mod reading;
mod speed;
mod support;
mod tails;
mod times;
