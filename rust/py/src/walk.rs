//! The walk over a live module tree: the modules' own dicts, without recursion and without calling into the model.

use planner_core::{DType, DTypeId, Kind, NodeId, Tensor, TensorId, Tree, TreeBuilder};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::errors::{from_core, invalid_tree};

/// What Python tells the walk about tensors.
pub(crate) struct Guide<'py> {
    /// Classes whose tensors store `numel` elements of `dtype`, nothing else.
    pub(crate) plain_types: Bound<'py, PyTuple>,
    /// dtype -> (formula bits, stored bits, castable).
    pub(crate) describe_dtype: Bound<'py, PyAny>,
    /// (tensor, name) -> (elements, dtype, stored bytes) for any other class; raises what cannot be planned.
    pub(crate) describe_tensor: Bound<'py, PyAny>,
}

/// Direct members of a module: name and value, `None` values left out.
type Members<'py> = Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>;

struct Seen {
    parent: NodeId,
    node: NodeId,
    is_open: bool,
}

/// Where a tensor was registered last, as a parameter and as a buffer: (module, row).
#[derive(Clone, Copy)]
struct Registered {
    parameter: (NodeId, NodeId),
    buffer: (NodeId, NodeId),
}

const NAMES_AT_LEAST: usize = 1_000_000;
const NAMES_PER_OBJECT: usize = 32;
const NOWHERE: (NodeId, NodeId) = (NodeId::MAX, 0);

struct Frame<'py> {
    node: NodeId,
    module: usize,
    children: std::vec::IntoIter<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    buffers: Vec<(u32, Kind, TensorId)>,
}

/// What a walk brings back.
pub(crate) struct Walked {
    pub(crate) tree: Tree,
    /// Whether any module's class knows how to tie weights.
    pub(crate) can_tie: bool,
    /// Classes of modules, the root's first.
    pub(crate) classes: Vec<Py<PyType>>,
    /// Element types as torch writes them, by their place in the tree.
    pub(crate) dtypes: Vec<String>,
}

/// Walks a model.
///
/// Identity is an object's address, so every object seen is held until the end.
pub(crate) fn walk<'py>(model: &Bound<'py, PyAny>, guide: Guide<'py>) -> PyResult<Walked> {
    let mut walk = Walk {
        py: model.py(),
        plain: guide.plain_types.iter().map(|class| class.as_ptr() as usize).collect(),
        guide,
        builder: TreeBuilder::new(),
        // Enough for a usual model at once; growing again and again is what large maps cost.
        modules: FxHashMap::with_capacity_and_hasher(2048, FxBuildHasher),
        elsewhere: FxHashMap::default(),
        tensors: FxHashMap::with_capacity_and_hasher(2048, FxBuildHasher),
        registered: Vec::new(),
        names: FxHashMap::default(),
        classes: FxHashMap::default(),
        dtypes: FxHashMap::default(),
        dtype_names: Vec::new(),
        held: Vec::with_capacity(4096),
        can_tie: false,
        met_classes: Vec::new(),
    };
    walk.run(model)?;
    Ok(Walked {
        tree: walk.builder.finish(),
        can_tie: walk.can_tie,
        classes: walk.met_classes,
        dtypes: walk.dtype_names,
    })
}

struct Walk<'py> {
    py: Python<'py>,
    guide: Guide<'py>,
    plain: Vec<usize>,
    builder: TreeBuilder,
    modules: FxHashMap<usize, Seen>,               // by object, where it was met first
    elsewhere: FxHashMap<(usize, NodeId), NodeId>, // (object, other parent) -> row there
    tensors: FxHashMap<usize, TensorId>,
    registered: Vec<Registered>, // by tensor
    names: FxHashMap<usize, u32>,
    classes: FxHashMap<usize, u32>,
    dtypes: FxHashMap<usize, (DTypeId, u64)>, // with stored bits
    dtype_names: Vec<String>,
    held: Vec<Bound<'py, PyAny>>,
    can_tie: bool,
    met_classes: Vec<Py<PyType>>,
}

impl<'py> Walk<'py> {
    fn run(&mut self, model: &Bound<'py, PyAny>) -> PyResult<()> {
        let class = model.get_type().name()?;
        self.class(&model.get_type())?;
        self.builder.root_class(class.to_str()?);
        let root = self.open(model, 0)?;
        let mut path = vec![root];
        while let Some(frame) = path.last_mut() {
            let Some((name, child)) = frame.children.next() else {
                if let Some(frame) = path.pop() {
                    self.close(frame)?;
                }
                continue;
            };
            let parent = frame.node;
            let node = self.enter(parent, &name, &child)?;
            let frame = self.open(&child, node)?;
            match frame.children.len() {
                0 => self.close(frame)?,
                _ => path.push(frame),
            }
        }
        Ok(())
    }

    /// Adds a row for a child module.
    fn enter(&mut self, parent: NodeId, name: &Bound<'py, PyAny>, child: &Bound<'py, PyAny>) -> PyResult<NodeId> {
        let name = self.name(parent, name)?;
        let class = self.class(&child.get_type())?;
        // Shared modules inside shared modules multiply names without end: each level doubles them.
        let limit = NAMES_AT_LEAST + NAMES_PER_OBJECT * self.held.len();
        if self.builder.row_count() >= limit {
            return Err(self.core_error(planner_core::Error::TreeTooLarge { limit }));
        }
        let node = self.builder.enter_id(name, class).map_err(|e| self.core_error(e))?;
        if let Some(seen) = self.modules.get_mut(&(child.as_ptr() as usize)) {
            if seen.is_open {
                let outer = seen.node;
                let (name, outer) = (self.builder.full_name(node), self.shown(outer));
                let message = format!("module '{name}' is {outer} again: a module inside itself has no finite size");
                return Err(invalid_tree(self.py, message, name));
            }
            seen.is_open = true;
            let first = (seen.parent == parent).then_some(seen.node);
            let original = first.or_else(|| self.elsewhere.get(&(child.as_ptr() as usize, parent)).copied());
            match original {
                Some(original) => self.builder.alias(node, original),
                None => {
                    self.elsewhere.insert((child.as_ptr() as usize, parent), node);
                }
            }
        } else {
            self.modules.insert(child.as_ptr() as usize, Seen { parent, node, is_open: true });
            self.held.push(child.clone());
        }
        Ok(node)
    }

    /// Reads a module: its parameters become rows, its children and buffers wait.
    fn open(&mut self, module: &Bound<'py, PyAny>, node: NodeId) -> PyResult<Frame<'py>> {
        if node == 0 {
            self.modules.insert(module.as_ptr() as usize, Seen { parent: 0, node, is_open: true });
        }
        let py = self.py;
        let dict = module.getattr(intern!(py, "__dict__")).ok().and_then(|dict| dict.cast_into_exact::<PyDict>().ok());
        for (name, parameter) in self.members(module, dict.as_ref(), node, intern!(py, "_parameters"))? {
            let id = self.tensor(node, &name, &parameter)?;
            let name = self.name(node, &name)?;
            let row = self.builder.leaf_id(name, Kind::Parameter, id).map_err(|e| self.core_error(e))?;
            let last = &mut self.registered[id as usize].parameter;
            if last.0 == node {
                self.builder.alias(row, last.1);
            } else {
                *last = (node, row);
            }
        }
        let buffers = self.buffers(module, dict.as_ref(), node)?;
        let children = self.members(module, dict.as_ref(), node, intern!(py, "_modules"))?.into_iter();
        Ok(Frame { node, module: module.as_ptr() as usize, children, buffers })
    }

    fn buffers(
        &mut self,
        module: &Bound<'py, PyAny>,
        dict: Option<&Bound<'py, PyDict>>,
        node: NodeId,
    ) -> PyResult<Vec<(u32, Kind, TensorId)>> {
        let members = self.members(module, dict, node, intern!(self.py, "_buffers"))?;
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let mut buffers = Vec::with_capacity(members.len());
        let scratch = module.getattr(intern!(self.py, "_non_persistent_buffers_set"))?;
        for (name, buffer) in members {
            let id = self.tensor(node, &name, &buffer)?;
            let kind = if scratch.contains(&name)? { Kind::NonPersistentBuffer } else { Kind::Buffer };
            buffers.push((self.name(node, &name)?, kind, id));
        }
        Ok(buffers)
    }

    /// Adds the rows of a module's buffers and leaves it.
    fn close(&mut self, frame: Frame<'py>) -> PyResult<()> {
        for (name, kind, id) in frame.buffers {
            let row = self.builder.leaf_id(name, kind, id).map_err(|e| self.core_error(e))?;
            let last = &mut self.registered[id as usize].buffer;
            if last.0 == frame.node {
                self.builder.alias(row, last.1);
            } else {
                *last = (frame.node, row);
            }
        }
        if let Some(seen) = self.modules.get_mut(&frame.module) {
            seen.is_open = false;
        }
        if frame.node != 0 {
            self.builder.leave();
        }
        Ok(())
    }

    /// The items of one of a module's dicts, taken before any other Python code can run.
    ///
    /// Most modules keep them in their `__dict__`, which is read directly; script modules and the like answer otherwise.
    fn members(
        &self,
        module: &Bound<'py, PyAny>,
        dict: Option<&Bound<'py, PyDict>>,
        node: NodeId,
        attribute: &Bound<'py, PyString>,
    ) -> PyResult<Members<'py>> {
        let direct = match dict {
            Some(dict) => dict.get_item(attribute)?,
            None => None,
        };
        let Some(members) = direct.or_else(|| module.getattr(attribute).ok()) else {
            let (name, shown) = (self.builder.full_name(node), self.shown(node));
            let class = module.get_type().name()?;
            let message = format!("{shown} ({class}) has no {attribute}: it is not an initialised torch.nn.Module");
            return Err(invalid_tree(self.py, message, name));
        };
        let mut pairs = Vec::new();
        if let Ok(members) = members.cast_exact::<PyDict>() {
            let count = members.len();
            if count == 0 {
                return Ok(pairs);
            }
            pairs.reserve_exact(count);
            pairs.extend(members.iter().filter(|(_, value)| !value.is_none()));
            return Ok(pairs);
        }
        for item in members.call_method0(intern!(self.py, "items"))?.try_iter()? {
            let (name, value): (Bound<'py, PyAny>, Bound<'py, PyAny>) = item?.extract()?;
            if !value.is_none() {
                pairs.push((name, value));
            }
        }
        Ok(pairs)
    }

    fn name(&mut self, node: NodeId, name: &Bound<'py, PyAny>) -> PyResult<u32> {
        if let Some(&id) = self.names.get(&(name.as_ptr() as usize)) {
            return Ok(id);
        }
        let Some(text) = name.cast::<PyString>().ok().and_then(|text| text.to_str().ok()) else {
            let message = format!("{} has a member named {}, not a plain string", self.shown(node), name.repr()?);
            return Err(invalid_tree(self.py, message, self.builder.full_name(node)));
        };
        let id = self.builder.name_id(text);
        self.names.insert(name.as_ptr() as usize, id);
        self.held.push(name.clone());
        Ok(id)
    }

    fn class(&mut self, class: &Bound<'py, PyType>) -> PyResult<u32> {
        if let Some(&known) = self.classes.get(&(class.as_ptr() as usize)) {
            return Ok(known);
        }
        let name = self.builder.class_id(class.name()?.to_str()?);
        self.can_tie |= class.hasattr(intern!(self.py, "_tie_weights"))?;
        self.classes.insert(class.as_ptr() as usize, name);
        self.met_classes.push(class.clone().unbind());
        Ok(name)
    }

    fn tensor(&mut self, owner: NodeId, name: &Bound<'py, PyAny>, tensor: &Bound<'py, PyAny>) -> PyResult<TensorId> {
        let key = tensor.as_ptr() as usize;
        if let Some(&id) = self.tensors.get(&key) {
            return Ok(id);
        }
        let is_plain = self.plain.contains(&(tensor.get_type().as_ptr() as usize));
        let plain = if is_plain { self.plain_tensor(tensor)? } else { None };
        let described = if let Some(described) = plain {
            described
        } else {
            let place = self.builder.full_name(owner);
            let full = if place.is_empty() { name.to_string() } else { format!("{place}.{name}") };
            let (numel, dtype, bytes): (u64, Bound<'py, PyAny>, u64) =
                self.guide.describe_tensor.call1((tensor, full))?.extract()?;
            Tensor { numel, dtype: self.dtype(&dtype)?.0, opaque_bytes: Some(bytes), width: 0 }
        };
        let id = self.builder.tensor(described);
        self.tensors.insert(key, id);
        self.registered.push(Registered { parameter: NOWHERE, buffer: NOWHERE });
        self.held.push(tensor.clone());
        Ok(id)
    }

    /// A strided tensor without surprises; `nbytes` is the one attribute that needs no call. Sparse ones have none.
    fn plain_tensor(&mut self, tensor: &Bound<'py, PyAny>) -> PyResult<Option<Tensor>> {
        let Ok(bytes) = tensor.getattr(intern!(self.py, "nbytes")) else { return Ok(None) };
        let (dtype, stored_bits) = self.dtype(&tensor.getattr(intern!(self.py, "dtype"))?)?;
        let bytes: u64 = bytes.extract()?;
        let width = match tensor.getattr(intern!(self.py, "shape"))?.cast::<PyTuple>()?.iter().next_back() {
            Some(last) => last.extract()?,
            None => 0,
        };
        Ok(Some(Tensor { numel: bytes / (stored_bits / 8).max(1), dtype, opaque_bytes: None, width }))
    }

    fn dtype(&mut self, dtype: &Bound<'py, PyAny>) -> PyResult<(DTypeId, u64)> {
        let key = dtype.as_ptr() as usize;
        if let Some(&known) = self.dtypes.get(&key) {
            return Ok(known);
        }
        let (formula_bits, stored_bits, castable): (u64, u64, bool) =
            self.guide.describe_dtype.call1((dtype,))?.extract()?;
        let id = self.builder.dtype(DType { formula_bits, stored_bits, castable });
        self.dtypes.insert(key, (id, stored_bits));
        self.dtype_names.push(dtype.str()?.extract()?);
        self.held.push(dtype.clone());
        Ok((id, stored_bits))
    }

    /// A module's name for messages; the root has none.
    fn shown(&self, node: NodeId) -> String {
        if node == 0 { "the model".to_string() } else { format!("'{}'", self.builder.full_name(node)) }
    }

    fn core_error(&self, error: planner_core::Error) -> PyErr {
        from_core(self.py, error, |node| self.builder.full_name(node))
    }
}
