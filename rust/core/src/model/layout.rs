//! Everything about a tree that does not depend on budgets: sizes, what may be split, layers, ties.

use std::sync::Arc;

use crate::devices::Device;
use crate::error::Error;
use crate::ids::{NodeId, TensorId, id_at};
use crate::model::options::{Cast, Dialect, LayoutOptions, Tied};
use crate::model::shared::SharedGroups;
use crate::model::sizes::{buffer_bits, formula_bits, planned_bits};
use crate::model::ties::Groups;
use crate::model::tree::Tree;
use crate::outcome::Outcome;
use crate::sets::BitSet;
use crate::sets::DisjointSets;

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
    #[allow(clippy::needless_pass_by_value)] // options are made for one layout
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
        let shared_groups = SharedGroups::new(&tree, &alias, &splittable, &one_tensor, &planned_bits);
        let mut exempt = BitSet::new(len);
        options.exempt.iter().for_each(|&node| exempt.insert(node));
        let mut uncounted = BitSet::new(len);
        if let Tied::Named { uncounted: rows, .. } = &options.tied {
            for &node in rows {
                uncounted.insert(node);
            }
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

    /// Modules of a no-split class.
    pub fn no_split_count(&self) -> usize {
        (self.tree.rows()).filter(|&row| self.is_no_split(row)).count()
    }

    /// Stored bits of all tensors, each once.
    pub fn total_bits(&self) -> i64 {
        let ids = 0..id_at(self.one_tensor.len());
        ids.filter(|&id| self.one_tensor[id as usize] == id).map(|id| self.planned_bits(id)).sum()
    }

    /// Bits of buffers in modules that were placed off the accelerators on their own account, by the formula.
    pub fn offloaded_buffer_bits(&self, outcome: &Outcome, devices: &[Device]) -> i64 {
        let leads = outcome.offloaded(devices).filter(|placement| placement.is_lead);
        let modules = leads.map(|placement| placement.node).filter(|&node| self.tree.is_module(node));
        modules.map(|node| buffer_bits(&self.tree, node, self.dialect, self.cast)).sum()
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
    for node in 1..id_at(tree.len()) {
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
    let mut one = DisjointSets::new(id_at(tree.tensor_count()));
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

fn layers(tree: &Tree, alias: &BitSet, splittable: &BitSet, formula_bits: &[i64]) -> Vec<(i64, u32)> {
    let mut layer = vec![(0i64, 0u32); tree.len()];
    for node in (1..id_at(tree.len())).rev() {
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
