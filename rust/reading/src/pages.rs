//! Memory of huge pages. A direct read into 2 MiB pages takes half the time and an eighth of the processor's that one into
//! pages of 4 KiB takes, so these are asked for, filled and joined before anything is read, and counted afterwards.

#[cfg_attr(target_os = "linux", path = "pages/linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "pages/elsewhere.rs")]
mod system;

/// The size that buffers are rounded up to and aligned at.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The system has no more memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no memory for a buffer of {size_bytes} bytes")]
pub struct OutOfMemory {
    /// Bytes that were asked for.
    pub size_bytes: usize,
}

/// Zeroed private memory at a multiple of 2 MiB, in huge pages as far as the system has them.
#[derive(Debug)]
pub struct PageBuffer {
    pages: system::Pages,
}

impl PageBuffer {
    /// At least as many bytes, all of them there when this returns.
    ///
    /// # Errors
    ///
    /// The system has no more memory.
    ///
    /// # Cost
    ///
    /// Zeroing every byte.
    pub fn new(size_bytes: usize) -> Result<Self, OutOfMemory> {
        let rounded = size_bytes.max(1).checked_next_multiple_of(HUGE_PAGE_BYTES);
        let pages = rounded.and_then(system::Pages::new);
        pages.map(|pages| Self { pages }).ok_or(OutOfMemory { size_bytes })
    }

    /// The first byte; valid as long as the buffer is.
    pub fn start(&self) -> *mut u8 {
        self.pages.start.as_ptr()
    }

    /// Bytes, a multiple of 2 MiB.
    pub fn size_bytes(&self) -> usize {
        self.pages.size
    }

    /// Bytes that lie in huge pages now; none where the system does not say.
    ///
    /// # Cost
    ///
    /// A few milliseconds: the system writes a text about all memory of the process.
    pub fn huge_bytes(&self) -> u64 {
        let start = self.start() as u64;
        system::huge_bytes(start, start + self.size_bytes() as u64)
    }

    /// All bytes, of a buffer that nobody else has.
    #[expect(unsafe_code, reason = "memory from the system, not from Rust")]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the pages are there and zeroed since `new`, and borrowed from the only owner for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.size_bytes()) }
    }
}
