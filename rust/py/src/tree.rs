//! The flattened tree as a frozen Python object.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use planner_core::{KeyTrie, Kind, clean};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple, PyType};

use crate::walk::{Guide, walk};

/// A module tree as columns.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Tree {
    pub(crate) inner: Arc<planner_core::Tree>,
    can_tie: bool,
    classes: Classes,
}

/// Classes of modules: as a live model has them, or by name with the names of their bases.
enum Classes {
    Live(Vec<Py<PyType>>),
    Named(Vec<(String, Vec<String>)>),
}

impl Tree {
    /// A tree that no live model was walked for; `bases` are names by class, as far as they are known.
    pub(crate) fn known(inner: planner_core::Tree, mut bases: HashMap<String, Vec<String>>) -> Self {
        let mut met = HashSet::new();
        let names = (0..inner.len() as u32).filter_map(|node| inner.class_name(node)).filter(|name| met.insert(*name));
        let mut line = |name: &str| {
            let own = [name.to_string()].into_iter();
            let above = bases.remove(name).unwrap_or_default();
            own.chain(above).chain(["Module".to_string(), "object".to_string()]).collect()
        };
        let classes = names.map(|name| (name.to_string(), line(name))).collect();
        Self { inner: inner.into(), can_tie: false, classes: Classes::Named(classes) }
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
        let (tree, can_tie, classes) = walk(model, Guide { plain_types, describe_dtype, describe_tensor })?;
        Ok(Self { inner: tree.into(), can_tie, classes: Classes::Live(classes) })
    }

    /// Whether any module's class has `_tie_weights`.
    #[getter]
    fn can_tie(&self) -> bool {
        self.can_tie
    }

    /// (class name, names of the class and its bases) of every class of modules, the root's first.
    fn class_bases(&self, py: Python<'_>) -> PyResult<Vec<(String, Vec<String>)>> {
        let bases = |class: &Py<PyType>| {
            let class = class.bind(py);
            let names = class.mro().iter().map(|base| base.getattr("__name__")?.extract());
            Ok((class.name()?.extract()?, names.collect::<PyResult<_>>()?))
        };
        match &self.classes {
            Classes::Live(classes) => classes.iter().map(bases).collect(),
            Classes::Named(classes) => Ok(classes.clone()),
        }
    }

    /// Names of classes without a forward of their own: lists, which hold others in order or by name, and those with none at
    /// all. And whether the rest are known to have one; of classes from files, only the names of their bases are known.
    fn without_forward(&self, py: Python<'_>) -> PyResult<(Vec<String>, Vec<String>, bool)> {
        match &self.classes {
            Classes::Live(classes) => {
                // Of several classes with one name, all must have none.
                let mut found: BTreeMap<String, Forward> = BTreeMap::new();
                for class in classes {
                    let class = class.bind(py);
                    let forward = forward_of(class)?;
                    let known = found.entry(class.name()?.extract()?).or_insert(forward);
                    *known = if *known == forward { forward } else { Forward::Own };
                }
                let of = |kind| found.iter().filter(|&(_, &f)| f == kind).map(|(name, _)| name.clone()).collect();
                Ok((of(Forward::List), of(Forward::None), true))
            }
            Classes::Named(classes) => {
                let is_list = |bases: &[String]| bases.iter().any(|base| LISTS.contains(&base.as_str()));
                let lists = classes.iter().filter(|(_, bases)| is_list(bases)).map(|(name, _)| name.clone());
                Ok((lists.collect(), Vec::new(), false))
            }
        }
    }

    /// Names of the classes of modules that are, or derive from, one of the classes named; and names that nothing is or
    /// derives from.
    fn derived_classes(&self, py: Python<'_>, names: Vec<String>) -> PyResult<(Vec<String>, Vec<String>)> {
        let mut is_met = vec![false; names.len()];
        let mut meet = |base: &str| {
            let mut is_named = false;
            for (_, met) in names.iter().zip(&mut is_met).filter(|(name, _)| *name == base) {
                (*met, is_named) = (true, true);
            }
            is_named
        };
        let mut derived = Vec::new();
        match &self.classes {
            Classes::Live(classes) => {
                for class in classes {
                    let class = class.bind(py);
                    let mut is_derived = false;
                    for base in class.mro().iter() {
                        is_derived |= meet(&base.getattr(intern!(py, "__name__"))?.cast::<PyString>()?.to_cow()?);
                    }
                    if is_derived {
                        derived.push(class.name()?.extract()?);
                    }
                }
            }
            Classes::Named(classes) => {
                for (class, bases) in classes {
                    let mut is_derived = false;
                    for base in bases {
                        is_derived |= meet(base);
                    }
                    if is_derived {
                        derived.push(class.clone());
                    }
                }
            }
        }
        let unknown = names.into_iter().zip(is_met).filter(|(_, met)| !met).map(|(name, _)| name).collect();
        Ok((derived, unknown))
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

    /// Names of all rows but the root, in preorder.
    fn names(&self) -> Vec<String> {
        (1..self.inner.len() as u32).map(|node| self.inner.full_name(node)).collect()
    }

    /// (name, class) of every module but the root, in preorder.
    fn module_classes(&self) -> Vec<(String, String)> {
        let tree = &self.inner;
        let pair = |node| Some((tree.full_name(node), tree.class_name(node)?.to_owned()));
        (1..tree.len() as u32).filter_map(pair).collect()
    }

    /// Names of buffers that are not saved with the model.
    fn non_persistent(&self) -> Vec<String> {
        let rows = 1..self.inner.len() as u32;
        rows.filter(|&node| self.inner.kind(node) == Kind::NonPersistentBuffer)
            .map(|node| self.inner.full_name(node))
            .collect()
    }

    /// Which keys name nothing, and which tensors no key covers; a key covers itself and all inside.
    fn uncovered(&self, py: Python<'_>, keys: Vec<String>, persistent_only: bool) -> (Vec<String>, Vec<String>) {
        py.detach(|| {
            let tree = &self.inner;
            let rows = tree.resolve(&keys);
            let known: HashSet<u32> = rows.iter().flatten().copied().collect();
            let unknown = keys.into_iter().zip(&rows).filter(|(_, row)| row.is_none()).map(|(key, _)| key).collect();
            let mut missing = Vec::new();
            let mut node = 0;
            while (node as usize) < tree.len() {
                if known.contains(&node) {
                    node = tree.end(node);
                    continue;
                }
                let is_asked = match tree.kind(node) {
                    Kind::Module => false,
                    Kind::Parameter | Kind::Buffer => true,
                    Kind::NonPersistentBuffer => !persistent_only,
                };
                if is_asked {
                    missing.push(node);
                }
                node += 1;
            }
            // As a state dict lists them: a module's own tensors before those of its children.
            missing.sort_by_key(|&node| (tree.parent(node), node));
            (unknown, missing.into_iter().map(|node| tree.full_name(node)).collect())
        })
    }
}

/// torch's classes that hold others in order or by name.
const LISTS: [&str; 3] = ["Sequential", "ModuleList", "ModuleDict"];

/// Where a class's forward comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forward {
    /// From itself or a base that is not torch's own container.
    Own,
    /// From `Sequential`, which calls what it holds in order, or from nowhere in a class that holds others.
    List,
    /// From nowhere.
    None,
}

fn forward_of(class: &Bound<'_, PyType>) -> PyResult<Forward> {
    let py = class.py();
    let mut is_list = false;
    for base in class.mro().iter() {
        let name: String = base.getattr(intern!(py, "__name__"))?.extract()?;
        let module: String = base.getattr(intern!(py, "__module__"))?.extract()?;
        let is_torchs = module.starts_with("torch.nn.modules.");
        is_list |= is_torchs && LISTS.contains(&name.as_str());
        if base.getattr(intern!(py, "__dict__"))?.contains(intern!(py, "forward"))? {
            return Ok(match name.as_str() {
                _ if is_list && is_torchs => Forward::List,
                "Module" if is_torchs => Forward::None,
                _ => Forward::Own,
            });
        }
    }
    Ok(Forward::None)
}

/// Groups dotted keys that share a parent and a value; values are compared as ids.
#[pyfunction]
pub(crate) fn clean_keys(py: Python<'_>, keys: Vec<String>, values: Vec<u32>) -> Vec<(String, u32)> {
    py.detach(|| {
        let trie = KeyTrie::new(&keys);
        let entries: Vec<(u32, u32)> = trie.keys().iter().copied().zip(values).collect();
        let cleaned = clean(trie.len(), |place| trie.parent(place), &entries);
        cleaned.into_iter().map(|(place, value)| (trie.name(place), value)).collect()
    })
}
