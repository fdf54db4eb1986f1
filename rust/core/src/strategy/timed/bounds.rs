//! Bounds on what runs can come to before and after each border, with pieces taken in parts.

use crate::ids::id_at;
use crate::strategy::timed::model::NEVER;
use crate::strategy::timed::orders::Orders;
use crate::strategy::timed::rows::{Row, by_halving, by_table, by_window};
use crate::strategy::timed::runs::{Runs, Span};
use crate::strategy::timed::stage::Stage;

/// Bounds that a table may hold where one bound does for a run, and where the greatest of several is taken.
const MOST_TABLE: usize = 1 << 16;
const MOST_TABLE_OF_MEANS: usize = 1 << 19;

/// Work of halving, in exchanges, beyond which bounds are the plain sums.
const MOST_WORK: usize = 1 << 31;

/// Entries that are worth one step.
pub(crate) const ENTRIES_PER_STEP: u64 = 16;

/// Stands for no turn.
const NONE: u32 = u32::MAX;

/// How bounds of runs are had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// All of them, kept.
    Table,
    /// By their sums.
    Window,
    /// By halving, with one of the means.
    Halving(usize),
    /// By halving, with the sums of the least times.
    Sums,
}

/// By kind, how bounds are had for this line.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) methods: Vec<Method>,
    /// By how much a bound may be too high: where bounds are rounded, halving may pass over the best start by less than one each time.
    pub(crate) slack_ps: u64,
}

/// What is to come: by turn and border, from the beginning of its run and from its end.
#[derive(Debug)]
pub(crate) struct ToCome {
    pub(crate) from: Vec<Vec<u64>>,
    pub(crate) after: Vec<Vec<u64>>,
}

impl Bounds {
    pub(crate) fn new(runs: &mut Runs, orders: &Orders, is_repeated: bool) -> Self {
        let borders = runs.len() + 1;
        let used: Vec<bool> =
            (0..runs.stages.len()).map(|kind| orders.turns.iter().any(|turn| turn.kind == kind)).collect();
        let tables = used.iter().filter(|&&is_used| is_used).count() * borders * borders;
        let has_means = runs.stages.iter().any(Stage::has_means);
        let most = if has_means || is_repeated || !orders.is_given { MOST_TABLE_OF_MEANS } else { MOST_TABLE };
        let halvings = borders * (borders.ilog2() as usize + 1) * orders.turns.len();
        let methods = (0..runs.stages.len()).map(|kind| {
            if !used[kind] {
                Method::Sums
            } else if runs.stages[kind].sums.is_plain && tables > MOST_TABLE {
                Method::Window
            } else if tables <= most {
                Method::Table
            } else if halvings.saturating_mul(runs.stages[kind].width()) > MOST_WORK {
                Method::Sums
            } else {
                Method::Halving(best_mean(runs, kind))
            }
        });
        let methods: Vec<Method> = methods.collect();
        let bounds = Self { methods, slack_ps: 0 };
        for kind in (0..used.len()).filter(|&kind| used[kind]) {
            if bounds.methods[kind] == Method::Table && runs.table[kind].is_empty() {
                runs.table[kind] = table(runs, kind);
            }
        }
        bounds
    }

    /// A bound on one run, `NEVER` where it takes more than it may.
    pub(crate) fn of(&self, runs: &mut Runs, kind: usize, from: usize, to: usize, most: u64) -> u64 {
        let ps = match self.methods[kind] {
            Method::Table => runs.table[kind][from * (runs.line.pieces.len() + 1) + to],
            Method::Window | Method::Halving(_) => runs.stages[kind].relaxed(from, to),
            Method::Sums => runs.stages[kind].sums.least(from, to).unwrap_or(NEVER),
        };
        if ps > most { NEVER } else { ps }
    }

    fn row(&self, runs: &mut Runs, kind: usize, start: &[u64], most: u64, is_backward: bool) -> Row {
        let pieces = runs.line.pieces.len();
        let span = |from: usize, to: usize| if is_backward { (pieces - to, pieces - from) } else { (from, to) };
        let capped = |ps: u64| if ps > most { NEVER } else { ps };
        match self.methods[kind] {
            Method::Table => {
                let table = &runs.table[kind];
                by_table(start, |from, to| {
                    let (from, to) = span(from, to);
                    capped(table[from * (pieces + 1) + to])
                })
            }
            Method::Window => {
                let sums = runs.stages[kind].sums;
                let run_ps = |border: usize| {
                    if is_backward { sums.run_ps(pieces) - sums.run_ps(pieces - border) } else { sums.run_ps(border) }
                };
                let fits = |from: usize, to: usize| {
                    let (from, to) = span(from, to);
                    sums.resident(from, to).is_some_and(|ps| ps <= most)
                };
                by_window(start, run_ps, fits)
            }
            Method::Halving(mean) => {
                let stage = &mut runs.stages[kind];
                by_halving(start, |from, to| {
                    let (from, to) = span(from, to);
                    capped(stage.relaxed_by(from, to, mean..mean + 1))
                })
            }
            Method::Sums => {
                let sums = runs.stages[kind].sums;
                by_halving(start, |from, to| {
                    let (from, to) = span(from, to);
                    capped(sums.least(from, to).unwrap_or(NEVER))
                })
            }
        }
    }

    /// The least sum of all, and its runs.
    pub(crate) fn forward(&mut self, runs: &mut Runs, orders: &Orders, most: u64) -> Option<(u64, Vec<Span>)> {
        let found =
            pass(runs, orders, |runs, turn, start| Ok(self.row(runs, orders.turns[turn].kind, start, most, false)));
        let is_halved = self.methods.iter().any(|method| matches!(method, Method::Halving(_)));
        if is_halved && runs.stages.iter().any(|stage| stage.is_rounded) {
            let borders = runs.len() + 1;
            self.slack_ps = orders.states as u64 * u64::from(borders.ilog2() + 2);
        }
        found.ok().flatten()
    }

    /// What is to come, by turn.
    pub(crate) fn backward(&self, runs: &mut Runs, orders: &Orders, most: u64) -> ToCome {
        let (borders, kinds) = (runs.len() + 1, runs.stages.len());
        let mut rows: Vec<Vec<Option<Vec<u64>>>> = vec![vec![None; kinds]; orders.states];
        let mut come =
            ToCome { from: vec![Vec::new(); orders.turns.len()], after: vec![Vec::new(); orders.turns.len()] };
        for (number, turn) in orders.turns.iter().enumerate().rev() {
            let mut after = vec![NEVER; borders];
            for (kind, row) in rows[turn.after].iter().enumerate() {
                let Some(row) = row else { continue };
                for (border, (after, &sum)) in after.iter_mut().zip(row).enumerate() {
                    if sum < *after {
                        *after = (*after).min(sum + runs.line.passing_ps(border, turn.kind, kind));
                    }
                }
            }
            after[borders - 1] = 0;
            close(runs, turn.kind, &mut after);
            let mut start: Vec<u64> = after.iter().rev().copied().collect();
            start[borders - 1] = NEVER;
            let mut from = self.row(runs, turn.kind, &start, most, true).sums;
            from.reverse();
            if orders.is_given {
                rows[turn.before] = std::mem::take(&mut rows[turn.after]);
            }
            match &mut rows[turn.before][turn.kind] {
                Some(row) => row.iter_mut().zip(&from).for_each(|(sum, &other)| *sum = (*sum).min(other)),
                row => *row = Some(from.clone()),
            }
            come.from[number] = from;
            come.after[number] = after;
        }
        come
    }
}

/// Of the means, the one with the greatest bounds on runs of usual lengths.
fn best_mean(runs: &mut Runs, kind: usize) -> usize {
    let pieces = runs.len();
    let length = pieces.div_ceil(runs.line.devices.len().max(1)).max(1);
    let means = runs.stages[kind].means();
    let mut bound = |mean: usize| {
        let spans = (0..pieces).step_by(length).map(|from| (from, (from + 2 * length).min(pieces)));
        spans
            .map(|(from, to)| runs.stages[kind].relaxed_by(from, to, mean..mean + 1).min(NEVER))
            .fold(0, u64::saturating_add)
    };
    (0..means).rev().max_by_key(|&mean| bound(mean)).unwrap_or(0)
}

fn table(runs: &mut Runs, kind: usize) -> Vec<u64> {
    let borders = runs.len() + 1;
    let mut table = vec![NEVER; borders * borders];
    for from in 0..borders {
        for to in from + 1..borders {
            let ps = runs.stages[kind].relaxed(from, to);
            if ps >= NEVER {
                break;
            }
            table[from * borders + to] = ps;
        }
    }
    runs.steps.take((table.len() / 2) as u64 / ENTRIES_PER_STEP);
    table
}

/// Sums and turns by border.
type Ends = Vec<(u64, u32)>;

/// The steps have run out.
pub(crate) struct OutOfSteps;

/// One pass over all turns: `row` says what a turn's run makes of what may precede it. The least sum of all with its runs, where
/// there is a plan.
pub(crate) fn pass(
    runs: &mut Runs,
    orders: &Orders,
    mut row: impl FnMut(&mut Runs, usize, &[u64]) -> Result<Row, OutOfSteps>,
) -> Result<Option<(u64, Vec<Span>)>, OutOfSteps> {
    let borders = runs.len() + 1;
    let mut rows: Vec<Vec<Option<Ends>>> = vec![vec![None; runs.stages.len()]; orders.states];
    let (mut begins, mut befores) = (Vec::with_capacity(orders.turns.len()), Vec::with_capacity(orders.turns.len()));
    let (mut best, mut last) = (NEVER, None);
    for (number, turn) in orders.turns.iter().enumerate() {
        let (start, before) = starts(runs, &rows[turn.before], turn.kind, orders.is_given || turn.before == 0);
        let mut found = row(runs, number, &start)?;
        close(runs, turn.kind, &mut found.sums);
        if found.sums[borders - 1] < best {
            (best, last) = (found.sums[borders - 1], Some(number));
        }
        if orders.is_given {
            rows[turn.after] = std::mem::take(&mut rows[turn.before]);
        }
        let ends = rows[turn.after][turn.kind].get_or_insert_with(|| vec![(NEVER, NONE); borders]);
        for (end, &sum) in ends.iter_mut().zip(&found.sums) {
            if sum < end.0 {
                *end = (sum, id_at(number));
            }
        }
        begins.push(found.from);
        befores.push(before);
    }
    if runs.len() == 0 {
        return Ok(Some((0, Vec::new())));
    }
    let Some(mut turn) = last else { return Ok(None) };
    let (mut turns, mut spans, mut to) = (Vec::new(), Vec::new(), borders - 1);
    loop {
        let from = begins[turn][to] as usize;
        turns.push(turn);
        spans.push((from, to));
        let before = befores[turn][from];
        if before == NONE {
            break;
        }
        (turn, to) = (before as usize, from);
    }
    turns.reverse();
    let devices = orders.devices_of(&turns).into_iter();
    Ok(Some((best, devices.zip(spans.into_iter().rev()).map(|(device, (from, to))| (device, from, to)).collect())))
}

/// No run of a kind ends at a closed border.
fn close(runs: &Runs, kind: usize, sums: &mut [u64]) {
    for (border, sum) in sums.iter_mut().enumerate() {
        if runs.is_closed(kind, border) {
            *sum = NEVER;
        }
    }
}

/// What may precede a run of a kind, by its first border, and the turn that does.
fn starts(runs: &Runs, rows: &[Option<Ends>], kind: usize, may_be_first: bool) -> (Vec<u64>, Vec<u32>) {
    let borders = runs.len() + 1;
    let (mut start, mut before) = (vec![NEVER; borders], vec![NONE; borders]);
    for (other, ends) in rows.iter().enumerate() {
        for (from, &(sum, turn)) in ends.iter().flatten().enumerate() {
            if sum < start[from] {
                let sum = sum + runs.line.passing_ps(from, other, kind);
                if sum < start[from] {
                    (start[from], before[from]) = (sum, turn);
                }
            }
        }
    }
    start[0] = if may_be_first { 0 } else { NEVER };
    before[0] = NONE;
    start[borders - 1] = NEVER;
    (start, before)
}
