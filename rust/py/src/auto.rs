//! The `auto` strategy: a model cut into units, and plans of where each goes.

use std::sync::Arc;

use planner_core::auto::{self, Execute, Failure, Fill, Mode, Options, Solution, Stage, UNPLACED};
use planner_core::{BlockOptions, Device, DeviceKind, Granularity, Placement, clean_nodes, with_aliases};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::layout::Layout;
use crate::parallel::on_all_cores;

/// (kind, capacity in bits or None, pool or None)
type DeviceRow = (String, Option<u64>, Option<u32>);
/// Devices and the joint capacity of each pool.
type Row = (Vec<DeviceRow>, Vec<u64>);

/// A layout cut into units.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Blocks {
    layout: Arc<planner_core::Layout>,
    inner: Arc<planner_core::Blocks>,
    units: Arc<Vec<auto::Unit>>,
}

#[pymethods]
impl Blocks {
    /// Cuts a layout. Names are of rows that exist; `homes` are masks of devices by unit, for units that may not lie anywhere.
    #[new]
    #[pyo3(signature = (layout, *, granularity="block", no_split=Vec::new(), split=Vec::new(), keep_together=Vec::new()))]
    fn new(
        py: Python<'_>,
        layout: &Layout,
        granularity: &str,
        no_split: Vec<String>,
        split: Vec<String>,
        keep_together: Vec<Vec<String>>,
    ) -> PyResult<Self> {
        let granularity = match granularity {
            "block" => Granularity::Block,
            "expert" => Granularity::Expert,
            other => return Err(PyValueError::new_err(format!("granularity {other:?} is not block or expert"))),
        };
        let layout = layout.inner.clone();
        let inner = py.detach(|| {
            let tree = layout.tree();
            let rows = |names: &[String]| tree.resolve(names).into_iter().flatten().collect::<Vec<u32>>();
            let options = BlockOptions {
                no_split_rows: rows(&no_split),
                split_rows: rows(&split),
                granularity,
                keep_together: keep_together.iter().map(|names| rows(names)).collect(),
            };
            planner_core::Blocks::new(&layout, &options)
        });
        let unit = |unit: &planner_core::BlockUnit| auto::Unit {
            bits: unit.bits,
            block_bits: unit.block_bits.clone(),
            positions: unit.positions.clone(),
            buffers_only: unit.buffers_only,
            homes: u64::MAX,
        };
        let units = Arc::new(inner.units.iter().map(unit).collect());
        Ok(Self { layout, inner: inner.into(), units })
    }

    /// Blocks, before ties join them.
    #[getter]
    fn block_count(&self) -> usize {
        self.inner.blocks.len()
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
        let rows = |unit: &auto::Unit| -> Vec<u32> {
            unit.positions.iter().flat_map(|&position| self.inner.blocks[position as usize].iter().copied()).collect()
        };
        let names = |unit| rows(unit).into_iter().map(|row| self.layout.tree().full_name(row)).collect();
        self.units.iter().map(names).collect()
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
        py.detach(|| {
            let rows = planner_core::Blocks::fused_experts(tree).into_iter();
            rows.flat_map(|row| {
                let units = self.inner.units_of(tree, row);
                units.into_iter().map(move |unit| (tree.full_name(row), unit))
            })
            .collect()
        })
    }

    /// Plans. `homes` masks the devices of single units; `options` are (fill, search steps, mode, execute, staging blocks).
    fn solve(
        &self,
        py: Python<'_>,
        row: Row,
        homes: Vec<(u32, u64)>,
        options: (String, u64, String, String, u32),
    ) -> PyResult<Py<PyAny>> {
        let units = self.masked(homes);
        let (devices, options) = read(row, &options, &self.inner.siblings)?;
        let result = py.detach(|| auto::solve(&units, &devices, &options));
        self.wrap(py, result)
    }

    /// Plans for many rows of devices on all cores.
    fn solve_many(
        &self,
        py: Python<'_>,
        rows: Vec<Row>,
        homes: Vec<(u32, u64)>,
        options: (String, u64, String, String, u32),
    ) -> PyResult<Vec<Py<PyAny>>> {
        let units = self.masked(homes);
        let rows =
            rows.into_iter().map(|row| read(row, &options, &self.inner.siblings)).collect::<PyResult<Vec<_>>>()?;
        let results = on_all_cores(py, &rows, |(devices, options)| auto::solve(&units, devices, options))?;
        results.into_iter().map(|result| self.wrap(py, result)).collect()
    }

    /// Least extra bits on each single device that would let nothing be offloaded; None where no amount does.
    fn shortfall(
        &self,
        py: Python<'_>,
        row: Row,
        homes: Vec<(u32, u64)>,
        options: (String, u64, String, String, u32),
    ) -> PyResult<Vec<Option<u64>>> {
        let units = self.masked(homes);
        let (devices, options) = read(row, &options, &self.inner.siblings)?;
        Ok(py.detach(|| auto::shortfall(&units, &devices, &options)))
    }
}

impl Blocks {
    fn masked(&self, homes: Vec<(u32, u64)>) -> Arc<Vec<auto::Unit>> {
        if homes.is_empty() {
            return self.units.clone();
        }
        let mut units = (*self.units).clone();
        for (unit, mask) in homes {
            if let Some(unit) = units.get_mut(unit as usize) {
                unit.homes &= mask;
            }
        }
        units.into()
    }

    fn wrap(&self, py: Python<'_>, result: Result<Solution, Failure>) -> PyResult<Py<PyAny>> {
        match result {
            Ok(solution) => {
                let (layout, blocks, units) = (self.layout.clone(), self.inner.clone(), self.units.clone());
                Ok(Py::new(py, AutoPlan { layout, blocks, units, solution })?.into_any())
            }
            Err(Failure::Infeasible { unit, more_bits, is_proven, best_partial }) => {
                let best_partial = best_partial.into_iter().map(|home| (home != UNPLACED).then_some(home)).collect();
                Ok(Py::new(py, AutoFailure { unit, more_bits, is_proven, best_partial })?.into_any())
            }
            Err(error @ (Failure::TooManyDevices { .. } | Failure::TooLarge)) => {
                Err(PyValueError::new_err(error.to_string()))
            }
        }
    }
}

/// Where each unit goes.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct AutoPlan {
    layout: Arc<planner_core::Layout>,
    blocks: Arc<planner_core::Blocks>,
    units: Arc<Vec<auto::Unit>>,
    solution: Solution,
}

#[pymethods]
impl AutoPlan {
    /// The fewest keys that cover every tensor, in execution order, with the devices of their indices.
    fn device_map<'py>(&self, py: Python<'py>, devices: Vec<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyDict>> {
        named(py, py.detach(|| self.keys(|unit, _| Some(self.solution.home[unit]))), &devices)
    }

    /// The same of what runs elsewhere than it lies.
    fn execution_map<'py>(&self, py: Python<'py>, devices: Vec<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyDict>> {
        let (home, execution) = (&self.solution.home, &self.solution.execution);
        let elsewhere = |unit: usize, block: usize| execution[unit].get(block).copied().filter(|&at| at != home[unit]);
        let keys = py.detach(|| self.keys(elsewhere));
        named(py, keys, &devices)
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
        let name = |unit: &auto::Unit, block: u32| {
            let rows = &self.blocks.blocks[unit.positions[block as usize] as usize];
            rows.first().map(|&row| self.layout.tree().full_name(row))
        };
        let pairs = self.units.iter().zip(&self.solution.oversized);
        pairs.map(|(unit, block)| block.and_then(|block| name(unit, block))).collect()
    }

    /// Bits per device: used, reserved.
    #[getter]
    fn usage(&self) -> Vec<(u64, u64)> {
        self.solution.used_bits.iter().copied().zip(self.solution.reserved_bits.iter().copied()).collect()
    }

    /// (proven, lower bound bits, gap bits, returns, returns lower bound, steps, stage)
    #[getter]
    fn certificate(&self) -> (bool, u64, u64, u32, u32, u64, &'static str) {
        let c = &self.solution.certificate;
        (c.proven, c.lower_bound_bits, c.gap_bits, c.returns, c.returns_lower_bound, c.steps, stage_name(c.stage))
    }
}

impl AutoPlan {
    /// Keys of all blocks, by unit and number within it, that have a device.
    fn keys(&self, device_of: impl Fn(usize, usize) -> Option<u32>) -> Vec<(String, u32)> {
        let tree = self.layout.tree();
        let mut placements = Vec::new();
        let mut seen = vec![0; self.units.len()];
        for (position, rows) in self.blocks.blocks.iter().enumerate() {
            let unit = self.blocks.unit_at(position as u32) as usize;
            let number = seen[unit];
            seen[unit] += 1; // positions of a unit ascend
            let Some(device) = device_of(unit, number) else { continue };
            placements.extend(rows.iter().map(|&node| Placement { node, device, is_lead: true }));
        }
        let is_partial = placements.len() < self.blocks.blocks.iter().map(Vec::len).sum();
        debug_assert_eq!(self.solution.home.len(), self.units.len());
        let entries = with_aliases(tree, &placements);
        // Keys that leave others out must not be grouped under a name that covers those, too.
        let mut entries = if is_partial { entries } else { clean_nodes(tree, &entries) };
        entries.sort_unstable(); // Rows are in execution order.
        entries.into_iter().map(|(node, device)| (tree.full_name(node), device)).collect()
    }
}

fn named<'py>(
    py: Python<'py>,
    keys: Vec<(String, u32)>,
    devices: &[Bound<'py, PyAny>],
) -> PyResult<Bound<'py, PyDict>> {
    let map = PyDict::new(py);
    for (name, device) in keys {
        let device =
            devices.get(device as usize).ok_or_else(|| PyValueError::new_err("fewer devices than were planned for"))?;
        map.set_item(name, device)?;
    }
    Ok(map)
}

/// Why there is no plan.
#[pyclass(frozen, module = "planner._core", get_all)]
pub(crate) struct AutoFailure {
    unit: u32,
    more_bits: Vec<Option<u64>>,
    is_proven: bool,
    best_partial: Vec<Option<u32>>,
}

fn read(
    (devices, pools): Row,
    options: &(String, u64, String, String, u32),
    siblings: &[Vec<u32>],
) -> PyResult<(Vec<Device>, Options)> {
    let read_device = |(kind, capacity_bits, pool): DeviceRow| {
        let kind = DeviceKind::named(&kind).ok_or_else(|| unknown("device kind", &kind))?;
        Ok(Device { kind, capacity_bits, pool, is_main: false })
    };
    let (fill, search_steps, mode, execute, staging_blocks) = options;
    let options = Options {
        fill: match fill.as_str() {
            "even" => Fill::Even,
            "fewest" => Fill::Fewest,
            "in_order" => Fill::InOrder,
            other => return Err(unknown("fill", other)),
        },
        search_steps: *search_steps,
        mode: match mode.as_str() {
            "any" => Mode::Any,
            "no_disk" => Mode::NoDisk,
            "gpu_only" => Mode::GpuOnly,
            other => return Err(unknown("mode", other)),
        },
        execute_offloaded: match execute.as_str() {
            "accelerator" => Execute::Accelerator,
            "cpu" => Execute::Cpu,
            other => return Err(unknown("execute_offloaded", other)),
        },
        staging_blocks: *staging_blocks,
        pools,
        siblings: siblings.to_vec(),
    };
    Ok((devices.into_iter().map(read_device).collect::<PyResult<_>>()?, options))
}

fn unknown(what: &str, word: &str) -> PyErr {
    PyValueError::new_err(format!("{what} {word:?} is not known"))
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::InOrder => "in_order",
        Stage::OtherOrder => "other_order",
        Stage::TiePosition => "tie_position",
        Stage::Scattered => "scattered",
        Stage::Offload => "offload",
    }
}
