//! What must be offloaded: for each device to which it could be streamed, and each largest size streamed, the packing that
//! keeps most.
//!
//! One executing device is enough: moving all streaming to the device that streams the largest unit does not grow the room
//! kept there and frees that of the others. So going through devices and sizes is exact.

use super::packing::{Packing, Task, best_fit, joint_room, pack, weigh};
use super::scene::{Class, Scene};
use super::steps::Steps;

/// Packings of the same cost that are kept for arranging.
const MOST_CHOICES: usize = 6;

/// Candidates whose first answer is looked at before any is searched.
const MOST_GLANCES: usize = 64;

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
    pub(crate) streamer: Option<usize>,
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

    fn offer(&mut self, packing: Packing, streamer: Option<usize>) {
        let cost = packing.cost();
        if self.cost().is_some_and(|best| cost > best) {
            return;
        }
        if self.cost().is_some_and(|best| cost < best) {
            self.choices.clear();
        }
        let choice = Choice { packing, streamer };
        if self.choices.len() < MOST_CHOICES && self.choices.iter().all(|other| !other.is_like(&choice)) {
            self.choices.push(choice);
        }
    }
}

impl Choice {
    fn is_like(&self, other: &Self) -> bool {
        self.streamer == other.streamer && self.packing == other.packing
    }
}

/// Goes through the candidates, those that could offload least first.
pub(crate) fn search(scene: &Scene, steps: &mut Steps) -> Offloading {
    let candidates = candidates(scene);
    let mut found = Offloading { choices: Vec::new(), lower_bound: u64::MAX, is_proven: false };
    glance(scene, &candidates, &mut found, steps);
    let mut open = u64::MAX;
    for candidate in &candidates {
        let cost = found.cost();
        if cost.is_some_and(|(off_bits, _)| candidate.floor > off_bits) {
            break;
        }
        if cost == Some((candidate.floor, 0)) && found.choices.len() >= MOST_CHOICES {
            break;
        }
        let Some(mut part) = begin(scene, steps) else {
            open = open.min(candidate.floor);
            break;
        };
        let Some(task) = Task::new(scene, candidate.streaming) else {
            steps.join(part);
            continue;
        };
        let packed = pack(&task, cost.map(|(off_bits, disk_bits)| (off_bits, disk_bits + 1)), &mut part);
        steps.join(part);
        if !packed.is_complete {
            open = open.min(candidate.floor);
        }
        if let Some(packing) = packed.best {
            found.offer(packing, candidate.streaming.map(|(bin, _)| bin));
        }
    }
    let best = found.cost().map_or(u64::MAX, |(off_bits, _)| off_bits);
    found.lower_bound = open.min(best);
    found.is_proven = open >= best;
    found
}

/// First answers, so that bounds cut from the start.
fn glance(scene: &Scene, candidates: &[Candidate], found: &mut Offloading, steps: &mut Steps) {
    for (index, candidate) in candidates.iter().take(MOST_GLANCES).enumerate() {
        if found.cost().is_some_and(|(off_bits, _)| candidate.floor >= off_bits) {
            return;
        }
        if !steps.take(work(scene)) && index > 0 {
            return;
        }
        let Some(task) = Task::new(scene, candidate.streaming) else { continue };
        if let (Some(packing), _) = task.close(best_fit(&task), steps) {
            found.offer(packing, candidate.streaming.map(|(bin, _)| bin));
        }
    }
}

/// Steps that looking at one candidate is worth.
fn work(scene: &Scene) -> u64 {
    (scene.classes.len() * scene.bins.len() / 16 + 1) as u64
}

/// Half of the steps left for one candidate.
fn begin(scene: &Scene, steps: &mut Steps) -> Option<Steps> {
    if !steps.take(work(scene)) {
        return None;
    }
    Some(steps.share(steps.left().div_ceil(2)))
}

fn candidates(scene: &Scene) -> Vec<Candidate> {
    let forced = weigh(scene, &scene.forced_counts());
    let capacities: Vec<u64> = scene.bins.iter().map(|bin| bin.capacity).collect();
    let whole = joint_room(scene, &capacities, &scene.pools);
    let mut all = vec![Candidate { floor: forced.max(scene.total.saturating_sub(whole)), streaming: None }];
    let kinds = kinds_of_bins(scene);
    for (size, must) in sizes(scene) {
        let Some(room) = whole.checked_sub(scene.room(size)).filter(|&room| must <= room) else { continue };
        let floor = forced.max(scene.total.saturating_sub(room)).max(size);
        for &bin in kinds.iter().filter(|&&bin| scene.room(size) <= scene.bins[bin].capacity) {
            all.push(Candidate { floor, streaming: Some((bin, size)) });
        }
    }
    all.sort_by_key(|candidate| candidate.floor);
    all
}

/// Sizes that may be streamed, largest first, with the bits of what must stay while nothing larger is streamed.
fn sizes(scene: &Scene) -> Vec<(u64, u64)> {
    let bits = |class: &Class| class.bits * u64::from(class.count());
    let mut must: u64 = scene.classes.iter().filter(|class| !class.can_offload()).map(bits).sum();
    let mut streams: Vec<&Class> = scene.classes.iter().filter(|class| class.can_offload() && !class.by_cpu).collect();
    streams.sort_by_key(|class| std::cmp::Reverse(class.streamed));
    let mut sizes: Vec<(u64, u64)> = Vec::new();
    for class in streams {
        if sizes.last().is_none_or(|&(size, _)| size != class.streamed) {
            sizes.push((class.streamed, must));
        }
        must += bits(class);
    }
    sizes
}

/// One bin of each kind; like ones give like packings.
fn kinds_of_bins(scene: &Scene) -> Vec<usize> {
    let mut kinds: Vec<usize> = Vec::new();
    for bin in 0..scene.bins.len() {
        if kinds.iter().all(|&kind| !are_alike(scene, kind, bin)) {
            kinds.push(bin);
        }
    }
    kinds
}

/// Bins that may be exchanged in any packing.
pub(crate) fn are_alike(scene: &Scene, one: usize, other: usize) -> bool {
    scene.bins[one].capacity == scene.bins[other].capacity
        && scene.bins[one].pool == scene.bins[other].pool
        && scene.classes.iter().all(|class| class.allows(one) == class.allows(other))
}
