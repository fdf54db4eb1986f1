//! What is to be read, as pieces of a size that a disk likes, each with its own part of the memory.

use crate::destination::Destination;

/// Bytes of one read.
pub(crate) const PIECE_BYTES: u64 = 8 << 20;

/// Bytes of a file, and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Place of the file in the list of files.
    pub file: usize,
    /// First byte in the file.
    pub begin: u64,
    /// Byte behind the last.
    pub end: u64,
    /// Where the first byte goes in the memory.
    pub at: u64,
}

impl Span {
    fn continues_with(&self, next: &Self) -> bool {
        (self.file, self.end, self.at + (self.end - self.begin)) == (next.file, next.begin, next.at)
    }
}

/// Spans that cannot be meant: nothing was read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpanError {
    /// A file that is not in the list.
    #[error("span of file number {file}, but there are {files} files")]
    NoSuchFile {
        /// Place that was asked for.
        file: usize,
        /// Length of the list.
        files: usize,
    },
    /// It ends before it begins.
    #[error("a span from byte {begin} to {end} ends before it begins")]
    Backwards {
        /// First byte.
        begin: u64,
        /// Byte behind the last.
        end: u64,
    },
    /// The memory ends before the span does.
    #[error("{bytes} bytes at {at} of a buffer that has {buffer_bytes}")]
    OutsideBuffer {
        /// Bytes of the span.
        bytes: u64,
        /// Where they should go.
        at: u64,
        /// Bytes of the memory.
        buffer_bytes: usize,
    },
    /// Two spans go to one place.
    #[error("two spans are to be written to byte {at} of the buffer")]
    Overlapping {
        /// The first byte that both have.
        at: u64,
    },
}

/// What is read by one call to the system.
#[derive(Debug)]
pub(crate) struct Piece<'memory> {
    pub(crate) file: usize,
    pub(crate) begin: u64,
    pub(crate) memory: &'memory mut [u8],
}

/// The pieces of spans, in the order of the files; spans that lie together in file and memory are one.
///
/// # Errors
///
/// Spans of files that are not there, outside of the memory or over each other.
pub(crate) fn pieces<'memory>(
    spans: &[Span],
    files: usize,
    destination: Destination<'memory>,
) -> Result<Vec<Piece<'memory>>, SpanError> {
    let buffer_bytes = destination.size_bytes();
    for span in spans {
        check(span, files, buffer_bytes)?;
    }
    let mut filled: Vec<Span> = spans.iter().filter(|span| span.begin < span.end).copied().collect();
    filled.sort_unstable_by_key(|span| span.at);
    let cut: Vec<Span> = joined(&filled).iter().flat_map(cut).collect();
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX); // all are inside of the buffer
    let ranges: Vec<_> = cut.iter().map(|span| size(span.at)..size(span.at + (span.end - span.begin))).collect();
    let overlapping = |range: std::ops::Range<usize>| SpanError::Overlapping { at: range.start as u64 };
    let parts = destination.parts(&ranges).map_err(overlapping)?;
    let piece = |(span, memory): (&Span, _)| Piece { file: span.file, begin: span.begin, memory };
    let mut pieces: Vec<_> = cut.iter().zip(parts).map(piece).collect();
    pieces.sort_by_key(|piece| (piece.file, piece.begin));
    Ok(pieces)
}

fn check(span: &Span, files: usize, buffer_bytes: usize) -> Result<(), SpanError> {
    let &Span { file, begin, end, at } = span;
    if file >= files {
        return Err(SpanError::NoSuchFile { file, files });
    }
    let bytes = end.checked_sub(begin).ok_or(SpanError::Backwards { begin, end })?;
    match at.checked_add(bytes) {
        Some(behind) if behind <= buffer_bytes as u64 => Ok(()),
        _ => Err(SpanError::OutsideBuffer { bytes, at, buffer_bytes }),
    }
}

/// Spans in the order of the memory, those that go on where the one before ends as one.
fn joined(sorted: &[Span]) -> Vec<Span> {
    let mut found: Vec<Span> = Vec::with_capacity(sorted.len());
    for span in sorted {
        match found.last_mut() {
            Some(last) if last.continues_with(span) => last.end = span.end,
            _ => found.push(*span),
        }
    }
    found
}

/// A span as spans of at most one piece, cut where the file has whole pages.
fn cut(span: &Span) -> impl Iterator<Item = Span> + use<> {
    let &Span { file, begin, end, at } = span;
    let first = begin - begin % PIECE_BYTES;
    (0..(end - first).div_ceil(PIECE_BYTES)).map(move |number| {
        let begins = begin.max(first + number * PIECE_BYTES);
        let ends = end.min(first.saturating_add((number + 1) * PIECE_BYTES));
        Span { file, begin: begins, end: ends, at: at + (begins - begin) }
    })
}
