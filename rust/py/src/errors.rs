//! Core errors and faults of the walk as `planner.errors`.

use planner_core::Error;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// An `InvalidTreeError` about a named module or tensor.
pub(crate) fn invalid_tree(py: Python<'_>, message: String, name: String) -> PyErr {
    build(py, message, name).unwrap_or_else(|error| error)
}

/// A `CheckpointError` about a file.
pub(crate) fn checkpoint(py: Python<'_>, file: &str, reason: String) -> PyErr {
    let message = format!("{file}: {reason}");
    raise(py, "CheckpointError", message, &[("file", file), ("reason", &reason)]).unwrap_or_else(|error| error)
}

/// An `OffloadError` about reading a file.
pub(crate) fn unreadable(py: Python<'_>, file: &str, reason: &str) -> PyErr {
    raise(py, "OffloadError", format!("{file}: {reason}"), &[("name", file)]).unwrap_or_else(|error| error)
}

fn build(py: Python<'_>, message: String, name: String) -> PyResult<PyErr> {
    raise(py, "InvalidTreeError", message, &[("name", &name)])
}

fn raise(py: Python<'_>, class: &str, message: String, said: &[(&str, &str)]) -> PyResult<PyErr> {
    let fields = PyDict::new(py);
    for (name, value) in said {
        fields.set_item(name, value)?;
    }
    let class = py.import("planner.errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call((message,), Some(&fields))?))
}

/// A core error that is about the tree; `name_of` turns a row into its name.
pub(crate) fn from_core(py: Python<'_>, error: Error, name_of: impl Fn(u32) -> String) -> PyErr {
    // No branch for "any other": a new variant does not compile until its meaning in Python is decided.
    let (message, name) = match error {
        Error::TreeTooLarge { limit } => (
            format!(
                "the model names more than {limit} modules and tensors; shared modules inside shared modules multiply names"
            ),
            String::new(),
        ),
        Error::ImpossibleName { .. } => (error.to_string(), String::new()),
        Error::SizeOverflow { node, limit_bytes } => {
            let name = name_of(node);
            (format!("'{name}' makes the model larger than {limit_bytes} bytes, the most that can be planned"), name)
        }
        Error::Exhausted { node, .. } => (error.to_string(), name_of(node)),
    };
    invalid_tree(py, message, name)
}
