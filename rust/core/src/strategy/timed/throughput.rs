//! The least time of the longest run: halving over times, and for each the longest runs that keep within it.
//!
//! A longer run never takes less, so in a given order the furthest border that each device can reach is best for those after it.
//! For any order the same is asked of every set of devices. A time that does not do is followed by the least one at which some
//! device reaches further.

use crate::strategy::timed::model::NEVER;
use crate::strategy::timed::orders::Orders;
use crate::strategy::timed::runs::{Runs, Span};
use crate::strategy::timed::stage::NODES;

/// The plan that was found, with its longest run, and a bound from below on that of every plan.
#[derive(Debug)]
pub(crate) struct Longest {
    pub(crate) spans: Vec<Span>,
    pub(crate) ps: u64,
    pub(crate) least_ps: u64,
}

/// Times of which runs are held against the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// Those of ways that were found.
    Found,
    /// The least that they may be.
    Least,
}

/// The plan whose longest run is the shortest; `None` where there is none.
pub(crate) fn throughput(runs: &mut Runs, orders: &Orders) -> Option<Longest> {
    runs.allow(NODES[0]);
    let spans = within(runs, orders, NEVER - 1, By::Found).ok()?;
    let mut best = Longest { ps: longest(runs, &spans), spans, least_ps: 0 };
    // Quickly first: what is found narrows what is worth more.
    for most_nodes in NODES {
        runs.allow(most_nodes);
        let Some(low) = halve(runs, orders, best.least_ps, &mut best, By::Found) else { break };
        if runs.is_exact() {
            best.least_ps = low;
            break;
        }
        let mut least = Longest { spans: Vec::new(), ..best };
        let found = halve(runs, orders, best.least_ps, &mut least, By::Least);
        best.least_ps = found.unwrap_or(best.least_ps);
        if found.is_none() || best.least_ps >= best.ps {
            break;
        }
    }
    Some(best)
}

/// The least time that does, from `low` on, with the best plan's above it; `None` if the steps have run out.
fn halve(runs: &mut Runs, orders: &Orders, mut low: u64, best: &mut Longest, by: By) -> Option<u64> {
    while low < best.ps {
        let nodes = runs.nodes();
        let middle = low + (best.ps - low) / 2;
        match within(runs, orders, middle, by) {
            Ok(spans) if by == By::Found => {
                best.ps = longest(runs, &spans).min(best.ps);
                best.spans = spans;
            }
            Ok(_) => best.ps = middle,
            Err(next) => low = next.clamp(middle + 1, best.ps),
        }
        if !runs.steps.take(runs.nodes() - nodes + orders.turns.len() as u64) {
            return None;
        }
    }
    Some(low)
}

fn longest(runs: &mut Runs, spans: &[Span]) -> u64 {
    runs.price(spans).map_or(NEVER, |(_, longest)| longest)
}

/// Runs that all keep within a time, or the least time at which one of them would reach further.
fn within(runs: &mut Runs, orders: &Orders, most: u64, by: By) -> Result<Vec<Span>, u64> {
    const NONE: usize = usize::MAX;
    let pieces = runs.len();
    if pieces == 0 {
        return Ok(Vec::new());
    }
    // By state: the furthest border, and the turn that reaches it.
    let mut furthest: Vec<Option<(usize, usize)>> = vec![None; orders.states];
    furthest[0] = Some((0, NONE));
    let mut next = NEVER;
    for (number, turn) in orders.turns.iter().enumerate() {
        let Some((from, last)) = furthest[turn.before] else { continue };
        let (to, more) = reach(runs, turn.kind, from, most, by);
        next = next.min(more);
        if orders.is_given && to == from {
            furthest[turn.after] = Some((from, last));
        } else if furthest[turn.after].is_none_or(|(border, _)| to > border) {
            furthest[turn.after] = Some((to, number));
        }
        if to == pieces {
            return Ok(read(orders, &furthest, number, pieces));
        }
    }
    Err(next)
}

/// The runs that lead to a turn.
fn read(orders: &Orders, furthest: &[Option<(usize, usize)>], last: usize, pieces: usize) -> Vec<Span> {
    let (mut turns, mut borders, mut turn) = (Vec::new(), Vec::new(), last);
    let mut to = pieces;
    while let Some(&found) = orders.turns.get(turn) {
        let Some((from, before)) = furthest[found.before] else { break };
        if to > from {
            turns.push(turn);
            borders.push((from, to));
        }
        (turn, to) = (before, from);
    }
    turns.reverse();
    let devices = orders.devices_of(&turns);
    devices.into_iter().zip(borders.into_iter().rev()).map(|(device, (from, to))| (device, from, to)).collect()
}

/// The furthest border within a time, and the least time at which it is further.
fn reach(runs: &mut Runs, kind: usize, from: usize, most: u64, by: By) -> (usize, u64) {
    let pieces = runs.len();
    let stage = &mut runs.stages[kind];
    let mut keeps = |to: usize| match by {
        By::Found => stage.within(from, to, most),
        By::Least => Some(stage.cost(from, to).least_ps).filter(|&ps| ps > most).map_or(Ok(()), Err),
    };
    // INVARIANT: `low` keeps within the time, and `high` does not, which takes `more`, or is beyond the end.
    let (mut low, mut step, mut more) = (from, 1, NEVER);
    let mut high = loop {
        if low + step > pieces {
            break pieces + 1;
        }
        match keeps(low + step) {
            Ok(()) => low += step,
            Err(ps) => {
                more = ps;
                break low + step;
            }
        }
        step *= 2;
    };
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        match keeps(middle) {
            Ok(()) => low = middle,
            Err(ps) => (high, more) = (middle, ps),
        }
    }
    while low > from && runs.is_closed(kind, low) {
        low -= 1;
    }
    (low, more)
}
