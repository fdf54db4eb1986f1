//! Whether what is offloaded could be streamed to several devices.
//!
//! The search streams to one device, which loses no bit. But whoever streams to several may return less often, so a bound on
//! returns that looks at one device holds only where a second has no room for even the smallest block.

use super::packing::{joint_room, weigh};
use super::scene::Scene;

/// No plan that offloads these units, by class, streams to two devices.
pub(crate) fn is_one(scene: &Scene, off: &[u32]) -> bool {
    let classes = || scene.classes.iter().zip(off).filter(|(_, count)| **count > 0).map(|(class, _)| class);
    let blocks = classes().flat_map(|class| &class.units).flat_map(|&unit| &scene.units[unit as usize].block_bits);
    let Some(least) = blocks.copied().filter(|&bits| !scene.is_by_cpu(bits)).min() else { return true };
    let largest = classes().filter_map(|class| class.streamed).max().unwrap_or(0);
    let capacities: Vec<u64> = scene.bins.iter().map(|bin| bin.capacity).collect();
    let resident = scene.total - weigh(scene, off);
    let left = joint_room(scene, &capacities, &scene.pools).saturating_sub(resident);
    scene.bins.len() < 2 || left < scene.room(least).saturating_add(scene.room(largest))
}
