//! From a problem to its answer.

use crate::devices::Device;
use crate::ids::id_at;
use crate::strategy::auto::deficit;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::offload::Goal;
use crate::strategy::auto::packing::{Task, best_fit};
use crate::strategy::auto::preference::{cost, prefer};
use crate::strategy::auto::problem::{Failure, Options, Solution, UNPLACED, Unit};
use crate::strategy::auto::search::{Found, Search};
use crate::strategy::auto::streaming;
use crate::strategy::steps::Steps;

/// One of so many parts of the steps is kept for preferences among plans that cost the same.
const PREFERENCE_PARTS: u64 = 8;

/// One of so many parts is all that preferences have where running takes more than weights: each wish is a table of its own.
const DEMANDING_PREFERENCE_PARTS: u64 = 128;

/// Places units on devices: least offloaded, least on disk, homes that need no map of executing devices beside them, the first
/// block at home on a device that executes, siblings run by one device, fewest returns, nearest to the order of devices given,
/// filled as the options say; in this order.
///
/// # Errors
///
/// [`Failure::Infeasible`] when no plan was found; more devices, or larger units, than the search can handle.
pub fn solve(units: &[Unit], devices: &[Device], options: &Options) -> Result<Solution, Failure> {
    let instance = Instance::new(units, devices, options)?;
    let simpler_options = simpler_options(options);
    let known = match &simpler_options {
        Some(options) => known(&instance, &Instance::new(units, devices, options)?, devices),
        None => Known { steps: Steps::new(options.search_steps), floor: 0, is_excluded: false, found: None },
    };
    let mut search = Search::new(&instance, known.steps);
    search.goal.floor = known.floor;
    let found = match known.found {
        None if !known.is_excluded => best(&mut search, devices),
        found => found,
    };
    if let Some(found) = found {
        return Ok(search.finish(&found));
    }
    // A failure shows what would fit and what is lacking, so that budgets can be changed with reason.
    let best_partial = partial(&instance);
    let unit = id_at(best_partial.iter().position(|&home| home == UNPLACED).unwrap_or(0));
    let more_bits = deficit::to_work(units, devices, options);
    Err(Failure::Infeasible { unit, more_bits, is_proven: search.is_proven, best_partial })
}

/// The same problem as if nothing of offloaded blocks stayed where they run; nothing where nothing does.
fn simpler_options(options: &Options) -> Option<Options> {
    let demands = options.demands.as_deref().filter(|demands| demands.has_stays())?;
    Some(Options { demands: Some(demands.without_stays().into()), ..options.clone() })
}

/// What a simpler problem tells of one.
struct Known {
    /// What is left for the search, and what was taken.
    steps: Steps,
    /// No plan offloads less.
    floor: u64,
    /// There is no plan.
    is_excluded: bool,
    /// Valid here as well, so nothing more need be searched.
    found: Option<Found>,
}

/// Asks the simpler problem first: it is less work, and there is mostly room for what stays.
fn known(instance: &Instance, simpler: &Instance, devices: &[Device]) -> Known {
    let mut search = Search::new(simpler, Steps::new(simpler.options.search_steps));
    let found = best(&mut search, devices);
    let mut steps = Steps::new(instance.options.search_steps);
    steps.join(search.steps.at_most(0));
    // What stays of a block that is streamed is no more than the room kept for it, so whatever fits with what stays fits
    // without. Of several at once the room that is kept shrinks by more than what stays, and the answer here has to be looked for.
    if simpler.options.staging_blocks > 1 {
        let found = found.filter(|found| found.plan.is_valid(instance));
        let most = found.as_ref().map(|found| cost(instance, &found.plan));
        let goal = Goal { most, ..Goal::default() };
        let part = steps.left() / 2;
        let mut part = steps.share(part);
        let known = found.is_some().then(|| streaming::search(instance, goal, &mut part));
        steps.join(part);
        let floor = known.as_ref().map_or(0, |known| known.lower_bound);
        let is_best = known.and_then(|known| known.plan).is_none_or(|plan| Some(cost(instance, &plan)) >= most);
        let found = found.filter(|_| is_best);
        let found = found.map(|found| Found { lower_bound: floor, returns_lower_bound: 0, ..found });
        return Known { steps, floor, is_excluded: false, found };
    }
    let is_excluded = found.is_none() && search.is_proven;
    let floor = found.as_ref().map_or(0, |found| found.lower_bound);
    Known { steps, floor, is_excluded, found: found.filter(|found| found.plan.is_valid(instance)) }
}

/// The best plan of one search, and of its like the one that is preferred.
fn best(search: &mut Search, devices: &[Device]) -> Option<Found> {
    let options = search.instance.options;
    // Kept apart, for a hard packing would use up all that it is given.
    let kept = search.steps.share(options.search_steps / PREFERENCE_PARTS);
    let found = search.run()?;
    search.steps.join(kept);
    if search.instance.demands.is_some() {
        search.steps = search.steps.at_most(options.search_steps / DEMANDING_PREFERENCE_PARTS);
    }
    Some(prefer(search, devices, found))
}

/// Whether there is a plan; nothing where the steps did not suffice to know. It is found sooner than a plan, and a failure says
/// nothing of what is lacking.
///
/// # Errors
///
/// More devices, or larger units, than the search can handle.
pub fn fits(units: &[Unit], devices: &[Device], options: &Options) -> Result<Option<bool>, Failure> {
    let instance = Instance::new(units, devices, options)?;
    let mut search = Search::new(&instance, Steps::new(options.search_steps));
    let is_feasible = search.is_feasible();
    Ok((is_feasible || search.is_proven).then_some(is_feasible))
}

/// Homes of as many bits as fit by best fit, first on devices that execute, then on the others.
fn partial(instance: &Instance) -> Vec<u32> {
    // Without room for streaming: the picture of as much as fits, not a plan that would run.
    let task = Task::relaxed(instance);
    let counts = best_fit(&task);
    let mut homes = vec![UNPLACED; instance.units.len()];
    let mut room =
        [(instance.cpu, task.cpu_room(&counts).unwrap_or(0)), (instance.disk, instance.disk.map_or(0, |d| d.capacity))];
    for (index, class) in instance.classes.iter().enumerate() {
        let mut units = class.units.iter();
        for (bin, row) in instance.bins.iter().zip(&counts) {
            units.by_ref().take(row[index] as usize).for_each(|&unit| homes[unit as usize] = bin.device);
        }
        for &unit in units {
            let free = (class.weight() == 0)
                .then(|| instance.bins.iter().enumerate().find(|(bin, _)| class.allows(*bin)))
                .flatten();
            if let Some((_, bin)) = free {
                homes[unit as usize] = bin.device;
                continue;
            }
            // What is streamed takes room where it runs, and that is what is lacking.
            if instance.demands.is_some() && class.streamed.is_some() {
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
