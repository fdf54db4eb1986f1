//! Everything about a tree that does not depend on budgets: sizes, what may be split, layers, ties.

use std::sync::Arc;

use crate::devices::MOST_BITS;
use crate::error::Error;
use crate::ids::{NodeId, TensorId};
use crate::model::shared::SharedGroups;
use crate::model::ties::Groups;
use crate::model::tree::{DType, Kind, Tree, sum_upwards};
use crate::sets::BitSet;
use crate::sets::DisjointSets;

/// Whose rules are followed where two planners differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// accelerate 1.15.
    #[default]
    Accelerate,
    /// transformers 5.23: element sizes as stored, each tied module counted once, the current module always split.
    Transformers,
}

/// The dtype that weights will be loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// Bits per element by accelerate's `dtype_byte_size`.
    pub formula_bits: u64,
    /// Bits per element as stored.
    pub planned_bits: u64,
}

/// The size of one tensor row, said from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explicit {
    /// The row.
    pub node: NodeId,
    /// Its bits by formula.
    pub formula_bits: u64,
    /// Its bits as stored.
    pub planned_bits: u64,
}

/// Which rows are one tensor.
#[derive(Debug, Clone, Default)]
pub enum Tied {
    /// Rows that hold the same object.
    #[default]
    ByIdentity,
    /// Said from outside, on top of identity.
    Named {
        /// Rows that are, or will be, one tensor.
        groups: Vec<Vec<NodeId>>,
        /// Rows that the formula does not count.
        uncounted: Vec<NodeId>,
    },
}

/// How to read a tree.
#[derive(Debug, Clone, Default)]
pub struct LayoutOptions {
    /// Exact class names of modules that stay on one device.
    pub no_split_classes: Vec<String>,
    /// Modules that may be taken apart all the same.
    pub containers: Vec<NodeId>,
    /// Whose rules.
    pub dialect: Dialect,
    /// The dtype of the load, if it differs.
    pub cast: Option<Cast>,
    /// Sizes said from outside.
    pub explicit: Vec<Explicit>,
    /// Ties.
    pub tied: Tied,
    /// Rows that need no place when the block that holds them has to be taken apart.
    pub exempt: Vec<NodeId>,
}

/// A tree read with certain options; plans are made from it.
#[derive(Debug)]
pub struct Layout {
    tree: Arc<Tree>,
    pub(crate) dialect: Dialect,
    cast: Option<Cast>,
    no_split: BitSet,
    splittable: BitSet,
    alias: BitSet,
    pub(crate) exempt: BitSet,
    pub(crate) has_exempt: bool,
    formula_bits: Vec<i64>,
    planned_bits: Vec<i64>,               // by tensor id
    pub(crate) one_tensor: Vec<TensorId>, // by tensor id: what stands for all it is tied to
    pub(crate) uncounted: BitSet,
    layer: Vec<(i64, u32)>,
    pub(crate) groups: Groups,
    pub(crate) shared_groups: SharedGroups,
}

impl Layout {
    /// Reads a tree.
    ///
    /// # Errors
    ///
    /// [`Error::SizeOverflow`] when the sum of all tensors passes 2^60 bits.
    ///
    /// # Cost
    ///
    /// O(rows), plus sorting the names of tied tensors.
    pub fn new(tree: Arc<Tree>, options: LayoutOptions) -> Result<Self, Error> {
        let len = tree.len();
        let alias = alias_rows(&tree);
        let (no_split, splittable) = split_masks(&tree, &alias, &options);
        let one_tensor = merged(&tree, &options.tied);
        let planned_bits = planned_bits(&tree, &options, &one_tensor)?;
        let formula_bits = formula_bits(&tree, &options)?;
        let layer = layers(&tree, &alias, &splittable, &formula_bits);
        let groups = match &options.tied {
            Tied::ByIdentity => Groups::by_identity(&tree),
            Tied::Named { groups, .. } => Groups::named(groups),
        };
        let shared_groups = SharedGroups::new(&tree, &alias, &splittable, &one_tensor, &planned_bits)?;
        let mut exempt = BitSet::new(len);
        options.exempt.iter().for_each(|&node| exempt.insert(node));
        let mut uncounted = BitSet::new(len);
        if let Tied::Named { uncounted: rows, .. } = &options.tied {
            rows.iter().for_each(|&node| uncounted.insert(node));
        }
        Ok(Self {
            tree,
            one_tensor,
            uncounted,
            dialect: options.dialect,
            cast: options.cast,
            no_split,
            splittable,
            alias,
            exempt,
            has_exempt: !options.exempt.is_empty(),
            formula_bits,
            planned_bits,
            layer,
            groups,
            shared_groups,
        })
    }

    /// The tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Bits of a row with all inside by the dialect's formula: a tied tensor counts where it is met first.
    pub fn formula_bits(&self, node: NodeId) -> i64 {
        self.formula_bits[node as usize]
    }

    /// Bits of a tensor as stored.
    pub fn planned_bits(&self, tensor: TensorId) -> i64 {
        self.planned_bits[tensor as usize]
    }

    /// Whether a module has children and may be taken apart. The root always may.
    pub fn can_split(&self, node: NodeId) -> bool {
        self.splittable.contains(node)
    }

    /// Whether a row is a module of a no-split class; the root can be one, and is split all the same.
    pub fn is_no_split(&self, node: NodeId) -> bool {
        self.no_split.contains(node)
    }

    /// Whether a row lies in an alias: it goes where its original goes.
    pub fn is_alias(&self, node: NodeId) -> bool {
        self.alias.contains(node)
    }

    /// Largest layer in a module (itself, if it cannot be split), and how many layers have that size.
    pub fn largest_layer(&self, node: NodeId) -> (i64, u32) {
        self.layer[node as usize]
    }

    /// Tied groups of parameters, each sorted by name.
    pub fn tied_groups(&self) -> &[Vec<NodeId>] {
        self.groups.members()
    }

    /// Bits of the buffers inside a module, each once, by the formula.
    pub fn buffer_bits(&self, module: NodeId) -> i64 {
        let mut seen = std::collections::HashSet::new();
        let mut total = 0;
        for node in module..self.tree.end(module) {
            if let (Kind::Buffer | Kind::NonPersistentBuffer, Some(id)) =
                (self.tree.kind(node), self.tree.tensor_id(node))
                && seen.insert(id)
            {
                let (tensor, dtype) = self.tree.tensor(id);
                let bits = tensor.numel.saturating_mul(element_bits(dtype, self.dialect, self.cast));
                total += bits.min(MOST_BITS) as i64;
            }
        }
        total
    }

    /// Stored bits of all tensors, each once.
    pub fn total_bits(&self) -> i64 {
        let ids = 0..self.one_tensor.len() as TensorId;
        ids.filter(|&id| self.one_tensor[id as usize] == id).map(|id| self.planned_bits(id)).sum()
    }

    /// A digest of names, structure, stored sizes and ties: equal layouts have equal ones on every machine.
    pub fn fingerprint(&self) -> u64 {
        let mut digest = Digest::default();
        for row in 0..self.tree.len() as NodeId {
            digest.add(u64::from(self.tree.parent(row)));
            digest.add_text(self.tree.local_name(row));
            match self.tree.tensor_id(row) {
                None => digest.add_text(self.tree.class_name(row).unwrap_or_default()),
                Some(id) => {
                    digest.add(u64::from(self.one_tensor[id as usize]));
                    digest.add(self.planned_bits(id) as u64);
                }
            }
        }
        digest.state
    }

    /// Rows in the order in which accelerate meets tensors: parameters, then buffers module by module.
    pub fn tensor_rows(&self) -> Vec<NodeId> {
        tensor_rows(&self.tree)
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
        self.state = ((wide as u64) ^ ((wide >> 64) as u64)).wrapping_add(FOLD);
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

fn alias_rows(tree: &Tree) -> BitSet {
    let mut rows = BitSet::new(tree.len());
    for &(alias, _) in tree.aliases() {
        (alias..tree.end(alias)).for_each(|node| rows.insert(node));
    }
    rows
}

fn split_masks(tree: &Tree, alias: &BitSet, options: &LayoutOptions) -> (BitSet, BitSet) {
    let keep = tree.class_mask(&options.no_split_classes);
    let mut is_container = BitSet::new(tree.len());
    options.containers.iter().for_each(|&node| is_container.insert(node));
    let (mut no_split, mut splittable) = (BitSet::new(tree.len()), BitSet::new(tree.len()));
    splittable.insert(0);
    if tree.is_module(0) && keep[tree.class_id(0) as usize] {
        no_split.insert(0); // of no consequence for splitting; transformers' balanced budgets look at it
    }
    for node in 1..tree.len() as NodeId {
        if !tree.is_module(node) {
            continue;
        }
        if keep[tree.class_id(node) as usize] && !is_container.contains(node) {
            no_split.insert(node);
        }
        let parent = tree.parent(node);
        if !alias.contains(node) && !no_split.contains(parent) {
            splittable.insert(parent);
        }
    }
    (no_split, splittable)
}

/// For each tensor id, the one that stands for all it is tied to.
fn merged(tree: &Tree, tied: &Tied) -> Vec<TensorId> {
    let mut one = DisjointSets::new(tree.tensor_count() as TensorId);
    if let Tied::Named { groups, .. } = tied {
        for group in groups {
            let ids: Vec<_> = group.iter().filter_map(|&node| tree.tensor_id(node)).collect();
            for pair in ids.windows(2) {
                one.unite(pair[0], pair[1]);
            }
        }
    }
    one.roots()
}

fn planned_bits(tree: &Tree, options: &LayoutOptions, one: &[TensorId]) -> Result<Vec<i64>, Error> {
    let mut bits = Vec::with_capacity(one.len());
    for id in 0..one.len() as TensorId {
        let (tensor, dtype) = tree.tensor(id);
        let element = match options.cast {
            Some(cast) if dtype.castable => cast.planned_bits,
            _ => dtype.stored_bits,
        };
        let size = match tensor.opaque_bytes {
            Some(bytes) => bytes.checked_mul(8),
            None => tensor.numel.checked_mul(element),
        };
        bits.push(size.unwrap_or(u64::MAX));
    }
    let mut said: Vec<Option<u64>> = vec![None; if options.explicit.is_empty() { 0 } else { one.len() }];
    for explicit in &options.explicit {
        if let Some(id) = tree.tensor_id(explicit.node) {
            let known = &mut said[id as usize];
            *known = Some(known.unwrap_or(0).max(explicit.planned_bits));
        }
    }
    for (id, size) in said.into_iter().enumerate() {
        bits[id] = size.unwrap_or(bits[id]);
    }
    for id in 0..one.len() {
        let stands = one[id] as usize;
        bits[stands] = bits[stands].max(bits[id]);
    }
    let mut total = 0u64;
    for node in 0..tree.len() as NodeId {
        if let Some(id) = tree.tensor_id(node) {
            total = checked_total(total, bits[id as usize], node)?;
        }
    }
    Ok(bits.into_iter().map(|size| size as i64).collect())
}

/// The running total over all rows (ties counted again), small enough that no later sum can overflow.
fn checked_total(total: u64, bits: u64, node: NodeId) -> Result<u64, Error> {
    match total.checked_add(bits) {
        Some(sum) if sum <= MOST_BITS => Ok(sum),
        _ => Err(Error::SizeOverflow { node, limit_bytes: MOST_BITS / 8 }),
    }
}

pub(crate) fn tensor_rows(tree: &Tree) -> Vec<NodeId> {
    let rows = 0..tree.len() as NodeId;
    let mut buffers: Vec<NodeId> =
        rows.clone().filter(|&n| matches!(tree.kind(n), Kind::Buffer | Kind::NonPersistentBuffer)).collect();
    // Rows put a module's buffers behind its children; accelerate meets them before.
    buffers.sort_by_key(|&node| (tree.parent(node), node));
    rows.filter(|&n| tree.kind(n) == Kind::Parameter).chain(buffers).collect()
}

fn element_bits(dtype: DType, dialect: Dialect, cast: Option<Cast>) -> u64 {
    match (dialect, cast) {
        (Dialect::Transformers, _) => dtype.stored_bits,
        (Dialect::Accelerate, Some(cast)) if dtype.castable => cast.formula_bits.min(dtype.formula_bits),
        (Dialect::Accelerate, _) => dtype.formula_bits,
    }
}

fn formula_bits(tree: &Tree, options: &LayoutOptions) -> Result<Vec<i64>, Error> {
    let mut bits = vec![0i64; tree.len()];
    let uncounted = match &options.tied {
        Tied::Named { uncounted, .. } => uncounted.as_slice(),
        Tied::ByIdentity => &[],
    };
    let mut is_uncounted = BitSet::new(if uncounted.is_empty() { 0 } else { tree.len() });
    uncounted.iter().for_each(|&node| is_uncounted.insert(node));
    let explicit: std::collections::HashMap<NodeId, u64> =
        options.explicit.iter().map(|e| (e.node, e.formula_bits)).collect();
    let (mut seen_parameters, mut seen_buffers) = (BitSet::new(tree.tensor_count()), BitSet::new(tree.tensor_count()));
    let mut total = 0u64;
    let mut count = |node: NodeId| -> Result<(), Error> {
        let Some(id) = tree.tensor_id(node) else { return Ok(()) };
        let seen = if tree.kind(node) == Kind::Parameter { &mut seen_parameters } else { &mut seen_buffers };
        if seen.contains(id) {
            return Ok(());
        }
        seen.insert(id);
        if !uncounted.is_empty() && is_uncounted.contains(node) {
            return Ok(());
        }
        let (tensor, dtype) = tree.tensor(id);
        let size = match explicit.get(&node) {
            Some(&size) if !explicit.is_empty() => size,
            _ => tensor.numel.saturating_mul(element_bits(dtype, options.dialect, options.cast)),
        };
        total = checked_total(total, size, node)?;
        bits[node as usize] = size as i64;
        Ok(())
    };
    for node in tensor_rows(tree) {
        count(node)?;
    }
    sum_upwards(tree, &mut bits);
    Ok(bits)
}

fn layers(tree: &Tree, alias: &BitSet, splittable: &BitSet, formula_bits: &[i64]) -> Vec<(i64, u32)> {
    let mut layer = vec![(0i64, 0u32); tree.len()];
    for node in (1..tree.len() as NodeId).rev() {
        if !tree.is_module(node) || alias.contains(node) {
            continue;
        }
        if !splittable.contains(node) {
            layer[node as usize] = (formula_bits[node as usize], 1);
        }
        let (size, count) = layer[node as usize];
        let above = &mut layer[tree.parent(node) as usize];
        *above = match size.cmp(&above.0) {
            std::cmp::Ordering::Greater => (size, count),
            std::cmp::Ordering::Equal => (size, above.1 + count),
            std::cmp::Ordering::Less => *above,
        };
    }
    layer
}
