//! How `memory` is split between the services of one process.

use everlog_archiver::MEMORY_BYTES_MIN as ARCHIVER_MIN_BYTES;

use super::Roles;

const MIB: u64 = 1 << 20;

/// What is not handed out: the program, its runtime and connections, the store's clients.
const BASE_BYTES: u64 = 96 * MIB;

/// One row group as it was fetched, and its decoded slices, for two readers.
const PROXY_MIN_BYTES: u64 = 64 * MIB;

/// More does not make an archiver faster: it encodes one or two segments at a time.
const ARCHIVER_MAX_BYTES: u64 = 512 * MIB;

/// The parts of `memory`, in bytes. They add up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemorySplit {
    /// Not handed out.
    pub(crate) base_bytes: u64,
    /// The archiver's, librdkafka's queue included; 0 without an archiver.
    pub(crate) archiver_bytes: u64,
    /// The proxy's cache of row groups and decoded batches; 0 without a proxy.
    pub(crate) proxy_bytes: u64,
}

/// The least that the roles can work with, in bytes.
pub(crate) fn min_bytes(roles: Roles) -> u64 {
    BASE_BYTES
        + if roles.archiver {
            ARCHIVER_MIN_BYTES
        } else {
            0
        }
        + if roles.proxy { PROXY_MIN_BYTES } else { 0 }
}

/// Splits `memory_bytes`: the base first, of the rest one half for the archiver (within its bounds), all else for the
/// proxy. `None` if it is less than [`min_bytes`].
pub(crate) fn split(memory_bytes: u64, roles: Roles) -> Option<MemorySplit> {
    if memory_bytes < min_bytes(roles) {
        return None;
    }
    let rest = memory_bytes - BASE_BYTES;
    let archiver_bytes = match (roles.archiver, roles.proxy) {
        (false, _) => 0,
        (true, false) => rest.min(ARCHIVER_MAX_BYTES),
        (true, true) => (rest / 2).clamp(ARCHIVER_MIN_BYTES, ARCHIVER_MAX_BYTES),
    };
    let proxy_bytes = if roles.proxy {
        rest - archiver_bytes
    } else {
        0
    };
    Some(MemorySplit {
        base_bytes: memory_bytes - archiver_bytes - proxy_bytes,
        archiver_bytes,
        proxy_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up_and_nobody_gets_less_than_it_needs() {
        let all = [Roles::ARCHIVER, Roles::PROXY, Roles::BOTH];
        for roles in all {
            assert_eq!(split(min_bytes(roles) - 1, roles), None);
            for memory in [min_bytes(roles), 512 * MIB, 777 * MIB + 5, 64 << 30] {
                let parts = split(memory, roles).expect("enough");
                assert_eq!(
                    parts.base_bytes + parts.archiver_bytes + parts.proxy_bytes,
                    memory
                );
                assert!(parts.base_bytes >= BASE_BYTES);
                assert!(!roles.archiver || parts.archiver_bytes >= ARCHIVER_MIN_BYTES);
                assert!(!roles.proxy || parts.proxy_bytes >= PROXY_MIN_BYTES);
            }
        }
        let sidecar = split(512 * MIB, Roles::BOTH).expect("enough");
        assert_eq!(
            (sidecar.archiver_bytes, sidecar.proxy_bytes),
            (208 * MIB, 208 * MIB)
        );
    }
}
