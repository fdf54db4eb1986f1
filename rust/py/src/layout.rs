//! A tree read with options, and the calls that plan from it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use planner_core::{
    Cast, Containers, Device, DeviceKind, Dialect, Error, Explicit, LayoutOptions, Reserve, SequentialOptions, Tied,
    sequential, sequential_with_margin,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::from_core;
use crate::outcome::{Exhausted, Outcome};
use crate::parallel::on_all_cores;
use crate::tree::Tree;

/// (kind, budget in bits or None, keeps room for the largest layer)
type DeviceRow = (String, Option<u64>, bool);

/// Sizes, layers, ties and blocks of a tree.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Layout {
    pub(crate) inner: Arc<planner_core::Layout>,
}

#[pymethods]
impl Layout {
    #[new]
    #[pyo3(signature = (tree, *, no_split=Vec::new(), dialect="accelerate", cast=None, special=Vec::new(),
                        sizes=Vec::new(), tied=None, uncounted=Vec::new(), exempt=Vec::new(), containers=Vec::new()))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only, one per option of the reading")]
    fn new(
        py: Python<'_>,
        tree: &Tree,
        no_split: Vec<String>,
        dialect: &str,
        cast: Option<(u64, u64)>,
        special: Vec<(String, u64, u64)>,
        sizes: Vec<(String, u64)>,
        tied: Option<Vec<Vec<String>>>,
        uncounted: Vec<String>,
        exempt: Vec<String>,
        containers: Vec<String>,
    ) -> PyResult<Self> {
        let dialect = match dialect {
            "accelerate" => Dialect::Accelerate,
            "transformers" => Dialect::Transformers,
            other => return Err(PyValueError::new_err(format!("dialect {other:?} is not accelerate or transformers"))),
        };
        let rows = tree.inner.clone();
        let layout = py.detach(|| {
            let tied = match tied {
                None => Tied::ByIdentity,
                Some(groups) => Tied::Named {
                    groups: groups.iter().map(|group| rows.resolve(group).into_iter().flatten().collect()).collect(),
                    uncounted: rows.resolve(&uncounted).into_iter().flatten().collect(),
                },
            };
            let options = LayoutOptions {
                exempt: exempt_rows(&rows, &no_split, &exempt),
                explicit: explicit_sizes(&rows, &special, &sizes),
                no_split_classes: no_split,
                containers: rows.resolve(&containers).into_iter().flatten().collect(),
                dialect,
                cast: cast.map(|(formula_bits, planned_bits)| Cast { formula_bits, planned_bits }),
                tied,
            };
            planner_core::Layout::new(rows, options)
        });
        let layout = layout.map_err(|error| from_core(py, error, |node| tree.inner.full_name(node)))?;
        Ok(Self { inner: layout.into() })
    }

    /// Plans with the sequential strategy.
    fn sequential(
        &self,
        py: Python<'_>,
        devices: Vec<DeviceRow>,
        fallback: bool,
        if_offloaded: bool,
    ) -> PyResult<Py<PyAny>> {
        let devices = read_devices(devices)?;
        let options = read_options(fallback, if_offloaded);
        let result = py.detach(|| sequential(&self.inner, &devices, &options));
        self.wrap(py, result, devices)
    }

    /// Whether a device gets a bit of a tensor, and how far its budget may rise and those of the others may fall until a
    /// decision is another one: bits, or None where none ever is.
    fn probe(
        &self,
        py: Python<'_>,
        devices: Vec<DeviceRow>,
        fallback: bool,
        if_offloaded: bool,
        rising: u32,
    ) -> PyResult<(bool, Option<i64>, Vec<Option<i64>>)> {
        let devices = read_devices(devices)?;
        let options = read_options(fallback, if_offloaded);
        let (result, margin) = py.detach(|| sequential_with_margin(&self.inner, &devices, &options, rising));
        let usage = result.ok().and_then(|outcome| outcome.usage.get(rising as usize).copied());
        let falls = margin.fall_bits.iter().map(|&bits| (bits != i64::MAX).then_some(bits));
        Ok((usage.is_some_and(|usage| usage.used_bits > 0), margin.rise_bits, falls.collect()))
    }

    /// Plans for many rows of devices at once, on all cores.
    fn sequential_many(
        &self,
        py: Python<'_>,
        rows: Vec<Vec<DeviceRow>>,
        fallback: bool,
        if_offloaded: bool,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let rows = rows.into_iter().map(read_devices).collect::<PyResult<Vec<_>>>()?;
        let options = read_options(fallback, if_offloaded);
        let results = on_all_cores(py, &rows, |devices| sequential(&self.inner, devices, &options))?;
        results.into_iter().zip(rows).map(|(result, devices)| self.wrap(py, result, devices)).collect()
    }

    /// Bits from which balanced budgets are made: total, first no-split, largest no-split, final modules' sum and number,
    /// largest direct tensors.
    fn balance_facts(&self, py: Python<'_>) -> (i64, i64, i64, i64, u32, i64) {
        let facts = py.detach(|| self.inner.balance_facts());
        (
            facts.total_bits,
            facts.first_no_split_bits,
            facts.largest_no_split_bits,
            facts.final_modules_bits,
            facts.final_module_count,
            facts.largest_direct_bits,
        )
    }

    /// Stored bits by name, each tensor where it is met first.
    fn stored_sizes(&self, py: Python<'_>, buffers_only: bool) -> Vec<(String, i64)> {
        py.detach(|| {
            let sizes = self.inner.stored_sizes(buffers_only);
            sizes.into_iter().map(|(node, bits)| (self.inner.tree().full_name(node), bits)).collect()
        })
    }

    /// Classes of modules that repeat, and names of the containers outside of them; `lists` and `bare` are classes without a
    /// forward of their own, and `by_structure` says that nothing is known of the rest.
    fn repeated(
        &self,
        py: Python<'_>,
        lists: Vec<String>,
        bare: Vec<String>,
        by_structure: bool,
    ) -> (Vec<String>, Vec<String>) {
        py.detach(|| {
            let found = self.inner.repeated(&Containers { lists, bare, by_structure });
            let name = |row| self.inner.tree().full_name(row);
            (found.classes, found.containers.into_iter().map(name).collect())
        })
    }

    /// A digest of names, classes, sizes and ties.
    fn fingerprint(&self, py: Python<'_>) -> String {
        py.detach(|| format!("{:016x}", self.inner.fingerprint()))
    }

    /// Stored bits of all tensors, each once.
    #[getter]
    fn total_bits(&self) -> i64 {
        self.inner.total_bits()
    }

    /// Number of tied groups of parameters.
    #[getter]
    fn tied_group_count(&self) -> usize {
        self.inner.tied_groups().len()
    }

    /// Number of modules of a no-split class.
    #[getter]
    fn no_split_count(&self) -> usize {
        (0..self.inner.tree().len() as u32).filter(|&node| self.inner.is_no_split(node)).count()
    }

    /// Tied groups of parameters, each sorted by name.
    fn tied_groups(&self) -> Vec<Vec<String>> {
        let name = |&node: &u32| self.inner.tree().full_name(node);
        self.inner.tied_groups().iter().map(|group| group.iter().map(name).collect()).collect()
    }
}

impl Layout {
    fn wrap(
        &self,
        py: Python<'_>,
        result: Result<planner_core::Outcome, Error>,
        devices: Vec<Device>,
    ) -> PyResult<Py<PyAny>> {
        let layout = self.inner.clone();
        match result {
            Ok(outcome) => Ok(Py::new(py, Outcome { layout, outcome, devices })?.into_any()),
            Err(Error::Exhausted { node, device, shortfall_bits, placed }) => {
                let name = |node: u32| layout.tree().full_name(node);
                let placed = placed.into_iter().map(|(node, device)| (name(node), device)).collect();
                let exhausted = Exhausted { block: name(node), device, shortfall_bits, placed };
                Ok(Py::new(py, exhausted)?.into_any())
            }
            Err(error) => Err(from_core(py, error, |node| self.inner.tree().full_name(node))),
        }
    }
}

fn read_devices(rows: Vec<DeviceRow>) -> PyResult<Vec<Device>> {
    if rows.is_empty() {
        return Err(PyValueError::new_err("no device to plan for"));
    }
    let read = |(kind, capacity_bits, is_main): DeviceRow| {
        let unknown = || PyValueError::new_err(format!("device kind {kind:?} is not known"));
        let kind = DeviceKind::named(&kind).ok_or_else(unknown)?;
        Ok(Device { kind, capacity_bits, pool: None, is_main })
    };
    rows.into_iter().map(read).collect()
}

fn read_options(fallback: bool, if_offloaded: bool) -> SequentialOptions {
    SequentialOptions { fallback, reserve: if if_offloaded { Reserve::IfOffloaded } else { Reserve::Always } }
}

fn explicit_sizes(tree: &planner_core::Tree, special: &[(String, u64, u64)], sizes: &[(String, u64)]) -> Vec<Explicit> {
    let special_names: Vec<&str> = special.iter().map(|(name, ..)| name.as_str()).collect();
    let size_names: Vec<&str> = sizes.iter().map(|(name, _)| name.as_str()).collect();
    let mut explicit = Vec::new();
    for (row, &(_, formula_bits, planned_bits)) in tree.resolve(&special_names).into_iter().zip(special) {
        let Some((node, id)) = row.and_then(|node| Some((node, tree.tensor_id(node)?))) else { continue };
        let (tensor, _) = tree.tensor(id);
        explicit.push(Explicit {
            node,
            formula_bits: tensor.numel.saturating_mul(formula_bits),
            planned_bits: tensor.numel.saturating_mul(planned_bits),
        });
    }
    for (row, &(_, bits)) in tree.resolve(&size_names).into_iter().zip(sizes) {
        explicit.extend(row.map(|node| Explicit { node, formula_bits: bits, planned_bits: bits }));
    }
    explicit
}

/// Tensors that a block of a no-split class knows by one of these names, relative to itself; blocks inside blocks are never
/// treated, so names relative to those do not count.
fn exempt_rows(tree: &planner_core::Tree, no_split: &[String], exempt: &[String]) -> Vec<u32> {
    let wanted: HashSet<&str> = exempt.iter().map(String::as_str).collect();
    let mut rows = Vec::new();
    let mut node = 1;
    while !wanted.is_empty() && (node as usize) < tree.len() {
        if !tree.class_name(node).is_some_and(|class| no_split.iter().any(|name| name == class)) {
            node += 1;
            continue;
        }
        // A parameter goes by the first of its names there; one with a name that is not meant needs a place after all.
        let prefix = tree.full_name(node).len() + 1;
        let mut named: HashMap<u32, Vec<(u32, bool)>> = HashMap::new();
        for row in node..tree.end(node) {
            if let Some(id) = tree.tensor_id(row) {
                let is_meant = wanted.contains(&tree.full_name(row)[prefix..]);
                named.entry(id).or_default().push((row, is_meant));
            }
        }
        let meant = named.into_values().filter(|names| names.iter().all(|&(_, is_meant)| is_meant));
        rows.extend(meant.flatten().map(|(row, _)| row));
        node = tree.end(node);
    }
    rows
}
