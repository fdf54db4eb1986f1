//! From placements to a device map: aliases get their original's device, and subtrees on one device become one key.

use std::collections::HashMap;

use crate::ids::{NodeId, id_at};
use crate::keys::KeyTrie;
use crate::model::blocks::Blocks;
use crate::model::tree::Tree;
use crate::outcome::Placement;
use crate::sets::BitSet;

/// What is known of the keys strictly below a place.
#[derive(Debug)]
struct Below {
    count: u8, // 1, or 2 for more
    value: u32,
    mixed: bool,
    children: Vec<u32>,
}

const NONE: u32 = u32::MAX;

/// Ancestors of keys, found by place.
struct Ancestors {
    slot: Vec<u32>,
    below: Vec<Below>,
    listed: BitSet,
}

impl Ancestors {
    fn of(len: usize, parent: &impl Fn(u32) -> u32, entries: &[(u32, u32)]) -> Self {
        let mut known = Self { slot: vec![NONE; len], below: Vec::new(), listed: BitSet::new(len) };
        for &(place, value) in entries {
            known.tell(parent, place, value);
        }
        known
    }

    fn get(&self, place: u32) -> Option<&Below> {
        self.below.get(self.slot[place as usize] as usize)
    }

    /// Tells each ancestor of a key, until one knows that all further up have heard as much.
    fn tell(&mut self, parent: &impl Fn(u32) -> u32, place: u32, value: u32) {
        let mut child = place;
        loop {
            let above = parent(child);
            let slot = &mut self.slot[above as usize];
            let is_known = *slot != NONE;
            if !is_known {
                *slot = id_at(self.below.len());
                self.below.push(Below { count: 0, value, mixed: false, children: Vec::new() });
            }
            let below = &mut self.below[self.slot[above as usize] as usize];
            if child != 0 && !self.listed.contains(child) {
                self.listed.insert(child);
                below.children.push(child);
            }
            if below.count == 2 && (below.mixed || below.value == value) {
                return;
            }
            below.mixed |= below.value != value;
            below.count = (below.count + 1).min(2);
            if above == 0 {
                return;
            }
            child = above;
        }
    }
}

/// Groups keys that share a parent and a value, topmost first, as accelerate's `clean_device_map` does.
///
/// Entries are (place, value), each place once; places are ids below `len` with a `parent`; the root is 0 and its own parent.
///
/// # Returns
///
/// The surviving entries in their order, then one entry per grouped parent, in the order of a depth-first walk.
///
/// # Cost
///
/// O(len + entries × depth) at worst, O(len + entries) where neighbours agree.
pub fn clean(len: usize, parent: impl Fn(u32) -> u32, entries: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let ancestors = Ancestors::of(len, &parent, entries);
    let mut kept = BitSet::new(len);
    let mut grouped = Vec::new();
    let mut is_grouped = BitSet::new(len);
    let mut open = vec![0];
    while let Some(place) = open.pop() {
        kept.insert(place);
        let Some(below) = ancestors.get(place) else { continue };
        if below.count == 2 && !below.mixed {
            grouped.push((place, below.value));
            is_grouped.insert(place);
        } else {
            open.extend(below.children.iter().rev());
        }
    }
    if is_grouped.contains(0) {
        return grouped;
    }
    let mut result: Vec<(u32, u32)> = Vec::new();
    let mut in_place = BitSet::new(len);
    let value_below = |place| ancestors.get(place).map(|below| below.value);
    for &(place, value) in entries.iter().filter(|(place, _)| kept.contains(*place)) {
        if is_grouped.contains(place) {
            // The grouped parent was a key of its own: it keeps its position and takes the common value.
            in_place.insert(place);
            result.push((place, value_below(place).unwrap_or(value)));
        } else {
            result.push((place, value));
        }
    }
    result.extend(grouped.into_iter().filter(|(place, _)| !in_place.contains(*place)));
    result
}

/// [`clean`] over the rows of a tree.
pub fn clean_nodes(tree: &Tree, placements: &[(NodeId, u32)]) -> Vec<(NodeId, u32)> {
    clean(tree.len(), |node| tree.parent(node), placements)
}

/// [`clean`] over dotted keys with values that are compared as ids.
///
/// # Cost
///
/// O(parts of keys).
pub fn clean_keys(keys: &[String], values: &[u32]) -> Vec<(String, u32)> {
    let trie = KeyTrie::new(keys);
    let entries: Vec<(u32, u32)> = trie.keys().iter().copied().zip(values.iter().copied()).collect();
    let cleaned = clean(trie.len(), |place| trie.parent(place), &entries);
    cleaned.into_iter().map(|(place, value)| (trie.name(place), value)).collect()
}

/// The fewest keys for the blocks that have a device, in execution order, with all aliases; `device_of` takes a unit and the
/// number of a block among its own.
pub fn keys_of_blocks(
    tree: &Tree,
    blocks: &Blocks,
    device_of: impl Fn(usize, usize) -> Option<u32>,
) -> Vec<(NodeId, u32)> {
    let mut placements = Vec::new();
    let mut seen = vec![0; blocks.units.len()];
    let mut is_whole = true;
    for (position, rows) in (0..).zip(&blocks.blocks) {
        let unit = blocks.unit_at(position) as usize;
        let number = seen[unit];
        seen[unit] += 1; // positions of a unit ascend
        match device_of(unit, number) {
            Some(device) => placements.extend(rows.iter().map(|&node| Placement { node, device, is_lead: true })),
            None => is_whole &= rows.is_empty(),
        }
    }
    let entries = with_aliases(tree, &placements);
    // Keys that leave others out must not be grouped under a name that covers those, too.
    let mut entries = if is_whole { clean_nodes(tree, &entries) } else { entries };
    entries.sort_unstable(); // Rows are in execution order.
    entries
}

/// Placements with every alias that holds a tensor right behind its original.
///
/// # Guarantee
///
/// Without aliases, the placements as they are.
pub fn with_aliases(tree: &Tree, placements: &[Placement]) -> Vec<(NodeId, u32)> {
    if tree.aliases().is_empty() {
        return placements.iter().map(|p| (p.node, p.device)).collect();
    }
    let mut aliases: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
    for &(alias, original) in tree.aliases() {
        aliases.entry(original).or_default().push(alias);
    }
    let mut result = Vec::new();
    for placement in placements {
        let holds_tensor = (placement.node..tree.end(placement.node)).any(|node| !tree.is_module(node));
        for node in mirrors(tree, &aliases, placement.node) {
            if node == placement.node || holds_tensor {
                result.push((node, placement.device));
            }
        }
    }
    result
}

/// A node under all its names: itself first, then with each ancestor (or itself) replaced by its aliases.
fn mirrors(tree: &Tree, aliases: &HashMap<NodeId, Vec<NodeId>>, node: NodeId) -> Vec<NodeId> {
    let mut found = vec![node];
    let mut above = node;
    while above != 0 {
        let known = found.len();
        for &alias in aliases.get(&above).into_iter().flatten() {
            for index in 0..known {
                found.push(alias + (found[index] - above));
            }
        }
        above = tree.parent(above);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{clean_keys, keys_of_blocks};
    use crate::model::blocks::Blocks;
    use crate::model::cutting::BlockOptions;
    use crate::testing::layout;

    #[test]
    fn keys_below_one_name_with_one_value_are_one_key() {
        let keys = ["a.x", "a.y", "b.x", "b.y"].map(String::from);
        let cleaned = |values: [u32; 4]| clean_keys(&keys, &values);
        assert_eq!(cleaned([1, 1, 1, 2]), [("b.x".to_string(), 1), ("b.y".to_string(), 2), ("a".to_string(), 1)]);
        assert_eq!(cleaned([1; 4]), [(String::new(), 1)]);
    }

    /// Layers of two blocks; one of them is not asked for.
    #[test]
    fn keys_that_leave_blocks_out_are_not_grouped() {
        let layout = layout(&["m.l0:B.w 1", "m.l1:B.w 1", "head.w 1"], &["B"]);
        let (tree, blocks) = (layout.tree(), Blocks::new(&layout, &BlockOptions::default()));
        let keys = |devices: [Option<u32>; 3]| {
            let found = keys_of_blocks(tree, &blocks, |unit, _| devices[unit]);
            found.into_iter().map(|(row, device)| format!("{}={device}", tree.full_name(row))).collect::<Vec<String>>()
        };
        assert_eq!(keys([Some(0), Some(0), Some(1)]), ["m=0", "head=1"]);
        assert_eq!(keys([Some(0); 3]), ["=0"]);
        assert_eq!(keys([Some(0), Some(0), None]), ["m.l0=0", "m.l1=0"]);
        assert!(keys([None; 3]).is_empty());
    }
}
