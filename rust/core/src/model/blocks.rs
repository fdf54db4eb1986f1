//! The units that are placed as a whole, in execution order.
//!
//! A *block* is the topmost module that must not be split, or a module or tensor beside such modules. Blocks that share a
//! tensor, or that the user wants together, are one *unit*: its bytes are the union of theirs.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::ids::{NodeId, id_at};
use crate::model::cutting::{BlockOptions, Cutter};
use crate::model::layout::Layout;
use crate::model::tree::{Kind, Tree};
use crate::sets::DisjointSets;

/// One or several blocks that share a home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockUnit {
    /// Execution positions of its members, ascending.
    pub positions: Vec<u32>,
    /// Its tensors as stored, each once.
    pub bits: u64,
    /// Each member: what is on an accelerator at once while it is streamed.
    pub block_bits: Vec<u64>,
    /// Whether it holds buffers only.
    pub buffers_only: bool,
}

/// A model cut into units.
#[derive(Debug)]
pub struct Blocks {
    /// Rows of each block, in execution order; several where parts were taken out of one.
    pub blocks: Vec<Vec<NodeId>>,
    /// Units in the order of their first positions.
    pub units: Vec<BlockUnit>,
    /// Groups of units that are neighbours in execution order and siblings beside modules that must not be split:
    /// embeddings that their parent adds up, for one.
    pub siblings: Vec<Vec<u32>>,
    unit_at: Vec<u32>,          // by position
    starts: Vec<(NodeId, u32)>, // (row, position), by row
}

impl Blocks {
    /// Cuts a model.
    ///
    /// # Cost
    ///
    /// O(rows), plus the members of units.
    pub fn new(layout: &Layout, options: &BlockOptions) -> Self {
        let cutter = Cutter::new(layout, options);
        let blocks = cutter.cut();
        let mut starts: Vec<(NodeId, u32)> = Vec::new();
        for (position, rows) in blocks.iter().enumerate() {
            starts.extend(rows.iter().map(|&row| (row, id_at(position))));
        }
        starts.sort_unstable();
        let mut this = Self { blocks, units: Vec::new(), siblings: Vec::new(), unit_at: Vec::new(), starts };
        this.join(layout, &options.keep_together);
        this.siblings = this.siblings(&cutter);
        this
    }

    /// The unit at an execution position.
    pub fn unit_at(&self, position: u32) -> u32 {
        self.unit_at[position as usize]
    }

    /// Rows of a unit, block by block.
    pub fn rows_of<'a>(&'a self, unit: &'a BlockUnit) -> impl Iterator<Item = NodeId> + 'a {
        unit.positions.iter().flat_map(|&position| self.blocks[position as usize].iter().copied())
    }

    /// The first row of a block, by its number among those of its unit.
    pub fn first_row(&self, unit: &BlockUnit, block: u32) -> Option<NodeId> {
        let position = unit.positions.get(block as usize)?;
        self.blocks[*position as usize].first().copied()
    }

    /// Modules called `experts` that hold tensors themselves: all experts in one, which no granularity takes apart. Each
    /// with its unit.
    pub fn fused_experts(&self, tree: &Tree) -> Vec<(NodeId, u32)> {
        let is_fused = |&row: &NodeId| {
            tree.is_module(row)
                && tree.local_name(row) == "experts"
                && tree.children(row).any(|child| !tree.is_module(child))
        };
        let fused = (1..id_at(tree.len())).filter(is_fused);
        fused.flat_map(|row| self.units_of(tree, row).into_iter().map(move |unit| (row, unit))).collect()
    }

    /// Units with a block inside a row, or the one that holds it.
    pub fn units_of(&self, tree: &Tree, row: NodeId) -> Vec<u32> {
        let row = tree.original(row);
        let from = self.starts.partition_point(|&(start, _)| start < row);
        let to = self.starts.partition_point(|&(start, _)| start < tree.end(row));
        let inside = self.starts[from..to].iter();
        let around = self.starts[..from].iter().rev().find(|(start, _)| tree.contains(*start, row));
        let mut units: Vec<u32> = inside.chain(around).map(|&(_, position)| self.unit_at(position)).collect();
        units.sort_unstable();
        units.dedup();
        units
    }

    /// Joins blocks that share a tensor or are wanted together.
    fn join(&mut self, layout: &Layout, keep_together: &[Vec<NodeId>]) {
        let tree = layout.tree();
        let held: Vec<Held> = self.weigh(layout);
        let mut sets = DisjointSets::new(id_at(self.blocks.len()));
        let mut holder: HashMap<u32, u32> = HashMap::new();
        for (position, held) in held.iter().enumerate() {
            for &id in &held.shared {
                let first = *holder.entry(id).or_insert(id_at(position));
                sets.unite(first, id_at(position));
            }
        }
        for rows in keep_together {
            let is_member =
                |start: NodeId| rows.iter().any(|&row| tree.contains(row, start) || tree.contains(start, row));
            let members: Vec<u32> =
                self.starts.iter().filter(|(start, _)| is_member(*start)).map(|&(_, p)| p).collect();
            for pair in members.windows(2) {
                sets.unite(pair[0], pair[1]);
            }
        }
        let mut members: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for position in 0..id_at(self.blocks.len()) {
            members.entry(sets.root(position)).or_default().push(position);
        }
        self.unit_at = vec![0; self.blocks.len()];
        for (index, positions) in members.into_values().enumerate() {
            let mut unit = BlockUnit { positions, bits: 0, block_bits: Vec::new(), buffers_only: true };
            let mut union: HashSet<u32> = HashSet::new();
            for &position in &unit.positions {
                self.unit_at[position as usize] = id_at(index);
                let held = &held[position as usize];
                unit.bits += held.own_bits;
                unit.block_bits.push(held.own_bits + total_bits(layout, held.shared.iter()));
                unit.buffers_only &= held.buffers_only;
                union.extend(&held.shared);
            }
            unit.bits += total_bits(layout, union.iter());
            self.units.push(unit);
        }
    }

    /// Units of each run of neighbours that have one parent and stand beside what must not be split.
    fn siblings(&self, cutter: &Cutter) -> Vec<Vec<u32>> {
        let tree = cutter.layout.tree();
        let parent = |rows: &Vec<NodeId>| match rows[..] {
            [row] if cutter.is_beside(row) => Some(tree.parent(row)),
            _ => None,
        };
        // No file holds scratch buffers, and a plan from files is that of the live model.
        let is_saved = |rows: &Vec<NodeId>| {
            let is_kept = |row| tree.kind(row) == Kind::Parameter || tree.kind(row) == Kind::Buffer;
            rows.iter().any(|&row| (row..tree.end(row)).any(is_kept))
        };
        let mut groups: Vec<Vec<u32>> = Vec::new();
        let mut last = None;
        for (rows, &unit) in self.blocks.iter().zip(&self.unit_at).filter(|(rows, _)| is_saved(rows)) {
            let parent = parent(rows);
            match groups.last_mut().filter(|_| parent.is_some() && parent == last) {
                Some(group) if group.contains(&unit) => {}
                Some(group) => group.push(unit),
                None if parent.is_some() => groups.push(vec![unit]),
                None => {}
            }
            last = parent;
        }
        groups.retain(|group| group.len() > 1);
        groups
    }

    /// What each block holds.
    fn weigh(&self, layout: &Layout) -> Vec<Held> {
        let tree = layout.tree();
        let one = |row: NodeId| tree.tensor_id(row).map(|id| layout.one_tensor[id as usize]);
        let mut rows_of = vec![0u8; layout.one_tensor.len()];
        for id in (tree.rows()).filter_map(one) {
            rows_of[id as usize] = rows_of[id as usize].saturating_add(1);
        }
        let weigh = |rows: &Vec<NodeId>| {
            let mut held = Held { own_bits: 0, shared: Vec::new(), buffers_only: true };
            for row in rows.iter().flat_map(|&row| row..tree.end(row)) {
                let Some(id) = one(row) else { continue };
                held.buffers_only &= tree.kind(row) != Kind::Parameter;
                match rows_of[id as usize] {
                    1 => held.own_bits += layout.planned_bits(id).cast_unsigned(), // a size is not negative
                    _ => held.shared.push(id),
                }
            }
            held.shared.sort_unstable();
            held.shared.dedup();
            held
        };
        self.blocks.iter().map(weigh).collect()
    }
}

/// Tensors of one block: bits of those that no other row holds, and ids of the others.
struct Held {
    own_bits: u64,
    shared: Vec<u32>,
    buffers_only: bool,
}

fn total_bits<'a>(layout: &Layout, ids: impl Iterator<Item = &'a u32>) -> u64 {
    ids.map(|&id| layout.planned_bits(id).cast_unsigned()).sum() // sizes are not negative
}

#[cfg(test)]
mod tests {
    use super::Blocks;
    use crate::model::cutting::{BlockOptions, Granularity};
    use crate::testing::{layout, row};

    #[test]
    fn siblings_stand_beside_what_must_not_be_split() {
        let lines = ["word.w 2", "position.w 1", "b:Block.x.w 1", "b:Block.y.w 1", "c:Block.x.w 1"];
        let layout = layout(&lines, &["Block"]);
        let options = BlockOptions { split_rows: vec![row(&layout, "b")], ..Default::default() };
        let blocks = Blocks::new(&layout, &options);
        assert_eq!(blocks.blocks.len(), 5);
        assert_eq!(blocks.siblings, [[0, 1]], "and not the parts of b, which was taken apart");
    }

    #[test]
    fn parts_that_are_named_leave_the_rest_of_their_block() {
        let lines = ["b:Block.attn.w 1", "b:Block.mlp.gate.w 1", "b:Block.mlp.experts.w 2", "c:Block.mlp.experts.w 3"];
        let layout = layout(&lines, &["Block"]);
        let names = |named: &[&str], whole: &[&str]| {
            let rows = |names: &[&str]| names.iter().map(|name| row(&layout, name)).collect();
            let options = BlockOptions { apart_rows: rows(named), no_split_rows: rows(whole), ..Default::default() };
            let blocks = Blocks::new(&layout, &options).blocks;
            let name = |row: &u32| layout.tree().full_name(*row);
            blocks.iter().map(|rows| rows.iter().map(name).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        let experts = ["b.mlp.experts.w", "c.mlp.experts"];
        assert_eq!(names(&experts, &[]), ["b.attn b.mlp.gate", "b.mlp.experts", "c.mlp.experts"]);
        assert_eq!(names(&experts, &["c"]), ["b.attn b.mlp.gate", "b.mlp.experts", "c"], "c stays whole");
        assert_eq!(names(&["b.mlp.experts", "b.mlp"], &[]), ["b.attn", "b.mlp.gate", "b.mlp.experts", "c"]);
        assert_eq!(names(&["b", "c"], &[]), ["b", "c"], "blocks are blocks");
    }

    #[test]
    fn experts_inside_experts_are_part_of_them() {
        let lines = ["b:Block.gate.w 1", "b:Block.experts.0.experts.0.w 2", "b:Block.experts.1.w 3"];
        let layout = layout(&lines, &["Block"]);
        let options = BlockOptions { granularity: Granularity::Expert, ..Default::default() };
        let blocks = Blocks::new(&layout, &options);
        let rows = ["b.gate", "b.experts.0", "b.experts.1"].map(|name| vec![row(&layout, name)]);
        assert_eq!(blocks.blocks, rows);
        assert_eq!(blocks.units.iter().map(|unit| unit.bits).sum::<u64>(), 6 * 8, "each tensor once");
    }
}
