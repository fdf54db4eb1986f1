//! Which blocks must share a device because they share tensors, whatever the dialects notice of it.
//!
//! A *part* is the smallest part that can be placed: a module that cannot be split, or a direct tensor of one that can.
//! Parts that share a tensor, parameter or buffer, directly or through others, form a *group*. Placing any part of
//! a group commits its device to all of it, and its bytes are taken then. In a valid device map every group lies on one
//! device, so this never forbids what a valid map does.

use std::collections::{HashMap, HashSet};

use crate::ids::{NodeId, TensorId, id_at};
use crate::model::sizes::sum_upwards;
use crate::model::tree::Tree;
use crate::model::tree::slice_between;
use crate::sets::BitSet;
use crate::sets::DisjointSets;

/// Shared groups, and the bytes of all else.
#[derive(Debug)]
pub(crate) struct SharedGroups {
    parts: Vec<(NodeId, u32)>, // (part, group), by part
    bits: Vec<i64>,
    loose_bits: Vec<i64>,
}

impl SharedGroups {
    pub(crate) fn new(
        tree: &Tree,
        alias: &BitSet,
        splittable: &BitSet,
        one_tensor: &[TensorId],
        planned_bits: &[i64],
    ) -> Self {
        let parts = shared_parts(tree, alias, splittable, one_tensor);
        let mut bits = Vec::new();
        let mut in_groups = BitSet::new(tree.len());
        let mut tensors: Vec<HashSet<TensorId>> = Vec::new();
        for &(part, group) in &parts {
            tensors.resize_with(tensors.len().max(group as usize + 1), HashSet::new);
            for node in part..tree.end(part) {
                in_groups.insert(node);
                tensors[group as usize].extend(tree.tensor_id(node).map(|id| one_tensor[id as usize]));
            }
        }
        for held in &tensors {
            bits.push(held.iter().map(|&id| planned_bits[id as usize]).sum());
        }
        let mut loose_bits = vec![0; tree.len()];
        let mut seen = BitSet::new(one_tensor.len());
        for node in tree.rows() {
            let Some(id) = tree.tensor_id(node).map(|id| one_tensor[id as usize]) else { continue };
            if !alias.contains(node) && !in_groups.contains(node) && !seen.contains(id) {
                seen.insert(id);
                loose_bits[node as usize] = planned_bits[id as usize];
            }
        }
        sum_upwards(tree, &mut loose_bits);
        Self { parts, bits, loose_bits }
    }

    /// Bits inside a row that belong to no group, each tensor once.
    pub(crate) fn loose_bits(&self, node: NodeId) -> i64 {
        self.loose_bits[node as usize]
    }

    /// Bits of a group, each tensor once.
    pub(crate) fn bits(&self, group: u32) -> i64 {
        self.bits[group as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.bits.len()
    }

    /// Shared groups with a part inside a row, each once.
    pub(crate) fn touching(&self, tree: &Tree, node: NodeId, found: &mut Vec<u32>) {
        if self.parts.is_empty() {
            return;
        }
        found.extend(slice_between(&self.parts, node, tree.end(node)).iter().map(|&(_, group)| group));
        // A tensor of a block that was taken apart lies inside a part.
        let before = self.parts.partition_point(|&(part, _)| part < node);
        found.extend(
            self.parts[..before].last().filter(|(part, _)| tree.contains(*part, node)).map(|&(_, group)| group),
        );
        found.sort_unstable();
        found.dedup();
    }
}

/// Parts that share a tensor with another part, with the number of their group.
fn shared_parts(tree: &Tree, alias: &BitSet, splittable: &BitSet, one: &[TensorId]) -> Vec<(NodeId, u32)> {
    let mut rows = vec![0u8; one.len()];
    let tensor_of = |node: NodeId| tree.tensor_id(node).map(|id| one[id as usize]).filter(|_| !alias.contains(node));
    let all = tree.rows();
    all.clone().filter_map(tensor_of).for_each(|id| rows[id as usize] = rows[id as usize].saturating_add(1));
    if rows.iter().all(|&count| count < 2) {
        return Vec::new();
    }
    let mut index: HashMap<NodeId, u32> = HashMap::new();
    let mut parts: Vec<NodeId> = Vec::new();
    let mut sets = DisjointSets::default();
    let mut holder: HashMap<TensorId, u32> = HashMap::new();
    for node in all {
        let Some(id) = tensor_of(node).filter(|&id| rows[id as usize] > 1) else { continue };
        let part = part_of(tree, splittable, node);
        let here = *index.entry(part).or_insert_with(|| {
            parts.push(part);
            sets.add()
        });
        let first = *holder.entry(id).or_insert(here);
        sets.unite(first, here);
    }
    let mut sizes = vec![0u32; parts.len()];
    for part in 0..id_at(parts.len()) {
        sizes[sets.root(part) as usize] += 1;
    }
    let mut number: HashMap<u32, u32> = HashMap::new();
    let mut shared = Vec::new();
    for part in 0..id_at(parts.len()) {
        let root = sets.root(part);
        if sizes[root as usize] > 1 {
            let next = id_at(number.len());
            shared.push((parts[part as usize], *number.entry(root).or_insert(next)));
        }
    }
    shared.sort_unstable();
    shared
}

/// The topmost part around a row that cannot be split.
fn part_of(tree: &Tree, splittable: &BitSet, row: NodeId) -> NodeId {
    let (mut part, mut node) = (row, row);
    while node != 0 {
        if !splittable.contains(node) {
            part = node;
        }
        node = tree.parent(node);
    }
    part
}
