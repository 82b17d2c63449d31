//! What the fuzz targets share: an allocator that refuses what no input of their size can ask for, a segment to damage, and
//! devices made of the fuzzer's bytes.
//!
//! Random bytes never match a checksum, so inputs are put under right ones: every check behind them is reached as well.
//! Each target names its allocator itself, with its limit; `tests/fuzz` sees to it that none goes without.

mod image;
mod segment;

use std::alloc::{GlobalAlloc, Layout, System};

pub use image::{ID, Source, image, ring, sealed_block};
pub use segment::{Good, footer_of, good_segment, read_all, reseal};

/// No message, batch, segment or commit of a few kilobytes gives a reason to ask for more at a time, in bytes.
pub const DECODER_ALLOCATION_MAX: usize = 64 << 20;

/// No image of a device does, in bytes.
pub const DEVICE_ALLOCATION_MAX: usize = 16 << 20;

/// Ends the process when more than so many bytes are asked for at a time.
#[derive(Debug)]
pub struct Bounded(pub usize);

impl Bounded {
    fn check(&self, size: usize) {
        if size > self.0 {
            // Unwinding out of an allocator is not allowed.
            std::process::abort();
        }
    }
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.check(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.check(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.check(size);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}
