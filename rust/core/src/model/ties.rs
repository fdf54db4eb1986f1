//! Tied parameters as the dialects see them: groups of names.

use std::collections::HashMap;

use crate::ids::{NodeId, TensorId, id_at};
use crate::model::tree::{Kind, Tree, slice_between};

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
        for node in 1..id_at(tree.len()) {
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
            hits.extend(nodes.iter().map(|&node| (node, id_at(group))));
        }
        hits.sort_unstable();
        Self { members, hits }
    }

    pub(crate) fn members(&self) -> &[Vec<NodeId>] {
        &self.members
    }

    /// Groups with one row inside `start..end` and another outside, in order.
    pub(crate) fn crossing(&self, start: NodeId, end: NodeId) -> Vec<u32> {
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
