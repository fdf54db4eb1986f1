//! From placements to a device map: twins get their original's device, and subtrees on one device become one key.

use std::collections::HashMap;

use crate::bits::BitSet;
use crate::outcome::Placement;
use crate::tree::{NodeId, Tree};

/// Dotted keys as a trie; place 0 is the empty key.
#[derive(Debug)]
pub struct KeyTrie {
    parent: Vec<u32>,
    children: Vec<Option<HashMap<Box<str>, u32>>>,
    keys: Vec<u32>,
    names: Vec<Box<str>>,
}

impl KeyTrie {
    /// The trie of these keys; equal keys share a place.
    pub fn new<S: AsRef<str>>(keys: &[S]) -> Self {
        let mut trie = Self { parent: vec![0], children: vec![None], keys: Vec::new(), names: vec!["".into()] };
        for key in keys {
            let place = trie.insert(key.as_ref());
            trie.keys.push(place);
        }
        trie
    }

    fn insert(&mut self, key: &str) -> u32 {
        let mut place = 0;
        if key.is_empty() {
            return place;
        }
        for part in key.split('.') {
            let next = self.parent.len() as u32;
            let map = self.children[place as usize].get_or_insert_default();
            place = match map.get(part) {
                Some(&below) => below,
                None => {
                    map.insert(part.into(), next);
                    self.parent.push(place);
                    self.children.push(None);
                    self.names.push(part.into());
                    next
                }
            };
        }
        place
    }

    /// Number of places.
    pub fn len(&self) -> usize {
        self.parent.len()
    }

    /// Whether there is no key but the empty one.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// Place of each key, in the order given.
    pub fn keys(&self) -> &[u32] {
        &self.keys
    }

    /// The place above.
    pub fn parent(&self, place: u32) -> u32 {
        self.parent[place as usize]
    }

    /// Whether any key goes on below a place.
    pub fn has_children(&self, place: u32) -> bool {
        self.children[place as usize].is_some()
    }

    /// The place below, by the next part of the key.
    pub fn child(&self, place: u32, part: &str) -> Option<u32> {
        self.children[place as usize].as_ref()?.get(part).copied()
    }

    /// The dotted key of a place.
    pub fn name(&self, mut place: u32) -> String {
        let mut parts = Vec::new();
        while place != 0 {
            parts.push(&*self.names[place as usize]);
            place = self.parent(place);
        }
        parts.reverse();
        parts.join(".")
    }
}

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
                *slot = self.below.len() as u32;
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

/// Placements with every twin that holds a tensor right behind its original.
///
/// # Guarantee
///
/// Without twins, the placements as they are.
pub fn with_twins(tree: &Tree, placements: &[Placement]) -> Vec<(NodeId, u32)> {
    if tree.twins().is_empty() {
        return placements.iter().map(|p| (p.node, p.device)).collect();
    }
    let mut twins: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
    for &(twin, original) in tree.twins() {
        twins.entry(original).or_default().push(twin);
    }
    let mut result = Vec::new();
    for placement in placements {
        let holds_tensor = (placement.node..tree.end(placement.node)).any(|node| !tree.is_module(node));
        for node in mirrors(tree, &twins, placement.node) {
            if node == placement.node || holds_tensor {
                result.push((node, placement.device));
            }
        }
    }
    result
}

/// A node under all its names: itself first, then with each ancestor (or itself) replaced by its twins.
fn mirrors(tree: &Tree, twins: &HashMap<NodeId, Vec<NodeId>>, node: NodeId) -> Vec<NodeId> {
    let mut found = vec![node];
    let mut above = node;
    while above != 0 {
        let known = found.len();
        for &twin in twins.get(&above).into_iter().flatten() {
            for index in 0..known {
                found.push(twin + (found[index] - above));
            }
        }
        above = tree.parent(above);
    }
    found
}
