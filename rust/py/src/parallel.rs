//! The same for many rows, on all cores.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// What a function returns for each row, in their order; the GIL is released meanwhile.
pub(crate) fn on_all_cores<Row, Answer>(
    py: Python<'_>,
    rows: &[Row],
    answer: impl Fn(&Row) -> Answer + Sync,
) -> PyResult<Vec<Answer>>
where
    Row: Sync,
    Answer: Send,
{
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(cores).max(1);
    let answer = &answer;
    let results = py.detach(|| {
        std::thread::scope(|scope| {
            let start = |rows| scope.spawn(move || answers(rows, answer));
            let workers: Vec<_> = rows.chunks(share).map(start).collect();
            workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Result<Vec<_>, _>>()
        })
    });
    let results = results.map_err(|_| PyRuntimeError::new_err("a planning thread died"))?;
    Ok(results.into_iter().flatten().collect())
}

fn answers<Row, Answer>(rows: &[Row], answer: &(impl Fn(&Row) -> Answer + Sync)) -> Vec<Answer> {
    rows.iter().map(answer).collect()
}
