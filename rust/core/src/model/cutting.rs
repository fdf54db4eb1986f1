//! Where a model is cut into blocks.

use crate::ids::{NodeId, id_at};
use crate::model::layout::Layout;
use crate::model::tree::Tree;
use crate::names::is_number;
use crate::sets::BitSet;

/// How fine blocks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Granularity {
    /// No-split modules whole.
    #[default]
    Block,
    /// Each numbered expert inside a no-split module is a block of its own.
    Expert,
}

/// What shapes units, by row.
#[derive(Debug, Clone, Default)]
pub struct BlockOptions {
    /// Modules that stay whole, whatever their class.
    pub no_split_rows: Vec<NodeId>,
    /// Modules that are taken apart though their class says otherwise; their children become blocks. A module without
    /// modules inside stays whole: its tensors meet in its own forward.
    pub split_rows: Vec<NodeId>,
    /// Modules, or tensors of modules, that are blocks of their own where they lie inside a block, and leave the rest of it
    /// another; not inside of what stays whole, whatever its class.
    pub apart_rows: Vec<NodeId>,
    /// How fine.
    pub granularity: Granularity,
    /// Rows that must share a home; whole blocks are meant.
    pub keep_together: Vec<Vec<NodeId>>,
}

/// Walks down to the blocks.
pub(super) struct Cutter<'a> {
    pub(super) layout: &'a Layout,
    whole: BitSet,
    is_open: BitSet,     // it is taken apart, or some module inside must stay whole or is taken apart
    is_inside: BitSet,   // it, or some module around it, must stay whole or is taken apart
    has_tensors: BitSet, // it is a tensor, or one is inside
    apart: Vec<NodeId>,  // ascending
    granularity: Granularity,
}

impl<'a> Cutter<'a> {
    pub(super) fn new(layout: &'a Layout, options: &BlockOptions) -> Self {
        let tree = layout.tree();
        let len = tree.len();
        let (mut whole, mut is_open, mut split) = (BitSet::new(len), BitSet::new(len), BitSet::new(len));
        let (mut is_inside, mut has_tensors) = (BitSet::new(len), BitSet::new(len));
        let has_parts = |row: NodeId| tree.children(row).any(|child| tree.is_module(child));
        options.split_rows.iter().filter(|&&row| has_parts(row)).for_each(|&row| split.insert(row));
        options.no_split_rows.iter().for_each(|&row| whole.insert(row));
        for row in (1..id_at(len)).rev() {
            if layout.is_no_split(row) && !split.contains(row) {
                whole.insert(row);
            }
            if split.contains(row) {
                is_open.insert(row);
            }
            if whole.contains(row) || is_open.contains(row) {
                is_open.insert(tree.parent(row));
            }
            if !tree.is_module(row) {
                has_tensors.insert(row);
            }
            if has_tensors.contains(row) {
                has_tensors.insert(tree.parent(row));
            }
        }
        // Marked from the top: asking each row for what is around it would cost the square of a nest's depth.
        for row in 1..id_at(len) {
            if whole.contains(row) || split.contains(row) || is_inside.contains(tree.parent(row)) {
                is_inside.insert(row);
            }
        }
        let mut apart: Vec<NodeId> = (options.apart_rows.iter())
            .map(|&row| tree.original(row))
            .map(|row| if tree.is_module(row) { row } else { tree.parent(row) })
            .filter(|&row| has_tensors.contains(row) && !stays_inside(tree, &options.no_split_rows, row))
            .collect();
        apart.sort_unstable();
        apart.dedup();
        Self { layout, whole, is_open, is_inside, has_tensors, apart, granularity: options.granularity }
    }

    pub(super) fn cut(&self) -> Vec<Vec<NodeId>> {
        let tree = self.layout.tree();
        let mut blocks = Vec::new();
        let mut open = vec![0];
        while let Some(row) = open.pop() {
            if (row == 0 || self.is_open.contains(row)) && !self.whole.contains(row) {
                let children: Vec<NodeId> = tree.children(row).filter(|&child| !self.layout.is_alias(child)).collect();
                open.extend(children.into_iter().rev());
            } else if self.has_tensors.contains(row) {
                self.block(row, self.granularity == Granularity::Expert, &mut blocks);
            }
        }
        blocks
    }

    /// No part of a module that must not be split, and no such module itself.
    pub(super) fn is_beside(&self, row: NodeId) -> bool {
        !self.is_inside.contains(row)
    }

    /// A block, or what is left of it and the parts that are taken out of it.
    fn block(&self, row: NodeId, is_by_expert: bool, blocks: &mut Vec<Vec<NodeId>>) {
        let parts = self.parts(row, is_by_expert);
        if parts.is_empty() {
            blocks.push(vec![row]);
            return;
        }
        let tree = self.layout.tree();
        let mut rest = Vec::new();
        let mut open = vec![row];
        while let Some(inner) = open.pop() {
            if parts.binary_search(&inner).is_ok() {
                continue;
            }
            if parts.get(parts.partition_point(|&part| part < inner)).is_some_and(|&part| tree.contains(inner, part)) {
                let children: Vec<NodeId> =
                    tree.children(inner).filter(|&child| !self.layout.is_alias(child)).collect();
                open.extend(children.into_iter().rev());
            } else if self.has_tensors.contains(inner) {
                rest.push(inner);
            }
        }
        if !rest.is_empty() {
            blocks.push(rest);
        }
        for part in parts {
            let is_expert = self.apart.binary_search(&part).is_err();
            // Experts inside experts are part of them.
            self.block(part, is_by_expert && !is_expert, blocks);
        }
    }

    /// The outermost parts that are taken out of a block: blocks share no row.
    fn parts(&self, block: NodeId, is_by_expert: bool) -> Vec<NodeId> {
        let tree = self.layout.tree();
        let inside = |rows: &[NodeId], end: NodeId| rows.partition_point(|&row| row < end);
        let apart = &self.apart[inside(&self.apart, block + 1)..inside(&self.apart, tree.end(block))];
        let mut parts = if is_by_expert { self.experts(block) } else { Vec::new() };
        parts.extend(apart);
        parts.sort_unstable();
        let mut outermost: Vec<NodeId> = Vec::new();
        for part in parts {
            if outermost.last().is_none_or(|&last| part >= tree.end(last)) {
                outermost.push(part);
            }
        }
        outermost
    }

    /// Numbered modules directly inside a module called `experts`.
    fn experts(&self, block: NodeId) -> Vec<NodeId> {
        let tree = self.layout.tree();
        let is_expert = |&row: &NodeId| {
            tree.is_module(row)
                && is_number(tree.local_name(row))
                && tree.local_name(tree.parent(row)) == "experts"
                && self.has_tensors.contains(row)
        };
        (block + 1..tree.end(block)).filter(is_expert).collect()
    }
}

/// A row is, or lies inside, one of those that stay whole.
fn stays_inside(tree: &Tree, whole: &[NodeId], row: NodeId) -> bool {
    let mut above = row;
    while above != 0 {
        if whole.contains(&above) {
            return true;
        }
        above = tree.parent(above);
    }
    row == 0 || whole.contains(&0)
}
