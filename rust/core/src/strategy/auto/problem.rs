//! What the solver takes and returns.

use std::sync::Arc;

use crate::model::blocks::BlockUnit;
use crate::strategy::auto::demands::Demands;

/// Marks a unit of a partial plan that found no place.
pub const UNPLACED: u32 = u32::MAX;

/// Part of the model that is never split: a block, or several joined by ties or by keep-together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Union of its storages.
    pub bits: u64,
    /// Each of its blocks: what is on a device at once while the block is streamed; at most `bits`.
    pub block_bits: Vec<u64>,
    /// Execution positions of its blocks, ascending; each position is used once over all units.
    pub positions: Vec<u32>,
    /// Holds buffers only; ignored in counting returns.
    pub buffers_only: bool,
    /// Devices that may be its home: bit `d` stands for device `d`.
    pub allowed_devices: u64,
}

impl From<&BlockUnit> for Unit {
    /// A unit that may lie anywhere.
    fn from(unit: &BlockUnit) -> Self {
        Self {
            bits: unit.bits,
            block_bits: unit.block_bits.clone(),
            positions: unit.positions.clone(),
            buffers_only: unit.buffers_only,
            allowed_devices: u64::MAX,
        }
    }
}

/// Units of which some may lie on fewer devices: pairs of a unit's number and a mask of devices. What names no unit is
/// left out.
pub fn restricted(units: &[Unit], masks: &[(u32, u64)]) -> Vec<Unit> {
    let mut units = units.to_vec();
    for &(unit, mask) in masks {
        if let Some(unit) = units.get_mut(unit as usize) {
            unit.allowed_devices &= mask;
        }
    }
    units
}

/// How room that is left over is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fill {
    /// The largest fraction in use over all accelerators is as small as can be.
    #[default]
    Even,
    /// As few accelerators as can be, evenly among those.
    Fewest,
    /// Each accelerator is filled before the next.
    InOrder,
}

/// What may hold units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Every device.
    #[default]
    Any,
    /// Nothing on disk.
    NoDisk,
    /// Nothing offloaded.
    GpuOnly,
}

/// What runs offloaded units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Execute {
    /// They are streamed to an accelerator that keeps room for them.
    #[default]
    Accelerator,
    /// They run on the cpu.
    Cpu,
}

/// Settings of the search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How room that is left over is spread.
    pub fill: Fill,
    /// Limit of the search; the same problem always takes the same steps.
    pub search_steps: u64,
    /// What may hold units.
    pub mode: Mode,
    /// What runs offloaded units.
    pub execute_offloaded: Execute,
    /// Streamed pieces for which room is kept at once.
    pub staging_blocks: u32,
    /// Joint capacity of each pool.
    pub pools: Vec<u64>,
    /// Accelerators in the order in which a loader looks for the one to which it streams, where it is given the device map
    /// alone: the first that holds anything. Those left out come last, as they were given.
    pub main_order: Vec<u32>,
    /// Groups of units that one device should run, where that costs nothing: siblings whose results their parent mixes.
    pub siblings: Vec<Vec<u32>>,
    /// What running the blocks takes beside their weights; shared, so that another question about the same model copies nothing.
    pub demands: Option<Arc<Demands>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fill: Fill::Even,
            search_steps: 120_000,
            mode: Mode::Any,
            execute_offloaded: Execute::Accelerator,
            staging_blocks: 1,
            pools: Vec::new(),
            main_order: Vec::new(),
            siblings: Vec::new(),
            demands: None,
        }
    }
}

/// Ways of placing units, in the order in which they are tried: a plan is of the first that finds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Runs of units on the devices in the order given.
    InOrder,
    /// Runs of units on the devices in another order.
    OtherOrder,
    /// Runs of units, tied ones taken at the place of another member.
    TiePosition,
    /// Units anywhere, nothing offloaded.
    Scattered,
    /// Something is offloaded.
    Offload,
}

impl Stage {
    /// Stable name for people and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::InOrder => "in_order",
            Self::OtherOrder => "other_order",
            Self::TiePosition => "tie_position",
            Self::Scattered => "scattered",
            Self::Offload => "offload",
        }
    }
}

/// How good the plan is known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate {
    /// No plan offloads less. In a plan every unit has one home that it may have, and every offloaded block a device
    /// that executes it and keeps room for it: any accelerator, or the cpu where the block is larger than every
    /// accelerator or offloaded blocks are to run there.
    pub proven: bool,
    /// No plan offloads less than this.
    pub lower_bound_bits: u64,
    /// Offloaded beyond the lower bound.
    pub gap_bits: u64,
    /// Changes of the executing device, less those that its number of devices needs.
    pub returns: u32,
    /// No plan with as much offloaded, as much on disk, and as much of what is preferred to fewer returns, returns less
    /// often.
    pub returns_lower_bound: u32,
    /// Steps taken.
    pub steps: u64,
    /// Where the plan was found.
    pub stage: Stage,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Solution {
    /// Device that holds each unit.
    pub home: Vec<u32>,
    /// Device that executes each block of each unit.
    pub execution: Vec<Vec<u32>>,
    /// The first block of each unit, by number, that is larger than every accelerator and executed by the cpu.
    pub oversized: Vec<Option<u32>>,
    /// Room each device keeps for streaming.
    pub reserved_bits: Vec<u64>,
    /// Room units take on each device.
    pub used_bits: Vec<u64>,
    /// What lies on each device for the blocks that it runs: caches, and buffers that stay.
    pub exec_bits: Vec<u64>,
    /// What each device needs at once while it runs its blocks, with what it gives up for running any.
    pub peak_bits: Vec<u64>,
    /// On neither an accelerator nor, where there is none, the cpu.
    pub offloaded_bits: u64,
    /// On disk.
    pub disk_bits: u64,
    /// The homes alone say where everything runs: what is offloaded is executed by the device to which a loader streams that is
    /// given the device map alone.
    pub map_is_enough: bool,
    /// How good the plan is known to be.
    pub certificate: Certificate,
}

impl Solution {
    /// Where a block of a unit is executed, if that is not where the unit lies.
    pub fn executed_elsewhere(&self, unit: usize, block: usize) -> Option<u32> {
        self.execution[unit].get(block).copied().filter(|&device| device != self.home[unit])
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No plan was found.
    #[error("no device has room for unit {unit}")]
    Infeasible {
        /// First unit without a place in the best partial plan.
        unit: u32,
        /// Least capacity which, added to this one device, makes it work; `None` where none does.
        more_bits: Vec<Option<u64>>,
        /// There is no plan; otherwise none was found.
        is_proven: bool,
        /// Homes of the best partial plan, [`UNPLACED`] where there is none.
        best_partial: Vec<u32>,
    },
    /// A device is a bit of a unit's `allowed_devices`.
    #[error("{count} devices are more than {} can be told apart", u64::BITS)]
    TooManyDevices {
        /// Devices given.
        count: usize,
    },
    /// Sizes whose sum does not fit the arithmetic.
    #[error("the units are too large to be added up")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::restricted;
    use crate::testing::units;

    #[test]
    fn masks_of_one_unit_meet_and_those_of_no_unit_are_left_out() {
        let masked = restricted(&units(&[1, 1]), &[(1, 0b110), (1, 0b011), (7, 0)]);
        assert_eq!(masked.iter().map(|unit| unit.allowed_devices).collect::<Vec<u64>>(), [u64::MAX, 0b010]);
    }
}
