//! Among plans that cost the same: the first block at home on a device that executes, then siblings run by one device.
//!
//! Both spare crossings that no border can: a model asks its first block where its inputs belong, and adds up what
//! siblings such as embeddings return. Each wish is tried as a constraint, and a plan that keeps it and costs no more is
//! taken. The first block's is exact where the search ends by itself; siblings are joined to be tried, all groups at once
//! and then one after another, so of several groups that hinder each other it may keep fewer than could be kept.

use crate::devices::Device;
use crate::ids::id_at;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::offload::Goal;
use crate::strategy::auto::packing::weigh;
use crate::strategy::auto::plan::{Place, Plan};
use crate::strategy::auto::problem::{Options, Unit};
use crate::strategy::auto::rank::{Wishes, first, is_split, rank, wishes};
use crate::strategy::auto::search::{Found, Search};
use crate::strategy::auto::steps::Steps;

/// Groups of siblings that are tried one after another.
const MOST_GROUPS: usize = 8;

/// What is tried together.
#[derive(Debug, Clone, Default)]
struct Wish {
    has_first: bool,
    /// Groups of siblings, by number.
    groups: Vec<usize>,
}

/// A plan that costs no more and ranks better, or the one given.
pub(crate) fn prefer(search: &mut Search, devices: &[Device], found: Found) -> Found {
    let (instance, keeper) = (search.instance, search.keeper.take());
    let (stage, lower_bound, returns_lower_bound) = (found.stage, found.lower_bound, found.returns_lower_bound);
    let granted = grant(search, devices, found);
    // A plan that was passed over for its returns may keep the same wishes with fewer of them.
    let key = |plan: &Plan| (cost(instance, plan), rank(instance, plan));
    match keeper.filter(|plan| key(plan) < key(&granted.plan)) {
        Some(plan) => Found { plan, stage, lower_bound, returns_lower_bound },
        None => granted,
    }
}

/// The plan given, or one that keeps more wishes at no more cost.
fn grant(search: &mut Search, devices: &[Device], found: Found) -> Found {
    let instance = search.instance;
    let rank = wishes(instance, &found.plan);
    if rank == (false, 0) {
        return found;
    }
    let mut best = Best { rank, cost: cost(instance, &found.plan), found };
    // All at once first: one search where all wishes can be kept, which is the usual case.
    let all = Wish { has_first: true, groups: (0..instance.options.siblings.len()).collect() };
    if best.try_wish(search, devices, &all) {
        return best.found;
    }
    let mut wish = Wish { has_first: !rank.0, groups: Vec::new() };
    if rank.0 {
        let first = Wish { has_first: true, groups: Vec::new() };
        // Lexicographic: what was gained stays a constraint for what is tried after it.
        wish.has_first = best.try_wish(search, devices, &first) || best.exchange_first(instance);
    }
    let split = (0..instance.options.siblings.len()).filter(|&group| is_split(instance, &best.found.plan, group));
    for group in split.take(MOST_GROUPS).collect::<Vec<usize>>() {
        wish.groups.push(group);
        if !best.try_wish(search, devices, &wish) {
            // A group that cannot be kept beside the others is given up, so that it does not hinder the next ones.
            wish.groups.pop();
        }
    }
    best.found
}

/// The best plan so far.
struct Best {
    rank: Wishes,
    /// Bits offloaded, and of these on disk.
    cost: (u64, u64),
    found: Found,
}

impl Best {
    /// Whether the wish can be kept at no more cost; then its plan is the best.
    fn try_wish(&mut self, search: &mut Search, devices: &[Device], wish: &Wish) -> bool {
        let instance = search.instance;
        let Some((units, joined)) = wish.units(instance) else { return false };
        // Siblings are numbers of this instance's units; the narrowed one has others, and keeps the wish by its units alone.
        let options = Options { siblings: Vec::new(), ..instance.options.clone() };
        let Ok(narrowed) = Instance::new(&units, devices, &options) else { return false };
        if weigh(&narrowed, &narrowed.forced_counts()) > self.cost.0 {
            return false;
        }
        // Half each time: a wish that cannot be decided leaves steps for the next.
        let part = search.steps.share(search.steps.left().div_ceil(2));
        let mut inner = Search::new(&narrowed, Steps::new(part.left()));
        // The bound of the whole instance holds for every part of it, and the search may end when it is met.
        inner.goal = Goal { floor: self.found.lower_bound, most: Some(self.cost), is_any: false };
        let answer = inner.run();
        search.steps.join(inner.steps);
        let Some(Found { plan, stage, returns_lower_bound, .. }) = answer else { return false };
        let plan = Plan {
            places: joined.iter().map(|&unit| plan.places[unit]).collect(),
            staging_device: plan.staging_device,
        };
        let (cost, rank) = (cost(instance, &plan), wishes(instance, &plan));
        if cost > self.cost || (cost == self.cost && rank >= self.rank) || !plan.is_valid(instance) {
            return false;
        }
        // Joined siblings share their home, too: fewer plans, whose bound on returns says nothing of the others.
        let returns_lower_bound = match (wish.groups.is_empty(), cost == self.cost) {
            (true, _) => returns_lower_bound,
            (false, true) => self.found.returns_lower_bound,
            (false, false) => 0,
        };
        let lower_bound = self.found.lower_bound;
        *self = Self { rank, cost, found: Found { plan, stage, lower_bound, returns_lower_bound } };
        true
    }

    /// The first unit and one like it that is at home on a bin change places: what is left when the search is cut short.
    fn exchange_first(&mut self, instance: &Instance) -> bool {
        let Some(first) = first(instance) else { return false };
        let places = &self.found.plan.places;
        let is_home = |&&unit: &&u32| matches!(places[unit as usize], Place::Bin(_));
        let Some(&like) = instance.class(id_at(first)).units.iter().find(is_home) else { return false };
        let mut plan = self.found.plan.clone();
        // Units of a class are exchangeable, so this changes no sum; only returns could grow, and `rank` does not ask.
        plan.places.swap(first, like as usize);
        let rank = wishes(instance, &plan);
        let is_better = rank < self.rank && plan.is_valid(instance);
        if is_better {
            (self.found.plan, self.rank) = (plan, rank);
        }
        is_better
    }
}

impl Wish {
    /// Units that keep the wish, and for each unit of the instance the one that it is part of; nothing where one of them may
    /// lie nowhere.
    fn units(&self, instance: &Instance) -> Option<(Vec<Unit>, Vec<usize>)> {
        let executing = instance.bins.iter().fold(0u64, |mask, bin| mask | 1 << bin.device);
        let mut lead: Vec<usize> = (0..instance.units.len()).collect();
        for group in self.groups.iter().map(|&group| &instance.options.siblings[group]) {
            let Some(&least) = group.iter().min() else { continue };
            // The first of the group leads, because units stand at their first position.
            for &unit in group {
                lead[unit as usize] = least as usize;
            }
        }
        let mut units: Vec<Unit> = Vec::with_capacity(instance.units.len());
        let mut joined: Vec<usize> = Vec::with_capacity(instance.units.len());
        for (index, unit) in instance.units.iter().enumerate() {
            if lead[index] == index {
                joined.push(units.len());
                units.push(unit.clone());
            } else {
                joined.push(joined[lead[index]]);
                units[joined[index]].take_in(unit);
            }
        }
        if let Some(first) = first(instance).filter(|_| self.has_first) {
            units[joined[first]].allowed_devices &= executing;
        }
        units.iter().all(|unit| unit.allowed_devices != 0).then_some((units, joined))
    }
}

impl Unit {
    /// Adds the blocks of another unit.
    fn take_in(&mut self, other: &Unit) {
        self.bits += other.bits;
        self.allowed_devices &= other.allowed_devices;
        self.buffers_only &= other.buffers_only;
        let own = self.positions.iter().copied().zip(self.block_bits.iter().copied());
        let mut blocks: Vec<(u32, u64)> =
            own.chain(other.positions.iter().copied().zip(other.block_bits.iter().copied())).collect();
        blocks.sort_unstable();
        (self.positions, self.block_bits) = blocks.into_iter().unzip();
    }
}

fn cost(instance: &Instance, plan: &Plan) -> (u64, u64) {
    let bits_on = |places: &[Place]| {
        let units = instance.units.iter().zip(&plan.places).filter(|(_, place)| places.contains(place));
        units.map(|(unit, _)| unit.bits).sum::<u64>()
    };
    (bits_on(&[Place::Cpu, Place::Disk]), bits_on(&[Place::Disk]))
}
