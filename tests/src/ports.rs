//! Ports on loopback that nobody else has.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::Mutex;

use anyhow::{Result, bail};

// Below the range that Linux draws outgoing ports from, so that no client's connection takes one in between.
const FIRST: u16 = 27_000;
const LAST: u16 = 30_000;

/// `count` neighbouring free ports; gives the first one.
///
/// A node's port is the proxy's listen port + 1 + the node's id, so they have to lie side by side. What was given out once is not
/// given out again by this process; other processes start their search elsewhere.
pub fn free_ports(count: u16) -> Result<u16> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().expect("no panic while it is held");
    let given = given.get_or_insert_with(HashSet::new);
    let width = LAST - FIRST - count;
    let start = u16::try_from(std::process::id().wrapping_mul(37) % u32::from(width))
        .expect("below the width");
    for step in 0..width {
        let first = FIRST + (start + step) % width;
        let block = first..first + count;
        if block.clone().any(|port| given.contains(&port)) {
            continue;
        }
        let held: Vec<_> = block
            .clone()
            .map_while(|port| TcpListener::bind(("127.0.0.1", port)).ok())
            .collect();
        if held.len() == usize::from(count) {
            given.extend(block);
            return Ok(first);
        }
    }
    bail!("no {count} neighbouring free ports between {FIRST} and {LAST}")
}
