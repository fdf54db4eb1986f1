//! The `auto` strategy: a model cut into units, and plans of where each goes.

use std::sync::Arc;

use planner_core::auto::{
    self, Demands as CoreDemands, Execute, Failure, Fill, Mode, Options, Solution, UNPLACED, Unit, restricted,
};
use planner_core::{Device, DeviceKind, Granularity, NamedBlockOptions, keys_of_blocks};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::layout::Layout;
use crate::parallel::on_all_cores;
use crate::words::Word;

/// (kind, capacity in bits or None, pool or None)
type DeviceRow = (Word<DeviceKind>, Option<u64>, Option<u32>);
/// Devices, the joint capacity of each pool, and accelerators in the order in which a loader looks for its main device.
type Row = (Vec<DeviceRow>, Vec<u64>, Vec<u32>);

/// A layout cut into units.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Blocks {
    layout: Arc<planner_core::Layout>,
    inner: Arc<planner_core::Blocks>,
    units: Arc<Vec<Unit>>,
}

#[pymethods]
impl Blocks {
    /// Cuts a layout.
    #[new]
    #[pyo3(signature = (layout, *, granularity, no_split=Vec::new(), split=Vec::new(), apart=Vec::new(), keep_together=Vec::new()))]
    fn new(
        py: Python<'_>,
        layout: &Layout,
        granularity: Word<Granularity>,
        no_split: Vec<String>,
        split: Vec<String>,
        apart: Vec<String>,
        keep_together: Vec<Vec<String>>,
    ) -> Self {
        let layout = layout.inner.clone();
        let options = NamedBlockOptions { no_split, split, apart, granularity: granularity.0, keep_together };
        let inner = py.detach(|| planner_core::Blocks::new(&layout, &options.resolve(layout.tree())));
        let units = Arc::new(inner.units.iter().map(Unit::from).collect());
        Self { layout, inner: inner.into(), units }
    }

    /// Blocks, before ties join them.
    #[getter]
    fn block_count(&self) -> usize {
        self.inner.blocks.len()
    }

    /// Names of the modules and tensors of each block, in execution order; more than one where parts were taken out of it.
    fn block_names(&self) -> Vec<Vec<String>> {
        let tree = self.layout.tree();
        self.inner.blocks.iter().map(|rows| rows.iter().map(|&row| tree.full_name(row)).collect()).collect()
    }

    /// Number of units.
    fn __len__(&self) -> usize {
        self.units.len()
    }

    /// Stored bits of each unit.
    fn unit_bits(&self) -> Vec<u64> {
        self.units.iter().map(|unit| unit.bits).collect()
    }

    /// Names of the modules and tensors of each unit.
    fn unit_names(&self) -> Vec<Vec<String>> {
        let names = |unit| self.inner.rows_of(unit).map(|row| self.layout.tree().full_name(row)).collect();
        self.inner.units.iter().map(names).collect()
    }

    /// Units inside, or around, each named row; empty where the name is unknown.
    fn units_of(&self, names: Vec<String>) -> Vec<Vec<u32>> {
        let tree = self.layout.tree();
        let units = |row: Option<u32>| row.map_or(Vec::new(), |row| self.inner.units_of(tree, row));
        tree.resolve(&names).into_iter().map(units).collect()
    }

    /// Names of the modules that hold all their experts in one tensor, with the unit of each.
    fn fused_experts(&self, py: Python<'_>) -> Vec<(String, u32)> {
        let tree = self.layout.tree();
        let fused = py.detach(|| self.inner.fused_experts(tree));
        fused.into_iter().map(|(row, unit)| (tree.full_name(row), unit)).collect()
    }

    /// Plans. `masks` says of single units where they may lie.
    #[pyo3(signature = (row, masks, options, demands=None))]
    fn solve(
        &self,
        py: Python<'_>,
        row: Row,
        masks: Vec<(u32, u64)>,
        options: &SearchOptions,
        demands: Option<&Demands>,
    ) -> PyResult<Py<PyAny>> {
        let (units, (devices, options)) = (self.restricted(&masks), options.with_devices(row, &self.inner, demands));
        let result = py.detach(|| auto::solve(&units, &devices, &options));
        self.wrap(py, result)
    }

    /// Plans for many rows of devices on all cores, each with demands of its own; those left out have none.
    #[pyo3(signature = (rows, masks, options, demands=Vec::new()))]
    fn solve_many(
        &self,
        py: Python<'_>,
        rows: Vec<Row>,
        masks: Vec<(u32, u64)>,
        options: &SearchOptions,
        demands: Vec<Option<PyRef<'_, Demands>>>,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let units = self.restricted(&masks);
        let demands = demands.iter().map(Option::as_deref).chain(std::iter::repeat(None));
        let rows = rows.into_iter().zip(demands);
        let rows: Vec<_> = rows.map(|(row, demands)| options.with_devices(row, &self.inner, demands)).collect();
        let results = on_all_cores(py, &rows, |(devices, options)| auto::solve(&units, devices, options))?;
        results.into_iter().map(|result| self.wrap(py, result)).collect()
    }

    /// Whether there is a plan; None where the search ended before that was known.
    #[pyo3(signature = (row, masks, options, demands=None))]
    fn fits(
        &self,
        py: Python<'_>,
        row: Row,
        masks: Vec<(u32, u64)>,
        options: &SearchOptions,
        demands: Option<&Demands>,
    ) -> PyResult<Option<bool>> {
        let (units, (devices, options)) = (self.restricted(&masks), options.with_devices(row, &self.inner, demands));
        py.detach(|| auto::fits(&units, &devices, &options)).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Least extra bits on each single device that would let nothing be offloaded; None where no amount does.
    #[pyo3(signature = (row, masks, options, demands=None))]
    fn shortfall(
        &self,
        py: Python<'_>,
        row: Row,
        masks: Vec<(u32, u64)>,
        options: &SearchOptions,
        demands: Option<&Demands>,
    ) -> Vec<Option<u64>> {
        let (units, (devices, options)) = (self.restricted(&masks), options.with_devices(row, &self.inner, demands));
        py.detach(|| auto::shortfall(&units, &devices, &options))
    }
}

impl Blocks {
    fn restricted(&self, masks: &[(u32, u64)]) -> Arc<Vec<Unit>> {
        if masks.is_empty() { self.units.clone() } else { restricted(&self.units, masks).into() }
    }

    fn wrap(&self, py: Python<'_>, result: Result<Solution, Failure>) -> PyResult<Py<PyAny>> {
        match result {
            Ok(solution) => {
                let (layout, blocks) = (self.layout.clone(), self.inner.clone());
                Ok(Py::new(py, AutoPlan { layout, blocks, solution })?.into_any())
            }
            Err(Failure::Infeasible { unit, more_bits, is_proven, best_partial }) => {
                let best_partial = best_partial.into_iter().map(|home| (home != UNPLACED).then_some(home)).collect();
                Ok(Py::new(py, AutoFailure { unit, more_bits, proven: is_proven, best_partial })?.into_any())
            }
            Err(error @ (Failure::TooManyDevices { .. } | Failure::TooLarge)) => {
                Err(PyValueError::new_err(error.to_string()))
            }
        }
    }
}

/// What running the blocks takes beside their weights, made once for many questions.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Demands {
    inner: Arc<CoreDemands>,
}

#[pymethods]
impl Demands {
    /// By block, in execution order, and by device in the order of the rows; what is left out needs nothing.
    #[new]
    #[pyo3(signature = (*, exec_bits, peak_bits, stay_bits, shared_bits))]
    fn new(exec_bits: Vec<u64>, peak_bits: Vec<u64>, stay_bits: Vec<u64>, shared_bits: Vec<u64>) -> Self {
        Self { inner: CoreDemands { exec_bits, peak_bits, stay_bits, shared_bits }.into() }
    }
}

/// What the search may do.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct SearchOptions {
    fill: Fill,
    search_steps: u64,
    mode: Mode,
    execute_offloaded: Execute,
    staging_blocks: u32,
}

#[pymethods]
impl SearchOptions {
    /// All of them are said.
    #[new]
    #[pyo3(signature = (*, fill, search_steps, mode, execute_offloaded, staging_blocks))]
    fn new(
        fill: Word<Fill>,
        search_steps: u64,
        mode: Word<Mode>,
        execute_offloaded: Word<Execute>,
        staging_blocks: u32,
    ) -> Self {
        Self { fill: fill.0, search_steps, mode: mode.0, execute_offloaded: execute_offloaded.0, staging_blocks }
    }
}

impl SearchOptions {
    fn with_devices(
        &self,
        (devices, pools, main_order): Row,
        blocks: &planner_core::Blocks,
        demands: Option<&Demands>,
    ) -> (Vec<Device>, Options) {
        let device =
            |(kind, capacity_bits, pool): DeviceRow| Device { kind: kind.0, capacity_bits, pool, is_main: false };
        let options = Options {
            fill: self.fill,
            search_steps: self.search_steps,
            mode: self.mode,
            execute_offloaded: self.execute_offloaded,
            staging_blocks: self.staging_blocks,
            pools,
            main_order,
            siblings: blocks.siblings.clone(),
            demands: demands.map(|demands| demands.inner.clone()),
        };
        (devices.into_iter().map(device).collect(), options)
    }
}

/// Where each unit goes.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct AutoPlan {
    layout: Arc<planner_core::Layout>,
    blocks: Arc<planner_core::Blocks>,
    solution: Solution,
}

#[pymethods]
impl AutoPlan {
    /// The fewest keys that cover every tensor, in execution order, with the devices of their indices.
    fn device_map<'py>(&self, py: Python<'py>, devices: Vec<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyDict>> {
        self.named(py, |unit, _| Some(self.solution.home[unit]), &devices)
    }

    /// The same of what runs elsewhere than it lies.
    fn execution_map<'py>(&self, py: Python<'py>, devices: Vec<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyDict>> {
        self.named(py, |unit, block| self.solution.executed_elsewhere(unit, block), &devices)
    }

    /// Device index of each unit.
    #[getter]
    fn home(&self) -> Vec<u32> {
        self.solution.home.clone()
    }

    /// Device indices where the blocks of each unit run.
    #[getter]
    fn execution(&self) -> Vec<Vec<u32>> {
        self.solution.execution.clone()
    }

    /// Name of the first block of each unit that is larger than every accelerator.
    #[getter]
    fn oversized(&self) -> Vec<Option<String>> {
        let tree = self.layout.tree();
        let pairs = self.blocks.units.iter().zip(&self.solution.oversized);
        let row = |unit, block: Option<u32>| block.and_then(|block| self.blocks.first_row(unit, block));
        pairs.map(|(unit, &block)| row(unit, block).map(|row| tree.full_name(row))).collect()
    }

    /// The device map alone says where everything runs.
    #[getter]
    fn map_is_enough(&self) -> bool {
        self.solution.map_is_enough
    }

    /// Bits per device: used, reserved.
    #[getter]
    fn usage(&self) -> Vec<(u64, u64)> {
        self.solution.used_bits.iter().copied().zip(self.solution.reserved_bits.iter().copied()).collect()
    }

    /// Bits per device that running takes: what lies there for the blocks that run there, and what these need at once with what
    /// is given up for running any.
    #[getter]
    fn running(&self) -> Vec<(u64, u64)> {
        self.solution.exec_bits.iter().copied().zip(self.solution.peak_bits.iter().copied()).collect()
    }

    /// How good the plan is known to be.
    #[getter]
    fn certificate(&self) -> Certificate {
        let known = &self.solution.certificate;
        Certificate {
            proven: known.proven,
            lower_bound_bits: known.lower_bound_bits,
            gap_bits: known.gap_bits,
            returns: known.returns,
            returns_lower_bound: known.returns_lower_bound,
            steps: known.steps,
            stage: known.stage.name(),
        }
    }
}

impl AutoPlan {
    /// Keys of the blocks that have a device.
    fn named<'py>(
        &self,
        py: Python<'py>,
        device_of: impl Fn(usize, usize) -> Option<u32> + Sync,
        devices: &[Bound<'py, PyAny>],
    ) -> PyResult<Bound<'py, PyDict>> {
        let tree = self.layout.tree();
        let keys: Vec<(String, u32)> = py.detach(|| {
            let rows = keys_of_blocks(tree, &self.blocks, &device_of).into_iter();
            rows.map(|(row, device)| (tree.full_name(row), device)).collect()
        });
        let map = PyDict::new(py);
        for (name, device) in keys {
            let missing = || PyValueError::new_err("fewer devices than were planned for");
            map.set_item(name, devices.get(device as usize).ok_or_else(missing)?)?;
        }
        Ok(map)
    }
}

/// How good a plan is known to be.
#[pyclass(frozen, module = "planner._core", get_all)]
pub(crate) struct Certificate {
    proven: bool,
    lower_bound_bits: u64,
    gap_bits: u64,
    returns: u32,
    returns_lower_bound: u32,
    steps: u64,
    stage: &'static str,
}

/// Why there is no plan.
#[pyclass(frozen, module = "planner._core", get_all)]
pub(crate) struct AutoFailure {
    unit: u32,
    more_bits: Vec<Option<u64>>,
    proven: bool,
    best_partial: Vec<Option<u32>>,
}
