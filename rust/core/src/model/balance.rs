//! Sizes from which the dialects' `get_balanced_memory` computes its caps.

use std::collections::HashSet;

use crate::ids::{NodeId, id_at};
use crate::model::layout::Layout;
use crate::model::sizes::{sum_upwards, tensor_rows};
use crate::model::tree::Kind;
use crate::sets::BitSet;

/// What balanced budgets are made from, in bits of the dialect's formula.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalanceFacts {
    /// The whole model.
    pub total_bits: i64,
    /// Largest among the first module of each no-split class; accelerate looks no further.
    pub first_no_split_bits: i64,
    /// Largest module of any no-split class.
    pub largest_no_split_bits: i64,
    /// Sum over modules that hold tensors and no module that does.
    pub final_modules_bits: i64,
    /// Number of those.
    pub final_module_count: u32,
    /// Largest sum of one module's direct tensors, the root's aside.
    pub largest_direct_bits: i64,
}

/// Which tensors are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// All.
    All,
    /// Buffers only.
    Buffers,
}

impl Layout {
    /// Facts for balanced budgets.
    pub fn balance_facts(&self) -> BalanceFacts {
        let tree = self.tree();
        let listed = self.listed_rows(Counted::All);
        let mut facts = BalanceFacts { total_bits: self.formula_bits(0), ..Default::default() };
        let mut is_final = BitSet::new(tree.len());
        let mut has_inner = BitSet::new(tree.len());
        let mut classes = HashSet::new();
        for &node in listed.iter().filter(|&&node| node != 0 && tree.is_module(node)) {
            is_final.insert(node);
            has_inner.insert(tree.parent(node));
            if self.is_no_split(node) && classes.insert(tree.class_name(node)) {
                facts.first_no_split_bits = facts.first_no_split_bits.max(self.formula_bits(node));
            }
        }
        if self.is_no_split(0) {
            facts.largest_no_split_bits = facts.total_bits;
        }
        for node in 1..id_at(tree.len()) {
            if !tree.is_module(node) {
                continue;
            }
            if is_final.contains(node) && !has_inner.contains(node) {
                facts.final_modules_bits += self.formula_bits(node);
                facts.final_module_count += 1;
            }
            if self.is_no_split(node) {
                facts.largest_no_split_bits = facts.largest_no_split_bits.max(self.formula_bits(node));
            }
            let inner = tree.children(node).filter(|&child| tree.is_module(child));
            let direct_bits = self.formula_bits(node) - inner.map(|child| self.formula_bits(child)).sum::<i64>();
            facts.largest_direct_bits = facts.largest_direct_bits.max(direct_bits);
        }
        facts
    }

    /// Rows in the order of the keys of accelerate's `compute_module_sizes`: each tensor as it is first met, behind those
    /// of its ancestors that are not listed yet. Tied by name counts as met, where another name is the one that counts.
    pub fn listed_rows(&self, counted: Counted) -> Vec<NodeId> {
        let tree = self.tree();
        let mut is_listed = BitSet::new(tree.len());
        let mut listed = Vec::new();
        for row in self.counted_rows(counted) {
            let start = listed.len();
            let mut node = row;
            while !is_listed.contains(node) {
                is_listed.insert(node);
                listed.push(node);
                node = tree.parent(node);
            }
            listed[start..].reverse();
        }
        listed
    }

    /// The row under which each tensor counts, in the order in which accelerate meets them.
    fn counted_rows(&self, counted: Counted) -> Vec<NodeId> {
        let tree = self.tree();
        let mut seen = [BitSet::new(tree.tensor_count()), BitSet::new(tree.tensor_count())];
        let mut met = tensor_rows(tree);
        met.retain(|&row| {
            let is_parameter = tree.kind(row) == Kind::Parameter;
            let Some(id) = tree.tensor_id(row).filter(|_| !(is_parameter && counted == Counted::Buffers)) else {
                return false;
            };
            let is_new = !seen[usize::from(is_parameter)].contains(id);
            seen[usize::from(is_parameter)].insert(id);
            is_new
        });
        let stands = |row: NodeId| tree.tensor_id(row).map(|id| self.one_tensor[id as usize]);
        let known: HashSet<_> =
            met.iter().filter(|&&row| !self.uncounted.contains(row)).filter_map(|&r| stands(r)).collect();
        met.retain(|&row| !self.uncounted.contains(row) || stands(row).is_some_and(|id| !known.contains(&id)));
        met
    }

    /// Stored bits of every listed row, each tensor counted where it is met first.
    pub fn stored_sizes(&self, counted: Counted) -> Vec<(NodeId, i64)> {
        let tree = self.tree();
        let rows = self.listed_rows(counted);
        let mut bits = vec![0i64; tree.len()];
        for &row in &rows {
            bits[row as usize] = tree.tensor_id(row).map_or(0, |id| self.planned_bits(id));
        }
        sum_upwards(tree, &mut bits);
        rows.into_iter().map(|row| (row, bits[row as usize])).collect()
    }
}
