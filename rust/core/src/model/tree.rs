//! The flattened module tree: modules and tensors as columns in preorder.
//!
//! A module's row is followed by its direct parameters, its child modules (each with all that is inside), and its direct
//! buffers: the order in which the sequential strategy treats them. Containment is an interval test on row numbers.
//!
//! A module or tensor that its parent registers twice appears twice; the later row is an *alias* of the first, with rows of
//! the same shape below it. Registered below different parents, it appears below each, and is not an alias.

use crate::error::Error;
use crate::ids::{DTypeId, NodeId, TensorId};
use crate::keys::KeyTrie;
use crate::names::Names;

/// Most rows of a tree; bounds memory to about 600 MB.
const NODE_LIMIT: usize = 30_000_000;

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
}

/// A module tree that cannot change.
#[derive(Debug)]
pub struct Tree {
    parent: Vec<NodeId>,
    end: Vec<NodeId>,
    kind: Vec<Kind>,
    content: Vec<u32>,
    name: Vec<u32>,
    aliases: Vec<(NodeId, NodeId)>,
    tensors: Vec<Tensor>,
    dtypes: Vec<DType>,
    names: Names,
    classes: Names,
}

impl Tree {
    /// Number of rows, the root included.
    pub fn len(&self) -> usize {
        self.parent.len()
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
        (0..self.classes.len() as u32).map(|id| names.iter().any(|name| name == self.classes.get(id))).collect()
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

    /// Aliases as (alias, original), by alias.
    pub fn aliases(&self) -> &[(NodeId, NodeId)] {
        &self.aliases
    }

    /// Last part of a row's name.
    pub fn local_name(&self, node: NodeId) -> &str {
        self.names.get(self.name[node as usize])
    }

    /// Dotted name from the root, whose own name is empty.
    pub fn full_name(&self, node: NodeId) -> String {
        let mut path = Vec::new();
        let mut node = node;
        while node != 0 {
            path.push(node);
            node = self.parent(node);
        }
        let mut name = String::new();
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
}

/// Builds a [`Tree`] in one walk.
#[derive(Debug, Default)]
pub struct TreeBuilder {
    parent: Vec<NodeId>,
    end: Vec<NodeId>,
    kind: Vec<Kind>,
    content: Vec<u32>,
    name: Vec<u32>,
    aliases: Vec<(NodeId, NodeId)>,
    tensors: Vec<Tensor>,
    dtypes: Vec<DType>,
    names: Names,
    classes: Names,
    current: NodeId,
}

impl TreeBuilder {
    /// A tree with a root of no class; [`Self::root_class`] names it.
    pub fn new() -> Self {
        let mut builder = Self::default();
        let (name, class) = (builder.names.add(""), builder.classes.add(""));
        builder.parent.push(0);
        builder.end.push(0);
        builder.kind.push(Kind::Module);
        builder.content.push(class);
        builder.name.push(name);
        builder
    }

    /// Names the root's class.
    pub fn root_class(&mut self, class: &str) {
        self.content[0] = self.classes.add(class);
    }

    /// Registers an element type.
    pub fn dtype(&mut self, dtype: DType) -> DTypeId {
        self.dtypes.push(dtype);
        (self.dtypes.len() - 1) as DTypeId
    }

    /// Registers a tensor object.
    pub fn tensor(&mut self, tensor: Tensor) -> TensorId {
        self.tensors.push(tensor);
        (self.tensors.len() - 1) as TensorId
    }

    /// A new id for a local name, for [`Self::enter_id`] and [`Self::leaf_id`].
    pub fn name_id(&mut self, name: &str) -> u32 {
        self.names.add(name)
    }

    /// A new id for a class name, for [`Self::enter_id`].
    pub fn class_id(&mut self, class: &str) -> u32 {
        self.classes.add(class)
    }

    /// Opens a child module of the current one.
    pub fn enter(&mut self, name: &str, class: &str) -> Result<NodeId, Error> {
        let (name, class) = (self.names.add(name), self.classes.add(class));
        self.enter_id(name, class)
    }

    /// As [`Self::enter`], by ids.
    pub fn enter_id(&mut self, name: u32, class: u32) -> Result<NodeId, Error> {
        let node = self.push(name, Kind::Module, class)?;
        self.current = node;
        Ok(node)
    }

    /// Closes the current module.
    pub fn leave(&mut self) {
        self.end[self.current as usize] = self.parent.len() as NodeId;
        self.current = self.parent[self.current as usize];
    }

    /// Adds a tensor to the current module. Parameters come before child modules, buffers after them.
    pub fn leaf(&mut self, name: &str, kind: Kind, tensor: TensorId) -> Result<NodeId, Error> {
        let name = self.names.add(name);
        self.leaf_id(name, kind, tensor)
    }

    /// As [`Self::leaf`], by id.
    pub fn leaf_id(&mut self, name: u32, kind: Kind, tensor: TensorId) -> Result<NodeId, Error> {
        let node = self.push(name, kind, tensor)?;
        self.end[node as usize] = node + 1;
        Ok(node)
    }

    /// Says that `alias` is what its parent already registered as `original`.
    pub fn alias(&mut self, alias: NodeId, original: NodeId) {
        self.aliases.push((alias, original));
    }

    /// Rows added so far, the root included.
    pub fn row_count(&self) -> usize {
        self.parent.len()
    }

    /// Dotted name of a row already added.
    pub fn full_name(&self, mut node: NodeId) -> String {
        let mut parts = Vec::new();
        while node != 0 {
            parts.push(self.names.get(self.name[node as usize]));
            node = self.parent[node as usize];
        }
        parts.reverse();
        parts.join(".")
    }

    /// The finished tree; open modules are closed.
    pub fn finish(mut self) -> Tree {
        while self.current != 0 {
            self.leave();
        }
        self.end[0] = self.parent.len() as NodeId;
        self.names.shrink();
        self.aliases.sort_unstable();
        for column in [&mut self.parent, &mut self.end, &mut self.content, &mut self.name] {
            column.shrink_to_fit();
        }
        self.kind.shrink_to_fit();
        self.tensors.shrink_to_fit();
        Tree {
            parent: self.parent,
            end: self.end,
            kind: self.kind,
            content: self.content,
            name: self.name,
            aliases: self.aliases,
            tensors: self.tensors,
            dtypes: self.dtypes,
            names: self.names,
            classes: self.classes,
        }
    }

    fn push(&mut self, name: u32, kind: Kind, content: u32) -> Result<NodeId, Error> {
        if self.parent.len() >= NODE_LIMIT {
            return Err(Error::TreeTooLarge { limit: NODE_LIMIT });
        }
        let node = self.parent.len() as NodeId;
        self.parent.push(self.current);
        self.end.push(node + 1);
        self.kind.push(kind);
        self.content.push(content);
        self.name.push(name);
        Ok(node)
    }
}

/// Adds each row to its parent, bottom-up.
pub(crate) fn sum_upwards(tree: &Tree, column: &mut [i64]) {
    for node in (1..tree.len()).rev() {
        let value = column[node];
        column[tree.parent(node as NodeId) as usize] += value;
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
