//! A file's bytes as memory: private, so that what is written there reaches no file and no other process.

use std::fs::File;

use crate::cached::page_bytes;
use crate::error::FileError;

#[cfg_attr(unix, path = "mapping/unix.rs")]
#[cfg_attr(not(unix), path = "mapping/elsewhere.rs")]
mod system;

/// Bytes of one request; others get their turn between two.
const ANNOUNCED_BYTES: u64 = 8 << 20;

/// Bytes of a file that are to lie at a place of a mapping.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The file.
    pub file: &'a File,
    /// Its first byte there.
    pub begin: u64,
    /// The byte behind the last.
    pub end: u64,
}

/// All bytes of a file, or of pieces of files one after the other, mapped. Pages come from the page cache; one that is written to becomes the process's own.
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
        Ok(Self { memory: system::Mapped::of(file, address(size_bytes)?)? })
    }

    /// Maps pieces so that each begins where the one before ends, and says at which byte of the mapping the first begins.
    ///
    /// None where that cannot be: a page of memory is a page of a file, so all pieces have to begin at the same place of a page as they will
    /// in memory. The few pages in which one piece ends and the next begins are read, the others are the page cache's own.
    ///
    /// # Errors
    ///
    /// Whatever the system says, which may allow no more mappings; more bytes than addresses.
    pub fn of_pieces(pieces: &[Piece<'_>]) -> Result<Option<(Self, usize)>, FileError> {
        let page = page_bytes();
        let first = pieces.iter().find(|piece| piece.begin < piece.end).map_or(0, |piece| piece.begin % page);
        let mut rows: Vec<system::Placed<'_>> = Vec::with_capacity(pieces.len());
        let mut at = first;
        for piece in pieces.iter().filter(|piece| piece.begin < piece.end) {
            if piece.begin % page != at % page {
                return Ok(None);
            }
            let next = at.checked_add(piece.end - piece.begin).ok_or_else(too_many)?;
            match rows.last_mut() {
                // What lies together in the file needs no border.
                Some(last) if std::ptr::eq(last.piece.file, piece.file) && last.piece.end == piece.begin => {
                    last.piece.end = piece.end;
                }
                _ => rows.push(system::Placed { piece: *piece, at: address(at)? }),
            }
            at = next;
        }
        let memory = system::Mapped::of_pieces(&rows, address(at)?, address(page)?)?;
        Ok(Some((Self { memory }, address(first)?)))
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

fn address(bytes: u64) -> Result<usize, FileError> {
    usize::try_from(bytes).map_err(|_| too_many())
}

fn too_many() -> FileError {
    FileError::Unreadable("it has more bytes than this machine can address".to_string())
}
