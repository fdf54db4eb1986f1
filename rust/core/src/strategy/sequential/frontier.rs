//! What is left to place: the entries of accelerate's `modules_to_treat`, without the list.
//!
//! Every entry is a row whose ancestors were all split. The entries in order of their rows are the list, so a cursor, a
//! mark for "split" and a mark for "placed" are all the state there is.

use std::collections::VecDeque;

use crate::ids::NodeId;
use crate::model::layout::Layout;
use crate::model::tree::Kind;
use crate::sets::BitSet;

/// Entries still to be placed.
#[derive(Debug)]
pub(crate) struct Frontier<'a> {
    layout: &'a Layout,
    split: BitSet,
    placed: BitSet,
    cursor: NodeId,
    ahead: VecDeque<NodeId>, // tensors of a block taken apart; they come before the cursor
}

impl<'a> Frontier<'a> {
    /// The root's children.
    pub(crate) fn new(layout: &'a Layout) -> Self {
        let len = layout.tree().len();
        let mut frontier =
            Self { layout, split: BitSet::new(len), placed: BitSet::new(len), cursor: 0, ahead: VecDeque::new() };
        frontier.split.insert(0);
        frontier
    }

    /// The first entry.
    pub(crate) fn current(&mut self) -> Option<NodeId> {
        while let Some(&node) = self.ahead.front() {
            if !self.placed.contains(node) {
                return Some(node);
            }
            self.ahead.pop_front();
        }
        let tree = self.layout.tree();
        while (self.cursor as usize) < tree.len() {
            // A placed subtree is left in one step, so the cursor meets each row at most once in a pass.
            if self.placed.contains(self.cursor) || self.layout.is_alias(self.cursor) {
                self.cursor = tree.end(self.cursor);
            } else if self.split.contains(self.cursor) {
                self.cursor += 1;
            } else {
                return Some(self.cursor);
            }
        }
        None
    }

    pub(crate) fn place(&mut self, entry: NodeId) {
        self.placed.insert(entry);
    }

    pub(crate) fn is_split(&self, node: NodeId) -> bool {
        self.split.contains(node)
    }

    /// Replaces an entry by its children.
    pub(crate) fn split(&mut self, entry: NodeId) {
        self.split.insert(entry);
    }

    /// Replaces a block by its tensors, parameters first, and drops those that need no place.
    pub(crate) fn take_apart(&mut self, block: NodeId) {
        let tree = self.layout.tree();
        let mut buffers = Vec::new();
        for node in block..tree.end(block) {
            if tree.is_module(node) {
                self.split.insert(node);
            } else if self.layout.is_alias(node) {
                // It follows its original.
            } else if self.layout.exempt.contains(node) {
                self.placed.insert(node);
            } else if tree.kind(node) == Kind::Parameter {
                self.ahead.push_back(node);
            } else {
                buffers.push(node);
            }
        }
        self.ahead.extend(buffers);
    }

    /// The entry that holds a row; `None` once it is placed, or where the row follows its original.
    pub(crate) fn entry_of(&self, row: NodeId) -> Option<NodeId> {
        let tree = self.layout.tree();
        let mut node = row;
        while !self.split.contains(tree.parent(node)) {
            node = tree.parent(node);
        }
        self.alive(node)
    }

    /// The entry that would hold a row, were the ancestors of `beside` split. None of these is placed, as `beside` could be
    /// none of the candidates then; so a row is placed only where the entry found here is.
    pub(crate) fn entry_beside(&self, row: NodeId, beside: NodeId) -> Option<NodeId> {
        let tree = self.layout.tree();
        let mut node = row;
        let mut parent = tree.parent(node);
        while !self.split.contains(parent) && !tree.contains(parent, beside) {
            node = parent;
            parent = tree.parent(node);
        }
        self.alive(node)
    }

    /// Entries among and inside which `node` lies, from the entry down to the parent of `node`: what has to be split
    /// to make `node` an entry. `None` if it is placed.
    pub(crate) fn ancestors_to_split(&self, node: NodeId) -> Option<Vec<NodeId>> {
        let tree = self.layout.tree();
        let mut path = Vec::new();
        let mut here = node;
        loop {
            if self.placed.contains(here) {
                return None;
            }
            let parent = tree.parent(here);
            if self.split.contains(parent) {
                break;
            }
            path.push(parent);
            here = parent;
        }
        path.reverse();
        Some(path)
    }

    fn alive(&self, entry: NodeId) -> Option<NodeId> {
        (!self.placed.contains(entry) && !self.layout.is_alias(entry)).then_some(entry)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Frontier;
    use crate::model::layout::Layout;
    use crate::model::options::LayoutOptions;
    use crate::testing::{layout, row, tree};

    const LINES: &[&str] = &["a.x.v 1", "a.x.w 1", "a.y.w 1", "b.x.w 1", "c.w 1", "~mask 1"];

    /// Names of the entries, each placed as it comes.
    fn entries(layout: &Layout, frontier: &mut Frontier) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(entry) = frontier.current() {
            names.push(layout.tree().full_name(entry));
            frontier.place(entry);
        }
        names
    }

    #[test]
    fn entries_are_the_children_of_what_was_split() {
        let layout = layout(LINES, &[]);
        let mut frontier = Frontier::new(&layout);
        assert_eq!(entries(&layout, &mut frontier), ["a", "b", "c", "mask"]);
        let mut frontier = Frontier::new(&layout);
        frontier.split(row(&layout, "a"));
        frontier.split(row(&layout, "a.x"));
        frontier.place(row(&layout, "c"));
        assert_eq!(entries(&layout, &mut frontier), ["a.x.v", "a.x.w", "a.y", "b", "mask"]);
    }

    #[test]
    fn a_row_is_held_by_its_entry_until_that_is_placed() {
        let layout = layout(LINES, &[]);
        let mut frontier = Frontier::new(&layout);
        let (a, inner) = (row(&layout, "a"), row(&layout, "a.x.w"));
        assert_eq!(frontier.entry_of(inner), Some(a));
        assert_eq!(frontier.ancestors_to_split(inner), Some(vec![a, row(&layout, "a.x")]));
        frontier.split(a);
        assert_eq!(frontier.entry_of(inner), Some(row(&layout, "a.x")));
        assert_eq!(frontier.ancestors_to_split(inner), Some(vec![row(&layout, "a.x")]));
        frontier.place(row(&layout, "a.x"));
        assert_eq!((frontier.entry_of(inner), frontier.ancestors_to_split(inner)), (None, None));
    }

    /// Were `a.y` an entry, `a.x` would be one, too, and hold what is now held by `a`.
    #[test]
    fn beside_a_candidate_its_ancestors_count_as_split() {
        let layout = layout(LINES, &[]);
        let mut frontier = Frontier::new(&layout);
        let (inner, beside) = (row(&layout, "a.x.w"), row(&layout, "a.y"));
        assert_eq!(frontier.entry_beside(inner, beside), Some(row(&layout, "a.x")));
        assert_eq!(frontier.entry_beside(row(&layout, "b.x.w"), beside), Some(row(&layout, "b")));
        frontier.place(row(&layout, "b"));
        assert_eq!(frontier.entry_beside(row(&layout, "b.x.w"), beside), None, "what was placed comes along no more");
    }

    #[test]
    fn a_block_taken_apart_gives_its_tensors_parameters_first() {
        let tree = tree(&["a.w 1", "b:Block.x.w 1", "b:Block.x.~own 1", "b:Block.y.v 1", "b:Block.y.w 1"]);
        let exempt = tree.resolve(&["b.y.v"]).into_iter().flatten().collect();
        let layout = Layout::new(tree.into(), LayoutOptions { exempt, ..Default::default() }).unwrap();
        let mut frontier = Frontier::new(&layout);
        frontier.take_apart(row(&layout, "b"));
        assert_eq!(entries(&layout, &mut frontier), ["b.x.w", "b.y.w", "b.x.own", "a"]);
    }
}
