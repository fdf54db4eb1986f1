//! Whether what is offloaded could be streamed to several devices.
//!
//! The search streams to one device, which loses no bit. But a plan that streams to several may return less often, so a
//! bound on returns that looks at one device holds only where a second has no room for even the smallest block.

use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::{joint_room, weigh};

/// No plan that offloads these units, by class, streams to two devices.
pub(crate) fn is_one(instance: &Instance, offloaded: &[u32]) -> bool {
    let classes = || instance.classes.iter().zip(offloaded).filter(|(_, count)| **count > 0).map(|(class, _)| class);
    let blocks = classes().flat_map(|class| &class.units).flat_map(|&unit| &instance.units[unit as usize].block_bits);
    let Some(least) = blocks.copied().filter(|&bits| !instance.is_by_cpu(bits)).min() else { return true };
    let largest = classes().filter_map(|class| class.streamed).max().unwrap_or(0);
    let capacities: Vec<u64> = instance.bins.iter().map(|bin| bin.capacity).collect();
    // What the bins have left beside resident units is all that can be kept for streaming, on whichever of them.
    let resident = instance.total - weigh(instance, offloaded);
    let left = joint_room(instance, &capacities, &instance.pools).saturating_sub(resident);
    // Two devices keep the largest block on one and at least the smallest on the other; less room allows one only.
    instance.bins.len() < 2 || left < instance.room(least).saturating_add(instance.room(largest))
}
