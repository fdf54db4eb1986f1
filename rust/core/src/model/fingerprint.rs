//! A digest by which equal layouts are known.

use crate::model::layout::Layout;

impl Layout {
    /// A digest of names, structure, stored sizes and ties: equal layouts have equal ones on every machine.
    pub fn fingerprint(&self) -> u64 {
        let mut digest = Digest::default();
        for row in self.tree().rows() {
            digest.add(u64::from(self.tree().parent(row)));
            digest.add_text(self.tree().local_name(row));
            match self.tree().tensor_id(row) {
                None => digest.add_text(self.tree().class_name(row).unwrap_or_default()),
                Some(id) => {
                    digest.add(u64::from(self.one_tensor[id as usize]));
                    digest.add(self.planned_bits(id).cast_unsigned()); // a size is not negative
                }
            }
        }
        digest.state
    }
}

const FOLD: u64 = 0xa076_1d64_78bd_642f; // odd, with its bits well spread

/// A digest of words, folded by wide multiplications; it depends on nothing but what was added.
struct Digest {
    state: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Digest {
    fn add(&mut self, word: u64) {
        let wide = u128::from(self.state ^ word) * u128::from(FOLD);
        // The sum keeps a state of 0 from swallowing what follows.
        #[allow(clippy::cast_possible_truncation)] // the halves of a word of twice the length
        let (low, high) = (wide as u64, (wide >> 64) as u64);
        self.state = (low ^ high).wrapping_add(FOLD);
    }

    /// Eight bytes at a time, and the length, so that where one text ends and the next begins counts.
    fn add_text(&mut self, text: &str) {
        for chunk in text.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
        self.add(text.len() as u64);
    }
}
