//! A tree read with options, and the calls that plan from it.

use std::sync::Arc;

use planner_core::{
    Cast, Containers, Counted, Device, DeviceKind, Dialect, Error, NamedLayoutOptions, Reserve, SequentialOptions,
    SpecialDtype, sequential, sequential_with_margin,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::from_core;
use crate::outcome::{Exhausted, Outcome};
use crate::parallel::on_all_cores;
use crate::tree::Tree;
use crate::words::Word;

/// (kind, budget in bits or None, keeps room for the largest layer)
type DeviceRow = (Word<DeviceKind>, Option<u64>, bool);

/// Sizes, layers, ties and blocks of a tree.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Layout {
    pub(crate) inner: Arc<planner_core::Layout>,
}

#[pymethods]
impl Layout {
    #[new]
    #[pyo3(signature = (tree, *, dialect, no_split=Vec::new(), cast=None, special=Vec::new(),
                        sizes=Vec::new(), tied=None, uncounted=Vec::new(), exempt=Vec::new(), containers=Vec::new()))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only, one per option of the reading")]
    fn new(
        py: Python<'_>,
        tree: &Tree,
        dialect: Word<Dialect>,
        no_split: Vec<String>,
        cast: Option<(u64, u64)>,
        special: Vec<(String, u64, u64)>,
        sizes: Vec<(String, u64)>,
        tied: Option<Vec<Vec<String>>>,
        uncounted: Vec<String>,
        exempt: Vec<String>,
        containers: Vec<String>,
    ) -> PyResult<Self> {
        let special = special.into_iter();
        let options = NamedLayoutOptions {
            no_split_classes: no_split,
            containers,
            dialect: dialect.0,
            cast: cast.map(|(formula_bits, planned_bits)| Cast { formula_bits, planned_bits }),
            special: special
                .map(|(name, formula_bits, planned_bits)| SpecialDtype { name, formula_bits, planned_bits })
                .collect(),
            sizes,
            tied,
            uncounted,
            exempt,
        };
        let rows = tree.inner.clone();
        let layout = py.detach(|| {
            let options = options.resolve(&rows);
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
        reserve: Word<Reserve>,
    ) -> PyResult<Py<PyAny>> {
        let devices = read_devices(devices)?;
        let options = SequentialOptions { fallback, reserve: reserve.0 };
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
        reserve: Word<Reserve>,
        rising: u32,
    ) -> PyResult<(bool, Option<i64>, Vec<Option<i64>>)> {
        let devices = read_devices(devices)?;
        let options = SequentialOptions { fallback, reserve: reserve.0 };
        let (result, margin) = py.detach(|| sequential_with_margin(&self.inner, &devices, &options, rising));
        let falls = margin.fall_bits.iter().map(|&bits| (bits != i64::MAX).then_some(bits));
        Ok((result.is_ok_and(|outcome| outcome.is_used(rising)), margin.rise_bits, falls.collect()))
    }

    /// Plans for many rows of devices at once, on all cores.
    fn sequential_many(
        &self,
        py: Python<'_>,
        rows: Vec<Vec<DeviceRow>>,
        fallback: bool,
        reserve: Word<Reserve>,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let rows = rows.into_iter().map(read_devices).collect::<PyResult<Vec<_>>>()?;
        let options = SequentialOptions { fallback, reserve: reserve.0 };
        let results = on_all_cores(py, &rows, |devices| sequential(&self.inner, devices, &options))?;
        results.into_iter().zip(rows).map(|(result, devices)| self.wrap(py, result, devices)).collect()
    }

    /// What balanced budgets are made from.
    fn balance_facts(&self, py: Python<'_>) -> BalanceFacts {
        let facts = py.detach(|| self.inner.balance_facts());
        BalanceFacts {
            total_bits: facts.total_bits,
            first_no_split_bits: facts.first_no_split_bits,
            largest_no_split_bits: facts.largest_no_split_bits,
            final_modules_bits: facts.final_modules_bits,
            final_module_count: facts.final_module_count,
            largest_direct_bits: facts.largest_direct_bits,
        }
    }

    /// Stored bits by name, each tensor where it is met first.
    fn stored_sizes(&self, py: Python<'_>, counted: Word<Counted>) -> Vec<(String, i64)> {
        py.detach(|| {
            let sizes = self.inner.stored_sizes(counted.0);
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
        self.inner.no_split_count()
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
            Ok(outcome) => Ok(Py::new(py, Outcome { layout, inner: outcome, devices })?.into_any()),
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
    let device =
        |(kind, capacity_bits, is_main): DeviceRow| Device { kind: kind.0, capacity_bits, pool: None, is_main };
    Ok(rows.into_iter().map(device).collect())
}

/// Sizes in bits from which balanced budgets are made.
#[pyclass(frozen, module = "planner._core", get_all)]
pub(crate) struct BalanceFacts {
    total_bits: i64,
    first_no_split_bits: i64,
    largest_no_split_bits: i64,
    final_modules_bits: i64,
    final_module_count: u32,
    largest_direct_bits: i64,
}
