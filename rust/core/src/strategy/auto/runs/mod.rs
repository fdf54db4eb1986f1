//! Plans in which each device executes one run of consecutive blocks.

pub(crate) mod contiguous;
pub(crate) mod fill;
pub(crate) mod offload_window;
pub(crate) mod peaks;
pub(crate) mod prefix;
pub(crate) mod sets;
pub(crate) mod tie_positions;
