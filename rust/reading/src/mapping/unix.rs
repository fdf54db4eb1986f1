//! Pages of the page cache.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use crate::error::FileError;

/// A multiple of the small pages of all machines.
const PAGE_BYTES: u64 = 64 << 10;

/// Pages of a file; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Mapped {
    start: NonNull<u8>,
    size: usize,
}

#[expect(unsafe_code, reason = "the pages belong to no thread; what is read and written there is its users' business")]
// SAFETY: only an address and a size, which never change; the pages are unmapped by whoever drops it last.
unsafe impl Send for Mapped {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above; nothing here reads or writes the pages.
unsafe impl Sync for Mapped {}

impl Mapped {
    #[expect(unsafe_code, reason = "mmap is in no safe library that is used here")]
    pub(crate) fn of(file: &File, size: usize) -> Result<Self, FileError> {
        if size == 0 {
            return Ok(Self { start: NonNull::dangling(), size }); // no system maps nothing
        }
        #[cfg(target_os = "linux")]
        // A file larger than the memory can be mapped: what is written to is few of its pages, or none.
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        #[cfg(not(target_os = "linux"))]
        let flags = libc::MAP_PRIVATE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the system chooses addresses that nobody has; the handle is open as long as `file` is borrowed.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, file.as_raw_fd(), 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, size }),
            _ => Err(std::io::Error::last_os_error().into()),
        }
    }

    /// Says that the pages of bytes `begin` to `end`, which are inside, will be looked at.
    #[expect(unsafe_code, reason = "madvise is in no safe library that is used here")]
    pub(crate) fn announce(&self, begin: u64, end: u64) {
        let inside = |offset: u64| usize::try_from(offset).unwrap_or(self.size).min(self.size);
        let first = inside(begin - begin % PAGE_BYTES);
        // SAFETY: inside of the mapping. The advice changes nothing of what it holds; where it is refused, nothing is lost.
        unsafe { libc::madvise(self.start().wrapping_add(first).cast(), inside(end) - first, libc::MADV_WILLNEED) };
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Mapped {
    #[expect(unsafe_code, reason = "munmap is in no safe library that is used here")]
    fn drop(&mut self) {
        if self.size > 0 {
            // SAFETY: these pages were mapped by `of`, and whoever used them has let go of this.
            unsafe { libc::munmap(self.start().cast(), self.size) };
        }
    }
}
