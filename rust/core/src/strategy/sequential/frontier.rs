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
                continue;
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
