//! Whether the device map of a plan says by itself where everything runs.
//!
//! A loader that is given a device map and nothing else streams all that lies on the cpu or on disk to the *main device* of the
//! map: the first accelerator, in an order of the loader's own, that holds anything. A plan may have kept the room for that on
//! another one.

use crate::ids::id_at;
use crate::strategy::auto::instance::{Class, Instance};
use crate::strategy::auto::plan::{Place, Plan, Staging};
use crate::strategy::auto::problem::{Execute, Unit};

/// What makes a map enough: all that is offloaded runs on the main device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MainDevice {
    /// A bin: the first, in the loader's order, that holds anything.
    Bin(usize),
    /// The cpu, because no bin holds anything.
    Cpu,
}

/// The main device of a plan's map.
fn main_device(instance: &Instance, plan: &Plan) -> MainDevice {
    let holding = plan.places.iter().fold(0u64, |mask, place| match *place {
        Place::Bin(bin) => mask | 1 << bin,
        Place::Cpu | Place::Disk => mask,
    });
    let first = instance.main_order.iter().find(|&&bin| holding >> bin & 1 == 1);
    first.map_or(MainDevice::Cpu, |&bin| MainDevice::Bin(bin))
}

/// Something that is offloaded runs elsewhere than on the main device of the map.
pub(crate) fn needs_execution_map(instance: &Instance, plan: &Plan) -> bool {
    // Without accelerators, all that is offloaded runs on the cpu, whatever the map says.
    if !instance.has_accelerator {
        return false;
    }
    let main = main_device(instance, plan);
    let runs_elsewhere = |unit: usize| {
        let class = &instance.classes[instance.class_of[unit] as usize];
        let is_streamed_elsewhere =
            class.streamed.is_some() && plan.staging.of(id_at(unit)).map(MainDevice::Bin) != Some(main);
        is_streamed_elsewhere || (class.hosted.is_some() && main != MainDevice::Cpu)
    };
    (0..plan.places.len()).any(|unit| !matches!(plan.places[unit], Place::Bin(_)) && runs_elsewhere(unit))
}

/// The bin that streams and the main device change places, where that makes the map enough. The plan stays as it is in all but
/// the names of two devices.
pub(crate) fn exchanged(instance: &Instance, plan: &Plan) -> Option<Plan> {
    let (MainDevice::Bin(main), &Staging::One(Some(staging))) = (main_device(instance, plan), &plan.staging) else {
        return None;
    };
    let exchange = |place: &Place| match *place {
        Place::Bin(bin) if bin == main => Place::Bin(staging),
        Place::Bin(bin) if bin == staging => Place::Bin(main),
        place => place,
    };
    let plan = Plan { places: plan.places.iter().map(exchange).collect(), staging: Staging::One(Some(main)) };
    (!needs_execution_map(instance, &plan) && plan.is_valid(instance)).then_some(plan)
}

/// Main devices with which a plan that offloads so many bits could need no execution map, in the loader's order.
pub(crate) fn candidates(instance: &Instance, offloaded_bits: u64) -> Vec<MainDevice> {
    let is_hosted = |class: &Class| class.is_forced_off() && class.hosted.is_some();
    if instance.options.execute_offloaded == Execute::Cpu || instance.classes.iter().any(is_hosted) {
        // What the cpu runs is streamed to an accelerator as soon as the map names one.
        return if offloaded_bits == instance.total { vec![MainDevice::Cpu] } else { Vec::new() };
    }
    let mut left: u64 = instance.bins.iter().fold(0, |sum, bin| sum.saturating_add(bin.capacity));
    let mut found = Vec::new();
    for &bin in &instance.main_order {
        // Bins before the main device hold nothing, and what is left must have room for all that stays.
        if instance.total - offloaded_bits > left {
            break;
        }
        found.push(MainDevice::Bin(bin));
        left = left.saturating_sub(instance.bins[bin].capacity);
    }
    found
}

impl MainDevice {
    /// Takes from the units the homes that would make another device the main one.
    pub(crate) fn restrict(self, instance: &Instance, units: &mut [Unit]) {
        let is_before = |bin: usize| self != Self::Bin(bin);
        let before = instance.main_order.iter().take_while(|&&bin| is_before(bin));
        let mask = before.fold(0u64, |mask, &bin| mask | 1 << instance.bins[bin].device);
        for unit in units {
            unit.allowed_devices &= !mask;
        }
    }

    /// Bins to which such a plan streams.
    pub(crate) fn streaming_bins(self) -> u64 {
        match self {
            Self::Bin(bin) => 1 << bin,
            Self::Cpu => u64::MAX,
        }
    }
}
