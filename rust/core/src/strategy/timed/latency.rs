//! The least sum of all runs and hops: a table over turns and borders, as far as bounds let anything be better.

use crate::strategy::timed::bounds::{Bounds, ENTRIES_PER_STEP, OutOfSteps, ToCome, pass};
use crate::strategy::timed::model::NEVER;
use crate::strategy::timed::orders::Orders;
use crate::strategy::timed::rows::Row;
use crate::strategy::timed::runs::{Runs, Span};
use crate::strategy::timed::stage::NODES;

/// What was found below a limit.
#[derive(Debug)]
pub(crate) struct Least {
    /// Sum and runs; `None` where nothing below the limit was found.
    pub(crate) found: Option<(u64, Vec<Span>)>,
    /// No plan is below both this and the limit.
    pub(crate) least_ps: u64,
}

/// The least sum below `limit` of runs none of which takes more than `most`.
pub(crate) fn least_sum(runs: &mut Runs, orders: &Orders, bounds: &mut Bounds, most: u64, limit: u64) -> Least {
    let Some((bound, spans)) = bounds.forward(runs, orders, most) else {
        return Least { found: None, least_ps: NEVER };
    };
    let bound = bound.saturating_sub(bounds.slack_ps);
    if bound >= limit {
        return Least { found: None, least_ps: bound };
    }
    let priced = runs.price(&spans).filter(|&(sum, longest)| longest <= most && sum < limit);
    let mut found = priced.map(|(sum, _)| (sum, spans));
    if found.as_ref().is_some_and(|&(sum, _)| sum == bound) {
        return Least { found, least_ps: bound };
    }
    let come = bounds.backward(runs, orders, most);
    let mut search = Search { orders, bounds, come: &come, most, limit, by_least: false };
    let mut least_ps = bound;
    // Quickly first: what is found narrows what is worth more.
    for most_nodes in NODES {
        runs.allow(most_nodes);
        search.by_least = false;
        search.limit = found.as_ref().map_or(limit, |&(sum, _)| sum);
        let Ok(better) = search.run(runs) else { break };
        found = better.or(found);
        search.limit = found.as_ref().map_or(limit, |&(sum, _)| sum);
        if runs.is_exact() {
            return Least { found, least_ps: search.limit };
        }
        search.by_least = true;
        match search.run(runs) {
            Ok(Some((least, _))) => least_ps = least.max(least_ps),
            Ok(None) => return Least { found, least_ps: search.limit },
            Err(OutOfSteps) => break,
        }
    }
    Least { found, least_ps }
}

struct Search<'a> {
    orders: &'a Orders,
    bounds: &'a Bounds,
    come: &'a ToCome,
    most: u64,
    limit: u64,
    /// Runs count with the least that they may take, not with ways that were found.
    by_least: bool,
}

impl Search<'_> {
    /// What is below the limit.
    fn run(&self, runs: &mut Runs) -> Result<Option<(u64, Vec<Span>)>, OutOfSteps> {
        pass(runs, self.orders, |runs, turn, start| self.row(runs, turn, start))
    }

    fn row(&self, runs: &mut Runs, turn: usize, start: &[u64]) -> Result<Row, OutOfSteps> {
        let borders = start.len();
        let kind = self.orders.turns[turn].kind;
        let (come, after) = (&self.come.from[turn], &self.come.after[turn]);
        let limit = (self.limit + self.bounds.slack_ps).min(NEVER);
        let mut row = Row::new(borders);
        for (from, &before) in
            start.iter().enumerate().filter(|&(from, &before)| before < NEVER && before + come[from] < limit)
        {
            let (mut seen, nodes) = (0, runs.stages[kind].nodes);
            for (to, &after) in after.iter().enumerate().skip(from + 1) {
                seen += 1;
                let bound = before + self.bounds.of(runs, kind, from, to, self.most);
                if bound >= limit {
                    break;
                }
                if bound + after >= limit || bound >= row.sums[to] {
                    continue;
                }
                let cost = runs.stages[kind].cost(from, to);
                if cost.least_ps > self.most {
                    break;
                }
                let ps = if self.by_least { cost.least_ps } else { cost.ps };
                if ps <= self.most && before + ps + after < limit {
                    row.offer(to, before + ps, from);
                }
            }
            if !runs.steps.take(runs.stages[kind].nodes - nodes + 1 + seen / ENTRIES_PER_STEP) {
                return Err(OutOfSteps);
            }
        }
        Ok(row)
    }
}
