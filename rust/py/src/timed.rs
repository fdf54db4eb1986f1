//! Plans by time, of a table of plain numbers.

use planner_core::timed::{
    Line, LineFailure, LineKind, Objective, Passing, Piece, PieceWay, Question, Schedule, SummedLine, Tie,
    TimedPlan as Plan,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::words::Word;

/// Bits, state's bits, streamed bits, homes, times: to run and to fetch by kind, and on the host; and by kind bits kept beside.
type PieceRow = (u64, u64, u64, u64, Vec<Option<u64>>, Vec<Option<u64>>, Option<u64>, Vec<u64>);
/// Capacity in bits, picoseconds to the host and back, and whether it is the host.
type KindRow = (u64, u64, bool);
/// Device, first piece, one past the last, picoseconds, and a way for each piece.
type RunRow = (usize, usize, usize, u64, Vec<&'static str>);

/// What a question asks to be small.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim {
    Latency,
    Throughput,
    Pipeline,
}

/// A line of pieces and the devices that may run them.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct TimedLine {
    inner: SummedLine,
}

#[pymethods]
impl TimedLine {
    /// All of it is said but ties, and borders at which no run may end.
    #[new]
    #[expect(clippy::too_many_arguments, reason = "keyword-only, one per thing that is known of the line")]
    #[pyo3(signature = (*, pieces, kinds, devices, hop_ps, schedule, staging_blocks, ties=Vec::new(), closed=Vec::new(), passing=Vec::new()))]
    fn new(
        py: Python<'_>,
        pieces: Vec<PieceRow>,
        kinds: Vec<KindRow>,
        devices: Vec<usize>,
        hop_ps: Vec<Vec<u64>>,
        schedule: Word<Schedule>,
        staging_blocks: u64,
        ties: Vec<(Vec<usize>, u64)>,
        closed: Vec<usize>,
        passing: Vec<(u64, u64)>,
    ) -> PyResult<Self> {
        let piece = |(bits, state_bits, streamed_bits, homes, run_ps, fetch_ps, host_ps, beside_bits): PieceRow| {
            Piece { bits, state_bits, streamed_bits, homes, run_ps, fetch_ps, host_ps, beside_bits }
        };
        let kind = |(capacity_bits, hops_ps, is_host): KindRow| LineKind { capacity_bits, hops_ps, is_host };
        let line = Line {
            pieces: pieces.into_iter().map(piece).collect(),
            kinds: kinds.into_iter().map(kind).collect(),
            devices,
            hop_ps,
            passing: passing.into_iter().map(|(on, back)| Passing { on, back }).collect(),
            schedule: schedule.0,
            staging_blocks,
        };
        let ties: Vec<Tie> = ties.into_iter().map(|(pieces, bits)| Tie { pieces, bits }).collect();
        let inner = py
            .detach(|| SummedLine::new(&line, &ties).map(|line| line.with_closed(&closed)))
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self { inner })
    }

    /// Pieces.
    fn __len__(&self) -> usize {
        self.inner.pieces()
    }

    /// The best plan of one run for each device.
    #[pyo3(signature = (*, objective, batches, any_order, search_steps))]
    fn solve(
        &self,
        py: Python<'_>,
        objective: Word<Aim>,
        batches: u64,
        any_order: bool,
        search_steps: u64,
    ) -> PyResult<Py<PyAny>> {
        let objective = match objective.0 {
            Aim::Latency => Objective::Latency,
            Aim::Throughput => Objective::Throughput,
            Aim::Pipeline => Objective::Pipeline { batches },
        };
        let question = Question { objective, any_order, search_steps };
        match py.detach(|| self.inner.solve(&question)) {
            Ok(plan) => Ok(Py::new(py, TimedPlan::new(plan))?.into_any()),
            Err(LineFailure::Infeasible { is_proven }) => {
                Ok(Py::new(py, TimedFailure { proven: is_proven })?.into_any())
            }
            Err(error) => Err(PyValueError::new_err(error.to_string())),
        }
    }
}

/// Runs, and what is known of them.
#[pyclass(frozen, module = "planner._core", get_all)]
pub(crate) struct TimedPlan {
    latency_ps: u64,
    bottleneck_ps: u64,
    value_ps: u64,
    lower_bound_ps: u64,
    steps: u64,
    runs: Vec<RunRow>,
}

impl TimedPlan {
    fn new(plan: Plan) -> Self {
        let way = |way: &PieceWay| match way {
            PieceWay::Resident => "resident",
            PieceWay::Fetched => "fetched",
            PieceWay::Beside => "beside",
            PieceWay::Tied => "tied",
        };
        let Plan { runs, latency_ps, bottleneck_ps, value_ps, lower_bound_ps, steps } = plan;
        let runs =
            runs.into_iter().map(|run| (run.device, run.from, run.to, run.ps, run.ways.iter().map(way).collect()));
        Self { latency_ps, bottleneck_ps, value_ps, lower_bound_ps, steps, runs: runs.collect() }
    }
}

/// There is no plan, or none was found.
#[pyclass(frozen, module = "planner._core", get_all)]
pub(crate) struct TimedFailure {
    proven: bool,
}
