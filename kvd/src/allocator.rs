//! The allocator of the process, and of the plugins in it: jemalloc, which takes the place of the C
//! library's `malloc`.
//!
//! What many threads allocate and others free, as values and pages of a cache are, leaves the C
//! library's heaps full of holes, and is slower there.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Pages that are free go back to the system within a second, by a thread of jemalloc's own. Whether
/// they do at all must not depend on who allocates next. Two arenas, in place of four for each core:
/// few threads allocate at a time, and each arena keeps pages of its own that are free in part.
#[expect(
    unsafe_code,
    reason = "jemalloc reads its options from a symbol of this name, which nothing else has"
)]
#[unsafe(export_name = "malloc_conf")]
static OPTIONS: Options =
    Options(c"narenas:2,background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0".as_ptr());

/// A pointer to text that lives as long as the process.
#[repr(transparent)]
struct Options(*const std::ffi::c_char);

#[expect(unsafe_code, reason = "what it points to never changes")]
unsafe impl Sync for Options {}
