//! The flattened module tree: modules and tensors as columns in preorder.
//!
//! A module's row is followed by its direct parameters, its child modules (each with all that is inside), and its direct
//! buffers: the order in which the sequential strategy treats them. Containment is an interval test on row numbers.
//!
//! A module or tensor that its parent registers twice appears twice; the later row is an *alias* of the first, with rows of
//! the same shape below it. Registered below different parents, it appears below each, and is not an alias.

use std::ops::Range;

use crate::ids::{DTypeId, NodeId, TensorId, id_at};
use crate::keys::KeyTrie;
use crate::names::Names;

/// What a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An `nn.Module`.
    Module,
    /// A parameter.
    Parameter,
    /// A buffer that is saved with the model.
    Buffer,
    /// A buffer that is not saved.
    NonPersistentBuffer,
}

/// How large the elements of a type are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DType {
    /// Bits per element by accelerate's `dtype_byte_size`.
    pub formula_bits: u64,
    /// Bits per element as stored.
    pub stored_bits: u64,
    /// Whether loading with another dtype casts it; integers and booleans stay.
    pub castable: bool,
}

/// One tensor object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    /// Elements.
    pub numel: u64,
    /// Element type.
    pub dtype: DTypeId,
    /// Bytes of a tensor subclass that stores something else than `numel` elements of its dtype, and is never cast.
    pub opaque_bytes: Option<u64>,
    /// Length of the last dimension; 0 where that is not known. No size depends on it.
    pub width: u64,
}

/// A module tree that cannot change.
#[derive(Debug, Clone)]
pub struct Tree {
    pub(super) parent: Vec<NodeId>,
    pub(super) end: Vec<NodeId>,
    pub(super) kind: Vec<Kind>,
    pub(super) content: Vec<u32>,
    pub(super) name: Vec<u32>,
    pub(super) aliases: Vec<(NodeId, NodeId)>,
    pub(super) tensors: Vec<Tensor>,
    pub(super) dtypes: Vec<DType>,
    pub(super) names: Names,
    pub(super) classes: Names,
}

impl Tree {
    /// Number of rows, the root included.
    pub fn len(&self) -> usize {
        self.parent.len()
    }

    /// All rows, in order.
    pub fn rows(&self) -> Range<NodeId> {
        0..id_at(self.len())
    }

    /// Whether the root is alone.
    pub fn is_empty(&self) -> bool {
        self.len() <= 1
    }

    /// Number of module rows, the root and aliases included.
    pub fn module_count(&self) -> usize {
        self.kind.iter().filter(|&&kind| kind == Kind::Module).count()
    }

    /// Number of tensor objects.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Bytes held by the columns.
    pub fn held_bytes(&self) -> usize {
        let rows = self.len() * (4 * size_of::<u32>() + size_of::<Kind>());
        rows + self.tensors.len() * size_of::<Tensor>() + self.names.held_bytes()
    }

    /// The module that holds a row; the root holds itself.
    pub fn parent(&self, node: NodeId) -> NodeId {
        #[cfg(test)]
        reads::count();
        self.parent[node as usize]
    }

    /// First row after everything inside `node`.
    pub fn end(&self, node: NodeId) -> NodeId {
        #[cfg(test)]
        reads::count();
        self.end[node as usize]
    }

    /// What a row is.
    pub fn kind(&self, node: NodeId) -> Kind {
        #[cfg(test)]
        reads::count();
        self.kind[node as usize]
    }

    /// Whether a row is a module.
    pub fn is_module(&self, node: NodeId) -> bool {
        self.kind(node) == Kind::Module
    }

    /// Whether a row is a buffer, saved or not.
    pub fn is_buffer(&self, node: NodeId) -> bool {
        matches!(self.kind(node), Kind::Buffer | Kind::NonPersistentBuffer)
    }

    /// Whether `inner` is `outer` or inside it.
    pub fn contains(&self, outer: NodeId, inner: NodeId) -> bool {
        outer <= inner && inner < self.end(outer)
    }

    /// The tensor of a row that is not a module.
    pub fn tensor_id(&self, node: NodeId) -> Option<TensorId> {
        (!self.is_module(node)).then(|| self.content[node as usize])
    }

    /// A tensor object and its element type.
    pub fn tensor(&self, id: TensorId) -> (Tensor, DType) {
        let tensor = self.tensors[id as usize];
        (tensor, self.dtypes[tensor.dtype as usize])
    }

    /// Class id of a module row; 0 for tensors never reaches a caller, for callers ask for modules only.
    pub(crate) fn class_id(&self, node: NodeId) -> u32 {
        self.content[node as usize]
    }

    /// Class name of a module row.
    pub fn class_name(&self, node: NodeId) -> Option<&str> {
        self.is_module(node).then(|| self.classes.get(self.content[node as usize]))
    }

    /// For each class id, whether its name is among `names`.
    pub(crate) fn class_mask(&self, names: &[String]) -> Vec<bool> {
        (0..id_at(self.classes.len())).map(|id| names.iter().any(|name| name == self.classes.get(id))).collect()
    }

    /// Rows directly inside a module, in order.
    pub fn children(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let end = self.end(node);
        let mut next = node + 1;
        std::iter::from_fn(move || {
            let child = (next < end).then_some(next)?;
            next = self.end(child);
            Some(child)
        })
    }

    /// By module row but the root, in order: the module that holds it, counted among these, and how many modules have tensors of their
    /// own, itself and those inside.
    pub fn module_places(&self) -> Vec<(Option<usize>, usize)> {
        let mut number = vec![None; self.len()];
        let mut places: Vec<(Option<usize>, usize)> = Vec::new();
        for node in self.rows().skip(1) {
            let outer = number[self.parent(node) as usize];
            if self.is_module(node) {
                number[node as usize] = Some(places.len());
                let holds = self.children(node).any(|inner| !self.is_module(inner));
                places.push((outer, usize::from(holds)));
            }
        }
        for place in (0..places.len()).rev() {
            if let (Some(outer), count) = places[place] {
                places[outer].1 += count;
            }
        }
        places
    }

    /// Aliases as (alias, original), by alias.
    pub fn aliases(&self) -> &[(NodeId, NodeId)] {
        &self.aliases
    }

    /// The row that is planned for a row: the same but inside of an alias, where it is that of the original.
    pub fn original(&self, node: NodeId) -> NodeId {
        let mut node = node;
        // Aliases inside of aliases: the inner one leads to a row that may lie inside of the outer one.
        while let Some(&(alias, original)) = self.aliases.iter().find(|(alias, _)| self.contains(*alias, node)) {
            node = original + (node - alias);
        }
        node
    }

    /// Last part of a row's name.
    pub fn local_name(&self, node: NodeId) -> &str {
        self.names.get(self.name[node as usize])
    }

    /// Dotted name from the root, whose own name is empty.
    pub fn full_name(&self, node: NodeId) -> String {
        let (mut path, mut length) = (Vec::with_capacity(8), 0);
        let mut node = node;
        while node != 0 {
            path.push(node);
            length += self.local_name(node).len() + 1;
            node = self.parent(node);
        }
        let mut name = String::with_capacity(length);
        for (index, &part) in path.iter().rev().enumerate() {
            if index > 0 {
                name.push('.');
            }
            name.push_str(self.local_name(part));
        }
        name
    }

    /// Rows of many dotted names at once, `None` where there is no such row.
    ///
    /// # Cost
    ///
    /// Linear in the names and in the children of the modules on their paths.
    pub fn resolve<S: AsRef<str>>(&self, names: &[S]) -> Vec<Option<NodeId>> {
        let trie = KeyTrie::new(names);
        let mut found = vec![None; trie.len()];
        let mut open = vec![(0, 0)];
        while let Some((node, place)) = open.pop() {
            found[place as usize] = Some(node);
            if self.is_module(node) && trie.has_children(place) {
                for child in self.children(node) {
                    if let Some(below) = trie.child(place, self.local_name(child)) {
                        open.push((child, below));
                    }
                }
            }
        }
        trie.keys().iter().map(|&place| found[place as usize]).collect()
    }

    /// The same tree where each of these tensors is an object of its own, as large as it was; names of nothing, and of modules, say
    /// nothing.
    #[must_use]
    pub fn untied<S: AsRef<str>>(&self, names: &[S]) -> Self {
        let mut tree = self.clone();
        for node in self.resolve(names).into_iter().flatten() {
            let Some(id) = self.tensor_id(node) else { continue };
            tree.content[node as usize] = id_at(tree.tensors.len());
            tree.tensors.push(self.tensors[id as usize]);
        }
        tree
    }
}

/// The part of a list sorted by row whose rows lie in `start..end`.
pub(crate) fn slice_between(list: &[(NodeId, u32)], start: NodeId, end: NodeId) -> &[(NodeId, u32)] {
    let from = list.partition_point(|&(node, _)| node < start);
    let to = from + list[from..].partition_point(|&(node, _)| node < end);
    &list[from..to]
}

/// How often the columns of trees were read by this thread: what the tests of linear time count.
#[cfg(test)]
pub(crate) mod reads {
    use std::cell::Cell;

    thread_local!(static READS: Cell<u64> = const { Cell::new(0) });

    pub(super) fn count() {
        READS.set(READS.get() + 1);
    }

    /// Reads during a call.
    pub(crate) fn during(call: impl FnOnce()) -> u64 {
        let before = READS.get();
        call();
        READS.get() - before
    }
}
