//! Ordinary memory, aligned as on Linux.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use super::HUGE_PAGE_BYTES;

/// Ordinary memory, aligned as the other is.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) start: NonNull<u8>,
    pub(super) size: usize,
}

#[expect(
    unsafe_code,
    reason = "the memory belongs to no thread; what is read and written there is its users' business"
)]
// SAFETY: only an address and a size, which never change; the memory is given back by whoever drops it last.
unsafe impl Send for Pages {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above; nothing here reads or writes the memory.
unsafe impl Sync for Pages {}

impl Pages {
    /// None where there is no more memory.
    #[expect(unsafe_code, reason = "aligned memory without a type has no safe form")]
    pub(super) fn new(size: usize) -> Option<Self> {
        let layout = Layout::from_size_align(size, HUGE_PAGE_BYTES).ok()?;
        // SAFETY: the size is not zero: it is a multiple of 2 MiB, and at least one of them.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, size })
    }
}

impl Drop for Pages {
    #[expect(unsafe_code, reason = "as above")]
    fn drop(&mut self) {
        if let Ok(layout) = Layout::from_size_align(self.size, HUGE_PAGE_BYTES) {
            // SAFETY: from `new`, with this layout, and whoever used it has let go of this.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}

pub(super) fn huge_bytes(_begin: u64, _end: u64) -> u64 {
    0
}
