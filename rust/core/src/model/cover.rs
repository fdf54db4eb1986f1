//! Which tensors keys cover: a key covers itself and all that is inside.

use std::collections::HashSet;

use crate::ids::NodeId;
use crate::model::tree::{Kind, Tree};

/// Which tensors need a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// All.
    All,
    /// Those that are saved with the model.
    Saved,
}

/// What is wrong with keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Uncovered {
    /// Keys that name nothing, by their place in the list, ascending.
    pub unknown: Vec<usize>,
    /// Tensors that no key covers, as a state dict lists them: a module's own before those of its children.
    pub rows: Vec<NodeId>,
}

impl Tree {
    /// Keys that name nothing, and tensors that no key covers.
    ///
    /// # Cost
    ///
    /// O(rows + parts of keys), and sorting what is not covered.
    pub fn uncovered(&self, keys: &[String], needed: Needed) -> Uncovered {
        let found = self.resolve(keys);
        let known: HashSet<NodeId> = found.iter().flatten().copied().collect();
        let unknown = (0..keys.len()).filter(|&key| found[key].is_none()).collect();
        let mut rows = Vec::new();
        let mut node = 0;
        while (node as usize) < self.len() {
            if known.contains(&node) {
                node = self.end(node);
                continue;
            }
            let is_needed = match self.kind(node) {
                Kind::Module => false,
                Kind::Parameter | Kind::Buffer => true,
                Kind::NonPersistentBuffer => needed == Needed::All,
            };
            if is_needed {
                rows.push(node);
            }
            node += 1;
        }
        rows.sort_by_key(|&node| (self.parent(node), node));
        Uncovered { unknown, rows }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Needed;
    use crate::model::builder::TreeBuilder;
    use crate::model::tree::{DType, Kind, Tensor, Tree};
    use crate::testing::tree;

    fn uncovered(tree: &Tree, keys: &[&str], needed: Needed) -> (Vec<usize>, Vec<String>) {
        let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        let found = tree.uncovered(&keys, needed);
        (found.unknown, found.rows.into_iter().map(|row| tree.full_name(row)).collect())
    }

    #[test]
    fn a_key_covers_all_that_is_inside() {
        let tree = tree(&["w 1", "a.b.w 1", "a.bc.w 1", "a.~s 1"]);
        let of = |keys: &[&str]| uncovered(&tree, keys, Needed::All);
        assert_eq!(of(&[""]), (vec![], vec![]));
        assert_eq!(of(&["a.b", "w"]), (vec![], vec!["a.s".to_string(), "a.bc.w".to_string()]), "not a.bc");
        assert_eq!(of(&["x", "a", "a.x", "w"]), (vec![0, 2], vec![]));
    }

    #[test]
    fn what_no_file_holds_is_left_out_where_only_saved_tensors_are_needed() {
        let mut builder = TreeBuilder::new();
        let dtype = builder.dtype(DType { formula_bits: 8, stored_bits: 8, castable: true });
        for (name, kind) in [("saved", Kind::Buffer), ("scratch", Kind::NonPersistentBuffer)] {
            let tensor = builder.tensor(Tensor { numel: 1, dtype, opaque_bytes: None, width: 0 });
            builder.leaf(name, kind, tensor).unwrap();
        }
        let tree = builder.finish();
        assert_eq!(uncovered(&tree, &[], Needed::All).1, ["saved", "scratch"]);
        assert_eq!(uncovered(&tree, &[], Needed::Saved).1, ["saved"]);
    }
}
