//! Pages from the kernel, which are asked to be huge.

use std::io::{BufRead, BufReader, Error, ErrorKind};
use std::ptr::NonNull;

use super::HUGE_PAGE_BYTES;

/// Joins pages that are there to huge ones; not every C library has the name.
const MADV_COLLAPSE: libc::c_int = 25;

/// Pages that can be used, between others that cannot: so that the kernel joins them with no neighbour, and counts
/// them alone.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) start: NonNull<u8>,
    pub(super) size: usize,
    reserved: NonNull<u8>,
    reserved_size: usize,
}

#[expect(unsafe_code, reason = "the pages belong to no thread; what is read and written there is its users' business")]
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
        pages.advise(MADV_COLLAPSE).ok(); // before Linux 6.1, or without free huge pages: as they are
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
