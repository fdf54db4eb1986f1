//! From a line and a question to a plan.

use crate::strategy::timed::bounds::{Bounds, ENTRIES_PER_STEP};
use crate::strategy::timed::check::{LineFailure, check, check_question};
use crate::strategy::timed::latency::least_sum;
use crate::strategy::timed::model::{Line, NEVER, Objective, Question, TimedPlan};
use crate::strategy::timed::orders::Orders;
use crate::strategy::timed::pipeline::pipeline;
use crate::strategy::timed::runs::{Runs, Span};
use crate::strategy::timed::sums::Sums;
use crate::strategy::timed::throughput::throughput;
use crate::strategy::timed::ties::{Settled, Tie, check_ties, settled};

/// Tables worth so many steps are made whatever the limit.
const LEAST_STEPS: u64 = 10_000;

/// One of so many parts of the steps is for the order given, where any will do.
const GIVEN_PARTS: u64 = 4;

/// A line that can be read, with its sums: what does not depend on a question about it.
#[derive(Debug)]
pub struct SummedLine {
    /// Lines in which every tie has a home; where there are no ties, the line itself.
    settled: Vec<(Settled, Vec<Sums>)>,
    all_ps: u64,
    pieces: usize,
}

impl SummedLine {
    /// The line with its sums, some of whose pieces are tied.
    ///
    /// # Errors
    ///
    /// [`LineFailure`] if the line or the ties cannot be read.
    pub fn new(line: &Line, ties: &[Tie]) -> Result<Self, LineFailure> {
        check(line)?;
        check_ties(line, ties)?;
        let (mut settled_lines, mut all_ps) = (Vec::new(), 0);
        for settled in settled(line, ties) {
            all_ps = all_ps.max(check(&settled.line)?);
            let sums = Sums::all(&settled.line);
            settled_lines.push((settled, sums));
        }
        Ok(Self { settled: settled_lines, all_ps, pieces: line.pieces.len() })
    }

    /// The same line in which no run ends at some borders: before the first and after the last piece one may in any case.
    #[must_use]
    pub fn with_closed(mut self, borders: &[usize]) -> Self {
        for &border in borders.iter().filter(|border| (1..self.pieces).contains(border)) {
            for (settled, _) in &mut self.settled {
                settled.closed[border] = true;
            }
        }
        self
    }

    /// Pieces.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// The best plan in which each device has at most one run.
    ///
    /// # Errors
    ///
    /// [`LineFailure`] if the question cannot be read, or if there is no plan.
    pub fn solve(&self, question: &Question) -> Result<TimedPlan, LineFailure> {
        check_question(question, self.all_ps)?;
        let share = Question { search_steps: question.search_steps / self.settled.len().max(1) as u64, ..*question };
        let (mut best, mut least_ps, mut steps, mut is_proven) = (None::<TimedPlan>, NEVER, 0, true);
        for (settled, sums) in &self.settled {
            match plan(settled, sums, &share) {
                Ok(plan) => {
                    least_ps = least_ps.min(plan.lower_bound_ps);
                    steps += plan.steps;
                    if best.as_ref().is_none_or(|best| plan.value_ps < best.value_ps) {
                        best = Some(settled.named(plan));
                    }
                }
                Err(LineFailure::Infeasible { is_proven: no_other }) => is_proven &= no_other,
                Err(error) => return Err(error),
            }
        }
        let Some(best) = best else { return Err(LineFailure::Infeasible { is_proven }) };
        // Where none was found in a line, nothing is known of it either.
        let lower_bound_ps = if is_proven { least_ps } else { 0 };
        Ok(TimedPlan { lower_bound_ps, steps, ..best })
    }
}

fn plan(settled: &Settled, sums: &[Sums], question: &Question) -> Result<TimedPlan, LineFailure> {
    let line = &settled.line;
    let mut runs = Runs::new(line, &settled.closed, sums, question.search_steps);
    // Tables over sets of devices that the steps do not cover are not begun.
    let is_covered = |orders: &Orders| {
        let tables = if question.objective == Objective::Throughput { 0 } else { orders.work(line.pieces.len()) };
        tables / ENTRIES_PER_STEP <= question.search_steps.max(LEAST_STEPS)
    };
    let any = if question.any_order { Orders::any(line).filter(is_covered) } else { None };
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
    // The order given is one of any, and has far fewer plans: the best of these is the limit for the others.
    let first = if orders.is_given { None } else { of_order_given(runs) };
    let limit = first.as_ref().map_or(NEVER, |&(sum, _)| sum);
    let mut bounds = Bounds::new(runs, orders, false);
    let least = least_sum(runs, orders, &mut bounds, NEVER - 1, limit);
    match least.found.or(first) {
        Some((_, spans)) => Some((spans, least.least_ps)),
        // Rounded up to whole pieces the relaxed plan may lack room, and the steps run out before there is another.
        None if least.least_ps < NEVER => throughput(runs, orders).map(|longest| (longest.spans, least.least_ps)),
        None => None,
    }
}

/// The least sum in the order given, by a part of the steps.
fn of_order_given(runs: &mut Runs) -> Option<(u64, Vec<Span>)> {
    let part = runs.steps.share(runs.steps.left() / GIVEN_PARTS);
    let rest = std::mem::replace(&mut runs.steps, part);
    let orders = Orders::given(runs.line);
    let mut bounds = Bounds::new(runs, &orders, true);
    let least = least_sum(runs, &orders, &mut bounds, NEVER - 1, NEVER);
    let part = std::mem::replace(&mut runs.steps, rest);
    runs.steps.join(part);
    least.found
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
