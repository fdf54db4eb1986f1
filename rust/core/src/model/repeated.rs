//! Blocks of a model that does not name its own: what repeats.
//!
//! Modules of one class that a parent holds several of are blocks, if they are numbered or have modules inside. What has no
//! forward of its own is a container and never a block: what repeats inside it is. A module with a forward in which nothing
//! but leaves repeat is a block as well, unless it is more than a fifth of the model. Two more rules keep blocks from being
//! half a model. Siblings without numbers in their names (`encoder`, `decoder`), larger than a fifth of the model, give way to
//! numbered blocks inside them. And as long as the model cannot be cut into two parts of at most 60 %, the block in the way
//! gives way to blocks inside it: its class, or where modules of one class lie in each other, that module alone. So does a
//! module in which nothing repeats and that has no tensors of its own, to its parts.

use std::collections::{HashMap, HashSet};

use crate::ids::{NodeId, id_at};
use crate::model::layout::Layout;
use crate::model::tree::Tree;
use crate::names::is_number;
use crate::sets::BitSet;

/// Which classes only hold others.
#[derive(Debug, Clone, Default)]
pub struct Containers {
    /// Names of lists: what derives from `Sequential`, `ModuleList` or `ModuleDict` and has no forward of its own.
    pub lists: Vec<String>,
    /// Names of others without a forward. One is a container if something inside has a forward; a model where nothing has
    /// one is a sketch, and says nothing by it.
    pub bare: Vec<String>,
    /// Nothing is known of other classes: one with numbered modules and nothing else is a container, too.
    pub by_structure: bool,
}

/// What repeats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repeated {
    /// Names of the classes of blocks, sorted.
    pub classes: Vec<String>,
    /// Containers outside of blocks, and modules that gave way alone; what they hold is placed on its own.
    pub containers: Vec<NodeId>,
}

impl Layout {
    /// What repeats in a model.
    ///
    /// # Cost
    ///
    /// O(rows), once more for each class that gives way.
    pub fn repeated(&self, containers: &Containers) -> Repeated {
        let finder = Finder::new(self, containers);
        let mut blocks = finder.candidates();
        loop {
            let (containers, in_the_way) = finder.walk(&blocks);
            let Some(class) = in_the_way else {
                let mut classes: Vec<String> = blocks.into_keys().map(String::from).collect();
                classes.sort_unstable();
                return Repeated { classes, containers };
            };
            blocks.remove(class);
        }
    }
}

/// What is known of a class whose modules repeat.
#[derive(Debug, Clone, Copy, Default)]
struct Evidence {
    has_modules: bool,
    is_numbered: bool,
    is_lone: bool, // does not repeat itself
}

struct Finder<'a> {
    layout: &'a Layout,
    tree: &'a Tree,
    is_container: BitSet,
    is_bare: BitSet,
    has_tensors: BitSet,
    has_modules: BitSet,
    holds_like: BitSet, // another module of its class
}

impl<'a> Finder<'a> {
    fn new(layout: &'a Layout, containers: &Containers) -> Self {
        let tree = layout.tree();
        let len = tree.len();
        let (mut has_tensors, mut has_modules) = (BitSet::new(len), BitSet::new(len));
        let mut is_mixed = BitSet::new(len); // holds something else than numbered modules
        for row in (1..id_at(len)).rev() {
            let parent = tree.parent(row);
            let is_module = tree.is_module(row);
            if !is_module || has_tensors.contains(row) {
                has_tensors.insert(parent);
            }
            if is_module {
                has_modules.insert(parent);
            }
            if !is_module || !is_number(tree.local_name(row)) {
                is_mixed.insert(parent);
            }
        }
        let lists: HashSet<&str> = containers.lists.iter().map(String::as_str).collect();
        let bare: HashSet<&str> = containers.bare.iter().map(String::as_str).collect();
        let (mut is_container, mut runs_inside) = (BitSet::new(len), BitSet::new(len));
        let mut bare_rows = BitSet::new(len);
        for row in (0..id_at(len)).rev() {
            let Some(class) = tree.class_name(row) else { continue };
            let looks_like_list = containers.by_structure && has_modules.contains(row) && !is_mixed.contains(row);
            let (is_list, is_bare) = (looks_like_list || lists.contains(class), bare.contains(class));
            if is_bare {
                bare_rows.insert(row);
            }
            if is_list || (is_bare && runs_inside.contains(row)) {
                is_container.insert(row);
            }
            if (!is_list && !is_bare) || runs_inside.contains(row) {
                runs_inside.insert(tree.parent(row));
            }
        }
        let holds_like = rows_around_their_like(tree);
        Self { layout, tree, is_container, is_bare: bare_rows, has_tensors, has_modules, holds_like }
    }

    /// Classes of which a parent holds several, without those that give way for their names.
    fn candidates(&self) -> HashMap<&'a str, Evidence> {
        let mut seen: HashMap<(NodeId, &str), Siblings> = HashMap::new();
        let mut found: HashMap<&str, Evidence> = HashMap::new();
        for row in 1..id_at(self.tree.len()) {
            let Some(class) = self.tree.class_name(row) else { continue };
            if self.is_container.contains(row) || self.layout.is_alias(row) || !self.has_tensors.contains(row) {
                continue;
            }
            let siblings = seen.entry((self.tree.parent(row), class)).or_default();
            if let Some(evidence) = siblings.meet(self.tree.local_name(row), self.has_modules.contains(row)) {
                let known = found.entry(class).or_default();
                known.has_modules |= evidence.has_modules;
                known.is_numbered |= evidence.is_numbered;
            }
        }
        let numbered: HashMap<&str, Evidence> =
            found.iter().filter(|(_, evidence)| evidence.is_numbered).map(|(&class, &e)| (class, e)).collect();
        let (large, holders) = (self.large_classes(), self.classes_around(&numbered));
        found.retain(|class, evidence| evidence.is_numbered || !large.contains(class) || !holders.contains(class));
        self.add_lone(&mut found, &large);
        found
    }

    /// Classes of modules with a forward in which leaves repeat and nothing else does: in one of them, results may meet.
    fn add_lone(&self, found: &mut HashMap<&'a str, Evidence>, large: &HashSet<&str>) {
        let (mut holds_leaf, mut holds_block) = (BitSet::new(self.tree.len()), BitSet::new(self.tree.len()));
        let mut lone: HashMap<&str, bool> = HashMap::new(); // whether no module of that class holds a block
        for row in (1..id_at(self.tree.len())).rev() {
            let Some(class) = self.tree.class_name(row) else { continue };
            let (parent, known) = (self.tree.parent(row), found.get(class));
            if holds_leaf.contains(row) || known.is_some_and(|evidence| !evidence.has_modules) {
                holds_leaf.insert(parent);
            }
            if holds_block.contains(row) || known.is_some_and(|evidence| evidence.has_modules) {
                holds_block.insert(parent);
            }
            let is_open = self.is_container.contains(row) || self.is_bare.contains(row) || known.is_some();
            if !is_open && holds_leaf.contains(row) {
                *lone.entry(class).or_insert(true) &= !holds_block.contains(row);
            }
        }
        lone.retain(|class, is_lone| *is_lone && !large.contains(class));
        let evidence = Evidence { has_modules: true, is_numbered: false, is_lone: true };
        found.extend(lone.into_keys().map(|class| (class, evidence)));
    }

    /// Classes of which a module is more than a fifth of the model.
    fn large_classes(&self) -> HashSet<&'a str> {
        let total_bits = self.layout.formula_bits(0);
        let is_large = |&row: &NodeId| 5 * self.layout.formula_bits(row) > total_bits;
        (1..id_at(self.tree.len())).filter(is_large).filter_map(|row| self.tree.class_name(row)).collect()
    }

    /// Classes of modules around blocks of another class that have modules of their own.
    fn classes_around(&self, blocks: &HashMap<&str, Evidence>) -> HashSet<&'a str> {
        let mut inside = vec![Inside::Nothing; self.tree.len()];
        let mut around = HashSet::new();
        // Each row tells its parent what it holds, so that a nest is not walked up from each of its modules.
        for row in (1..id_at(self.tree.len())).rev() {
            let Some(class) = self.tree.class_name(row) else { continue };
            let mut held = inside[row as usize];
            if held.differs_from(class) {
                around.insert(class);
            }
            if blocks.get(class).is_some_and(|evidence| evidence.has_modules) {
                held = held.with(Inside::One(class));
            }
            let above = &mut inside[self.tree.parent(row) as usize];
            *above = above.with(held);
        }
        around
    }

    /// The containers outside of blocks, and the class that gives way as long as a block of it reaches from the first two
    /// fifths of the model into the last two. A module around others of its class gives way alone, as a container does.
    fn walk(&self, blocks: &HashMap<&'a str, Evidence>) -> (Vec<NodeId>, Option<&'a str>) {
        let tree = self.tree;
        let is_block = |row: NodeId| {
            !self.is_container.contains(row) && tree.class_name(row).is_some_and(|class| blocks.contains_key(class))
        };
        let mut holds_block = BitSet::new(tree.len());
        for row in (1..id_at(tree.len())).rev() {
            if is_block(row) || holds_block.contains(row) {
                holds_block.insert(tree.parent(row));
            }
        }
        let total_bits = self.layout.formula_bits(0);
        let mut holders: Option<HashSet<&str>> = None;
        let (mut containers, mut in_the_way, mut before_bits) = (Vec::new(), None, 0i64);
        let mut open = vec![0];
        while let Some(row) = open.pop() {
            let is_container = self.is_container.contains(row) && self.has_modules.contains(row);
            if row == 0 || (!is_block(row) && (is_container || holds_block.contains(row))) {
                if is_container && row != 0 {
                    containers.push(row);
                }
                open.extend(self.parts(row));
                continue;
            }
            let after_bits = before_bits + self.layout.formula_bits(row);
            let is_in_the_way = 5 * before_bits < 2 * total_bits && 5 * after_bits > 3 * total_bits;
            let class = tree.class_name(row).filter(|_| is_block(row));
            if is_in_the_way && class.is_none() && self.has_parts(row) {
                containers.push(row);
                open.extend(self.parts(row));
                continue;
            }
            if let Some(class) = class.filter(|_| is_in_the_way) {
                let mut holds_others = || holders.get_or_insert_with(|| self.classes_around(blocks)).contains(class);
                if blocks[class].is_lone || holds_others() {
                    in_the_way = Some(class);
                } else if self.holds_like.contains(row) {
                    containers.push(row);
                    open.extend(self.parts(row));
                    continue;
                }
            }
            before_bits = after_bits;
        }
        (containers, in_the_way)
    }

    /// Whether all its tensors are in modules inside: one that has tensors of its own may use them together.
    fn has_parts(&self, row: NodeId) -> bool {
        let tree = self.tree;
        self.has_tensors.contains(row) && tree.children(row).all(|child| tree.is_module(child))
    }

    /// What is directly in a module, last first.
    fn parts(&self, row: NodeId) -> Vec<NodeId> {
        let mut parts: Vec<NodeId> = self.tree.children(row).filter(|&child| !self.layout.is_alias(child)).collect();
        parts.reverse();
        parts
    }
}

/// Classes of blocks inside a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside<'a> {
    Nothing,
    One(&'a str),
    Several,
}

impl Inside<'_> {
    fn with(self, other: Self) -> Self {
        match (self, other) {
            (one, Self::Nothing) | (Self::Nothing, one) => one,
            (one, other) if one == other => one,
            _ => Self::Several,
        }
    }

    fn differs_from(self, class: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::One(other) => other != class,
            Self::Several => true,
        }
    }
}

/// Modules with one of their own class inside.
fn rows_around_their_like(tree: &Tree) -> BitSet {
    let mut found = BitSet::new(tree.len());
    let mut around: HashMap<&str, Vec<NodeId>> = HashMap::new();
    for row in tree.rows() {
        let Some(class) = tree.class_name(row) else { continue };
        let like = around.entry(class).or_default();
        while like.last().is_some_and(|&last| tree.end(last) <= row) {
            like.pop();
        }
        like.last().iter().for_each(|&&last| found.insert(last));
        like.push(row);
    }
    found
}

/// Modules of one class with one parent.
#[derive(Debug, Default)]
struct Siblings {
    numbers: u32,
    composites: u32,
    numbered: u32, // composites with a number anywhere in their name
}

impl Siblings {
    /// Meets another; what it says once it is not the first.
    fn meet(&mut self, name: &str, has_modules: bool) -> Option<Evidence> {
        let is_number = is_number(name);
        self.numbers += u32::from(is_number);
        self.composites += u32::from(has_modules);
        self.numbered += u32::from(has_modules && name.contains(|char: char| char.is_ascii_digit()));
        let is_numbered = self.numbered > 1 || (is_number && self.numbers > 1);
        (is_numbered || self.composites > 1).then_some(Evidence { has_modules, is_numbered, is_lone: false })
    }
}

#[cfg(test)]
mod tests {
    use super::Inside;

    #[test]
    fn what_holds_several_classes_differs_from_each() {
        let (one, other) = (Inside::One("A"), Inside::One("B"));
        assert!(!Inside::Nothing.differs_from("A") && !one.differs_from("A") && one.differs_from("B"));
        assert!(one.with(other).differs_from("A") && one.with(other).differs_from("B"));
        assert_eq!((one.with(one), one.with(Inside::Nothing), Inside::Nothing.with(one)), (one, one, one));
    }
}
