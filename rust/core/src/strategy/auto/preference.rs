//! Among plans that cost the same: a device map that is enough alone, then the first block at home on a device that executes,
//! then siblings run by one device.
//!
//! The first spares room that a loader would take on a device where none is kept; the others spare crossings that no border
//! can: a model asks its first block where its inputs belong, and adds up what siblings such as embeddings return. Each wish
//! is tried as a constraint, and a plan that keeps it and costs no more is taken. Those of the map and of the first block are
//! exact where the search ends by itself; siblings are joined to be tried, all groups at once and then one after another, so of
//! several groups that hinder each other it may keep fewer than could be kept.

use crate::devices::Device;
use crate::ids::id_at;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::map_alone::{MainDevice, candidates, exchanged};
use crate::strategy::auto::packing::offload::Goal;
use crate::strategy::auto::packing::weigh;
use crate::strategy::auto::plan::{Place, Plan, Staging};
use crate::strategy::auto::problem::{Options, Stage, Unit};
use crate::strategy::auto::rank::{Wishes, first, is_split, rank, wishes};
use crate::strategy::auto::search::{Found, Search};
use crate::strategy::steps::Steps;

/// Groups of siblings that are tried one after another.
const MOST_GROUPS: usize = 8;

/// The rank of a plan that leaves nothing to wish for.
const ALL_KEPT: Wishes = (false, false, 0);

/// What is tried together.
#[derive(Debug, Clone, Default)]
struct Wish {
    /// The device that a loader would stream to is the one that streams.
    main: Option<MainDevice>,
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
    let mut best = Best { rank: wishes(instance, &found.plan), cost: cost(instance, &found.plan), found };
    best.exchange_bins(instance);
    if best.rank == ALL_KEPT {
        return best.found;
    }
    let groups = 0..instance.options.siblings.len();
    let mut mains = best.mains(instance);
    // All at once first: one search where all wishes can be kept, which is the usual case.
    let all = Wish { main: None, has_first: true, groups: groups.clone().collect() };
    if best.try_mains(search, devices, &mains, &all) && best.rank == ALL_KEPT {
        return best.found;
    }
    // Lexicographic: what was gained stays a constraint for what is tried after it.
    if best.rank.0 && mains != [None] && !best.try_mains(search, devices, &mains, &Wish::default()) {
        mains = vec![None];
    }
    let mut wish = Wish { has_first: !best.rank.1, ..Wish::default() };
    if best.rank.1 {
        let first = Wish { has_first: true, ..Wish::default() };
        wish.has_first = best.try_mains(search, devices, &mains, &first) || best.exchange_first(instance);
    }
    let split = groups.filter(|&group| is_split(instance, &best.found.plan, group));
    for group in split.take(MOST_GROUPS).collect::<Vec<usize>>() {
        wish.groups.push(group);
        if !best.try_mains(search, devices, &mains, &wish) {
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
    /// Ways in which the map may be enough at this cost; nothing is asked of it where nothing is offloaded, or where no way is.
    fn mains(&self, instance: &Instance) -> Vec<Option<MainDevice>> {
        let is_home = |place: &Place| matches!(place, Place::Bin(_));
        if !instance.has_accelerator || self.found.plan.places.iter().all(is_home) {
            return vec![None];
        }
        let found = candidates(instance, self.cost.0);
        if found.is_empty() { vec![None] } else { found.into_iter().map(Some).collect() }
    }

    /// Whether the wish can be kept at no more cost with one of these main devices; then its plan is the best.
    fn try_mains(
        &mut self,
        search: &mut Search,
        devices: &[Device],
        mains: &[Option<MainDevice>],
        wish: &Wish,
    ) -> bool {
        mains.iter().any(|&main| self.try_wish(search, devices, &Wish { main, ..wish.clone() }))
    }

    /// Whether the wish can be kept at no more cost; then its plan is the best.
    fn try_wish(&mut self, search: &mut Search, devices: &[Device], wish: &Wish) -> bool {
        let instance = search.instance;
        let Some((units, joined)) = wish.units(instance) else { return false };
        // Siblings are numbers of this instance's units; the narrowed one has others, and keeps the wish by its units alone.
        let options = Options { siblings: Vec::new(), ..instance.options.clone() };
        let Ok(mut narrowed) = Instance::new(&units, devices, &options) else { return false };
        narrowed.streaming_bins = wish.main.map_or(u64::MAX, MainDevice::streaming_bins);
        let (found, is_empty) = match self.narrowed(search, &narrowed, wish, &joined) {
            Tried::Better(found) => (Some(found), false),
            Tried::MainIsEmpty => (None, true),
            Tried::Nothing => (None, false),
        };
        let found = match wish.main {
            // The device that streams holds nothing, so it is not the main one: a unit that may lie there makes it so.
            Some(MainDevice::Bin(bin)) if is_empty => self.held(search, devices, &narrowed, (wish, bin), &joined),
            _ => found,
        };
        let Some(found) = found else { return false };
        self.rank = wishes(instance, &found.plan);
        self.cost = cost(instance, &found.plan);
        self.found = found;
        true
    }

    /// The better plan in which a unit of some class lies on the main device.
    fn held(
        &self,
        search: &mut Search,
        devices: &[Device],
        narrowed: &Instance,
        (wish, bin): (&Wish, usize),
        joined: &[usize],
    ) -> Option<Found> {
        let first = first(narrowed).map(id_at);
        let work = (narrowed.units.len() / 16 + 1) as u64;
        // The smallest first: little room is left beside what is kept for streaming.
        for class in narrowed.classes.iter().rev().filter(|class| class.allows(bin)) {
            if !search.steps.take(work) {
                return None;
            }
            // Units of a class are exchangeable; the first, if it is one of them, is to lie on a bin in any case.
            let unit = class.units.iter().copied().find(|&unit| Some(unit) == first).unwrap_or(class.units[0]);
            let mut units = narrowed.units.to_vec();
            units[unit as usize].allowed_devices &= 1 << narrowed.bins[bin].device;
            let Ok(mut held) = Instance::new(&units, devices, narrowed.options) else { continue };
            held.streaming_bins = narrowed.streaming_bins;
            if let Tried::Better(found) = self.narrowed(search, &held, wish, joined) {
                return Some(found);
            }
        }
        None
    }

    /// The plan of a narrowed problem, if it is better.
    fn narrowed(&self, search: &mut Search, narrowed: &Instance, wish: &Wish, joined: &[usize]) -> Tried {
        let instance = search.instance;
        if weigh(narrowed, &narrowed.forced_counts()) > self.cost.0 {
            return Tried::Nothing;
        }
        // Half each time: a wish that cannot be decided leaves steps for the next.
        let part = search.steps.share(search.steps.left().div_ceil(2));
        let mut inner = Search::new(narrowed, Steps::new(part.left()));
        // The bound of the whole instance holds for every part of it, and the search may end when it is met.
        inner.goal = Goal { floor: self.found.lower_bound, most: Some(self.cost), is_any: false };
        let answer = inner.run();
        search.steps.join(inner.steps);
        let Some(Found { plan, stage, returns_lower_bound, .. }) = answer else { return Tried::Nothing };
        let plan = Plan {
            places: joined.iter().map(|&unit| plan.places[unit]).collect(),
            staging: match plan.staging {
                Staging::One(bin) => Staging::One(bin),
                Staging::Each(bins) => Staging::Each(joined.iter().map(|&unit| bins[unit]).collect()),
            },
        };
        let (cost, rank) = (cost(instance, &plan), wishes(instance, &plan));
        if cost > self.cost || !plan.is_valid(instance) {
            return Tried::Nothing;
        }
        if wish.main.is_some() && rank.0 {
            return Tried::MainIsEmpty;
        }
        if cost == self.cost && rank >= self.rank {
            return Tried::Nothing;
        }
        // Joined siblings share their home, too, and one main device is not all: fewer plans, whose bound on returns says
        // nothing of the others.
        let returns_lower_bound = match (wish.main.is_none() && wish.groups.is_empty(), cost == self.cost) {
            (true, _) => returns_lower_bound,
            (false, true) => self.found.returns_lower_bound,
            (false, false) => 0,
        };
        Tried::Better(Found { plan, stage, lower_bound: self.found.lower_bound, returns_lower_bound })
    }

    /// The device that streams and a loader's main device change names, where that is all that is needed.
    fn exchange_bins(&mut self, instance: &Instance) {
        if !self.rank.0 {
            return;
        }
        if let Some(plan) = exchanged(instance, &self.found.plan) {
            self.rank = wishes(instance, &plan);
            self.found.plan = plan;
            // The runs are the same, and the order of their devices is no longer the one given.
            if self.found.stage == Stage::InOrder {
                self.found.stage = Stage::OtherOrder;
            }
        }
    }

    /// The first unit and one like it that is at home on a bin change places: what is left when the search is cut short.
    fn exchange_first(&mut self, instance: &Instance) -> bool {
        let Some(first) = first(instance) else { return false };
        let places = &self.found.plan.places;
        let is_home = |&&unit: &&u32| matches!(places[unit as usize], Place::Bin(_));
        let Some(&like) = instance.class(id_at(first)).units.iter().find(is_home) else { return false };
        let mut plan = self.found.plan.clone();
        // Units of a class are exchangeable, so this changes no sum; only returns could grow, and `rank` does not ask.
        plan.swap(first, like as usize);
        let rank = wishes(instance, &plan);
        let is_better = rank < self.rank && plan.is_valid(instance);
        if is_better {
            (self.found.plan, self.rank) = (plan, rank);
        }
        is_better
    }
}

/// What came of a narrowed problem.
enum Tried {
    Better(Found),
    /// A plan that costs no more, but its map is not enough, because nothing lies on the device that streams.
    MainIsEmpty,
    Nothing,
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
        if let Some(main) = self.main {
            main.restrict(instance, &mut units);
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

pub(crate) fn cost(instance: &Instance, plan: &Plan) -> (u64, u64) {
    let bits_on = |places: &[Place]| {
        let units = instance.units.iter().zip(&plan.places).filter(|(_, place)| places.contains(place));
        units.map(|(unit, _)| unit.bits).sum::<u64>()
    };
    (bits_on(&[Place::Cpu, Place::Disk]), bits_on(&[Place::Disk]))
}
