//! Memory of huge pages. A direct read into 2 MiB pages takes half the time and an eighth of the processor's that one into
//! pages of 4 KiB takes, so these are asked for, filled and joined before anything is read, and counted afterwards.

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

#[cfg(target_os = "linux")]
mod system {
    use std::io::{BufRead, BufReader, Error, ErrorKind};
    use std::ptr::NonNull;

    use super::HUGE_PAGE_BYTES;

    /// Pages that can be used, between others that cannot: so that the kernel joins them with no neighbour, and counts
    /// them alone.
    #[derive(Debug)]
    pub(super) struct Pages {
        pub(super) start: NonNull<u8>,
        pub(super) size: usize,
        reserved: NonNull<u8>,
        reserved_size: usize,
    }

    #[expect(
        unsafe_code,
        reason = "the pages belong to no thread; what is read and written there is its users' business"
    )]
    // SAFETY: only addresses and sizes, which never change; the pages are unmapped by whoever drops it last.
    unsafe impl Send for Pages {}
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: as above; nothing here reads or writes the pages.
    unsafe impl Sync for Pages {}

    impl Pages {
        /// None where there is no more memory.
        pub(super) fn new(size: usize) -> Option<Self> {
            let reserved_size = size.checked_add(2 * HUGE_PAGE_BYTES)?;
            let reserved = reserve(reserved_size)?;
            // At least one page before it: an address that is aligned already is left too.
            let before = HUGE_PAGE_BYTES - reserved.as_ptr() as usize % HUGE_PAGE_BYTES;
            let start = NonNull::new(reserved.as_ptr().wrapping_add(before))?;
            let pages = Self { start, size, reserved, reserved_size };
            pages.make_usable().ok()?;
            pages.advise(libc::MADV_HUGEPAGE).ok(); // a kernel without huge pages has the others
            pages.fill()?;
            pages.advise(libc::MADV_COLLAPSE).ok(); // before Linux 6.1, or without free huge pages: as they are
            Some(pages)
        }

        #[expect(unsafe_code, reason = "mprotect is in no safe library that is used here")]
        fn make_usable(&self) -> Result<(), Error> {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: inside of what `reserve` gave, which nobody else knows.
            let refused = unsafe { libc::mprotect(self.start.as_ptr().cast(), self.size, protection) };
            if refused == 0 { Ok(()) } else { Err(Error::last_os_error()) }
        }

        #[expect(unsafe_code, reason = "madvise is in no safe library that is used here")]
        fn advise(&self, advice: libc::c_int) -> Result<(), Error> {
            loop {
                // SAFETY: these pages are ours, and none of the advice that is given here changes what they hold.
                if unsafe { libc::madvise(self.start.as_ptr().cast(), self.size, advice) } == 0 {
                    return Ok(());
                }
                let error = Error::last_os_error();
                if error.kind() != ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }

        /// Makes every page there; None where there is no memory for it.
        fn fill(&self) -> Option<()> {
            match self.advise(libc::MADV_POPULATE_WRITE) {
                Ok(()) => Some(()),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.touch(); // before Linux 5.14
                    Some(())
                }
                Err(_) => None,
            }
        }

        #[expect(unsafe_code, reason = "memory from the system, not from Rust")]
        fn touch(&self) {
            for offset in (0..self.size).step_by(4096) {
                // SAFETY: inside of the pages that were made usable, which nobody else knows yet.
                unsafe { self.start.as_ptr().wrapping_add(offset).write_volatile(0) };
            }
        }
    }

    impl Drop for Pages {
        #[expect(unsafe_code, reason = "munmap is in no safe library that is used here")]
        fn drop(&mut self) {
            // SAFETY: these pages are from `reserve`, and whoever used them has let go of this.
            unsafe { libc::munmap(self.reserved.as_ptr().cast(), self.reserved_size) };
        }
    }

    /// Addresses without memory behind them.
    #[expect(unsafe_code, reason = "mmap is in no safe library that is used here")]
    fn reserve(size: usize) -> Option<NonNull<u8>> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the system chooses addresses that nobody has.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) }
    }

    /// From what the kernel says of every mapping of the process.
    pub(super) fn huge_bytes(begin: u64, end: u64) -> u64 {
        let Ok(text) = std::fs::File::open("/proc/self/smaps") else { return 0 };
        let mut is_inside = false;
        let mut total_kib = 0;
        for line in BufReader::new(text).lines().map_while(Result::ok) {
            if let Some((first, last)) = addresses(&line) {
                is_inside = begin <= first && last <= end;
            } else if is_inside && let Some(count) = line.strip_prefix("AnonHugePages:") {
                total_kib += count.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
            }
        }
        total_kib * 1024
    }

    /// Of the line that begins what is said of a mapping.
    fn addresses(line: &str) -> Option<(u64, u64)> {
        let (first, last) = line.split_whitespace().next()?.split_once('-')?;
        Some((u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(last, 16).ok()?))
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
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
}
