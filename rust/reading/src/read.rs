//! Reading spans of files into memory, several pieces at once.

use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::destination::Destination;
use crate::direct::Aside;
use crate::error::FileError;
use crate::spans::{Piece, Span, SpanError, pieces};
use crate::stored_file::Handle;

/// Most reads in flight.
const THREADS: usize = 64;

/// Bytes that were read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BytesRead {
    /// All of them.
    pub total: u64,
    /// Of these, past the page cache.
    pub direct: u64,
}

/// Why spans could not be read. Where it is about a file, some of the memory may have been written to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Spans that cannot be meant.
    #[error(transparent)]
    Spans(#[from] SpanError),
    /// The file ends before a span does.
    #[error("ends at byte {end}; bytes {begin} to {wanted_end} were to be read")]
    EndOfFile {
        /// Place of the file in the list of files.
        file: usize,
        /// First byte that was to be read.
        begin: u64,
        /// Byte behind the last that was to be read.
        wanted_end: u64,
        /// Where it ends.
        end: u64,
    },
    /// The system refuses to read.
    #[error("at byte {offset}: {error}")]
    File {
        /// Place of the file in the list of files.
        file: usize,
        /// Where.
        offset: u64,
        /// What it says.
        error: FileError,
    },
}

impl ReadError {
    /// Place of the file that it is about.
    pub fn file(&self) -> Option<usize> {
        match self {
            Self::Spans(_) => None,
            Self::EndOfFile { file, .. } | Self::File { file, .. } => Some(*file),
        }
    }
}

/// Reads spans of files into memory; what lies between them in the memory is not written to.
///
/// `direct` reads past the page cache where the file system lets it, and drops from the page cache what was read where it
/// does not. As many as `threads` pieces of 8 MiB are read at once.
///
/// # Errors
///
/// Spans that overlap or lie outside of files or memory, before anything is read; whatever the system says; a file that
/// became shorter.
pub fn read_spans(
    files: &[&Handle],
    spans: &[Span],
    destination: Destination<'_>,
    direct: bool,
    threads: usize,
) -> Result<BytesRead, ReadError> {
    let pieces = pieces(spans, files.len(), destination)?;
    for span in spans.iter().filter(|span| span.begin < span.end) {
        let end = files.get(span.file).map_or(0, |handle| handle.size_bytes());
        if span.end > end {
            return Err(ReadError::EndOfFile { file: span.file, begin: span.begin, wanted_end: span.end, end });
        }
    }
    let others = threads.clamp(1, THREADS).min(pieces.len()).saturating_sub(1);
    let queue = Queue { pieces: Mutex::new(pieces.into_iter()), has_failed: AtomicBool::new(false) };
    let work = || queue.work(files, direct);
    let results: Vec<Result<BytesRead, ReadError>> = std::thread::scope(|scope| {
        // A thread that the system does not give is one read in flight less.
        let started: Vec<_> =
            (0..others).map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let own = work();
        let died = || Err(ReadError::File { file: 0, offset: 0, error: FileError::thread_died() });
        started.into_iter().map(|thread| thread.join().unwrap_or_else(|_| died())).chain([own]).collect()
    });
    let mut read = BytesRead::default();
    for result in results {
        let part = result?;
        read.total += part.total;
        read.direct += part.direct;
    }
    Ok(read)
}

/// Pieces that no thread has taken yet.
struct Queue<'memory> {
    pieces: Mutex<std::vec::IntoIter<Piece<'memory>>>,
    has_failed: AtomicBool,
}

impl<'memory> Queue<'memory> {
    fn take(&self) -> Option<Piece<'memory>> {
        if self.has_failed.load(Ordering::Relaxed) {
            return None; // what the others read is of no use
        }
        self.pieces.lock().ok()?.next()
    }

    /// Reads pieces until there are none.
    fn work(&self, files: &[&Handle], direct: bool) -> Result<BytesRead, ReadError> {
        let mut aside = Aside::default();
        let mut read = BytesRead::default();
        while let Some(piece) = self.take() {
            let bytes = piece.memory.len() as u64;
            let Some(handle) = files.get(piece.file) else { continue }; // `pieces` has checked it
            match read_piece(handle, piece, direct, &mut aside) {
                Ok(directly) => {
                    read.total += bytes;
                    read.direct += directly;
                }
                Err(error) => {
                    self.has_failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(read)
    }
}

/// Bytes that were read directly; the others came through the page cache.
fn read_piece(handle: &Handle, piece: Piece<'_>, direct: bool, aside: &mut Aside) -> Result<u64, ReadError> {
    let Piece { file, begin, memory } = piece;
    let fault = |offset: u64, error: FileError| ReadError::File { file, offset, error };
    let direct_handle = if direct { handle.direct() } else { None };
    let directly = match direct_handle {
        Some(direct) => direct.read(memory, begin, aside).map_err(|error| fault(begin, error.into()))?,
        None => 0,
    };
    let mut done = directly;
    while done < memory.len() {
        let offset = begin + done as u64;
        match read_at(handle.file(), &mut memory[done..], offset).map_err(|error| fault(offset, error.into()))? {
            0 => {
                let end = handle.file().metadata().map_or(offset, |now| now.len().min(offset));
                return Err(ReadError::EndOfFile { file, begin, wanted_end: begin + memory.len() as u64, end });
            }
            got => done += got,
        }
    }
    if direct && directly < done {
        forget(handle.file(), begin + directly as u64, (done - directly) as u64);
    }
    Ok(directly as u64)
}

/// One read; interrupted ones are tried again.
fn read_at(file: &File, memory: &mut [u8], offset: u64) -> Result<usize, std::io::Error> {
    loop {
        #[cfg(unix)]
        let got = std::os::unix::fs::FileExt::read_at(file, memory, offset);
        #[cfg(windows)]
        let got = std::os::windows::fs::FileExt::seek_read(file, memory, offset);
        match got {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Drops bytes from the page cache, as far as they are whole pages that nobody has mapped.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "posix_fadvise is in no safe library that is used here")]
fn forget(file: &File, begin: u64, bytes: u64) {
    use std::os::fd::AsRawFd;
    let (Ok(begin), Ok(bytes)) = (libc::off_t::try_from(begin), libc::off_t::try_from(bytes)) else { return };
    // SAFETY: the handle is open as long as `file` is borrowed. Advice that is refused changes nothing.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), begin, bytes, libc::POSIX_FADV_DONTNEED) };
}

#[cfg(not(target_os = "linux"))]
fn forget(_file: &File, _begin: u64, _bytes: u64) {}
