//! Strategies. Each turns a layout and devices into an outcome; none knows another.

pub mod auto;
mod fallback;
mod reservation;
pub mod sequential;
