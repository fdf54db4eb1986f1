//! What each device runs, whatever the order: the fewest bits offloaded, exact where the table is small enough.
//!
//! Devices are added one at a time. For each vector of counts that the devices so far run there is one number, the fewest bits
//! that they offload; the next device runs any part of the rest.

use crate::strategy::auto::streaming::costs::{Costs, Vectors};
use crate::strategy::auto::streaming::keep::NEVER;
use crate::strategy::steps::Steps;

/// Pairs of a vector and an addition to it that are worth one step.
const PAIRS_PER_STEP: u64 = 8;

/// The answer of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The vector that each bin runs, and the bits offloaded: no plan offloads less.
    Least(Vec<usize>, u64),
    /// No plan offloads less than the limit given.
    NothingBelow,
    /// The table was too large, or the steps did not suffice.
    Unknown,
}

/// The fewest bits offloaded, if below a limit.
pub(crate) fn search(costs: &mut Costs, capacities: &[u64], limit: u64, steps: &mut Steps) -> Answer {
    let Some(vectors) = costs.vectors.take() else { return Answer::Unknown };
    let mut part = steps.share(steps.left());
    let mut table = Table {
        pairs_left: part.left().saturating_mul(PAIRS_PER_STEP),
        behind: Behind::new(costs, &vectors, capacities),
    };
    let (nodes, pairs) = (costs.nodes(), table.pairs_left);
    costs.vectors = Some(vectors);
    let answer = table.run(costs, limit);
    part.take((pairs - table.pairs_left + costs.nodes() - nodes).div_ceil(PAIRS_PER_STEP));
    steps.join(part);
    if costs.is_exact() { answer.unwrap_or(Answer::Unknown) } else { Answer::Unknown }
}

/// A bound on what is offloaded of the rest.
struct Behind {
    /// By bin: joint room of it and those behind it.
    rooms: Vec<u64>,
    /// By vector: weight of the rest with its caches. What stays where it runs is not in it twice: of what is offloaded, no more
    /// than its bits is taken off.
    weights: Vec<u64>,
}

impl Behind {
    fn new(costs: &Costs, vectors: &Vectors, capacities: &[u64]) -> Self {
        let mut rooms = vec![0u64; capacities.len() + 1];
        for (bin, &capacity) in capacities.iter().enumerate().rev() {
            let own = capacity.saturating_sub(costs.instance.bins[bin].shared);
            rooms[bin] = rooms[bin + 1].saturating_add(own);
        }
        let weight = |vector: usize| -> u64 {
            let classes = vectors.classes.iter().enumerate();
            let own = classes.map(|(dimension, &class)| {
                let class = &costs.instance.classes[class];
                let count = u64::from(class.count()) - vectors.digit(vector, dimension) as u64;
                (class.bits + class.least_exec()) * count
            });
            own.sum()
        };
        Self { rooms, weights: (0..vectors.len).map(weight).collect() }
    }
}

struct Table {
    pairs_left: u64,
    behind: Behind,
}

/// Fewest bits, and the vector before this bin.
type Entry = (u64, u32);

impl Table {
    /// Nothing where the steps do not suffice.
    fn run(&mut self, costs: &mut Costs, limit: u64) -> Option<Answer> {
        let len = self.behind.weights.len();
        let mut layers: Vec<Vec<Entry>> = Vec::new();
        let mut layer = vec![(NEVER, 0); len];
        layer[0].0 = 0;
        for bin in 0..costs.kind_of.len() {
            let kind = costs.kind_of[bin];
            let mut next = vec![(NEVER, 0); len];
            for (vector, &(cost, _)) in layer.iter().enumerate() {
                // What is offloaded of the rest is at least what has no room behind.
                let least = self.behind.weights[vector].saturating_sub(self.behind.rooms[bin]);
                if cost == NEVER || cost.saturating_add(least) >= limit {
                    continue;
                }
                if bin + 1 == costs.kind_of.len() {
                    self.finish(costs, kind, (vector, cost), &mut next)?;
                } else {
                    self.add(costs, kind, (vector, cost), &mut next)?;
                }
            }
            layers.push(std::mem::replace(&mut layer, next));
        }
        let (least, _) = layer[len - 1];
        if least >= limit {
            return Some(Answer::NothingBelow);
        }
        layers.push(layer);
        let mut at = len - 1;
        let mut runs = Vec::with_capacity(layers.len() - 1);
        for layer in layers.iter().skip(1).rev() {
            let before = layer[at].1 as usize;
            runs.push(at - before);
            at = before;
        }
        runs.reverse();
        Some(Answer::Least(runs, least))
    }

    /// All of the rest on the last device.
    fn finish(
        &mut self,
        costs: &mut Costs,
        kind: usize,
        (vector, cost): (usize, u64),
        next: &mut [Entry],
    ) -> Option<()> {
        let last = next.len() - 1;
        let work = costs.nodes();
        let offloaded = costs.of(kind, last - vector);
        self.pairs_left = self.pairs_left.checked_sub(1 + costs.nodes() - work)?;
        if offloaded != NEVER && cost + offloaded < next[last].0 {
            next[last] = (cost + offloaded, crate::ids::id_at(vector));
        }
        Some(())
    }

    /// Every part of the rest on one more device.
    fn add(&mut self, costs: &mut Costs, kind: usize, (vector, cost): (usize, u64), next: &mut [Entry]) -> Option<()> {
        let Some(vectors) = &costs.vectors else { return None };
        let rest: Vec<(usize, usize)> = (0..vectors.strides.len())
            .map(|dimension| {
                (vectors.strides[dimension], vectors.counts[dimension] as usize - vectors.digit(vector, dimension))
            })
            .filter(|&(_, left)| left > 0)
            .collect();
        let mut digits = vec![0usize; rest.len()];
        let mut own = 0usize;
        loop {
            let offloaded = if let Some(known) = costs.known(kind, own) {
                known
            } else {
                let work = costs.nodes();
                let found = costs.of(kind, own);
                self.pairs_left = self.pairs_left.checked_sub(costs.nodes() - work)?;
                found
            };
            self.pairs_left = self.pairs_left.checked_sub(1)?;
            let is_possible = offloaded != NEVER;
            if is_possible && cost + offloaded < next[vector + own].0 {
                next[vector + own] = (cost + offloaded, crate::ids::id_at(vector));
            }
            // The next number; where a device cannot run a vector it cannot run one with more in it, so that digit is full.
            let mut at = 0;
            let mut is_full = !is_possible;
            loop {
                let Some(&(stride, left)) = rest.get(at) else { return Some(()) };
                if !is_full && digits[at] < left {
                    digits[at] += 1;
                    own += stride;
                    break;
                }
                // Only the lowest digit that is not 0 was counted up to what is impossible.
                is_full = is_full && digits[at] == 0;
                own -= digits[at] * stride;
                digits[at] = 0;
                at += 1;
            }
        }
    }
}
