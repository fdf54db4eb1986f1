//! Tables over sets of rooms: how far the rooms of a set reach, whatever their order.

use crate::ids::id_at;
use crate::strategy::auto::runs::prefix::{Prefix, Room, Runs};
use crate::strategy::steps::Steps;

/// Sets of devices that a table may hold.
const MOST_SETS: u64 = 1 << 20;

/// Entries of such a table, times the kinds of devices, that are worth one step.
const ENTRIES_PER_STEP: u64 = 16;

/// The order nearest to the one given in which the rooms take all units; `None` where the table is too large.
pub(crate) fn any_order(prefix: &Prefix, rooms: &[Room], steps: &mut Steps) -> Option<Result<Runs, ()>> {
    let room_for_all = rooms.iter().fold(0u64, |sum, room| sum.saturating_add(room.limit));
    // The bound by total size: no order helps, and no table is needed.
    if room_for_all < prefix.total() {
        return Some(Err(()));
    }
    let everything: Vec<usize> = (0..rooms.len()).collect();
    let sets = Sets::new(prefix, rooms, &everything, steps)?;
    let table = sets.backward(prefix, rooms);
    if table[sets.full()] > 0 {
        return Some(Err(()));
    }
    // INVARIANT: the rooms of `set` take all from `from` on. The first device given that keeps this is next.
    let (mut set, mut from) = (sets.full(), 0);
    let mut order: Vec<usize> = Vec::with_capacity(rooms.len());
    for _ in rooms {
        for (room, &Room { limit, .. }) in rooms.iter().enumerate().filter(|(room, _)| !order.contains(room)) {
            let kind = sets.kind_of[room];
            let end = prefix.reach(room, limit, from);
            if table[set - sets.strides[kind]] as usize <= end {
                order.push(room);
                (set, from) = (set - sets.strides[kind], end);
                break;
            }
        }
    }
    Some(prefix.in_order(rooms, &order).ok_or(()))
}

/// Sets of rooms, like rooms counted: a number with one digit for each kind of room.
#[derive(Debug)]
pub(crate) struct Sets {
    /// By room; `usize::MAX` for rooms left out.
    pub(crate) kind_of: Vec<usize>,
    /// By kind, what one more room of it adds to the number of a set.
    pub(crate) strides: Vec<usize>,
    /// By kind, its rooms.
    counts: Vec<usize>,
    /// By kind, the first of its rooms.
    members: Vec<usize>,
    /// Of all sets: the product of `counts + 1`.
    len: usize,
}

impl Sets {
    /// Sets of some of the rooms; `None` where a table over them is too large for the steps, which it takes.
    pub(crate) fn new(prefix: &Prefix, rooms: &[Room], of: &[usize], steps: &mut Steps) -> Option<Self> {
        let mut sets =
            Self { kind_of: vec![usize::MAX; rooms.len()], strides: vec![], counts: vec![], members: vec![], len: 1 };
        for &room in of {
            let like = sets.members.iter().position(|&member| prefix.are_alike(rooms, member, room));
            let kind = like.unwrap_or(sets.members.len());
            if like.is_none() {
                sets.members.push(room);
                sets.counts.push(0);
            }
            sets.counts[kind] += 1;
            sets.kind_of[room] = kind;
        }
        // A table that the steps do not cover is not begun: half a table answers nothing.
        let most = MOST_SETS.min(steps.left().saturating_mul(ENTRIES_PER_STEP) / sets.members.len().max(1) as u64);
        for &count in &sets.counts {
            sets.strides.push(sets.len);
            sets.len = sets.len.checked_mul(count + 1).filter(|&len| len as u64 <= most)?;
        }
        steps.take((sets.len * sets.members.len()) as u64 / ENTRIES_PER_STEP);
        Some(sets)
    }

    /// The set of all rooms.
    pub(crate) fn full(&self) -> usize {
        self.len - 1
    }

    /// By set: the first unit from which its rooms, in some order, take all the rest.
    pub(crate) fn backward(&self, prefix: &Prefix, rooms: &[Room]) -> Vec<u32> {
        let step = |room: usize, to| id_at(prefix.reach_back(room, rooms[room].limit, to));
        self.fill(prefix.len(), id_at(prefix.len()), step, u32::min)
    }

    /// By set: the furthest unit that its rooms, in some order, reach from the first.
    pub(crate) fn forward(&self, prefix: &Prefix, rooms: &[Room]) -> Vec<u32> {
        let step = |room: usize, from| id_at(prefix.reach(room, rooms[room].limit, from));
        self.fill(prefix.len(), 0, step, u32::max)
    }

    fn fill(
        &self,
        units: usize,
        start: u32,
        step: impl Fn(usize, usize) -> u32,
        better: fn(u32, u32) -> u32,
    ) -> Vec<u32> {
        let steps: Vec<Vec<u32>> =
            self.members.iter().map(|&room| (0..=units).map(|border| step(room, border)).collect()).collect();
        let mut table = vec![start; self.len];
        let mut digits = vec![0usize; self.members.len()];
        for set in 1..self.len {
            for (digit, &count) in digits.iter_mut().zip(&self.counts) {
                if *digit < count {
                    *digit += 1;
                    break;
                }
                *digit = 0;
            }
            let mut best = start;
            for ((steps, &stride), &digit) in steps.iter().zip(&self.strides).zip(&digits) {
                if digit > 0 {
                    // The last room added is one of the set; without it the set is smaller, and done already.
                    best = better(best, steps[table[set - stride] as usize]);
                }
            }
            table[set] = best;
        }
        table
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::any_order;
    use crate::ids::id_at;
    use crate::strategy::auto::instance::Instance;
    use crate::strategy::auto::problem::Options;
    use crate::strategy::auto::runs::prefix::{Prefix, Room};
    use crate::strategy::steps::Steps;
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
    fn the_order_is_the_first_that_takes_all() {
        let order = |weights: &[u64], limits: &[u64], barred: &[(usize, u32)]| {
            let prefix = prefix(weights, limits.len(), barred, &[]);
            let runs = any_order(&prefix, &rooms(limits), &mut Steps::new(1_000)).unwrap();
            runs.map(|runs| (runs.rooms, runs.ends))
        };
        assert_eq!(order(&[5, 3], &[3, 5], &[]), Ok((vec![1, 0], vec![1, 2])));
        assert_eq!(order(&[3, 3], &[3, 5], &[]), Ok((vec![0, 1], vec![1, 2])));
        assert_eq!(order(&[3, 3, 3], &[3, 5], &[]), Err(()), "more than all rooms");
        assert_eq!(order(&[3, 3, 3], &[5, 5], &[]), Err(()), "room enough, and no run for it");
        assert_eq!(order(&[2, 2], &[2, 2], &[(0, 0)]), Ok((vec![1, 0], vec![1, 2])));
        assert!(any_order(&prefix(&[1; 4], 4, &[], &[]), &rooms(&[1, 2, 3, 4]), &mut Steps::new(2)).is_none());
    }
}
