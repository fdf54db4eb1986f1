//! One run for each device, part of which it may stream: least offloaded by dynamic programming over borders.
//!
//! With caches and other bits that lie where a block runs, one device that streams is not enough: four layers of weights 3 and
//! caches 3 on 9 + 9 fit only if both stream. A run costs what its device offloads of it, so the least cost up to a border
//! with a set of devices is the least over the last of them and the border where its run begins.

use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::streaming::costs::Costs;
use crate::strategy::auto::streaming::keep::NEVER;
use crate::strategy::steps::Steps;

/// Borders that are looked at; of longer models every so many units.
const MOST_BORDERS: usize = 160;

/// Sets of devices that a table may hold.
const MOST_SETS: usize = 256;

/// Runs that are worth one step.
const RUNS_PER_STEP: u64 = 8;

/// A bin, and the units of its run.
pub(crate) type Run = (usize, usize, usize);

/// Runs, and the bits that they offload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Streamed {
    pub(crate) runs: Vec<Run>,
    pub(crate) offloaded_bits: u64,
}

/// Up to a border: the cost, the border where the last run begins, and the kind of its device.
type Reached = (u64, usize, usize);

/// Nothing reaches the border.
const UNREACHED: Reached = (NEVER, 0, 0);

/// Places where a run may begin or end.
pub(crate) struct Borders<'c, 'a> {
    costs: &'c mut Costs<'a>,
    places: Vec<usize>,
    /// By place: what is before it, as a vector, where there are vectors.
    vectors: Vec<usize>,
}

impl<'c, 'a> Borders<'c, 'a> {
    pub(crate) fn new(costs: &'c mut Costs<'a>) -> Self {
        let count = costs.instance.units.len();
        let width = count.div_ceil(MOST_BORDERS).max(1);
        let mut places: Vec<usize> = (0..count).step_by(width).collect();
        places.push(count);
        let mut this = Self { costs, places, vectors: Vec::new() };
        this.vectors = this.running_vectors();
        this
    }

    fn running_vectors(&self) -> Vec<usize> {
        let instance = self.costs.instance;
        let Some(vectors) = &self.costs.vectors else { return Vec::new() };
        let mut strides = vec![0usize; instance.classes.len()];
        vectors.classes.iter().zip(&vectors.strides).for_each(|(&class, &stride)| strides[class] = stride);
        let mut sums = vec![0usize];
        for &class in &instance.class_of {
            sums.push(sums.last().copied().unwrap_or(0) + strides[class as usize]);
        }
        self.places.iter().map(|&place| sums[place]).collect()
    }

    /// The devices in the order given, each with the longest run that it can stream; no more is asked than whether they reach the
    /// end, so what is offloaded may be more than need be.
    pub(crate) fn longest(&mut self) -> Option<Vec<Run>> {
        let last = self.places.len() - 1;
        let (mut runs, mut from) = (Vec::new(), 0);
        for bin in 0..self.costs.kind_of.len() {
            let kind = self.costs.kind_of[bin];
            // What a device cannot run it cannot run with more beside it: so the end is found by halving.
            let (mut to, mut beyond) = (from, last + 1);
            while beyond - to > 1 {
                let middle = if to == from && beyond > last { last } else { to + (beyond - to) / 2 };
                if self.least(kind, from, middle) == NEVER {
                    beyond = middle;
                } else {
                    to = middle;
                }
            }
            runs.push((bin, self.places[from], self.places[to]));
            from = to;
        }
        (from == last).then_some(runs)
    }

    /// Fewest bits that a kind of device offloads of a run between two places.
    fn least(&mut self, kind: usize, from: usize, to: usize) -> u64 {
        if self.vectors.is_empty() {
            let mut counts = Counts::new(self.costs.instance, self.places[from]);
            self.costs.keepers[kind].least(counts.up_to(self.places[to]))
        } else {
            self.costs.of(kind, self.vectors[to] - self.vectors[from])
        }
    }

    /// The devices in the order given.
    pub(crate) fn in_given_order(&mut self, steps: &mut Steps) -> Option<Streamed> {
        let kinds = self.costs.kind_of.clone();
        let mut rows = vec![self.start()];
        for &kind in &kinds {
            let before = rows[rows.len() - 1].clone();
            // A device may stay empty, so what was reached stays reached.
            let mut row: Vec<Reached> =
                before.iter().enumerate().map(|(place, &(cost, ..))| (cost, place, kind)).collect();
            self.extend(kind, &before, &mut row, steps)?;
            rows.push(row);
        }
        let (offloaded_bits, ..) = rows.last().and_then(|row| row.last()).copied().filter(|end| end.0 != NEVER)?;
        let mut runs = Vec::new();
        let mut place = self.places.len() - 1;
        for (bin, row) in rows.iter().skip(1).enumerate().rev() {
            let (_, from, _) = row[place];
            runs.push((bin, self.places[from], self.places[place]));
            place = from;
        }
        runs.reverse();
        Some(Streamed { runs, offloaded_bits })
    }

    /// The devices in any order; nothing where there are too many sets of them.
    pub(crate) fn in_any_order(&mut self, steps: &mut Steps) -> Option<Streamed> {
        let counts: Vec<usize> = self.costs.kinds.iter().map(Vec::len).collect();
        let mut strides = Vec::new();
        let mut len = 1usize;
        for &count in &counts {
            strides.push(len);
            len = len.checked_mul(count + 1).filter(|&len| len <= MOST_SETS)?;
        }
        let digit = |set: usize, kind: usize| set / strides[kind] % (counts[kind] + 1);
        let mut rows = vec![vec![UNREACHED; self.places.len()]; len];
        rows[0] = self.start();
        for set in 1..len {
            let mut row = vec![UNREACHED; self.places.len()];
            for kind in (0..counts.len()).filter(|&kind| digit(set, kind) > 0) {
                let before = &rows[set - strides[kind]];
                for (place, &(cost, ..)) in before.iter().enumerate() {
                    if cost < row[place].0 {
                        row[place] = (cost, place, kind);
                    }
                }
                self.extend(kind, before, &mut row, steps)?;
            }
            rows[set] = row;
        }
        let (offloaded_bits, ..) = rows[len - 1].last().copied().filter(|end| end.0 != NEVER)?;
        let (mut set, mut place) = (len - 1, self.places.len() - 1);
        let mut runs = Vec::new();
        while set > 0 {
            let (_, from, kind) = rows[set][place];
            // Bins of a kind are exchangeable, and this goes from the last run to the first.
            let bin = self.costs.kinds[kind][digit(set, kind) - 1];
            runs.push((bin, self.places[from], self.places[place]));
            (set, place) = (set - strides[kind], from);
        }
        runs.reverse();
        Some(Streamed { runs, offloaded_bits })
    }

    fn start(&self) -> Vec<Reached> {
        let mut row = vec![UNREACHED; self.places.len()];
        row[0] = (0, 0, 0);
        row
    }

    /// Adds a run of a kind of device behind what is reached; nothing where the steps do not suffice.
    fn extend(&mut self, kind: usize, before: &[Reached], row: &mut [Reached], steps: &mut Steps) -> Option<()> {
        let mut runs = 0u64;
        let nodes = self.costs.nodes();
        for (from, &(cost, ..)) in before.iter().enumerate() {
            if cost == NEVER {
                continue;
            }
            let mut counts = Counts::new(self.costs.instance, self.places[from]);
            for (to, reached) in row.iter_mut().enumerate().skip(from + 1) {
                runs += 1;
                let own = if self.vectors.is_empty() {
                    self.costs.keepers[kind].least(counts.up_to(self.places[to]))
                } else {
                    self.costs.of(kind, self.vectors[to] - self.vectors[from])
                };
                // What a device cannot run it cannot run with more beside it.
                if own == NEVER {
                    break;
                }
                if cost + own < reached.0 {
                    *reached = (cost + own, from, kind);
                }
            }
        }
        steps.take((runs + self.costs.nodes() - nodes) / RUNS_PER_STEP).then_some(())
    }
}

/// Units by class of a run that grows.
pub(crate) struct Counts<'a> {
    instance: &'a Instance<'a>,
    by_class: Vec<u32>,
    to: usize,
}

impl<'a> Counts<'a> {
    pub(crate) fn new(instance: &'a Instance<'a>, from: usize) -> Self {
        Self { instance, by_class: vec![0; instance.classes.len()], to: from }
    }

    pub(crate) fn up_to(&mut self, to: usize) -> &[u32] {
        for &class in &self.instance.class_of[self.to..to] {
            self.by_class[class as usize] += 1;
        }
        self.to = to;
        &self.by_class
    }
}
