//! Where there is no `mmap`, all of the file is read.

use std::fs::File;

use crate::error::FileError;
use crate::open::read_exact_at;
use crate::pages::PageBuffer;

/// A copy of a file.
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

    /// Nothing: all is there.
    pub(crate) fn announce(&self, _begin: u64, _end: u64) {}

    pub(crate) fn start(&self) -> *mut u8 {
        self.copy.start()
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }
}
