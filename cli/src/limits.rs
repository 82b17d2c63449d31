//! What the process may use of the machine, as far as it can set it itself.
#![expect(
    unsafe_code,
    reason = "the standard library has no call for resource limits and the allocator's settings"
)]

use tracing::{info, warn};

/// Below this a busy proxy comes to its end: each client connection takes two descriptors.
const FILES_ENOUGH: u64 = 16_400;

/// From this size on a block of memory is mapped by itself, and goes back to the system when it is freed. Row groups,
/// segments' pages and answers to clients are larger.
#[cfg(target_env = "gnu")]
const MAPPED_ALONE_BYTES: libc::c_int = 1 << 20;

/// Keeps glibc's allocator from holding on to what is freed, so that `--memory` is what the process takes. Left alone it
/// has eight arenas a core, none of which uses what lies free in another, and maps large blocks by themselves only until
/// the first of them is freed. Call it before there are threads. An operator's own settings stay.
///
/// `run` with 100 partitions, 2 million records archived and then replayed by two clients, took 545 MiB at most without
/// this and 393 MiB with it.
pub(crate) fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    if [
        "MALLOC_ARENA_MAX",
        "MALLOC_MMAP_THRESHOLD_",
        "GLIBC_TUNABLES",
    ]
    .iter()
    .all(|name| std::env::var_os(name).is_none())
    {
        let cores = std::thread::available_parallelism().map_or(4, std::num::NonZero::get);
        let arenas = libc::c_int::try_from(cores.clamp(4, 16)).unwrap_or(4);
        // SAFETY: it sets two numbers of the allocator, and no other thread is there yet. What it does not take it refuses,
        // which leaves the defaults.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_ALONE_BYTES);
        }
    }
}

/// Raises the soft limit of open files to the hard one. The soft limit is low (1,024) only for the sake of programs that
/// use `select`, which nothing here does; the hard one is what the operator allows.
pub(crate) fn raise_open_files() {
    match raised() {
        Ok(limit) if limit < FILES_ENOUGH => info!(
            limit,
            enough = FILES_ENOUGH,
            "few files may be open at a time: a proxy with many clients needs more (ulimit -n, LimitNOFILE)"
        ),
        Ok(_) => {}
        Err(err) => warn!(
            error = &err as &dyn std::error::Error,
            "the limit of open files could not be raised"
        ),
    }
}

/// The limit that holds afterwards.
fn raised() -> std::io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid, exclusively borrowed structure for the whole call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a valid structure that outlives the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_hard_limit_is_reached() {
        super::raised().expect("it may be raised");
        let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux");
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .expect("a line");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[0], words[1]);
    }
}
