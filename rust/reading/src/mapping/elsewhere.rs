//! Where there is no `mmap`, all of the file is read.

use std::fs::File;

use super::Piece;
use crate::error::FileError;
use crate::open::read_exact_at;
use crate::pages::PageBuffer;

/// Where a piece of a file lies in a mapping.
#[derive(Debug)]
pub(crate) struct Placed<'a> {
    /// The piece.
    pub(crate) piece: Piece<'a>,
    /// Its first byte in the mapping.
    pub(crate) at: usize,
}

/// A copy of files.
#[derive(Debug)]
pub(crate) struct Mapped {
    copy: PageBuffer,
    size: usize,
}

impl Mapped {
    pub(crate) fn of(file: &File, size: usize) -> Result<Self, FileError> {
        let mut copy = PageBuffer::new(size).map_err(|error| FileError::Unreadable(error.to_string()))?;
        read_exact_at(file, &mut copy.as_mut_slice()[..size], 0)?;
        Ok(Self { copy, size })
    }

    pub(crate) fn of_pieces(rows: &[Placed<'_>], size: usize, _page: usize) -> Result<Self, FileError> {
        let mut copy = PageBuffer::new(size).map_err(|error| FileError::Unreadable(error.to_string()))?;
        for Placed { piece, at } in rows {
            let bytes = usize::try_from(piece.end - piece.begin).unwrap_or(size);
            read_exact_at(piece.file, &mut copy.as_mut_slice()[*at..at + bytes], piece.begin)?;
        }
        Ok(Self { copy, size })
    }

    /// Nothing: all is there.
    pub(crate) fn announce(&self, _begin: u64, _end: u64) {}

    pub(crate) fn start(&self) -> *mut u8 {
        self.copy.start()
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }
}
