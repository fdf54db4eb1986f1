//! Results of planning as frozen Python objects; names are made when asked for.

use std::sync::Arc;

use planner_core::{Device, clean_nodes, with_aliases};
use pyo3::prelude::*;

/// A plan, by device index.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Outcome {
    pub(crate) layout: Arc<planner_core::Layout>,
    pub(crate) inner: planner_core::Outcome,
    pub(crate) devices: Vec<Device>,
}

#[pymethods]
impl Outcome {
    /// (name, device index) in order; grouped where all below a name lies on one device.
    fn device_map(&self, py: Python<'_>, clean: bool) -> Vec<(String, u32)> {
        py.detach(|| {
            let tree = self.layout.tree();
            let mut entries = with_aliases(tree, &self.inner.placements);
            if clean {
                entries = clean_nodes(tree, &entries);
            }
            entries.into_iter().map(|(node, device)| (tree.full_name(node), device)).collect()
        })
    }

    /// Per device: stored bits used, bits by the dialect's formula, bits kept free.
    #[getter]
    fn usage(&self) -> Vec<(i64, i64, i64)> {
        self.inner.usage.iter().map(|usage| (usage.used_bits, usage.formula_bits, usage.reserved_bits)).collect()
    }

    /// Devices that were left without a bit of a tensor, in order.
    #[getter]
    fn empty_devices(&self) -> Vec<u32> {
        self.inner.empty_devices()
    }

    /// Every decision, in order.
    fn reasons(&self) -> Vec<Reason> {
        let tree = self.layout.tree();
        let reason = |reason: &planner_core::Reason| Reason {
            rule: reason.rule.name(),
            name: tree.full_name(reason.node),
            device: reason.device,
            needed_bits: reason.needed_bits,
            available_bits: (reason.available_bits != i64::MAX).then_some(reason.available_bits),
        };
        self.inner.reasons.iter().map(reason).collect()
    }

    /// Whether anything lies on cpu or disk.
    #[getter]
    fn has_offloaded(&self) -> bool {
        self.inner.offloaded(&self.devices).next().is_some()
    }

    /// Bits of buffers in modules that were placed off the accelerators on their own account.
    fn offloaded_buffer_bits(&self, py: Python<'_>) -> i64 {
        py.detach(|| self.layout.offloaded_buffer_bits(&self.inner, &self.devices))
    }
}

/// One decision.
#[pyclass(frozen, module = "planner._core", get_all)]
pub(crate) struct Reason {
    rule: &'static str,
    name: String,
    device: u32,
    needed_bits: i64,
    available_bits: Option<i64>,
}

/// The last device refused a module.
#[pyclass(frozen, module = "planner._core", get_all)]
pub(crate) struct Exhausted {
    pub(crate) block: String,
    pub(crate) device: u32,
    pub(crate) shortfall_bits: u64,
    pub(crate) placed: Vec<(String, u32)>,
}
