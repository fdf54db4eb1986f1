//! What must hold for any spans: the fuzz target, the properties and the replay of the fuzzer's corpus check the same.

use crate::destination::Destination;
use crate::pages::PageBuffer;
use crate::read::{BytesRead, ReadError, read_spans};
use crate::spans::Span;
use crate::stored_file::Handle;

const BUFFER_BYTES: usize = 200_000;
/// What the buffer holds before.
const UNTOUCHED: u8 = 0xA5;

/// The byte at an offset of the file that [`replay_spans`] wants.
pub fn replayed_byte(offset: u64) -> u8 {
    let [low, middle, high, ..] = offset.to_le_bytes();
    low ^ middle.wrapping_mul(7) ^ high.wrapping_mul(13)
}

/// Reads bytes as spans, and these from a file that holds [`replayed_byte`] everywhere; asserts that exactly they are read,
/// or that all are refused and nothing is.
///
/// # Panics
///
/// If the reader breaks its promises.
pub fn replay_spans(file: &Handle, content: &[u8]) {
    let Some((&[how, shift], rows)) = content.split_first_chunk::<2>() else { return };
    let spans: Vec<Span> = rows.chunks_exact(7).map_while(|row| row.first_chunk().copied()).map(span).collect();
    let Ok(mut pages) = PageBuffer::new(BUFFER_BYTES + usize::from(shift)) else { return };
    let buffer = &mut pages.as_mut_slice()[usize::from(shift)..][..BUFFER_BYTES];
    buffer.fill(UNTOUCHED);
    let (is_direct, threads) = (how % 2 == 0, usize::from(how / 2 % 5));
    let read = read_spans(&[file], &spans, Destination::from(&mut *buffer), is_direct, threads);
    let Some(expected) = expected(file, &spans) else {
        assert!(matches!(read, Err(ReadError::Spans(_) | ReadError::EndOfFile { .. })), "{read:?}: {spans:?}");
        assert!(buffer.iter().all(|&byte| byte == UNTOUCHED), "{spans:?}");
        return;
    };
    let asked: u64 = spans.iter().map(|span| span.end - span.begin).sum();
    let is_right = |read: &BytesRead| read.total == asked && read.direct <= if is_direct { asked } else { 0 };
    assert!(read.as_ref().is_ok_and(is_right), "{read:?}: {spans:?}");
    assert!(expected == buffer, "{spans:?}");
}

/// Most rows are spans that can be read; some name another file, lie far behind everything, or end before they begin.
fn span([kind, begin @ .., at, at_high]: [u8; 7]) -> Span {
    let [begin, begin_high, bytes, bytes_high] = begin.map(u64::from);
    let (begin, bytes) = ((begin | begin_high << 8) * 3, bytes | bytes_high << 8);
    let at = (u64::from(at) | u64::from(at_high) << 8) * 3;
    let usual = Span { file: 0, begin, end: begin + bytes, at };
    match kind {
        1 => Span { file: 1, ..usual },
        2 => Span { begin: u64::MAX - begin - bytes, end: u64::MAX - begin, ..usual },
        3 => Span { at: u64::MAX - at, ..usual },
        4 => Span { begin: begin + bytes + 1, end: begin, ..usual },
        5 => Span { end: u64::MAX, ..usual },
        _ => usual,
    }
}

/// The buffer as it should be; None where the spans are to be refused.
fn expected(file: &Handle, spans: &[Span]) -> Option<Vec<u8>> {
    let mut buffer = vec![UNTOUCHED; BUFFER_BYTES];
    let mut is_written = vec![false; BUFFER_BYTES];
    for &Span { file: number, begin, end, at } in spans {
        let bytes = end.checked_sub(begin)?;
        if number > 0 || at.checked_add(bytes)? > BUFFER_BYTES as u64 || (bytes > 0 && end > file.size_bytes()) {
            return None;
        }
        let at = usize::try_from(at).ok()?;
        for (place, offset) in (at..).zip(begin..end) {
            if std::mem::replace(&mut is_written[place], true) {
                return None;
            }
            buffer[place] = replayed_byte(offset);
        }
    }
    Some(buffer)
}
