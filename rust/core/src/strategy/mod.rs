//! Strategies. Each turns a layout and devices into an outcome; none knows another.

pub mod auto;
pub(crate) mod sequential;
pub(crate) mod steps;
pub mod timed;
