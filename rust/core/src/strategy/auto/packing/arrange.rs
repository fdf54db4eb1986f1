//! From counts to places: which unit of a class goes where, so that execution returns to a device as seldom as can be.
//!
//! A sweep along the execution order stays on a device while that has a unit of the class to give, then goes to another.
//! Several sweeps are made and the best is kept; this is a heuristic, and the packing is not changed.

use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::Packing;
use crate::strategy::auto::packing::tiers::Tiers;
use crate::strategy::auto::plan::{Place, Plan, Staging, breaks, lay_out};
use crate::strategy::steps::Steps;

/// How a sweep chooses the next device.
#[derive(Debug, Clone, Copy)]
struct SweepOrder {
    first: usize,
    prefers_long_runs: bool,
}

/// Units by class; the cpu comes after the bins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shares {
    /// By executor: all that it executes.
    pub(crate) executed: Vec<Vec<u32>>,
    /// By executor: those of them that are offloaded.
    pub(crate) offloaded: Vec<Vec<u32>>,
    pub(crate) tiers: Tiers,
}

/// The best arrangement found of a packing.
pub(crate) fn arrange(
    instance: &Instance,
    packing: &Packing,
    staging_device: Option<usize>,
    steps: &mut Steps,
) -> Plan {
    arrange_shares(instance, &Shares::of(instance, packing, staging_device), |_| Staging::One(staging_device), steps)
}

/// The best arrangement found of what each device executes. `staging` says of executors, by unit, where units are streamed.
pub(crate) fn arrange_shares(
    instance: &Instance,
    shares: &Shares,
    staging: impl Fn(&[usize]) -> Staging,
    steps: &mut Steps,
) -> Plan {
    let mut best: Option<(u32, Plan)> = None;
    let cost = (instance.units.len() * shares.executed.len() / 2 + 1) as u64;
    // A sweep that begins where the first unit is not to be had would begin elsewhere all the same.
    let opens =
        |first: &usize| instance.class_of.first().is_none_or(|&class| shares.executed[*first][class as usize] > 0);
    let long_runs = (0..shares.executed.len()).filter(opens).map(|first| SweepOrder { first, prefers_long_runs: true });
    let in_order = SweepOrder { first: 0, prefers_long_runs: false };
    for sweep_order in long_runs.chain([in_order]) {
        if best.is_some() && !steps.take(cost) {
            break;
        }
        let executors = sweep(instance, shares.executed.clone(), sweep_order);
        let plan = settle(instance, shares, staging(&executors), &executors);
        let returns = plan.returns(instance);
        if best.as_ref().is_none_or(|(least, _)| returns < *least) {
            best = Some((returns, plan));
        }
    }
    let nowhere = || Plan { places: vec![Place::Disk; instance.units.len()], staging: staging(&[]) };
    best.map_or_else(nowhere, |(_, plan)| plan)
}

impl Shares {
    fn of(instance: &Instance, packing: &Packing, staging_device: Option<usize>) -> Self {
        let nothing = vec![0; instance.classes.len()];
        let mut executed = packing.counts.clone();
        executed.push(nothing.clone());
        let mut offloaded = vec![nothing; executed.len()];
        for (index, (class, &count)) in instance.classes.iter().zip(&packing.offloaded).enumerate() {
            let executor =
                if class.leads_by_cpu { instance.bins.len() } else { staging_device.unwrap_or(instance.bins.len()) };
            executed[executor][index] += count;
            offloaded[executor][index] += count;
        }
        Self { executed, offloaded, tiers: packing.tiers.clone() }
    }
}

/// Executor of each unit.
fn sweep(instance: &Instance, mut shares: Vec<Vec<u32>>, sweep_order: SweepOrder) -> Vec<usize> {
    let mut executors = Vec::with_capacity(instance.units.len());
    let mut here = sweep_order.first;
    for unit in 0..instance.units.len() {
        let class = instance.class_of[unit] as usize;
        // What weighs nothing is in no count and stays with its neighbour where it may, at no return.
        if instance.classes[class].is_weightless {
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

fn next_device(instance: &Instance, shares: &mut [Vec<u32>], unit: usize, sweep_order: SweepOrder) -> usize {
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
    let is_free = |class: u32| {
        let class = &instance.classes[class as usize];
        class.is_weightless || (class.bits == 0 && instance.demands.is_none())
    };
    let mut end = from;
    for &class in &instance.class_of[from..] {
        match (share[class as usize], is_free(class)) {
            (_, true) => {}
            (0, _) => break,
            _ => share[class as usize] -= 1,
        }
        end += 1;
    }
    // The counts were used up for trying; this puts them back, which is cheaper than a copy.
    for &class in &instance.class_of[from..end] {
        share[class as usize] += u32::from(!is_free(class));
    }
    end - from
}

/// Decides which of the units a device executes are offloaded: the last of a class, or the first where its own run then
/// stays in one piece.
pub(crate) fn settle(instance: &Instance, shares: &Shares, staging: Staging, executors: &[usize]) -> Plan {
    let build = |from_the_end: bool| {
        let mut left = shares.offloaded.clone();
        let mut offloaded = vec![false; executors.len()];
        let mut take = |unit: usize| {
            let left = &mut left[executors[unit]][instance.class_of[unit] as usize];
            offloaded[unit] = *left > 0;
            *left = left.saturating_sub(1);
        };
        if from_the_end {
            (0..executors.len()).rev().for_each(&mut take);
        } else {
            (0..executors.len()).for_each(&mut take);
        }
        let mut places: Vec<Place> = executors.iter().map(|&executor| Place::Bin(executor)).collect();
        lay_out(instance, &mut places, &offloaded, &shares.tiers);
        places
    };
    // Which units of a class are offloaded costs nothing; fewer breaks of the home make the device map shorter.
    let (last, first) = (build(true), build(false));
    let places = if breaks(&first) < breaks(&last) { first } else { last };
    Plan { places, staging }
}
