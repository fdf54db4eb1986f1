//! `planner._core`: the walk over a live module tree, conversion, and one call into `planner_core` each.

mod auto;
mod errors;
mod headers;
mod layout;
mod outcome;
mod parallel;
mod tree;
mod walk;

/// The extension module.
#[pyo3::pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::auto::{AutoFailure, AutoPlan, Blocks};
    #[pymodule_export]
    use crate::headers::{Headers, Index};
    #[pymodule_export]
    use crate::layout::Layout;
    #[pymodule_export]
    use crate::outcome::{Exhausted, Outcome};
    #[pymodule_export]
    use crate::tree::{Tree, clean_keys};
}
