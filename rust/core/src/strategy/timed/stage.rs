//! What a run on one kind of device takes: exactly, and at the least.

use std::collections::HashMap;

use crate::strategy::timed::classes::{Class, Classes};
use crate::strategy::timed::frontier::{Frontier, Weight};
use crate::strategy::timed::model::{Line, NEVER, PieceWay, Schedule};
use crate::strategy::timed::search::{Best, Search};
use crate::strategy::timed::sums::Sums;

/// Nodes for one run, at first and where it is worth more.
pub(crate) const NODES: [u64; 3] = [12, 100, 4_000];

/// Means of running and bringing in that are tried, beside either alone.
const MOST_MEANS: usize = 2;

/// What is known of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    /// The time of a way that was found; `NEVER` where there is none.
    pub(crate) ps: u64,
    /// No way takes less.
    pub(crate) least_ps: u64,
}

impl Cost {
    const NEVER: Self = Self { ps: NEVER, least_ps: NEVER };

    fn exactly(ps: u64) -> Self {
        Self { ps, least_ps: ps }
    }
}

/// Runs on one kind.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    line: &'a Line,
    kind: usize,
    pub(crate) sums: &'a Sums,
    /// Where something may leave the device.
    mix: Option<Mix>,
    /// Nodes of all searches.
    pub(crate) nodes: u64,
    /// Every cost asked for was found exactly, since there are so many nodes for one.
    pub(crate) is_exact: bool,
    most_nodes: u64,
    /// Bounds were rounded.
    pub(crate) is_rounded: bool,
}

/// The best that was found of a run, by searches of so many nodes.
#[derive(Debug, Clone)]
struct Known {
    cost: Cost,
    best: Best,
    most_nodes: u64,
}

/// What is needed where pieces may leave.
#[derive(Debug)]
struct Mix {
    classes: Classes,
    weights: Vec<Weight>,
    wide: Vec<Wide>,
    /// Sizes that room may be kept for, ascending, nothing first; and the frontiers below each, once they are asked for.
    sizes: Vec<u64>,
    below: Vec<Option<Vec<Frontier>>>,
    known: HashMap<Vec<(u32, u32)>, Known>,
}

/// A frontier whatever the room for staging, and what the first pieces take at their cheapest: room and scaled time.
#[derive(Debug)]
struct Wide {
    frontier: Frontier,
    sums: Vec<(u64, u64)>,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(line: &'a Line, kind: usize, sums: &'a Sums) -> Self {
        let mix = (!sums.is_plain).then(|| Mix::new(line, kind));
        Self { line, kind, sums, mix, nodes: 0, is_exact: true, most_nodes: NODES[0], is_rounded: false }
    }

    /// Work of a bound, in exchanges.
    pub(crate) fn width(&self) -> usize {
        let widths = self.mix.iter().flat_map(|mix| &mix.wide);
        1 + widths.map(|wide| wide.frontier.exchanges.len()).sum::<usize>()
    }

    /// Bounds of runs are the greatest of several, and their differences have no order.
    pub(crate) fn has_means(&self) -> bool {
        self.means() > 1
    }

    /// Means by which there are bounds.
    pub(crate) fn means(&self) -> usize {
        self.mix.as_ref().map_or(0, |mix| mix.wide.len())
    }

    /// From now on there are so many nodes for one run.
    pub(crate) fn allow(&mut self, most_nodes: u64) {
        (self.most_nodes, self.is_exact) = (most_nodes, true);
    }

    /// A bound from below, with pieces taken in parts; `NEVER` where there is no run.
    pub(crate) fn relaxed(&mut self, from: usize, to: usize) -> u64 {
        self.relaxed_by(from, to, 0..self.means())
    }

    /// The same by some of the means.
    pub(crate) fn relaxed_by(&mut self, from: usize, to: usize, means: std::ops::Range<usize>) -> u64 {
        if let Some(ps) = self.sums.resident(from, to) {
            return ps;
        }
        let Some(least) = self.sums.least(from, to) else { return NEVER };
        let Some(mix) = &self.mix else { return NEVER };
        let capacity = self.line.kinds[self.kind].capacity_bits.cast_signed();
        let mut bound = least;
        for wide in &mix.wide[means] {
            let (low, high) = (wide.sums[from], wide.sums[to]);
            let need = (high.0 - low.0).cast_signed() - capacity;
            let count = |class: usize| u64::from(mix.classes.count(class, from, to));
            let Some(scaled) = wide.frontier.relax(need, high.1 - low.1, count) else { return NEVER };
            bound = bound.max(wide.frontier.weight.whole(scaled));
        }
        self.is_rounded = true;
        bound
    }

    /// Least time of a run.
    pub(crate) fn cost(&mut self, from: usize, to: usize) -> Cost {
        if let Some(ps) = self.sums.resident(from, to) {
            return Cost::exactly(ps);
        }
        if self.sums.least(from, to).is_none() {
            return Cost::NEVER;
        }
        let Some(mix) = &mut self.mix else { return Cost::NEVER };
        let (known, nodes) = mix.known(self.line, self.kind, from, to, self.most_nodes);
        let cost = known.cost;
        self.nodes += nodes;
        self.is_exact &= cost.ps == cost.least_ps;
        cost
    }

    /// Whether a run takes no longer than a time; where not, the least time that any change of this answer needs.
    pub(crate) fn within(&mut self, from: usize, to: usize, most: u64) -> Result<(), u64> {
        if let Some(ps) = self.sums.resident(from, to) {
            return if ps <= most { Ok(()) } else { Err(ps) };
        }
        let bound = self.relaxed(from, to);
        if bound > most {
            return Err(bound);
        }
        let cost = self.cost(from, to);
        if cost.ps <= most { Ok(()) } else { Err(cost.ps) }
    }

    /// Where the pieces of a run lie and run; the first of each class stay.
    pub(crate) fn ways(&mut self, from: usize, to: usize) -> Vec<PieceWay> {
        let mut ways = vec![PieceWay::Resident; to - from];
        if self.sums.resident(from, to).is_some() {
            return ways;
        }
        let Some(mix) = &mut self.mix else { return ways };
        let classes = mix.classes.between(from, to);
        let (known, nodes) = mix.known(self.line, self.kind, from, to, self.most_nodes);
        self.nodes += nodes;
        let mut left: HashMap<usize, (u64, u64)> =
            classes.iter().zip(&known.best.away).map(|(&(class, _), &away)| (class as usize, away)).collect();
        for piece in (from..to).rev() {
            let Some((fetched, beside)) = left.get_mut(&mix.classes.of(piece)) else { continue };
            if *beside > 0 {
                *beside -= 1;
                ways[piece - from] = PieceWay::Beside;
            } else if *fetched > 0 {
                *fetched -= 1;
                ways[piece - from] = PieceWay::Fetched;
            }
        }
        ways
    }
}

impl Mix {
    fn new(line: &Line, kind: usize) -> Self {
        let classes = Classes::new(line, kind);
        let weights = weights(line, &classes);
        let wide: Vec<Wide> = weights.iter().map(|&weight| Wide::new(line, &classes, weight)).collect();
        let mut sizes: Vec<u64> = classes.all.iter().flat_map(Class::staged_bits).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let below = (0..=sizes.len()).map(|_| None).collect();
        Self { classes, weights, wide, sizes, below, known: HashMap::new() }
    }

    /// What is known of a run, and nodes that it took to know it.
    fn known(&mut self, line: &Line, kind: usize, from: usize, to: usize, most_nodes: u64) -> (&Known, u64) {
        let classes = self.classes.between(from, to);
        let before = self.known.get(&classes).cloned();
        let is_enough = |known: &Known| known.cost.ps == known.cost.least_ps || known.most_nodes >= most_nodes;
        if before.as_ref().is_some_and(is_enough) {
            return (&self.known[&classes], 0);
        }
        let best = before.as_ref().map_or_else(Best::default, |known| known.best.clone());
        let (mut cost, best, nodes) = self.search(line, kind, &classes, best, most_nodes);
        cost.least_ps = cost.least_ps.max(before.map_or(0, |known| known.cost.least_ps));
        (self.known.entry(classes).insert_entry(Known { cost, best, most_nodes }).into_mut(), nodes)
    }

    /// The best ways of so many pieces of each class, what is known of their time, and nodes of the search.
    fn search(
        &mut self,
        line: &Line,
        kind: usize,
        classes: &[(u32, u32)],
        mut best: Best,
        most_nodes: u64,
    ) -> (Cost, Best, u64) {
        let capacity = line.kinds[kind].capacity_bits;
        let staged = classes.iter().flat_map(|&(class, _)| self.classes.all[class as usize].staged_bits());
        let mut used: Vec<usize> =
            staged.filter_map(|bits| self.sizes.binary_search(&bits).ok().map(|size| size + 1)).chain([0]).collect();
        used.sort_unstable();
        used.dedup();
        let (mut nodes, mut is_whole) = (0, true);
        let mut least_ps = NEVER;
        for size in used {
            let kept = size.checked_sub(1).map_or(0, |size| self.sizes[size].saturating_mul(line.staging_blocks));
            let Some(room) = capacity.checked_sub(kept) else { break };
            let frontiers = self.below[size].get_or_insert_with(|| {
                let largest = size.checked_sub(1).map(|size| self.sizes[size]);
                let frontier = |&weight| Frontier::new(&self.classes.all, line.schedule, largest, weight);
                self.weights.iter().map(frontier).collect()
            });
            let Some(mut search) = Search::new(frontiers, classes, room, &mut best, most_nodes) else { continue };
            let Some(bound) = search.bound() else { continue };
            least_ps = least_ps.min(bound);
            search.run_from(bound);
            nodes += search.nodes;
            is_whole &= search.is_whole;
        }
        let ps = best.ps.unwrap_or(NEVER);
        (Cost { ps, least_ps: if is_whole { ps } else { least_ps.min(ps) } }, best, nodes)
    }
}

impl Wide {
    fn new(line: &Line, classes: &Classes, weight: Weight) -> Self {
        let frontier = Frontier::new(&classes.all, line.schedule, Some(u64::MAX), weight);
        let mut sums = Vec::with_capacity(line.pieces.len() + 1);
        let mut sum = (0, 0);
        sums.push(sum);
        for piece in 0..line.pieces.len() {
            let class = classes.of(piece);
            if let Some(first) = frontier.first[class] {
                let choice = &frontier.choices[class][first];
                sum.0 += choice.room_bits;
                sum.1 += weight.of(choice.run_ps, choice.fetch_ps);
            }
            sums.push(sum);
        }
        Self { frontier, sums }
    }
}

/// Running alone where one follows the other; else bringing in alone too, and the means at which the classes with most to fetch
/// cost the same brought in and run by the host.
fn weights(line: &Line, classes: &Classes) -> Vec<Weight> {
    if line.schedule == Schedule::Serial {
        return vec![Weight::RUN];
    }
    let mut weights = vec![Weight::RUN, Weight::FETCH];
    let mut fetches: Vec<(u64, u64, u64)> = Vec::new();
    for (number, class) in classes.all.iter().enumerate() {
        if let (Some((run, fetch)), Some(beside)) = (class.ways.fetch, class.ways.beside)
            && let Some(longer) = beside.checked_sub(run).filter(|&longer| longer > 0)
        {
            let all = fetch.saturating_mul(u64::from(classes.count(number, 0, line.pieces.len())));
            fetches.push((all, fetch, longer));
        }
    }
    fetches.sort_unstable_by(|one, other| other.cmp(one));
    let total = (0..line.pieces.len()).map(|piece| classes.all[classes.of(piece)].most_ps()).sum::<u64>();
    let shift = (total.leading_zeros() - 2).min(10); // what is scaled by it stays below 2^62
    weights.extend(fetches.iter().take(MOST_MEANS).map(|&(_, fetch, longer)| Weight::between(fetch, longer, shift)));
    weights.dedup();
    weights
}
