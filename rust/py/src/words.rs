//! Closed sets of words at the border, and what each stands for.

use planner_core::auto::{Execute, Fill, Mode};
use planner_core::timed::Schedule;
use planner_core::{Counted, DeviceKind, Dialect, Granularity, Needed, Reserve};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::timed::Aim;

/// What is said by one of a few words.
pub(crate) trait Words: Copy + 'static {
    /// What the words are about, for messages.
    const WHAT: &'static str;
    /// All of them.
    const ALL: &'static [(&'static str, Self)];
}

/// A value that Python says by a word.
#[derive(Clone, Copy)]
pub(crate) struct Word<T>(pub(crate) T);

impl<'py, T: Words> FromPyObject<'_, 'py> for Word<T> {
    type Error = PyErr;

    fn extract(said: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let text = said.cast::<PyString>()?;
        let word = text.to_str()?;
        let found = T::ALL.iter().find(|(known, _)| *known == word);
        let unknown = || {
            let all: Vec<&str> = T::ALL.iter().map(|(known, _)| *known).collect();
            PyValueError::new_err(format!("{} {word:?} is not one of {}", T::WHAT, all.join(", ")))
        };
        found.map(|&(_, value)| Self(value)).ok_or_else(unknown)
    }
}

impl Words for DeviceKind {
    const WHAT: &'static str = "device kind";
    const ALL: &'static [(&'static str, Self)] =
        &[("accelerator", Self::Accelerator), ("cpu", Self::Cpu), ("disk", Self::Disk)];
}

impl Words for Dialect {
    const WHAT: &'static str = "dialect";
    const ALL: &'static [(&'static str, Self)] =
        &[("accelerate", Self::Accelerate), ("transformers", Self::Transformers)];
}

impl Words for Reserve {
    const WHAT: &'static str = "reserve";
    const ALL: &'static [(&'static str, Self)] = &[("always", Self::Always), ("if_offloaded", Self::IfOffloaded)];
}

impl Words for Counted {
    const WHAT: &'static str = "counted";
    const ALL: &'static [(&'static str, Self)] = &[("all", Self::All), ("buffers", Self::Buffers)];
}

impl Words for Needed {
    const WHAT: &'static str = "needed";
    const ALL: &'static [(&'static str, Self)] = &[("all", Self::All), ("saved", Self::Saved)];
}

impl Words for Granularity {
    const WHAT: &'static str = "granularity";
    const ALL: &'static [(&'static str, Self)] = &[("block", Self::Block), ("expert", Self::Expert)];
}

impl Words for Schedule {
    const WHAT: &'static str = "schedule";
    const ALL: &'static [(&'static str, Self)] = &[("serial", Self::Serial), ("overlapped", Self::Overlapped)];
}

impl Words for Aim {
    const WHAT: &'static str = "objective";
    const ALL: &'static [(&'static str, Self)] =
        &[("latency", Self::Latency), ("throughput", Self::Throughput), ("pipeline", Self::Pipeline)];
}

impl Words for Fill {
    const WHAT: &'static str = "fill";
    const ALL: &'static [(&'static str, Self)] =
        &[("even", Self::Even), ("fewest", Self::Fewest), ("in_order", Self::InOrder)];
}

impl Words for Mode {
    const WHAT: &'static str = "mode";
    const ALL: &'static [(&'static str, Self)] =
        &[("any", Self::Any), ("no_disk", Self::NoDisk), ("gpu_only", Self::GpuOnly)];
}

impl Words for Execute {
    const WHAT: &'static str = "execute_offloaded";
    const ALL: &'static [(&'static str, Self)] = &[("accelerator", Self::Accelerator), ("cpu", Self::Cpu)];
}
