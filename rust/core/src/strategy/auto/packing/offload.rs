//! What must be offloaded: for each device to which it could be streamed, and each largest size streamed, the packing that
//! keeps most.
//!
//! One executing device is enough: moving all streaming to the device that streams the largest unit does not grow the room
//! kept there and frees that of the others. So going through devices and sizes is exact, where running takes nothing but weights;
//! else what a device runs takes room for caches, and `streaming` is the search.

use std::cmp::Reverse;

use crate::strategy::auto::instance::{Class, Instance};
use crate::strategy::auto::packing::pack::pack;
use crate::strategy::auto::packing::{Packing, Task, best_fit, best_fit_of, joint_room, weigh};
use crate::strategy::steps::Steps;

/// Packings of the same cost that are kept for arranging.
const MOST_CHOICES: usize = 6;

/// Candidates whose first answer is looked at before any is searched.
const MOST_FIRST_BOUNDS: usize = 64;

/// Steps for the homes of a plan that costs none of the search's.
const MOST_FREE_STEPS: u64 = 256;

/// Kinds of bins, the widest first, to which such a plan is tried to stream.
const MOST_FREE_BINS: usize = 4;

/// What is known before a search, and what of it is of use.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Goal {
    /// No plan offloads less.
    pub(crate) floor: u64,
    /// Plans of a higher cost are of no use.
    pub(crate) most: Option<(u64, u64)>,
    /// Whether there is a plan is all that is asked.
    pub(crate) is_any: bool,
}

/// A device to which offloaded units are streamed with the largest size, or neither; and what it offloads at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    floor: u64,
    streaming: Option<(usize, u64)>,
}

/// A packing and the bin to which it streams.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) packing: Packing,
    pub(crate) staging_device: Option<usize>,
}

/// The best packings found.
#[derive(Debug)]
pub(crate) struct Offloading {
    /// All of the same cost.
    pub(crate) choices: Vec<Choice>,
    /// No plan offloads less.
    pub(crate) lower_bound: u64,
    /// The lower bound is met, or where there is no choice, there is no plan.
    pub(crate) is_proven: bool,
}

impl Offloading {
    fn cost(&self) -> Option<(u64, u64)> {
        self.choices.first().map(|choice| choice.packing.cost())
    }

    fn offer(&mut self, packing: Packing, staging_device: Option<usize>) {
        let cost = packing.cost();
        // Equal costs are kept side by side: which of them returns least is seen only when they are arranged.
        if self.cost().is_some_and(|best| cost > best) {
            return;
        }
        if self.cost().is_some_and(|best| cost < best) {
            self.choices.clear();
        }
        let choice = Choice { packing, staging_device };
        if self.choices.len() < MOST_CHOICES && self.choices.iter().all(|other| !other.is_like(&choice)) {
            self.choices.push(choice);
        }
    }
}

impl Choice {
    fn is_like(&self, other: &Self) -> bool {
        self.staging_device == other.staging_device && self.packing == other.packing
    }
}

/// Goes through the candidates, those that could offload least first.
pub(crate) fn search(instance: &Instance, goal: Goal, steps: &mut Steps) -> Offloading {
    let candidates = Candidates::new(instance, goal.floor);
    let mut found = Offloading { choices: Vec::new(), lower_bound: u64::MAX, is_proven: false };
    // With a limit given a plan is known already, and the first answers would not be better.
    if goal.most.is_none() {
        rest_all(instance, &candidates, &mut found);
    }
    if goal.is_any && !found.choices.is_empty() {
        return found;
    }
    if goal.most.is_none() {
        narrow(instance, &candidates, &mut found, steps);
        first_bounds(instance, &candidates, &mut found, steps);
    }
    // INVARIANT: no candidate that was not searched to its end offloads less than `open`.
    let mut open = u64::MAX;
    for candidate in candidates.in_order() {
        // Candidates come by their floors: once one exceeds the best cost, so do all behind it.
        let cost = found.cost().into_iter().chain(goal.most).min();
        if cost.is_some_and(|(offloaded_bits, _)| goal.is_any || candidate.floor > offloaded_bits) {
            break;
        }
        // The bound is met with nothing on disk, and there are enough packings to choose the arrangement from.
        if found.cost() == Some((candidate.floor, 0)) && found.choices.len() >= MOST_CHOICES {
            break;
        }
        let Some(mut part) = begin(instance, steps) else {
            open = open.min(candidate.floor);
            break;
        };
        let Some(task) = Task::new(instance, candidate.streaming) else {
            steps.join(part);
            continue;
        };
        let task = Task { floor: task.floor.max(goal.floor), ..task };
        // One bit more than the best on disk: packings of equal cost are wanted, too, as further choices.
        let packed = pack(&task, cost.map(|(offloaded_bits, disk_bits)| (offloaded_bits, disk_bits + 1)), &mut part);
        steps.join(part);
        if !packed.is_complete {
            open = open.min(candidate.floor);
        }
        if let Some(packing) = packed.best {
            found.offer(packing, candidate.streaming.map(|(bin, _)| bin));
        }
    }
    // Best fit may return a packing beyond the limit; it is of no use to the caller.
    if found.cost() > goal.most.or(found.cost()) {
        found.choices.clear();
    }
    let best = found.cost().map_or(u64::MAX, |(offloaded_bits, _)| offloaded_bits);
    found.lower_bound = open.min(best);
    found.is_proven = open >= best;
    found
}

/// Everything that may rest elsewhere does, streamed to the widest bin that leaves a plan. It comes before any search and
/// takes no steps of it, so there is a plan wherever this one is valid.
fn rest_all(instance: &Instance, candidates: &Candidates, found: &mut Offloading) {
    for streaming in candidates.widest(MOST_FREE_BINS) {
        let Some(task) = Task::new(instance, streaming) else { continue };
        // As much as can be, and if that leaves no homes, only what must stay.
        for counts in [best_fit(&task), best_fit_of(&task, &[true])] {
            if let (Some(packing), _) = task.close(counts, &mut Steps::new(MOST_FREE_STEPS)) {
                found.offer(packing, streaming.map(|(bin, _)| bin));
                return;
            }
        }
    }
}

/// Narrows the largest size that is streamed to the widest bin: less room is kept for smaller ones, until what is larger
/// finds no place.
fn narrow(instance: &Instance, candidates: &Candidates, found: &mut Offloading, steps: &mut Steps) {
    let Some(Some((bin, widest))) = candidates.widest(1).next() else { return };
    let sizes: Vec<u64> = candidates.descending.iter().copied().filter(|&size| size < widest).collect();
    let (mut from, mut to) = (0, sizes.len());
    while from < to && steps.take(work(instance)) {
        // Halving: a smaller size keeps less room, but more has to stay, until best fit fails.
        let middle = from + (to - from) / 2;
        let streaming = Some((bin, sizes[middle]));
        let close = |task: Task| task.close(best_fit(&task), steps).0;
        match Task::new(instance, streaming).and_then(close) {
            Some(packing) => {
                found.offer(packing, Some(bin));
                from = middle + 1;
            }
            None => to = middle,
        }
    }
}

/// First answers, so that bounds cut from the start.
fn first_bounds(instance: &Instance, candidates: &Candidates, found: &mut Offloading, steps: &mut Steps) {
    for (index, candidate) in candidates.in_order().take(MOST_FIRST_BOUNDS).enumerate() {
        if found.cost().is_some_and(|(offloaded_bits, _)| candidate.floor >= offloaded_bits) {
            return;
        }
        // At least one is looked at, whatever the limit, so that there is an answer.
        if !steps.take(work(instance)) && index > 0 {
            return;
        }
        let Some(task) = Task::new(instance, candidate.streaming) else { continue };
        if let (Some(packing), _) = task.close(best_fit(&task), steps) {
            found.offer(packing, candidate.streaming.map(|(bin, _)| bin));
        }
    }
}

/// Steps that looking at one candidate is worth.
fn work(instance: &Instance) -> u64 {
    (instance.classes.len() * instance.bins.len() / 16 + 1) as u64
}

/// Half of the steps left for one candidate.
fn begin(instance: &Instance, steps: &mut Steps) -> Option<Steps> {
    if !steps.take(work(instance)) {
        return None;
    }
    // A hard candidate leaves half for the others, and so on: none of them is starved.
    Some(steps.share(steps.left().div_ceil(2)))
}

/// What may be streamed where.
struct Candidates<'a> {
    instance: &'a Instance<'a>,
    /// One bin of each kind.
    kinds: Vec<usize>,
    /// Sizes, largest first, that some bin has room for.
    descending: Vec<u64>,
    /// Floors and sizes, no size where nothing is streamed, by floor.
    ways: Vec<(u64, Option<u64>)>,
}

impl<'a> Candidates<'a> {
    fn new(instance: &'a Instance<'a>, known: u64) -> Self {
        let forced = weigh(instance, &instance.forced_counts()).max(known);
        let capacities: Vec<u64> = instance.bins.iter().map(|bin| bin.capacity).collect();
        let whole = joint_room(instance, &capacities, &instance.pools);
        let holders = [instance.cpu, instance.disk].into_iter().flatten();
        let most = holders.fold(0u64, |sum, holder| sum.saturating_add(holder.capacity));
        let mut ways = vec![(forced.max(instance.total.saturating_sub(whole)), None)];
        let mut descending = Vec::new();
        for (size, must) in sizes(instance) {
            // The multiple knapsack bound: all rooms as one, less what is kept.
            let room = whole.checked_sub(instance.room(size)).filter(|&room| must <= room);
            let Some(room) = room.filter(|_| instance.room(size) <= instance.widest) else { continue };
            let floor = forced.max(instance.total.saturating_sub(room)).max(size);
            if floor <= most {
                ways.push((floor, Some(size)));
                descending.push(size);
            }
        }
        ways.retain(|&(floor, _)| floor <= most);
        ways.sort_by_key(|&(floor, _)| floor);
        Self { instance, kinds: kinds_of_bins(instance), descending, ways }
    }

    /// Those that could offload least first.
    fn in_order(&self) -> impl Iterator<Item = Candidate> {
        self.ways.iter().flat_map(move |&(floor, size)| {
            let bins: &[usize] = if size.is_some() { &self.kinds } else { &[] };
            let resting = size.is_none().then_some(Candidate { floor, streaming: None });
            let streamed = bins.iter().filter_map(move |&bin| {
                let streaming = size.filter(|&size| self.takes(bin, size)).map(|size| (bin, size))?;
                Some(Candidate { floor, streaming: Some(streaming) })
            });
            resting.into_iter().chain(streamed)
        })
    }

    /// The widest kinds of bins, less what must lie there, with the largest size that each has room for; then nothing
    /// streamed.
    fn widest(&self, most: usize) -> impl Iterator<Item = Option<(usize, u64)>> {
        // A wide bin that is full of what lies nowhere else has no room to stream.
        let pinned = pinned_bits(self.instance);
        let mut kinds = self.kinds.clone();
        kinds.sort_by_key(|&bin| Reverse(self.instance.bins[bin].capacity.saturating_sub(pinned[bin])));
        let largest = |bin: usize| self.descending.iter().copied().find(|&size| self.takes(bin, size));
        let streamed = kinds.into_iter().take(most).filter_map(move |bin| Some(Some((bin, largest(bin)?))));
        streamed.chain([None])
    }

    fn takes(&self, bin: usize, size: u64) -> bool {
        self.instance.room(size) <= self.instance.bins[bin].capacity
    }
}

/// Sizes that may be streamed, largest first, with the bits of what must stay while nothing larger is streamed.
fn sizes(instance: &Instance) -> Vec<(u64, u64)> {
    let bits = |class: &Class| class.bits * u64::from(class.count());
    let mut must: u64 = instance.classes.iter().filter(|class| !class.can_offload()).map(bits).sum();
    let offloadable = instance.classes.iter().filter(|class| class.can_offload());
    let mut streams: Vec<(u64, &Class)> = offloadable.filter_map(|class| Some((class.streamed?, class))).collect();
    streams.sort_by_key(|&(streamed, _)| Reverse(streamed));
    let mut sizes: Vec<(u64, u64)> = Vec::new();
    for (streamed, class) in streams {
        // Only sizes that occur are candidates: between two of them the same units stay and more room is kept.
        if sizes.last().is_none_or(|&(size, _)| size != streamed) {
            sizes.push((streamed, must));
        }
        must += bits(class);
    }
    sizes
}

/// Bits on each bin of what can lie nowhere else.
fn pinned_bits(instance: &Instance) -> Vec<u64> {
    let mut bits = vec![0u64; instance.bins.len()];
    for class in instance.classes.iter().filter(|class| !class.can_offload() && class.bins.is_power_of_two()) {
        bits[class.bins.trailing_zeros() as usize] += class.bits * u64::from(class.count());
    }
    bits
}

/// One bin of each kind that may stream; bins that are alike have the same packings.
fn kinds_of_bins(instance: &Instance) -> Vec<usize> {
    let mut kinds: Vec<usize> = Vec::new();
    for bin in instance.streaming() {
        if kinds.iter().all(|&kind| !are_alike(instance, kind, bin)) {
            kinds.push(bin);
        }
    }
    kinds
}

/// Bins that may be exchanged in any packing.
pub(crate) fn are_alike(instance: &Instance, one: usize, other: usize) -> bool {
    instance.bins[one].capacity == instance.bins[other].capacity
        && instance.bins[one].pool == instance.bins[other].pool
        && instance.bins[one].shared == instance.bins[other].shared
        && instance.classes.iter().all(|class| class.allows(one) == class.allows(other))
}
