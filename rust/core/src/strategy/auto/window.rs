//! Whether a plan of a given cost needs no return.
//!
//! Without returns the device that executes what is offloaded has one run: a window of units with the runs of some devices
//! before it and those of the others behind it. Units of a class are alike, so what is offloaded is a number per class; for
//! each such vector with the right sum, each device, and each set of devices before it, a window is sought.

use super::contiguous::Split;
use super::line::{Line, Room, Sets};
use super::packing::weigh;
use super::scene::Scene;
use super::steps::Steps;
use super::stock::{Stock, stock};
use super::streamers;

/// Vectors that are looked at.
const MOST_VECTORS: usize = 64;

/// Entries of the running counts of classes.
const MOST_COUNTS: usize = 1 << 20;

/// Units that could be offloaded together, by class, and their homes.
struct Load {
    off: Vec<u32>,
    stock: Stock,
}

/// One device that executes what is offloaded, and the others.
struct Side<'a> {
    scene: &'a Scene<'a>,
    line: Line,
    rooms: Vec<Room>,
    streamer: Option<usize>,
    others: Vec<usize>,
    /// By class and border, units before it.
    before: &'a [Vec<u32>],
    /// How far the devices before the window reach, and from where those behind it take over.
    borders: Option<Vec<Window>>,
}

/// Borders of a window.
type Window = (usize, usize);

/// The split of a plan without returns that costs as much; the flag says whether the search was complete.
pub(crate) fn search(scene: &Scene, cost: (u64, u64), steps: &mut Steps) -> (Option<Split>, bool) {
    let uses_cpu = scene.classes.iter().any(|class| class.can_offload() && class.hosted.is_some());
    let uses_bins = scene.classes.iter().any(|class| class.can_offload() && class.streamed.is_some());
    let is_too_large = scene.classes.len().saturating_mul(scene.units.len()) > MOST_COUNTS;
    if scene.has_shared_bins() || scene.has_shared_cpu() || is_too_large || (uses_cpu && uses_bins) {
        return (None, false);
    }
    let before = running_counts(scene);
    let (loads, mut is_complete) = loads(scene, cost, steps);
    is_complete &= scene.is_plain() && loads.iter().all(|load| streamers::is_one(scene, &load.off));
    let streamers: Vec<Option<usize>> = if uses_cpu { vec![None] } else { (0..scene.bins.len()).map(Some).collect() };
    let mut sides: Vec<Side> = streamers.iter().map(|&streamer| Side::new(scene, streamer, &before)).collect();
    for is_given_order in [true, false] {
        for side in &mut sides {
            for load in &loads {
                match side.find(load, is_given_order, steps) {
                    Some(Some(window)) => return (Some(side.split(load, window)), is_complete),
                    Some(None) => {}
                    None => is_complete = false,
                }
            }
        }
    }
    (None, is_complete)
}

fn running_counts(scene: &Scene) -> Vec<Vec<u32>> {
    let count = |class: usize| {
        let mut sums = vec![0u32];
        let mut sum = 0;
        for &of in &scene.class_of {
            sum += u32::from(of as usize == class);
            sums.push(sum);
        }
        sums
    };
    (0..scene.classes.len()).map(count).collect()
}

/// Vectors of counts whose sum and homes have the cost.
fn loads(scene: &Scene, (goal, disk_bits): (u64, u64), steps: &mut Steps) -> (Vec<Load>, bool) {
    let forced = scene.forced_counts();
    let Some(rest) = goal.checked_sub(weigh(scene, &forced)) else { return (Vec::new(), true) };
    let is_free = |&index: &usize| {
        let class = &scene.classes[index];
        class.bits > 0 && class.can_offload() && !class.is_forced_off()
    };
    let free: Vec<usize> = (0..scene.classes.len()).filter(is_free).collect();
    let (vectors, mut is_complete) = vectors(scene, &free, rest, steps);
    let mut loads = Vec::new();
    for vector in vectors {
        let mut off = forced.clone();
        free.iter().zip(&vector).for_each(|(&class, &count)| off[class] = count);
        let stocked = stock(scene, &off, scene.cpu.map_or(0, |cpu| cpu.capacity), steps);
        is_complete &= stocked.is_complete;
        if let Some(stock) = stocked.best.filter(|stock| stock.disk_bits <= disk_bits) {
            loads.push(Load { off, stock });
        }
    }
    (loads, is_complete)
}

/// Counts of some classes with a sum.
fn vectors(scene: &Scene, free: &[usize], goal: u64, steps: &mut Steps) -> (Vec<Vec<u32>>, bool) {
    let mut after = vec![0u64; free.len() + 1];
    for (index, &class) in free.iter().enumerate().rev() {
        after[index] = after[index + 1] + scene.classes[class].bits * u64::from(scene.classes[class].count());
    }
    let (mut found, mut taken, mut left) = (Vec::new(), Vec::<u32>::new(), goal);
    loop {
        if left <= after[taken.len()] {
            if let Some(&class) = free.get(taken.len()).filter(|_| left > 0) {
                let class = &scene.classes[class];
                let most = (left / class.bits).min(u64::from(class.count())) as u32;
                left -= class.bits * u64::from(most);
                taken.push(most);
                if !steps.take(1) {
                    return (found, false);
                }
                continue;
            }
            if left == 0 {
                let mut vector = taken.clone();
                vector.resize(free.len(), 0);
                found.push(vector);
            }
        }
        while taken.last() == Some(&0) {
            taken.pop();
        }
        let Some(last) = taken.last_mut() else { return (found, true) };
        *last -= 1;
        left += scene.classes[free[taken.len() - 1]].bits;
        if found.len() >= MOST_VECTORS || !steps.take(1) {
            return (found, false);
        }
    }
}

impl<'a> Side<'a> {
    fn new(scene: &'a Scene<'a>, streamer: Option<usize>, before: &'a [Vec<u32>]) -> Self {
        let rooms: Vec<Room> =
            scene.bins.iter().map(|bin| Room { limit: bin.capacity, scale: bin.capacity, pool: None }).collect();
        let sequence = (0..scene.units.len() as u32).collect();
        let line = Line::new(scene, sequence, rooms.len(), |unit| {
            (scene.units[unit as usize].bits, u128::from(scene.class(unit).bins))
        });
        let others = (0..rooms.len()).filter(|&bin| Some(bin) != streamer).collect();
        Self { scene, line, rooms, streamer, others, before, borders: None }
    }

    /// A window for a load; the outer option is empty where tables or steps do not suffice.
    fn find(&mut self, load: &Load, is_given_order: bool, steps: &mut Steps) -> Option<Option<Window>> {
        let largest = self.scene.classes.iter().zip(&load.off).filter(|(_, off)| **off > 0);
        let largest = largest.filter_map(|(class, _)| class.streamed).max().unwrap_or(0);
        if !steps.take((self.line.len() * self.before.len() / 16) as u64) {
            return None;
        }
        let own = self.streamer.map_or(Some(0), |bin| self.rooms[bin].limit.checked_sub(self.scene.room(largest)));
        let Some(own) = own else { return Some(None) };
        let most = own.saturating_add(weigh(self.scene, &load.off));
        let ends = self.ends(load);
        if is_given_order {
            return self.in_given_order(load, &ends, most, steps);
        }
        if self.borders.is_none() {
            let sets = Sets::new(&self.line, &self.rooms, &self.others, steps)?;
            let (forward, backward) = (sets.forward(&self.line, &self.rooms), sets.backward(&self.line, &self.rooms));
            let behind = backward.into_iter().rev(); // the set of the others is its mirror image
            let mut borders: Vec<Window> =
                forward.into_iter().zip(behind).map(|(from, to)| (from as usize, to as usize)).collect();
            borders.sort_unstable();
            borders.dedup();
            self.borders = Some(borders);
        }
        for &window in self.borders.iter().flatten() {
            if let Some(window) = self.between(load, &ends, most, window, steps)? {
                return Some(Some(window));
            }
        }
        Some(None)
    }

    fn in_given_order(&self, load: &Load, ends: &[usize], most: u64, steps: &mut Steps) -> Option<Option<Window>> {
        let splits = match self.streamer {
            Some(bin) => bin..bin + 1,
            None => 0..self.others.len() + 1,
        };
        for at in splits {
            let from =
                self.others[..at].iter().fold(0, |from, &room| self.line.reach(room, self.rooms[room].limit, from));
            let back = |to, &room: &usize| self.line.reach_back(room, self.rooms[room].limit, to);
            let to = self.others[at..].iter().rev().fold(self.line.len(), back);
            if let Some(window) = self.between(load, ends, most, (from, to), steps)? {
                return Some(Some(window));
            }
        }
        Some(None)
    }

    /// By start, the first end of a window that holds as many units of each class as are offloaded.
    fn ends(&self, load: &Load) -> Vec<usize> {
        let count = self.line.len();
        let mut end = 0;
        let mut ends = Vec::with_capacity(count + 1);
        for from in 0..=count {
            let lacks =
                |end: usize| load.off.iter().zip(self.before).any(|(&off, before)| before[end] - before[from] < off);
            end = end.max(from);
            while end <= count && lacks(end) {
                end += 1;
            }
            if end > count {
                break;
            }
            ends.push(end);
        }
        ends
    }

    /// A window that begins where the devices before it can reach, and ends where those behind it can take over.
    fn between(
        &self,
        load: &Load,
        ends: &[usize],
        most: u64,
        (from, to): Window,
        steps: &mut Steps,
    ) -> Option<Option<Window>> {
        for start in (0..=from).rev() {
            let end = to.max(start);
            if self.line.weight(start, end) > most {
                break;
            }
            if !steps.take(1) {
                return None;
            }
            let Some(end) = ends.get(start).map(|&least| least.max(end)) else { continue };
            if self.line.weight(start, end) <= most && self.may_hold(load, (start, end)) {
                return Some(Some((start, end)));
            }
        }
        Some(None)
    }

    /// What stays in the window may be at home on its device.
    fn may_hold(&self, load: &Load, (start, end): Window) -> bool {
        self.scene.classes.iter().zip(&load.off).zip(self.before).all(|((class, &off), before)| {
            self.streamer.is_some_and(|bin| class.allows(bin)) || before[end] - before[start] <= off
        })
    }

    /// The last units of each class in the window are offloaded, or the first where the window ends the model.
    fn split(&self, load: &Load, (start, end): Window) -> Split {
        let mut left = load.off.clone();
        let mut off = vec![false; self.line.len()];
        let mut take = |unit: usize| {
            let left = &mut left[self.scene.class_of[unit] as usize];
            off[unit] = *left > 0;
            *left = left.saturating_sub(1);
        };
        if end == self.line.len() && start > 0 {
            (start..end).for_each(&mut take);
        } else {
            (start..end).rev().for_each(&mut take);
        }
        Split { off, stock: load.stock.clone(), streamer: self.streamer }
    }
}
