//! Builds a tree from what a walk meets.

use crate::error::Error;
use crate::ids::{DTypeId, NODE_LIMIT, NodeId, TensorId, dtype_at, id_at};
use crate::model::tree::{DType, Kind, Tensor, Tree};
use crate::names::Names;

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
        dtype_at(self.dtypes.len() - 1)
    }

    /// Registers a tensor object.
    pub fn tensor(&mut self, tensor: Tensor) -> TensorId {
        self.tensors.push(tensor);
        id_at(self.tensors.len() - 1)
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
    ///
    /// # Errors
    ///
    /// [`Error::TreeTooLarge`] when there are 30 million rows.
    pub fn enter(&mut self, name: &str, class: &str) -> Result<NodeId, Error> {
        let (name, class) = (self.names.add(name), self.classes.add(class));
        self.enter_id(name, class)
    }

    /// As [`Self::enter`], by ids.
    ///
    /// # Errors
    ///
    /// Those of [`Self::enter`].
    pub fn enter_id(&mut self, name: u32, class: u32) -> Result<NodeId, Error> {
        let node = self.push(name, Kind::Module, class)?;
        self.current = node;
        Ok(node)
    }

    /// Closes the current module.
    pub fn leave(&mut self) {
        self.end[self.current as usize] = id_at(self.parent.len());
        self.current = self.parent[self.current as usize];
    }

    /// Adds a tensor to the current module. Parameters come before child modules, buffers after them.
    ///
    /// # Errors
    ///
    /// Those of [`Self::enter`].
    pub fn leaf(&mut self, name: &str, kind: Kind, tensor: TensorId) -> Result<NodeId, Error> {
        let name = self.names.add(name);
        self.leaf_id(name, kind, tensor)
    }

    /// As [`Self::leaf`], by id.
    ///
    /// # Errors
    ///
    /// Those of [`Self::enter`].
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
        self.end[0] = id_at(self.parent.len());
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
        let node = id_at(self.parent.len());
        self.parent.push(self.current);
        self.end.push(node + 1);
        self.kind.push(kind);
        self.content.push(content);
        self.name.push(name);
        Ok(node)
    }
}
