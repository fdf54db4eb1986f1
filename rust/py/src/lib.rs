//! `planner._core`: the walk over a live module tree, conversion, and one call into `planner_core` each.
#![allow(clippy::needless_pass_by_value)] // arguments come out of Python as values of their own

mod auto;
mod errors;
mod headers;
mod layout;
mod memory;
mod outcome;
mod parallel;
mod reading;
mod timed;
mod tree;
mod walk;
mod words;

/// The extension module.
#[pyo3::pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::auto::{AutoFailure, AutoPlan, Blocks, Certificate, Demands, SearchOptions};
    #[pymodule_export]
    use crate::headers::{Headers, Index};
    #[pymodule_export]
    use crate::layout::{BalanceFacts, Layout};
    #[pymodule_export]
    use crate::memory::TapeColumns;
    #[pymodule_export]
    use crate::outcome::{Exhausted, Outcome, Reason};
    #[pymodule_export]
    use crate::reading::{FileMapping, PageBuffer, StoredFile, cached_bytes, map_pieces, read_spans};
    #[pymodule_export]
    use crate::timed::{TimedFailure, TimedLine, TimedPlan};
    #[pymodule_export]
    use crate::tree::{Tree, clean_keys};
}
