//! Pages of the page cache.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use super::Piece;
use crate::error::FileError;
use crate::open::read_exact_at;

/// A multiple of the small pages of all machines.
const PAGE_BYTES: u64 = 64 << 10;

/// Where a piece of a file lies in a mapping.
#[derive(Debug)]
pub(crate) struct Placed<'a> {
    /// The piece.
    pub(crate) piece: Piece<'a>,
    /// Its first byte in the mapping; at the same place of its page as in the file.
    pub(crate) at: usize,
}

/// Pages of files; given back when this is dropped.
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
    pub(crate) fn of(file: &File, size: usize) -> Result<Self, FileError> {
        if size == 0 {
            return Ok(Self { start: NonNull::dangling(), size }); // no system maps nothing
        }
        Ok(Self { start: mapped(None, size, Some((file, 0)))?, size })
    }

    /// Pieces at their places, in the order of these.
    pub(crate) fn of_pieces(rows: &[Placed<'_>], size: usize, page: usize) -> Result<Self, FileError> {
        let size = size.next_multiple_of(page);
        if rows.is_empty() {
            return Ok(Self { start: NonNull::dangling(), size: 0 });
        }
        let whole = Self { start: mapped(None, size, None)?, size };
        for Placed { piece, at } in rows {
            let behind = at + usize::try_from(piece.end - piece.begin).unwrap_or(size);
            // Whole pages are the file's; those in which it begins and ends are shared with other pieces, and read.
            let (first, last) = (at.next_multiple_of(page), behind - behind % page);
            if first >= last {
                whole.read(piece, *at, behind - at, 0)?;
                continue;
            }
            let skipped = (first - at) as u64;
            mapped(Some((&whole, first)), last - first, Some((piece.file, piece.begin + skipped)))?;
            whole.read(piece, *at, first - at, 0)?;
            whole.read(piece, last, behind - last, (last - at) as u64)?;
        }
        Ok(whole)
    }

    /// Reads bytes of a piece, from so many behind its first on, to a place that is inside and that nobody knows of yet.
    #[expect(unsafe_code, reason = "the pages have an address and nothing else")]
    fn read(&self, piece: &Piece<'_>, at: usize, bytes: usize, skipped: u64) -> Result<(), FileError> {
        if bytes == 0 {
            return Ok(());
        }
        let start = self.start().wrapping_add(at);
        // SAFETY: inside of the mapping, where there is zeroed memory of this process, and nobody else has its address.
        let target = unsafe { std::slice::from_raw_parts_mut(start, bytes) };
        read_exact_at(piece.file, target, piece.begin + skipped)
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

/// Maps a file's bytes from an offset on, or zeroes: at addresses that the system chooses, or in the place of pages of a mapping.
#[expect(unsafe_code, reason = "mmap is in no safe library that is used here")]
fn mapped(
    place: Option<(&Mapped, usize)>,
    size: usize,
    source: Option<(&File, u64)>,
) -> Result<NonNull<u8>, FileError> {
    let mut flags = libc::MAP_PRIVATE;
    #[cfg(target_os = "linux")]
    {
        // A file larger than the memory can be mapped: what is written to is few of its pages, or none.
        flags |= libc::MAP_NORESERVE;
    }
    let (handle, offset) = match source {
        Some((file, offset)) => (file.as_raw_fd(), offset),
        None => (-1, 0),
    };
    if source.is_none() {
        flags |= libc::MAP_ANON;
    }
    let mut wanted = std::ptr::null_mut();
    if let Some((whole, at)) = place {
        flags |= libc::MAP_FIXED;
        wanted = whole.start().wrapping_add(at).cast();
    }
    let offset = libc::off_t::try_from(offset).map_err(|error| FileError::Unreadable(error.to_string()))?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the system chooses addresses that nobody has, or they are pages of a mapping that nobody knows of yet; the handle is open as
    // long as the file is borrowed.
    let start = unsafe { libc::mmap(wanted, size, protection, flags, handle, offset) };
    match NonNull::new(start.cast::<u8>()) {
        Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(start),
        _ => Err(std::io::Error::last_os_error().into()),
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
