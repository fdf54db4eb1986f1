//! What must hold for any bytes: the fuzz targets and the test that replays their corpus check the same.

use crate::parse::{Entry, parse};
use crate::{FILE_TENSORS, HEADER_BYTES, parse_gguf, parse_index};

/// Reads bytes as a header, the last two as the length of the data behind it; asserts what callers rely on.
///
/// # Panics
///
/// If the reader accepts a header that breaks its promises.
pub fn replay_header(content: &[u8]) {
    let Some((header, length)) = content.split_last_chunk::<2>() else { return };
    let data_bytes = u64::from(u16::from_le_bytes(*length));
    let Ok(entries) = parse(header, data_bytes) else { return };
    assert!(entries.len() <= FILE_TENSORS);
    assert_eq!(entries.iter().map(Entry::bytes).sum::<u64>(), data_bytes);
    assert!(entries.iter().all(has_bytes_of_its_shape));
    assert!(entries.iter().all(|entry| entry.begin >= 8 + header.len() as u64));
    assert!(entries.windows(2).all(|pair| pair[0].end == pair[1].begin));
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    assert!(names.iter().all(|name| !name.contains('\0')));
    // Whatever is accepted here, the format's own reader accepts.
    assert!(safetensors::SafeTensors::read_metadata(&as_file(header, data_bytes)).is_ok());
}

/// Reads bytes as an index; asserts that every tensor has a file.
///
/// # Panics
///
/// If the reader accepts an index that breaks its promises.
pub fn replay_index(content: &[u8]) {
    let Ok(index) = parse_index(content) else { return };
    assert!(!index.files.is_empty());
    assert!(index.file_of.values().all(|&file| (file as usize) < index.files.len()));
}

/// Reads bytes as a GGUF file; asserts what callers rely on.
///
/// # Panics
///
/// If the reader accepts a header that breaks its promises.
pub fn replay_gguf(content: &[u8]) {
    let file_bytes = content.len() as u64;
    let Ok((gguf, header_bytes)) = parse_gguf(content, file_bytes, HEADER_BYTES) else { return };
    assert!(header_bytes <= file_bytes);
    assert!(gguf.tensors.len() <= FILE_TENSORS);
    let bytes = gguf.tensors.iter().try_fold(0_u64, |sum, tensor| sum.checked_add(tensor.bytes));
    assert!(bytes.is_some_and(|bytes| bytes <= file_bytes - header_bytes));
    let mut names: Vec<&str> = gguf.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    assert!(names.iter().all(|name| !name.contains('\0')));
}

fn has_bytes_of_its_shape(entry: &Entry) -> bool {
    let elements = entry.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    elements.is_some_and(|count| (count * entry.dtype.bitsize()) as u64 == entry.bytes() * 8)
}

fn as_file(header: &[u8], data_bytes: u64) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, &vec![0; usize::try_from(data_bytes).unwrap_or(0)]].concat()
}
