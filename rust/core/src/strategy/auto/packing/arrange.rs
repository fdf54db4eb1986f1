//! From counts to places: which unit of a class goes where, so that execution returns to a device as seldom as can be.
//!
//! A sweep along the execution order stays on a device while that has a unit of the class to give, then goes to another.
//! Several sweeps are made and the best is kept; this is a heuristic, and the packing is not changed.

use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::Packing;
use crate::strategy::auto::plan::{Place, Plan, lay_out};
use crate::strategy::auto::steps::Steps;

/// How a sweep chooses the next device.
#[derive(Debug, Clone, Copy)]
struct SweepOrder {
    first: usize,
    prefers_long_runs: bool,
}

/// Units of each class that each device executes; the cpu comes after the bins.
type Shares = Vec<Vec<u32>>;

/// The best arrangement found of a packing.
pub(crate) fn arrange(
    instance: &Instance,
    packing: &Packing,
    staging_device: Option<usize>,
    steps: &mut Steps,
) -> Plan {
    let shares = shares_of(instance, packing, staging_device);
    let mut best: Option<(u32, Plan)> = None;
    let cost = (instance.units.len() * shares.len() / 2 + 1) as u64;
    // A sweep that begins where the first unit is not to be had would begin elsewhere all the same.
    let opens = |first: &usize| instance.class_of.first().is_none_or(|&class| shares[*first][class as usize] > 0);
    let long_runs = (0..shares.len()).filter(opens).map(|first| SweepOrder { first, prefers_long_runs: true });
    let in_order = SweepOrder { first: 0, prefers_long_runs: false };
    for sweep_order in long_runs.chain([in_order]) {
        if best.is_some() && !steps.take(cost) {
            break;
        }
        let executors = sweep(instance, shares.clone(), sweep_order);
        let plan = settle(instance, packing, staging_device, &executors);
        let returns = plan.returns(instance);
        if best.as_ref().is_none_or(|(least, _)| returns < *least) {
            best = Some((returns, plan));
        }
    }
    best.map_or(Plan { places: vec![Place::Disk; instance.units.len()], staging_device }, |(_, plan)| plan)
}

fn shares_of(instance: &Instance, packing: &Packing, staging_device: Option<usize>) -> Shares {
    let mut shares = packing.counts.clone();
    shares.push(vec![0; instance.classes.len()]);
    for (index, (class, &offloaded)) in instance.classes.iter().zip(&packing.offloaded).enumerate() {
        let executor =
            if class.leads_by_cpu { instance.bins.len() } else { staging_device.unwrap_or(instance.bins.len()) };
        shares[executor][index] += offloaded;
    }
    shares
}

/// Executor of each unit.
fn sweep(instance: &Instance, mut shares: Shares, sweep_order: SweepOrder) -> Vec<usize> {
    let mut executors = Vec::with_capacity(instance.units.len());
    let mut here = sweep_order.first;
    for unit in 0..instance.units.len() {
        let class = instance.class_of[unit] as usize;
        // What weighs nothing is in no count and stays with its neighbour where it may, at no return.
        if instance.classes[class].bits == 0 && !instance.classes[class].is_forced_off() {
            let mask = instance.classes[class].bins;
            let stays = here < instance.bins.len() && instance.classes[class].allows(here);
            executors.push(if stays { here } else { mask.trailing_zeros() as usize });
            continue;
        }
        if shares[here][class] == 0 {
            let next = next_device(instance, &mut shares, unit, sweep_order);
            if instance.units[unit].buffers_only {
                shares[next][class] -= 1;
                executors.push(next);
                continue;
            }
            here = next;
        }
        shares[here][class] -= 1;
        executors.push(here);
    }
    executors
}

fn next_device(instance: &Instance, shares: &mut Shares, unit: usize, sweep_order: SweepOrder) -> usize {
    let class = instance.class_of[unit] as usize;
    let able: Vec<usize> = (0..shares.len()).filter(|&device| shares[device][class] > 0).collect();
    if !sweep_order.prefers_long_runs || able.len() < 2 {
        return able.first().copied().unwrap_or(0);
    }
    // The longest run from here needs the next change latest; of equal ones the first device.
    let longest =
        able.into_iter().max_by_key(|&device| (run(instance, &mut shares[device], unit), usize::MAX - device));
    longest.unwrap_or(0)
}

/// Units in a row, from one on, that a device can give.
fn run(instance: &Instance, share: &mut [u32], from: usize) -> usize {
    let mut end = from;
    for &class in &instance.class_of[from..] {
        match (share[class as usize], instance.classes[class as usize].bits) {
            (_, 0) => {}
            (0, _) => break,
            _ => share[class as usize] -= 1,
        }
        end += 1;
    }
    // The counts were used up for trying; this puts them back, which is cheaper than a copy.
    for &class in &instance.class_of[from..end] {
        share[class as usize] += u32::from(instance.classes[class as usize].bits > 0);
    }
    end - from
}

/// Decides which of the units a device executes are offloaded: the last of a class, or the first where its own run then
/// stays in one piece.
fn settle(instance: &Instance, packing: &Packing, staging_device: Option<usize>, executors: &[usize]) -> Plan {
    let build = |from_the_end: bool| {
        let mut left = packing.offloaded.clone();
        let mut offloaded = vec![false; executors.len()];
        let mut take = |unit: usize| {
            let class = instance.class_of[unit] as usize;
            let executor = if instance.classes[class].leads_by_cpu {
                instance.bins.len()
            } else {
                staging_device.unwrap_or(instance.bins.len())
            };
            if executors[unit] == executor && left[class] > 0 {
                left[class] -= 1;
                offloaded[unit] = true;
            }
        };
        if from_the_end {
            (0..executors.len()).rev().for_each(&mut take);
        } else {
            (0..executors.len()).for_each(&mut take);
        }
        let mut places: Vec<Place> = executors.iter().map(|&executor| Place::Bin(executor)).collect();
        lay_out(instance, &mut places, &offloaded, &packing.tiers);
        Plan { places, staging_device }
    };
    // Which units of a class are offloaded costs nothing; fewer breaks of the home make the device map shorter.
    let (last, first) = (build(true), build(false));
    if first.breaks() < last.breaks() { first } else { last }
}
