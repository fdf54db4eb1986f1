//! A file's bytes as memory: private, so that what is written there reaches no file and no other process.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::FileError;

#[cfg_attr(unix, path = "mapping/unix.rs")]
#[cfg_attr(not(unix), path = "mapping/elsewhere.rs")]
mod system;

/// Bytes of one request; a multiple of any huge page.
const PAGED_BYTES: u64 = 8 << 20;
/// Beyond this, more of them gain nothing.
const THREADS: usize = 64;

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

    /// Lets the page cache have bytes `begin` to `end`, and maps them; in huge pages as far as the system has them.
    ///
    /// Several requests are in flight at once: each waits for the disk. Where the system cannot be asked for this, the bytes are
    /// only announced to it.
    ///
    /// # Errors
    ///
    /// Whatever the system says; a file that does not have these bytes any more. Some of them may be there then.
    pub fn page_in(&self, begin: u64, end: u64, threads: usize) -> Result<(), FileError> {
        let end = end.min(self.size_bytes() as u64);
        let next = AtomicU64::new(begin - begin % PAGED_BYTES);
        let has_failed = AtomicBool::new(false);
        let work = || {
            while !has_failed.load(Ordering::Relaxed) {
                let piece = next.fetch_add(PAGED_BYTES, Ordering::Relaxed);
                if piece >= end {
                    break;
                }
                let (first, last) = (piece.max(begin), (piece + PAGED_BYTES).min(end));
                if let Err(error) = self.memory.page_in(first, last) {
                    has_failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        let pieces = usize::try_from(end.saturating_sub(begin).div_ceil(PAGED_BYTES)).unwrap_or(THREADS);
        let others = threads.clamp(1, THREADS).min(pieces).saturating_sub(1);
        std::thread::scope(|scope| {
            // A thread that the system does not give is one request in flight less.
            let started: Vec<_> =
                (0..others).map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
            let own = work();
            let died = || Err(FileError::thread_died());
            started.into_iter().map(|thread| thread.join().unwrap_or_else(|_| died())).chain([own]).collect()
        })
    }
}
