//! What a strategy found, and why, in numbers.

use crate::devices::{Device, DeviceKind};
use crate::ids::NodeId;

/// One key of the device map, before grouping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The module or tensor placed, with all that is inside.
    pub node: NodeId,
    /// Index of its device.
    pub device: u32,
    /// Placed on its own account, not because a tied module was.
    pub is_lead: bool,
}

/// Which rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Fits, alone or with the modules tied to it.
    Fits,
    /// Placed together with the module tied to it.
    Tied,
    /// Shares a tensor with a module that lies on an earlier device.
    Bound,
    /// Smaller than the module that left its device empty.
    Fallback,
    /// Too large; continued with its children.
    Split,
    /// Fits without a module tied to it; that one was split.
    SplitTied,
    /// Too large and not to be split; continued on the next device.
    NextDevice,
}

impl Rule {
    /// Stable name for people and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fits => "fits",
            Self::Tied => "tied",
            Self::Bound => "bound",
            Self::Fallback => "fallback",
            Self::Split => "split",
            Self::SplitTied => "split_tied",
            Self::NextDevice => "next_device",
        }
    }
}

/// One decision: the two numbers compared, on which device, for which node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// Which rule decided.
    pub rule: Rule,
    /// The node decided on.
    pub node: NodeId,
    /// Index of the device.
    pub device: u32,
    /// What the node needs with all that is tied to it, in bits.
    pub needed_bits: i64,
    /// What the device had left after the reservation, in bits; `i64::MAX` is without limit.
    pub available_bits: i64,
}

/// Bytes on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bits of stored tensors, each once.
    pub used_bits: i64,
    /// The same by accelerate's formula, which counts some tensors twice and booleans as bits.
    pub formula_bits: i64,
    /// Largest layer that was kept free when the last module was considered here.
    pub reserved_bits: i64,
}

/// Result of a strategy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Keys in the order of placement.
    pub placements: Vec<Placement>,
    /// Bytes per device.
    pub usage: Vec<Usage>,
    /// Every decision, in order.
    pub reasons: Vec<Reason>,
}

impl Outcome {
    /// What was placed on no accelerator, in order.
    pub fn offloaded(&self, devices: &[Device]) -> impl Iterator<Item = &Placement> {
        let is_accelerator = |device: u32| devices[device as usize].kind == DeviceKind::Accelerator;
        self.placements.iter().filter(move |placement| !is_accelerator(placement.device))
    }

    /// Whether a device has a bit of a tensor.
    pub fn is_used(&self, device: u32) -> bool {
        self.usage.get(device as usize).is_some_and(|usage| usage.used_bits > 0)
    }

    /// Devices that were left for the next one without a bit of a tensor, in order.
    pub fn empty_devices(&self) -> Vec<u32> {
        let left = self.reasons.iter().filter(|reason| reason.rule == Rule::NextDevice).map(|reason| reason.device);
        left.filter(|&device| self.usage[device as usize].used_bits == 0).collect()
    }
}
