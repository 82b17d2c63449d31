//! What the process may use of the machine, as far as it can set it itself.
#![expect(
    unsafe_code,
    reason = "the standard library has no call for resource limits"
)]

use tracing::{info, warn};

/// Below this a busy proxy comes to its end: each client connection takes two descriptors.
const FILES_ENOUGH: u64 = 16_400;

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
