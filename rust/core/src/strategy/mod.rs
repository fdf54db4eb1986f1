//! Strategies. Each turns a layout and devices into an outcome; none knows another.

mod fallback;
mod reservation;
pub mod sequential;
