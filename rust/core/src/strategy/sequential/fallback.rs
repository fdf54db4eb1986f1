//! First row in preorder, from a given one on, that is small enough and may be placed on its own.

use crate::ids::{NodeId, id_at};
use crate::model::layout::Layout;

const NEVER: i64 = i64::MAX;

/// A tree of minima over the rows.
#[derive(Debug)]
pub(crate) struct SmallRows {
    least: Vec<i64>,
    width: usize,
}

impl SmallRows {
    /// Rows whose ancestors may all be split.
    pub(crate) fn new(layout: &Layout) -> Self {
        let tree = layout.tree();
        let width = tree.len().next_power_of_two();
        let mut least = vec![NEVER; 2 * width];
        for node in 1..id_at(tree.len()) {
            let parent = tree.parent(node);
            // INVARIANT: parents come before children, so `least` of the parent says whether it is open itself.
            let is_open = parent == 0 || (layout.can_split(parent) && least[width + parent as usize] != NEVER);
            if is_open && !layout.is_alias(node) {
                least[width + node as usize] = layout.formula_bits(node);
            }
        }
        for index in (1..width).rev() {
            least[index] = least[2 * index].min(least[2 * index + 1]);
        }
        Self { least, width }
    }

    /// The first row at or after `from` of at most `limit` bits.
    pub(crate) fn next(&self, from: NodeId, limit_bits: i64) -> Option<NodeId> {
        let mut index = self.width + from as usize;
        if index >= 2 * self.width {
            return None;
        }
        // Up to the first subtree to the right that holds such a row, then down to its first one.
        while self.least[index] > limit_bits {
            while index & 1 == 1 {
                index /= 2;
                if index <= 1 {
                    return None;
                }
            }
            index += 1;
        }
        while index < self.width {
            index *= 2;
            if self.least[index] > limit_bits {
                index += 1;
            }
        }
        Some(id_at(index - self.width))
    }

    /// Bits of a row, if it has not been taken out.
    pub(crate) fn bits(&self, row: NodeId) -> Option<i64> {
        Some(self.least[self.width + row as usize]).filter(|&bits| bits != NEVER)
    }

    /// Takes a row out for good.
    pub(crate) fn forget(&mut self, node: NodeId) {
        let mut index = self.width + node as usize;
        self.least[index] = NEVER;
        while index > 1 {
            index /= 2;
            self.least[index] = self.least[2 * index].min(self.least[2 * index + 1]);
        }
    }
}
