//! Exact packing by a table over counts of the rarer sizes, which keeps the most copies of the commonest.
//!
//! Devices are added one at a time. A packing with more copies of the commonest size beside the same others is at least
//! as good in every later step, so one number for each vector of counts is enough.

use crate::ids::id_at;
use crate::strategy::auto::counts::at_most;
use crate::strategy::auto::packing::{Packed, Task};
use crate::strategy::steps::Steps;

/// Vectors of counts that a table may hold.
const MOST_STATES: usize = 4_096;

/// Pairs of a vector and an addition to it that are worth one step.
const PAIRS_PER_STEP: u64 = 8;

/// Pairs for each one that is hoped to have room.
const MOST_HOPE: u64 = 32;

/// No packing reaches the vector.
const NEVER: i64 = -1;

/// Classes as dimensions.
pub(crate) struct Table<'a> {
    task: &'a Task<'a>,
    /// Units of each class that are packed, at most.
    counts: Vec<u32>,
    /// Bins in the order in which they are added.
    order: Vec<usize>,
    pub(crate) commonest: usize,
    pub(crate) rare: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    /// By vector and dimension.
    digits: Vec<u32>,
    len: usize,
    /// After each device: the most copies of the commonest, and the vector before this device.
    layers: Vec<Vec<(i64, u32)>>,
    pairs_left: u64,
}

/// Tries it; false where the table would be too large or the devices share memory.
pub(crate) fn search(task: &Task, packed: &mut Packed, steps: &mut Steps) -> bool {
    let instance = task.instance;
    let counts = instance.classes.iter().map(|class| if class.is_forced_off() { 0 } else { class.count() }).collect();
    let bins = (0..instance.bins.len()).collect();
    let is_pooled = instance.has_shared_bins() || (instance.has_shared_cpu() && instance.bins.len() > 1);
    let Some(mut table) = Table::new(task, counts, bins) else {
        let (packing, is_complete) = task.close(vec![vec![0; instance.classes.len()]; instance.bins.len()], steps);
        if let Some(packing) = packing {
            packed.offer(packing);
        }
        packed.is_complete = is_complete;
        return true;
    };
    let is_built = !is_pooled && table.build(steps);
    if is_built {
        table.read(packed, steps);
    }
    is_built
}

/// What one device may add to a vector.
struct Step {
    dimensions: Vec<Dimension>,
    /// Of the commonest, and how many of it are left.
    bits: u64,
    left: u64,
    start: u32,
    copies: i64,
    pairs: u64,
}

pub(crate) struct Dimension {
    pub(crate) bits: u64,
    pub(crate) stride: usize,
    pub(crate) left: u64,
}

impl Step {
    /// Every choice of the dimensions from one on, then the commonest.
    fn extend(&mut self, next: &mut [(i64, u32)], (state, dimension): (usize, usize), room: u64) {
        let Some(&Dimension { bits, stride, left }) = self.dimensions.get(dimension) else {
            self.pairs += 1;
            let added = if room >= self.bits.saturating_mul(self.left) { self.left } else { room / self.bits };
            let copies = self.copies + added.cast_signed(); // a count of units
            // Dominance: of two ways to a vector the one with more copies is never worse. Equal ones keep the first.
            if copies > next[state].0 {
                next[state] = (copies, self.start);
            }
            return;
        };
        let (mut state, mut room) = (state, room);
        for count in 0..=left {
            self.extend(next, (state, dimension + 1), room);
            if count == left || room < bits {
                break;
            }
            (state, room) = (state + stride, room - bits);
        }
    }
}

impl<'a> Table<'a> {
    /// Nothing where there is nothing to pack.
    pub(crate) fn new(task: &'a Task<'a>, counts: Vec<u32>, order: Vec<usize>) -> Option<Self> {
        let is_active = |&class: &usize| task.instance.classes[class].bits > 0 && counts[class] > 0;
        let mut rare: Vec<usize> = (0..counts.len()).filter(is_active).collect();
        let at = (0..rare.len()).max_by_key(|&at| (counts[rare[at]], usize::MAX - at))?;
        // The commonest would be the longest dimension; as the value of an entry it costs nothing.
        let commonest = rare.remove(at);
        let (strides, digits, layers) = (Vec::new(), Vec::new(), Vec::new());
        Some(Self { task, counts, order, commonest, rare, strides, digits, len: 1, layers, pairs_left: 0 })
    }

    /// The vector of all that is packed.
    pub(crate) fn full(&self) -> usize {
        self.len - 1
    }

    /// The most copies of the commonest beside a vector on the first bins of the order.
    pub(crate) fn most(&self, bins: usize, state: usize) -> Option<u64> {
        u64::try_from(self.layers[bins][state].0).ok()
    }

    /// Sizes the table; false where it is too large. Not all pairs have room, so more of them than steps are tried.
    fn measure(&mut self, steps: &mut Steps) -> bool {
        let mut pairs = self.task.limits.len() as u64;
        for class in self.rare.clone() {
            let count = self.count(class);
            self.strides.push(self.len);
            self.len = self.len.saturating_mul(self.counts[class] as usize + 1);
            // For a class with n units there are (n + 1)(n + 2) / 2 pairs of a count and a larger one.
            pairs = pairs.saturating_mul((count + 1) * (count + 2) / 2);
            if self.len > MOST_STATES {
                return false;
            }
        }
        self.pairs_left = steps.left().saturating_mul(PAIRS_PER_STEP);
        // Too far from what the steps allow: not begun, so that the branching has them.
        if pairs / MOST_HOPE > self.pairs_left || !steps.take(self.len as u64) {
            return false;
        }
        for state in 0..self.len {
            for (&class, &stride) in self.rare.iter().zip(&self.strides) {
                let digit = state / stride % (self.counts[class] as usize + 1);
                self.digits.push(id_at(digit));
            }
        }
        true
    }

    pub(crate) fn count(&self, class: usize) -> u64 {
        u64::from(self.counts[class])
    }

    pub(crate) fn digit(&self, state: usize, dimension: usize) -> u64 {
        u64::from(self.digits[state * self.rare.len() + dimension])
    }

    /// False where the table is too large or the steps do not suffice.
    pub(crate) fn build(&mut self, steps: &mut Steps) -> bool {
        if !self.measure(steps) {
            return false;
        }
        let pairs = self.pairs_left;
        let is_built = self.fill();
        steps.take((pairs - self.pairs_left).div_ceil(PAIRS_PER_STEP));
        is_built
    }

    fn fill(&mut self) -> bool {
        let mut layer = vec![(NEVER, 0); self.len];
        layer[0].0 = 0;
        self.layers.push(layer);
        for at in 0..self.order.len() {
            let bin = self.order[at];
            let mut next = vec![(NEVER, 0); self.len];
            for state in 0..self.len {
                let copies = self.layers[at][state].0;
                if copies != NEVER {
                    let mut step = self.step(bin, state, copies.cast_unsigned()); // not NEVER
                    step.extend(&mut next, (state, 0), self.task.limits[bin]);
                    let Some(left) = self.pairs_left.checked_sub(step.pairs) else {
                        self.pairs_left = 0;
                        return false;
                    };
                    self.pairs_left = left;
                }
            }
            self.layers.push(next);
        }
        true
    }

    fn step(&self, bin: usize, start: usize, copies: u64) -> Step {
        let class = &self.task.instance.classes[self.commonest];
        let left = if class.allows(bin) { self.count(self.commonest) - copies } else { 0 };
        let dimensions = self.dimensions(bin, |dimension| self.digit(start, dimension));
        Step { dimensions, bits: class.bits, left, start: id_at(start), copies: copies.cast_signed(), pairs: 0 } // a count of units
    }

    /// What a bin may take of each dimension beside what is placed.
    pub(crate) fn dimensions(&self, bin: usize, placed: impl Fn(usize) -> u64) -> Vec<Dimension> {
        let classes = &self.task.instance.classes;
        let rare = self.rare.iter().zip(&self.strides).enumerate();
        let dimension = |(dimension, (&class, &stride)): (usize, (&usize, &usize))| {
            let left = self.count(class) - placed(dimension);
            Dimension { bits: classes[class].bits, stride, left: if classes[class].allows(bin) { left } else { 0 } }
        };
        rare.map(dimension).collect()
    }

    /// Bits of what is resident in a state, with so many copies.
    fn resident(&self, state: usize, copies: u64) -> u64 {
        let classes = &self.task.instance.classes;
        let rare = self.rare.iter().enumerate();
        let bits = rare.map(|(dimension, &class)| self.digit(state, dimension) * classes[class].bits).sum::<u64>();
        bits + copies * classes[self.commonest].bits
    }

    /// Whether all that must stay is resident.
    fn meets_must(&self, state: usize, copies: u64) -> bool {
        let must = &self.task.must;
        let is_full = |(dimension, &class): (usize, &usize)| self.digit(state, dimension) == self.count(class);
        (!must[self.commonest] || copies == self.count(self.commonest))
            && self.rare.iter().enumerate().filter(|(_, class)| must[**class]).all(is_full)
    }

    /// How far what is left out is from the same part of every class; runs leave out nearly that.
    fn imbalance(&self, state: usize, copies: u64) -> u128 {
        let classes = &self.task.instance.classes;
        let total: u64 =
            self.rare.iter().chain([&self.commonest]).map(|&class| self.count(class) * classes[class].bits).sum();
        // In whole numbers: the sum over classes of |left out * total - even share|.
        let left_out = u128::from(total - self.resident(state, copies));
        let offloaded = |class: usize, kept: u64| {
            let even = left_out * u128::from(self.count(class));
            (u128::from(self.count(class) - kept) * u128::from(total)).abs_diff(even)
        };
        let rare =
            self.rare.iter().enumerate().map(|(dimension, &class)| offloaded(class, self.digit(state, dimension)));
        rare.sum::<u128>() + offloaded(self.commonest, copies)
    }

    /// Ends in the order of what is resident; the first whose rest finds homes is best.
    fn read(&self, packed: &mut Packed, steps: &mut Steps) {
        let Some(last) = self.layers.last() else { return };
        let mut ends = Vec::new();
        for (state, &(reached, _)) in last.iter().enumerate().filter(|(_, (copies, _))| *copies != NEVER) {
            // Where the cpu shares the memory, less resident can leave it more.
            let most = reached.cast_unsigned(); // not NEVER
            let fewest = if self.task.instance.has_shared_cpu() { 0 } else { most };
            for copies in fewest..=most {
                if self.meets_must(state, copies) {
                    ends.push((self.resident(state, copies), state, copies));
                }
            }
        }
        // Most resident first; of equal ones that which leaves out the same part of every class, as runs do.
        ends.sort_by_cached_key(|&(resident, state, copies)| {
            (u64::MAX - resident, self.imbalance(state, copies), state)
        });
        // All vectors are there: from here on only homes that were not found make it incomplete.
        packed.is_complete = true;
        let mut best: Option<(u64, u64)> = None;
        for (resident, state, copies) in ends {
            // Less resident is a higher cost; with nothing on disk no equal one is better.
            if best.is_some_and(|(bits, disk_bits)| resident < bits || disk_bits == 0) {
                break;
            }
            if !steps.take(self.task.work()) {
                packed.is_complete &= best.is_some();
                break;
            }
            let (packing, is_complete) = self.task.close(self.trace(state, copies), steps);
            match packing {
                Some(packing) => {
                    let disk_bits = best.map_or(u64::MAX, |(_, disk_bits)| disk_bits).min(packing.tiers.disk_bits);
                    best = Some((resident, disk_bits));
                    packed.offer(packing);
                }
                // A packing without homes is none; where that was not settled, a better one may have been missed.
                None => packed.is_complete &= is_complete || best.is_some(),
            }
        }
    }

    /// Counts by bin and class of the packing that reached a state; copies beyond those wanted are left out.
    fn trace(&self, mut state: usize, copies: u64) -> Vec<Vec<u32>> {
        let bins = self.task.limits.len();
        let mut counts = vec![vec![0u32; self.task.instance.classes.len()]; bins];
        // The table kept the most copies; where fewer are wanted, the last bins leave out theirs.
        let mut surplus = self.layers[bins][state].0.cast_unsigned() - copies; // a state that is reached
        for (at, &bin) in self.order.iter().enumerate().rev() {
            let (reached, before) = self.layers[at + 1][state];
            for (dimension, &class) in self.rare.iter().enumerate() {
                let taken = self.digit(state, dimension) - self.digit(before as usize, dimension);
                counts[bin][class] = at_most(u32::MAX, taken);
            }
            let added = (reached - self.layers[at][before as usize].0).cast_unsigned(); // a bin only adds
            let left_out = surplus.min(added);
            counts[bin][self.commonest] = at_most(u32::MAX, added - left_out);
            surplus -= left_out;
            state = before as usize;
        }
        counts
    }
}
