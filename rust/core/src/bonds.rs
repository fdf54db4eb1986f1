//! Which blocks must share a device because they share tensors, whatever the dialects notice of it.
//!
//! An *atom* is the smallest part that can be placed: a module that cannot be split, or a direct tensor of one that can.
//! Atoms that share a tensor, parameter or buffer, directly or through others, form a *bond*. Whoever places any part of
//! a bond commits its device to all of it, and its bytes are taken then. In a valid device map every bond lies on one
//! device, so this never forbids what a valid map does.

use std::collections::{HashMap, HashSet};

use crate::bits::BitSet;
use crate::error::Error;
use crate::layout::sum_upwards;
use crate::sets::DisjointSets;
use crate::ties::slice_between;
use crate::tree::{NodeId, TensorId, Tree};

/// Bonds, and the bytes of all else.
#[derive(Debug)]
pub(crate) struct Bonds {
    atoms: Vec<(NodeId, u32)>, // (atom, bond), by atom
    bits: Vec<i64>,
    loose_bits: Vec<i64>,
}

impl Bonds {
    pub(crate) fn new(
        tree: &Tree,
        twin: &BitSet,
        splittable: &BitSet,
        one_tensor: &[TensorId],
        planned_bits: &[i64],
    ) -> Result<Self, Error> {
        let atoms = shared_atoms(tree, twin, splittable, one_tensor);
        let mut bits = Vec::new();
        let mut bonded = BitSet::new(tree.len());
        let mut tensors: Vec<HashSet<TensorId>> = Vec::new();
        for &(atom, bond) in &atoms {
            tensors.resize_with(tensors.len().max(bond as usize + 1), HashSet::new);
            for node in atom..tree.end(atom) {
                bonded.insert(node);
                tensors[bond as usize].extend(tree.tensor_id(node).map(|id| one_tensor[id as usize]));
            }
        }
        for held in &tensors {
            bits.push(held.iter().map(|&id| planned_bits[id as usize]).sum());
        }
        let mut loose_bits = vec![0; tree.len()];
        let mut seen = BitSet::new(one_tensor.len());
        for node in 0..tree.len() as NodeId {
            let Some(id) = tree.tensor_id(node).map(|id| one_tensor[id as usize]) else { continue };
            if !twin.contains(node) && !bonded.contains(node) && !seen.contains(id) {
                seen.insert(id);
                loose_bits[node as usize] = planned_bits[id as usize];
            }
        }
        sum_upwards(tree, &mut loose_bits);
        Ok(Self { atoms, bits, loose_bits })
    }

    /// Bits inside a row that belong to no bond, each tensor once.
    pub(crate) fn loose_bits(&self, node: NodeId) -> i64 {
        self.loose_bits[node as usize]
    }

    /// Bits of a bond, each tensor once.
    pub(crate) fn bits(&self, bond: u32) -> i64 {
        self.bits[bond as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.bits.len()
    }

    /// Bonds with an atom inside a row, each once.
    pub(crate) fn touching(&self, tree: &Tree, node: NodeId, found: &mut Vec<u32>) {
        if self.atoms.is_empty() {
            return;
        }
        found.extend(slice_between(&self.atoms, node, tree.end(node)).iter().map(|&(_, bond)| bond));
        // A tensor of a block that was taken apart lies inside an atom.
        let before = self.atoms.partition_point(|&(atom, _)| atom < node);
        found.extend(self.atoms[..before].last().filter(|(atom, _)| tree.contains(*atom, node)).map(|&(_, bond)| bond));
        found.sort_unstable();
        found.dedup();
    }
}

/// Atoms that share a tensor with another atom, with the number of their bond.
fn shared_atoms(tree: &Tree, twin: &BitSet, splittable: &BitSet, one: &[TensorId]) -> Vec<(NodeId, u32)> {
    let mut rows = vec![0u8; one.len()];
    let tensor_of = |node: NodeId| tree.tensor_id(node).map(|id| one[id as usize]).filter(|_| !twin.contains(node));
    let all = 0..tree.len() as NodeId;
    all.clone().filter_map(tensor_of).for_each(|id| rows[id as usize] = rows[id as usize].saturating_add(1));
    if rows.iter().all(|&count| count < 2) {
        return Vec::new();
    }
    let mut index: HashMap<NodeId, u32> = HashMap::new();
    let mut atoms: Vec<NodeId> = Vec::new();
    let mut sets = DisjointSets::default();
    let mut holder: HashMap<TensorId, u32> = HashMap::new();
    for node in all {
        let Some(id) = tensor_of(node).filter(|&id| rows[id as usize] > 1) else { continue };
        let atom = atom_of(tree, splittable, node);
        let here = *index.entry(atom).or_insert_with(|| {
            atoms.push(atom);
            sets.add()
        });
        let first = *holder.entry(id).or_insert(here);
        sets.unite(first, here);
    }
    let mut sizes = vec![0u32; atoms.len()];
    for atom in 0..atoms.len() as u32 {
        sizes[sets.root(atom) as usize] += 1;
    }
    let mut number: HashMap<u32, u32> = HashMap::new();
    let mut shared = Vec::new();
    for atom in 0..atoms.len() as u32 {
        let root = sets.root(atom);
        if sizes[root as usize] > 1 {
            let next = number.len() as u32;
            shared.push((atoms[atom as usize], *number.entry(root).or_insert(next)));
        }
    }
    shared.sort_unstable();
    shared
}

/// The topmost part around a row that cannot be split.
fn atom_of(tree: &Tree, splittable: &BitSet, row: NodeId) -> NodeId {
    let (mut atom, mut node) = (row, row);
    while node != 0 {
        if !splittable.contains(node) {
            atom = node;
        }
        node = tree.parent(node);
    }
    atom
}
