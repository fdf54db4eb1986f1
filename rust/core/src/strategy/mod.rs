//! Strategies. Each turns a layout and devices into an outcome; none knows another.

pub mod auto;
mod fallback;
pub(crate) mod margin;
mod pass;
mod reservation;
pub mod sequential;
