//! How much of a span is in the page cache, without reading any of it.

use crate::stored_file::Handle;

/// Whole pages of a span, as bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CachedBytes {
    /// In the page cache.
    pub cached: u64,
    /// All of them.
    pub asked: u64,
}

/// Of the pages that a span touches; none is cached where the system does not say.
///
/// # Cost
///
/// 3 µs where nothing is cached, 4 µs a MB where all is. Where `cachestat` is missing, one call a MiB, and one byte stands
/// for its MiB.
pub fn cached_bytes(handle: &Handle, begin: u64, end: u64) -> CachedBytes {
    let page = page_bytes();
    let end = end.min(handle.size_bytes());
    if begin >= end {
        return CachedBytes::default();
    }
    let (first, behind) = (begin - begin % page, end.next_multiple_of(page));
    let cached = system::cached(handle.file(), first, behind, page);
    CachedBytes { cached: cached.min(behind - first), asked: behind - first }
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "sysconf is in no safe library that is used here")]
pub(crate) fn page_bytes() -> u64 {
    // SAFETY: asks for a number and touches no memory.
    let said = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(said).ok().filter(|&bytes| bytes > 0).unwrap_or(4096)
}

#[cfg(not(unix))]
pub(crate) fn page_bytes() -> u64 {
    4096
}

#[cfg(target_os = "linux")]
mod system {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    const PROBE_BYTES: u64 = 1 << 20;

    pub(super) fn cached(file: &File, begin: u64, end: u64, page: u64) -> u64 {
        match counted_pages(file, begin, end) {
            Some(pages) => pages.saturating_mul(page),
            None => probed(file, begin, end),
        }
    }

    /// None before Linux 6.5, and where the process may not ask.
    #[expect(unsafe_code, reason = "cachestat is in no library")]
    pub(super) fn counted_pages(file: &File, begin: u64, end: u64) -> Option<u64> {
        const CACHESTAT: libc::c_long = 451; // on these machines
        let is_numbered_so = cfg!(any(
            target_arch = "x86_64",
            target_arch = "aarch64",
            target_arch = "riscv64",
            target_arch = "powerpc64",
            target_arch = "s390x"
        ));
        if !is_numbered_so {
            return None;
        }
        let range = [begin, end - begin];
        let mut found = [0_u64; 5]; // pages: cached, dirty, being written, evicted, recently evicted
        let (range, counts, flags) = (range.as_ptr(), found.as_mut_ptr(), 0_u32);
        // SAFETY: the handle is open as long as `file` is borrowed; a range is two numbers, and five are written.
        let refused = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range, counts, flags) };
        (refused == 0).then_some(found[0])
    }

    /// One byte of each MiB, read if that needs no waiting: the bytes of those whose byte was there.
    pub(super) fn probed(file: &File, begin: u64, end: u64) -> u64 {
        let probe_ends = |from: u64| from.saturating_add(PROBE_BYTES).min(end);
        let starts = (0..(end - begin).div_ceil(PROBE_BYTES)).map(|number| begin + number * PROBE_BYTES);
        starts.filter(|&from| is_there(file, from)).map(|from| probe_ends(from) - from).sum()
    }

    #[expect(unsafe_code, reason = "preadv2 is in no safe library that is used here")]
    fn is_there(file: &File, offset: u64) -> bool {
        let Ok(offset) = libc::off_t::try_from(offset) else { return false };
        let mut byte = [0_u8];
        let mut part = std::io::IoSliceMut::new(&mut byte);
        let part = (&raw mut part).cast();
        // SAFETY: the standard library promises that the slice is the system's `iovec`; it is borrowed for the call.
        unsafe { libc::preadv2(file.as_raw_fd(), part, 1, offset, libc::RWF_NOWAIT) == 1 }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub(super) fn cached(_file: &std::fs::File, _begin: u64, _end: u64, _page: u64) -> u64 {
        0
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::system::{counted_pages, probed};

    #[test]
    fn a_file_that_was_just_written_is_cached_by_either_way_of_asking() -> std::io::Result<()> {
        let path = std::env::temp_dir().join(format!("planner-cached-{}", std::process::id()));
        std::fs::write(&path, vec![1; 3 << 20])?;
        let file = std::fs::File::open(&path)?;
        std::fs::remove_file(&path)?;
        assert_eq!(probed(&file, 0, 3 << 20), 3 << 20);
        assert_eq!(probed(&file, 4096, (1 << 20) + 8192), (1 << 20) + 4096);
        assert!(counted_pages(&file, 0, 3 << 20).is_none_or(|pages| pages * super::page_bytes() == 3 << 20));
        Ok(())
    }
}
