//! From paths to headers: regular files only, opened without waiting, on several threads.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::HeaderError;
use crate::gguf::{Gguf, parse_gguf};
use crate::parse::{Entry, parse};
use crate::{ALL_HEADERS_BYTES, HEADER_BYTES};

const FILES_PER_THREAD: usize = 8;
const THREADS: usize = 8;

/// The tensors of one file.
///
/// # Errors
///
/// Whatever keeps its header from being read or trusted.
pub fn read_file(path: &Path) -> Result<Vec<Entry>, HeaderError> {
    read_within(path, &AtomicU64::new(0))
}

/// The tensors of many files, in their order; of those that fail, the first.
///
/// # Errors
///
/// The index of a file, and what is wrong with it.
pub fn read_files(paths: &[PathBuf]) -> Result<Vec<Vec<Entry>>, (usize, HeaderError)> {
    let read_bytes = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = paths.len().div_ceil(FILES_PER_THREAD).clamp(1, cores.min(THREADS));
    let share = paths.len().div_ceil(threads).max(1);
    let read = |part: &[PathBuf]| -> Vec<_> { part.iter().map(|path| read_within(path, &read_bytes)).collect() };
    let results: Vec<Result<Vec<Entry>, HeaderError>> = std::thread::scope(|scope| {
        let workers: Vec<_> = paths.chunks(share).map(|part| scope.spawn(|| read(part))).collect();
        let died = || vec![Err(HeaderError::Unreadable("a reading thread died".to_string()))];
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|_| died())).collect()
    });
    results.into_iter().enumerate().map(|(index, result)| result.map_err(|error| (index, error))).collect()
}

/// The headers of GGUF files, in their order; of those that fail, the first.
///
/// # Errors
///
/// The index of a file, and what is wrong with it.
pub fn read_gguf_files(paths: &[PathBuf]) -> Result<Vec<Gguf>, (usize, HeaderError)> {
    let mut left_bytes = ALL_HEADERS_BYTES;
    let mut read = |path: &Path| {
        let (file, file_bytes) = open_regular(path)?;
        let most_bytes = left_bytes.min(HEADER_BYTES);
        let (gguf, header_bytes) = parse_gguf(BufReader::new(file), file_bytes, most_bytes)?;
        left_bytes -= header_bytes;
        Ok(gguf)
    };
    paths.iter().enumerate().map(|(index, path)| read(path).map_err(|error| (index, error))).collect()
}

/// All of a regular file that is not too large.
pub(crate) fn read_whole(path: &Path, most_bytes: u64) -> Result<Vec<u8>, HeaderError> {
    let (file, file_bytes) = open_regular(path)?;
    if file_bytes > most_bytes {
        return Err(HeaderError::FileTooLarge(file_bytes, most_bytes));
    }
    let mut content = Vec::with_capacity(usize::try_from(file_bytes).unwrap_or(0));
    file.take(most_bytes).read_to_end(&mut content).map_err(|error| from_io(&error))?;
    Ok(content)
}

fn read_within(path: &Path, read_bytes: &AtomicU64) -> Result<Vec<Entry>, HeaderError> {
    let (mut file, file_bytes) = open_regular(path)?;
    if file_bytes < 8 {
        return Err(HeaderError::TooShort(file_bytes));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|error| from_io(&error))?;
    let said = u64::from_le_bytes(length);
    if said > HEADER_BYTES {
        return Err(HeaderError::HeaderTooLarge { said, most: HEADER_BYTES });
    }
    if said > file_bytes - 8 {
        return Err(HeaderError::HeaderTruncated { said, file_bytes });
    }
    if read_bytes.fetch_add(said, Ordering::Relaxed) + said > ALL_HEADERS_BYTES {
        return Err(HeaderError::AllHeadersTooLarge(ALL_HEADERS_BYTES));
    }
    let mut header =
        vec![0; usize::try_from(said).map_err(|_| HeaderError::HeaderTooLarge { said, most: HEADER_BYTES })?];
    file.read_exact(&mut header).map_err(|error| from_io(&error))?;
    parse(&header, file_bytes - 8 - said)
}

/// The file and its length; what was opened is looked at, so no other file can take its place meanwhile.
fn open_regular(path: &Path) -> Result<(File, u64), HeaderError> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // A pipe would keep the caller waiting until another process writes into it.
        options.custom_flags(libc::O_NONBLOCK);
    }
    let file = options.open(path).map_err(|error| from_io(&error))?;
    let metadata = file.metadata().map_err(|error| from_io(&error))?;
    if !metadata.is_file() {
        let is_directory = metadata.is_dir();
        return Err(HeaderError::NotRegular(if is_directory { "a directory" } else { "a pipe, socket or device" }));
    }
    Ok((file, metadata.len()))
}

pub(crate) fn from_io(error: &std::io::Error) -> HeaderError {
    match error.kind() {
        ErrorKind::NotFound => HeaderError::Missing,
        ErrorKind::PermissionDenied => HeaderError::Denied,
        ErrorKind::UnexpectedEof => HeaderError::Unreadable("it became shorter while it was read".to_string()),
        _ => HeaderError::Unreadable(error.to_string()),
    }
}
