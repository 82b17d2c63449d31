//! Panics that stay where they are: of decoders that read bytes from outside, and of libraries that assert on them.
//!
//! A process that ends at each panic of its own, as ours does, asks [`is_contained`] first: a damaged object or cache
//! file is no reason to end what the process does for others, and would be read again after each restart.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// What panicked was given up; nothing that it had in hand may be used again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reading it panicked: {what}")]
pub struct Panicked {
    what: String,
}

/// Runs `work`, and makes an error of its panic.
///
/// What it can change has to be its own, or be left alone after the error.
pub fn contain_panic<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    DEPTH.with(|depth| depth.set(depth.get() + 1));
    let done = catch_unwind(AssertUnwindSafe(work));
    DEPTH.with(|depth| depth.set(depth.get() - 1));
    done.map_err(|payload| Panicked {
        what: panic_text(payload.as_ref()).to_owned(),
    })
}

/// Whether a panic of this thread would be contained. For a panic hook.
pub fn is_contained() -> bool {
    DEPTH.with(|depth| depth.get() > 0)
}

/// What a panic says.
pub fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_the_next_one_is_on_its_own() {
        assert!(!is_contained());
        assert_eq!(contain_panic(|| is_contained() as u8 + 1), Ok(2));
        let inner = contain_panic(|| {
            let inner = contain_panic(|| panic!("number {}", 7));
            assert!(is_contained());
            inner
        });
        assert_eq!(
            inner.map(|inner: Result<(), _>| inner.map_err(|panic| panic.to_string())),
            Ok(Err("reading it panicked: number 7".to_owned()))
        );
        assert!(!is_contained());
    }
}
