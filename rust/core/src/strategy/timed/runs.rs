//! Plans as runs of devices, and what they take.

use crate::strategy::steps::Steps;
use crate::strategy::timed::model::{Line, NEVER, Objective, PieceWay, Schedule, TimedPlan, TimedRun};
use crate::strategy::timed::stage::Stage;
use crate::strategy::timed::sums::Sums;

/// Device, first piece, and one past the last.
pub(crate) type Span = (usize, usize, usize);

/// A line with what is known of its runs.
#[derive(Debug)]
pub(crate) struct Runs<'a> {
    pub(crate) line: &'a Line,
    /// Borders at which no run may end.
    pub(crate) closed: &'a [bool],
    /// By kind.
    pub(crate) stages: Vec<Stage<'a>>,
    pub(crate) steps: Steps,
    /// By kind: bounds of all runs, once they are needed; first borders by rows.
    pub(crate) table: Vec<Vec<u64>>,
}

impl<'a> Runs<'a> {
    pub(crate) fn new(line: &'a Line, closed: &'a [bool], sums: &'a [Sums], search_steps: u64) -> Self {
        let stages = sums.iter().enumerate().map(|(kind, sums)| Stage::new(line, kind, sums)).collect();
        Self { line, closed, stages, steps: Steps::new(search_steps), table: vec![Vec::new(); line.kinds.len()] }
    }

    /// From now on there are so many nodes for the best ways of one run.
    pub(crate) fn allow(&mut self, most_nodes: u64) {
        self.stages.iter_mut().for_each(|stage| stage.allow(most_nodes));
    }

    /// Every run asked for since then was found exactly.
    pub(crate) fn is_exact(&self) -> bool {
        self.stages.iter().all(|stage| stage.is_exact)
    }

    /// Nodes of all searches.
    pub(crate) fn nodes(&self) -> u64 {
        self.stages.iter().map(|stage| stage.nodes).sum()
    }

    /// No run on a kind may end at a border.
    pub(crate) fn is_closed(&self, kind: usize, border: usize) -> bool {
        let is_cut = || self.line.passing.get(border).is_some_and(|passing| passing.back > 0);
        self.closed[border] || self.line.kinds[kind].is_host && is_cut()
    }

    /// Pieces.
    pub(crate) fn len(&self) -> usize {
        self.line.pieces.len()
    }

    /// The sum and the longest of some runs; `None` where one of them has no room.
    pub(crate) fn price(&mut self, spans: &[Span]) -> Option<(u64, u64)> {
        let (mut latency, mut longest, mut before) = (0, 0, None);
        for &(device, from, to) in spans {
            let kind = self.line.devices[device];
            let ps = self.stages[kind].cost(from, to).ps;
            if ps >= NEVER {
                return None;
            }
            latency += ps + before.map_or(0, |before: usize| self.line.passing_ps(from, before, kind));
            longest = longest.max(ps);
            before = Some(kind);
        }
        Some((latency, longest))
    }

    /// The plan in full; its numbers come from where its pieces are, not from the search.
    pub(crate) fn plan(&mut self, spans: &[Span], objective: Objective, lower_bound_ps: u64) -> TimedPlan {
        let (mut latency_ps, mut bottleneck_ps, mut before) = (0, 0, None);
        let mut runs = Vec::with_capacity(spans.len());
        for &(device, from, to) in spans {
            let kind = self.line.devices[device];
            let ways = self.stages[kind].ways(from, to);
            let ps = run_ps(self.line, kind, from, &ways);
            latency_ps += ps + before.map_or(0, |before: usize| self.line.passing_ps(from, before, kind));
            bottleneck_ps = bottleneck_ps.max(ps);
            before = Some(kind);
            runs.push(TimedRun { device, from, to, ps, ways });
        }
        let value_ps = objective.value(latency_ps, bottleneck_ps);
        let steps = self.steps.taken();
        TimedPlan { runs, latency_ps, bottleneck_ps, value_ps, lower_bound_ps: lower_bound_ps.min(value_ps), steps }
    }
}

/// Time of a run by where its pieces are.
fn run_ps(line: &Line, kind: usize, from: usize, ways: &[PieceWay]) -> u64 {
    let (mut running, mut fetching) = (0, 0);
    for (piece, way) in line.pieces[from..].iter().zip(ways) {
        match way {
            PieceWay::Resident | PieceWay::Tied => running += piece.run_ps[kind].unwrap_or(NEVER),
            PieceWay::Fetched => {
                running += piece.run_ps[kind].unwrap_or(NEVER);
                fetching += piece.fetch_ps[kind].unwrap_or(NEVER);
            }
            PieceWay::Beside => running += piece.host_ps.unwrap_or(NEVER) + line.kinds[kind].hops_ps,
        }
    }
    match line.schedule {
        Schedule::Serial => running + fetching,
        Schedule::Overlapped => running.max(fetching),
    }
}
