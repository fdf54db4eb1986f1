//! The stages in their order, and the answer.

use super::arrange::arrange;
use super::contiguous::{Orders, Runnable, Split, runs};
use super::deficit;
use super::model::{Attempt, Certificate, Failure, Mode, Options, Solution, Stage, UNPLACED, Unit, Verdict};
use super::offload::{self, Goal, Offloading, are_alike};
use super::packing::{Packing, Task, best_fit, weigh};
use super::plan::Plan;
use super::preference::prefer;
use super::scene::Scene;
use super::shape::near_runs;
use super::steps::Steps;
use super::stock::stock;
use super::{streamers, ties, window};
use crate::devices::Device;

/// One of so many parts of the steps is kept for preferences among plans that cost the same.
const PREFERENCE_PARTS: u64 = 8;

/// A plan and what is known of it.
pub(crate) struct Found {
    pub(crate) plan: Plan,
    pub(crate) stage: Stage,
    pub(crate) lower_bound: u64,
    pub(crate) returns_lower_bound: u32,
}

/// Stages that were tried, and the plan of the last one.
pub(crate) struct Search<'a> {
    pub(crate) scene: &'a Scene<'a>,
    pub(crate) steps: Steps,
    pub(crate) tried: Vec<Attempt>,
    pub(crate) is_proven: bool,
    pub(crate) goal: Goal,
}

/// Places units on devices: least offloaded, least on disk, the first block at home on a device that executes, siblings run
/// by one device, fewest returns, nearest to the order of devices given, filled as the options say; in this order.
pub fn solve(units: &[Unit], devices: &[Device], options: &Options) -> Result<Solution, Failure> {
    let scene = Scene::new(units, devices, options)?;
    let mut steps = Steps::new(options.search_steps);
    let kept = steps.share(options.search_steps / PREFERENCE_PARTS);
    let mut search = Search::new(&scene, steps);
    match search.run() {
        Some(found) => {
            search.steps.join(kept);
            let found = prefer(&mut search, devices, found);
            Ok(search.finish(found))
        }
        None => {
            let best_partial = partial(&scene);
            let unit = best_partial.iter().position(|&home| home == UNPLACED).unwrap_or(0) as u32;
            let more_bits = deficit::to_work(units, devices, options);
            Err(Failure::Infeasible { unit, more_bits, is_proven: search.is_proven, best_partial, tried: search.tried })
        }
    }
}

impl<'a> Search<'a> {
    pub(crate) fn new(scene: &'a Scene<'a>, steps: Steps) -> Self {
        Self { scene, steps, tried: Vec::new(), is_proven: true, goal: Goal::default() }
    }

    pub(crate) fn run(&mut self) -> Option<Found> {
        match self.as_runs() {
            Ok(found) => Some(found),
            // Without a run for every device, a plan that keeps as much returns at least once.
            Err(returns) => self.anywhere(returns),
        }
    }

    /// Whether there is a plan, which is found sooner than a good one.
    pub(crate) fn is_feasible(&mut self) -> bool {
        let goal = Goal { is_any: true, ..Goal::default() };
        self.as_runs().is_ok() || !offload::search(self.scene, goal, &mut self.steps).choices.is_empty()
    }

    /// Nothing is offloaded that need not be, and every device executes one run.
    fn as_runs(&mut self) -> Result<Found, u32> {
        let forced = weigh(self.scene, &self.scene.forced_counts());
        let has_forced = self.scene.classes.iter().any(super::scene::Class::is_forced_off);
        if has_forced { self.with_forced(forced) } else { self.resident() }
    }

    fn note(&mut self, stage: Stage, answer: &Runnable, offloaded: u64) {
        let (verdict, unit) = match answer {
            Runnable::Fits(_) => (Verdict::Fits, None),
            Runnable::DoesNotFit(unit) => (Verdict::DoesNotFit, *unit),
            Runnable::Undecided => (Verdict::Undecided, None),
        };
        let offloaded_bits = (verdict == Verdict::Fits).then_some(offloaded);
        self.tried.push(Attempt { stage, verdict, unit, offloaded_bits });
    }

    /// Nothing is offloaded. The error is the lower bound on returns of any such plan.
    fn resident(&mut self) -> Result<Found, u32> {
        let split = Split::nothing(self.scene);
        let all = || (0..self.scene.units.len() as u32).collect::<Vec<u32>>();
        let mut returns = u32::from(self.scene.is_plain());
        for (stage, orders) in [(Stage::InOrder, Orders::Given), (Stage::OtherOrder, Orders::Any)] {
            let answer = runs(self.scene, &split, all(), (orders, true), &mut self.steps);
            self.note(stage, &answer, 0);
            match answer {
                Runnable::Fits(plan) => return Ok(Found { plan, stage, lower_bound: 0, returns_lower_bound: 0 }),
                Runnable::Undecided => returns = 0,
                Runnable::DoesNotFit(_) => {}
            }
        }
        let (plan, is_complete) = ties::other_places(self.scene, &mut self.steps);
        let answer = match plan {
            Some(plan) => Runnable::Fits(plan),
            None if is_complete => Runnable::DoesNotFit(None),
            None => Runnable::Undecided,
        };
        self.note(Stage::TiePosition, &answer, 0);
        match answer {
            Runnable::Fits(plan) => {
                Ok(Found { plan, stage: Stage::TiePosition, lower_bound: 0, returns_lower_bound: returns })
            }
            _ => Err(returns),
        }
    }

    /// Nothing is offloaded but what cannot be resident. The error is the lower bound on returns of any such plan.
    fn with_forced(&mut self, forced: u64) -> Result<Found, u32> {
        let scene = self.scene;
        let off: Vec<bool> = (0..scene.units.len() as u32).map(|unit| scene.class(unit).is_forced_off()).collect();
        let room = scene.cpu.map_or(0, |cpu| cpu.capacity);
        let stocked = stock(scene, &scene.forced_counts(), room, &mut self.steps);
        let Some(stock) = stocked.best else { return Err(0) };
        let streams = scene.classes.iter().any(|class| class.is_forced_off() && class.streamed.is_some());
        let streamers: Vec<Option<usize>> =
            if streams { (0..scene.bins.len()).map(Some).collect() } else { vec![None] };
        let split = Split { off, stock, streamer: None };
        // Pools: other blocks in the memory that cpu and cards share could leave the cards more room.
        let is_bound = scene.is_plain() && streamers::is_one(scene, &scene.forced_counts()) && !scene.has_shared_cpu();
        let mut returns = u32::from(is_bound);
        let ways = [(Orders::Given, true), (Orders::Any, true), (Orders::Given, false), (Orders::Any, false)];
        for way in ways {
            let stage = if way.0 == Orders::Given { Stage::InOrder } else { Stage::OtherOrder };
            let answer = self.with_any_streamer(&split, &streamers, way);
            self.note(stage, &answer, forced);
            match answer {
                Runnable::Fits(plan) => {
                    let returns_lower_bound = returns.min(plan.returns(scene));
                    return Ok(Found { plan, stage, lower_bound: forced, returns_lower_bound });
                }
                Runnable::Undecided => returns = 0,
                Runnable::DoesNotFit(_) => {}
            }
        }
        Err(returns)
    }

    /// The plan with the fewest returns, and the best fill among those.
    fn with_any_streamer(&mut self, split: &Split, streamers: &[Option<usize>], way: (Orders, bool)) -> Runnable {
        let mut best: Option<((u32, Vec<u64>), Plan)> = None;
        let mut failed = Runnable::DoesNotFit(None);
        for &streamer in streamers {
            let split = Split { streamer, ..split.clone() };
            let sequence = (0..self.scene.units.len() as u32).collect();
            match runs(self.scene, &split, sequence, way, &mut self.steps) {
                Runnable::Fits(plan) => {
                    let rank = (plan.returns(self.scene), plan.unevenness(self.scene));
                    if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                        best = Some((rank, plan));
                    }
                }
                Runnable::DoesNotFit(_) if matches!(failed, Runnable::Undecided) => {}
                answer => failed = answer,
            }
        }
        best.map_or(failed, |(_, plan)| Runnable::Fits(plan))
    }

    /// Units anywhere, offloaded or not.
    fn anywhere(&mut self, returns: u32) -> Option<Found> {
        let scene = self.scene;
        let mut part = self.steps.share(self.steps.left() / 4 * 3);
        let offloading = offload::search(scene, self.goal, &mut part);
        self.steps.join(part);
        self.is_proven = offloading.is_proven;
        let Some(cost) = offloading.choices.first().map(|choice| choice.packing.cost()) else {
            let verdict = if offloading.is_proven { Verdict::DoesNotFit } else { Verdict::Undecided };
            let stage = if scene.options.mode == Mode::GpuOnly { Stage::Scattered } else { Stage::Offload };
            self.tried.push(Attempt { stage, verdict, unit: None, offloaded_bits: None });
            return None;
        };
        let stage = if cost.0 == 0 { Stage::Scattered } else { Stage::Offload };
        if stage == Stage::Offload {
            let verdict = if offloading.lower_bound > 0 { Verdict::DoesNotFit } else { Verdict::Undecided };
            self.tried.push(Attempt { stage: Stage::Scattered, verdict, unit: None, offloaded_bits: None });
        }
        self.tried.push(Attempt { stage, verdict: Verdict::Fits, unit: None, offloaded_bits: Some(cost.0) });
        let lower_bound = offloading.lower_bound;
        let (plan, returns_lower_bound) = match self.without_returns(cost) {
            (Some(plan), _) => (plan, 0),
            (None, is_complete) if stage == Stage::Offload => (self.arranged(&offloading)?, u32::from(is_complete)),
            _ => (self.arranged(&offloading)?, returns),
        };
        Some(Found { plan, stage, lower_bound, returns_lower_bound })
    }

    /// A plan of this cost in which every device has one run.
    fn without_returns(&mut self, cost: (u64, u64)) -> (Option<Plan>, bool) {
        if cost.0 == 0 {
            return (None, false);
        }
        let (split, is_complete) = window::search(self.scene, cost, &mut self.steps);
        let Some(split) = split else { return (None, is_complete) };
        for orders in [Orders::Given, Orders::Any] {
            let sequence = (0..self.scene.units.len() as u32).collect();
            if let Runnable::Fits(plan) = runs(self.scene, &split, sequence, (orders, true), &mut self.steps) {
                return (Some(plan), true);
            }
        }
        (None, false)
    }

    /// The choice that returns least often, streamed to the first device among its like.
    fn arranged(&mut self, offloading: &Offloading) -> Option<Plan> {
        let scene = self.scene;
        let mut best: Option<((u32, usize), Plan)> = None;
        for choice in &offloading.choices {
            let likes =
                (0..scene.bins.len()).filter(|&bin| choice.streamer.is_some_and(|at| are_alike(scene, at, bin)));
            let streamers: Vec<Option<usize>> = match choice.streamer {
                Some(_) => likes.map(Some).collect(),
                None => vec![None],
            };
            for streamer in streamers {
                let least = best.as_ref().map(|((returns, _), _)| *returns);
                let work = (scene.units.len() * scene.bins.len() / 2 + 1) as u64;
                if least.is_some_and(|least| least <= 1 || !self.steps.take(work)) {
                    break;
                }
                let mut packing: Packing = choice.packing.clone();
                if let (Some(one), Some(other)) = (choice.streamer, streamer) {
                    packing.counts.swap(one, other);
                }
                for packing in self.shapes(packing, streamer) {
                    let plan = arrange(scene, &packing, streamer, &mut self.steps);
                    let rank = (plan.returns(scene), streamer.unwrap_or(0));
                    if best.as_ref().is_none_or(|(least, _)| rank < *least) && plan.is_valid(scene) {
                        best = Some((rank, plan));
                    }
                }
            }
        }
        best.map(|(_, plan)| plan)
    }

    /// The packing in the shape of runs, where there is one, and as it was found.
    fn shapes(&mut self, packing: Packing, streamer: Option<usize>) -> Vec<Packing> {
        let off = self.scene.classes.iter().zip(&packing.off).filter(|(_, off)| **off > 0);
        let largest = off.filter_map(|(class, _)| class.streamed).max();
        let streaming = streamer.zip(largest);
        let shaped = Task::new(self.scene, streaming)
            .and_then(|task| near_runs(&task, &packing, streamer, &mut self.steps))
            .map(|counts| Packing { counts, ..packing.clone() });
        shaped.into_iter().chain([packing]).collect()
    }

    fn finish(self, found: Found) -> Solution {
        let scene = self.scene;
        let all = 0..scene.units.len() as u32;
        let home: Vec<u32> = all.clone().map(|unit| found.plan.home(scene, unit).unwrap_or(UNPLACED)).collect();
        let execution = all.map(|unit| found.plan.executors(scene, unit).unwrap_or_default()).collect();
        let load = found.plan.load(scene);
        let held = |holder: Option<super::scene::Bin>| holder.map_or(0, |holder| load.used[holder.device as usize]);
        let disk_bits = held(scene.disk);
        let offloaded_bits = disk_bits + held(scene.cpu);
        let returns = found.plan.returns(scene);
        let certificate = Certificate {
            proven: found.lower_bound >= offloaded_bits,
            lower_bound_bits: found.lower_bound.min(offloaded_bits),
            gap_bits: offloaded_bits.saturating_sub(found.lower_bound),
            returns,
            returns_lower_bound: found.returns_lower_bound.min(returns),
            steps: self.steps.taken(),
            stage: found.stage,
        };
        let oversized = (0..home.len() as u32).map(|unit| scene.oversized(unit)).collect();
        let (reserved_bits, used_bits) = (load.reserved, load.used);
        let tried = self.tried;
        Solution { home, execution, oversized, reserved_bits, used_bits, offloaded_bits, disk_bits, certificate, tried }
    }
}

/// Homes of as many bits as fit by best fit, first on devices that execute, then on the others.
fn partial(scene: &Scene) -> Vec<u32> {
    let task = Task::relaxed(scene);
    let counts = best_fit(&task);
    let mut homes = vec![UNPLACED; scene.units.len()];
    let mut room =
        [(scene.cpu, task.cpu_room(&counts).unwrap_or(0)), (scene.disk, scene.disk.map_or(0, |d| d.capacity))];
    for (index, class) in scene.classes.iter().enumerate() {
        let mut units = class.units.iter();
        for (bin, row) in scene.bins.iter().zip(&counts) {
            units.by_ref().take(row[index] as usize).for_each(|&unit| homes[unit as usize] = bin.device);
        }
        for &unit in units {
            let free =
                (class.bits == 0).then(|| scene.bins.iter().enumerate().find(|(bin, _)| class.allows(*bin))).flatten();
            if let Some((_, bin)) = free {
                homes[unit as usize] = bin.device;
                continue;
            }
            for ((holder, room), may) in room.iter_mut().zip([class.on_cpu, class.on_disk]) {
                if let (Some(holder), true, Some(left)) = (holder, may, room.checked_sub(class.bits)) {
                    homes[unit as usize] = holder.device;
                    *room = left;
                    break;
                }
            }
        }
    }
    homes
}
