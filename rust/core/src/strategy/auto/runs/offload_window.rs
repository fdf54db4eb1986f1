//! Whether a plan of a given cost needs no return.
//!
//! Without returns the device that executes what is offloaded has one run: a window of units with the runs of some devices
//! before it and those of the others behind it. Units of a class are alike, so what is offloaded is a number per class; for
//! each such vector with the right sum, each device, and each set of devices before it, a window is sought.

use crate::ids::id_at;
use crate::strategy::auto::counts::at_most;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::tiers::{Tiers, tiers};
use crate::strategy::auto::packing::weigh;
use crate::strategy::auto::runs::contiguous::Split;
use crate::strategy::auto::runs::prefix::{Prefix, Room};
use crate::strategy::auto::runs::sets::Sets;
use crate::strategy::auto::staging_devices;
use crate::strategy::steps::Steps;

/// Vectors that are looked at.
const MOST_VECTORS: usize = 64;

/// Entries of the running counts of classes.
const MOST_COUNTS: usize = 1 << 20;

/// Units that could be offloaded together, by class, and their homes.
struct Load {
    offloaded: Vec<u32>,
    tiers: Tiers,
}

/// One device that executes what is offloaded, and the others.
struct Side<'a> {
    instance: &'a Instance<'a>,
    prefix: Prefix,
    rooms: Vec<Room>,
    staging_device: Option<usize>,
    others: Vec<usize>,
    /// By class and border, units before it.
    before: &'a [Vec<u32>],
    /// How far the devices before the window reach, and from where those behind it take over.
    borders: Option<Vec<OffloadWindow>>,
}

/// Borders of a window.
type OffloadWindow = (usize, usize);

/// Tables or steps did not suffice.
struct Unknown;

/// A window, or that there is none.
type Sought = Result<Option<OffloadWindow>, Unknown>;

/// The split of a plan without returns that costs as much; the flag says whether the search was complete.
pub(crate) fn search(instance: &Instance, cost: (u64, u64), steps: &mut Steps) -> (Option<Split>, bool) {
    let uses_cpu = instance.classes.iter().any(|class| class.can_offload() && class.hosted.is_some());
    let uses_bins = instance.classes.iter().any(|class| class.can_offload() && class.streamed.is_some());
    let is_too_large = instance.classes.len().saturating_mul(instance.units.len()) > MOST_COUNTS;
    // A cpu and a bin that both execute make two windows; with shared memory sums depend on each other.
    if instance.has_shared_bins() || instance.has_shared_cpu() || is_too_large || (uses_cpu && uses_bins) {
        return (None, false);
    }
    let before = running_counts(instance);
    let (loads, mut is_complete) = loads(instance, cost, steps);
    // A search with one staging device proves something only where no second one could be used.
    is_complete &= instance.is_plain() && loads.iter().all(|load| staging_devices::is_one(instance, &load.offloaded));
    let staging_devices: Vec<Option<usize>> =
        if uses_cpu { vec![None] } else { instance.streaming().map(Some).collect() };
    let mut sides: Vec<Side> =
        staging_devices.iter().map(|&staging_device| Side::new(instance, staging_device, &before)).collect();
    // A loader's main device first: its windows need no execution map, which is preferred to everything else.
    let main = instance.main_order.first().copied();
    let of_main = |side: &Side| side.staging_device.is_some() && side.staging_device == main;
    let mut empty_main = None;
    // Then the order given, over all sides: it is preferred to any other, whichever device streams.
    for (is_main, is_given_order) in [(true, true), (true, false), (false, true), (false, false)] {
        if let (false, false, Some(split)) = (is_main, is_given_order, &empty_main) {
            return (Some(Split::clone(split)), is_complete);
        }
        for side in sides.iter_mut().filter(|side| of_main(side) == is_main) {
            for load in &loads {
                match side.find(load, is_given_order, steps) {
                    Ok(Some((start, end))) => {
                        let split = side.split(load, (start, end));
                        // A device that holds nothing is no loader's main one, and as good as any other.
                        if !is_main || split.offloaded[start..end].contains(&false) {
                            return (Some(split), is_complete);
                        }
                        empty_main.get_or_insert(split);
                    }
                    Ok(None) => {}
                    Err(Unknown) => is_complete = false,
                }
            }
        }
    }
    (None, is_complete)
}

fn running_counts(instance: &Instance) -> Vec<Vec<u32>> {
    let count = |class: usize| {
        let mut sums = vec![0u32];
        let mut sum = 0;
        for &of in &instance.class_of {
            sum += u32::from(of as usize == class);
            sums.push(sum);
        }
        sums
    };
    (0..instance.classes.len()).map(count).collect()
}

/// Vectors of counts whose sum and homes have the cost.
fn loads(instance: &Instance, (goal, disk_bits): (u64, u64), steps: &mut Steps) -> (Vec<Load>, bool) {
    let forced = instance.forced_counts();
    let Some(rest) = goal.checked_sub(weigh(instance, &forced)) else { return (Vec::new(), true) };
    // What weighs nothing changes no sum and would only multiply the vectors.
    let is_free = |&index: &usize| {
        let class = &instance.classes[index];
        class.bits > 0 && class.can_offload() && !class.is_forced_off()
    };
    let free: Vec<usize> = (0..instance.classes.len()).filter(is_free).collect();
    let (vectors, mut is_complete) = vectors(instance, &free, rest, steps);
    let mut loads = Vec::new();
    for vector in vectors {
        let mut offloaded = forced.clone();
        free.iter().zip(&vector).for_each(|(&class, &count)| offloaded[class] = count);
        let found_tiers = tiers(instance, &offloaded, instance.cpu.map_or(0, |cpu| cpu.capacity), steps);
        is_complete &= found_tiers.is_complete;
        if let Some(tiers) = found_tiers.best.filter(|tiers| tiers.disk_bits <= disk_bits) {
            loads.push(Load { offloaded, tiers });
        }
    }
    (loads, is_complete)
}

/// Counts of some classes with a sum.
fn vectors(instance: &Instance, free: &[usize], goal: u64, steps: &mut Steps) -> (Vec<Vec<u32>>, bool) {
    let mut after = vec![0u64; free.len() + 1];
    for (index, &class) in free.iter().enumerate().rev() {
        after[index] = after[index + 1] + instance.classes[class].bits * u64::from(instance.classes[class].count());
    }
    let (mut found, mut taken, mut left) = (Vec::new(), Vec::<u32>::new(), goal);
    loop {
        if left <= after[taken.len()] {
            if let Some(&class) = free.get(taken.len()).filter(|_| left > 0) {
                let class = &instance.classes[class];
                // Most of the largest first: where the list is cut, the vectors with few units are in it.
                let most = at_most(class.count(), left / class.bits);
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
        left += instance.classes[free[taken.len() - 1]].bits;
        if found.len() >= MOST_VECTORS || !steps.take(1) {
            return (found, false);
        }
    }
}

impl<'a> Side<'a> {
    fn new(instance: &'a Instance<'a>, staging_device: Option<usize>, before: &'a [Vec<u32>]) -> Self {
        let rooms: Vec<Room> =
            instance.bins.iter().map(|bin| Room { limit: bin.capacity, scale: bin.capacity, pool: None }).collect();
        let sequence = (0..id_at(instance.units.len())).collect();
        let prefix = Prefix::new(instance, sequence, rooms.len(), |unit| {
            (instance.units[unit as usize].bits, u128::from(instance.class(unit).bins))
        });
        let others = (0..rooms.len()).filter(|&bin| Some(bin) != staging_device).collect();
        Self { instance, prefix, rooms, staging_device, others, before, borders: None }
    }

    /// A window for a load.
    fn find(&mut self, load: &Load, is_given_order: bool, steps: &mut Steps) -> Sought {
        let largest = self.instance.classes.iter().zip(&load.offloaded).filter(|(_, offloaded)| **offloaded > 0);
        let largest = largest.filter_map(|(class, _)| class.streamed).max().unwrap_or(0);
        if !steps.take((self.prefix.len() * self.before.len() / 16) as u64) {
            return Err(Unknown);
        }
        let own =
            self.staging_device.map_or(Some(0), |bin| self.rooms[bin].limit.checked_sub(self.instance.room(largest)));
        let Some(own) = own else { return Ok(None) };
        // The window holds what is resident on the device and what is streamed to it.
        let most = own.saturating_add(weigh(self.instance, &load.offloaded));
        let ends = self.ends(load);
        if is_given_order {
            return self.in_given_order(load, &ends, most, steps);
        }
        if self.borders.is_none() {
            // Two tables for all loads: how far a set reaches from the front, and from where its complement takes over.
            let sets = Sets::new(&self.prefix, &self.rooms, &self.others, steps).ok_or(Unknown)?;
            let (forward, backward) =
                (sets.forward(&self.prefix, &self.rooms), sets.backward(&self.prefix, &self.rooms));
            let behind = backward.into_iter().rev(); // the set of the others is its mirror image
            let mut borders: Vec<OffloadWindow> =
                forward.into_iter().zip(behind).map(|(from, to)| (from as usize, to as usize)).collect();
            borders.sort_unstable();
            borders.dedup();
            self.borders = Some(borders);
        }
        for &offload_window in self.borders.iter().flatten() {
            if let Some(offload_window) = self.between(load, &ends, most, offload_window, steps)? {
                return Ok(Some(offload_window));
            }
        }
        Ok(None)
    }

    fn in_given_order(&self, load: &Load, ends: &[usize], most: u64, steps: &mut Steps) -> Sought {
        // The staging device has its place in the order; the cpu's run may be anywhere between.
        let splits = match self.staging_device {
            Some(bin) => bin..bin + 1,
            None => 0..self.others.len() + 1,
        };
        for at in splits {
            let from =
                self.others[..at].iter().fold(0, |from, &room| self.prefix.reach(room, self.rooms[room].limit, from));
            let back = |to, &room: &usize| self.prefix.reach_back(room, self.rooms[room].limit, to);
            let to = self.others[at..].iter().rev().fold(self.prefix.len(), back);
            if let Some(offload_window) = self.between(load, ends, most, (from, to), steps)? {
                return Ok(Some(offload_window));
            }
        }
        Ok(None)
    }

    /// By start, the first end of a window that holds as many units of each class as are offloaded.
    fn ends(&self, load: &Load) -> Vec<usize> {
        let count = self.prefix.len();
        let mut end = 0;
        let mut ends = Vec::with_capacity(count + 1);
        for from in 0..=count {
            let lacks = |end: usize| {
                load.offloaded
                    .iter()
                    .zip(self.before)
                    .any(|(&offloaded, before)| before[end] - before[from] < offloaded)
            };
            // Two pointers: as the start moves on, the end never moves back.
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
    fn between(&self, load: &Load, ends: &[usize], most: u64, (from, to): OffloadWindow, steps: &mut Steps) -> Sought {
        // From the latest start back: the window only grows, so the first that is too heavy ends it.
        for start in (0..=from).rev() {
            let end = to.max(start);
            if self.prefix.weight(start, end) > most {
                break;
            }
            if !steps.take(1) {
                return Err(Unknown);
            }
            let Some(end) = ends.get(start).map(|&least| least.max(end)) else { continue };
            if self.prefix.weight(start, end) <= most && self.may_hold(load, (start, end)) {
                return Ok(Some((start, end)));
            }
        }
        Ok(None)
    }

    /// What stays in the window may be at home on its device.
    fn may_hold(&self, load: &Load, (start, end): OffloadWindow) -> bool {
        self.instance.classes.iter().zip(&load.offloaded).zip(self.before).all(|((class, &offloaded), before)| {
            self.staging_device.is_some_and(|bin| class.allows(bin)) || before[end] - before[start] <= offloaded
        })
    }

    /// The last units of each class in the window are offloaded, or the first where the window ends the model.
    fn split(&self, load: &Load, (start, end): OffloadWindow) -> Split {
        let mut left = load.offloaded.clone();
        let mut offloaded = vec![false; self.prefix.len()];
        let mut take = |unit: usize| {
            let left = &mut left[self.instance.class_of[unit] as usize];
            offloaded[unit] = *left > 0;
            *left = left.saturating_sub(1);
        };
        // Where the window holds one end of the model, the units at that end stay resident.
        if end == self.prefix.len() && start > 0 {
            (start..end).for_each(&mut take);
        } else {
            (start..end).rev().for_each(&mut take);
        }
        Split { offloaded, tiers: load.tiers.clone(), staging_device: self.staging_device }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{search, vectors};
    use crate::devices::Device;
    use crate::strategy::auto::instance::Instance;
    use crate::strategy::auto::problem::{Options, Unit};
    use crate::strategy::steps::Steps;
    use crate::testing::units;

    fn bits(sizes: &[u64]) -> Vec<Unit> {
        units(&sizes.iter().map(|bytes| bytes * 8).collect::<Vec<u64>>())
    }

    /// The units that are offloaded, and the staging device.
    type Window = (Vec<usize>, Option<usize>);

    /// What is offloaded at a cost in bytes, the staging device, and whether the search was complete.
    fn window(sizes: &[u64], cards: &[u64], cost: u64, steps: u64) -> (Option<Window>, bool) {
        let (units, options, devices) = (bits(sizes), Options::default(), crate::testing::devices(cards, 1_000));
        let instance = Instance::new(&units, &devices, &options).unwrap();
        let (split, is_complete) = search(&instance, (cost * 8, 0), &mut Steps::new(steps));
        let offloaded = |flags: &[bool]| (0..flags.len()).filter(|&unit| flags[unit]).collect();
        (split.map(|split| (offloaded(&split.offloaded), split.staging_device)), is_complete)
    }

    #[test]
    fn one_card_offloads_the_last_of_its_window() {
        // 10 keep room for 2, so 8 stay of 12; the window ends the model and begins it.
        assert_eq!(window(&[2; 6], &[10], 4, 10_000), (Some((vec![4, 5], Some(0))), true));
    }

    #[test]
    fn a_window_lies_before_or_behind_the_runs_of_the_others() {
        // The first card streams: its window is the first 4 + 2 units, the other takes the rest.
        assert_eq!(window(&[2; 8], &[6, 8], 4, 10_000).0, Some((vec![2, 3], Some(0))));
        // Only the second has room to stream: its window ends the model, and begins with what is offloaded.
        assert_eq!(window(&[1, 3, 3, 3, 3], &[2, 10], 6, 10_000).0, Some((vec![1, 2], Some(1))));
    }

    #[test]
    fn there_is_none_where_no_sum_has_the_cost() {
        assert_eq!(window(&[2; 6], &[10], 3, 10_000), (None, true));
        assert_eq!(window(&[2; 6], &[10], 2, 10_000), (None, true), "too little is offloaded");
        assert!(!window(&[2; 6], &[10], 4, 0).1, "without steps nothing is known");
    }

    #[test]
    fn vectors_are_all_that_have_a_sum() {
        let (units, options) = (bits(&[5, 3, 3, 2, 1, 1]), Options::default());
        let devices = [Device::accelerator(99, true)];
        let instance = Instance::new(&units, &devices, &options).unwrap();
        let (found, is_complete) = vectors(&instance, &[0, 1, 2, 3], 6 * 8, &mut Steps::new(1_000));
        assert_eq!((found, is_complete), (vec![vec![1, 0, 0, 1], vec![0, 2, 0, 0], vec![0, 1, 1, 1]], true));
        assert!(!vectors(&instance, &[0, 1, 2, 3], 6 * 8, &mut Steps::new(3)).1);
    }
}
