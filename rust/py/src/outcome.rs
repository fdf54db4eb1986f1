//! Results of planning as frozen Python objects; names are made when asked for.

use std::sync::Arc;

use planner_core::{Device, DeviceKind, clean_nodes, with_aliases};
use pyo3::prelude::*;

/// A plan, by device index.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Outcome {
    pub(crate) layout: Arc<planner_core::Layout>,
    pub(crate) outcome: planner_core::Outcome,
    pub(crate) devices: Vec<Device>,
}

#[pymethods]
impl Outcome {
    /// (name, device index) in order; grouped where all below a name lies on one device.
    fn device_map(&self, py: Python<'_>, clean: bool) -> Vec<(String, u32)> {
        py.detach(|| {
            let tree = self.layout.tree();
            let mut entries = with_aliases(tree, &self.outcome.placements);
            if clean {
                entries = clean_nodes(tree, &entries);
            }
            entries.into_iter().map(|(node, device)| (tree.full_name(node), device)).collect()
        })
    }

    /// Per device: stored bits used, bits by the dialect's formula, bits kept free.
    #[getter]
    fn usage(&self) -> Vec<(i64, i64, i64)> {
        self.outcome.usage.iter().map(|usage| (usage.used_bits, usage.formula_bits, usage.reserved_bits)).collect()
    }

    /// Devices that were left without a bit of a tensor, in order.
    #[getter]
    fn empty_devices(&self) -> Vec<u32> {
        self.outcome.empty_devices()
    }

    /// (rule, name, device index, needed bits, available bits or None) of every decision, in order.
    fn reasons(&self) -> Vec<(&'static str, String, u32, i64, Option<i64>)> {
        let tree = self.layout.tree();
        let row = |reason: &planner_core::Reason| {
            let available = (reason.available_bits != i64::MAX).then_some(reason.available_bits);
            (reason.rule.name(), tree.full_name(reason.node), reason.device, reason.needed_bits, available)
        };
        self.outcome.reasons.iter().map(row).collect()
    }

    /// Whether anything lies on cpu or disk.
    #[getter]
    fn has_offloaded(&self) -> bool {
        self.outcome.placements.iter().any(|placement| !self.is_accelerator(placement.device))
    }

    /// Bits of buffers in modules that were placed off the accelerators on their own account.
    fn offloaded_buffer_bits(&self, py: Python<'_>) -> i64 {
        py.detach(|| {
            let offloaded = self.outcome.placements.iter().filter(|p| p.is_lead && !self.is_accelerator(p.device));
            let modules = offloaded.filter(|p| self.layout.tree().is_module(p.node));
            modules.map(|placement| self.layout.buffer_bits(placement.node)).sum()
        })
    }
}

impl Outcome {
    fn is_accelerator(&self, device: u32) -> bool {
        self.devices[device as usize].kind == DeviceKind::Accelerator
    }
}

/// The last device refused a module.
#[pyclass(frozen, module = "planner._core", get_all)]
pub(crate) struct Exhausted {
    pub(crate) block: String,
    pub(crate) device: u32,
    pub(crate) shortfall_bits: u64,
    pub(crate) placed: Vec<(String, u32)>,
}
