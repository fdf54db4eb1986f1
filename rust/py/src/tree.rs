//! The flattened tree as a frozen Python object.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use planner_core::{Base, ClassLine, Needed, WithoutForward, beside, derived_classes};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

use crate::errors::from_core;
use crate::walk::{Guide, walk};
use crate::words::Word;

/// Names with the numbers of what they stand for.
type Members = Vec<(String, u32)>;

/// A module tree as columns.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Tree {
    pub(crate) inner: Arc<planner_core::Tree>,
    can_tie: bool,
    classes: Classes,
    stored: Stored,
}

/// What elements are stored as: the tree's types have these names, or files hold so many bytes of each.
enum Stored {
    Names(Vec<String>),
    Bytes(Vec<(String, u64)>),
}

/// Classes of modules: as a live model has them, or by name with the names of their bases.
enum Classes {
    Live(Vec<Py<PyType>>),
    Named(Vec<ClassLine>),
}

impl Tree {
    /// A tree that no live model was walked for; `bases` are names by class, as far as they are known, and `stored` the bytes of
    /// each element type.
    pub(crate) fn known(
        inner: planner_core::Tree,
        mut bases: HashMap<String, Vec<String>>,
        stored: Vec<(String, u64)>,
    ) -> Self {
        let mut met = HashSet::new();
        let names = inner.rows().filter_map(|node| inner.class_name(node)).filter(|name| met.insert(*name));
        let classes = names.map(|name| ClassLine::known(name, bases.remove(name).unwrap_or_default())).collect();
        Self { inner: inner.into(), can_tie: false, classes: Classes::Named(classes), stored: Stored::Bytes(stored) }
    }
}

#[pymethods]
impl Tree {
    /// Walks a live model.
    #[staticmethod]
    fn walk<'py>(
        model: &Bound<'py, PyAny>,
        plain_types: Bound<'py, PyTuple>,
        describe_dtype: Bound<'py, PyAny>,
        describe_tensor: Bound<'py, PyAny>,
    ) -> PyResult<Self> {
        let walked = walk(model, Guide { plain_types, describe_dtype, describe_tensor })?;
        Ok(Self {
            inner: walked.tree.into(),
            can_tie: walked.can_tie,
            classes: Classes::Live(walked.classes),
            stored: Stored::Names(walked.dtypes),
        })
    }

    /// A tree of a class whose children are whole models from files, by name and in order.
    #[staticmethod]
    fn beside(py: Python<'_>, class_name: &str, models: Vec<(String, Py<Self>)>) -> PyResult<Self> {
        let parts: Vec<_> = models.iter().map(|(name, model)| (name.clone(), &*model.get().inner)).collect();
        let joined = py.detach(|| beside(class_name, &parts));
        let tree = joined.map_err(|error| from_core(py, error, |_| String::new()))?;
        let lines = models.iter().map(|(_, model)| model.get().class_lines(py)).collect::<PyResult<Vec<_>>>()?;
        let mut known: HashMap<String, ClassLine> =
            lines.into_iter().flatten().map(|line| (line.name.clone(), line)).collect();
        let stored = models.iter().flat_map(|(_, model)| model.get().bytes_by_dtype()).collect();
        let mut joined = Self::known(tree, HashMap::new(), stored);
        if let Classes::Named(classes) = &mut joined.classes {
            for class in classes {
                *class = known.remove(&class.name).unwrap_or_else(|| class.clone());
            }
        }
        Ok(joined)
    }

    /// The same tree where each of these tensors is an object of its own.
    fn untied(&self, py: Python<'_>, names: Vec<String>) -> Self {
        let classes = match &self.classes {
            Classes::Live(classes) => Classes::Live(classes.iter().map(|class| class.clone_ref(py)).collect()),
            Classes::Named(lines) => Classes::Named(lines.clone()),
        };
        let stored = match &self.stored {
            Stored::Names(names) => Stored::Names(names.clone()),
            Stored::Bytes(bytes) => Stored::Bytes(bytes.clone()),
        };
        Self { inner: py.detach(|| self.inner.untied(&names)).into(), can_tie: self.can_tie, classes, stored }
    }

    /// Whether any module's class has `_tie_weights`.
    #[getter]
    fn can_tie(&self) -> bool {
        self.can_tie
    }

    /// (class name, names of the class and its bases) of every class of modules, the root's first.
    fn class_bases(&self, py: Python<'_>) -> PyResult<Vec<(String, Vec<String>)>> {
        Ok(self.class_lines(py)?.into_iter().map(|class| (class.name, class.bases)).collect())
    }

    /// Names of classes without a forward of their own: lists, which hold others in order or by name, and those with none at
    /// all. And whether the rest are known to have one; of classes from files, only the names of their bases are known.
    fn without_forward(&self, py: Python<'_>) -> PyResult<(Vec<String>, Vec<String>, bool)> {
        let found = match &self.classes {
            Classes::Live(classes) => {
                let lines = classes.iter().map(|class| forward_line(class.bind(py))).collect::<PyResult<Vec<_>>>()?;
                WithoutForward::of_live(lines.iter().map(|(name, bases)| (name.as_str(), bases.as_slice())))
            }
            Classes::Named(classes) => WithoutForward::of_names(classes),
        };
        Ok((found.lists, found.bare, found.is_known))
    }

    /// Names of the classes of modules that are, or derive from, one of the classes named; and names that nothing is or
    /// derives from.
    fn derived_classes(&self, py: Python<'_>, names: Vec<String>) -> PyResult<(Vec<String>, Vec<String>)> {
        Ok(derived_classes(&self.class_lines(py)?, names))
    }

    /// Which names are of rows.
    fn knows(&self, names: Vec<String>) -> Vec<bool> {
        self.inner.resolve(&names).iter().map(Option::is_some).collect()
    }

    /// Rows: modules and tensors under every name.
    fn __len__(&self) -> usize {
        self.inner.len()
    }

    /// Module rows, the root included.
    #[getter]
    fn module_count(&self) -> usize {
        self.inner.module_count()
    }

    /// Tensor objects.
    #[getter]
    fn tensor_count(&self) -> usize {
        self.inner.tensor_count()
    }

    /// Bytes that the columns take.
    #[getter]
    fn held_bytes(&self) -> usize {
        self.inner.held_bytes()
    }

    /// Stored bytes by element type, named as torch or the files name it; each tensor object once.
    fn bytes_by_dtype(&self) -> Vec<(String, u64)> {
        match &self.stored {
            Stored::Names(names) => names.iter().cloned().zip(self.inner.bytes_by_dtype()).collect(),
            Stored::Bytes(bytes) => bytes.clone(),
        }
    }

    /// (name, length of the last dimension) of tensors, as far as it is known.
    fn widths(&self) -> Vec<(String, u64)> {
        self.inner.widths()
    }

    /// Length of the main list of repeated layers; 0 without one.
    fn layer_count(&self) -> usize {
        self.inner.layer_count()
    }

    /// Names of all rows but the root, in preorder.
    fn names(&self) -> Vec<String> {
        self.inner.rows().skip(1).map(|node| self.inner.full_name(node)).collect()
    }

    /// (name, class) of every module but the root, in preorder.
    fn module_classes(&self) -> Vec<(String, String)> {
        let tree = &self.inner;
        let pair = |node| Some((tree.full_name(node), tree.class_name(node)?.to_owned()));
        tree.rows().skip(1).filter_map(pair).collect()
    }

    /// Of each of these, the number of the one that holds it, and how many modules have tensors of their own, itself and those inside.
    fn module_places(&self) -> Vec<(Option<usize>, usize)> {
        self.inner.module_places()
    }

    /// By kind, its named and its numbered members with their kinds; the model's is the last.
    fn name_kinds(&self, py: Python<'_>) -> Vec<(Members, Members)> {
        let kinds = py.detach(|| self.inner.name_kinds());
        kinds.into_iter().map(|kind| (kind.named, kind.numbered)).collect()
    }

    /// Keys that name nothing, and tensors that no key covers; a key covers itself and all inside.
    fn uncovered(&self, py: Python<'_>, keys: Vec<String>, needed: Word<Needed>) -> (Vec<String>, Vec<String>) {
        py.detach(|| {
            let found = self.inner.uncovered(&keys, needed.0);
            let unknown = found.unknown.into_iter().map(|key| keys[key].clone()).collect();
            (unknown, found.rows.into_iter().map(|row| self.inner.full_name(row)).collect())
        })
    }
}

impl Tree {
    fn class_lines(&self, py: Python<'_>) -> PyResult<Vec<ClassLine>> {
        let line = |class: &Py<PyType>| {
            let class = class.bind(py);
            let bases = class.mro().iter().map(|base| base.getattr(intern!(py, "__name__"))?.extract());
            Ok(ClassLine { name: class.name()?.extract()?, bases: bases.collect::<PyResult<_>>()? })
        };
        match &self.classes {
            Classes::Live(classes) => classes.iter().map(line).collect(),
            Classes::Named(classes) => Ok(classes.clone()),
        }
    }
}

/// A class's name and its bases as far as the first that has a forward, which is where Python would find it.
fn forward_line(class: &Bound<'_, PyType>) -> PyResult<(String, Vec<Base>)> {
    let py = class.py();
    let mut bases: Vec<Base> = Vec::new();
    for base in class.mro().iter() {
        let name = base.getattr(intern!(py, "__name__"))?.extract()?;
        // A class made by hand may have anything for its module; such a one is not torch's.
        let module = base.getattr(intern!(py, "__module__")).and_then(|module| module.extract()).unwrap_or_default();
        let has_forward = base.getattr(intern!(py, "__dict__"))?.contains(intern!(py, "forward"))?;
        bases.push(Base { name, module, has_forward });
        if has_forward {
            break;
        }
    }
    Ok((class.name()?.extract()?, bases))
}

/// Groups dotted keys that share a parent and a value; values are compared as ids.
#[pyfunction]
pub(crate) fn clean_keys(py: Python<'_>, keys: Vec<String>, values: Vec<u32>) -> Vec<(String, u32)> {
    py.detach(|| planner_core::clean_keys(&keys, &values))
}
