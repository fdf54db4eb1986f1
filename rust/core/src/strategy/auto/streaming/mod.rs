//! Plans where running takes more than weights, and something is offloaded or scattered.
//!
//! A streamed unit takes room where it runs: its cache stays there, and it needs something while it runs. So what is offloaded
//! and which device runs it are settled together. Each device runs some units, keeps as many of them as fit, and streams the
//! rest (`keep`). First each device gets one run (`borders`); then a table over what each device runs, whatever the order
//! (`shares`), proves that nothing less is offloaded, or finds it.

mod borders;
mod costs;
mod floor;
mod keep;
mod place;
mod shares;

use crate::strategy::auto::instance::{Instance, UNLIMITED};
use crate::strategy::auto::packing::offload::Goal;
use crate::strategy::auto::plan::{Place, Plan};
use crate::strategy::auto::streaming::borders::Borders;
use crate::strategy::auto::streaming::costs::Costs;
use crate::strategy::auto::streaming::floor::floor;
use crate::strategy::auto::streaming::shares::Answer;
use crate::strategy::steps::Steps;

/// What was found.
pub(crate) struct Streamed {
    /// Valid, and of a cost that is of use.
    pub(crate) plan: Option<Plan>,
    /// No plan offloads less.
    pub(crate) lower_bound: u64,
    /// The bound is met, or there is no plan.
    pub(crate) is_proven: bool,
}

/// The plan that offloads least.
pub(crate) fn search(instance: &Instance, goal: Goal, steps: &mut Steps) -> Streamed {
    let Some(floor) = floor(instance) else {
        return Streamed { plan: None, lower_bound: UNLIMITED, is_proven: true };
    };
    let mut best = Best { instance, goal, plan: None, lower_bound: floor.max(goal.floor), is_excluded: false };
    let are_bounds = instance.runs_units_whole();
    for (index, capacities) in capacities(instance).into_iter().enumerate() {
        best.improve(&capacities, index == 0 && are_bounds, steps);
        if best.is_enough() {
            break;
        }
    }
    let cost = best.cost();
    let lower_bound = cost.map_or(best.lower_bound, |(bits, _)| best.lower_bound.min(bits));
    let is_proven = best.is_excluded || cost.is_some_and(|(bits, _)| bits <= lower_bound);
    let plan = best.plan.map(|(_, plan)| plan).filter(|_| goal.most.is_none_or(|most| cost <= Some(most)));
    Streamed { plan, lower_bound, is_proven }
}

/// The best so far.
struct Best<'a> {
    instance: &'a Instance<'a>,
    goal: Goal,
    plan: Option<((u64, u64), Plan)>,
    lower_bound: u64,
    /// There is no plan.
    is_excluded: bool,
}

impl Best<'_> {
    fn cost(&self) -> Option<(u64, u64)> {
        self.plan.as_ref().map(|(cost, _)| *cost)
    }

    fn is_enough(&self) -> bool {
        let is_met = self.cost().is_some_and(|(bits, disk_bits)| bits <= self.lower_bound && disk_bits == 0);
        self.is_excluded || is_met || (self.goal.is_any && self.plan.is_some())
    }

    /// Looks for plans within these capacities of the bins; whether they are the bins' own and each unit is run by one of them, so
    /// that bounds hold.
    fn improve(&mut self, capacities: &[u64], are_bounds: bool, steps: &mut Steps) {
        let mut costs = Costs::new(self.instance, capacities);
        if self.goal.is_any
            && let Some(runs) = Borders::new(&mut costs).longest()
        {
            self.offer(place::runs(&mut costs, &runs, steps));
            if self.is_enough() {
                return;
            }
        }
        // A third for each way, so that no way takes the steps of the next.
        let mut part = steps.share(steps.left() / 3);
        if let Some(streamed) = Borders::new(&mut costs).in_given_order(&mut part) {
            self.offer(place::runs(&mut costs, &streamed.runs, &mut part));
        }
        steps.join(part);
        if self.is_enough() {
            return;
        }
        let mut part = steps.share(steps.left() / 2);
        if costs.kinds.len() > 1
            && let Some(streamed) = Borders::new(&mut costs).in_any_order(&mut part)
            && self.cost().is_none_or(|(bits, _)| streamed.offloaded_bits < bits)
        {
            self.offer(place::runs(&mut costs, &streamed.runs, &mut part));
        }
        steps.join(part);
        if self.is_enough() {
            return;
        }
        let below = self.cost().map(|(bits, _)| bits);
        let most = self.goal.most.map(|(bits, _)| bits.saturating_add(1));
        let limit = below.into_iter().chain(most).min().unwrap_or(keep::NEVER);
        let mut part = steps.share(steps.left() / 2);
        match shares::search(&mut costs, capacities, limit, &mut part) {
            Answer::Least(vectors, bits) => {
                self.bound(are_bounds, bits);
                if !self.offer(place::shares(&mut costs, &vectors, &mut part)) {
                    self.keep_some(capacities, &mut part);
                }
            }
            // No plan at all, or none better than the one that is there.
            Answer::NothingBelow if are_bounds && limit == keep::NEVER => self.is_excluded = true,
            Answer::NothingBelow => self.bound(are_bounds, limit),
            Answer::Unknown => {}
        }
        steps.join(part);
    }

    /// What would be offloaded has no homes: then one class after another stays, and more of others goes.
    fn keep_some(&mut self, capacities: &[u64], steps: &mut Steps) {
        for class in (0..self.instance.classes.len()).filter(|&class| self.instance.classes[class].can_offload()) {
            let mut narrowed = self.instance.clone();
            (narrowed.classes[class].on_cpu, narrowed.classes[class].on_disk) = (false, false);
            let limit = self.cost().map_or(keep::NEVER, |(bits, _)| bits);
            let mut costs = Costs::new(&narrowed, capacities);
            let mut part = steps.share(steps.left() / 2);
            if let Answer::Least(vectors, _) = shares::search(&mut costs, capacities, limit, &mut part) {
                self.offer(place::shares(&mut costs, &vectors, &mut part));
            }
            steps.join(part);
        }
    }

    fn bound(&mut self, is_bound: bool, bits: u64) {
        if is_bound {
            self.lower_bound = self.lower_bound.max(bits);
        }
    }

    /// Takes a plan if it is valid and better; false where it is not valid.
    fn offer(&mut self, plan: Option<Plan>) -> bool {
        let Some(plan) = plan.filter(|plan| plan.is_valid(self.instance)) else { return false };
        let bits_on = |of: fn(&Place) -> bool| {
            let units = self.instance.units.iter().zip(&plan.places).filter(|(_, place)| of(place));
            units.map(|(unit, _)| unit.bits).sum::<u64>()
        };
        let cost = (bits_on(|place| !matches!(place, Place::Bin(_))), bits_on(|place| *place == Place::Disk));
        if self.cost().is_none_or(|best| cost < best) {
            self.plan = Some((cost, plan));
        }
        true
    }
}

/// Capacities of the bins: their own, and where some share memory, ways of dividing it.
fn capacities(instance: &Instance) -> Vec<Vec<u64>> {
    let own: Vec<u64> = instance.bins.iter().map(|bin| bin.capacity).collect();
    let mut ways = vec![own.clone()];
    if !instance.has_shared_bins() {
        return ways;
    }
    let divided = |order: &mut dyn Iterator<Item = usize>| {
        let (mut left, mut capacities) = (instance.pools.clone(), own.clone());
        for bin in order {
            if let Some(pool) = instance.bins[bin].pool {
                capacities[bin] = own[bin].min(left[pool]);
                left[pool] -= capacities[bin];
            }
        }
        capacities
    };
    // The first has what it can, then the last, and then each its part.
    ways.push(divided(&mut (0..own.len())));
    ways.push(divided(&mut (0..own.len()).rev()));
    let mut sums = vec![0u128; instance.pools.len()];
    for bin in &instance.bins {
        if let Some(pool) = bin.pool {
            sums[pool] += u128::from(bin.capacity);
        }
    }
    let part = |bin: &crate::strategy::auto::instance::Bin| match bin.pool {
        Some(pool) if sums[pool] > u128::from(instance.pools[pool]) => {
            let part = u128::from(bin.capacity) * u128::from(instance.pools[pool]) / sums[pool];
            crate::strategy::auto::counts::saturated(part)
        }
        _ => bin.capacity,
    };
    ways.push(instance.bins.iter().map(part).collect());
    ways
}
