//! Exact packing by branch and bound, within the steps that are left.
//!
//! Classes are taken largest first, bins in order; a level of the search is one class on one bin, and its branches are the
//! numbers of units put there, most first. What is left of a class after the last bin is offloaded. The bound is that
//! of Martello and Toth (1990) for several knapsacks: all bins as one.

use crate::strategy::auto::counts::at_most;
use crate::strategy::auto::packing::{Packed, Task};
use crate::strategy::steps::Steps;

/// A node of the search; `put` says which, and the other fields follow from it.
struct Branch<'a> {
    task: &'a Task<'a>,
    /// Those that weigh something and fit on a bin, largest first.
    classes: Vec<usize>,
    /// Bits of the classes from one on.
    after: Vec<u64>,
    /// Room left on each bin.
    limits: Vec<u64>,
    /// Room left in each pool.
    pools: Vec<u64>,
    /// Units put by each level.
    put: Vec<u32>,
    /// Units left of the class of the last level.
    left: u32,
    /// Bits offloaded by the classes that are done.
    offloaded_bits: u64,
}

/// Improves a packing; sets `is_complete` where the search ended by itself.
pub(crate) fn search(task: &Task, below: Option<(u64, u64)>, packed: &mut Packed, steps: &mut Steps) {
    let instance = task.instance;
    let is_active = |&index: &usize| instance.classes[index].bits > 0 && !instance.classes[index].is_forced_off();
    let classes: Vec<usize> = (0..instance.classes.len()).filter(is_active).collect();
    let mut after = vec![0u64; classes.len() + 1];
    for (index, &class) in classes.iter().enumerate().rev() {
        after[index] = after[index + 1] + instance.classes[class].bits * u64::from(instance.classes[class].count());
    }
    let forced = instance.total - after[0];
    let mut branch = Branch {
        task,
        classes,
        after,
        limits: task.limits.clone(),
        pools: task.pools.clone(),
        put: Vec::new(),
        left: 0,
        offloaded_bits: forced,
    };
    packed.is_complete = branch.run(below, packed, steps);
}

impl Branch<'_> {
    fn bins(&self) -> usize {
        self.limits.len()
    }

    fn run(&mut self, below: Option<(u64, u64)>, packed: &mut Packed, steps: &mut Steps) -> bool {
        if self.bins() == 0 {
            return false;
        }
        let mut is_complete = true;
        loop {
            let best =
                packed.best.as_ref().map(crate::strategy::auto::packing::Packing::cost).into_iter().chain(below).min();
            if best.is_some_and(|best| best <= (self.task.floor, 0)) {
                return true;
            }
            if !steps.take(1) {
                return false;
            }
            let is_open = self.may_beat(best);
            if is_open && self.put.len() == self.classes.len() * self.bins() {
                if !steps.take(self.task.work()) {
                    return false;
                }
                let (packing, is_whole) = self.task.close(self.counts(), steps);
                // Where the search for homes was cut short, this leaf may have been the best.
                is_complete &= is_whole || packing.is_some();
                if let Some(packing) = packing {
                    packed.offer(packing);
                }
            } else if is_open {
                self.descend();
                continue;
            }
            if !self.advance() {
                return is_complete;
            }
        }
    }

    /// What the best completion could cost is less than the best known.
    fn may_beat(&self, best: Option<(u64, u64)>) -> bool {
        let is_between = !self.put.is_empty() && self.put.len().is_multiple_of(self.bins());
        if is_between && self.left > 0 && self.task.must[self.classes[self.put.len() / self.bins() - 1]] {
            return false;
        }
        let Some(&class) = self.classes.get(self.put.len() / self.bins()) else {
            // Bits on disk are not known before the leaf, so 0 stands for them: the bound stays below the truth.
            return best.is_none_or(|best| (self.offloaded_bits, 0) < best);
        };
        let is_inside = !self.put.len().is_multiple_of(self.bins());
        // A bin too small for the smallest class takes nothing more, and is no room.
        let least = self.classes.last().map_or(0, |&class| self.task.instance.classes[class].bits);
        let rest = if is_inside {
            self.after[self.put.len() / self.bins() + 1] + self.task.instance.classes[class].bits * u64::from(self.left)
        } else {
            self.after[self.put.len() / self.bins()]
        };
        let room =
            self.limits.iter().filter(|&&limit| limit >= least).fold(0u64, |sum, &limit| sum.saturating_add(limit));
        best.is_none_or(|best| (self.offloaded_bits + rest.saturating_sub(room), 0) < best)
    }

    /// Next level, with as many units as fit.
    fn descend(&mut self) {
        let (index, bin) = (self.put.len() / self.bins(), self.put.len() % self.bins());
        let class = &self.task.instance.classes[self.classes[index]];
        if bin == 0 {
            self.left = class.count();
        }
        let room = self.pool(bin).map_or(self.limits[bin], |pool| self.limits[bin].min(self.pools[pool]));
        let most = if class.allows(bin) { at_most(self.left, room / class.bits) } else { 0 };
        // Of packings that differ in the order of alike bins only one is looked at.
        let most = if self.is_like_previous(bin, index) { most.min(self.put[self.put.len() - 1]) } else { most };
        self.put.push(0);
        if bin + 1 == self.bins() {
            self.offloaded_bits += class.bits * u64::from(self.left);
        }
        self.change(most);
    }

    /// A bin equal to the one before takes no more than that one did: else the two could be exchanged.
    fn is_like_previous(&self, bin: usize, index: usize) -> bool {
        let Some(previous) = bin.checked_sub(1) else { return false };
        let instance = self.task.instance;
        let bits = instance.classes[self.classes[index]].bits;
        // As it was before this class: classes done earlier left the two with the same room.
        let before = self.limits[previous] + bits * u64::from(self.put[self.put.len() - 1]);
        before == self.limits[bin]
            && instance.bins[previous].pool == instance.bins[bin].pool
            && self.classes[index..]
                .iter()
                .all(|&class| instance.classes[class].allows(previous) == instance.classes[class].allows(bin))
    }

    fn pool(&self, bin: usize) -> Option<usize> {
        self.task.instance.bins[bin].pool
    }

    /// Puts another number of units on the last level.
    fn change(&mut self, count: u32) {
        let level = self.put.len() - 1;
        let (index, bin) = (level / self.bins(), level % self.bins());
        let bits = self.task.instance.classes[self.classes[index]].bits;
        let was = self.put[level];
        let is_last = bin + 1 == self.bins();
        if is_last {
            self.offloaded_bits += bits * u64::from(was);
            self.offloaded_bits -= bits * u64::from(count);
        }
        self.limits[bin] = self.limits[bin] + bits * u64::from(was) - bits * u64::from(count);
        if let Some(pool) = self.pool(bin) {
            self.pools[pool] = self.pools[pool] + bits * u64::from(was) - bits * u64::from(count);
        }
        self.left = self.left + was - count;
        self.put[level] = count;
    }

    /// Goes on to the next branch; false at the end.
    fn advance(&mut self) -> bool {
        loop {
            let Some(&count) = self.put.last() else { return false };
            let level = self.put.len() - 1;
            let (index, bin) = (level / self.bins(), level % self.bins());
            // Fewer on the last bin would leave some of a class that must stay.
            let must = self.task.must[self.classes[index]] && bin + 1 == self.bins();
            if count > 0 && !must {
                self.change(count - 1);
                return true;
            }
            self.change(0);
            if bin + 1 == self.bins() {
                self.offloaded_bits -= self.task.instance.classes[self.classes[index]].bits * u64::from(self.left);
            }
            self.put.pop();
            if bin == 0 && index > 0 {
                self.left = self.left_of(index - 1);
            }
        }
    }

    /// Units of a class that no bin has.
    fn left_of(&self, index: usize) -> u32 {
        let put = &self.put[index * self.bins()..(index + 1) * self.bins()];
        self.task.instance.classes[self.classes[index]].count() - put.iter().sum::<u32>()
    }

    fn counts(&self) -> Vec<Vec<u32>> {
        let mut counts = vec![vec![0u32; self.task.instance.classes.len()]; self.bins()];
        for (level, &count) in self.put.iter().enumerate() {
            counts[level % self.bins()][self.classes[level / self.bins()]] = count;
        }
        counts
    }
}
