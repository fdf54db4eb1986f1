//! From paths or open files to headers: regular files only, opened without waiting, on several threads.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use planner_reading::{FileError, StoredFile, open_regular, read_exact_at};

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
    read_path(path, &AtomicU64::new(0))
}

/// The tensors of many files, in their order; of those that fail, the first.
///
/// # Errors
///
/// The index of a file, and what is wrong with it.
pub fn read_files(paths: &[PathBuf]) -> Result<Vec<Vec<Entry>>, (usize, HeaderError)> {
    read_all(paths, |path, read_bytes| read_path(path, read_bytes))
}

/// The same of files that are open; their offsets are neither used nor moved.
///
/// # Errors
///
/// The index of a file, and what is wrong with it.
pub fn read_open_files(files: &[&StoredFile]) -> Result<Vec<Vec<Entry>>, (usize, HeaderError)> {
    read_all(files, |file, read_bytes| {
        let handle = file.handle()?;
        let metadata = handle.file().metadata().map_err(FileError::from)?;
        read_header(handle.file(), metadata.len(), read_bytes)
    })
}

fn read_all<Place: Sync>(
    places: &[Place],
    read: impl Fn(&Place, &AtomicU64) -> Result<Vec<Entry>, HeaderError> + Sync,
) -> Result<Vec<Vec<Entry>>, (usize, HeaderError)> {
    let read_bytes = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = places.len().div_ceil(FILES_PER_THREAD).clamp(1, cores.min(THREADS));
    let share = places.len().div_ceil(threads).max(1);
    let read = |part: &[Place]| -> Vec<_> { part.iter().map(|place| read(place, &read_bytes)).collect() };
    let read = &read;
    let results: Vec<Result<Vec<Entry>, HeaderError>> = std::thread::scope(|scope| {
        let workers: Vec<_> = places.chunks(share).map(|part| scope.spawn(move || read(part))).collect();
        let died = || vec![Err(FileError::Unreadable("a reading thread died".to_string()).into())];
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
    file.take(most_bytes).read_to_end(&mut content).map_err(FileError::from)?;
    Ok(content)
}

fn read_path(path: &Path, read_bytes: &AtomicU64) -> Result<Vec<Entry>, HeaderError> {
    let (file, file_bytes) = open_regular(path)?;
    read_header(&file, file_bytes, read_bytes)
}

fn read_header(file: &File, file_bytes: u64, read_bytes: &AtomicU64) -> Result<Vec<Entry>, HeaderError> {
    if file_bytes < 8 {
        return Err(HeaderError::TooShort(file_bytes));
    }
    let mut length = [0; 8];
    read_exact_at(file, &mut length, 0)?;
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
    read_exact_at(file, &mut header, 8)?;
    parse(&header, file_bytes - 8 - said)
}
