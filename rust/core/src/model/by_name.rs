//! Options that name modules and tensors, turned into rows; names that the tree does not have are left out.

use std::collections::{HashMap, HashSet};

use crate::ids::{NodeId, TensorId};
use crate::model::cutting::{BlockOptions, Granularity};
use crate::model::options::{Cast, Dialect, Explicit, LayoutOptions, Tied};
use crate::model::tree::Tree;

/// Bits per element of one tensor that is loaded with a dtype of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialDtype {
    /// Its name.
    pub name: String,
    /// Bits per element by accelerate's `dtype_byte_size`.
    pub formula_bits: u64,
    /// Bits per element as stored.
    pub planned_bits: u64,
}

/// [`LayoutOptions`] by name.
#[derive(Debug, Clone, Default)]
pub struct NamedLayoutOptions {
    /// Exact class names of modules that stay on one device.
    pub no_split_classes: Vec<String>,
    /// Modules that may be taken apart all the same.
    pub containers: Vec<String>,
    /// Whose rules.
    pub dialect: Dialect,
    /// The dtype of the load, if it differs.
    pub cast: Option<Cast>,
    /// Tensors with a dtype of their own.
    pub special: Vec<SpecialDtype>,
    /// Tensors and their bits; these win over a dtype.
    pub sizes: Vec<(String, u64)>,
    /// Groups that are, or will be, one tensor; without any, rows that hold the same object are.
    pub tied: Option<Vec<Vec<String>>>,
    /// Tied names that the formula does not count; read only beside `tied`.
    pub uncounted: Vec<String>,
    /// Tensors that need no place when their block is taken apart, by names relative to the block.
    pub exempt: Vec<String>,
}

impl NamedLayoutOptions {
    /// The same by row.
    pub fn resolve(self, tree: &Tree) -> LayoutOptions {
        let tied = match &self.tied {
            None => Tied::ByIdentity,
            Some(groups) => Tied::Named {
                groups: groups.iter().map(|group| rows(tree, group)).collect(),
                uncounted: rows(tree, &self.uncounted),
            },
        };
        LayoutOptions {
            exempt: exempt_rows(tree, &self.no_split_classes, &self.exempt),
            explicit: explicit_sizes(tree, &self.special, &self.sizes),
            containers: rows(tree, &self.containers),
            no_split_classes: self.no_split_classes,
            dialect: self.dialect,
            cast: self.cast,
            tied,
        }
    }
}

/// [`BlockOptions`] by name.
#[derive(Debug, Clone, Default)]
pub struct NamedBlockOptions {
    /// Modules that stay whole, whatever their class.
    pub no_split: Vec<String>,
    /// Modules that are taken apart though their class says otherwise.
    pub split: Vec<String>,
    /// Modules, or tensors of modules, that are blocks of their own where they lie inside a block.
    pub apart: Vec<String>,
    /// How fine.
    pub granularity: Granularity,
    /// Groups that share a home.
    pub keep_together: Vec<Vec<String>>,
}

impl NamedBlockOptions {
    /// The same by row.
    pub fn resolve(&self, tree: &Tree) -> BlockOptions {
        BlockOptions {
            no_split_rows: rows(tree, &self.no_split),
            split_rows: rows(tree, &self.split),
            apart_rows: rows(tree, &self.apart),
            granularity: self.granularity,
            keep_together: self.keep_together.iter().map(|names| rows(tree, names)).collect(),
        }
    }
}

fn rows(tree: &Tree, names: &[String]) -> Vec<NodeId> {
    tree.resolve(names).into_iter().flatten().collect()
}

/// Sizes of single tensors; where one is named in both lists, the later of the two entries counts by the formula.
fn explicit_sizes(tree: &Tree, special: &[SpecialDtype], sizes: &[(String, u64)]) -> Vec<Explicit> {
    let special_names: Vec<&str> = special.iter().map(|special| special.name.as_str()).collect();
    let size_names: Vec<&str> = sizes.iter().map(|(name, _)| name.as_str()).collect();
    let mut explicit = Vec::new();
    for (row, special) in tree.resolve(&special_names).into_iter().zip(special) {
        let Some((node, id)) = row.and_then(|node| Some((node, tree.tensor_id(node)?))) else { continue };
        let (tensor, _) = tree.tensor(id);
        explicit.push(Explicit {
            node,
            formula_bits: tensor.numel.saturating_mul(special.formula_bits),
            planned_bits: tensor.numel.saturating_mul(special.planned_bits),
        });
    }
    for (row, &(_, bits)) in tree.resolve(&size_names).into_iter().zip(sizes) {
        explicit.extend(row.map(|node| Explicit { node, formula_bits: bits, planned_bits: bits }));
    }
    explicit
}

/// Tensors that a block of a no-split class knows by one of these names, relative to itself; blocks inside blocks are never
/// treated, so names relative to those do not count.
fn exempt_rows(tree: &Tree, no_split: &[String], exempt: &[String]) -> Vec<NodeId> {
    let wanted: HashSet<&str> = exempt.iter().map(String::as_str).collect();
    let mut rows = Vec::new();
    let mut node = 1;
    while !wanted.is_empty() && (node as usize) < tree.len() {
        if !tree.class_name(node).is_some_and(|class| no_split.iter().any(|name| name == class)) {
            node += 1;
            continue;
        }
        // A parameter goes by the first of its names there; one with a name that is not meant needs a place after all.
        let prefix = tree.full_name(node).len() + 1;
        let mut named: HashMap<TensorId, Vec<(NodeId, bool)>> = HashMap::new();
        for row in node..tree.end(node) {
            if let Some(id) = tree.tensor_id(row) {
                let is_meant = wanted.contains(&tree.full_name(row)[prefix..]);
                named.entry(id).or_default().push((row, is_meant));
            }
        }
        let meant = named.into_values().filter(|names| names.iter().all(|&(_, is_meant)| is_meant));
        rows.extend(meant.flatten().map(|(row, _)| row));
        node = tree.end(node);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::{NamedBlockOptions, NamedLayoutOptions, SpecialDtype};
    use crate::model::options::{Explicit, LayoutOptions, Tied};
    use crate::model::tree::Tree;
    use crate::testing::tree;

    fn texts(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    fn names(tree: &Tree, rows: &[u32]) -> Vec<String> {
        let mut names: Vec<String> = rows.iter().map(|&row| tree.full_name(row)).collect();
        names.sort_unstable();
        names
    }

    /// What is exempt in blocks of class `B` under these names.
    fn exempt(tree: &Tree, exempt: &[&str]) -> Vec<String> {
        let options = NamedLayoutOptions {
            no_split_classes: texts(&["B"]),
            exempt: texts(exempt),
            ..NamedLayoutOptions::default()
        };
        names(tree, &options.resolve(tree).exempt)
    }

    #[test]
    fn names_that_the_tree_lacks_are_left_out() {
        let tree = tree(&["a.w 2", "b.w 3"]);
        let options = NamedLayoutOptions {
            containers: texts(&["a", "nowhere"]),
            tied: Some(vec![texts(&["a.w", "b.w", "x"]), texts(&["y"])]),
            uncounted: texts(&["b.w", "y"]),
            ..NamedLayoutOptions::default()
        };
        let LayoutOptions { containers, tied, .. } = options.resolve(&tree);
        assert_eq!(names(&tree, &containers), ["a"]);
        let Tied::Named { groups, uncounted } = tied else { unreachable!("groups were said") };
        assert_eq!((names(&tree, &groups[0]), groups[1].len()), (texts(&["a.w", "b.w"]), 0));
        assert_eq!(names(&tree, &uncounted), ["b.w"]);
        let blocks = NamedBlockOptions {
            split: texts(&["b", "x"]),
            keep_together: vec![texts(&["a", "b"])],
            ..NamedBlockOptions::default()
        };
        let blocks = blocks.resolve(&tree);
        assert_eq!(
            (names(&tree, &blocks.split_rows), names(&tree, &blocks.keep_together[0])),
            (texts(&["b"]), texts(&["a", "b"]))
        );
    }

    #[test]
    fn sizes_are_bits_of_tensors_and_dtypes_bits_of_elements() {
        let tree = tree(&["a.w 2", "b.w 3"]);
        let special = |name: &str| SpecialDtype { name: name.to_string(), formula_bits: 4, planned_bits: 32 };
        let options = NamedLayoutOptions {
            special: vec![special("a.w"), special("a"), special("x")],
            sizes: vec![("b.w".to_string(), 7), ("x".to_string(), 9)],
            ..NamedLayoutOptions::default()
        };
        let explicit = options.resolve(&tree).explicit;
        let node = |name: &str| tree.resolve(&[name])[0].unwrap_or_default();
        let expected = [
            Explicit { node: node("a.w"), formula_bits: 8, planned_bits: 64 },
            Explicit { node: node("b.w"), formula_bits: 7, planned_bits: 7 },
        ];
        assert_eq!(explicit, expected, "a module has no dtype");
    }

    #[test]
    fn what_is_exempt_goes_by_names_relative_to_the_outermost_block() {
        let tree = tree(&["l:B.m.w 1", "l:B.m.in:B.w 1", "w 1", "o.m.w 1"]);
        assert_eq!(exempt(&tree, &["m.w"]), ["l.m.w"], "neither inside the inner block nor outside of any");
        assert_eq!(exempt(&tree, &["m.in.w", "w"]), ["l.m.in.w"]);
        assert_eq!(exempt(&tree, &[]), [""; 0]);
    }

    #[test]
    fn a_parameter_with_a_name_that_is_not_meant_needs_a_place() {
        let tree = tree(&["l:B.m.w 1 k", "l:B.n.w 1 k"]);
        assert_eq!(exempt(&tree, &["m.w"]), [""; 0]);
        assert_eq!(exempt(&tree, &["m.w", "n.w"]), ["l.m.w", "l.n.w"]);
    }
}
