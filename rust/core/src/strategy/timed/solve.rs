//! From a line and a question to a plan.

use crate::strategy::timed::bounds::Bounds;
use crate::strategy::timed::check::{LineFailure, check};
use crate::strategy::timed::latency::least_sum;
use crate::strategy::timed::model::{Line, NEVER, Objective, Question, TimedPlan};
use crate::strategy::timed::orders::Orders;
use crate::strategy::timed::pipeline::pipeline;
use crate::strategy::timed::runs::{Runs, Span};
use crate::strategy::timed::throughput::throughput;

/// The best plan in which each device has at most one run.
///
/// # Errors
///
/// [`LineFailure`] if the line cannot be read, or if there is no plan.
pub fn solve(line: &Line, question: &Question) -> Result<TimedPlan, LineFailure> {
    check(line, question)?;
    let mut runs = Runs::new(line, question.search_steps);
    let any = if question.any_order { Orders::any(line) } else { None };
    let is_all = !question.any_order || any.is_some();
    let orders = any.unwrap_or_else(|| Orders::given(line));
    let found = match question.objective {
        Objective::Throughput => throughput(&mut runs, &orders).map(|longest| (longest.spans, longest.least_ps)),
        Objective::Latency => latency(&mut runs, &orders),
        Objective::Pipeline { batches } => pipeline(&mut runs, &orders, batches),
    };
    let (spans, least_ps) = found.ok_or(LineFailure::Infeasible { is_proven: is_all })?;
    let least_ps = if is_all { least_ps } else { least_of_any_order(&runs, question.objective) };
    Ok(runs.plan(&spans, question.objective, least_ps))
}

fn latency(runs: &mut Runs, orders: &Orders) -> Option<(Vec<Span>, u64)> {
    let mut bounds = Bounds::new(runs, orders, false);
    let least = least_sum(runs, orders, &mut bounds, NEVER - 1, NEVER);
    match least.found {
        Some((_, spans)) => Some((spans, least.least_ps)),
        // Rounded up to whole pieces the relaxed plan may lack room, and the steps run out before there is another.
        None if least.least_ps < NEVER => throughput(runs, orders).map(|longest| (longest.spans, least.least_ps)),
        None => None,
    }
}

/// A bound that holds for every order: each piece at its best, on any device.
fn least_of_any_order(runs: &Runs, objective: Objective) -> u64 {
    let least = |piece: usize| {
        let of_kinds = runs.line.devices.iter().filter_map(|&kind| runs.stages[kind].sums.least(piece, piece + 1));
        of_kinds.min().unwrap_or(0)
    };
    let (sum, longest) =
        (0..runs.len()).map(least).fold((0, 0), |(sum, longest): (u64, u64), ps| (sum + ps, longest.max(ps)));
    let devices = runs.line.devices.len().max(1) as u64;
    objective.value(sum, longest.max(sum.div_ceil(devices)))
}
