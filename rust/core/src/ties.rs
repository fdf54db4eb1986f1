//! Tied parameters as the dialects see them: groups of names, and the modules that have to come along.

use std::collections::HashMap;

use crate::frontier::Frontier;
use crate::layout::{Dialect, Layout};
use crate::tree::{Kind, NodeId, TensorId, Tree};

/// Groups of rows that are one parameter.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    members: Vec<Vec<NodeId>>, // in order of name
    hits: Vec<(NodeId, u32)>,  // (row, group), by row
}

impl Groups {
    /// Parameters with several names, in the order in which their second name is met.
    pub(crate) fn by_identity(tree: &Tree) -> Self {
        let mut first: Vec<NodeId> = vec![NodeId::MAX; tree.tensor_count()];
        let mut index: HashMap<TensorId, usize> = HashMap::new();
        let mut members: Vec<Vec<NodeId>> = Vec::new();
        for node in 1..tree.len() as NodeId {
            let (Kind::Parameter, Some(id)) = (tree.kind(node), tree.tensor_id(node)) else { continue };
            if first[id as usize] == NodeId::MAX {
                first[id as usize] = node;
            } else if let Some(&group) = index.get(&id) {
                members[group].push(node);
            } else {
                index.insert(id, members.len());
                members.push(vec![first[id as usize], node]);
            }
        }
        for group in &mut members {
            group.sort_by_cached_key(|&node| tree.full_name(node));
        }
        Self::new(members)
    }

    /// Groups said from outside, kept in their order.
    pub(crate) fn named(groups: &[Vec<NodeId>]) -> Self {
        Self::new(groups.iter().filter(|group| group.len() > 1).cloned().collect())
    }

    fn new(members: Vec<Vec<NodeId>>) -> Self {
        let mut hits: Vec<(NodeId, u32)> = Vec::new();
        for (group, nodes) in members.iter().enumerate() {
            hits.extend(nodes.iter().map(|&node| (node, group as u32)));
        }
        hits.sort_unstable();
        Self { members, hits }
    }

    pub(crate) fn members(&self) -> &[Vec<NodeId>] {
        &self.members
    }

    /// Groups with one row inside `start..end` and another outside, in order.
    fn crossing(&self, start: NodeId, end: NodeId) -> Vec<u32> {
        let inside = slice_between(&self.hits, start, end);
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for &(_, group) in inside {
            *counts.entry(group).or_default() += 1;
        }
        let mut crossing: Vec<u32> = counts
            .into_iter()
            .filter(|&(group, count)| count < self.members[group as usize].len())
            .map(|(group, _)| group)
            .collect();
        crossing.sort_unstable();
        crossing
    }
}

/// The part of a list sorted by row whose rows lie in `start..end`.
pub(crate) fn slice_between(list: &[(NodeId, u32)], start: NodeId, end: NodeId) -> &[(NodeId, u32)] {
    let from = list.partition_point(|&(node, _)| node < start);
    let to = from + list[from..].partition_point(|&(node, _)| node < end);
    &list[from..to]
}

/// Entries that share a parameter with a module, and what the dialect adds to its size for them.
#[derive(Debug, Default)]
pub(crate) struct Partners {
    pub(crate) entries: Vec<NodeId>,
    pub(crate) extra_bits: i64,
}

impl Partners {
    /// Partners of an entry of the frontier.
    pub(crate) fn of_entry(layout: &Layout, frontier: &Frontier, entry: NodeId) -> Self {
        Self::of(layout, entry, |row| frontier.entry_of(row))
    }

    /// Partners of a row below an entry, were its ancestors split.
    pub(crate) fn of_candidate(layout: &Layout, frontier: &Frontier, candidate: NodeId) -> Self {
        Self::of(layout, candidate, |row| frontier.entry_beside(row, candidate))
    }

    fn of(layout: &Layout, node: NodeId, entry_of: impl Fn(NodeId) -> Option<NodeId>) -> Self {
        let tree = layout.tree();
        let mut partners = Self::default();
        for group in layout.groups.crossing(node, tree.end(node)) {
            for &row in &layout.groups.members[group as usize] {
                if tree.contains(node, row) {
                    continue;
                }
                let Some(entry) = entry_of(row) else { continue };
                let is_new = !partners.entries.contains(&entry);
                if is_new {
                    partners.entries.push(entry);
                }
                partners.extra_bits = partners.extra_bits.saturating_add(match layout.dialect {
                    // The tensor counts where it is met first, and that is here: only the fallback looks back.
                    Dialect::Accelerate if row < node => layout.formula_bits(entry),
                    // Once per tied parameter, less that parameter: accelerate's get_module_size_with_ties.
                    Dialect::Accelerate => layout.formula_bits(entry) - layout.formula_bits(row),
                    Dialect::Transformers if is_new => layout.formula_bits(entry),
                    Dialect::Transformers => 0,
                });
            }
        }
        partners
    }
}
