//! Memory that is read into: whoever lends it promises that it is there, and here it is cut into parts that do not overlap.

use std::marker::PhantomData;
use std::ops::Range;

/// Memory of somebody else, for as long as `'memory`.
#[derive(Debug)]
pub struct Destination<'memory> {
    start: *mut u8,
    size: usize,
    memory: PhantomData<&'memory mut [u8]>,
}

impl<'memory> Destination<'memory> {
    /// The bytes from `start` on.
    ///
    /// # Safety
    ///
    /// They must be there, and may be written to, as long as `'memory`; and of those that are read into, nobody may
    /// rely on what they hold meanwhile.
    #[expect(unsafe_code, reason = "memory of the interpreter's objects is known by its address only")]
    pub unsafe fn new(start: *mut u8, size: usize) -> Self {
        Self { start, size, memory: PhantomData }
    }

    /// Bytes of it.
    pub fn size_bytes(&self) -> usize {
        self.size
    }

    /// The memory of ranges that are not empty, follow each other and end inside; or the first of them that does not.
    pub(crate) fn parts(self, ranges: &[Range<usize>]) -> Result<Vec<&'memory mut [u8]>, Range<usize>> {
        let mut end = 0;
        for range in ranges {
            if range.start < end || range.end <= range.start || range.end > self.size {
                return Err(range.clone());
            }
            end = range.end;
        }
        Ok(ranges.iter().map(|range| self.part(range)).collect())
    }

    #[expect(unsafe_code, reason = "as above")]
    fn part(&self, range: &Range<usize>) -> &'memory mut [u8] {
        let start = self.start.wrapping_add(range.start);
        // SAFETY: the only caller has seen that the range is inside and meets no other, and lets go of the whole; that the
        // bytes are there is what `new` was promised.
        unsafe { std::slice::from_raw_parts_mut(start, range.end - range.start) }
    }
}

#[expect(unsafe_code, reason = "as above")]
// SAFETY: it stands for a mutable slice, and these may be sent.
unsafe impl Send for Destination<'_> {}

impl<'memory> From<&'memory mut [u8]> for Destination<'memory> {
    fn from(memory: &'memory mut [u8]) -> Self {
        Self { start: memory.as_mut_ptr(), size: memory.len(), memory: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::Destination;

    #[test]
    fn parts_are_where_they_are_asked_for() {
        let mut memory = [0_u8; 10];
        let mut parts = Destination::from(&mut memory[..]).parts(&[1..3, 3..4, 9..10]).unwrap_or_default();
        for (number, part) in parts.iter_mut().enumerate() {
            part.fill(u8::try_from(number).unwrap_or(0) + 1);
        }
        assert_eq!(memory, [0, 1, 1, 2, 0, 0, 0, 0, 0, 3]);
    }

    #[test]
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    #[expect(clippy::single_range_in_vec_init, reason = "that is what is meant")]
    fn parts_that_overlap_or_end_outside_are_refused() {
        let mut memory = [0_u8; 10];
        for ranges in [&[1..3, 2..4][..], &[4..6, 1..2], &[9..11], &[3..3], &[4..2], &[0..usize::MAX]] {
            assert!(Destination::from(&mut memory[..]).parts(ranges).is_err());
        }
    }
}
