//! Runs of units: each device executes one run of the execution order.
//!
//! A device that takes the longest run it can never hinders the devices after it, unless they share its memory: they
//! start later, and reach at least as far. So the order of devices decides all. This is the greedy probe of Pınar and
//! Aykanat (2004); the tables over sets of devices are those of Held and Karp (1962), with alike devices counted.

use crate::ids::id_at;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::runs::peaks::Peaks;

/// A device as a run sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Room for resident units.
    pub(crate) limit: u64,
    /// Capacity of which `Fill::Even` takes fractions.
    pub(crate) scale: u64,
    /// Set only where two rooms share memory.
    pub(crate) pool: Option<usize>,
}

/// Units in the order of their runs.
#[derive(Debug)]
pub(crate) struct Prefix {
    /// Every unit once; borders are places in it, from 0 to its length.
    pub(crate) sequence: Vec<u32>,
    /// Weight of the first `i` units: starts with 0, is one longer than `sequence`, and never falls, so places in
    /// it are found by halving. Once it is settled what is offloaded, that weighs nothing.
    sums: Vec<u64>,
    /// What the most demanding unit of a run needs beside the weights; nothing where no unit needs any.
    peaks: Option<Peaks>,
    /// By room: the first unit from `i` on that it may not take, and the end of the last one before `i`; nothing for a
    /// room that may take every unit.
    stops: Vec<Option<Stops>>,
    /// What resident units may use of each pool; read for rooms that have one.
    pools: Vec<u64>,
}

/// Where a room must stop, by border.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stops {
    next: Vec<u32>,
    previous: Vec<u32>,
}

/// Rooms in the order of their runs, and the end of each run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Runs {
    pub(crate) rooms: Vec<usize>,
    pub(crate) ends: Vec<usize>,
}

impl Prefix {
    /// Weight and permitted rooms (a bit each) of every unit.
    pub(crate) fn new(instance: &Instance, sequence: Vec<u32>, rooms: usize, of: impl Fn(u32) -> (u64, u128)) -> Self {
        let mut sums = Vec::with_capacity(sequence.len() + 1);
        sums.push(0);
        let mut masks = Vec::with_capacity(sequence.len());
        for &unit in &sequence {
            let (weight, mask) = of(unit);
            sums.push(sums.last().copied().unwrap_or(0) + weight);
            masks.push(mask);
        }
        let stops = (0..rooms).map(|room| Stops::new(&masks, room)).collect();
        Self { sequence, sums, peaks: None, stops, pools: instance.pools.clone() }
    }

    /// The same with other joint capacities.
    pub(crate) fn with_pools(self, pools: Vec<u64>) -> Self {
        Self { pools, ..self }
    }

    /// The same where units need something while they run.
    pub(crate) fn with_peaks(self, of: impl Fn(u32) -> u64) -> Self {
        let peaks = Peaks::new(self.sequence.iter().map(|&unit| of(unit)).collect());
        Self { peaks: Some(peaks), ..self }
    }

    pub(crate) fn len(&self) -> usize {
        self.sequence.len()
    }

    pub(crate) fn weight(&self, from: usize, to: usize) -> u64 {
        self.sums[to] - self.sums[from]
    }

    /// What a run takes of its room: its weight, and what the most demanding of its units needs.
    pub(crate) fn taken(&self, from: usize, to: usize) -> u64 {
        self.weight(from, to) + self.peaks.as_ref().map_or(0, |peaks| peaks.over(from, to))
    }

    pub(crate) fn total(&self) -> u64 {
        self.weight(0, self.len())
    }

    /// End of the longest run from a unit on.
    pub(crate) fn reach(&self, room: usize, limit: u64, from: usize) -> usize {
        let most = self.sums[from].saturating_add(limit);
        // The last border within the limit: units that weigh nothing come along as far as they may.
        let by_weight = self.sums.partition_point(|&sum| sum <= most) - 1;
        let by_weight = if self.peaks.is_none() || self.taken(from, by_weight) <= limit {
            by_weight
        } else {
            // A longer run needs no less, so halving finds the longest here as well.
            halved(from, by_weight, |to| self.taken(from, to) <= limit)
        };
        self.stops[room].as_ref().map_or(by_weight, |stops| by_weight.min(stops.next[from] as usize))
    }

    /// Start of the longest run up to a unit.
    pub(crate) fn reach_back(&self, room: usize, limit: u64, to: usize) -> usize {
        let least = self.sums[to].saturating_sub(limit);
        let by_weight = self.sums.partition_point(|&sum| sum < least);
        let by_weight = if self.peaks.is_none() || self.taken(by_weight, to) <= limit {
            by_weight
        } else {
            to - halved(0, to - by_weight, |length| self.taken(to - length, to) <= limit)
        };
        self.stops[room].as_ref().map_or(by_weight, |stops| by_weight.max(stops.previous[to] as usize))
    }

    /// The unit border nearest to a weight.
    pub(crate) fn nearest(&self, weight: u64) -> usize {
        let after = self.sums.partition_point(|&sum| sum < weight).min(self.len());
        match after.checked_sub(1) {
            Some(before) if weight.abs_diff(self.sums[before]) < self.sums[after].abs_diff(weight) => before,
            _ => after,
        }
    }

    /// Longest runs in an order of rooms with the limits given; less than all of them where units are left over.
    pub(crate) fn greedy(&self, rooms: &[Room], order: &[usize], limits: impl Fn(usize) -> u64) -> Vec<usize> {
        let mut left = self.pools.clone();
        let mut from = 0;
        let mut ends = Vec::with_capacity(order.len());
        for &room in order {
            // With a pool the longest run is a heuristic: it may take what a later device of the pool needs.
            let shared = rooms[room].pool.map_or(u64::MAX, |pool| left[pool]);
            let end = self.reach(room, limits(room).min(shared), from);
            if let Some(pool) = rooms[room].pool {
                left[pool] -= self.taken(from, end);
            }
            from = end;
            ends.push(end);
        }
        ends
    }

    /// The rooms in an order, if they take all units.
    pub(crate) fn in_order(&self, rooms: &[Room], order: &[usize]) -> Option<Runs> {
        let ends = self.greedy(rooms, order, |room| rooms[room].limit);
        let takes_all = ends.last().copied().unwrap_or(0) == self.len();
        takes_all.then(|| Runs { rooms: order.to_vec(), ends })
    }

    /// Rooms are interchangeable.
    pub(crate) fn are_alike(&self, rooms: &[Room], one: usize, other: usize) -> bool {
        rooms[one].limit == rooms[other].limit && self.stops[one] == self.stops[other]
    }
}

/// The last number between two that works, where the first does and none works behind one that does not.
fn halved(first: usize, last: usize, works: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (first, last + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if works(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

impl Stops {
    fn new(masks: &[u128], room: usize) -> Option<Self> {
        if masks.iter().all(|mask| mask >> room & 1 == 1) {
            return None;
        }
        let mut next = vec![id_at(masks.len()); masks.len() + 1];
        let mut previous = vec![0u32; masks.len() + 1];
        for (index, mask) in masks.iter().enumerate() {
            previous[index + 1] = if mask >> room & 1 == 1 { previous[index] } else { id_at(index) + 1 };
        }
        for (index, mask) in masks.iter().enumerate().rev() {
            next[index] = if mask >> room & 1 == 1 { next[index + 1] } else { id_at(index) };
        }
        Some(Self { next, previous })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Prefix, Room};
    use crate::ids::id_at;
    use crate::strategy::auto::instance::Instance;
    use crate::strategy::auto::problem::Options;
    use crate::testing::units;

    /// Units of these weights; `barred` are pairs of a room and a unit that it may not take.
    fn prefix(weights: &[u64], rooms: usize, barred: &[(usize, u32)], pools: &[u64]) -> Prefix {
        let (units, options) = (units(weights), Options { pools: pools.to_vec(), ..Options::default() });
        let instance = Instance::new(&units, &[], &options).unwrap();
        Prefix::new(&instance, (0..id_at(weights.len())).collect(), rooms, |unit| {
            let mask =
                barred.iter().filter(|(_, of)| *of == unit).fold(u128::MAX, |mask, (room, _)| mask & !(1 << room));
            (weights[unit as usize], mask)
        })
    }

    fn rooms(limits: &[u64]) -> Vec<Room> {
        limits.iter().map(|&limit| Room { limit, scale: limit, pool: None }).collect()
    }

    #[test]
    fn runs_are_as_long_as_weights_and_permits_allow() {
        let prefix = prefix(&[3, 2, 0, 4, 1], 2, &[(1, 3)], &[]);
        assert_eq!((prefix.total(), prefix.weight(1, 4)), (10, 6));
        assert_eq!([0, 2, 3, 5, 9, 10].map(|limit| prefix.reach(0, limit, 0)), [0, 0, 1, 3, 4, 5]);
        assert_eq!(prefix.reach(1, 99, 0), 3, "room 1 may not take unit 3");
        assert_eq!([0, 1, 4, 5, 7, 10].map(|limit| prefix.reach_back(0, limit, 5)), [5, 4, 4, 2, 1, 0]);
        assert_eq!((prefix.reach_back(1, 99, 5), prefix.reach_back(1, 99, 3)), (4, 0));
    }

    #[test]
    fn the_nearest_border_is_the_later_of_two() {
        let prefix = prefix(&[4, 4, 4], 1, &[], &[]);
        assert_eq!([0, 1, 2, 3, 6, 7, 50].map(|weight| prefix.nearest(weight)), [0, 0, 1, 1, 2, 2, 3]);
    }

    #[test]
    fn rooms_of_one_pool_share_its_room() {
        let prefix = prefix(&[2, 2, 2, 2], 2, &[], &[6]);
        let rooms: Vec<Room> = rooms(&[4, 4]).iter().map(|room| Room { pool: Some(0), ..*room }).collect();
        assert_eq!(prefix.greedy(&rooms, &[0, 1], |room| rooms[room].limit), [2, 3]);
        assert_eq!(prefix.in_order(&rooms, &[0, 1]), None);
    }
}
