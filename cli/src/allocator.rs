//! The allocator of the whole process, librdkafka and zstd included: jemalloc.
//!
//! librdkafka reads each answer of some MiB into a block of its own, from one thread, and frees it from another. glibc's
//! allocator either returns such a block to the system at once, so that the kernel has to clear its pages anew for each
//! answer, or keeps what is freed in arenas that can't use each other's. jemalloc keeps it for moments and uses it
//! again: archiving takes about a seventh less CPU time and replaying a tenth, and `--memory` is
//! still what the process takes (`run` with 100 partitions: 231 MiB of 512).
#![expect(
    unsafe_code,
    reason = "an allocator reads its settings before main, from a symbol with this name"
)]

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Few arenas, because none uses what lies free in another, and pages that nobody has needed for two seconds go back to
/// the system. An operator's `MALLOC_CONF` comes on top.
// SAFETY: nothing else has this name, and jemalloc expects a pointer to a text that ends in NUL.
#[unsafe(export_name = "malloc_conf")]
static SETTINGS: Settings =
    Settings(c"narenas:4,background_thread:true,dirty_decay_ms:2000,muzzy_decay_ms:0".as_ptr());

/// A pointer that may lie in a static.
#[repr(transparent)]
struct Settings(*const std::ffi::c_char);

// SAFETY: it points to a constant.
unsafe impl Sync for Settings {}
