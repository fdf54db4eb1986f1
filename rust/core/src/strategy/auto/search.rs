//! The stages in their order.

use crate::ids::id_at;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::map_alone::needs_execution_map;
use crate::strategy::auto::packing::arrange::arrange;
use crate::strategy::auto::packing::offload::{self, Choice, Goal, Offloading, are_alike};
use crate::strategy::auto::packing::reshape::near_runs;
use crate::strategy::auto::packing::tiers::tiers;
use crate::strategy::auto::packing::{Packing, Task, weigh};
use crate::strategy::auto::plan::{Place, Plan};
use crate::strategy::auto::problem::{Certificate, Solution, Stage, UNPLACED};
use crate::strategy::auto::rank::rank;
use crate::strategy::auto::runs::contiguous::{Orders, Runnable, Split, runs};
use crate::strategy::auto::runs::offload_window;
use crate::strategy::auto::runs::tie_positions;
use crate::strategy::auto::staging_devices;
use crate::strategy::auto::streaming;
use crate::strategy::steps::Steps;

/// A plan and what is known of it.
pub(crate) struct Found {
    /// Valid: see `Plan::is_valid`.
    pub(crate) plan: Plan,
    /// Which stage found it.
    pub(crate) stage: Stage,
    /// No plan offloads fewer bits.
    pub(crate) lower_bound: u64,
    /// No plan of the same cost returns less often; 0 or 1.
    pub(crate) returns_lower_bound: u32,
}

/// A plan with its returns and the bin to which it streams, which decide among plans of one cost.
#[derive(Debug, Clone)]
struct Ranked {
    rank: (u32, usize),
    plan: Plan,
}

/// The device map alone is not enough; returns; how uneven the fill is.
type RunsRank = (bool, u32, Vec<u64>);

/// The stages, until one finds a plan.
pub(crate) struct Search<'a> {
    /// Never changed: every stage looks at the same problem.
    pub(crate) instance: &'a Instance<'a>,
    /// Left and taken, of this search alone; parts that were shared out are joined again before the next stage.
    pub(crate) steps: Steps,
    /// Of use after a failure: true where every way of placing was excluded and none was cut short.
    pub(crate) is_proven: bool,
    /// What is known before the search, and which plans are of use; read by the last stage only.
    pub(crate) goal: Goal,
    /// Of the plans that were arranged, the one that keeps most of what is preferred to fewer returns.
    pub(crate) keeper: Option<Plan>,
}

impl<'a> Search<'a> {
    pub(crate) fn new(instance: &'a Instance<'a>, steps: Steps) -> Self {
        Self { instance, steps, is_proven: true, goal: Goal::default(), keeper: None }
    }

    pub(crate) fn run(&mut self) -> Option<Found> {
        if self.instance.demands.is_some() {
            return self.with_demands();
        }
        match self.as_runs() {
            Ok(found) => Some(found),
            // Without a run for every device, a plan that keeps as much returns at least once.
            Err(returns) => self.anywhere(returns),
        }
    }

    /// Whether there is a plan, which is found sooner than a good one.
    pub(crate) fn is_feasible(&mut self) -> bool {
        let goal = Goal { is_any: true, ..Goal::default() };
        if self.instance.demands.is_some() {
            let has_runs = !self.instance.has_forced() && self.resident().is_ok();
            let streamed = (!has_runs).then(|| streaming::search(self.instance, goal, &mut self.steps));
            self.is_proven = streamed.as_ref().is_some_and(|streamed| streamed.is_proven);
            return has_runs || streamed.is_some_and(|streamed| streamed.plan.is_some());
        }
        // Runs first: where they exist they are found in a few steps, and any plan will do.
        if self.as_runs().is_ok() {
            return true;
        }
        let offloading = offload::search(self.instance, goal, &mut self.steps);
        self.is_proven = offloading.is_proven;
        !offloading.choices.is_empty()
    }

    /// Nothing is offloaded that need not be, and every device executes one run.
    fn as_runs(&mut self) -> Result<Found, u32> {
        let forced = weigh(self.instance, &self.instance.forced_counts());
        // What fits on no bin is offloaded in every plan; if that is all, nothing better exists and the bound is met.
        if self.instance.has_forced() { self.with_forced(forced) } else { self.resident() }
    }

    /// The stages where running takes more than weights: what is offloaded takes room where it runs, so it is settled together
    /// with the device that runs it.
    fn with_demands(&mut self) -> Option<Found> {
        let resident = if self.instance.has_forced() { Err(0) } else { self.resident() };
        let returns = match resident {
            Ok(found) => return Some(found),
            Err(returns) => returns,
        };
        let streamed = streaming::search(self.instance, self.goal, &mut self.steps);
        self.is_proven = streamed.is_proven;
        let plan = streamed.plan?;
        let is_resident = plan.places.iter().all(|place| matches!(place, Place::Bin(_)));
        let stage = if is_resident { Stage::Scattered } else { Stage::Offload };
        let returns_lower_bound = if is_resident { returns } else { 0 };
        Some(Found { plan, stage, lower_bound: streamed.lower_bound, returns_lower_bound })
    }

    /// Nothing is offloaded. The error is the lower bound on returns of any such plan.
    fn resident(&mut self) -> Result<Found, u32> {
        let split = Split::nothing(self.instance);
        let all = || (0..id_at(self.instance.units.len())).collect::<Vec<u32>>();
        // INVARIANT: 1 only while every stage so far has excluded plans without a return.
        let mut returns = u32::from(self.instance.is_plain());
        for (stage, orders) in [(Stage::InOrder, Orders::Given), (Stage::OtherOrder, Orders::Any)] {
            match runs(self.instance, &split, all(), (orders, true), &mut self.steps) {
                Runnable::Fits(plan) => return Ok(Found { plan, stage, lower_bound: 0, returns_lower_bound: 0 }),
                Runnable::Undecided => returns = 0,
                Runnable::DoesNotFit => {}
            }
        }
        // Runs at other places of tied units may return: a unit counts at its first position in any case.
        let plan = tie_positions::other_places(self.instance, &mut self.steps).ok_or(returns)?;
        Ok(Found { plan, stage: Stage::TiePosition, lower_bound: 0, returns_lower_bound: returns })
    }

    /// Nothing is offloaded but what cannot be resident. The error is the lower bound on returns of any such plan.
    fn with_forced(&mut self, forced: u64) -> Result<Found, u32> {
        let instance = self.instance;
        let offloaded: Vec<bool> =
            (0..id_at(instance.units.len())).map(|unit| instance.class(unit).is_forced_off()).collect();
        let room = instance.cpu.map_or(0, |cpu| cpu.capacity);
        let found = tiers(instance, &instance.forced_counts(), room, &mut self.steps);
        // No homes for what must be offloaded: the last stage finds the same, and says so.
        let Some(tiers) = found.best else { return Err(0) };
        let streams = instance.classes.iter().any(|class| class.is_forced_off() && class.streamed.is_some());
        let staging_devices: Vec<Option<usize>> =
            // Which device streams decides where the window is, so each of them is tried.
            if streams { instance.streaming().map(Some).collect() } else { vec![None] };
        let split = Split { offloaded, tiers, staging_device: None };
        // Pools: other blocks in the memory that cpu and cards share could leave the cards more room.
        let is_bound = instance.is_plain()
            && staging_devices::is_one(instance, &instance.forced_counts())
            && !instance.has_shared_cpu();
        let mut returns = u32::from(is_bound);
        // Strict first: offloaded units lie in the run of their executor, so there are no returns.
        let ways = [(Orders::Given, true), (Orders::Any, true), (Orders::Given, false), (Orders::Any, false)];
        for way in ways {
            let stage = if way.0 == Orders::Given { Stage::InOrder } else { Stage::OtherOrder };
            match self.with_any_staging_device(&split, &staging_devices, way) {
                Runnable::Fits(plan) => {
                    let returns_lower_bound = returns.min(plan.returns(instance));
                    return Ok(Found { plan, stage, lower_bound: forced, returns_lower_bound });
                }
                Runnable::Undecided => returns = 0,
                Runnable::DoesNotFit => {}
            }
        }
        Err(returns)
    }

    /// The plan whose map alone is enough, then the fewest returns, and the best fill among those.
    fn with_any_staging_device(
        &mut self,
        split: &Split,
        staging_devices: &[Option<usize>],
        way: (Orders, bool),
    ) -> Runnable {
        let mut best: Option<(RunsRank, Plan)> = None;
        let mut failed = Runnable::DoesNotFit;
        for &staging_device in staging_devices {
            let split = Split { staging_device, ..split.clone() };
            let sequence = (0..id_at(self.instance.units.len())).collect();
            match runs(self.instance, &split, sequence, way, &mut self.steps) {
                Runnable::Fits(plan) => {
                    let needs_map = needs_execution_map(self.instance, &plan);
                    let rank = (needs_map, plan.returns(self.instance), plan.unevenness(self.instance));
                    if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                        best = Some((rank, plan));
                    }
                }
                // One undecided device makes the whole undecided: it cannot be excluded any more.
                Runnable::DoesNotFit if matches!(failed, Runnable::Undecided) => {}
                answer => failed = answer,
            }
        }
        best.map_or(failed, |(_, plan)| Runnable::Fits(plan))
    }

    /// Units anywhere, offloaded or not.
    fn anywhere(&mut self, returns: u32) -> Option<Found> {
        let instance = self.instance;
        // A quarter is kept for the shape: a plan that returns often is of little use, however well it is packed.
        let mut part = self.steps.share(self.steps.left() / 4 * 3);
        let offloading = offload::search(instance, self.goal, &mut part);
        self.steps.join(part);
        self.is_proven = offloading.is_proven;
        let cost = offloading.choices.first()?.packing.cost();
        // One search answers two stages: whether it offloads nothing says which of them has found the plan.
        let stage = if cost.0 == 0 { Stage::Scattered } else { Stage::Offload };
        let lower_bound = offloading.lower_bound;
        let (plan, returns_lower_bound) = match self.without_returns(cost) {
            (Some(plan), _) => (plan, 0),
            // The search for windows was complete: no plan of this cost has no return, so one is a bound.
            (None, is_complete) if stage == Stage::Offload => (self.arranged(&offloading)?, u32::from(is_complete)),
            _ => (self.arranged(&offloading)?, returns),
        };
        Some(Found { plan, stage, lower_bound, returns_lower_bound })
    }

    /// A plan of this cost in which every device has one run.
    fn without_returns(&mut self, cost: (u64, u64)) -> (Option<Plan>, bool) {
        // Without offloading such a plan would be one of runs, and these were tried.
        if cost.0 == 0 {
            return (None, false);
        }
        let (split, is_complete) = offload_window::search(self.instance, cost, &mut self.steps);
        let Some(split) = split else { return (None, is_complete) };
        for orders in [Orders::Given, Orders::Any] {
            let sequence = (0..id_at(self.instance.units.len())).collect();
            if let Runnable::Fits(plan) = runs(self.instance, &split, sequence, (orders, true), &mut self.steps) {
                return (Some(plan), true);
            }
        }
        (None, false)
    }

    /// The choice that returns least often, streamed to the first device among its like, in the shape of runs or as found.
    fn arranged(&mut self, offloading: &Offloading) -> Option<Plan> {
        let streamed = self.streamed(offloading);
        let as_found = self.as_found(&streamed);
        let mut best: Option<Ranked> = None;
        for ((packing, staging_device), own) in streamed.iter().zip(as_found) {
            // Runs were tried before, so one return is the least that can be hoped for here.
            if best.as_ref().is_some_and(|best| best.rank.0 <= 1) {
                break;
            }
            let shaped = self.reshaped(packing, *staging_device);
            let shaped = shaped.and_then(|packing| self.ranked(&packing, *staging_device));
            for ranked in shaped.into_iter().chain(own) {
                if best.as_ref().is_none_or(|best| ranked.rank < best.rank) {
                    best = Some(ranked);
                }
            }
        }
        best.map(|ranked| ranked.plan)
    }

    /// The packings of all choices, with each bin to which they could be streamed as well.
    fn streamed(&self, offloading: &Offloading) -> Vec<(Packing, Option<usize>)> {
        let mut streamed = Vec::new();
        for Choice { packing, staging_device } in &offloading.choices {
            let Some(one) = *staging_device else {
                streamed.push((packing.clone(), None));
                continue;
            };
            for other in self.instance.streaming().filter(|&bin| are_alike(self.instance, one, bin)) {
                let mut packing = packing.clone();
                packing.counts.swap(one, other);
                streamed.push((packing, Some(other)));
            }
        }
        streamed
    }

    /// Plans of the packings as they were found, until one needs no more than the one return that there must be. They come
    /// before any reshaping, which takes steps, so that it never costs a plan that there would be without it.
    fn as_found(&mut self, streamed: &[(Packing, Option<usize>)]) -> Vec<Option<Ranked>> {
        let work = (self.instance.units.len() * self.instance.bins.len() / 2 + 1) as u64;
        let mut plans: Vec<Option<Ranked>> = Vec::new();
        for (packing, staging_device) in streamed {
            let least = plans.iter().flatten().map(|ranked| ranked.rank.0).min();
            if least.is_some_and(|least| least <= 1 || !self.steps.take(work)) {
                break;
            }
            plans.push(self.ranked(packing, *staging_device));
        }
        plans
    }

    /// The plan of a packing, if it is valid.
    fn ranked(&mut self, packing: &Packing, staging_device: Option<usize>) -> Option<Ranked> {
        let plan = arrange(self.instance, packing, staging_device, &mut self.steps);
        if !plan.is_valid(self.instance) {
            return None;
        }
        if self.keeper.as_ref().is_none_or(|keeper| rank(self.instance, &plan) < rank(self.instance, keeper)) {
            self.keeper = Some(plan.clone());
        }
        Some(Ranked { rank: (plan.returns(self.instance), staging_device.unwrap_or(0)), plan })
    }

    /// The packing in the shape of runs, where there is one.
    fn reshaped(&mut self, packing: &Packing, staging_device: Option<usize>) -> Option<Packing> {
        let offloaded = self.instance.classes.iter().zip(&packing.offloaded).filter(|(_, offloaded)| **offloaded > 0);
        let largest = offloaded.filter_map(|(class, _)| class.streamed).max();
        let task = Task::new(self.instance, staging_device.zip(largest))?;
        let counts = near_runs(&task, packing, staging_device, &mut self.steps)?;
        Some(Packing { counts, ..packing.clone() })
    }

    pub(crate) fn finish(self, found: &Found) -> Solution {
        let instance = self.instance;
        let all = 0..id_at(instance.units.len());
        let home: Vec<u32> = all.clone().map(|unit| found.plan.home(instance, unit).unwrap_or(UNPLACED)).collect();
        let execution = all.map(|unit| found.plan.executors(instance, unit).unwrap_or_default()).collect();
        let load = found.plan.load(instance);
        let held = |holder: Option<crate::strategy::auto::instance::Bin>| {
            holder.map_or(0, |holder| load.used[holder.device as usize])
        };
        let disk_bits = held(instance.disk);
        let offloaded_bits = disk_bits + held(instance.cpu);
        let returns = found.plan.returns(instance);
        let certificate = Certificate {
            proven: found.lower_bound >= offloaded_bits,
            lower_bound_bits: found.lower_bound.min(offloaded_bits),
            gap_bits: offloaded_bits.saturating_sub(found.lower_bound),
            returns,
            returns_lower_bound: found.returns_lower_bound.min(returns),
            steps: self.steps.taken(),
            stage: found.stage,
        };
        let oversized = (0..id_at(home.len())).map(|unit| instance.oversized(unit)).collect();
        let map_is_enough = !needs_execution_map(instance, &found.plan);
        let (reserved_bits, used_bits) = (load.reserved, load.used);
        let (exec_bits, peak_bits) = load.running.iter().map(|need| (need.exec, need.peak)).unzip();
        Solution {
            home,
            execution,
            oversized,
            reserved_bits,
            used_bits,
            exec_bits,
            peak_bits,
            offloaded_bits,
            disk_bits,
            map_is_enough,
            certificate,
        }
    }
}
