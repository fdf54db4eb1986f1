//! What a reader is told of a model first: what its elements are stored as, and how many layers it has.

use std::collections::HashSet;

use crate::ids::NodeId;
use crate::model::tree::{Tensor, Tree};
use crate::names::is_number;

impl Tree {
    /// Stored bytes of each element type, in the order in which types were registered; each tensor object once.
    pub fn bytes_by_dtype(&self) -> Vec<u64> {
        let mut bytes = vec![0u64; self.dtypes.len()];
        for tensor in &self.tensors {
            let place = &mut bytes[tensor.dtype as usize];
            *place = place.saturating_add(self.stored_bytes(tensor));
        }
        bytes
    }

    /// Length of the main list of repeated layers: of the modules whose children are numbered, and some of one class, the one
    /// that holds most bytes; the outermost of equal ones. 0 without such a list.
    ///
    /// # Cost
    ///
    /// O(rows).
    pub fn layer_count(&self) -> usize {
        let before = self.bytes_before();
        let bytes_in = |node: NodeId| before[self.end(node) as usize] - before[node as usize];
        let lists = self.rows().filter(|&node| self.is_module(node));
        let sized = lists.map(|node| (bytes_in(node), self.repeated_children(node))).filter(|&(_, count)| count > 0);
        sized.fold((0, 0), |best, list| if best.1 == 0 || list.0 > best.0 { list } else { best }).1
    }

    /// Numbered modules directly inside a module, 0 unless two of them are of one class.
    fn repeated_children(&self, node: NodeId) -> usize {
        let numbered = self.children(node).filter(|&child| self.is_module(child) && is_number(self.local_name(child)));
        let (mut count, mut classes) = (0, HashSet::new());
        for child in numbered {
            count += 1;
            classes.insert(self.class_name(child));
        }
        if classes.len() < count { count } else { 0 }
    }

    /// For each row, and behind the last, the stored bytes of all rows before it.
    fn bytes_before(&self) -> Vec<u64> {
        let mut total = 0u64;
        let mut before = vec![0];
        before.extend(self.rows().map(|row| {
            let tensor = self.tensor_id(row).map(|id| &self.tensors[id as usize]);
            total = total.saturating_add(tensor.map_or(0, |tensor| self.stored_bytes(tensor)));
            total
        }));
        before
    }

    /// Lengths of last dimensions, as far as they are known, by every name of a tensor.
    pub fn widths(&self) -> Vec<(String, u64)> {
        let tensors = self.rows().filter_map(|row| Some((row, self.tensors[self.tensor_id(row)? as usize].width)));
        tensors.filter(|&(_, width)| width > 0).map(|(row, width)| (self.full_name(row), width)).collect()
    }

    fn stored_bytes(&self, tensor: &Tensor) -> u64 {
        let bits = self.dtypes[tensor.dtype as usize].stored_bits;
        tensor.opaque_bytes.unwrap_or_else(|| tensor.numel.saturating_mul(bits).div_ceil(8))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::tree;

    #[test]
    fn the_main_list_is_the_outermost_with_most_bytes() {
        let layers = |rows: &[&str]| tree(rows).layer_count();
        assert_eq!(layers(&["embed.w 9", "layers.0.w 1", "layers.1.w 1", "layers.2.w 1"]), 3);
        assert_eq!(layers(&["layers.0.experts.0.w 1", "layers.0.experts.1.w 1", "layers.1.w 1"]), 2, "not the experts");
        assert_eq!(layers(&["vision.0.w 1", "vision.1.w 1", "vision.2.w 1", "text.0.w 5", "text.1.w 5"]), 2);
        assert_eq!(layers(&["a.w 1", "b.w 1"]), 0);
    }

    #[test]
    fn bytes_of_a_dtype_count_each_tensor_once() {
        assert_eq!(tree(&["a.w 3", "b.w 4"]).bytes_by_dtype(), [7]);
    }
}
