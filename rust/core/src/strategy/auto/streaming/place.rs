//! From what each device runs to a plan.

use crate::strategy::auto::demands::Need;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::arrange::{Shares, arrange_shares, settle};
use crate::strategy::auto::packing::tiers::{Tiers, tiers};
use crate::strategy::auto::plan::{Plan, Staging};
use crate::strategy::auto::streaming::borders::{Counts, Run};
use crate::strategy::auto::streaming::costs::Costs;
use crate::strategy::auto::streaming::keep::NEVER;
use crate::strategy::steps::Steps;

/// The plan of runs.
pub(crate) fn runs(costs: &mut Costs, runs: &[Run], steps: &mut Steps) -> Option<Plan> {
    let instance = costs.instance;
    let mut executors = vec![0; instance.units.len()];
    let mut executed = vec![vec![0; instance.classes.len()]; instance.bins.len()];
    for &(bin, from, to) in runs {
        executors[from..to].fill(bin);
        executed[bin] = Counts::new(instance, from).up_to(to).to_vec();
    }
    let shares = shared(costs, executed, steps)?;
    let staging = staging(instance, &shares, &executors);
    Some(settle(instance, &shares, staging, &executors))
}

/// A plan in which each bin runs a vector of units, arranged so that it returns as seldom as can be.
pub(crate) fn shares(costs: &mut Costs, vectors: &[usize], steps: &mut Steps) -> Option<Plan> {
    let instance = costs.instance;
    let mut executed = vec![vec![0; instance.classes.len()]; vectors.len()];
    for (counts, &vector) in executed.iter_mut().zip(vectors) {
        costs.vectors.as_ref()?.write(vector, counts);
    }
    let mut shares = shared(costs, executed, steps)?;
    let cpu = instance.bins.len();
    for bin in 0..cpu {
        for (index, class) in instance.classes.iter().enumerate().filter(|(_, class)| class.streamed.is_none()) {
            // The cpu runs what is offloaded of these, so no bin's run goes on through them.
            let moved = shares.offloaded[bin][index].min(if class.is_weightless { 0 } else { u32::MAX });
            for of in [&mut shares.executed, &mut shares.offloaded] {
                of[bin][index] -= moved;
                of[cpu][index] += moved;
            }
        }
    }
    Some(arrange_shares(instance, &shares, |executors| staging(instance, &shares, executors), steps))
}

/// What each bin keeps of what it runs, and homes for the rest.
fn shared(costs: &mut Costs, mut executed: Vec<Vec<u32>>, steps: &mut Steps) -> Option<Shares> {
    let instance = costs.instance;
    let nothing = vec![0u32; instance.classes.len()];
    let (mut offloaded, mut sum) = (vec![nothing.clone(); executed.len() + 1], nothing.clone());
    for (bin, counts) in executed.iter().enumerate() {
        let keeper = &mut costs.keepers[costs.kind_of[bin]];
        if keeper.least(counts) == NEVER {
            return None;
        }
        for (index, class) in instance.classes.iter().enumerate().filter(|(_, class)| !class.is_weightless) {
            offloaded[bin][index] = counts[index] - keeper.kept()[index];
            sum[index] += offloaded[bin][index];
            debug_assert!(class.can_offload() || offloaded[bin][index] == 0);
        }
    }
    executed.push(nothing);
    let room = cpu_room(instance, &executed, &offloaded)?;
    let tiers: Tiers = tiers(instance, &sum, room, steps).best?;
    Some(Shares { executed, offloaded, tiers })
}

/// Room on the cpu for what is offloaded, beside what it runs of it.
fn cpu_room(instance: &Instance, executed: &[Vec<u32>], offloaded: &[Vec<u32>]) -> Option<u64> {
    let Some(cpu) = instance.cpu else { return Some(0) };
    let mut hosted: Option<Need> = None;
    for counts in offloaded {
        for (class, &count) in instance.classes.iter().zip(counts) {
            if count > 0 && class.hosted.is_some() {
                hosted = Some(hosted.unwrap_or_default().and(class.hosted_need.times(count)));
            }
        }
    }
    let mut room = cpu.capacity;
    if let Some(pool) = cpu.pool {
        let mut left = instance.pools[pool];
        for (bin, _) in instance.bins.iter().enumerate().filter(|(_, bin)| bin.pool == Some(pool)) {
            left = left.checked_sub(taken(instance, bin, &executed[bin], &offloaded[bin]))?;
        }
        room = room.min(left);
    }
    room.checked_sub(hosted.map_or(0, |need| need.bits() + cpu.shared))
}

/// What a bin takes for what it runs.
fn taken(instance: &Instance, bin: usize, executed: &[u32], offloaded: &[u32]) -> u64 {
    let (mut need, mut bits, mut staged, mut runs) = (Need::default(), 0u64, 0u64, false);
    for (class, (&count, &off)) in instance.classes.iter().zip(executed.iter().zip(offloaded)) {
        let streamed = if class.streamed.is_some() { off } else { 0 };
        bits += class.bits * u64::from(count - off);
        need = need.and(class.need.times(count - off)).and(class.streamed_need.times(streamed));
        if streamed > 0 {
            staged = staged.max(class.streamed.unwrap_or(0));
        }
        runs |= count > off || streamed > 0;
    }
    let shared = if runs { instance.bins[bin].shared } else { 0 };
    bits + need.bits() + instance.room(staged) + shared
}

/// The bins to which units are streamed: their executors, or one for all where there is only one.
fn staging(instance: &Instance, shares: &Shares, executors: &[usize]) -> Staging {
    let streams = |counts: &Vec<u32>| {
        instance.classes.iter().zip(counts).any(|(class, &count)| count > 0 && class.streamed.is_some())
    };
    let streaming: Vec<usize> = (0..instance.bins.len()).filter(|&bin| streams(&shares.offloaded[bin])).collect();
    match streaming[..] {
        [] => Staging::One(None),
        [bin] => Staging::One(Some(bin)),
        _ => Staging::Each(executors.to_vec()),
    }
}
