//! A file's bytes as memory: private, so that what is written there reaches no file and no other process.

use std::fs::File;

use crate::error::FileError;

#[cfg_attr(unix, path = "mapping/unix.rs")]
#[cfg_attr(not(unix), path = "mapping/elsewhere.rs")]
mod system;

/// Bytes of one request; others get their turn between two.
const ANNOUNCED_BYTES: u64 = 8 << 20;

/// All bytes of a file, mapped. Pages come from the page cache; one that is written to becomes the process's own.
///
/// A page that the file no longer has, because it was cut, cannot be read: the process gets SIGBUS. Whoever reads compares
/// the file with what it was before.
#[derive(Debug)]
pub struct FileMapping {
    memory: system::Mapped,
}

impl FileMapping {
    /// Maps the first `size_bytes` of a file.
    ///
    /// # Errors
    ///
    /// Whatever the system says; more bytes than addresses.
    pub fn of(file: &File, size_bytes: u64) -> Result<Self, FileError> {
        let size = usize::try_from(size_bytes)
            .map_err(|_| FileError::Unreadable(format!("{size_bytes} bytes are more than this machine can address")))?;
        Ok(Self { memory: system::Mapped::of(file, size)? })
    }

    /// The first byte; valid as long as the mapping is.
    pub fn start(&self) -> *mut u8 {
        self.memory.start()
    }

    /// Bytes of the mapping.
    pub fn size_bytes(&self) -> usize {
        self.memory.size()
    }

    /// Lets the page cache read bytes `begin` to `end`; returns when the last of it is under way.
    ///
    /// Where the system does not know such a request, they are read when they are looked at.
    pub fn page_in(&self, begin: u64, end: u64) {
        let end = end.min(self.size_bytes() as u64);
        let mut next = begin;
        while next < end {
            let last = end.min(next.saturating_add(ANNOUNCED_BYTES));
            self.memory.announce(next, last);
            next = last;
        }
    }
}
