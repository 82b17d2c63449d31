//! What the fuzz targets share: devices made of the fuzzer's bytes, and an allocator that refuses what no device of this size
//! can ask for.

mod image;

use std::alloc::{GlobalAlloc, Layout, System};

pub use image::{ID, Source, image, ring, sealed_block};

/// No image gives a reason to ask for more at a time, in bytes.
const ALLOCATION_MAX: usize = 16 << 20;

/// Ends the process when more is asked for at a time than is reasonable.
#[derive(Debug)]
pub struct Bounded;

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

fn check(size: usize) {
    if size > ALLOCATION_MAX {
        // Unwinding out of an allocator is not allowed.
        std::process::abort();
    }
}

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;
